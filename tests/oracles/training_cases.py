"""What is trained in transformers 4.37.2 and here: heads, labels, a batch. Needs numpy.

A case is a class, settings over those of reference_cases.py, labels, and what the keys begin with
whose gradients are compared.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.oracles.reference_cases import TYPES, tokens
from tests.oracles.seeded import uniform

DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3}
CLASSES = 3
Case = dict[str, Any]


def token_labels(classes: int) -> np.ndarray:
    """(2, 9) classes, -100 at some tokens and at the padding."""
    ids, mask = tokens()
    labels = np.floor((uniform("labels", ids.shape) + 1) / 2 * classes).astype(np.int64)
    return np.where((mask == 0) | (uniform("kept", ids.shape) < -0.4), -100, labels)


def sequence_labels() -> dict[str, tuple[dict[str, Any], np.ndarray]]:
    """Settings, and labels of the two sequences, for each way to read them."""
    numbers, marks = uniform("numbers", (2, CLASSES)), np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    several = {"num_labels": CLASSES}
    return {
        "one number": ({"num_labels": 1}, numbers[:, 0]),
        "numbers": ({**several, "problem_type": "regression"}, numbers),
        "classes": (several, np.array([2, 0])),
        "classes, one unknown": (several, np.array([-100, 1])),
        "marks": (several, marks),
        "soft marks": ({**several, "problem_type": "multi_label_classification"}, abs(numbers)),
    }


def all_cases() -> dict[str, Case]:
    """Everything that is recorded: each head with all kinds of positions, then all losses."""
    found: dict[str, Case] = {}
    classes = {**DROPOUT, "num_labels": CLASSES}
    for number, kind in enumerate(TYPES):
        config = {
            **classes,
            "position_embedding_type": kind,
            "token_dropout": number % 2 == 1,
            "emb_layer_norm_before": number > 1,
        }
        for name, labels in (
            ("EsmForMaskedLM", token_labels(33)),
            ("EsmForSequenceClassification", np.array([2, 0])),
            ("EsmForTokenClassification", token_labels(CLASSES)),
        ):
            found[f"{name} {kind}"] = {
                "class": name,
                "config": config,
                "labels": labels,
                "gradients of": "",
            }
    rotary = {**DROPOUT, "position_embedding_type": "rotary", "token_dropout": True}
    for name, (settings, labels) in sequence_labels().items():
        found[name] = {
            "class": "EsmForSequenceClassification",
            "config": {**rotary, **settings},
            "labels": labels,
            "gradients of": "classifier.",
        }
    return found
