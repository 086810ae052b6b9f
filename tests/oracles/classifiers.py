"""Models with heads beside transformers': the same weights, their losses and gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import esm_pipeline
from esm_pipeline import EsmConfig
from tests.oracles.peers import SMALL, batch, enliven, max_abs

LABELS = 3
HEADS = ("EsmForMaskedLM", "EsmForSequenceClassification", "EsmForTokenClassification")
PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")


def labelled(
    name: str,
    lengths: Sequence[int],
    *,
    problem: str = "single_label_classification",
    classes: int = LABELS,
    masked: float = 0.2,
    seed: int = 0,
) -> dict[str, Tensor]:
    """A batch with random labels, some of them -100, as the class `name` takes it."""
    tokens, mask = batch(lengths, masked=masked, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    if name == "EsmForSequenceClassification":
        each = torch.rand(len(lengths), classes, generator=generator, dtype=torch.float64)
        labels = {
            "regression": 3 * each - 1,
            "single_label_classification": (classes * each[:, 0]).long(),
            "multi_label_classification": each.round(),
        }[problem]
    else:
        count = SMALL["vocab_size"] if name == "EsmForMaskedLM" else classes
        labels = torch.randint(0, count, tokens.shape, generator=generator)
        labels[torch.rand(tokens.shape, generator=generator) < 0.4] = -100
        labels[:, 1] = 1  # never without any
        labels[mask == 0] = -100  # the reference would count labels there
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def twins_of(name: str, seed: int = 0, **settings: Any) -> tuple[nn.Module, nn.Module]:
    """The class `name` of transformers and ours, in float64, with the same lively weights."""
    settings = {**SMALL, "num_labels": LABELS, **settings}
    peer = getattr(transformers, name)(
        transformers.EsmConfig(**settings, attn_implementation="eager")
    )
    ours = getattr(esm_pipeline, name)(EsmConfig(**settings))
    enliven(peer, seed).double()
    copy_weights(peer, ours.double().eval())
    return peer, ours


@torch.no_grad()
def copy_weights(peer: nn.Module, ours: nn.Module) -> None:
    """Give `ours` the weights of `peer`."""
    theirs = dict(peer.named_parameters())
    for name, parameter in ours.named_parameters():
        parameter.copy_(theirs[name])


def gradients(model: nn.Module, **inputs: Tensor) -> dict[str, Tensor]:
    """Gradients of the loss by name of the parameter; those without one are left out."""
    model.zero_grad()
    model(**inputs).loss.backward()
    own = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: gradient for name, gradient in own.items() if gradient is not None}


def gradient_difference(peer: nn.Module, ours: nn.Module, **inputs: Tensor) -> float:
    """Largest difference of any parameter's gradients, relative to the parameter's largest.

    Every parameter but the contact head's has to have one, in both.
    """
    theirs, found = gradients(peer, **inputs), gradients(ours, **inputs)
    learned = {name for name, _ in ours.named_parameters() if "contact_head" not in name}
    assert set(found) == learned
    assert set(theirs) == set(found)
    return max(
        max_abs(found[name], theirs[name]) / max(1e-3, float(theirs[name].abs().max()))
        for name in found
    )


Mistake = Callable[[nn.Module, pytest.MonkeyPatch], None]
"""What makes a twin of a model that a check has to refuse."""
