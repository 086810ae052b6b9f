"""Losses, gradients and dropout against records of transformers 4.37.2 (record_training.py)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import esm_pipeline
import tests.oracles.training_cases
from esm_pipeline import EsmConfig
from esm_pipeline.model.relative_positions import DistanceEmbedding
from tests.oracles.dropout import visible_dropout
from tests.oracles.peers import max_abs
from tests.oracles.reference import fill
from tests.oracles.reference_cases import BASE, tokens
from tests.oracles.training_cases import all_cases

GOLDEN = Path(tests.oracles.training_cases.__file__).parent / "training_4.37.2.npz"
CASES = all_cases()
TOLERANCE = 1e-10
"""All in float64; the worst that was measured is 2e-15. Gradients were recorded in float32."""


@cache
def facts() -> dict[str, Any]:
    """Versions, and what is known of each case."""
    with np.load(GOLDEN) as file:
        found: dict[str, Any] = json.loads(file["facts"].tobytes())
    return found


def recorded(name: str) -> dict[str, Tensor]:
    """The arrays of a case."""
    with np.load(GOLDEN) as file:
        keys = ("loss", "logits", "training", "gradients")
        return {key: torch.from_numpy(file[f"{name}/{key}"]) for key in keys}


def build(name: str) -> nn.Module:
    """Our model of a case, in float64, with the weights of the recorded one."""
    case = CASES[name]
    made = getattr(esm_pipeline, case["class"])(EsmConfig(**{**BASE, **case["config"]}))
    return fill(made.double().eval())


def differences(model: nn.Module, name: str) -> dict[str, float]:
    """Largest differences of loss, logits, logits in training and gradients; these relative."""
    ids, mask, labels = (torch.from_numpy(x) for x in (*tokens(), CASES[name]["labels"]))
    expected = recorded(name)
    answer = model(ids, attention_mask=mask, labels=labels)
    answer.loss.backward()
    with visible_dropout():
        training = model.train()(ids, attention_mask=mask).logits
    where = mask if training.ndim == 3 else None
    return {
        "loss": max_abs(answer.loss, expected["loss"]),
        "logits": max_abs(answer.logits, expected["logits"], where),
        "training": max_abs(training, expected["training"], where),
        "gradients": gradient_difference(model, name, expected["gradients"]),
    }


def gradient_difference(model: nn.Module, name: str, expected: Tensor) -> float:
    """Largest difference of a gradient, by the largest of its parameter; in units of 2⁻²³."""
    found = {
        key: parameter.grad
        for key, parameter in model.named_parameters()
        if parameter.grad is not None and key.startswith(CASES[name]["gradients of"])
    }
    shapes = facts()["cases"][name]["gradients"]
    assert found.keys() == shapes.keys()
    worst = 0.0
    for key, shape in shapes.items():
        theirs, expected = expected[: np.prod(shape)].reshape(shape), expected[np.prod(shape) :]
        scale = max(1e-6, float(theirs.abs().max()))
        worst = max(worst, max_abs(found[key], theirs) / scale)
    assert not len(expected)
    return worst / 2.0**-23


def test_the_file_tells_where_it_is_from() -> None:
    assert facts()["recorded with"]["transformers"] == "4.37.2"
    assert list(facts()["cases"]) == list(CASES)


@pytest.mark.parametrize("name", CASES)
def test_training(name: str) -> None:
    model = build(name)
    found = differences(model, name)
    assert found.pop("gradients") <= 1
    assert max(found.values()) <= TOLERANCE
    assert model.config.problem_type == facts()["cases"][name]["problem type"]


def test_twin_without_gradients_of_distances_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = DistanceEmbedding.scores
    monkeypatch.setattr(
        DistanceEmbedding,
        "scores",
        lambda self, q, k, *rest: scores(self, q.detach(), k.detach(), *rest),
    )
    for kind in ("relative_key", "relative_key_query"):
        name = f"EsmForMaskedLM {kind}"
        found = differences(build(name), name)
        assert found.pop("gradients") > 1e3
        assert max(found.values()) <= TOLERANCE, "the forward pass is right"


def test_twin_with_swapped_probabilities_fails() -> None:
    for name in CASES:
        model = build(name)
        for layer in model.esm.encoder.layer:
            inner, outer = layer.attention.self, layer.attention.output
            inner.dropout, outer.dropout = outer.dropout, inner.dropout
        found = differences(model, name)
        assert found["logits"] <= TOLERANCE
        assert found["training"] > 1e-4
