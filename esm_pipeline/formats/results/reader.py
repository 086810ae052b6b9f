"""Reading a result, record by record, by id or by index: the base of every kind of result."""

from __future__ import annotations

import difflib
import operator
import os
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from itertools import accumulate, chain
from operator import attrgetter
from types import TracebackType
from typing import Any, ClassVar, Generic, Self, SupportsIndex, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from esm_pipeline.arrays import Int32, Int64
from esm_pipeline.errors import AmbiguousIdError, InputError, brief, number_of
from esm_pipeline.formats.protein_names import names_of
from esm_pipeline.formats.results.attributes import (
    read_attributes,
    require_version,
    text_attribute,
)
from esm_pipeline.formats.results.layout import unit_starts
from esm_pipeline.formats.results.lookup import sequence_digest
from esm_pipeline.formats.results.part import FoundId, FoundRecord, ResultPart
from esm_pipeline.formats.results.record_order import RecordBlock, in_input_order
from esm_pipeline.formats.results.result_files import alternatives, files_of_result
from esm_pipeline.formats.results.validation import DatasetRule, open_hdf5, reading

FORMAT_PREFIX = "esm-pipeline/"
"""The attribute `format` of every result begins with it."""

RECORDS_READ = 1 << 16
"""Records that are read at a time when all of them are."""

MOST_COMPARED = 2_000
"""Records among whose ids a similar one is searched for; more would take too long."""

READ_FIRST = 256
"""Those of the first block: who looks at some records does not wait for many."""

SEE_RECORDS = (
    "if it was in the input, its row in the table of records (records.tsv) says why there are none"
)
"""What to do about a record without results."""

Item = TypeVar("Item")
ResultsT = TypeVar("ResultsT", bound="RaggedResults[Any]")


class StoredRecord(Generic[ResultsT]):
    """One record of a result: its `id`, `index` (position in the input) and `length` in residues.

    Arrays are read from the file on access.
    """

    def __init__(self, results: ResultsT, found: FoundRecord) -> None:
        self._results, self._part, self._row = results, found.part, found.row
        self.id, self.index, self.length = found.id, found.index, found.length

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"{name}(id={self.id!r}, index={self.index}, length={self.length})"


class RaggedResults(ABC, Generic[Item]):
    """The records of a result, in one file or in one for each bundle; see `open_results`.

    `results[id]` and `results[index]` return a record, `in` tests whether there is one, and
    iteration yields all in input order. None of them reads more than it needs: finding a record
    takes milliseconds and no memory to speak of. What is no id may be a name in one, such as the
    accession in `sp|P62593|BLAT_ECOLX`: the first such name makes all ids be read, once. After
    closing, access to the file raises InputError.

    A subclass defines the `format` it reads, the usual `file_name` and the `rules` for its
    datasets, whose headers are checked when the file is opened. Lengths, offsets and rows are
    checked when they are first read. Malformed contents raise DamagedError.
    """

    format: ClassVar[str]
    file_name: ClassVar[str]
    rules: ClassVar[Sequence[DatasetRule]] = ()

    def __init__(self, path: str | os.PathLike[str], parts: Sequence[ResultPart]) -> None:
        self.path, self.parts = os.fspath(path), parts
        self._row_starts = [0, *accumulate(part.row_count for part in parts)]

    @classmethod
    def check_more(cls, file: h5py.File, sizes: Mapping[str, int]) -> None:
        """Check attributes and names of datasets, beyond the `rules`. Raises ValueError."""

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open a result of this kind: a file or folder, as `open_results` takes it.

        Raises InputError if it is of another kind, or damaged.
        """
        return open_kind(path, [cls])

    @abstractmethod
    def record(self, found: FoundRecord) -> Item:
        """The record with the values that belong to it."""

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
        """Close the files; arrays that were read stay usable."""
        for part in self.parts:
            part.close()

    @property
    def one(self) -> ResultPart:
        """The file of the results. Raises InputError if there are several."""
        if len(self.parts) > 1:
            raise InputError(
                f"{self.path}: has {len(self.parts):,} files, one for each bundle, which this "
                f"cannot read together; open one of them, such as {self.parts[0].path}"
            )
        return self.parts[0]

    @property
    def file(self) -> h5py.File:
        """The open file. Raises InputError once it is closed, or if there are several."""
        return self.one.file

    def reading(self) -> AbstractContextManager[None]:
        """Turn errors of h5py and `require` into an InputError that names the first file."""
        return self.parts[0].reading()

    def __repr__(self) -> str:
        name = type(self).__name__
        if not self.parts[0].is_open:
            return f"<{name}: {self.path}, closed>"
        different = number_of(self._row_starts[-1], "different sequence")
        facts = [number_of(len(self), "record"), different]
        if len(self.parts) > 1:
            facts.append(f"{len(self.parts):,} files")
        return f"<{name}: {', '.join([*facts, *self.facts()])}>"

    def facts(self) -> list[str]:
        """What else is worth to know at a glance, such as the model."""
        model = self.attributes.get("model")
        return [f"model {model}"] if model else []

    def keys(self) -> list[str]:
        """The ids of all records, in input order: the same as `ids`."""
        return self.ids

    def __len__(self) -> int:
        _ = self.parts[0].file
        return sum(part.record_count for part in self.parts)

    def __iter__(self) -> Iterator[Item]:
        _ = self.parts[0].file
        few = min(READ_FIRST, len(self))
        blocks = chain(self.blocks(READ_FIRST, 0, few), self.blocks(RECORDS_READ, few))
        return (self.record(found) for block in self._checked(blocks) for found in block.records())

    def blocks(self, size: int, first: int = 0, stop: int | None = None) -> Iterator[RecordBlock]:
        """The records at the positions [first, stop), in blocks of `size`, in input order."""
        return in_input_order(self.parts, first, len(self) if stop is None else stop, size)

    def _checked(self, blocks: Iterable[RecordBlock]) -> Iterator[RecordBlock]:
        """The same blocks of all records. Raises DamagedError at the end if a row has no record."""
        used = np.zeros(self._row_starts[-1], np.bool_)
        for block in blocks:
            used[block.rows(self._row_starts)] = True
            yield block
        for part, first in zip(self.parts, self._row_starts[:-1], strict=True):
            part.require(used[first : first + part.row_count].all(), "row")

    def item(self, position: int) -> Item:
        """The record at a position, 0 to N - 1."""
        (block,) = self.blocks(1, position, position + 1)
        (found,) = block.records()
        return self.record(found)

    def __getitem__(self, key: str | SupportsIndex) -> Item:
        _ = self.parts[0].file  # raises once the file is closed, whatever was read before
        if isinstance(key, str):
            return self.record(self._with_id(key))
        try:
            index = operator.index(key)
        except TypeError:
            raise InputError(
                f"{self.path}: {brief(key)} is neither an id nor an index; give one record at a "
                "time, or iterate over all"
            ) from None
        return self.record(self._with_index(index))

    def __contains__(self, key: object) -> bool:
        """Whether a record has `key` as its id, a name in it, or its index; also if several do."""
        _ = self.parts[0].file
        if isinstance(key, str):
            return bool(self._parts_with(key))
        try:
            index = operator.index(key)  # type: ignore[arg-type]
        except TypeError:
            return False
        return any(part.position_of_index(index) is not None for part in self.parts)

    def by_sequence(self, sequence: str) -> list[Item]:
        """All records with a sequence, in input order; of a truncated one, the whole sequence.

        White space is ignored, small letters are taken as capital ones. Raises InputError if there
        is no such record, or the file was written without digests of sequences.
        """
        letters = "".join(sequence.split()).upper()
        digest = sequence_digest(letters.encode("utf-8", "surrogatepass"))
        found = [
            part.record(position)
            for part in self.parts
            for position in part.with_sequence(digest).tolist()
        ]
        if not found:
            raise InputError(
                f"{self.path}: no record with the sequence {brief(sequence)}; records.tsv has the "
                "digests of all sequences, as they were cleaned"
            )
        return [self.record(one) for one in sorted(found, key=attrgetter("index"))]

    @property
    def attributes(self) -> dict[str, object]:
        """How the file was made: model, revision, weights_sha256, dtype, software, …"""
        part = self.parts[0]
        file = part.file
        with part.reading():
            return read_attributes(file)

    @cached_property
    def ids(self) -> list[str]:
        """The id of each record, in input order."""
        return [name for block in self.blocks(RECORDS_READ) for name in block.ids()]

    @cached_property
    def index(self) -> Int64:
        """(N,) each record's position in the input: with gaps where records were skipped."""
        return joined_arrays([block.index for block in self.blocks(RECORDS_READ)], np.int64)

    @cached_property
    def row(self) -> Int64:
        """(N,) the row of each record; records with the same sequence share a row.

        The rows of several files follow each other.
        """
        blocks = self._checked(self.blocks(RECORDS_READ))
        return joined_arrays([block.rows(self._row_starts) for block in blocks], np.int64)

    @cached_property
    def length(self) -> Int32:
        """(U,) residues of each row."""
        found = []
        for part in self.parts:
            found.append(part.array("length")[:])
            part.require((found[-1] > 0).all(), "length")
        return joined_arrays(found, np.int32)

    @cached_property
    def offset(self) -> Int64:
        """(U + 1,) where the residues of each row begin."""
        offset, part = unit_starts(self.length, "residue"), self.parts[0]
        part.require(offset.min() >= 0, "length")  # negative if their sum overflows 64 bits
        for part, first in zip(self.parts, self._row_starts, strict=False):
            own = offset[first : first + part.row_count + 1]
            part.require(np.array_equal(part.array("offset")[:], own - own[0]), "offset")
        return offset

    def mapped(self, name: str) -> NDArray[Any]:
        """A dataset of the only file as a memory map, read on access."""
        part = self.one
        dataset = part.file[name]
        offset = dataset.id.get_offset()
        if offset is None:  # no values
            return np.empty(dataset.shape, dataset.dtype)
        return np.memmap(part.path, dataset.dtype, "r", offset, dataset.shape)

    def located(self, row: int) -> tuple[ResultPart, int]:
        """The file that has a row, and the row there."""
        number = bisect_right(self._row_starts, row) - 1
        return self.parts[number], row - self._row_starts[number]

    def _parts_with(self, name: str) -> list[tuple[ResultPart, FoundId]]:
        """The files that have an id or, if none has, a name in an id."""
        found = [(part, one) for part in self.parts if (one := part.find_id(name))]
        return found or [(part, one) for part in self.parts if (one := part.find_name(name))]

    def _with_id(self, name: str) -> FoundRecord:
        found = self._parts_with(name)
        records = [part.record(one.position) for part, one in found]
        if not records:
            near = self._near(name)
            if near is not None:
                raise InputError(f"{self.path}: no record with id '{name}'; did you mean {near!a}?")
            raise InputError(f"{self.path}: no record with id '{name}' has results; {SEE_RECORDS}")
        if len(found) > 1 or found[0][1].is_ambiguous:
            raise AmbiguousIdError(
                f"{self.path}: id '{name}' names records with different sequences; use the index "
                f"of the one you mean, such as {min(record.index for record in records)}"
            )
        return records[0]

    def _near(self, name: str) -> str | None:
        """The id, or the name in an id, that is most similar to an unknown one, if any is."""
        if len(self) > MOST_COMPARED:
            return None
        names = {one.lower(): one for text in self.ids for one in names_of(text)}
        near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.75)
        return names[near[0]] if near else None

    def _with_index(self, index: int) -> FoundRecord:
        for part in self.parts:
            position = part.position_of_index(index)
            if position is not None:
                return part.record(position)
        remedy = SEE_RECORDS if index >= 0 else "an index is a position in the input, from 0"
        raise InputError(f"{self.path}: no record with index {index} has results; {remedy}")


def joined_arrays(arrays: list[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    """Arrays of `dtype` one after the other; there may be none."""
    return np.concatenate([np.empty(0, dtype), *arrays])


ResultsType = TypeVar("ResultsType", bound=RaggedResults[Any])


def open_kind(path: str | os.PathLike[str], kinds: Sequence[type[ResultsType]]) -> ResultsType:
    """Open a result of one of `kinds`, by the attribute `format` of its file or files.

    `path` is a file, or a folder as `files_of_result` takes it. Raises InputError if a file is
    missing, unreadable, of another kind or of a later version, or the files of a folder do not
    belong together; DamagedError if one is not HDF5 or malformed.
    """
    names = [kind.file_name for kind in kinds]
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise InputError(f"{path}: not a file; give the path of {alternatives(names)}")
    files = files_of_result(path, names) if os.path.isdir(path) else [os.fspath(path)]
    parts: list[ResultPart] = []
    try:
        for file in files:
            kind, part = open_part(file, kinds)
            parts.append(part)
            if len(parts) == 1:
                first = kind
            require_alike(parts[0], part)
    except BaseException:
        for part in parts:
            part.close()
        raise
    return first(os.path.dirname(files[0]) if len(files) > 1 else files[0], parts)


def open_part(
    path: str, kinds: Sequence[type[ResultsType]]
) -> tuple[type[ResultsType], ResultPart]:
    """Open one file; returns its kind as well. Raises as `open_kind` does."""
    names = alternatives([kind.file_name for kind in kinds])
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
    return kind, ResultPart(path, file, kind.rules, kind.check_more)


def require_alike(first: ResultPart, other: ResultPart) -> None:
    """Raise InputError unless two files have the same attributes and arrays.

    Versions of software may differ.
    """
    for what, wanted, found in (
        ("attribute", first.told, other.told),
        ("array", first.arrays, other.arrays),
    ):
        for name in sorted({*wanted, *found}):
            if wanted.get(name) != found.get(name):
                raise InputError(
                    f"{other.path}: {what} {name!r} is {brief(found.get(name))}, but "
                    f"{brief(wanted.get(name))} in {os.path.basename(first.path)}; give a folder "
                    "of one run"
                )
