"""One file of a result: its records and rows, read singly or in blocks, each checked as it is read.

A result of a large sample has a file for each bundle. What is checked needs no more than what is
read: opening a file takes milliseconds, and so does one record, whatever the number of records.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from esm_pipeline.arrays import Int32, Int64
from esm_pipeline.errors import InputError
from esm_pipeline.formats.protein_names import names_of
from esm_pipeline.formats.results.attributes import read_attributes
from esm_pipeline.formats.results.layout import BY_ID, BY_SEQUENCE, Per
from esm_pipeline.formats.results.lookup import Lookup, hashes_of, id_hash, sorted_keys
from esm_pipeline.formats.results.stored import StoredArray, first_place
from esm_pipeline.formats.results.validation import (
    DatasetRule,
    check_datasets,
    damaged_result,
    datasets,
    reading,
    require,
    texts_in,
)

HASHED_AT_ONCE = 1 << 14
"""Ids that are read at a time where a file has no lookup."""


class FoundRecord(NamedTuple):
    """A record of a file: the `row` there of its sequence, of `length` residues."""

    part: ResultPart
    id: str
    index: int  # type: ignore[assignment]  # hides tuple.index
    row: int
    length: int


class FoundId(NamedTuple):
    """The first record with an id, and whether others with it have different sequences."""

    position: int
    is_ambiguous: bool


class ResultPart:
    """A file with N records and U rows. Closes `file` if it is malformed: raises DamagedError.

    `check` looks at more than the `rules` and raises ValueError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        file: h5py.File,
        rules: Sequence[DatasetRule],
        check: Callable[[h5py.File, dict[str, int]], None],
    ) -> None:
        self.path, self._file = os.fspath(path), file
        self._arrays: dict[str, StoredArray] = {}
        try:
            with self.reading():
                self.sizes = check_datasets(file, rules)
                check(file, self.sizes)
        except BaseException:
            file.close()
            raise
        self.record_count, self.row_count = self.sizes["N"], self.sizes["U"]

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn errors of h5py and `require` into an InputError that names the file."""
        with reading(self.path):
            yield

    def close(self) -> None:
        """Close the file; arrays that were read stay usable."""
        self._file.close()

    @property
    def is_open(self) -> bool:
        """Whether the file is open."""
        return bool(self._file)

    @property
    def file(self) -> h5py.File:
        """The open file. Raises InputError once it is closed."""
        if not self._file:
            raise InputError(f"{self.path}: results are closed; open them again")
        return self._file

    @cached_property
    def told(self) -> dict[str, str]:
        """The attributes that all files of a result share, as text."""
        file = self.file
        with self.reading():
            found = {name: str(value) for name, value in read_attributes(file).items()}
        return {name: value for name, value in found.items() if name != "software"}

    @cached_property
    def arrays(self) -> dict[str, str]:
        """The arrays by name: their types, and the shapes of a value."""
        file = self.file
        with self.reading():
            return {
                name: f"{item.dtype.str}{list(item.shape[1:])}"
                for name, item in datasets(file)
                if name not in (*BY_ID, *BY_SEQUENCE)
            }

    def array(self, name: str) -> StoredArray:
        """A dataset whose header was checked."""
        if name not in self._arrays:
            self._arrays[name] = StoredArray(self.path, lambda: self.file, self.file[name])
        return self._arrays[name]

    def require(self, holds: Any, name: str) -> None:
        """Raise DamagedError that names a dataset unless a condition `holds`."""
        with self.reading():
            require(holds, name)

    def ids(self, first: int, stop: int) -> list[str]:
        """The ids of the records [first, stop)."""
        file = self.file
        with self.reading():
            return texts_in(file, self._id, first, stop)

    @cached_property
    def _id(self) -> h5py.Dataset:
        return self.file["id"]

    def rows(self, first: int, stop: int) -> Int64:
        """The rows of the records [first, stop)."""
        rows: Int64 = self.array("row")[first:stop]
        return self._checked(rows)

    def _checked(self, rows: Int64) -> Int64:
        if rows.size and not 0 <= rows.min() <= rows.max() < self.row_count:
            raise damaged_result(self.path, "its rows are not those of its records")
        return rows

    def lengths(self, rows: Int64) -> Int32:
        """The residues of some rows."""
        lengths: Int32 = self.array("length").at(rows)
        self.require((lengths > 0).all(), "length")
        return lengths

    def record(self, position: int) -> FoundRecord:
        """The record at a position, 0 to N - 1."""
        (name,), (row,) = self.ids(position, position + 1), self.rows(position, position + 1)
        index = int(self.array("index")[position])
        self.require(index >= 0, "index")
        return FoundRecord(self, name, index, int(row), self.length(int(row)))

    def length(self, row: int) -> int:
        """The residues of a row."""
        length = int(self.array("length")[row])
        self.require(length > 0, "length")
        return length

    def units(self, name: str, per: Per, row: int) -> slice:
        """Where the dataset `name`, with a value for each unit `per`, has those of a row."""
        if per == "sequence":
            return slice(row, row + 1)
        starts = self.array("offset" if per == "residue" else f"{name}_offset")
        first, stop = starts[row : row + 2].tolist()
        count = self.length(row) ** (1 if per == "residue" else 2)
        self.require(first >= 0 and stop - first == count, "offset")
        return slice(first, stop)

    def values(self, name: str, per: Per, row: int) -> NDArray[Any]:
        """The values of a row, one for each unit."""
        found: NDArray[Any] = self.array(name)[self.units(name, per, row)]
        return found

    def position_of_index(self, index: int) -> int | None:
        """The position of the record with an index, or None."""
        stored, last = self.array("index"), self.last_index
        if not 0 <= index <= last:
            return None
        place = first_place(stored, index, guess=index * self.record_count // (last + 1))
        return place if place < len(stored) and stored[place] == index else None

    @cached_property
    def last_index(self) -> int:
        """The largest index of a record; -1 without records."""
        return int(self.array("index")[self.record_count - 1]) if self.record_count else -1

    def first_from(self, index: int, low: int = 0, high: int | None = None) -> int:
        """The position, `low` to `high`, of the first record with this index or a larger one."""
        return bisect_left(self.array("index"), index, low, high)

    def find_id(self, name: str) -> FoundId | None:
        """The records with an id, or None."""
        return self._find(name, self._ids, lambda text: text == name)

    def find_name(self, name: str) -> FoundId | None:
        """The records with an accession or another name in their ids, or None.

        The first call reads all ids; some 12 bytes a name stay in memory.
        """
        return self._find(name, self._names, lambda text: name in names_of(text)[1:])

    def _find(self, name: str, lookup: Lookup, fits: Callable[[str], bool]) -> FoundId | None:
        key, found, row = id_hash(name), None, -1
        positions = self._records_of(lookup, key)
        rows = self._checked(self.array("row").at(positions))
        for position, own in zip(positions.tolist(), rows.tolist(), strict=True):
            if found is not None and own == row:
                continue
            (text,) = self.ids(position, position + 1)
            if not fits(text):
                self.require(lookup is not self._ids or id_hash(text) == key, BY_ID[0])
                continue
            if found is not None:
                return FoundId(found, is_ambiguous=True)
            found, row = position, own
        return None if found is None else FoundId(found, is_ambiguous=False)

    def with_sequence(self, digest: int) -> Int64:
        """The positions of the records whose sequence has a `sequence_digest`.

        Raises InputError if the file has no lookup of sequences.
        """
        if BY_SEQUENCE[0] not in self.file:
            raise InputError(
                f"{self.path}: has no digests of sequences, as files of earlier versions; use ids, "
                "or make it again"
            )
        lookup = Lookup(*map(self.array, BY_SEQUENCE))
        return self._records_of(lookup, digest)

    def _records_of(self, lookup: Lookup, key: int) -> Int64:
        positions = lookup.positions(key)
        inside = (positions >= 0) & (positions < self.record_count)
        self.require(inside.all(), "lookup")
        return positions

    @cached_property
    def _names(self) -> Lookup:
        hashes, positions = [np.empty(0, np.uint64)], array("i")
        for first in range(0, self.record_count, HASHED_AT_ONCE):
            stop = min(first + HASHED_AT_ONCE, self.record_count)
            names = [names_of(text)[1:] if "|" in text else [] for text in self.ids(first, stop)]
            hashes.append(hashes_of(name for some in names for name in some))
            for position, some in enumerate(names, first):
                positions.extend([position] * len(some))
        keys, order = sorted_keys(np.concatenate(hashes))
        return Lookup(keys, np.frombuffer(positions, np.intc)[order])

    @cached_property
    def _ids(self) -> Lookup:
        if BY_ID[0] in self.file:
            return Lookup(*map(self.array, BY_ID))
        edges = [*range(0, self.record_count, HASHED_AT_ONCE), self.record_count]
        blocks = [hashes_of(self.ids(*edge)) for edge in pairwise(edges)]
        return Lookup(*sorted_keys(np.concatenate([np.empty(0, np.uint64), *blocks])))
