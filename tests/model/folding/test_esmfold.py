"""The whole folding model compared with transformers, and twins with one mistake each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esm_pipeline import EsmConfig, EsmForProteinFolding, optimize_for_inference
from esm_pipeline.errors import InputError
from esm_pipeline.model.folding import language_model
from esm_pipeline.model.folding.trunk import FoldingTrunk, RelativePosition
from tests.oracles.folding_peers import (
    UNITS,
    all_double,
    alone,
    apart,
    folding_models,
    gapped,
    proteins,
    settings,
    whole_model_apart,
)
from tests.oracles.peers import enliven

TOLERANCE = {"ptm": 1e-9}
"""In float64, in the fields' own units. Found: 4e-10, as the peer's score of a bin is float32."""

OTHERS = 1e-11
"""The same of all other fields, coordinates in Å among them. Found: 1e-13."""

Models = tuple[nn.Module, EsmForProteinFolding]


@pytest.fixture(scope="module")
def models() -> Models:
    return folding_models()


def too_far(off: Mapping[str, float]) -> dict[str, float]:
    """Fields that differ by more than they may."""
    return {name: value for name, value in off.items() if value > TOLERANCE.get(name, OTHERS)}


@pytest.mark.parametrize("lengths", [[1], [2], [13], [9, 1, 4]], ids=str)
@pytest.mark.parametrize("num_recycles", [None, 0, 1, 2, 3])
def test_every_field_is_the_peers(models: Models, lengths: list[int], num_recycles: int | None):
    assert not too_far(whole_model_apart(models, lengths, num_recycles=num_recycles))


@pytest.mark.parametrize("chunk_size", [1, 4, 64])
def test_chunks_change_nothing(models: Models, chunk_size: int):
    with models[1].chunked(chunk_size):
        assert not too_far(whole_model_apart(models, [9, 6], num_recycles=1))


def test_numbers_with_a_gap(models: Models):
    lengths = [11, 8]
    numbers = gapped(proteins(lengths)[1])
    assert not too_far(whole_model_apart(models, lengths, numbers=numbers, num_recycles=1))
    plain = torch.arange(11).expand(2, -1)
    assert too_far(whole_model_apart(models, lengths, numbers=plain, seen=numbers))


@pytest.mark.parametrize(
    "fold",
    [{"embed_aa": False}, {"esm_ablate_sequence": True}, {"trunk": {"max_recycles": 2}}],
    ids=str,
)
def test_settings_that_the_peer_has(fold: dict[str, Any]):
    assert not too_far(whole_model_apart(folding_models(**fold), [7, 3], num_recycles=None))


def test_ablated_states_make_a_difference(models: Models):
    aatype, mask = proteins([7])
    with torch.no_grad():
        shown = models[1](aatype, mask, num_recycles=0)
        models[1].fold_config.esm_ablate_sequence = True
        try:
            hidden = models[1](aatype, mask, num_recycles=0)
        finally:
            models[1].fold_config.esm_ablate_sequence = False
    assert (shown.s_s - hidden.s_s).abs().max() > 1e-3


def test_float32_is_near_float64():
    off = whole_model_apart(folding_models(torch.float32), [13, 5], num_recycles=1)
    assert max(off.values()) <= 3e-4, off  # found: 2e-5, in Å and of 100


def test_inference_is_as_forward(models: Models):
    peer, ours = models
    sequences = ["MKTXAYI", "GAV"]
    with torch.no_grad(), all_double():
        wanted = [peer.infer(sequence) for sequence in sequences]
    found = ours.infer(sequences)
    for place, (sequence, one) in enumerate(zip(sequences, wanted, strict=True)):
        scaled = {name: value * UNITS.get(name, 1) for name, value in one.items()}
        scaled["ptm"] = scaled["ptm"].reshape(1)
        expected = alone(scaled, 0, len(sequence))
        assert not too_far(apart(alone(found, place, len(sequence)), expected))


def test_a_missing_mask_is_derived(models: Models):
    aatype, mask = proteins([6, 3])
    with torch.no_grad():
        given = models[1](aatype, mask, num_recycles=0)
        derived = models[1](aatype.masked_fill(mask == 0, -1), num_recycles=0)
        ignored = models[1](aatype, num_recycles=0)
    assert torch.equal(given.attention_mask, derived.attention_mask)
    assert torch.equal(given.positions, derived.positions)
    assert torch.equal(given.aatype, derived.aatype)
    assert (given.ptm - ignored.ptm)[1].abs() > 1e-6


def test_padding_changes_no_confidence(models: Models):
    ours = models[1]
    for sequence in ("MKTAYIAKQRQIS", "M", "HWX"):
        one = ours.infer(sequence, num_recycles=1)
        both = ours.infer([sequence, "MKV" * 9], num_recycles=1)
        for name in ("ptm", "mean_plddt"):
            assert torch.allclose(one[name], both[name][:1], rtol=0, atol=1e-11), name
        length = len(sequence)
        within = both.predicted_aligned_error[0, :length, :length]
        assert torch.allclose(one.predicted_aligned_error[0], within, rtol=0, atol=1e-11)
        assert torch.allclose(one.plddt[0], both.plddt[0, :length], rtol=0, atol=1e-11)


def test_confidences_are_in_their_units(models: Models):
    output = models[1].infer(["MKTAYIAKQRQIS", "GAV"], num_recycles=0)
    shown = output.plddt[output.attention_mask.bool()]
    assert 1 < shown.min() < shown.max() < 100
    alpha = output.plddt[..., 1]
    means = [float(alpha[0].mean()), float(alpha[1, :3].mean())]
    assert output.mean_plddt.tolist() == pytest.approx(means)
    assert ((output.ptm > 0) & (output.ptm < 1)).all()
    assert output.iptm.isnan().all()
    assert output.interchain_error.isnan().all()
    assert output.max_predicted_aligned_error == 31.75


def test_compact_leaves_out_and_changes_nothing(models: Models):
    whole, compact = (
        models[1].infer(["MKTAY:IAK", "GAV"], num_recycles=1, compact=one) for one in (False, True)
    )
    wide = {"s_z", "ptm_logits", "aligned_confidence_probs", "distogram_logits", "lddt_head"}
    assert wide <= set(whole.keys())
    assert not wide & set(compact.keys())
    for name, value in compact.items():
        wanted = whole[name][-1:] if name in ("frames", "angles", "positions") else whole[name]
        assert torch.allclose(value, wanted, rtol=0, atol=1e-12, equal_nan=True), name


def test_masked_residues_are_not_shown(models: Models):
    """The peer fails with a pattern; its arithmetic with tokens of our own."""
    peer, ours = models
    aatype, mask = proteins([8])
    pattern = torch.tensor([[0, 1, 0, 0, 1, 0, 0, 0]])
    with torch.no_grad(), all_double():
        shown, tokens, _ = peer.bert_mask(
            aatype, peer.af2_idx_to_esm_idx(aatype, mask), mask, pattern
        )
        states = peer.esm_s_combine.softmax(0) @ peer.compute_language_model_representations(tokens)
        s = peer.esm_s_mlp(states.squeeze(2)) + peer.embedding(shown)
        z = s.new_zeros(1, 8, 8, 16)
        wanted = peer.trunk(s, z, aatype, torch.arange(8)[None], mask, no_recycles=1)
    with torch.no_grad():
        found = ours(aatype, mask, masking_pattern=pattern, num_recycles=1)
        plain = ours(aatype, mask, num_recycles=1)
    for name in ("s_s", "s_z", "positions"):
        assert (found[name] - wanted[name]).abs().max() <= 1e-6  # share of masks is in float32
        assert (found[name] - plain[name]).abs().max() > 1e-3


def test_gradients_are_the_peers(models: Models):
    """Of every parameter that learns, with a recycle; the language model has none."""
    peer, ours = folding_models()
    aatype, mask = proteins([9])
    with all_double():
        wanted = peer(aatype, mask, num_recycles=1)
    found = ours(aatype, mask, num_recycles=1)
    for output in (wanted, found):
        parts = ("positions", "lddt_head", "ptm_logits", "distogram_logits", "lm_logits", "angles")
        sum(output[name].square().mean() for name in parts).backward()
    theirs = {name: p.grad for name, p in peer.named_parameters()}
    own = {name: p.grad for name, p in ours.named_parameters()}
    assert own.keys() == theirs.keys()
    learning = {name for name, gradient in theirs.items() if gradient is not None}
    assert learning == {name for name, gradient in own.items() if gradient is not None}
    assert not any(name.startswith("esm.") for name in learning)
    assert len(learning) > 150
    for name in learning:
        scale = max(1.0, float(theirs[name].abs().max()))
        assert (own[name] - theirs[name]).abs().max() <= 1e-10 * scale, name


@pytest.mark.parametrize("fold", [{"use_esm_attn_map": True}, {"bypass_lm": True}], ids=str)
def test_the_optimized_model_has_the_same_ways(fold: dict[str, Any]):
    ours = enliven(EsmForProteinFolding(EsmConfig(**settings(**fold))))
    fast = optimize_for_inference(ours)
    for arguments in ({}, {"chunk_size": 3}, {"offload_stem": True}):
        found, wanted = (
            one.infer(["MKTAYIAKQRX:GAV", "HW"], num_recycles=1, **arguments)
            for one in (fast, ours)
        )
        for name in ("positions", "plddt", "ptm", "predicted_aligned_error"):
            assert (found[name] - wanted[name]).abs().max() <= 1e-4, (
                name
            )  # Å, of 100, of 1; found: 3e-5


# --- twins: one mistake each, seen by the comparisons above ---


def no_mask(ours: EsmForProteinFolding, patch: pytest.MonkeyPatch) -> None:
    forward = FoldingTrunk.forward
    patch.setattr(
        FoldingTrunk,
        "forward",
        lambda self, s, z, a, p, mask, n: forward(self, s, z, a, p, None, n),
    )


def one_recycle_more(ours: EsmForProteinFolding, patch: pytest.MonkeyPatch) -> None:
    forward = FoldingTrunk.forward
    patch.setattr(FoldingTrunk, "forward", lambda self, *given: forward(self, *given[:-1], 2))


def swapped_directions(ours: EsmForProteinFolding, patch: pytest.MonkeyPatch) -> None:
    for block in ours.trunk.blocks:
        for part in (block.tri_mul_out, block.tri_mul_in):
            patch.setattr(part, "outgoing", not part.outgoing)


def swapped_nodes(ours: EsmForProteinFolding, patch: pytest.MonkeyPatch) -> None:
    for block in ours.trunk.blocks:
        for part in (block.tri_att_start, block.tri_att_end):
            patch.setattr(part, "starting", not part.starting)


def turned_distances(ours: EsmForProteinFolding, patch: pytest.MonkeyPatch) -> None:
    forward = RelativePosition.forward
    patch.setattr(
        RelativePosition, "forward", lambda self, numbers, *more: forward(self, -numbers, *more)
    )


def unscaled_attention(ours: EsmForProteinFolding, patch: pytest.MonkeyPatch) -> None:
    original = F.scaled_dot_product_attention
    patch.setattr(
        F, "scaled_dot_product_attention", lambda *given, **more: original(*given, scale=1.0)
    )


def with_bos(ours: EsmForProteinFolding, patch: pytest.MonkeyPatch) -> None:
    represent = language_model.represent

    def twin(*given: Any, **more: Any) -> tuple[Tensor, Tensor | None]:
        states, maps = represent(*given, **more)
        return states.roll(1, dims=1), maps

    patch.setattr(language_model, "represent", twin)


def shifted_shares(ours: EsmForProteinFolding, patch: pytest.MonkeyPatch) -> None:
    represent = language_model.represent
    patch.setattr(
        language_model,
        "represent",
        lambda model, ids, shares, **more: represent(model, ids, shares.roll(1), **more),
    )


def residues_from_one(ours: EsmForProteinFolding, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        EsmForProteinFolding, "af2_to_esm", property(lambda self: torch.arange(1, 23)), raising=True
    )


def plddt_to_one(ours: EsmForProteinFolding, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(UNITS, "plddt", 1.0)


Twin = Callable[[EsmForProteinFolding, pytest.MonkeyPatch], None]


@pytest.mark.parametrize(
    ("twin", "field"),
    [
        (no_mask, "positions"),
        (one_recycle_more, "positions"),
        (swapped_directions, "s_z"),
        (swapped_nodes, "s_z"),
        (turned_distances, "s_z"),
        (unscaled_attention, "s_s"),
        (with_bos, "s_s"),
        (shifted_shares, "s_s"),
        (residues_from_one, "s_s"),
        (plddt_to_one, "plddt"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_twin_fails(models: Models, twin: Twin, field: str, monkeypatch: pytest.MonkeyPatch):
    twin(models[1], monkeypatch)
    assert whole_model_apart(models, [9, 4], num_recycles=1)[field] > 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": torch.ones(3, dtype=torch.int64)}, r"for one sequence, \(1, R\)"),
        ({"input_ids": torch.ones(1, 3)}, "should be residue numbers"),
        ({"input_ids": torch.tensor([[3, 21]])}, r"0 to 20 \(X\)"),
        ({"input_ids": torch.tensor([[-1, 3]])}, "follow each sequence"),
        ({"input_ids": torch.tensor([[3, 3], [-1, -1]])}, "at least one residue"),
        (
            {"input_ids": torch.tensor([[3, 3]]), "attention_mask": torch.tensor([[1]])},
            r"shape \(1, 1\), the input \(1, 2\)",
        ),
        (
            {"input_ids": torch.tensor([[3, 3, 3]]), "attention_mask": torch.tensor([[1, 0, 1]])},
            "follow each sequence",
        ),
        ({"input_ids": torch.tensor([[3]]), "num_recycles": -1}, "give 0 or more"),
    ],
)
def test_input_that_does_not_fit_is_reported(
    models: Models, arguments: dict[str, Any], message: str
):
    with pytest.raises(InputError, match=message):
        models[1](**arguments)


@pytest.mark.parametrize("wrong", [0, -3, 1.5, True])
def test_a_chunk_size_that_is_none_is_told(models: Models, wrong: Any):
    with pytest.raises(InputError, match="give a whole number from 1, or None"):
        models[1].trunk.set_chunk_size(wrong)


def test_arguments_of_one_call_last_for_it_alone(models: Models):
    ours = models[1]
    ours.trunk.set_chunk_size(5)
    try:
        ours.infer("GAV", num_recycles=0, chunk_size=None, offload_stem=True)
        assert ours.trunk.chunk_size == 5
        with pytest.raises(InputError):
            ours.infer("GAV", num_recycles=-1, chunk_size=2, offload_stem=True)
        assert ours.trunk.chunk_size == 5
        assert not ours.offloads
    finally:
        ours.trunk.set_chunk_size(None)


def test_an_offloaded_stem_visits_the_device(models: Models, monkeypatch: pytest.MonkeyPatch):
    ours = models[1]
    moves: list[str] = []
    move = type(ours.esm).to
    monkeypatch.setattr(
        type(ours.esm), "to", lambda self, device: moves.append(str(device)) or move(self, device)
    )
    monkeypatch.setattr(
        type(ours.esm), "cpu", lambda self: moves.append("home") or move(self, "cpu")
    )
    plain = ours.infer("GAVM", num_recycles=0)
    assert moves == []
    found = ours.infer("GAVM", num_recycles=0, offload_stem=True)
    assert moves == ["home", "cpu", "home", "cpu"]
    assert torch.equal(found.positions, plain.positions)
