"""What the public functions, results and models return has a type that is known, not `Any`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import get_overloads

import pytest

import esm_pipeline
from esm_pipeline.formats.results.classes import ClassifiedProtein, ClassifiedResidues
from esm_pipeline.formats.results.embeddings import Embedding
from esm_pipeline.formats.results.matrix import RecordMatrix
from esm_pipeline.formats.results.open import RESULT_CLASSES
from esm_pipeline.formats.results.saturation import SaturatedProtein
from esm_pipeline.formats.results.structures import FoldedProtein
from esm_pipeline.tasks.embed.function import EmbeddedSequence, EmbedResult
from esm_pipeline.tasks.fold.function import FoldResult, PredictedStructure
from esm_pipeline.tasks.score.functions import ProteinScores, SaturationResult

RECORDS = (
    *(Embedding, SaturatedProtein, ClassifiedProtein, ClassifiedResidues, FoldedProtein),
    *(EmbedResult, EmbeddedSequence, FoldResult, PredictedStructure, ProteinScores),
    *(SaturationResult, RecordMatrix),
)
SPECIAL = ("__getitem__", "__iter__", "__len__")
UNTYPED = {
    "forward": "the tuple of `return_dict=False`; a call of the model is typed",
    "base_model": "the attribute `esm` is typed",
    "state_dict": "as in PyTorch",
    "load_state_dict": "as in PyTorch",
    "get_head_mask": "for old scripts: a tensor, or a list of None",
    "token_to_id": "None without an unknown token",
    "id_to_token": "None without an unknown token",
    "convert_tokens_to_ids": "follows what it is given",
    "convert_ids_to_tokens": "follows what it is given",
    "special_tokens_map": "texts, and a list of them",
    "pad": "follows what it is given",
    "encode_plus": "follows its options",
    "batch_encode_plus": "follows its options",
    "prepare_for_model": "follows its options",
    "to_dict": "JSON",
    "to_diff_dict": "JSON",
    "get_config_dict": "JSON",
    "read_file": "JSON",
    "structure_fields": "inside `forward`",
    "confidences": "inside `forward`",
    "stored": "of h5py, which has no types",
    "mapped": "of any dataset",
    "per_sequence": "of several types",
    "columns": "of a table",
    "cells": "of a table",
}
"""Members that return `Any`, and why."""


def returning_any(found: object) -> Iterator[str]:
    """Names of a function, or of the public members of a class, whose return type has `Any`."""
    if not inspect.isclass(found):
        if says_any(found):
            yield getattr(found, "__name__", "")
        return
    for owner in found.__mro__:
        if owner.__module__.startswith("esm_pipeline"):
            for name, member in vars(owner).items():
                public = not name.startswith("_") or name in SPECIAL
                inner = getattr(member, "fget", None) or getattr(member, "func", None)
                if public and says_any(inner or getattr(member, "__func__", member)):
                    yield name


def says_any(function: object) -> bool:
    """Whether a function, or one of its overloads, says that it returns `Any`."""
    if not inspect.isfunction(function):
        return False
    told = [one.__annotations__ for one in [*get_overloads(function)] or [function]]
    return any(re.search(r"\bAny\b", str(one.get("return", ""))) for one in told)


PUBLIC = [
    *(getattr(esm_pipeline, name) for name in esm_pipeline.__all__),
    *RESULT_CLASSES,
    *RECORDS,
]


@pytest.mark.parametrize("found", PUBLIC, ids=lambda found: found.__name__)
def test_no_any_is_returned(found):
    assert set(returning_any(found)) <= UNTYPED.keys()


def test_an_any_is_seen():
    class Untyped:
        def one(self) -> "Any":  # noqa: F821, UP037
            """A method."""

        @property
        def two(self) -> "dict[str, Any]":  # noqa: F821, UP037
            """A property."""

    Untyped.__module__ = "esm_pipeline.made_up"
    assert set(returning_any(Untyped)) == {"one", "two"}
    assert len(list(returning_any(esm_pipeline.EsmModel))) > 3
