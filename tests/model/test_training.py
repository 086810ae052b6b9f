"""Training: gradients and dropout compared with transformers, checkpointing, fresh weights."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import esm_pipeline
from esm_pipeline import (
    EsmConfig,
    EsmForTokenClassification,
)
from esm_pipeline.model import attention
from esm_pipeline.model.checkpoints.weights import reference_state
from esm_pipeline.model.layout import PackedLayout
from tests.oracles.classifiers import (
    HEADS,
    PROBLEMS,
    Mistake,
    gradient_difference,
    gradients,
    labelled,
    twins_of,
)
from tests.oracles.dropout import shade, visible_dropout
from tests.oracles.peers import ESM2, KINDS, MASK, SMALL, TOLERANCE, batch, max_abs

LENGTHS = [[12, 5, 12, 30], [7, 7], [1, 40]]
DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3}


# Gradients.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HEADS)
def test_gradients_equal_transformers(name: str, kind: str) -> None:
    problems = PROBLEMS if name == "EsmForSequenceClassification" else PROBLEMS[1:2]
    for problem in problems:
        peer, ours = twins_of(name, problem_type=problem, **KINDS[kind])
        for seed, lengths in enumerate(LENGTHS):
            inputs = labelled(name, lengths, problem=problem, seed=seed)
            assert gradient_difference(peer, ours, **inputs) <= TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HEADS)
def test_gradients_with_holes_and_padding_on_the_left(name: str, kind: str) -> None:
    peer, ours = twins_of(name, **KINDS[kind])
    inputs = labelled(name, [20, 20, 20])
    mask = inputs["attention_mask"]
    mask[1, 8:12] = 0
    if name != "EsmForSequenceClassification":  # the reference would pool a masked token
        mask[0, :6] = 0
        inputs["labels"][mask == 0] = -100
    # the reference counts a masked <mask> for token dropout: keep them clear
    inputs["input_ids"][(mask == 0) & (inputs["input_ids"] == MASK)] = 5
    assert 0 < int(mask.sum()) < mask.numel()
    assert gradient_difference(peer, ours, **inputs) <= TOLERANCE


def test_gradients_of_embeddings_given_in_place_of_ids() -> None:
    _, ours = twins_of("EsmForTokenClassification", token_dropout=False)
    inputs = labelled("EsmForTokenClassification", [12, 5], masked=0.0)
    expected = gradients(ours, **inputs)["esm.embeddings.word_embeddings.weight"]
    tokens = inputs.pop("input_ids")
    embeds = ours.get_input_embeddings()(tokens).detach().requires_grad_()
    ours(inputs_embeds=embeds, **inputs).loss.backward()
    summed = torch.zeros_like(expected).index_add(0, tokens.flatten(), embeds.grad.flatten(0, 1))
    assert max_abs(summed[2:], expected[2:]) <= 1e-12


def no_gradient_of_keys(ours: nn.Module, patch: pytest.MonkeyPatch) -> None:
    attend = attention.by_group

    def cut(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout) -> Any:
        return attend(q, k.detach() + 0 * k, v, layout)

    patch.setattr(attention, "by_group", cut)


def no_gradient_of_the_tie(ours: nn.Module, patch: pytest.MonkeyPatch) -> None:
    head = ours.lm_head

    def cut(x: Tensor) -> Tensor:
        x = head.layer_norm(F.gelu(head.dense(x)))
        return F.linear(x, head.decoder.weight.detach(), head.bias)

    patch.setattr(head, "forward", cut)


@pytest.mark.parametrize("mistake", [no_gradient_of_keys, no_gradient_of_the_tie])
def test_twin_with_wrong_gradients_fails(mistake: Mistake, monkeypatch: pytest.MonkeyPatch) -> None:
    peer, wrong = twins_of("EsmForMaskedLM", **ESM2)
    inputs = labelled("EsmForMaskedLM", [12, 5, 12])
    mistake(wrong, monkeypatch)
    assert max_abs(wrong(**inputs).loss, peer(**inputs).loss) <= TOLERANCE
    assert gradient_difference(peer, wrong, **inputs) > 1e-3


# Dropout: the same sites as the reference's, no other.


def dropout_differences(peer: nn.Module, ours: nn.Module, name: str) -> float:
    """Largest difference of the logits in training, where dropout is made visible."""
    found = []
    for lengths in ([12, 12, 12], [12, 5, 30]):
        inputs = labelled(name, lengths)
        with visible_dropout():
            theirs, own = peer.train()(**inputs).logits, ours.train()(**inputs).logits
        mask = inputs["attention_mask"] if own.ndim == 3 else None
        found.append(max_abs(own, theirs, mask))
    return max(found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HEADS)
def test_dropout_where_the_reference_has_it(name: str, kind: str) -> None:
    peer, ours = twins_of(name, **KINDS[kind], **DROPOUT)
    assert dropout_differences(peer, ours, name) <= TOLERANCE
    inputs = labelled(name, [12, 12])  # of one length: each attention is one call
    sites = {}
    for model in (peer, ours):
        with visible_dropout() as seen:
            model(**inputs)
        sites[model] = list(seen)
    assert sites[ours] == sites[peer]
    of_head = {"EsmForMaskedLM": 0, "EsmForSequenceClassification": 2}.get(name, 1)
    assert sites[ours] == [0.3, 0.2, 0.2] * 3 + [0.2] * of_head
    with visible_dropout() as seen:
        ours.eval()(**inputs)
        assert seen == []


def test_dropout_with_attention_maps() -> None:
    """The explicit path has the dropout of the other, and returns the maps after it."""
    peer, ours = twins_of("EsmForMaskedLM", **ESM2, **DROPOUT)
    inputs = labelled("EsmForMaskedLM", [12, 5])
    with visible_dropout():
        theirs = peer.train()(**inputs, output_attentions=True)
        found = ours.train()(**inputs, output_attentions=True)
    mask = inputs["attention_mask"]
    assert max_abs(found.logits, theirs.logits, mask) <= TOLERANCE
    for own, expected in zip(found.attentions, theirs.attentions, strict=True):
        assert max_abs(own.transpose(1, 2), expected.transpose(1, 2), mask) <= TOLERANCE


def dropout_of_embeddings(ours: nn.Module, patch: pytest.MonkeyPatch) -> None:
    ours.esm.embeddings.register_forward_hook(lambda module, given, x: shade(x, 0.2))


def dropout_of_the_sum(ours: nn.Module, patch: pytest.MonkeyPatch) -> None:
    ours.esm.encoder.layer[1].register_forward_hook(lambda m, given, x: (shade(x[0], 0.2), x[1]))


def no_attention_dropout(ours: nn.Module, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(attention, "F", attention_without_dropout())


def attention_without_dropout() -> Any:
    class Functions:
        scaled_dot_product_attention = staticmethod(
            lambda q, k, v, dropout_p=0.0, **more: F.scaled_dot_product_attention(q, k, v, **more)
        )

    return Functions


def hidden_probability_in_attention(ours: nn.Module, patch: pytest.MonkeyPatch) -> None:
    config = copy.deepcopy(ours.config)
    config.attention_probs_dropout_prob = config.hidden_dropout_prob
    other = type(ours)(config).double()
    other.load_state_dict(ours.state_dict())
    ours.esm = other.esm


def one_dropout_in_the_head(ours: nn.Module, patch: pytest.MonkeyPatch) -> None:
    head = ours.classifier
    patch.setattr(
        head, "forward", lambda x: head.out_proj(head.dropout(torch.tanh(head.dense(x[:, 0]))))
    )


def dropout_before_tanh(ours: nn.Module, patch: pytest.MonkeyPatch) -> None:
    head = ours.classifier
    patch.setattr(
        head,
        "forward",
        lambda x: head.out_proj(torch.tanh(head.dropout(head.dense(head.dropout(x[:, 0]))))),
    )


DROPOUT_TWINS = [
    dropout_of_embeddings,
    dropout_of_the_sum,
    no_attention_dropout,
    hidden_probability_in_attention,
    one_dropout_in_the_head,
    dropout_before_tanh,
]


@pytest.mark.parametrize("mistake", DROPOUT_TWINS)
def test_twin_with_dropout_elsewhere_fails(
    mistake: Mistake, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "EsmForSequenceClassification"
    peer, wrong = twins_of(name, **ESM2, **DROPOUT)
    assert dropout_differences(peer, wrong, name) <= TOLERANCE
    mistake(wrong, monkeypatch)
    assert dropout_differences(peer, wrong, name) > 1e-3


def moments(draw: Callable[[], Tensor], count: int) -> tuple[Tensor, Tensor]:
    """Mean and variance over `count` draws."""
    drawn = torch.stack([draw().detach() for _ in range(count)])
    return drawn.mean(0), drawn.var(0)


def without_dropout(module: nn.Module) -> None:
    if isinstance(module, nn.Dropout):
        module.p = 0.0


def test_dropout_of_a_head_has_the_right_mean_and_variance() -> None:
    count, p = 4000, 0.2
    torch.manual_seed(0)
    config = EsmConfig(**{**SMALL, "num_hidden_layers": 1}, hidden_dropout_prob=p)
    model = EsmForTokenClassification(config).double().eval()
    model.esm.encoder.layer[0].apply(without_dropout)
    tokens, _ = batch([4])
    with torch.no_grad():
        states = model.esm(tokens).last_hidden_state
        expected = model(tokens).logits
        mean, variance = moments(lambda: model.train()(tokens).logits, count)
    asked = p / (1 - p) * (states**2) @ (model.classifier.weight.detach() ** 2).T
    assert ((mean - expected).abs() <= 5 * (asked / count) ** 0.5).all()
    assert ((variance / asked - 1).abs() <= 0.2).all()


def test_dropout_of_attention_has_the_right_mean_and_variance() -> None:
    """With equal scores and values of one, a query gets the share of its keys that are kept."""
    count, p, lengths = 2000, 0.3, [5, 5, 12]
    torch.manual_seed(0)
    layout = PackedLayout.from_lengths(lengths)
    zeros, ones = torch.zeros(22, 2, 4), torch.ones(22, 2, 4)
    mean, variance = moments(lambda: attention.attend(zeros, zeros, ones, layout, p), count)
    asked = p / (1 - p) / torch.tensor(lengths).repeat_interleave(torch.tensor(lengths))
    assert ((mean - 1).abs() <= 5 * (asked / count)[:, None, None] ** 0.5).all()
    assert ((variance / asked[:, None, None] - 1).abs() <= 0.2).all()


def test_dropout_can_be_set_as_in_the_reference() -> None:
    """By going through the modules, as scripts do."""
    _, ours = twins_of("EsmForSequenceClassification", **ESM2, **DROPOUT)
    inputs = labelled("EsmForSequenceClassification", [12, 12])
    for module in ours.train().modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.4
    with visible_dropout() as seen:
        ours(**inputs)
    assert seen == [0.4] * 11
    for module in ours.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    with visible_dropout() as seen:
        ours(**inputs)
    assert seen == []


def test_seeds_decide_in_training_alone() -> None:
    _, ours = twins_of("EsmForMaskedLM", **ESM2, **DROPOUT)
    tokens, _ = batch([12, 5])

    def logits(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return ours(tokens).logits

    ours.train()
    assert torch.equal(logits(1), logits(1))
    assert max_abs(logits(1), logits(2)) > 0.1
    ours.eval()
    assert torch.equal(logits(1), logits(2))


# Gradient checkpointing.


class Allocations(TorchDispatchMode):
    """Remembers every storage made within, to tell which of them live."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(made, Tensor):
                storage = made.untyped_storage()
                self._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return result

    def alive(self) -> int:
        """Bytes of the storages that live."""
        gc.collect()
        return sum(size for reference, size in self._made.values() if not reference.expired())


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("reentrant", [None, True, False])
def test_gradient_checkpointing_keeps_gradients_and_saves_memory(
    name: str, reentrant: bool | None
) -> None:
    _, ours = twins_of(name, **ESM2, **DROPOUT)
    ours.train()
    inputs = labelled(name, [120, 100, 120])
    kept, found = {}, {}
    for enabled in (False, True):
        if enabled:
            chosen = None if reentrant is None else {"use_reentrant": reentrant}
            ours.gradient_checkpointing_enable(chosen)
        assert ours.is_gradient_checkpointing == enabled
        torch.manual_seed(3)
        ours.zero_grad()
        with Allocations() as made:
            loss = ours(**inputs).loss
            kept[enabled] = made.alive()
        loss.backward()
        found[enabled] = {n: p.grad for n, p in ours.named_parameters() if p.grad is not None}
    assert found[True].keys() == found[False].keys()
    for key, gradient in found[False].items():
        assert max_abs(found[True][key], gradient) <= 1e-12, key
    assert 0 < kept[True] < 0.4 * kept[False]
    ours.gradient_checkpointing_disable()
    assert not ours.is_gradient_checkpointing


def test_gradient_checkpointing_is_for_training_and_passes_maps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, ours = twins_of("EsmForTokenClassification", **ESM2)
    inputs = labelled("EsmForTokenClassification", [12, 5])
    expected = ours(**inputs, output_attentions=True, output_hidden_states=True)
    ours.gradient_checkpointing_enable()
    found = ours.train()(**inputs, output_attentions=True, output_hidden_states=True)
    for own, plain in zip(found.attentions, expected.attentions, strict=True):
        assert max_abs(own, plain, None) < 10  # dropout is on
    assert len(found.hidden_states) == 4
    with Allocations() as made:
        loss = ours.eval()(**inputs).loss
        whole = made.alive()
    ours.gradient_checkpointing_disable()
    with Allocations() as made:
        loss = ours.eval()(**inputs).loss
        assert made.alive() == whole
    assert loss.isfinite()


# Fresh models.


@pytest.mark.parametrize("name", HEADS)
def test_fresh_weights_are_spread_as_the_references(name: str) -> None:
    settings = {**SMALL, **ESM2, "hidden_size": 192, "initializer_range": 0.05, "num_labels": 7}
    torch.manual_seed(0)
    ours = getattr(esm_pipeline, name)(EsmConfig(**settings))
    theirs = getattr(transformers, name)(transformers.EsmConfig(**settings)).state_dict()
    found = reference_state(ours)
    compared = 0
    for key, tensor in theirs.items():
        if "position" in key or "inv_freq" in key or key == "lm_head.decoder.weight":
            continue
        own = found[key]
        if tensor.numel() == 1 or tensor.std() == 0:  # biases and norms
            assert torch.equal(own, tensor), key
        elif tensor.numel() > 300:
            assert abs(float(own.std() / tensor.std()) - 1) < 0.15, key
            assert abs(float(own.mean())) < 0.01, key
            compared += 1
    assert compared >= 3 * 6 + 1
    assert not ours.get_input_embeddings().weight[1].any(), "padding"
