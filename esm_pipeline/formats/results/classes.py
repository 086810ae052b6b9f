"""Reading a `classes.h5` or `residue_classes.h5`: what a classifier says of sequences or residues.

with open_results("classes.h5") as results:
    results["P12345"].p               # (K,), in the order of results.labels
    results["P12345"].label           # the label, several joined by ';'
    results.to_pandas()               # one row a record
with open_results("residue_classes.h5") as results:
    results["P12345"].p               # (R, K)
    results["P12345"].label           # R labels
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import compress
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from esm_pipeline.arrays import Float32, Int64
from esm_pipeline.errors import InputError
from esm_pipeline.formats.results.reader import RaggedResults, StoredRecord
from esm_pipeline.formats.results.validation import Declared, json_attribute, text_attribute
from esm_pipeline.formats.results.writer import Per, letters_of, require
from esm_pipeline.formats.tables.base import Column

if TYPE_CHECKING:
    import pandas as pd

REGRESSION = "regression"
MULTI_LABEL = "multi_label_classification"
PROBLEMS = ("single_label_classification", MULTI_LABEL, REGRESSION)
P, VALUE, SEQUENCE = "p", "value", "sequence"
BETWEEN = ";"
"""What parts several labels, and no label has."""

THRESHOLD = 0.5
"""Least probability of a label that is told, of several."""


def declared_per(per: Per) -> tuple[Declared, ...]:
    """The dataset with what the model says."""
    return (Declared(f"{P}|{VALUE}", per, ("K",), ("<f4",)),)


def array_name(problem: str) -> str:
    """The dataset that holds what a classifier of `problem` type says."""
    return VALUE if problem == REGRESSION else P


def column_names(problem: str, labels: Sequence[str]) -> list[str]:
    """Columns of a table: `label` and `p.{label}`, or `value`, of several `value.{label}`."""
    if problem != REGRESSION:
        return ["label", *(f"{P}.{label}" for label in labels)]
    return [VALUE] if len(labels) == 1 else [f"{VALUE}.{label}" for label in labels]


def told_labels(p: Float32, problem: str, labels: Sequence[str], threshold: float) -> list[str]:
    """The label of each of the probabilities (N, K): the likeliest, the first of equal ones.

    Of several (multi-label), those with at least the probability `threshold`, or none.
    """
    if problem == MULTI_LABEL:
        return [BETWEEN.join(compress(labels, row)) for row in (p >= threshold).tolist()]
    return [labels[place] for place in p.argmax(-1).tolist()]


class Classified(StoredRecord["Classes | ResidueClasses"]):
    """What is told of one record; `length` is of the residues that the model was given."""

    @property
    def p(self) -> Float32:
        """(K,), of residues (R, K), probabilities in the order of the labels, 0 to 1."""
        return self._read(P)

    @property
    def value(self) -> Float32:
        """The same for a regression: values in the model's own unit."""
        return self._read(VALUE)

    @property
    def label(self) -> str | list[str]:
        """The label, or labels joined by ';', of the sequence; of residues a list of them."""
        told = self._results.told(np.atleast_2d(self.p))
        return told if isinstance(self._results, ResidueClasses) else told[0]

    @property
    def sequence(self) -> str:
        """The residues that were classified. Stored where classes are theirs."""
        with self._results.judged():
            return letters_of(self._read(SEQUENCE), SEQUENCE)

    def _read(self, name: str) -> NDArray[Any]:
        values: NDArray[Any] = self._results.stored(name)[self._results.units(self._row)]
        return values


class Classes(RaggedResults[Classified]):
    """The records of a `classes.h5`, with something for each sequence."""

    format = "esm-pipeline/classes"
    declared = declared_per("sequence")

    def check_more(self) -> None:
        """There is a label for each column, and what the model says of its problem."""
        problem, labels = self.problem, self.labels
        if problem not in PROBLEMS:
            raise ValueError(f"attribute 'problem_type' is none of {', '.join(PROBLEMS)}")
        name = array_name(problem)
        require(isinstance(self.file.get(name), h5py.Dataset), name)
        if not labels or len(labels) != self.sizes["K"]:
            raise ValueError("attribute 'labels' has not one for each column")

    def item(self, position: int) -> Classified:
        """The record at a position among those that are stored."""
        return Classified(self, position)

    @cached_property
    def labels(self) -> list[str]:
        """The K labels, or names of values."""
        with self.judged():
            labels: list[str] = json_attribute(self.file, "labels", list)
            return labels

    @cached_property
    def problem(self) -> str:
        """`single_label_classification`, `multi_label_classification` or `regression`."""
        with self.judged():
            return text_attribute(self.file, "problem_type")

    def stored(self, name: str) -> Any:
        """The dataset of that name. Raises InputError if there is none."""
        if name not in self.file:
            raise InputError(
                f"{self.path}: '{name}' is not stored; it holds '{array_name(self.problem)}', "
                f"by a model for {self.problem}"
            )
        return self.file[name]

    def units(self, row: int) -> int | slice:
        """What of a dataset is that of a row."""
        return row

    def mapped(self, name: str | None = None) -> NDArray[Any]:
        """The dataset of that name, by default (units, K) what the model says, not yet read."""
        dataset = self.stored(name or array_name(self.problem))
        offset = dataset.id.get_offset()
        if offset is None:  # nothing in it
            return np.empty(dataset.shape, dataset.dtype)
        return np.memmap(self.path, dataset.dtype, "r", offset, dataset.shape)

    def told(self, p: Float32, threshold: float = THRESHOLD) -> list[str]:
        """The labels of probabilities (N, K)."""
        return told_labels(p, self.problem, self.labels, threshold)

    def columns(self) -> list[Column]:
        """The columns of a table that say what the model says."""
        names = column_names(self.problem, self.labels)
        return [Column(name, "text" if name == "label" else "exact") for name in names]

    def cells(self, values: Float32, threshold: float = THRESHOLD) -> list[Any]:
        """The values (N, K) as the columns of such a table."""
        told = [] if self.problem == REGRESSION else [self.told(values, threshold)]
        return [*told, *values.T]

    def to_pandas(self, threshold: float = THRESHOLD) -> pd.DataFrame:
        """A table with one row a record: id, index, then `label` and `p.{label}`, or `value`.

        `threshold` is the least probability of a label that is told, where there may be several.
        """
        table = {"id": self.ids, "index": self.index}
        return self._table(table, np.asarray(self.mapped()[self.row]), threshold)

    def _table(self, table: dict[str, Any], values: Float32, threshold: float) -> pd.DataFrame:
        import pandas as pd

        names = [column.name for column in self.columns()]
        cells = self.cells(values, threshold)
        return pd.DataFrame({**table, **dict(zip(names, cells, strict=True))})


class ResidueClasses(Classes):
    """The records of a `residue_classes.h5`, with something for each residue."""

    format = "esm-pipeline/residue_classes"
    declared = (*declared_per("residue"), Declared(SEQUENCE, "residue", (), ("|S1",)))

    def check_more(self) -> None:
        """The same; and the residues are there."""
        super().check_more()
        require(isinstance(self.file.get(SEQUENCE), h5py.Dataset), SEQUENCE)

    def units(self, row: int) -> int | slice:
        """What of a dataset is that of a row."""
        return slice(*self.offset[row : row + 2].tolist())

    def letters(self, units: Int64 | slice) -> NDArray[np.str_]:
        """The residues at some units, a letter each."""
        letters = self.mapped(SEQUENCE)[units]
        with self.judged():
            letters_of(letters, SEQUENCE)
            return letters.astype(str)

    def to_pandas(self, threshold: float = THRESHOLD) -> pd.DataFrame:
        """A table with one row a residue: id, index, position from 1, residue, then as above.

        Everything is held in memory.
        """
        lengths = self.length[self.row]
        units = [np.arange(*self.offset[row : row + 2]) for row in self.row.tolist()]
        places = np.concatenate([*units, np.empty(0, np.int64)])
        table = {
            "id": np.repeat(np.array(self.ids, object), lengths),
            "index": np.repeat(self.index, lengths),
            "position": places - np.repeat(self.offset[self.row], lengths) + 1,
            "residue": self.letters(places),
        }
        return self._table(table, np.asarray(self.mapped()[places]), threshold)
