"""Decoders: steps equal one pass, cross attention has no positions, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from esm_pipeline import EsmConfig, EsmForMaskedLM, EsmModel, optimize_for_inference
from esm_pipeline.errors import InputError
from esm_pipeline.model import PackedLayout
from esm_pipeline.model.decoder import EsmEncoderAttention
from esm_pipeline.model.decoder_inputs import DecoderInputs, Past
from esm_pipeline.model.rotary import rotary_frequencies, rotary_tables, rotate
from tests.oracles import plain
from tests.oracles.peers import max_abs
from tests.oracles.reference import fill
from tests.oracles.reference_cases import BASE, CROSS, DECODER, PAD, TYPES

TOLERANCE = 1e-10
WIDTH, STATES = BASE["hidden_size"], 5


def build(kind: str, **more: Any) -> EsmModel:
    config = EsmConfig(**{**BASE, "position_embedding_type": kind, **more})
    model = fill(EsmModel(config).double().eval())
    return model.requires_grad_(False)


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


@pytest.fixture(params=TYPES, scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("role", [{}, DECODER, CROSS], ids=["encoder", "decoder", "cross"])
def test_equals_plain_loops(kind: str, role: dict[str, bool]) -> None:
    model, crossed = build(kind, **role), role == CROSS
    embeds, states = numbers(0, 2, 9, WIDTH), numbers(1, 2, STATES, WIDTH)
    mask = torch.tensor([[1, 1, 1, 0, 1, 1, 0, 0, 1], [0, 0, 1, 1, 1, 0, 1, 0, 0]])
    given = {"encoder_hidden_states": states} if crossed else {}
    found = model(inputs_embeds=embeds, attention_mask=mask, **given).last_hidden_state
    for row in range(2):
        places = mask[row].nonzero()[:, 0]
        x = embeds[row, places]
        if kind == "absolute":
            x = x + model.embeddings.position_embeddings.weight[places + PAD + 1]
        expected = plain.states(model, x, places.tolist(), states[row] if crossed else None)
        assert max_abs(found[row, places], expected) <= TOLERANCE


# Steps.


def in_steps(
    model: EsmModel, tokens: dict[str, Tensor], mask: Tensor, ends: list[int], how: str, **more: Any
) -> tuple[Tensor, Any]:
    """The states of steps that end at `ends`, one after the other, and the last cache."""
    past, start, found = None, 0, []
    for end in ends:
        part = {name: x[:, start:end] for name, x in tokens.items()}
        seen = {"whole": mask[:, :end], "own": mask[:, start:end], "none": None}[how]
        out = model(**part, attention_mask=seen, past_key_values=past, **more)
        found.append(out.last_hidden_state)
        past, start = out.past_key_values, end
    return torch.cat(found, 1), past


@st.composite
def stepped(draw: st.DrawFn) -> dict[str, Any]:
    """A padded batch, padding and holes anywhere, and where its steps end."""
    batch, length = draw(st.integers(1, 3)), draw(st.integers(2, 12))
    ends = draw(st.sets(st.integers(1, length - 1), max_size=4))
    mask = draw(st.lists(st.booleans(), min_size=batch * length, max_size=batch * length))
    mask = torch.tensor(mask).view(batch, length)
    ends = sorted(ends | {length})
    for start, end in zip([0, *ends], ends, strict=False):
        mask[0, start:end] |= not mask[:, start:end].any()
    return {
        "mask": mask.long(),
        "ends": ends,
        "embeds": draw(st.booleans()),
        "crossed": draw(st.booleans()),
        "heads": draw(st.booleans()),
        "how": draw(st.sampled_from(["whole", "own", "none"])),
        "seed": draw(st.integers(0, 99)),
    }


MADE: dict[tuple[str, bool], EsmModel] = {}


def step_difference(kind: str, case: dict[str, Any]) -> float:
    """Largest difference of a decoder's states and cache, in steps, from those of one pass."""
    config = CROSS if case["crossed"] else DECODER
    model = MADE.setdefault((kind, case["crossed"]), build(kind, **config))
    mask, rng = case["mask"], np.random.default_rng(case["seed"])
    ids = torch.from_numpy(rng.integers(4, 24, size=mask.shape)).masked_fill(mask == 0, PAD)
    tokens, how = {"input_ids": ids}, case["how"]
    if case["embeds"]:
        tokens = {"inputs_embeds": torch.from_numpy(rng.normal(size=(*mask.shape, WIDTH)))}
        how = "whole" if how == "none" else how  # nothing tells where their padding is
    more: dict[str, Any] = {"use_cache": True}
    if case["heads"]:
        more["head_mask"] = torch.tensor([[1.0, 0.0, 0.5], [0.25, 1.0, 1.0]])
    if case["crossed"]:
        more["encoder_hidden_states"] = numbers(case["seed"], len(mask), STATES, WIDTH)
    whole = model(**tokens, attention_mask=mask, **more)
    found, cache = in_steps(model, tokens, mask, case["ends"], how, **more)
    worst = max_abs(found, whole.last_hidden_state, mask)
    for ours, theirs in zip(cache, whole.past_key_values, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            worst = max(worst, max_abs(one, other))
    return worst


@settings(max_examples=60)
@given(case=stepped())
def test_steps_equal_one_pass(kind: str, case: dict[str, Any]) -> None:
    assert step_difference(kind, case) <= TOLERANCE


def test_steps_in_which_tokens_are_masked_for_dropout() -> None:
    model = build("rotary", **DECODER, token_dropout=True)
    ids = torch.tensor([[0, 5, 6, 7]])
    whole = model(ids).last_hidden_state
    found, _ = in_steps(model, {"input_ids": ids}, torch.ones_like(ids), [1, 3, 4], "none")
    assert max_abs(found, whole) <= TOLERANCE
    alone = model(torch.tensor([[32]]), past_key_values=model(ids).past_key_values)
    assert bool(alone.last_hidden_state.isfinite().all())


SPLIT = {
    "mask": torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 0, 1]]),
    "ends": [2, 5, 6],
    "embeds": False,
    "crossed": True,
    "heads": True,
    "how": "whole",
    "seed": 0,
}


def places_off_by_one(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Past, "positions", lambda self, layout: layout.positions + self.length + 1)


def places_from_zero(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Past, "positions", lambda self, layout: layout.positions)


def past_of_padding_seen(patch: pytest.MonkeyPatch) -> None:
    init = Past.__init__

    def seen(self: Past, cache: Any, visible: Tensor) -> None:
        init(self, cache, torch.ones_like(visible))

    patch.setattr(Past, "__init__", seen)


def cache_after_the_new(patch: pytest.MonkeyPatch) -> None:
    extended = DecoderInputs.extend_cache

    def misplaced(self: DecoderInputs, past: Any, *fresh: Any) -> tuple[Tensor, ...]:
        found = extended(self, past, *fresh)
        return tuple(x.roll(1, 2) for x in found) if past else found

    patch.setattr(DecoderInputs, "extend_cache", misplaced)


@pytest.mark.parametrize(
    "mistake", [places_off_by_one, places_from_zero, past_of_padding_seen, cache_after_the_new]
)
def test_twin_of_steps_fails(
    kind: str, mistake: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert step_difference(kind, SPLIT) <= TOLERANCE
    mistake(monkeypatch)
    assert not step_difference(kind, SPLIT) <= 1e-4  # or nothing to look at, and so no number


# Cross attention.


def order_of_states_matters(kind: str) -> float:
    """What changes when an encoder's tokens come in another order; nothing, without positions."""
    model = build(kind, **CROSS)
    ids = torch.tensor([[0, 5, 6, 7, 8, 2], [0, 9, 2, PAD, PAD, PAD]])
    states, mask = numbers(2, 2, STATES, WIDTH), torch.tensor([[1, 1, 0, 1, 1], [1, 0, 0, 1, 1]])
    order = torch.tensor([3, 0, 4, 2, 1])
    given = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
    other = {name: x[:, order] for name, x in given.items()}
    first, second = (model(ids, **one, output_attentions=True) for one in (given, other))
    seen = first.cross_attentions[0]
    assert seen.shape == (2, 3, 6, STATES)
    assert not seen[..., 2].any()
    assert max_abs(seen[..., order], second.cross_attentions[0]) <= 1e-4
    return max_abs(first.last_hidden_state, second.last_hidden_state, ids != PAD)


def test_encoder_tokens_have_no_places(kind: str) -> None:
    assert order_of_states_matters(kind) <= TOLERANCE


def test_twin_that_rotates_cross_keys_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    look = EsmEncoderAttention.keys_values

    def rotated(
        self: EsmEncoderAttention, inputs: DecoderInputs, cache: Any
    ) -> tuple[Tensor, Tensor]:
        k, v = look(self, inputs, cache)
        tables = rotary_tables(torch.arange(k.shape[2]), rotary_frequencies(k.shape[3]), k.dtype)
        return rotate(k.transpose(1, 2), tables).transpose(1, 2), v

    monkeypatch.setattr(EsmEncoderAttention, "keys_values", rotated)
    with pytest.raises(AssertionError):
        order_of_states_matters("rotary")


def test_cached_states_stand_for_the_encoder(kind: str) -> None:
    model = build(kind, **CROSS)
    ids, states = torch.tensor([[0, 5, 6, 7, 2]]), numbers(3, 1, STATES, WIDTH)
    whole = model(ids, encoder_hidden_states=states)
    past = model(ids[:, :3], encoder_hidden_states=states).past_key_values
    assert [tuple(x.shape) for x in past[0]] == [(1, 3, 3, 4)] * 2 + [(1, 3, STATES, 4)] * 2
    step = model(ids[:, 3:], past_key_values=past)  # the states are in the cache
    assert max_abs(step.last_hidden_state, whole.last_hidden_state[:, 3:]) <= TOLERANCE


# Doors, gradients, copies.


def test_packed_door_is_causal_too(kind: str) -> None:
    model = build(kind, **DECODER)
    ids = torch.tensor([[0, 5, 6, 7, 8, 2], [0, 9, 4, 2, PAD, PAD]])
    layout = PackedLayout.from_lengths([6, 4])
    found = model.represent(ids[ids != PAD], layout, [1, -1], contacts=True)
    padded = model(ids, output_hidden_states=True)
    assert max_abs(found.hidden[-1], padded.last_hidden_state[ids != PAD]) <= TOLERANCE
    assert max_abs(found.hidden[1], padded.hidden_states[1][ids != PAD]) <= TOLERANCE
    contacts = model.predict_contacts(ids)
    assert max_abs(found.contacts[1], contacts[1, :2, :2]) <= TOLERANCE


@pytest.mark.parametrize("cached", [False, True], ids=["one pass", "steps"])
def test_gradients(kind: str, cached: bool) -> None:
    model = build(kind, **CROSS, num_hidden_layers=1).requires_grad_(True)
    embeds = numbers(4, 1, 4, WIDTH).requires_grad_()
    states = numbers(5, 1, 2, WIDTH).requires_grad_()

    def last(embeds: Tensor, states: Tensor) -> Tensor:
        given = {"encoder_hidden_states": states}
        if not cached:
            return model(inputs_embeds=embeds, **given).last_hidden_state[:, 2:]
        past = model(inputs_embeds=embeds[:, :2], **given).past_key_values
        return model(inputs_embeds=embeds[:, 2:], past_key_values=past, **given).last_hidden_state

    assert torch.autograd.gradcheck(last, (embeds, states), fast_mode=True)
    last(embeds, states).square().sum().backward()
    unused = ("word_embeddings", "pooler", "contact_head")
    for name, parameter in model.named_parameters():
        if not any(part in name for part in unused):
            assert parameter.grad is not None, name
            assert bool(parameter.grad.any()), name


def test_optimized_copy_and_half_precision(kind: str) -> None:
    model = build(kind, **CROSS).float()
    ids, states = torch.tensor([[0, 5, 6, 7, 2]]), numbers(6, 1, STATES, WIDTH).float()
    plainly = model(ids, encoder_hidden_states=states)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.2)):
        fast = optimize_for_inference(model, dtype=dtype)
        with torch.inference_mode():
            past = fast(ids[:, :2], encoder_hidden_states=states).past_key_values
            step = fast(ids[:, 2:], past_key_values=past)
        assert step.last_hidden_state.dtype == past[0][0].dtype == dtype
        found, expected = step.last_hidden_state.float(), plainly.last_hidden_state[:, 2:]
        assert max_abs(found, expected) <= tolerance


@pytest.mark.parametrize("dropped", ["self-attention", "cross attention", "added"])
def test_dropout_in_training_and_not_otherwise(kind: str, dropped: str) -> None:
    rates = {"attention_probs_dropout_prob": 0.5, "hidden_dropout_prob": 0.0}
    if dropped == "added":
        rates = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.5}
    model = build(kind, **CROSS, **rates)
    for layer in model.encoder.layers:
        if dropped == "self-attention":
            layer.crossattention.output.dense.weight.zero_()
        if dropped == "cross attention":
            layer.attention.output.dense.weight.zero_()
    given = {"encoder_hidden_states": numbers(7, 1, STATES, WIDTH), "return_dict": False}
    ids = torch.tensor([[0, 5, 6, 7, 2]])
    still = model(ids, **given)[0]
    torch.manual_seed(0)
    assert max_abs(still, model.train()(ids, **given)[0]) > 0.01
    past = model.eval()(ids[:, :3], **given)[2]
    expected = model(ids[:, 3:], past_key_values=past, **given)[0]
    assert max_abs(still[:, 3:], expected) <= TOLERANCE
    moved = model.train()(ids[:, 3:], past_key_values=past, **given)[0]
    assert max_abs(expected, moved) > 0.01
    assert max_abs(still, model.eval()(ids, **given)[0]) == 0


# What is refused.

IDS = torch.tensor([[0, 5, 6, 2], [0, 7, 2, PAD]])
SHAPED = {"states": numbers(8, 2, STATES, WIDTH), "flat": torch.ones(2, STATES)}


def cache(model: EsmModel, **more: Any) -> Any:
    return model(IDS, **more).past_key_values


REFUSED: dict[str, tuple[dict[str, Any], Callable[[EsmModel], dict[str, Any]], str]] = {
    "no states": (CROSS, lambda m: {}, "give encoder_hidden_states"),
    "states for an encoder": (
        {},
        lambda m: {"encoder_hidden_states": SHAPED["states"]},
        "set is_decoder and add_cross_attention",
    ),
    "states without cross attention": (
        DECODER,
        lambda m: {"encoder_hidden_states": SHAPED["states"]},
        "set is_decoder and add_cross_attention",
    ),
    "a mask of states for an encoder": (
        {},
        lambda m: {"encoder_attention_mask": SHAPED["flat"]},
        "set is_decoder and add_cross_attention",
    ),
    "states of one sequence": (
        CROSS,
        lambda m: {"encoder_hidden_states": SHAPED["states"][:1]},
        r"shape \(1, 5, 12\); give \(2, S, 12\)",
    ),
    "states of another width": (
        CROSS,
        lambda m: {"encoder_hidden_states": SHAPED["states"][..., :8]},
        r"shape \(2, 5, 8\); give \(2, S, 12\)",
    ),
    "states without a batch": (
        CROSS,
        lambda m: {"encoder_hidden_states": SHAPED["states"][0]},
        r"shape \(5, 12\); give \(2, S, 12\)",
    ),
    "another encoder than the cached one": (
        CROSS,
        lambda m: {
            "past_key_values": cache(m, encoder_hidden_states=SHAPED["states"]),
            "encoder_hidden_states": SHAPED["states"][:, :4],
        },
        r"shape \(2, 4, 12\); give \(2, 5, 12\)",
    ),
    "a mask of states that does not fit": (
        CROSS,
        lambda m: {
            "encoder_hidden_states": SHAPED["states"],
            "encoder_attention_mask": SHAPED["flat"][:, :4],
        },
        r"encoder_attention_mask has shape \(2, 4\); give \(2, 5\), or \(2, 4, 5\)",
    ),
    "a mask that shows nothing": (
        CROSS,
        lambda m: {
            "encoder_hidden_states": SHAPED["states"],
            "encoder_attention_mask": SHAPED["flat"] * torch.tensor([[1], [0]]),
        },
        "is zero for a whole sequence",
    ),
    "a past for an encoder": (
        {},
        lambda m: {"past_key_values": cache(build("absolute", **DECODER))},
        "past_key_values are for decoders",
    ),
    "a past of other layers": (
        DECODER,
        lambda m: {"past_key_values": cache(m)[:1]},
        "have 1 layers, the model 2",
    ),
    "a past of another batch": (
        DECODER,
        lambda m: {"past_key_values": [[x[:1] for x in pair] for pair in cache(m)]},
        r"of layer 0 have the shapes \(1, 3, 4, 4\), \(1, 3, 4, 4\); give .* \(2, 3, 4, 4\)",
    ),
    "a past of uneven layers": (
        DECODER,
        lambda m: {"past_key_values": (cache(m)[0], [x[:, :, :2] for x in cache(m)[1]])},
        r"of layer 1 have the shapes \(2, 3, 2, 4\)",
    ),
    "a past of too many tensors": (
        DECODER,
        lambda m: {"past_key_values": [(*pair, *pair, *pair) for pair in cache(m)]},
        "of layer 0 have the shapes",
    ),
    "a past without tensors": (
        DECODER,
        lambda m: {"past_key_values": [(), ()]},
        "of layer 0 have the shapes",
    ),
    "a past with an encoder's": (
        DECODER,
        lambda m: {"past_key_values": [(*pair, *pair) for pair in cache(m)]},
        "of layer 0 have the shapes",
    ),
    "a mask of neither length": (
        DECODER,
        lambda m: {"past_key_values": cache(m), "attention_mask": torch.ones(2, 5)},
        r"shape \(2, 5\), the input \(2, 4\) after a past of 4 tokens; give \(2, 8\)",
    ),
    "positions of another length": (
        {},
        lambda m: {"position_ids": torch.arange(5)},
        r"position_ids have shape \(5,\), the input \(2, 4\); give one number for each token",
    ),
    "a head mask of other heads": (
        {},
        lambda m: {"head_mask": torch.ones(2, 4)},
        r"head_mask has shape \(2, 4\); give \(3,\) or \(2, 3\)",
    ),
    "a mask for each token": (
        {},
        lambda m: {"attention_mask": torch.ones(2, 4, 4)},
        r"attention_mask has shape \(2, 4, 4\), the input \(2, 4\); give one number",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(name: str) -> None:
    config, arguments, message = REFUSED[name]
    model = build("absolute", **config)
    given = arguments(model)
    with pytest.raises(InputError, match=message) as caught:
        model(IDS, **given)
    assert "\n" not in str(caught.value)


def test_embeddings_of_another_width_are_refused() -> None:
    with pytest.raises(InputError, match=r"shape \(2, 4, 8\); give \(B, L, 12\)"):
        build("absolute")(inputs_embeds=torch.ones(2, 4, 8))


def test_decoder_of_an_encoder_has_no_packed_door() -> None:
    model = build("rotary", **CROSS)
    with pytest.raises(InputError, match="call it with encoder_hidden_states"):
        model.represent(IDS[0], PackedLayout.from_lengths([4]))
    with pytest.raises(InputError, match="call it with encoder_hidden_states"):
        model.predict_contacts(IDS)


def test_language_model_passes_the_encoder_on() -> None:
    config = EsmConfig(**{**BASE, **CROSS})
    model = fill(EsmForMaskedLM(config).double().eval())
    states = SHAPED["states"]
    plainly = model.esm(IDS, encoder_hidden_states=states).last_hidden_state
    found = model(IDS, encoder_hidden_states=states).logits
    assert max_abs(found, model.lm_head(plainly), IDS != PAD) <= TOLERANCE
    masked = model(IDS, encoder_hidden_states=states, encoder_attention_mask=torch.eye(2, 5))
    assert max_abs(found, masked.logits) > 1e-4
