"""Records of a ragged HDF5 file by id and by index; what every kind of result is read with."""

from __future__ import annotations

import operator
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from types import TracebackType
from typing import Any, ClassVar, Generic, Self, SupportsIndex, TypeVar

import h5py
import numpy as np

from esm_pipeline.arrays import Int32, Int64
from esm_pipeline.errors import AmbiguousIdError, InputError
from esm_pipeline.formats.results.validation import (
    Declared,
    check,
    damaged,
    judging,
    open_hdf5,
    read_attributes,
    read_ids,
    require_version,
    text_attribute,
)
from esm_pipeline.formats.results.writer import Per, require, unit_starts

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

    A subclass says which `format` it reads and which datasets are `declared` in it: these are
    checked when the file is opened, from its headers. Lengths, offsets and rows are checked when
    they are read, once. What does not fit raises DamagedError.
    """

    format: str
    declared: ClassVar[Sequence[Declared]] = ()

    def __init__(self, path: str | os.PathLike[str], file: h5py.File) -> None:
        self.path, self._file = os.fspath(path), file
        try:
            with self.judged():
                self.sizes = check(file, self.declared)
                self.check_more()
        except BaseException:
            file.close()
            raise

    def check_more(self) -> None:
        """Check what the datasets' headers do not tell: attributes, names. Raises ValueError."""

    @contextmanager
    def judged(self) -> Iterator[None]:
        """Turn what h5py and `require` raise into an InputError that names the file."""
        with judging(self.path):
            yield

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open a file of this kind. Raises InputError if it is another, or damaged."""
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
        _ = self.file
        return self.sizes["N"]

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
        file = self.file
        with self.judged():
            return read_attributes(file)

    @cached_property
    def ids(self) -> list[str]:
        """The id of each record, in input order."""
        file = self.file
        with self.judged():
            return read_ids(file)

    @cached_property
    def index(self) -> Int64:
        """(N,) the place of each record in the input: not all of 0, 1, … if some were skipped."""
        index = np.asarray(self.file["index"][...], np.int64)
        with self.judged():
            require((index >= 0).all() and (index[1:] > index[:-1]).all(), "index")
        return index

    @cached_property
    def row(self) -> Int64:
        """(N,) the row of each record; records with the same sequence share one."""
        rows, count = np.asarray(self.file["row"][...], np.int64), self.sizes["U"]
        if rows.size and not 0 <= rows.min() <= rows.max() < count:
            raise damaged(self.path, "its rows are not those of its records")
        with self.judged():
            require(np.bincount(rows, minlength=count).all(), "row")
        return rows

    @cached_property
    def length(self) -> Int32:
        """(U,) residues of each row."""
        lengths = np.asarray(self.file["length"][...], np.int32)
        with self.judged():
            require((lengths > 0).all(), "length")
        return lengths

    @cached_property
    def offset(self) -> Int64:
        """(U + 1,) where the residues of each row begin."""
        offset = np.asarray(self.file["offset"][...], np.int64)
        with self.judged():
            require(np.array_equal(offset, self.starts("residue")), "offset")
        return offset

    def starts(self, per: Per) -> Int64:
        """(U + 1,) where the units of each row begin, by the lengths. Raises DamagedError."""
        starts = unit_starts(self.length, per)
        with self.judged():
            require(starts.min() >= 0, "length")  # their sum is no number of 64 bits
        return starts

    def pairs_of(self, name: str) -> Int64:
        """(U + 1,) where the pairs of each row begin in dataset `name`. Raises DamagedError."""
        pairs = self.starts("pair")
        with self.judged():
            require(pairs[-1] == self.file[name].shape[0], name)
            require(np.array_equal(self.file[f"{name}_offset"][...], pairs), f"{name}_offset")
        return pairs

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

    Raises InputError if the file is missing, unreadable, of another format or a later version,
    DamagedError if it is no HDF5 or its format is no text.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{path}: not a file; give {A_RESULT}")
    file = open_hdf5(path)
    try:
        with judging(path):
            if "format" not in file.attrs or text_attribute(file, "format") not in FORMATS:
                raise InputError(f"{path}: an HDF5 file, but not of esm-pipeline; give {A_RESULT}")
            require_version(path, file)
    except BaseException:
        file.close()
        raise
    return file
