"""The models against transformers and fair-esm, and twins with one mistake each that must fail."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from esm_pipeline import EsmForMaskedLM
from esm_pipeline.errors import InputError
from esm_pipeline.model import PackedLayout, arguments, attention, contacts, encoder, esm
from esm_pipeline.model import layer as one_layer
from esm_pipeline.model.outputs import MaskedLMOutput
from esm_pipeline.model.rotary import RotaryTables
from tests.oracles.peers import (
    ESM1B,
    ESM2,
    KINDS,
    TOLERANCE,
    batch,
    fair_esm1b,
    fair_esm2,
    max_abs,
    ours_like,
    ours_like_fair,
    transformers_peer,
)

LENGTHS = [[1], [7, 7, 7], [1, 2, 30, 5], [64, 11, 64, 33], [300, 2, 151]]
LONG = [[1022, 40], [500, 511]]
BOTH = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
Pair = tuple[nn.Module, EsmForMaskedLM]


@pytest.fixture(params=KINDS, scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def pair(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    peer = transformers_peer(torch.float64, **KINDS[kind])
    return peer, ours_like(peer, tmp_path_factory.mktemp("peer"))


def differences(
    peer: nn.Module, ours: EsmForMaskedLM, tokens: Tensor, mask: Tensor
) -> dict[str, float]:
    """Largest differences of everything a forward returns, with and without attention maps."""
    wanted = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        theirs = peer(tokens, attention_mask=mask, **wanted)
        found = ours(tokens, attention_mask=mask, **wanted)
        fused = ours(tokens, attention_mask=mask, output_hidden_states=True)  # holds no maps
        their_contacts = peer.predict_contacts(tokens, mask)
        found_contacts = ours.predict_contacts(tokens, mask)
    assert len(found.hidden_states) == len(theirs.hidden_states)
    assert len(found.attentions) == len(theirs.attentions)
    return {
        "logits": max_abs(found.logits, theirs.logits, mask),
        "logits without maps": max_abs(fused.logits, theirs.logits, mask),
        "hidden": max(
            map(lambda a, b: max_abs(a, b, mask), found.hidden_states, theirs.hidden_states)
        ),
        "attentions": max(
            max_abs(a.transpose(1, 2), b.transpose(1, 2), mask)
            for a, b in zip(found.attentions, theirs.attentions, strict=True)
        ),
        "contacts": max_abs(found_contacts, their_contacts) if found_contacts.numel() else 0.0,
    }


def worst(found: dict[str, float]) -> float:
    return max(found.values())


@pytest.mark.parametrize("lengths", [*LENGTHS, *LONG], ids=str)
@pytest.mark.parametrize("masked", [0.0, 0.2])
def test_equals_transformers_float64(pair: Pair, lengths: list[int], masked: float) -> None:
    tokens, mask = batch(lengths, masked=masked, seed=len(lengths))
    assert worst(differences(*pair, tokens, mask)) <= TOLERANCE


@pytest.mark.parametrize("lengths", [[1, 2, 30, 5], [1022, 40]], ids=str)
def test_equals_transformers_float32(kind: str, lengths: list[int], tmp_path: Path) -> None:
    peer = transformers_peer(torch.float32, **KINDS[kind])
    tokens, mask = batch(lengths, masked=0.15)
    found = differences(peer, ours_like(peer, tmp_path), tokens, mask)
    scale = float(peer(tokens, attention_mask=mask).logits.detach().abs().max())
    assert worst(found) <= TOLERANCE * max(1.0, scale)


def test_rotary_beyond_the_table(tmp_path: Path) -> None:
    peer = transformers_peer(torch.float64, **ESM2)
    tokens, mask = batch([1100, 3], masked=0.1)
    assert worst(differences(peer, ours_like(peer, tmp_path), tokens, mask)) <= TOLERANCE


def test_padding_on_the_left_and_holes(pair: Pair) -> None:
    tokens, mask = batch([20, 20, 20], masked=0.1)
    mask[0, :6] = 0
    mask[1, 8:12] = 0
    assert 0 < int(mask.sum()) < mask.numel()
    wanted = {"output_hidden_states": True}
    peer, ours = pair
    theirs, found = (
        peer(tokens, attention_mask=mask, **wanted),
        ours(tokens, attention_mask=mask, **wanted),
    )
    # where masked tokens hold <mask>, the reference counts them for token dropout: keep them clear
    assert not ((tokens == 32) & (mask == 0)).any()
    assert max_abs(found.logits, theirs.logits, mask) <= TOLERANCE


def test_missing_mask_is_derived_from_padding(pair: Pair) -> None:
    peer, ours = pair
    tokens, mask = batch([9, 30, 2])
    theirs = peer(tokens, attention_mask=mask).logits
    assert max_abs(ours(tokens).logits, theirs, mask) <= TOLERANCE
    assert max_abs(peer(tokens, attention_mask=torch.ones_like(mask)).logits, theirs, mask) > 1e-3


def test_nothing_is_computed_for_padding(pair: Pair) -> None:
    _, ours = pair
    tokens, mask = batch([9, 30, 2])
    found = ours(tokens, output_hidden_states=True)
    off = mask == 0
    assert off.any()
    assert not found.logits[off].any()
    assert not found.hidden_states[-1][off].any()


def test_shapes_that_cannot_be(pair: Pair) -> None:
    _, ours = pair
    tokens, mask = batch([9, 30])
    with pytest.raises(InputError, match=r"should be a tensor \(B, L\)"):
        ours(tokens[0])
    with pytest.raises(
        InputError, match=r"attention_mask has shape \(2, 31\), the input \(2, 32\)"
    ):
        ours(tokens, attention_mask=mask[:, 1:])
    with pytest.raises(InputError, match=r"head_mask has shape \(5,\)"):
        ours(tokens, head_mask=torch.ones(5))
    with pytest.raises(InputError, match="layer 7 does not exist; the model has layers 0"):
        ours.esm.represent(tokens[0], PackedLayout.from_lengths([32]), [7])
    assert ours.predict_contacts(tokens[:, :1]).shape == (2, 0, 0)


def test_embeddings_in_place_of_ids(pair: Pair) -> None:
    peer, ours = pair
    for model in pair:
        model.esm.embeddings.token_dropout = False  # the reference's needs ids
    tokens, mask = batch([12, 5])
    embeds = ours.esm.get_input_embeddings()(tokens)
    # transformers 4.37.2 adds positions to them and norms them, as here; 5 takes them as they are
    embedded = peer.esm.embeddings(inputs_embeds=embeds, attention_mask=mask)
    theirs = peer(inputs_embeds=embedded, attention_mask=mask).logits
    found = ours(inputs_embeds=embeds, attention_mask=mask).logits
    for model in pair:
        model.esm.embeddings.token_dropout = True
    assert max_abs(found, theirs, mask) <= TOLERANCE


def test_head_mask_switches_heads_off(pair: Pair) -> None:
    _, ours = pair
    tokens, mask = batch([12, 5])
    off = torch.ones(3, 4, dtype=torch.float64)
    off[1, 2] = 0
    found = ours(tokens, attention_mask=mask, head_mask=off, output_attentions=True)
    plain = ours(tokens, attention_mask=mask)
    assert not found.attentions[1][:, 2].any()
    assert max_abs(found.logits, plain.logits, mask) > 1e-3
    width = ours.esm.encoder.head_width
    out = ours.esm.encoder.layer[1].attention.output.dense.weight
    kept = out.detach().clone()
    with torch.no_grad():
        out[:, 2 * width : 3 * width] = 0
        expected = ours(tokens, attention_mask=mask).logits
        out.copy_(kept)
    assert max_abs(found.logits, expected, mask) <= TOLERANCE


def test_loss_and_tuples(pair: Pair) -> None:
    peer, ours = pair
    tokens, mask = batch([12, 5], masked=0.3)
    labels = torch.where(tokens == 32, 7, -100)
    theirs = peer(tokens, attention_mask=mask, labels=labels)
    found = ours(tokens, attention_mask=mask, labels=labels)
    assert max_abs(found.loss, theirs.loss) <= TOLERANCE
    loss, logits = ours(tokens, attention_mask=mask, labels=labels, return_dict=False)
    assert loss == found.loss == found[0] == found["loss"]
    assert torch.equal(logits, found[1])
    assert list(found) == ["loss", "logits"]


def test_gradients_through_the_packed_path(pair: Pair) -> None:
    peer, ours = pair
    tokens, mask = batch([12, 5, 12, 30], masked=0.3)
    labels = torch.where(tokens == 32, 7, -100)
    for model in pair:
        model.zero_grad()
        model(tokens, attention_mask=mask, labels=labels).loss.backward()
    theirs = {name: parameter.grad for name, parameter in peer.named_parameters()}
    compared = 0
    for name, parameter in ours.named_parameters():
        if parameter.grad is None:
            assert name.startswith("esm.contact_head"), name
            continue
        assert max_abs(parameter.grad, theirs[name]) <= TOLERANCE, name
        compared += 1
    assert compared > 40


@BOTH
@pytest.mark.parametrize("build", [fair_esm2, fair_esm1b], ids=["ESM-2", "ESM-1b"])
def test_equals_fair_esm(
    build: Callable[..., nn.Module], dtype: torch.dtype, tmp_path: Path
) -> None:
    peer = build(dtype)
    ours = ours_like_fair(peer, tmp_path, **(ESM2 if build is fair_esm2 else ESM1B))
    for lengths in ([1, 40, 9], [300, 2], [1022]):
        tokens, mask = batch(lengths, masked=0.15)
        layers = range(peer.num_layers + 1 if build is fair_esm2 else peer.args.layers + 1)
        with torch.no_grad():
            theirs = peer(tokens, repr_layers=list(layers), return_contacts=True)
            found = ours(tokens, output_hidden_states=True, output_attentions=True)
            found_contacts = ours.predict_contacts(tokens)
        scale = 1.0 if dtype == torch.float64 else max(1.0, float(theirs["logits"].abs().max()))
        assert max_abs(found.logits, theirs["logits"], mask) <= TOLERANCE * scale
        for layer in layers:
            expected = theirs["representations"][layer]
            assert max_abs(found.hidden_states[layer], expected, mask) <= TOLERANCE * scale
        maps = torch.stack(found.attentions, dim=1)
        assert max_abs(maps, theirs["attentions"]) <= TOLERANCE * scale
        assert max_abs(found_contacts, theirs["contacts"]) <= TOLERANCE * scale


def test_packed_door_equals_padded_door(pair: Pair) -> None:
    _, ours = pair
    lengths = [9, 40, 9, 1]
    tokens, mask = batch(lengths, masked=0.1)
    layout = PackedLayout.from_lengths([length + 2 for length in lengths])
    packed = tokens[mask.bool()]
    padded = ours(tokens, output_hidden_states=True)
    found = ours.esm.represent(packed, layout, [0, 1, 3, -1], contacts=True)
    assert max_abs(ours.packed_logits(packed, layout), padded.logits[mask.bool()]) <= 1e-12
    for layer, states in found.hidden.items():
        assert max_abs(states, padded.hidden_states[layer][mask.bool()]) <= 1e-12
    expected = ours.predict_contacts(tokens)
    for row, single in enumerate(found.contacts):
        assert single.shape == (lengths[row], lengths[row])
        assert max_abs(single, expected[row, : lengths[row], : lengths[row]]) <= 1e-12


# Twins: one deliberate mistake each, through the same check as above.


def no_token_dropout(ours: EsmForMaskedLM, patch: pytest.MonkeyPatch) -> None:
    ours.esm.embeddings.token_dropout = False


def factor_without_masks_one(ours: EsmForMaskedLM, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(encoder, "MASKED_IN_TRAINING", 0.0)


def tanh_gelu(ours: EsmForMaskedLM, patch: pytest.MonkeyPatch) -> None:
    for layer in ours.esm.encoder.layer:
        layer.intermediate.activation = nn.GELU(approximate="tanh")


def no_final_norm(ours: EsmForMaskedLM, patch: pytest.MonkeyPatch) -> None:
    ours.esm.encoder.emb_layer_norm_after = nn.Identity()


def other_norm_epsilon(ours: EsmForMaskedLM, patch: pytest.MonkeyPatch) -> None:
    for module in ours.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-3


def attend_across_sequences(ours: EsmForMaskedLM, patch: pytest.MonkeyPatch) -> None:
    def across(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, *rest: object) -> Tensor:
        return attention.attend(q, k, v, PackedLayout.from_lengths([layout.tokens]))

    patch.setattr(one_layer, "attend", across)


def swapped_query_and_key(ours: EsmForMaskedLM, patch: pytest.MonkeyPatch) -> None:
    def swapped(q: Tensor, k: Tensor, v: Tensor, *rest: object) -> Tensor:
        return attention.attend(k, q, v, *rest)

    patch.setattr(one_layer, "attend", swapped)


def wrong_positions(ours: EsmForMaskedLM, patch: pytest.MonkeyPatch) -> None:
    if ours.esm.encoder.rotary:
        patch.setattr(one_layer, "rotate", interleaved)
    else:
        rows = arguments.table_rows
        patch.setattr(esm, "table_rows", lambda *given: rows(*given) - 1)


def interleaved(x: Tensor, tables: RotaryTables) -> Tensor:
    cos, sin = tables.cos, tables.sin
    first, second = x[..., ::2], x[..., 1::2]
    return torch.stack((first * cos - second * sin, second * cos + first * sin), -1).flatten(-2)


def contacts_uncorrected(ours: EsmForMaskedLM, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(contacts, "average_product_corrected", lambda maps: maps)


def untied_head(ours: EsmForMaskedLM, patch: pytest.MonkeyPatch) -> None:
    logits = ours.logits
    ours.logits = lambda hidden, layout: logits(hidden, layout) - ours.lm_head.bias


TWINS = [
    no_token_dropout,
    factor_without_masks_one,
    tanh_gelu,
    no_final_norm,
    other_norm_epsilon,
    attend_across_sequences,
    swapped_query_and_key,
    wrong_positions,
    contacts_uncorrected,
    untied_head,
]


@pytest.mark.parametrize("mistake", TWINS)
def test_twin_fails(
    pair: Pair,
    mistake: Callable[[EsmForMaskedLM, pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens, mask = batch([64, 11, 64, 33], masked=0.2)
    peer, wrong = pair[0], copy.deepcopy(pair[1])
    assert worst(differences(peer, wrong, tokens, mask)) <= TOLERANCE
    mistake(wrong, monkeypatch)
    assert worst(differences(peer, wrong, tokens, mask)) > 10 * TOLERANCE


def test_output_is_a_mapping_and_a_tuple() -> None:
    output = MaskedLMOutput(logits=torch.ones(1))
    assert list(output) == ["logits"]
    assert "loss" not in output
    assert len(output) == 1
    assert output[0] is output["logits"] is output.logits
    assert output.to_tuple() == (output.logits,)
