"""Reading a result, record by record, by id or by index: the base of every kind of result."""

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
from numpy.typing import NDArray

from esm_pipeline.arrays import Int32, Int64
from esm_pipeline.errors import AmbiguousIdError, InputError
from esm_pipeline.formats.results.attributes import (
    read_attributes,
    require_version,
    text_attribute,
)
from esm_pipeline.formats.results.layout import Per, unit_starts
from esm_pipeline.formats.results.validation import (
    DatasetRule,
    check_datasets,
    damaged_result,
    open_hdf5,
    read_texts,
    reading,
    require,
)

FORMAT_PREFIX = "esm-pipeline/"
"""The attribute `format` of every result begins with it."""

Item = TypeVar("Item")
ResultsT = TypeVar("ResultsT", bound="RaggedResults[Any]")


class StoredRecord(Generic[ResultsT]):
    """One record of a result: its `id`, `index` (position in the input) and `length` in residues.

    Arrays are read from the file on access.
    """

    def __init__(self, results: ResultsT, position: int) -> None:
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

    `results[id]` and `results[index]` return a record, `in` tests whether there is one, and
    iteration yields all in input order. After closing, access to the file raises InputError.

    A subclass defines the `format` it reads, the usual `file_name` and the `rules` for its
    datasets, whose headers are checked when the file is opened. Lengths, offsets and rows are
    checked when they are first read. Malformed contents raise DamagedError.
    """

    format: ClassVar[str]
    file_name: ClassVar[str]
    rules: ClassVar[Sequence[DatasetRule]] = ()

    def __init__(self, path: str | os.PathLike[str], file: h5py.File) -> None:
        self.path, self._file = os.fspath(path), file
        try:
            with self.reading():
                self.sizes = check_datasets(file, self.rules)
                self.check_more()
        except BaseException:
            file.close()
            raise

    def check_more(self) -> None:
        """Check attributes and names of datasets, beyond the `rules`. Raises ValueError."""

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn errors of h5py and `require` into an InputError that names the file."""
        with reading(self.path):
            yield

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open a file of this kind. Raises InputError if it is of another kind, or damaged."""
        return open_kind(path, [cls])

    @abstractmethod
    def item(self, position: int) -> Item:
        """The record at a position, 0 to N - 1."""

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
        """Close the file; arrays that were read stay usable."""
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
        _ = self.file  # raises once the file is closed, whatever was read before
        if isinstance(key, str):
            return self.item(self._position_of_id(key))
        return self.item(self._position_of_index(operator.index(key)))

    def __contains__(self, key: object) -> bool:
        """Whether a record has `key` as its id or index; an ambiguous id is contained."""
        _ = self.file
        if isinstance(key, str):
            return key in self._positions
        try:
            return self._find(operator.index(key)) is not None  # type: ignore[arg-type]
        except TypeError:
            return False

    @property
    def attributes(self) -> dict[str, Any]:
        """How the file was made: model, revision, weights_sha256, dtype, software, …"""
        file = self.file
        with self.reading():
            return read_attributes(file)

    @cached_property
    def ids(self) -> list[str]:
        """The id of each record, in input order."""
        file = self.file
        with self.reading():
            return read_texts(file, "id")

    @cached_property
    def index(self) -> Int64:
        """(N,) each record's position in the input: with gaps where records were skipped."""
        index = np.asarray(self.file["index"][...], np.int64)
        with self.reading():
            require((index >= 0).all() and (index[1:] > index[:-1]).all(), "index")
        return index

    @cached_property
    def row(self) -> Int64:
        """(N,) the row of each record; records with the same sequence share a row."""
        rows, count = np.asarray(self.file["row"][...], np.int64), self.sizes["U"]
        if rows.size and not 0 <= rows.min() <= rows.max() < count:
            raise damaged_result(self.path, "its rows are not those of its records")
        with self.reading():
            require(np.bincount(rows, minlength=count).all(), "row")
        return rows

    @cached_property
    def length(self) -> Int32:
        """(U,) residues of each row."""
        lengths = np.asarray(self.file["length"][...], np.int32)
        with self.reading():
            require((lengths > 0).all(), "length")
        return lengths

    @cached_property
    def offset(self) -> Int64:
        """(U + 1,) where the residues of each row begin."""
        offset = np.asarray(self.file["offset"][...], np.int64)
        with self.reading():
            require(np.array_equal(offset, self.starts("residue")), "offset")
        return offset

    def starts(self, per: Per) -> Int64:
        """(U + 1,) where the units of each row begin, from the lengths. Raises DamagedError."""
        starts = unit_starts(self.length, per)
        with self.reading():
            require(starts.min() >= 0, "length")  # negative if their sum overflows 64 bits
        return starts

    def pairs_of(self, name: str) -> Int64:
        """(U + 1,) where the pairs of each row begin in dataset `name`. Raises DamagedError."""
        pairs = self.starts("pair")
        with self.reading():
            require(pairs[-1] == self.file[name].shape[0], name)
            require(np.array_equal(self.file[f"{name}_offset"][...], pairs), f"{name}_offset")
        return pairs

    def mapped(self, name: str) -> NDArray[Any]:
        """A dataset as a memory map, read on access."""
        dataset = self.file[name]
        offset = dataset.id.get_offset()
        if offset is None:  # no values
            return np.empty(dataset.shape, dataset.dtype)
        return np.memmap(self.path, dataset.dtype, "r", offset, dataset.shape)

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
                f"{self.path}: no record with id '{name}'; records.tsv has its outcome"
            )
        if name in self._ambiguous:
            first = self.index[self._positions[name]]
            raise AmbiguousIdError(
                f"{self.path}: id '{name}' names records with different sequences; use the index "
                f"of the one you mean, such as {first}"
            )
        return self._positions[name]

    def _position_of_index(self, index: int) -> int:
        position = self._find(index)
        if position is None:
            raise InputError(
                f"{self.path}: no record with index {index}; records.tsv has its outcome"
            )
        return position

    def _find(self, index: int) -> int | None:
        """The position of the record with `index`, or None."""
        position = int(np.searchsorted(self.index, index))
        if position == len(self.index) or self.index[position] != index:
            return None
        return position


ResultsType = TypeVar("ResultsType", bound=RaggedResults[Any])


def open_kind(path: str | os.PathLike[str], kinds: Sequence[type[ResultsType]]) -> ResultsType:
    """Open a result of one of `kinds`, by the attribute `format` of the file.

    Raises InputError if the file is missing, unreadable, of another kind or of a later version,
    DamagedError if it is not HDF5 or malformed.
    """
    *others, last = (kind.file_name for kind in kinds)
    names = f"{', '.join(others)} or {last}" if others else last
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{path}: not a file; give the path of {names}")
    file = open_hdf5(path)
    try:
        with reading(path):
            written = text_attribute(file, "format") if "format" in file.attrs else ""
            if not written.startswith(FORMAT_PREFIX):
                raise InputError(
                    f"{path}: an HDF5 file, but not of esm-pipeline; give the path of {names}"
                )
            kind = {kind.format: kind for kind in kinds}.get(written)
            if kind is None:
                raise InputError(f"{path}: holds {written!a}; give the path of {names}")
            require_version(path, file)
    except BaseException:
        file.close()
        raise
    return kind(path, file)
