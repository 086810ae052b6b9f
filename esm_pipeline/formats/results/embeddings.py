"""Reading an `embeddings.h5`: representations of sequences and residues.

with open_results("embeddings.h5") as results:
    results["P12345"].mean[33]        # (D,) by id
    results[17].residue[33]           # (R, D) by index, the record's position in the input
    results.by_sequence("MKV")        # all records with a sequence
    results.matrix()[:100]            # (100, D) of the first records
    results.to_pandas()               # one row for each record
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray

from esm_pipeline.arrays import Float32
from esm_pipeline.errors import InputError, brief, setting
from esm_pipeline.formats.results.layout import Per
from esm_pipeline.formats.results.matrix import RecordMatrix
from esm_pipeline.formats.results.nearest import Metric, Neighbour, nearest_rows
from esm_pipeline.formats.results.part import FoundRecord
from esm_pipeline.formats.results.reader import RaggedResults, StoredRecord
from esm_pipeline.formats.results.validation import DatasetRule, require

if TYPE_CHECKING:
    import pandas as pd

ResidueArray: TypeAlias = NDArray[np.float16] | Float32

ARRAY_KINDS = ("mean", "bos", "residue", "contacts")
"""Names of what may be stored of a sequence."""

FixedKind: TypeAlias = Literal["mean", "bos"]
FIXED_SIZE: tuple[FixedKind, ...] = ("mean", "bos")
"""Those with one vector for each sequence, whatever its length."""

LAYERED = (*FIXED_SIZE, "residue")
"""Those with an array for each layer."""


class LayerArrays(dict[int, NDArray[Any]]):
    """Layer → array of one record; -1 is the last stored layer.

    Raises InputError for a layer that is not stored.
    """

    def __init__(self, path: str, arrays: Mapping[int, NDArray[Any]]) -> None:
        super().__init__(arrays)
        self._path = path

    def __missing__(self, layer: object) -> NDArray[Any]:
        if layer == -1:
            return self[max(self)]
        raise layer_missing(self._path, layer, self)


def layer_missing(path: str, layer: object, stored: Iterable[int]) -> InputError:
    """The error of a layer that is not among the `stored` ones."""
    known = ", ".join(map(str, stored))
    return InputError(f"{path}: layer {brief(layer)} is not stored, only {known}")


class Embedding(StoredRecord["Embeddings"]):
    """The representations of one record; `length` counts the residues that were embedded.

    Of the layers, -1 is the last one, as elsewhere.
    """

    @property
    def mean(self) -> dict[int, Float32]:
        """Layer → (D,) float32, mean over the residues."""
        return self._read("mean", "sequence")

    @property
    def bos(self) -> dict[int, Float32]:
        """Layer → (D,) float32, representation of the token before the first residue."""
        return self._read("bos", "sequence")

    @property
    def residue(self) -> dict[int, ResidueArray]:
        """Layer → (R, D) float16 or float32, representation of each residue."""
        return self._read("residue", "residue")

    @property
    def contacts(self) -> NDArray[np.float16]:
        """(R, R) float16, probability that two residues are in contact, 0 to 1."""
        self._results.require_stored("contacts")
        flat = self._part.values("contacts", "pair", self._row)
        return flat.reshape(self.length, self.length)

    def _read(self, kind: str, per: Per) -> dict[int, NDArray[Any]]:
        self._results.require_stored(kind)
        found = {
            layer: self._part.values(f"{kind}/{layer}", per, self._row)
            for layer in self._results.layers
        }
        arrays = {layer: one[0] if per == "sequence" else one for layer, one in found.items()}
        return LayerArrays(self._results.path, arrays)


class Embeddings(RaggedResults[Embedding]):
    """The records of an `embeddings.h5`, or of the folder `embeddings`."""

    format = "esm-pipeline/embeddings"
    file_name = "embeddings.h5"
    rules = (
        DatasetRule(r"(mean|bos)/[0-9]{1,4}", "sequence", ("D",), ("<f4",)),
        DatasetRule(r"residue/[0-9]{1,4}", "residue", ("D",), ("<f2", "<f4")),
        DatasetRule("contacts", "pair", (), ("<f2",)),
    )

    @classmethod
    def check_more(cls, file: h5py.File, sizes: Mapping[str, int]) -> None:
        """Every kind has the same layers and nothing else."""
        layers = None
        for kind in LAYERED:
            if kind in file:
                require(isinstance(file[kind], h5py.Group), kind)
                names = sorted(file[kind])
                require(all(re.fullmatch("0|[1-9][0-9]{0,3}", name) for name in names), kind)
                require(layers in (None, names), kind)
                layers = names
        contacts = file.get("contacts")
        require(contacts is None or isinstance(contacts, h5py.Dataset), "contacts")

    def facts(self) -> list[str]:
        """What is stored, of which layers, and the model."""
        layers = [f"layers {', '.join(map(str, self.layers))}"] if self.layers else []
        return [", ".join(self.kinds), *layers, *super().facts()]

    def record(self, found: FoundRecord) -> Embedding:
        """The record with its representations."""
        return Embedding(self, found)

    @cached_property
    def kinds(self) -> list[str]:
        """What is stored: some of `ARRAY_KINDS`."""
        file = self.parts[0].file
        return [kind for kind in ARRAY_KINDS if kind in file]

    @cached_property
    def layers(self) -> list[int]:
        """The stored layers; 0 is the embedding."""
        named = [kind for kind in self.kinds if kind in LAYERED]
        return sorted(map(int, self.parts[0].file[named[0]])) if named else []

    def stored(self, kind: str) -> Any:
        """The group or dataset of `kind` in the only file.

        Raises InputError if it was not stored, or there are several files.
        """
        self.require_stored(kind)
        return self.file[kind]

    def require_stored(self, kind: str) -> None:
        """Raise InputError unless `kind` was stored."""
        if kind not in self.kinds:
            raise InputError(
                f"{self.path}: '{kind}' is not stored, only {', '.join(self.kinds)}; add '{kind}' "
                f"to {setting('embed.include')} and run again"
            )

    def matrix(self, kind: FixedKind = "mean", layer: int = -1) -> RecordMatrix:
        """(N, D) one representation of each record, in input order, read as it is asked for.

        `kind` is mean or bos; `layer` is a stored layer, or -1 for the last one. Raises InputError
        for anything else.
        """
        if kind not in FIXED_SIZE:
            raise InputError(f"'{kind}' has no single row for each record; choose mean or bos")
        self.require_stored(kind)
        layer = self.layers[-1] if layer == -1 else layer
        if layer not in self.layers:
            raise layer_missing(self.path, layer, self.layers)
        return RecordMatrix(self, f"{kind}/{layer}")

    def nearest(
        self,
        query: str | int | ArrayLike,
        k: int = 10,
        *,
        metric: Metric = "cosine",
        kind: FixedKind = "mean",
        layer: int = -1,
    ) -> list[Neighbour]:
        """The `k` records whose vectors are nearest to that of `query`, the nearest first.

        `query`: the id or index of a record, which is not among them, or a vector (D,). `metric`:
        cosine, for the largest similarity, or euclidean, for the smallest distance; see `matrix`
        for `kind` and `layer`. Every vector is compared, block by block: memory is some 200 MiB,
        whatever the number of records. Raises InputError for a query that cannot be used.
        """
        matrix = self.matrix(kind, layer)
        own = self[query] if isinstance(query, str | int | np.integer) else None
        stored = self.layers[-1] if layer == -1 else layer
        vector = query if own is None else getattr(own, kind)[stored]
        found = nearest_rows(matrix, vector, k, metric, own.index if own else None)
        neighbours = []
        for place, similarity, distance in found:
            one = self.item(place)
            neighbours.append(Neighbour(one.id, one.index, similarity, distance))
        return neighbours

    def to_pandas(self, kind: FixedKind = "mean", layer: int = -1) -> pd.DataFrame:
        """A table with one row for each record: id, index, length, `{kind}_0` to `{kind}_{D-1}`.

        It is held in memory; see `matrix` for `kind` and `layer`, and for less than all of it.
        """
        import pandas as pd

        values = np.asarray(self.matrix(kind, layer))
        table = pd.DataFrame(
            values, columns=[f"{kind}_{place}" for place in range(values.shape[1])]
        )
        table.insert(0, "length", self.length[self.row])
        table.insert(0, "index", self.index)
        table.insert(0, "id", self.ids)
        return table
