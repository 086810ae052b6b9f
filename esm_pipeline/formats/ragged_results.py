"""Records of a ragged HDF5 file by id and by index; what every kind of result is read with."""

from __future__ import annotations

import operator
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from types import TracebackType
from typing import Any, Generic, Self, SupportsIndex, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from esm_pipeline.errors import AmbiguousIdError, InputError
from esm_pipeline.formats.hdf5 import FORMAT_VERSION, datasets

FORMATS = {
    "esm-pipeline/embeddings": "embeddings.h5",
    "esm-pipeline/saturation": "saturation.h5",
    "esm-pipeline/structures": "structures.h5",
    "esm-pipeline/classes": "classes.h5",
    "esm-pipeline/residue_classes": "residue_classes.h5",
}
"""What files say of themselves, and what they are called."""

A_RESULT = "an embeddings.h5, saturation.h5, classes.h5, residue_classes.h5 or structures.h5"
Item = TypeVar("Item")
Results = TypeVar("Results", bound="RaggedResults[Any]")


class StoredRecord(Generic[Results]):
    """What is stored of one record. Arrays are read when they are asked for.

    `id`, `index` (place in the input) and `length` (in residues).
    """

    def __init__(self, results: Results, position: int) -> None:
        self._results = results
        self._row = int(results.row[position])
        self.id = results.ids[position]
        self.index = int(results.index[position])
        self.length = int(results.length[self._row])

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"{name}(id={self.id!r}, index={self.index}, length={self.length})"


class RaggedResults(ABC, Generic[Item]):
    """The records of a result; see `open_results`.

    `results[id]` and `results[index]` give a record, `in` tells whether there is one; iteration
    gives all, in input order. Once closed, what needs the file raises InputError.
    """

    format: str

    def __init__(self, path: str | os.PathLike[str], file: h5py.File) -> None:
        self.path, self._file = os.fspath(path), file

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open a file of this kind. Raises InputError if it is another."""
        file = open_file(path)
        if file.attrs["format"] != cls.format:
            file.close()
            raise InputError(f"{path}: not of the kind of {FORMATS[cls.format]}; check the path")
        return cls(path, file)

    @abstractmethod
    def item(self, position: int) -> Item:
        """The record at a position among those that are stored."""

    def __enter__(self) -> Self:
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

    def __iter__(self) -> Iterator[Item]:
        return (self.item(position) for position in range(len(self)))

    def __getitem__(self, key: str | SupportsIndex) -> Item:
        _ = self.file  # whatever was read before, a closed file has no items
        if isinstance(key, str):
            return self.item(self._position_of_id(key))
        return self.item(self._position_of_index(operator.index(key)))

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


def open_file(path: str | os.PathLike[str]) -> h5py.File:
    """Open any of the results for reading.

    Raises InputError if the file is missing, unreadable, no HDF5, of another format or a later
    version.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{path}: not a file; give {A_RESULT}")
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
    return file


def require_ours(path: str | os.PathLike[str], file: h5py.File) -> None:
    """Raise InputError unless `file` is of one of the formats, and all of it in one file."""
    found, version = file.attrs.get("format"), file.attrs.get("format_version", 0)
    if not isinstance(found, str) or found not in FORMATS:
        raise InputError(f"{path}: an HDF5 file, but not of esm-pipeline; give {A_RESULT}")
    if version > FORMAT_VERSION:
        raise InputError(
            f"{path}: format version {version}, newer than this esm-pipeline; update it"
        )
    try:
        _ = dict(datasets(file))
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: {error}; give {A_RESULT} as it was written") from None
