"""Classification heads compared with transformers, twins that must fail, invalid labels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from esm_pipeline import (
    EsmConfig,
    EsmForSequenceClassification,
    EsmModel,
)
from esm_pipeline.errors import InputError
from esm_pipeline.model import PackedLayout, losses
from tests.oracles.classifiers import (
    HEADS,
    PROBLEMS,
    Mistake,
    gradient_difference,
    labelled,
    twins_of,
)
from tests.oracles.peers import ESM2, KINDS, PAD, SMALL, TOLERANCE, batch, enliven, max_abs

CLOSE = TOLERANCE

LENGTHS = [[7, 7, 7], [1, 2, 30, 5], [64, 11, 64, 33], [9]]
CASES = [
    ("EsmForMaskedLM", "single_label_classification"),
    *[("EsmForSequenceClassification", problem) for problem in PROBLEMS],
    ("EsmForTokenClassification", "single_label_classification"),
]
Pair = tuple[nn.Module, nn.Module]


def differences(peer: nn.Module, ours: nn.Module, inputs: dict[str, Tensor]) -> dict[str, float]:
    """Largest differences of everything a forward returns."""
    wanted = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        theirs, found = peer(**inputs, **wanted), ours(**inputs, **wanted)
    assert list(found) == list(theirs)
    mask = inputs["attention_mask"]
    per_token = mask if found.logits.ndim == 3 else None
    return {
        "loss": max_abs(found.loss, theirs.loss),
        "logits": max_abs(found.logits, theirs.logits, per_token),
        "hidden": max(
            max_abs(a, b, mask)
            for a, b in zip(found.hidden_states, theirs.hidden_states, strict=True)
        ),
        "attentions": max(
            max_abs(a.transpose(1, 2), b.transpose(1, 2), mask)
            for a, b in zip(found.attentions, theirs.attentions, strict=True)
        ),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "problem"), CASES)
def test_equals_transformers(name: str, problem: str, kind: str) -> None:
    peer, ours = twins_of(name, problem_type=problem, **KINDS[kind])
    for seed, lengths in enumerate(LENGTHS):
        inputs = labelled(name, lengths, problem=problem, seed=seed)
        assert max(differences(peer, ours, inputs).values()) <= TOLERANCE


@st.composite
def models(draw: st.DrawFn) -> dict[str, Any]:
    """A configuration of any size and kind."""
    count = draw(st.integers(1, 4))
    return {
        "hidden_size": count * 2 * draw(st.integers(1, 6)),
        "num_attention_heads": count,
        "num_hidden_layers": draw(st.integers(1, 3)),
        "intermediate_size": draw(st.integers(1, 40)),
        "layer_norm_eps": draw(st.sampled_from([1e-12, 1e-5, 1e-3])),
        "position_embedding_type": draw(st.sampled_from(["rotary", "absolute"])),
        "token_dropout": draw(st.booleans()),
        "emb_layer_norm_before": draw(st.sampled_from([True, False, None])),
        "num_labels": draw(st.integers(1, 6)),
    }


@settings(max_examples=40)
@given(
    case=st.sampled_from(CASES),
    model=models(),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    masked=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 10),
)
def test_any_configuration(
    case: tuple[str, str], model: dict[str, Any], lengths: list[int], masked: float, seed: int
) -> None:
    name, problem = case
    classes = max(model["num_labels"], 1 if problem == "regression" else 2)
    peer, ours = twins_of(name, seed, **{**model, "problem_type": problem, "num_labels": classes})
    inputs = labelled(name, lengths, problem=problem, classes=classes, masked=masked, seed=seed)
    assert max(differences(peer, ours, inputs).values()) <= 1e-5
    assert gradient_difference(peer, ours, **inputs) <= 1e-5


def test_float32(tmp_path: Path) -> None:
    for name, problem in CASES:
        peer, ours = twins_of(name, problem_type=problem, **ESM2)
        inputs = labelled(name, [64, 11, 33], problem=problem)
        scale = max(1.0, float(peer(**inputs).logits.detach().abs().max()))
        inputs["labels"] = inputs["labels"].to(
            torch.float32 if inputs["labels"].is_floating_point() else torch.int64
        )
        assert max(differences(peer.float(), ours.float(), inputs).values()) <= 1e-5 * scale


@pytest.mark.parametrize("name", HEADS)
def test_tuples_in_the_order_of_the_reference(name: str) -> None:
    peer, ours = twins_of(name, **ESM2)
    inputs = labelled(name, [5, 9])
    wanted = {"return_dict": False, "output_hidden_states": True, "output_attentions": True}
    theirs, found = peer(**inputs, **wanted), ours(**inputs, **wanted)
    assert len(found) == len(theirs) == 4
    assert max_abs(found[0], theirs[0]) <= TOLERANCE
    mask = inputs["attention_mask"] if found[1].ndim == 3 else None
    assert max_abs(found[1], theirs[1], mask) <= TOLERANCE
    assert [len(part) for part in found[2:]] == [4, 3]
    labels = inputs.pop("labels")
    (logits,) = ours(**inputs, return_dict=False)
    assert max_abs(logits, found[1]) <= 1e-12
    between = 5 if name == "EsmForMaskedLM" else 3  # positions, heads, embeddings; an encoder's too
    by_place = ours(inputs["input_ids"], inputs["attention_mask"], *[None] * between, labels)
    assert by_place[0] == by_place.loss
    assert max_abs(by_place.loss, found[0]) <= 1e-12


# What a problem type is chosen from.

WHOLE, REAL = torch.tensor([0, 1]), torch.tensor([0.5, 1.0])
CHOICES = {
    "regression of one": (1, REAL),
    "regression of one, a column": (1, REAL.unsqueeze(1)),
    "single": (3, WHOLE),
    "single, a column": (3, WHOLE.unsqueeze(1)),
    "multi": (2, torch.tensor([[0.0, 1.0], [1.0, 1.0]])),
}


@pytest.mark.parametrize("case", CHOICES)
def test_problem_type_is_chosen_and_kept(case: str) -> None:
    count, labels = CHOICES[case]
    peer, ours = twins_of("EsmForSequenceClassification", num_labels=count, **ESM2)
    tokens, mask = batch([5, 9])
    if labels.is_floating_point():
        labels = labels.double()
    assert ours.config.problem_type is None
    ours(tokens)
    assert ours.config.problem_type is None
    theirs = peer(tokens, attention_mask=mask, labels=labels).loss
    assert max_abs(ours(tokens, labels=labels).loss, theirs) <= TOLERANCE
    assert ours.config.problem_type == peer.config.problem_type


def test_labels_of_other_kinds_mean_the_same() -> None:
    _, ours = twins_of("EsmForSequenceClassification", **ESM2)
    tokens, _ = batch([5, 9])
    for whole in (torch.int32, torch.int16, torch.uint8):
        loss = ours(tokens, labels=WHOLE.to(whole)).loss
        assert loss == ours(tokens, labels=WHOLE).loss
        assert ours.config.problem_type == "single_label_classification"
    ours.config.problem_type = "multi_label_classification"
    marks = torch.tensor([[True, False, True], [False, False, True]])
    assert ours(tokens, labels=marks).loss == ours(tokens, labels=marks.double()).loss
    ours.config.problem_type = "regression"
    assert ours(tokens, labels=marks.long()).loss == ours(tokens, labels=marks.double()).loss
    single = torch.tensor(1)
    ours.config.problem_type = "single_label_classification"
    assert ours(tokens[:1], labels=single).loss == ours(tokens[:1], labels=single[None]).loss


def test_losses_of_half_precision_are_computed_in_float32() -> None:
    for name, problem in CASES:
        _, ours = twins_of(name, problem_type=problem, **ESM2)
        inputs = labelled(name, [5, 9], problem=problem)
        expected = ours(**inputs).loss
        found = ours.bfloat16()(**inputs).loss
        assert found.dtype == torch.float32
        assert max_abs(found, expected) <= 0.2 * float(expected.detach())


# Padding.


@pytest.mark.parametrize("kind", KINDS)
def test_padding_on_the_left_changes_nothing(kind: str) -> None:
    """The reference takes column 0, which then is padding; here the first real token counts."""
    peer, ours = twins_of("EsmForSequenceClassification", **KINDS[kind])
    lengths = [5, 12, 9]
    tokens, mask = batch(lengths, masked=0.1)
    left = torch.full_like(tokens, PAD)
    for row, length in enumerate(lengths):
        left[row, -length - 2 :] = tokens[row, : length + 2]
    assert not torch.equal(left[:, 0], tokens[:, 0])
    expected = peer(tokens, attention_mask=mask).logits
    assert max_abs(ours(left).logits, expected) <= TOLERANCE
    assert max_abs(ours(left).logits, peer(left, attention_mask=left != PAD).logits) > 1e-3
    pooled = EsmModel(EsmConfig(**SMALL, **KINDS[kind])).double().eval()
    enliven(pooled)
    assert max_abs(pooled(left).pooler_output, pooled(tokens).pooler_output) <= TOLERANCE


def test_a_sequence_without_tokens_is_pooled_to_zeros() -> None:
    _, ours = twins_of("EsmForSequenceClassification", **ESM2)
    tokens, mask = batch([5, 12, 9])
    expected = ours(tokens, attention_mask=mask).logits
    mask[1] = 0
    found = ours(tokens, attention_mask=mask).logits
    assert max_abs(found[[0, 2]], expected[[0, 2]]) <= 1e-12
    assert max_abs(found[1], ours.classifier(torch.zeros(1, 48, dtype=torch.float64))[0]) <= 1e-12


@pytest.mark.parametrize("name", ["EsmForMaskedLM", "EsmForTokenClassification"])
def test_masked_tokens_take_no_part(name: str) -> None:
    _, ours = twins_of(name, **ESM2)
    inputs = labelled(name, [5, 30, 2])
    off = inputs["attention_mask"] == 0
    assert off.any()
    found = ours(**inputs)
    assert not found.logits[off].any()
    inputs["labels"] = inputs["labels"].masked_fill(off, 999)  # not even looked at
    assert ours(**inputs).loss == found.loss


def test_nothing_labelled_is_no_number_as_in_the_reference() -> None:
    peer, ours = twins_of("EsmForTokenClassification", **ESM2)
    tokens, mask = batch([5])
    nothing = torch.full_like(tokens, -100)
    assert ours(tokens, labels=nothing).loss.isnan()
    assert peer(tokens, attention_mask=mask, labels=nothing).loss.isnan()


def test_packed_door_equals_padded_door() -> None:
    lengths = [9, 40, 9, 1]
    tokens, mask = batch(lengths, masked=0.1)
    layout = PackedLayout.from_lengths([length + 2 for length in lengths])
    packed = tokens[mask.bool()]
    _, ours = twins_of("EsmForSequenceClassification", **ESM2)
    assert max_abs(ours.packed_logits(packed, layout), ours(tokens).logits) <= 1e-12
    _, ours = twins_of("EsmForTokenClassification", **ESM2)
    assert max_abs(ours.packed_logits(packed, layout), ours(tokens).logits[mask.bool()]) <= 1e-12


def test_heads_take_states_as_the_references_do() -> None:
    """Scripts call `lm_head` and `classifier` on padded states."""
    tokens, mask = batch([9, 4])
    for name, head in zip(HEADS, ["lm_head", "classifier", "classifier"], strict=True):
        peer, ours = twins_of(name, **ESM2)
        states = peer.esm(tokens, attention_mask=mask).last_hidden_state
        theirs, found = getattr(peer, head)(states), getattr(ours, head)(states)
        assert max_abs(found, theirs) <= TOLERANCE


# Labels that cannot be.

TWO_BY_SEVEN = torch.zeros(2, 7, dtype=torch.int64)


def with_label(value: int) -> Tensor:
    labels = TWO_BY_SEVEN.clone()
    labels[1, 3] = value
    return labels


BAD_TOKEN_LABELS = {
    "too high": (with_label(3), r"labels\[1, 3\] is 3; give a class from 0 to 2, or -100"),
    "negative": (with_label(-1), r"labels\[1, 3\] is -1; give a class from 0 to 2"),
    "far": (with_label(2**40), rf"labels\[1, 3\] is {2**40}; give"),
    "shape": (TWO_BY_SEVEN[:, 1:], r"torch.int64 of shape \(2, 6\); give one .* token, \(2, 7\)"),
    "flat": (TWO_BY_SEVEN.flatten(), r"of shape \(14,\); give one .* \(2, 7\)"),
    "per sequence": (TWO_BY_SEVEN[:, 0], r"of shape \(2,\); give one .* \(2, 7\)"),
    "real": (TWO_BY_SEVEN.double(), r"torch.float64 .*; give classes as whole numbers"),
    "marks": (TWO_BY_SEVEN.bool(), r"torch.bool .*; give classes as whole numbers"),
    "a list": (TWO_BY_SEVEN.tolist(), r"labels are of type list; give one for each token"),
}


@pytest.mark.parametrize("case", BAD_TOKEN_LABELS)
def test_token_labels_that_cannot_be(case: str) -> None:
    labels, message = BAD_TOKEN_LABELS[case]
    _, ours = twins_of("EsmForTokenClassification", **ESM2)
    tokens, _ = batch([5, 3])
    with pytest.raises(InputError, match=message):
        ours(tokens, labels=labels)


def test_token_ids_out_of_the_vocabulary_as_labels() -> None:
    _, ours = twins_of("EsmForMaskedLM", **ESM2)
    tokens, _ = batch([5, 3])
    with pytest.raises(InputError, match=r"labels\[1, 3\] is 33; give a class from 0 to 32"):
        ours(tokens, labels=with_label(33))


ONE_EACH = r"takes \(2,\), one for each sequence"
BAD_LABELS = {
    "no class": (3, None, torch.tensor([0, 3]), r"labels\[1\] is 3; give a class from 0 to 2"),
    "negative": (3, None, torch.tensor([-7, 0]), r"labels\[0\] is -7"),
    "one too many": (3, None, torch.tensor([0, 1, 2]), ONE_EACH),
    "marks for classes": (3, None, torch.ones(2, 3).long(), ONE_EACH),
    "real classes": (3, PROBLEMS[1], torch.tensor([0.0, 1.0]), "give classes as whole numbers"),
    "real, unset": (3, None, torch.tensor([0.0, 1.0]), r"\(2, 3\).*whole numbers .* one class"),
    "classes for marks": (3, PROBLEMS[2], torch.tensor([0, 1]), r"takes \(2, 3\)"),
    "marks": (2, PROBLEMS[2], torch.tensor([[0, 1], [1, 2]]), r"labels\[1, 1\] is 2; give 0 for"),
    "-100 for no mark": (2, PROBLEMS[2], torch.tensor([[0, -100], [1, 0]]), r"labels\[0, 1\] is"),
    "narrow": (3, PROBLEMS[0], torch.ones(2, 1), r"regression takes \(2, 3\)"),
    "turned": (1, None, torch.ones(1, 2), f"regression {ONE_EACH}"),
    "deep": (1, None, torch.ones(2, 1, 1), f"regression {ONE_EACH}"),
    "one for all": (3, None, torch.tensor(1), ONE_EACH),
    "not a number": (1, None, torch.tensor([0.0, torch.nan]), r"labels\[1, 0\] is nan; give a fin"),
    "infinite": (1, None, torch.tensor([0.0, torch.inf]), r"labels\[1, 0\] is inf; give a fin"),
    "a list": (3, None, [0, 1], "labels are of type list; give a tensor"),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_labels_that_cannot_be(case: str) -> None:
    count, problem, labels, message = BAD_LABELS[case]
    settings = {"num_labels": count, "problem_type": problem, **ESM2}
    _, ours = twins_of("EsmForSequenceClassification", **settings)
    tokens, _ = batch([5, 3])
    with pytest.raises(InputError, match=message):
        ours(tokens, labels=labels)
    assert ours.config.problem_type == problem, "a failure decides nothing"


# Twins: one deliberate mistake each, through the same check as above.


def mean_of_tokens(ours: nn.Module, patch: pytest.MonkeyPatch) -> None:
    def mean(layout: PackedLayout, x: Tensor) -> Tensor:
        return torch.stack([part.mean(0) for part in x.split(layout.lengths)])

    patch.setattr(PackedLayout, "first", mean)


def last_token(ours: nn.Module, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PackedLayout, "first", lambda layout, x: x[layout.cumulative[1:].long() - 1])


def no_tanh(ours: nn.Module, patch: pytest.MonkeyPatch) -> None:
    if isinstance(ours, EsmForSequenceClassification):
        head = ours.classifier
        patch.setattr(head, "forward", lambda x: head.out_proj(head.dense(x[:, 0])))
    else:
        ours.classifier = nn.Sequential(ours.classifier, nn.Tanh())


def no_bias(ours: nn.Module, patch: pytest.MonkeyPatch) -> None:
    last = getattr(ours.classifier, "out_proj", ours.classifier)
    last.bias.data.zero_()


def other_losses(patch: pytest.MonkeyPatch, **changed: Callable[..., Tensor]) -> None:
    """Other loss functions for ours alone; the peer calls PyTorch's as well."""
    patch.setattr(losses, "F", SimpleNamespace(**{**vars(F), **changed}))


def sum_of_losses(ours: nn.Module, patch: pytest.MonkeyPatch) -> None:
    names = ("cross_entropy", "mse_loss", "binary_cross_entropy_with_logits")
    summed = {name: partial(getattr(F, name), reduction="sum") for name in names}
    other_losses(patch, **summed)


def loss_over_all_tokens(ours: nn.Module, patch: pytest.MonkeyPatch) -> None:
    other_losses(patch, cross_entropy=lambda x, labels: F.cross_entropy(x, labels.clamp(min=0)))


def smoothed_labels(ours: nn.Module, patch: pytest.MonkeyPatch) -> None:
    other_losses(patch, cross_entropy=partial(F.cross_entropy, label_smoothing=0.1))


def other_problem(ours: nn.Module, patch: pytest.MonkeyPatch) -> None:
    swapped = {"regression": PROBLEMS[2], PROBLEMS[2]: "regression"}
    loss = losses.value_loss
    patch.setattr(losses, "value_loss", lambda x, y, problem: loss(x, y, swapped[problem]))


SEQUENCE, TOKEN = "EsmForSequenceClassification", "EsmForTokenClassification"
TWINS = [
    *[(SEQUENCE, mistake) for mistake in (mean_of_tokens, last_token, no_tanh, no_bias)],
    *[(SEQUENCE, mistake) for mistake in (sum_of_losses, smoothed_labels, other_problem)],
    *[(TOKEN, mistake) for mistake in (no_tanh, no_bias, sum_of_losses, loss_over_all_tokens)],
]


@pytest.mark.parametrize(("name", "mistake"), TWINS)
def test_twin_fails(name: str, mistake: Mistake, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = PROBLEMS if name == SEQUENCE else PROBLEMS[1:2]
    if mistake is other_problem:
        problems = (PROBLEMS[2],)  # marks are numbers as well
    if mistake is smoothed_labels:
        problems = PROBLEMS[1:2]
    for problem in problems:
        peer, wrong = twins_of(name, problem_type=problem, **ESM2)
        inputs = labelled(name, [64, 11, 64, 33], problem=problem)
        assert max(differences(peer, wrong, inputs).values()) <= TOLERANCE
        with monkeypatch.context() as patch:
            mistake(wrong, patch)
            assert max(differences(peer, wrong, inputs).values()) > 1e-3
