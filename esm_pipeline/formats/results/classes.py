"""Reading a `classes.h5` or `residue_classes.h5`: predicted classes of sequences or residues.

with open_results("classes.h5") as results:
    results["P12345"].p               # (K,), in the order of results.labels
    results["P12345"].label           # the label, several joined by ';'
    results.to_pandas()               # one row for each record
with open_results("residue_classes.h5") as results:
    results["P12345"].p               # (R, K)
    results["P12345"].label           # R labels
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import compress
from typing import TYPE_CHECKING, Any, ClassVar

import h5py
import numpy as np
from numpy.typing import NDArray

from esm_pipeline.arrays import Float32, Int64
from esm_pipeline.errors import InputError
from esm_pipeline.formats.results.attributes import json_attribute, text_attribute
from esm_pipeline.formats.results.layout import Per
from esm_pipeline.formats.results.matrix import RecordMatrix
from esm_pipeline.formats.results.part import FoundRecord
from esm_pipeline.formats.results.reader import (
    Item,
    RaggedResults,
    StoredRecord,
    joined_arrays,
)
from esm_pipeline.formats.results.validation import DatasetRule, letters_of, require
from esm_pipeline.formats.tables.base import Column

if TYPE_CHECKING:
    import pandas as pd

REGRESSION = "regression"
MULTI_LABEL = "multi_label_classification"
PROBLEMS = ("single_label_classification", MULTI_LABEL, REGRESSION)
P, VALUE, SEQUENCE = "p", "value", "sequence"
LABEL_SEPARATOR = ";"
"""Separates several labels; no label contains it."""

THRESHOLD = 0.5
"""Least probability at which a multi-label model assigns a label."""


def prediction_rule(per: Per) -> DatasetRule:
    """The rule for the dataset of predictions."""
    return DatasetRule(f"{P}|{VALUE}", per, ("K",), ("<f4",))


def array_name(problem: str) -> str:
    """The dataset with the predictions of a classifier of `problem` type."""
    return VALUE if problem == REGRESSION else P


def column_names(problem: str, labels: Sequence[str]) -> list[str]:
    """Columns of a table: `label` and `p.{label}`, or `value` (`value.{label}` if several)."""
    if problem != REGRESSION:
        return ["label", *(f"{P}.{label}" for label in labels)]
    return [VALUE] if len(labels) == 1 else [f"{VALUE}.{label}" for label in labels]


def assigned_labels(p: Float32, problem: str, labels: Sequence[str], threshold: float) -> list[str]:
    """The label of each row of probabilities (N, K): the most likely one, the first of equals.

    A multi-label problem has every label of at least the probability `threshold`, or none.
    """
    if problem == MULTI_LABEL:
        return [LABEL_SEPARATOR.join(compress(labels, row)) for row in (p >= threshold).tolist()]
    return [labels[place] for place in p.argmax(-1).tolist()]


class ClassifiedRecord(StoredRecord["Classes | ResidueClasses"]):
    """The predictions for one record; `length` counts the residues that the model was given."""

    @property
    def p(self) -> Float32:
        """(K,), or (R, K) for residues: probabilities in the order of the labels, 0 to 1."""
        return self._read(P)

    @property
    def value(self) -> Float32:
        """(K,), or (R, K) for residues: values of a regression, in the model's own unit."""
        return self._read(VALUE)

    @property
    def predicted(self) -> Float32:
        """`p` or `value`, whichever is stored."""
        return self._read(array_name(self._results.problem))

    def _read(self, name: str) -> NDArray[Any]:
        self._results.require_stored(name)
        found = self._part.values(name, self._results.per, self._row)
        return found if self._results.per == "residue" else found[0]


class ClassifiedProtein(ClassifiedRecord):
    """The predictions for one sequence."""

    @property
    def label(self) -> str:
        """Its label, several joined by ';'."""
        return self._results.assigned(np.atleast_2d(self.p))[0]


class ClassifiedResidues(ClassifiedRecord):
    """The predictions for the residues of one sequence."""

    @property
    def label(self) -> list[str]:
        """(R,) the label of each residue, several joined by ';'."""
        return self._results.assigned(self.p)

    @property
    def sequence(self) -> str:
        """The classified residues."""
        with self._part.reading():
            return letters_of(self._read(SEQUENCE), SEQUENCE)


class ClassResults(RaggedResults[Item]):
    """What results of a classifier have in common."""

    per: ClassVar[Per]
    """The unit of the predictions."""

    @classmethod
    def check_more(cls, file: h5py.File, sizes: Mapping[str, int]) -> None:
        """The predictions fit the type of problem, and every column has a label."""
        problem = text_attribute(file, "problem_type")
        labels = json_attribute(file, "labels", list)
        if problem not in PROBLEMS:
            raise ValueError(f"attribute 'problem_type' is not one of {', '.join(PROBLEMS)}")
        name = array_name(problem)
        require(isinstance(file.get(name), h5py.Dataset), name)
        if not labels or len(labels) != sizes["K"]:
            raise ValueError("attribute 'labels' does not have one for each column")

    @cached_property
    def labels(self) -> list[str]:
        """The K labels, or names of the values of a regression."""
        part = self.parts[0]
        with part.reading():
            labels: list[str] = json_attribute(part.file, "labels", list)
            return labels

    @cached_property
    def problem(self) -> str:
        """`single_label_classification`, `multi_label_classification` or `regression`."""
        part = self.parts[0]
        with part.reading():
            return text_attribute(part.file, "problem_type")

    def require_stored(self, name: str) -> None:
        """Raise InputError unless the dataset `name` is stored."""
        if name not in self.parts[0].file:
            raise InputError(
                f"{self.path}: '{name}' is not stored; it holds '{array_name(self.problem)}', "
                f"by a model for {self.problem}"
            )

    def predictions(self) -> Float32:
        """(units, K) probabilities or values of the only file, as a memory map."""
        return self.mapped(array_name(self.problem))

    def assigned(self, p: Float32, threshold: float = THRESHOLD) -> list[str]:
        """The label of each row of probabilities (N, K); see `assigned_labels`."""
        return assigned_labels(p, self.problem, self.labels, threshold)

    def columns(self) -> list[Column]:
        """The columns of a table of predictions."""
        names = column_names(self.problem, self.labels)
        return [Column(name, "text" if name == "label" else "exact") for name in names]

    def cells(self, values: Float32, threshold: float = THRESHOLD) -> list[Any]:
        """The cells of these columns, for predictions (N, K)."""
        labels = [] if self.problem == REGRESSION else [self.assigned(values, threshold)]
        return [*labels, *values.T]

    def to_pandas(self, threshold: float = THRESHOLD) -> pd.DataFrame:
        """A table with one row for each record: id, index, `label` and `p.{label}`, or `value`.

        `threshold` is the least probability at which a multi-label model assigns a label.
        """
        table = {"id": self.ids, "index": self.index}
        values = RecordMatrix(self, array_name(self.problem))
        return self._table(table, np.asarray(values), threshold)

    def _table(self, table: dict[str, Any], values: Float32, threshold: float) -> pd.DataFrame:
        import pandas as pd

        names = [column.name for column in self.columns()]
        cells = self.cells(values, threshold)
        return pd.DataFrame({**table, **dict(zip(names, cells, strict=True))})


class Classes(ClassResults[ClassifiedProtein]):
    """The records of a `classes.h5` or the folder `classes`: predictions for each sequence."""

    format = "esm-pipeline/classes"
    file_name = "classes.h5"
    rules: ClassVar[Sequence[DatasetRule]] = (prediction_rule("sequence"),)
    per = "sequence"

    def record(self, found: FoundRecord) -> ClassifiedProtein:
        """The record with its predictions."""
        return ClassifiedProtein(self, found)


class ResidueClasses(ClassResults[ClassifiedResidues]):
    """The records of a `residue_classes.h5` or the folder `residue_classes`: of each residue."""

    format = "esm-pipeline/residue_classes"
    file_name = "residue_classes.h5"
    rules = (prediction_rule("residue"), DatasetRule(SEQUENCE, "residue", (), ("|S1",)))

    per = "residue"

    def record(self, found: FoundRecord) -> ClassifiedResidues:
        """The record with its predictions."""
        return ClassifiedResidues(self, found)

    @classmethod
    def check_more(cls, file: h5py.File, sizes: Mapping[str, int]) -> None:
        """As above, and the residues are stored."""
        super().check_more(file, sizes)
        require(isinstance(file.get(SEQUENCE), h5py.Dataset), SEQUENCE)

    def letters(self, units: Int64 | slice) -> NDArray[np.str_]:
        """(n,) the residues of `units`, one letter each."""
        letters = self.mapped(SEQUENCE)[units]
        with self.reading():
            letters_of(letters, SEQUENCE)
            return letters.astype(str)

    def to_pandas(self, threshold: float = THRESHOLD) -> pd.DataFrame:
        """A table with one row for each residue, held in memory.

        Columns: id, index, position (from 1), residue, then as above.
        """
        items = list(self)
        lengths = np.array([item.length for item in items], np.int64)
        table = {
            "id": np.repeat(np.array([item.id for item in items], object), lengths),
            "index": np.repeat(np.array([item.index for item in items], np.int64), lengths),
            "position": joined_arrays([np.arange(length) + 1 for length in lengths], np.int64),
            "residue": np.array([*"".join(item.sequence for item in items)], np.str_),
        }
        name = array_name(self.problem)
        values = [self.parts[0].array(name)[:0], *(item.predicted for item in items)]
        return self._table(table, np.concatenate(values), threshold)
