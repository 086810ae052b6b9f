"""Reading an `embeddings.h5`: representations of sequences and residues.

with open_results("embeddings.h5") as results:
    results["P12345"].mean[33]        # (D,) by id
    results[17].residue[33]           # (R, D) by index, the record's position in the input
    results.to_pandas()               # one row for each record
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

import h5py
from numpy.typing import NDArray

from esm_pipeline.arrays import Int64
from esm_pipeline.errors import InputError
from esm_pipeline.formats.results.reader import RaggedResults, StoredRecord
from esm_pipeline.formats.results.validation import DatasetRule, require

if TYPE_CHECKING:
    import pandas as pd

ARRAY_KINDS = ("mean", "bos", "residue", "contacts")
"""Names of what may be stored of a sequence."""

FIXED_SIZE = ("mean", "bos")
"""Those with one vector for each sequence, whatever its length."""


class Embedding(StoredRecord["Embeddings"]):
    """The representations of one record; `length` counts the residues that were embedded."""

    @property
    def mean(self) -> dict[int, NDArray[Any]]:
        """Layer → (D,) float32, mean over the residues."""
        return self._read("mean", self._row)

    @property
    def bos(self) -> dict[int, NDArray[Any]]:
        """Layer → (D,) float32, representation of the token before the first residue."""
        return self._read("bos", self._row)

    @property
    def residue(self) -> dict[int, NDArray[Any]]:
        """Layer → (R, D) float16 or float32, representation of each residue."""
        first, stop = self._results.offset[self._row : self._row + 2]
        return self._read("residue", slice(first, stop))

    @property
    def contacts(self) -> NDArray[Any]:
        """(R, R) float16, probability that two residues are in contact, 0 to 1."""
        dataset = self._results.stored("contacts")
        first, stop = self._results.pairs[self._row : self._row + 2]
        values: NDArray[Any] = dataset[first:stop].reshape(self.length, self.length)
        return values

    def _read(self, kind: str, units: int | slice) -> dict[int, NDArray[Any]]:
        group = self._results.stored(kind)
        return {layer: group[str(layer)][units] for layer in self._results.layers}


class Embeddings(RaggedResults[Embedding]):
    """The records of an `embeddings.h5`."""

    format = "esm-pipeline/embeddings"
    file_name = "embeddings.h5"
    rules = (
        DatasetRule(r"(mean|bos)/[0-9]{1,4}", "sequence", ("D",), ("<f4",)),
        DatasetRule(r"residue/[0-9]{1,4}", "residue", ("D",), ("<f2", "<f4")),
        DatasetRule("contacts", "pair", (), ("<f2",)),
    )

    def check_more(self) -> None:
        """Every kind has the same layers and nothing else."""
        for kind in {"mean", "bos", "residue"} & {*self.file}:
            require(isinstance(self.file[kind], h5py.Group), kind)
            names = sorted(self.file[kind])
            require(all(re.fullmatch("0|[1-9][0-9]{0,3}", name) for name in names), kind)
            require(names == sorted(map(str, self.layers)), kind)
        contacts = self.file.get("contacts")
        require(contacts is None or isinstance(contacts, h5py.Dataset), "contacts")

    def item(self, position: int) -> Embedding:
        """The record at a position, 0 to N - 1."""
        return Embedding(self, position)

    @cached_property
    def kinds(self) -> list[str]:
        """What is stored: some of `ARRAY_KINDS`."""
        return [kind for kind in ARRAY_KINDS if kind in self.file]

    @cached_property
    def layers(self) -> list[int]:
        """The stored layers; 0 is the embedding."""
        named = [kind for kind in self.kinds if kind != "contacts"]
        return sorted(map(int, self.file[named[0]])) if named else []

    @cached_property
    def pairs(self) -> Int64:
        """(U + 1,) where the residue pairs of each row begin."""
        return self.pairs_of("contacts")

    def stored(self, kind: str) -> Any:
        """The group or dataset of `kind`. Raises InputError if it was not stored."""
        if kind not in self.kinds:
            raise InputError(
                f"{self.path}: '{kind}' is not stored, only {', '.join(self.kinds)}; add '{kind}' "
                "to embed.include and run again"
            )
        return self.file[kind]

    def to_pandas(self, kind: str = "mean", layer: int = -1) -> pd.DataFrame:
        """A table with one row for each record: id, index, length, `{kind}_0` to `{kind}_{D-1}`.

        `kind` is mean or bos; `layer` is a stored layer, or -1 for the last one. Raises InputError
        for anything else.
        """
        import pandas as pd

        if kind not in FIXED_SIZE:
            raise InputError(f"'{kind}' has no single row for each record; choose mean or bos")
        group = self.stored(kind)
        layer = self.layers[-1] if layer == -1 else layer
        if layer not in self.layers:
            stored = ", ".join(map(str, self.layers))
            raise InputError(f"{self.path}: layer {layer} is not stored, only {stored}")
        values = group[str(layer)][...][self.row]  # (N, D)
        table = pd.DataFrame(
            values, columns=[f"{kind}_{place}" for place in range(values.shape[1])]
        )
        table.insert(0, "length", self.length[self.row])
        table.insert(0, "index", self.index)
        table.insert(0, "id", self.ids)
        return table
