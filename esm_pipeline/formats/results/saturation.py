"""Reading a `saturation.h5`: scores of every substitution in every protein.

with open_results("saturation.h5") as results:
    results["P12345"].log_odds        # (R, 20), columns as in results.alphabet
    results.to_pandas()               # one row for each substitution
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from esm_pipeline.arrays import Float32
from esm_pipeline.formats.mutations import AMINO_ACIDS
from esm_pipeline.formats.results.attributes import text_attribute
from esm_pipeline.formats.results.part import FoundRecord
from esm_pipeline.formats.results.reader import RaggedResults, StoredRecord
from esm_pipeline.formats.results.validation import DatasetRule, letters_of, require

if TYPE_CHECKING:
    import pandas as pd

LOG_ODDS = "log_odds"
WILD_TYPE = "wild_type"


class SaturatedProtein(StoredRecord["Saturations"]):
    """The scores of one record; `length` counts the residues that were scored."""

    @property
    def sequence(self) -> str:
        """The wild type."""
        with self._part.reading():
            return letters_of(self._read(WILD_TYPE), WILD_TYPE)

    @property
    def log_odds(self) -> Float32:
        """(R, 20) log p(amino acid) - log p(wild type), natural logarithm; mean over the models."""
        return self._read(LOG_ODDS)

    @property
    def by_model(self) -> dict[str, Float32]:
        """Label of each model → (R, 20) its own scores; empty if there is only one model."""
        return {name: self._read(f"{LOG_ODDS}.{name}") for name in self._results.labels}

    def _read(self, name: str) -> NDArray[Any]:
        return self._part.values(name, "residue", self._row)


class Saturations(RaggedResults[SaturatedProtein]):
    """The records of a `saturation.h5`, or of the folder `saturation`."""

    format = "esm-pipeline/saturation"
    file_name = "saturation.h5"
    rules = (
        DatasetRule(rf"{LOG_ODDS}(\..*)?", "residue", (len(AMINO_ACIDS),), ("<f4",)),
        DatasetRule(WILD_TYPE, "residue", (), ("|S1",)),
    )

    @classmethod
    def check_more(cls, file: h5py.File, sizes: Mapping[str, int]) -> None:
        """The datasets are stored; alphabet and strategy are named."""
        for name in (LOG_ODDS, WILD_TYPE, *(f"{LOG_ODDS}.{label}" for label in labels_in(file))):
            require(isinstance(file.get(name), h5py.Dataset), name)
        if sorted(text_attribute(file, "alphabet")) != sorted(AMINO_ACIDS):
            raise ValueError("attribute 'alphabet' is not the 20 amino acids")
        text_attribute(file, "strategy")

    def record(self, found: FoundRecord) -> SaturatedProtein:
        """The record with its scores."""
        return SaturatedProtein(self, found)

    @property
    def alphabet(self) -> str:
        """The amino acids of the columns of `log_odds`."""
        return str(self.attributes["alphabet"])

    @property
    def strategy(self) -> str:
        """The strategy by which substitutions were scored."""
        return str(self.attributes["strategy"])

    @cached_property
    def labels(self) -> list[str]:
        """Labels of the models, if there are several."""
        return labels_in(self.parts[0].file)

    def to_pandas(self) -> pd.DataFrame:
        """A table with one row for each substitution; see `names`. It is held in memory."""
        import pandas as pd

        tables = [pd.DataFrame(self.columns(item)) for item in self]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=self.names)

    @property
    def names(self) -> list[str]:
        """Columns of a table of substitutions: id, index, position (from 1), mutant, the strategy.

        With several models, `{strategy}.{label}` of each follow.
        """
        each = [f"{self.strategy}.{label}" for label in self.labels]
        return ["id", "index", "position", "mutant", self.strategy, *each]

    def columns(self, item: SaturatedProtein) -> dict[str, Any]:
        """The substitutions of a record by column, without those of a residue by itself."""
        sequence = np.array(list(item.sequence))
        letters = np.array(list(self.alphabet))
        at, to = np.nonzero(sequence[:, None] != letters)
        pairs = zip(sequence[at].tolist(), (at + 1).tolist(), letters[to].tolist(), strict=True)
        values = [item.log_odds, *item.by_model.values()]
        columns = [
            [item.id] * len(at),
            np.full(len(at), item.index),
            at + 1,
            [f"{old}{place}{new}" for old, place, new in pairs],
            *(value[at, to] for value in values),
        ]
        return dict(zip(self.names, columns, strict=True))


def labels_in(file: h5py.File) -> list[str]:
    """Labels of the models whose scores are in a file, if there are several."""
    prefix = f"{LOG_ODDS}."
    return [name.removeprefix(prefix) for name in file if name.startswith(prefix)]
