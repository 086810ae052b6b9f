"""Pruned heads: as if masked, in every mode, saved and loaded; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esm_pipeline import (
    EsmConfig,
    EsmForMaskedLM,
    EsmForSequenceClassification,
    EsmModel,
    optimize_for_inference,
)
from esm_pipeline.errors import InputError, WeightsError
from esm_pipeline.model import pruning
from esm_pipeline.model.layer import EsmLayer
from tests.oracles.peers import max_abs
from tests.oracles.reference import fill
from tests.oracles.reference_cases import BASE, CROSS, DECODER, PAD, TYPES, tokens
from tests.oracles.seeded import uniform

TOLERANCE = 1e-10
IDS, MASK = (torch.from_numpy(x) for x in tokens())
STATES = torch.from_numpy(uniform("states", (2, 7, 12)))
HEADS = BASE["num_attention_heads"]


def build(made: type[Any] = EsmModel, **more: Any) -> Any:
    return fill(made(EsmConfig(**{**BASE, **more})).double().eval()).requires_grad_(False)


def off(heads: dict[int, list[int]]) -> torch.Tensor:
    """A head mask (n, H) with zeros there."""
    mask = torch.ones(BASE["num_hidden_layers"], HEADS)
    for layer, numbers in heads.items():
        mask[layer, numbers] = 0
    return mask


def difference(kind: str, role: dict[str, bool], rounds: list[dict[int, list[int]]]) -> float:
    """Largest difference of a pruned model from the whole one with those heads masked."""
    config = {"position_embedding_type": kind, **role}
    whole, cut = build(**config), build(**config)
    for heads in rounds:
        cut.prune_heads(heads)
    gone = {
        layer: sorted({head for heads in rounds for head in heads.get(layer, ())})
        for layer in range(BASE["num_hidden_layers"])
    }
    assert cut.config.pruned_heads == {
        layer: heads for layer, heads in gone.items() if any(layer in one for one in rounds)
    }
    more = {"output_attentions": True, "output_hidden_states": True, "attention_mask": MASK}
    masked = off(gone)
    if role == CROSS:
        more["encoder_hidden_states"] = STATES
        masked = None if any(gone.values()) else masked  # would mask the cross attention, too
    expected = whole(IDS, head_mask=masked, **more)
    found = cut(IDS, **more)
    states = [*found.hidden_states, found.last_hidden_state]
    theirs = [*expected.hidden_states, expected.last_hidden_state]
    worst = max(max_abs(a, b, MASK) for a, b in zip(states, theirs, strict=True))
    for layer, maps in enumerate(found.attentions):
        kept = [head for head in range(HEADS) if head not in gone[layer]]
        assert maps.shape[1] == len(kept)
        if kept:
            worst = max(worst, max_abs(maps, expected.attentions[layer][:, kept]))
    return worst


heads_to_prune = st.dictionaries(
    st.integers(0, BASE["num_hidden_layers"] - 1),
    st.lists(st.integers(0, HEADS - 1), max_size=HEADS),
    max_size=BASE["num_hidden_layers"],
)


@settings(max_examples=25)
@given(rounds=st.lists(heads_to_prune, min_size=1, max_size=3), decoding=st.booleans())
@pytest.mark.parametrize("kind", TYPES)
def test_as_if_masked(kind: str, rounds: list[dict[int, list[int]]], decoding: bool) -> None:
    assert difference(kind, DECODER if decoding else {}, rounds) <= TOLERANCE


def test_twin_that_cuts_keys_of_another_head_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    select, calls = pruning.select_features, []

    def wrong(linear: Any, kept: torch.Tensor, dim: int) -> None:
        calls.append(dim)
        select(linear, kept.roll(len(kept) // 2) if len(calls) == 2 else kept, dim)

    monkeypatch.setattr(pruning, "select_features", wrong)
    assert difference("absolute", {}, [{0: [1]}]) > 1e-4
    assert calls == [0, 0, 0, 1]


def test_decoder_with_cross_attention_loses_heads_of_its_own() -> None:
    config = {"position_embedding_type": "rotary", **CROSS}
    cut, whole = build(**config), build(**config)
    cut.prune_heads({0: [1]})
    width = BASE["hidden_size"] // HEADS
    said = whole.encoder.layers[0].attention.output.dense.weight
    said[:, width : 2 * width] = 0  # by the head
    expected = whole(IDS, encoder_hidden_states=STATES).last_hidden_state
    out = cut(IDS[:, :4], encoder_hidden_states=STATES)
    assert [x.shape[1] for x in out.past_key_values[0]] == [2, 2, 3, 3]
    step = cut(IDS[:, 4:], past_key_values=out.past_key_values, encoder_hidden_states=STATES)
    assert max_abs(step.last_hidden_state, expected[:, 4:], MASK[:, 4:]) <= TOLERANCE


def test_head_masks_go_by_the_numbers_of_the_whole_model() -> None:
    cut, whole = build(), build()
    cut.prune_heads({0: [0]})
    masked = cut(IDS, head_mask=off({0: [2], 1: [1]})).last_hidden_state
    expected = whole(IDS, head_mask=off({0: [0, 2], 1: [1]})).last_hidden_state
    assert max_abs(masked, expected, MASK) <= TOLERANCE


def test_contacts_are_those_of_the_heads_that_are_left() -> None:
    cut, whole = build(), build()
    gone = {0: [], 1: [0, 2]}  # of the last layer: the maps of the others stay as they were
    cut.prune_heads(gone)
    maps = whole(IDS[:1], output_attentions=True).attentions
    logits = torch.zeros(7, 7, dtype=torch.float64)
    weights = whole.contact_head.regression.weight.view(2, HEADS)
    for layer, of_layer in enumerate(maps):
        for head in range(HEADS):
            if head not in gone[layer]:
                symmetric = of_layer[0, head, 1:-1, 1:-1] + of_layer[0, head, 1:-1, 1:-1].T
                product = symmetric.sum(0, keepdim=True) * symmetric.sum(1, keepdim=True)
                logits += weights[layer, head] * (symmetric - product / symmetric.sum())
    expected = torch.sigmoid(logits + whole.contact_head.regression.bias)
    assert max_abs(cut.predict_contacts(IDS[:1])[0], expected) <= TOLERANCE


@pytest.mark.parametrize("made", [EsmModel, EsmForMaskedLM, EsmForSequenceClassification])
@pytest.mark.parametrize("heads", [{0: [1]}, {0: [0, 1, 2], 1: [2]}], ids=["one", "a whole layer"])
def test_saved_and_loaded_and_optimized(
    made: type[Any], heads: dict[int, list[int]], tmp_path: Path
) -> None:
    model = build(made).float()
    count = model.num_parameters()
    model.prune_heads(heads)
    width = BASE["hidden_size"]
    each = (4 * width + 3) * (width // HEADS)
    assert count - model.num_parameters() == each * sum(map(len, heads.values()))
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["pruned_heads"]
    assert saved == {str(layer): numbers for layer, numbers in heads.items()}
    again = made.from_pretrained(tmp_path)
    assert again.config.pruned_heads == heads
    expected = model(IDS)[0]
    assert max_abs(again(IDS)[0], expected) == 0
    with torch.inference_mode():
        assert max_abs(optimize_for_inference(again)(IDS)[0], expected) <= 1e-5


def test_what_is_left_can_be_trained() -> None:
    model = build(EsmForMaskedLM).requires_grad_(True).train()
    model.prune_heads({0: [1], 1: [0, 1]})
    model(IDS, labels=IDS.masked_fill(IDS == PAD, -100)).loss.backward()
    for layer, width in zip(model.esm.encoder.layers, (8, 4), strict=True):
        attention = layer.attention
        for linear in (attention.self.query, attention.self.key, attention.self.value):
            assert linear.weight.grad.shape == (width, 12)
            assert bool(linear.weight.grad.any())
        assert bool(attention.output.dense.weight.grad.any())


def test_frozen_weights_stay_frozen() -> None:
    model = build()
    model.prune_heads({0: [1]})
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({2: [0]}, "there is no layer 2; they are 0 to 1"),
        ({-3: [0]}, "there is no layer -3"),
        ({0: [3]}, "layer 0 has no head 3; they are 0 to 2"),
        ({0: [-1]}, "layer 0 has no head -1"),
        ({0: [1.0]}, r"layer 0 has no head 1\.0"),
        ({0: [True]}, "layer 0 has no head True"),
    ],
)
def test_heads_that_are_not_there(heads: dict[int, list[int]], message: str) -> None:
    model = build()
    with pytest.raises(InputError, match=f"prune_heads: {message}"):
        model.prune_heads(heads)
    assert model.config.pruned_heads == {}
    assert [one.attention.self.heads for one in model.encoder.layers] == [[0, 1, 2]] * 2
    with pytest.raises(WeightsError, match=f"config: pruned_heads: {message}"):
        EsmModel(EsmConfig(**BASE, pruned_heads=heads))


@pytest.mark.parametrize("given", [[1, 2], "all", {"first": [1]}, {"0": 1}])
def test_config_that_tells_no_heads(given: object) -> None:
    with pytest.raises(WeightsError, match="pruned_heads should map layers to lists of heads"):
        EsmConfig(pruned_heads=given)


def test_optimized_model_is_not_pruned() -> None:
    fast = optimize_for_inference(build().float())
    with pytest.raises(InputError, match="optimized for inference"):
        fast.prune_heads({0: [1]})
    assert fast.config.pruned_heads == {}


def test_unpruned_checkpoint_does_not_fit_a_pruned_config(tmp_path: Path) -> None:
    build().save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"weights and config\.json do not"):
        EsmModel.from_pretrained(tmp_path, pruned_heads={0: [1]})


def test_heads_of_a_layer() -> None:
    layer = EsmLayer(EsmConfig(**BASE))
    attention = layer.attention.self
    linears = (attention.query, attention.key, attention.value)
    weights = [linear.weight.detach().clone() for linear in linears]
    pruning.prune_layer(layer, [1])
    assert attention.heads == [0, 2]
    assert layer.attention.output.dense.in_features == 8
    for linear, weight in zip(linears, weights, strict=True):
        assert linear.out_features == 8
        assert torch.equal(linear.weight, weight[[*range(4), *range(8, 12)]])
    pruning.prune_layer(layer, [1, 2])
    assert attention.heads == [0]
    for linear, weight in zip(linears, weights, strict=True):
        assert torch.equal(linear.weight, weight[:4])
