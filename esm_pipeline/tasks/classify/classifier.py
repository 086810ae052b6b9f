"""Sequences to the results of a classifier: one packed pass of the model for each batch.

The checkpoint gives its class, the names of its labels, and in `problem_type` whether the labels
exclude each other (softmax), can occur together (sigmoid), or are values. Peer: transformers
4.37.2, whose losses read `problem_type` the same way; if it is not set, one label is a value, and
several exclude each other.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from esm_pipeline.errors import InputError, WeightsError, setting
from esm_pipeline.formats.results.classes import (
    LABEL_SEPARATOR,
    MULTI_LABEL,
    REGRESSION,
    SEQUENCE,
    Classes,
    ResidueClasses,
    array_name,
)
from esm_pipeline.formats.results.layout import Array
from esm_pipeline.model import (
    Checkpoint,
    EsmConfig,
    EsmForSequenceClassification,
    EsmForTokenClassification,
)
from esm_pipeline.model.base import EsmPreTrainedModel
from esm_pipeline.model.checkpoints.adapters import Adapter
from esm_pipeline.model.checkpoints.keys import class_of
from esm_pipeline.model.checkpoints.weight_files import open_tensors
from esm_pipeline.model.inference.batching import SPECIAL_TOKEN_COUNT, pack, residue_states
from esm_pipeline.model.losses import SINGLE_LABEL
from esm_pipeline.settings.section import texts
from esm_pipeline.settings.sections import CLASSIFIERS, ClassifySettings
from esm_pipeline.tasks.classify.classes import CLASSIFY
from esm_pipeline.tasks.common.compute import ArrayRunner, BatchArrays
from esm_pipeline.tasks.common.runner import software

CLASSIFIER_REMEDY = "give a checkpoint that was trained as " + " or ".join(CLASSIFIERS)

WithClasses: TypeAlias = EsmForSequenceClassification | EsmForTokenClassification
CLASSIFIER_CLASSES: dict[str, type[Any]] = {
    model.__name__: model for model in (EsmForSequenceClassification, EsmForTokenClassification)
}


class Classifier(ArrayRunner[WithClasses]):
    """A checkpoint with a classifier; `load` it before the first batch.

    `of` is what it classifies, "sequences" or "residues". Raises WeightsError for a checkpoint
    without a classifier or with unusable labels, InputError if it contradicts `settings.of`.
    """

    task = CLASSIFY
    settings: ClassifySettings

    def __init__(
        self, model: str | EsmPreTrainedModel, revision: str | None, settings: ClassifySettings
    ) -> None:
        super().__init__(model, revision, settings)
        if self.given is None:
            name = class_name(self.checkpoint, self.config)
        else:
            name = class_of_model(self.given)
        self.model_class = CLASSIFIER_CLASSES[name]
        self.of = CLASSIFIERS[name]
        if settings.of not in ("auto", self.of):
            raise InputError(
                f"{setting('classify.of')} is '{settings.of}', but {self.checkpoint.name} is an "
                f"{name}; set {setting('classify.of')} to {self.of}"
            )
        self.problem = problem_of(self.config)
        try:
            self.labels = labels_of(self.config, self.problem)
        except WeightsError as error:
            raise WeightsError(f"{self.checkpoint.name}: {error}") from None

    def check_missing(self, missing: Collection[str]) -> None:
        """Raise WeightsError for a classifier without weights."""
        if missing:
            raise WeightsError(
                f"{self.checkpoint.name}: no '{min(missing)}' among its weights, the classifier "
                f"was never trained; {CLASSIFIER_REMEDY}"
            )

    @property
    def arrays(self) -> list[Array]:
        """The arrays to store, as datasets."""
        width = (len(self.labels),)
        if self.of == "sequences":
            return [Array(array_name(self.problem), "sequence", width, "<f4")]
        letters = Array(SEQUENCE, "residue", (), "|S1")
        return [Array(array_name(self.problem), "residue", width, "<f4"), letters]

    @property
    def attributes(self) -> dict[str, str]:
        """How the results were made: the attributes of the file."""
        kind = Classes if self.of == "sequences" else ResidueClasses
        return {
            "format": kind.format,
            "problem_type": self.problem,
            "labels": json.dumps(self.labels),
            **self.origin,
            **texts(self.settings),
            "software": json.dumps(software()),
        }

    @torch.inference_mode()
    def __call__(self, sequences: Sequence[str]) -> BatchArrays:
        """Classify a batch. Raises what PyTorch raises when memory runs out."""
        tokens, layout = pack(sequences, self.tokenizer, self.device)
        with self.timed():
            logits = self.model.packed_logits(tokens, layout).float()
        results, units = BatchArrays(), [1] * len(sequences)
        if self.of == "residues":
            logits = residue_states(logits, layout)
            units = [length - SPECIAL_TOKEN_COUNT for length in layout.lengths]
            letters = "".join(sequences).encode()
            results.values[SEQUENCE] = np.frombuffer(letters, "S1")
        results.add(array_name(self.problem), activated(logits, self.problem), units)
        return results


def class_of_model(model: EsmPreTrainedModel) -> str:
    """The class of a loaded classifier. Raises InputError if it is not one."""
    for name, kind in CLASSIFIER_CLASSES.items():
        if isinstance(model, kind):
            return name
    raise InputError(
        f"model: has no classifier, it is an {type(model).__name__}; load one with "
        f"{' or '.join(CLASSIFIER_CLASSES)}"
    )


def activated(logits: Tensor, problem: str) -> Tensor:
    """(N, K) logits as probabilities, or unchanged if they are values."""
    if problem == REGRESSION:
        return logits
    return logits.sigmoid() if problem == MULTI_LABEL else logits.softmax(-1)


def class_name(checkpoint: Checkpoint, config: EsmConfig) -> str:
    """The class of a classifier by its config, or else by the keys of its head.

    Raises WeightsError if it is not a classifier.
    """
    names = config.architectures if isinstance(config.architectures, list) else []
    adapter = Adapter.of(checkpoint)
    names = names if adapter is None else [*adapter.settings().get("architectures", ()), *names]
    for name in names:
        if isinstance(name, str) and name in CLASSIFIERS:
            return name
    found = class_of(open_tensors(checkpoint.weight_files))
    if found not in CLASSIFIERS:
        raise WeightsError(
            f"{checkpoint.name}: has no classifier, it is an {found}; {CLASSIFIER_REMEDY}"
        )
    return found


def problem_of(config: EsmConfig) -> str:
    """The problem type; if it is not set, it follows from the number of labels."""
    return config.problem_type or (REGRESSION if config.num_labels == 1 else SINGLE_LABEL)


def labels_of(config: EsmConfig, problem: str) -> list[str]:
    """The names of the labels, in their order.

    Raises WeightsError for numbers that are not 0, 1, …; for a name that is empty, not printable,
    given twice, or has the ';' that separates several labels; and for a single label with a
    softmax, whose probability would always be 1.
    """
    names = config.id2label
    if sorted(names) != list(range(len(names))):
        raise WeightsError(
            f"config: id2label has {len(names)} labels, but not for the numbers from 0 to "
            f"{len(names) - 1}; give each of these one"
        )
    labels = [str(names[place]) for place in range(len(names))]
    if problem == SINGLE_LABEL and len(labels) == 1:
        raise WeightsError(
            f"config: problem_type '{problem}' with one label, whose probability is always 1; set "
            f"problem_type to '{REGRESSION}', or to '{MULTI_LABEL}' for a sigmoid"
        )
    counts = Counter(labels)
    for label in labels:
        if not label.isprintable() or not label.strip():
            raise WeightsError(
                f"config: label {label!a} in id2label cannot name a column; rename it, with "
                "characters that can be printed"
            )
        if problem == MULTI_LABEL and LABEL_SEPARATOR in label:
            raise WeightsError(
                f"config: label {label!a} in id2label has a '{LABEL_SEPARATOR}', which separates "
                "several labels; rename it"
            )
        if counts[label] > 1:
            raise WeightsError(f"config: label {label!a} appears twice in id2label; rename one")
    return labels
