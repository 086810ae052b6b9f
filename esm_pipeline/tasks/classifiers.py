"""Sequences to the classes that a fine-tuned checkpoint tells: of each, or of its residues."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from esm_pipeline.errors import WeightsError
from esm_pipeline.formats.classes import (
    MULTI_LABEL,
    REGRESSION,
    RESIDUES,
    SEQUENCES,
    SINGLE_LABEL,
    P,
)
from esm_pipeline.formats.hdf5 import Array, Per
from esm_pipeline.model import EsmForSequenceClassification, EsmForTokenClassification
from esm_pipeline.sections import CONTROL, ClassifySettings
from esm_pipeline.tasks.batched import Computed
from esm_pipeline.tasks.batching import pack
from esm_pipeline.tasks.checkpoints import Runner, software
from esm_pipeline.tasks.representations import residue_states
from esm_pipeline.tasks.windows import SPECIAL_TOKENS

SEPARATOR = ";"
"""Between the labels of a sequence that has several."""


class Classifier(Runner[Any]):
    """A checkpoint with a classifier; `load` it before the first batch.

    Raises WeightsError for a checkpoint of another head, and for labels that no table can have.
    """

    settings: ClassifySettings
    of = "sequences"
    format = SEQUENCES
    model_class = EsmForSequenceClassification

    def __init__(self, name: str, revision: str | None, settings: ClassifySettings) -> None:
        super().__init__(name, revision, settings)
        self.require_head()
        self.labels = [self.config.id2label[number] for number in sorted(self.config.id2label)]
        self.require_labels()

    def require_head(self) -> None:
        """Raise WeightsError if the checkpoint says that it is of another class."""
        told = self.config.architectures or [self.model_class.__name__]
        if self.model_class.__name__ in told:
            return
        other = OTHERS[self.of]
        remedy = "train one with EsmForSequenceClassification or EsmForTokenClassification"
        if other.model_class.__name__ in told:
            remedy = f"set classify.of to {other.of}"
        raise WeightsError(
            f"{self.checkpoint.name}: a checkpoint of {told[0]}, which tells no classes of "
            f"{self.of}; {remedy}"
        )

    def require_labels(self) -> None:
        """Raise WeightsError for labels that cannot be told apart in a table."""
        taken = [SEPARATOR] if self.problem == MULTI_LABEL else []
        for number, label in enumerate(self.labels):
            wrong = not isinstance(label, str) or not label or CONTROL.search(label)
            if wrong or any(mark in label for mark in taken) or label in self.labels[:number]:
                raise WeightsError(
                    f"{self.checkpoint.name}: label {number} of its config is {label!r}; give each "
                    "class a name of its own, without line breaks, tabs and, where there are "
                    f"several labels a sequence, '{SEPARATOR}'"
                )

    def judge(self, missing: Collection[str]) -> None:
        """Raise WeightsError for a checkpoint without a classifier."""
        if missing:
            raise WeightsError(
                f"{self.checkpoint.name}: no '{min(missing)}' among its weights, so it classifies "
                f"nothing; train one with {self.model_class.__name__}"
            )

    @property
    def problem(self) -> str:
        """What the outputs are; the reference's choice where the config does not tell."""
        chosen = REGRESSION if self.config.num_labels == 1 else SINGLE_LABEL
        return self.config.problem_type or chosen

    @property
    def arrays(self) -> list[Array]:
        """What is stored, as datasets."""
        per: Per = "residue" if self.of == "residues" else "sequence"
        return [Array(P, per, (len(self.labels),), "<f4")]

    @property
    def attributes(self) -> dict[str, str]:
        """How the results were made: what the file says of itself."""
        return {
            "format": self.format,
            "labels": json.dumps(self.labels),
            "problem_type": self.problem,
            **self.origin,
            "software": json.dumps(software()),
        }

    @torch.inference_mode()
    def __call__(self, sequences: Sequence[str]) -> Computed:
        """Classify a batch. Raises what PyTorch raises when memory runs out."""
        tokens, layout = pack(sequences, self.tokenizer, self.device)
        with self.timed():
            logits: Tensor = self.model.packed_logits(tokens, layout).float()
        units = [1] * len(sequences)
        if self.of == "residues":
            logits = residue_states(logits, layout)
            units = [length - SPECIAL_TOKENS for length in layout.lengths]
        computed = Computed()
        computed.add(P, self.outputs(logits), units)
        return computed

    def outputs(self, logits: Tensor) -> Tensor:
        """(…, K) → probabilities, or the values of a regression."""
        if self.problem == REGRESSION:
            return logits
        return logits.sigmoid() if self.problem == MULTI_LABEL else logits.softmax(-1)


class ResidueClassifier(Classifier):
    """The same for residues, of which each has one class."""

    of = "residues"
    format = RESIDUES
    model_class = EsmForTokenClassification  # type: ignore[assignment]

    @property
    def problem(self) -> str:
        """Always one class each."""
        return SINGLE_LABEL


CLASSIFIERS = {"sequences": Classifier, "residues": ResidueClassifier}
OTHERS = {"sequences": ResidueClassifier, "residues": Classifier}
