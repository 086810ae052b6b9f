"""Reading what a task wrote, record by record or as a table; nothing is loaded before it is asked.

with open_results("embeddings.h5") as results:
    results["P12345"].mean[33]        # (D,) by id
    results[17].residue[33]           # (R, D) by index, the record's place in the input
    results.to_pandas()               # one row a record
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, SupportsIndex

import h5py
import numpy as np
from numpy.typing import NDArray

from esm_pipeline.errors import AmbiguousIdError, InputError
from esm_pipeline.formats.hdf5 import FORMAT_VERSION, datasets

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "esm-pipeline/embeddings"
Values = NDArray[Any]


class Embedding:
    """What is stored of one record. Arrays are read when they are asked for.

    `id`, `index` (place in the input) and `length` (residues that were embedded).
    """

    def __init__(self, results: Embeddings, position: int) -> None:
        self._results = results
        self._row = int(results.row[position])
        self.id = results.ids[position]
        self.index = int(results.index[position])
        self.length = int(results.length[self._row])

    def __repr__(self) -> str:
        return f"Embedding(id={self.id!r}, index={self.index}, length={self.length})"

    @property
    def mean(self) -> dict[int, Values]:
        """Layer → (D,) float32, the mean over the residues."""
        return self._read("mean", self._row)

    @property
    def bos(self) -> dict[int, Values]:
        """Layer → (D,) float32, the representation of the token before the first residue."""
        return self._read("bos", self._row)

    @property
    def residue(self) -> dict[int, Values]:
        """Layer → (R, D) float16 or float32, a representation for each residue."""
        first, stop = self._results.offset[self._row : self._row + 2]
        return self._read("residue", slice(first, stop))

    @property
    def contacts(self) -> Values:
        """(R, R) float16, the probability that two residues are in contact, 0 to 1."""
        dataset = self._results.stored("contacts")
        first, stop = self._results.file["contacts_offset"][self._row : self._row + 2]
        values: Values = dataset[first:stop].reshape(self.length, self.length)
        return values

    def _read(self, kind: str, units: int | slice) -> dict[int, Values]:
        group = self._results.stored(kind)
        return {layer: group[str(layer)][units] for layer in self._results.layers}


class Embeddings:
    """The records of an `embeddings.h5`; see `open_results`.

    `results[id]` and `results[index]` give an `Embedding`, `in` tells whether there is one;
    iteration gives all, in input order. Once closed, what needs the file raises InputError.
    """

    def __init__(self, path: str | os.PathLike[str], file: h5py.File) -> None:
        self.path, self._file = os.fspath(path), file

    def __enter__(self) -> Embeddings:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what was read stays usable."""
        self._file.close()

    @property
    def file(self) -> h5py.File:
        """The open file. Raises InputError once it is closed."""
        if not self._file:
            raise InputError(f"{self.path}: results are closed; open them again")
        return self._file

    def __len__(self) -> int:
        return int(self.file["id"].shape[0])

    def __iter__(self) -> Iterator[Embedding]:
        return (Embedding(self, position) for position in range(len(self)))

    def __getitem__(self, key: str | SupportsIndex) -> Embedding:
        _ = self.file  # whatever was read before, a closed file has no items
        if isinstance(key, str):
            return Embedding(self, self._position_of_id(key))
        return Embedding(self, self._position_of_index(operator.index(key)))

    def __contains__(self, key: object) -> bool:
        """Whether a record has `key` as its id, or as its index; an ambiguous id is contained."""
        _ = self.file
        if isinstance(key, str):
            return key in self._positions
        try:
            return self._place(operator.index(key)) is not None  # type: ignore[arg-type]
        except TypeError:
            return False

    @property
    def attributes(self) -> dict[str, Any]:
        """How the file was made: model, revision, weights_sha256, dtype, software, …"""
        return dict(self.file.attrs)

    @cached_property
    def ids(self) -> list[str]:
        """The id of each record, in input order."""
        ids: list[str] = self.file["id"].asstr()[...].tolist()
        return ids

    @cached_property
    def index(self) -> NDArray[np.int64]:
        """(N,) the place of each record in the input: not all of 0, 1, … if some were skipped."""
        return np.asarray(self.file["index"][...], np.int64)

    @cached_property
    def row(self) -> NDArray[np.int64]:
        """(N,) the row of each record; records with the same sequence share one."""
        rows = np.asarray(self.file["row"][...], np.int64)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self.length):
            raise InputError(f"{self.path}: its rows are not those of its records; make it again")
        return rows

    @cached_property
    def length(self) -> NDArray[np.int32]:
        """(U,) residues of each row."""
        return np.asarray(self.file["length"][...], np.int32)

    @cached_property
    def offset(self) -> NDArray[np.int64]:
        """(U + 1,) where the residues of each row begin."""
        return np.asarray(self.file["offset"][...], np.int64)

    @cached_property
    def kinds(self) -> list[str]:
        """What is stored: some of mean, bos, residue, contacts."""
        return [kind for kind in ("mean", "bos", "residue", "contacts") if kind in self.file]

    @cached_property
    def layers(self) -> list[int]:
        """The layers that are stored, 0 being the embedding."""
        named = [kind for kind in self.kinds if kind != "contacts"]
        return sorted(map(int, self.file[named[0]])) if named else []

    def stored(self, kind: str) -> Any:
        """The group or dataset of `kind`. Raises InputError if it was not stored."""
        if kind not in self.kinds:
            raise InputError(
                f"{self.path}: '{kind}' is not stored, only {', '.join(self.kinds)}; add '{kind}' "
                "to embed.include and run again"
            )
        return self.file[kind]

    def to_pandas(self, kind: str = "mean", layer: int = -1) -> pd.DataFrame:
        """A table with one row a record: id, index, length, then `{kind}_0` to `{kind}_{D-1}`.

        `kind` is mean or bos; `layer` is one that is stored, -1 the last of them. Raises InputError
        for anything else.
        """
        import pandas as pd

        if kind not in ("mean", "bos"):
            raise InputError(f"'{kind}' has no single row a record; choose mean or bos")
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

    @cached_property
    def _positions(self) -> dict[str, int]:
        """Id → position of its first record."""
        backwards = zip(reversed(self.ids), range(len(self) - 1, -1, -1), strict=True)
        return dict(backwards)

    @cached_property
    def _ambiguous(self) -> set[str]:
        first = map(self._positions.__getitem__, self.ids)
        rows = self.row[np.fromiter(first, np.int64, len(self))]
        return {self.ids[position] for position in np.flatnonzero(rows != self.row)}

    def _position_of_id(self, name: str) -> int:
        if name not in self._positions:
            raise InputError(
                f"{self.path}: no record with id '{name}'; records.tsv tells what became of it"
            )
        if name in self._ambiguous:
            first = self.index[self._positions[name]]
            raise AmbiguousIdError(
                f"{self.path}: id '{name}' names records with different sequences; use the index "
                f"of the one you mean, such as {first}"
            )
        return self._positions[name]

    def _position_of_index(self, index: int) -> int:
        position = self._place(index)
        if position is None:
            raise InputError(
                f"{self.path}: no record with index {index}; records.tsv tells what became of it"
            )
        return position

    def _place(self, index: int) -> int | None:
        """The position of the record with `index`, None if there is none."""
        position = int(np.searchsorted(self.index, index))
        if position == len(self.index) or self.index[position] != index:
            return None
        return position


def open_results(path: str | os.PathLike[str]) -> Embeddings:
    """Open an `embeddings.h5` for reading. A context manager; `len` is the number of records.

    Raises InputError if the file is missing, unreadable, no HDF5, of another format or a later
    version.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{path}: not a file; give an embeddings.h5")
    try:
        file = h5py.File(path, "r")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read as HDF5 ({why}); check the file") from None
    try:
        require_ours(path, file)
    except InputError:
        file.close()
        raise
    return Embeddings(path, file)


def require_ours(path: str | os.PathLike[str], file: h5py.File) -> None:
    """Raise InputError unless `file` is of this format, and all of it in one file."""
    found, version = file.attrs.get("format"), file.attrs.get("format_version", 0)
    if not isinstance(found, str) or found != FORMAT:
        raise InputError(f"{path}: an HDF5 file, but not of esm-pipeline; give an embeddings.h5")
    if version > FORMAT_VERSION:
        raise InputError(
            f"{path}: format version {version}, newer than this esm-pipeline; update it"
        )
    try:
        _ = dict(datasets(file))
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: {error}; give an embeddings.h5 as it was written") from None
