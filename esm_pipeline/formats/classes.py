"""Reading what `classify` wrote: probabilities of classes, of sequences or of residues.

with open_results("residue_classes.h5") as results:
    results.labels                    # what the columns of p stand for
    results["P12345"].p               # (R, K); of classes.h5, (K,)
    results.to_pandas()               # one row a record, or a residue
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from esm_pipeline.formats.ragged_results import RaggedResults

if TYPE_CHECKING:
    import pandas as pd

SEQUENCES = "esm-pipeline/classes"
RESIDUES = "esm-pipeline/residue_classes"
P = "p"
REGRESSION = "regression"
SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"


class Classified:
    """What is stored of one record. `id`, `index` (place in the input) and `length` (residues)."""

    def __init__(self, results: Classes, position: int) -> None:
        self._results = results
        self._row = int(results.row[position])
        self.id = results.ids[position]
        self.index = int(results.index[position])
        self.length = int(results.length[self._row])

    def __repr__(self) -> str:
        return f"Classified(id={self.id!r}, index={self.index}, length={self.length})"

    @property
    def p(self) -> NDArray[np.float32]:
        """(K,) probabilities, or values of a regression; of residues (R, K)."""
        units: int | slice = self._row
        if self._results.per_residue:
            units = slice(*self._results.offset[self._row : self._row + 2])
        values: NDArray[np.float32] = self._results.file[P][units]
        return values


class Classes(RaggedResults[Classified]):
    """The records of a `classes.h5`."""

    format = SEQUENCES
    per_residue = False

    def item(self, position: int) -> Classified:
        """The record at a position among those that are stored."""
        return Classified(self, position)

    @cached_property
    def labels(self) -> list[str]:
        """The names of the K columns of `p`, in their order."""
        labels: list[str] = json.loads(self.attributes["labels"])
        return labels

    @property
    def problem(self) -> str:
        """What `p` is: the reference's `problem_type`."""
        return str(self.attributes["problem_type"])

    @property
    def columns(self) -> list[str]:
        """What the columns of `p` are called in a table."""
        if self.problem != REGRESSION:
            return [f"p.{label}" for label in self.labels]
        return ["value"] if len(self.labels) == 1 else [f"value.{label}" for label in self.labels]

    def to_pandas(self) -> pd.DataFrame:
        """A table: id, index, of residues position from 1, and the columns of `p`."""
        import pandas as pd

        tables = [pd.DataFrame(self.cells(item)) for item in self]
        names = ["id", "index", *(["position"] if self.per_residue else []), *self.columns]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=names)

    def cells(self, item: Classified) -> dict[str, Any]:
        """The rows of a record, by the names of columns."""
        p = np.atleast_2d(item.p)
        told: dict[str, Any] = {"id": [item.id] * len(p), "index": np.full(len(p), item.index)}
        if self.per_residue:
            told["position"] = np.arange(1, len(p) + 1)
        return {**told, **dict(zip(self.columns, p.T, strict=True))}


class ResidueClasses(Classes):
    """The records of a `residue_classes.h5`."""

    format = RESIDUES
    per_residue = True
