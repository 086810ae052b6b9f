"""The language model before the trunk: its states, its attention maps, and ways to leave it out.

transformers fails with attention maps, and with the language model left out: written plainly here
from the outputs of `EsmModel`, which has its own oracles. Peer: fair-esm before v1 of ESMFold.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from esm_pipeline import EsmConfig, EsmForProteinFolding
from esm_pipeline.model.folding import language_model
from esm_pipeline.model.folding.esmfold import mixer
from tests.oracles.folding_peers import proteins, settings
from tests.oracles.peers import enliven
from tests.oracles.structure_peers import Largest

TOLERANCE = 1e-12
LENGTHS = [[1], [2], [13], [9, 1, 4]]


def folding_model(**fold: object) -> EsmForProteinFolding:
    model = EsmForProteinFolding(EsmConfig(**settings(**fold)))
    enliven(model)
    return model.double()


@pytest.fixture(scope="module")
def with_maps() -> EsmForProteinFolding:
    return folding_model(use_esm_attn_map=True)


def plainly(model: EsmForProteinFolding, ids: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """One sequence's states (R, D) and maps (R, R, n * H), from all hidden states at once."""
    tokens = torch.cat([torch.tensor([0]), ids[:length], torch.tensor([2])])[None]
    with torch.no_grad():
        output = model.esm(tokens, output_hidden_states=True, output_attentions=True)
    shares = model.esm_s_combine.detach().softmax(0)
    states = sum(share * x for share, x in zip(shares, output.hidden_states, strict=True))
    attentions = torch.stack(output.attentions, dim=4)  # (1, H, query, key, n)
    maps = attentions.permute(0, 3, 2, 4, 1).flatten(3)  # [key, query]: layer, then head
    return states[0, 1:-1], maps[0, 1:-1, 1:-1]


def worst(model: EsmForProteinFolding, lengths: list[int]) -> tuple[float, float]:
    aatype, mask = proteins(lengths, seed=sum(lengths))
    ids = model.af2_to_esm[(aatype + 1) * mask]
    with torch.no_grad():
        states, maps = model.language(ids)
    assert states.shape == (*ids.shape, 48)
    assert maps.shape == (*ids.shape, ids.shape[1], 12)
    off = [0.0, 0.0]
    for place, length in enumerate(lengths):
        wanted = plainly(model, ids[place], length)
        own = states[place, :length], maps[place, :length, :length]
        off = [
            max(before, float((found - expected).abs().max()))
            for before, found, expected in zip(off, own, wanted, strict=True)
        ]
    return off[0], off[1]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_states_and_maps(with_maps: EsmForProteinFolding, lengths: list[int]):
    assert max(worst(with_maps, lengths)) <= TOLERANCE


def test_twins_fail(with_maps: EsmForProteinFolding, monkeypatch: pytest.MonkeyPatch):
    unpack = language_model.unpack_maps
    with monkeypatch.context() as patch:
        patch.setattr(
            language_model, "unpack_maps", lambda *given: unpack(*given).transpose(-1, -2)
        )
        assert worst(with_maps, [9, 4])[1] > 0.01
    framed = language_model.add_special_tokens

    def without_eos(*given: object) -> object:
        tokens, _ = framed(*given)
        tokens = tokens.masked_fill(tokens == 2, 1)
        return tokens, language_model.PackedLayout.from_mask(tokens != 1)

    with monkeypatch.context() as patch:
        patch.setattr(language_model, "add_special_tokens", without_eos)
        assert worst(with_maps, [9, 4])[0] > 0.001


def test_maps_start_the_pair_representation(with_maps: EsmForProteinFolding):
    aatype, mask = proteins([7])
    ids = with_maps.af2_to_esm[aatype + 1]
    with torch.no_grad():
        s, z = with_maps.start(aatype, mask, None)
        states, maps = plainly(with_maps, ids[0], 7)
        assert (z[0] - with_maps.esm_z_mlp(maps)).abs().max() <= TOLERANCE
        wanted = with_maps.esm_s_mlp(states) + with_maps.embedding(aatype[0])
        assert (s[0] - wanted).abs().max() <= TOLERANCE
        found = with_maps(aatype, mask, num_recycles=1)
        trunk = with_maps.trunk(s, z, aatype, torch.arange(7)[None], None, 1)
        assert torch.equal(found.s_z, trunk["s_z"])
    assert {name for name, _ in with_maps.esm_z_mlp.named_parameters()} == {
        name for name, _ in mixer(3, 4).named_parameters()
    }


def test_maps_left_out(with_maps: EsmForProteinFolding, monkeypatch: pytest.MonkeyPatch):
    aatype, mask = proteins([7])
    with torch.no_grad():
        shown = with_maps(aatype, mask, num_recycles=0)
        monkeypatch.setattr(with_maps.fold_config, "esm_ablate_pairwise", True)
        hidden = with_maps(aatype, mask, num_recycles=0)
        assert with_maps.start(aatype, mask, None)[1] is None
    assert (shown.s_z - hidden.s_z).abs().max() > 1e-3


def test_the_model_left_out(monkeypatch: pytest.MonkeyPatch):
    """As if its states were zeros; it is not run."""
    plain, bypassed = folding_model(esm_ablate_sequence=True), folding_model(bypass_lm=True)
    aatype, mask = proteins([7, 3])
    with torch.no_grad():
        wanted = plain(aatype, mask, num_recycles=1)
        monkeypatch.delattr(language_model, "represent")
        found = bypassed(aatype, mask, num_recycles=1)
    for name in ("s_s", "positions", "plddt"):
        assert torch.equal(found[name], wanted[name]), name


def test_maps_that_nobody_wants_are_not_made(with_maps: EsmForProteinFolding):
    """And not all hidden states: except for weights, nothing is as large as all of them."""
    model = folding_model()
    ids = torch.randint(4, 24, (1, 60))
    with torch.no_grad(), Largest() as largest:
        model.language(ids)
    assert largest.numbers < 62 * 48 * 4 + 1
    with torch.no_grad(), Largest() as wide:
        with_maps.language(ids)
    assert wide.numbers >= 60 * 60 * 12


def test_no_gradient_reaches_the_model(with_maps: EsmForProteinFolding):
    with_maps.esm.requires_grad_(True)
    try:
        aatype, mask = proteins([5])
        s, z = with_maps.start(aatype, mask, None)
        (s.sum() + z.sum()).backward()
        assert all(p.grad is None for p in with_maps.esm.parameters())
        assert with_maps.esm_s_combine.grad.abs().max() > 0
    finally:
        with_maps.esm.requires_grad_(False)
        with_maps.zero_grad()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_stem_in_16_bits_gives_states_in_the_trunks_precision(dtype: torch.dtype):
    model = folding_model().float()
    aatype, mask = proteins([13, 6])
    ids = model.af2_to_esm[(aatype + 1) * mask]
    with torch.no_grad():
        wanted, _ = model.language(ids)
        model.esm.to(dtype)
        found, _ = model.language(ids)
    assert found.dtype == torch.float32
    off = (found - wanted).abs().max() / wanted.abs().max()
    assert 1e-5 < off < 0.03


def test_states_in_16_bits_are_added_up_in_the_trunks_precision():
    model = folding_model().float()
    model.esm.bfloat16()
    aatype, mask = proteins([13, 6])
    ids = model.af2_to_esm[(aatype + 1) * mask]
    tokens, layout = language_model.add_special_tokens(model.esm, ids)
    with torch.no_grad():
        found, _ = model.language(ids)
        shares = model.esm_s_combine.softmax(0)
        steps = language_model.steps_without_gradients(
            model.esm, layout.pack(tokens), layout, with_maps=False
        )
        total = sum(share * step.x.float() for share, step in zip(shares, steps, strict=True))
        wanted = layout.unpack(total, tokens.shape[1])[:, 1:-1]
    assert wanted.abs().max() > 0.1
    assert (found - wanted).abs().max() <= 1e-6
