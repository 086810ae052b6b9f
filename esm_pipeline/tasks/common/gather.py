"""Gathering a task's results for a bundle: the files of its ranges, checked, become one result.

The files together have every sequence of the bundle once, in its order. Records come from the
bundle's table; those with the same sequence share its outcome and its row.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from esm_pipeline.arrays import Int32, Int64
from esm_pipeline.errors import DamagedError, InputError
from esm_pipeline.files import naming_errors
from esm_pipeline.formats.bundles import (
    REMOVE_FOLDER,
    Bundle,
    index_path,
    range_names,
    record_table_of,
)
from esm_pipeline.formats.checksums import CHECKSUM_REMEDY, require_listed
from esm_pipeline.formats.records import (
    OK,
    RECORD_COLUMNS,
    SKIPPED,
    format_row,
    header_line,
    status_columns,
)
from esm_pipeline.formats.results.attributes import read_attributes, text_attribute
from esm_pipeline.formats.results.job_files import (
    STATUS_CODES,
    STATUS_OF_CODE,
    StoredOutcomes,
    check_seal,
)
from esm_pipeline.formats.results.layout import Array
from esm_pipeline.formats.results.validation import arrays_of, open_hdf5, reading, require
from esm_pipeline.formats.results.writer import RaggedWriter

OF_RANGE = ("task", "bundle", "range", "first", "stop")
"""Attributes of the file of a range, which the gathered result does not have."""

MAY_DIFFER = {"software", "format_version"}
"""Attributes of a result that may differ between ranges."""

TABLE_BLOCK = 1 << 20
"""Bytes of a table of records that are read at a time."""

INDEX_COLUMN, ID_COLUMN, DIGEST_COLUMN, STATUS_COLUMN, REASON_COLUMN, FIRST_COLUMN = (
    RECORD_COLUMNS.index(name)
    for name in ("index", "id", "sha256", "status", "reason", "duplicate_of")
)
SHORT_DIGEST = 16
"""Hexadecimal digits of the part of a digest that is compared."""


@dataclass
class RangeFile:
    """The metadata of the file of a range: sequences `first` to `stop` of the bundle."""

    path: Path
    first: int
    stop: int
    outcomes: StoredOutcomes
    lengths: Int32
    """(U,) residues of each row, one for each sequence that is ok."""
    arrays: list[Array]
    attributes: dict[str, str]
    """How the results were made; none in a range without sequences."""


def read_range(path: Path, task: str, bundle: Bundle, first: int) -> RangeFile:
    """Read the metadata of a file, whose range is to begin with sequence `first`.

    Raises InputError if it is damaged, or not a result of `task` for this part of the bundle.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file; run the workflow again to make it")
    try:
        with open_hdf5(path) as file, reading(path):
            check_seal(file)
            found = {name: text_attribute(file, name) for name in OF_RANGE}
            wanted = {
                "task": task,
                "bundle": bundle.sha256,
                "range": path.stem,
                "first": str(first),
            }
            for name, value in wanted.items():
                if found[name] != value:
                    raise InputError(
                        f"{path}: its {name} is {found[name]!a}, not {value!a}; {CHECKSUM_REMEDY}"
                    )
            outcomes, stop = StoredOutcomes.read(file), int(found["stop"])
            require(stop == first + len(outcomes) <= len(bundle), "outcome/status")
            ok = np.flatnonzero(outcomes.codes == STATUS_CODES[OK])
            arrays, lengths = arrays_of(file), np.asarray(file["length"][...], np.int32)
            require(np.array_equal(file["index"][...], ok), "index")
            require(np.array_equal(file["row"][...], np.arange(len(ok))), "row")
            require((lengths <= bundle.length[first + ok]).all(), "length")
            attributes = {
                name: str(value)
                for name, value in read_attributes(file).items()
                if name not in OF_RANGE
            }
    except DamagedError as error:
        raise InputError(
            f"{path}: damaged, or not the result of a range ({error.why}); {CHECKSUM_REMEDY}"
        ) from None
    attributes = attributes if "format" in attributes else {}
    return RangeFile(path, first, stop, outcomes, lengths, arrays, attributes)


def require_same(files: list[RangeFile]) -> None:
    """Raise InputError unless all files were made by one model with the same settings."""
    for other in files[1:]:
        for name in sorted({*files[0].attributes, *other.attributes} - MAY_DIFFER):
            values = [file.attributes.get(name) for file in (other, files[0])]
            if values[0] != values[1]:
                raise InputError(
                    f"{other.path}: {name} is {values[0]!r}, but {values[1]!r} in "
                    f"{files[0].path.name}; {REMOVE_FOLDER}"
                )
        if other.arrays != files[0].arrays:
            raise InputError(
                f"{other.path}: has other arrays than {files[0].path.name}; {REMOVE_FOLDER}"
            )


class BundleResults:
    """The results of a task for all ranges of a bundle: the files have every sequence once.

    Takes about 70 bytes of memory for each sequence; gathering all takes 200 for each record of the
    bundle. Raises InputError for a file that is missing, damaged, of another bundle or made
    otherwise.
    """

    def __init__(self, task: str, fasta: Path, folder: Path, count: int) -> None:
        self.task, self.folder = task, folder
        self.bundle = bundle = Bundle.open(fasta)
        self.files: list[RangeFile] = []
        for name in range_names(count):
            first = self.files[-1].stop if self.files else 0
            self.files.append(read_range(folder / f"{name}.h5", task, bundle, first))
        if self.files[-1].stop < len(bundle):
            raise InputError(
                f"{self.files[-1].path}: ends before the last sequence of the bundle; "
                f"{CHECKSUM_REMEDY}"
            )
        self.computed = [file for file in self.files if file.attributes]
        if not self.computed:
            raise InputError(f"{folder}: no file says how it was made; {REMOVE_FOLDER}")
        require_same(self.computed)
        self._order = np.argsort(bundle.first)
        self._ordered = bundle.first[self._order]
        codes = np.concatenate([file.outcomes.codes for file in self.files])
        self._ok = codes == STATUS_CODES[OK]
        self._join_outcomes()
        self.rows = np.full(len(bundle), -1)
        """(U,) row of each sequence in the result, in the order of first records; -1 for none."""
        in_order = self._order[self._ok[self._order]]
        self.rows[in_order] = np.arange(len(in_order))

    def _join_outcomes(self) -> None:
        """Number the different outcomes of all files."""
        numbers: dict[bytes, int] = {}
        parts = []
        for file in self.files:
            outcomes = file.outcomes
            keys = (outcomes.reason.astype(np.int64) + 1) * len(STATUS_CODES) + outcomes.codes - 1
            different, inverse = np.unique(keys, return_inverse=True)
            own = []
            for key in different.tolist():
                reason, code = divmod(key, len(STATUS_CODES))
                text = outcomes.reasons[reason - 1] if reason else ""
                line = format_row([STATUS_OF_CODE[code + 1], text]).encode()
                own.append(numbers.setdefault(line, len(numbers)))
            parts.append(np.array(own, np.int32)[inverse])
        self._outcome = np.concatenate(parts)  # (U,) place of each sequence in `_outcomes`
        self._outcomes = list(numbers)  # ends of lines of the status table

    def write_status(self, target: Path) -> OkRecords:
        """Write the status table of all records of the bundle; returns those that are ok.

        Raises InputError if the table of records is damaged, or does not fit to the bundle.
        """
        path = record_table_of(self.bundle.fasta)
        ok, firsts, last = OkRecords(), 0, -1
        with naming_errors(target), open(target, "wb") as handle:
            handle.write(format_row(status_columns(self.task)).encode())
            for cells in read_cells(path):
                with parsing(path):
                    index = np.array(cells[INDEX_COLUMN]).astype(np.int64)
                if (np.diff(index, prepend=last) <= 0).any():
                    raise InputError(f"{path}: its records are not in order; {REMOVE_FOLDER}")
                last = int(index[-1])
                usable = np.array(cells[STATUS_COLUMN]) == OK.encode()
                places = np.full(len(index), -1)
                with parsing(path):
                    places[usable] = self._places(path, cells, index, usable)
                firsts += int(np.count_nonzero(self.bundle.first[places[usable]] == index[usable]))
                ends = self._outcomes
                numbers = self._outcome[places] if len(self._outcome) else places
                lines = [
                    cell + b"\t" + (ends[number] if place >= 0 else skipped(reason))
                    for cell, place, number, reason in zip(
                        cells[INDEX_COLUMN],
                        places.tolist(),
                        numbers.tolist(),
                        cells[REASON_COLUMN],
                        strict=True,
                    )
                ]
                handle.write(b"".join(lines))
                chosen = usable & (self.rows[places] >= 0 if len(self.rows) else False)
                ok.add(cells[ID_COLUMN], index, chosen, self.rows[places[chosen]])
                for number, times in enumerate(np.bincount(numbers[usable]).tolist()):
                    ok.counts[ends[number].partition(b"\t")[0].decode()] += times
                ok.counts[SKIPPED] += int(np.count_nonzero(~usable))
        if firsts < len(self.bundle):
            raise InputError(
                f"{path}: has {firsts} of the {len(self.bundle)} sequences of the bundle; "
                f"{REMOVE_FOLDER}"
            )
        return ok

    def _places(
        self, path: Path, cells: list[list[bytes]], index: Int64, usable: NDArray[np.bool_]
    ) -> Int64:
        """The place in the bundle of the sequence of each usable record."""
        duplicates = np.array(cells[FIRST_COLUMN])[usable]
        first = index[usable]
        first[duplicates != b""] = duplicates[duplicates != b""].astype(np.int64)
        ordered = np.searchsorted(self._ordered, first)
        known = ordered < len(self._ordered)
        known[known] = self._ordered[ordered[known]] == first[known]
        places = np.full(len(first), -1)
        places[known] = self._order[ordered[known]]
        texts = itertools.compress(cells[DIGEST_COLUMN], usable)
        text = b"".join([one[:SHORT_DIGEST] for one in texts]).decode("ascii")
        digests = np.frombuffer(bytes.fromhex(text), ">u8")
        known[known] = self.bundle.digest[places[known]] == digests[known]
        if not known.all():
            number = int(np.flatnonzero(usable)[int(np.argmin(known))])
            raise InputError(
                f"{path}: record {index[number]} ({cells[ID_COLUMN][number].decode()!a}) is not in "
                f"{index_path(self.bundle.fasta).name}; {REMOVE_FOLDER}"
            )
        return places


@dataclass
class OkRecords:
    """The records of a bundle that are ok, block by block; about 40 bytes of memory for each."""

    ids: list[bytes] = field(default_factory=list)
    """Of each block, the ids with a line end between them, which no id has."""
    index: list[Int64] = field(default_factory=list)
    row: list[Int64] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """The number of each status, of all records."""

    def add(self, ids: list[bytes], index: Int64, chosen: NDArray[np.bool_], rows: Int64) -> None:
        """Add the `chosen` records of a block."""
        if len(rows):
            self.ids.append(b"\n".join(itertools.compress(ids, chosen)))
            self.index.append(index[chosen])
            self.row.append(rows)

    def __len__(self) -> int:
        return sum(map(len, self.index))

    def __iter__(self) -> Iterator[tuple[str, int, int]]:
        for text, index, row in zip(self.ids, self.index, self.row, strict=True):
            ids = text.decode().split("\n")
            yield from zip(ids, index.tolist(), row.tolist(), strict=True)


def skipped(reason: bytes) -> bytes:
    """The end of a line of the status table of a record without a sequence."""
    return format_row([SKIPPED, reason.decode()]).encode()


def read_cells(path: Path) -> Iterator[list[list[bytes]]]:
    """The columns of a bundle's table of records, some rows at a time.

    Raises InputError if it is damaged: at the end, if its digest is not that in the list.
    """
    header, digest = header_line().encode(), hashlib.sha256()
    try:
        with open(path, "rb") as file:
            digest.update(found := file.readline())
            while block := file.read(TABLE_BLOCK):
                block += file.readline()
                digest.update(block)
                with parsing(path):
                    columns = table_columns(block)
                yield columns
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {REMOVE_FOLDER}") from None
    require_listed(path, digest.hexdigest())
    if found != header:
        raise InputError(f"{path}:1: not the header of a table of records; {REMOVE_FOLDER}")


@contextmanager
def parsing(path: Path) -> Iterator[None]:
    """Turn the errors of a malformed table of records into an InputError that names it."""
    try:
        yield
    except (ValueError, OverflowError, csv.Error) as error:
        raise InputError(f"{path}: not a table of records ({error}); {REMOVE_FOLDER}") from None


def table_columns(block: bytes) -> list[list[bytes]]:
    """The columns of some rows of a table of records.

    Raises ValueError or csv.Error if it is malformed.
    """
    lines = block.removesuffix(b"\n").split(b"\n")
    rows = [line.split(b"\t") for line in lines]
    if b'"' in block:
        texts = (line.decode() for line in lines)
        parsed = csv.reader(texts, delimiter="\t", strict=True)
        rows = [[cell.encode() for cell in row] for row in parsed]
    columns = [[*cells] for cells in zip(*rows, strict=True)]
    if len(columns) != len(RECORD_COLUMNS):
        raise ValueError(f"{len(columns)} columns, not {len(RECORD_COLUMNS)}")
    return columns


def gather_ragged(
    gathered: BundleResults, records: OkRecords, output: str | os.PathLike[str]
) -> None:
    """Write the rows of all ranges to one file, in the order of their first records.

    `records` are those that are ok. Takes a block of memory, and 20 bytes for each record. Raises
    OSError if the disk is full.
    """
    rows, model = gathered.rows, gathered.computed[0]
    lengths = np.zeros(int(np.count_nonzero(rows >= 0)), np.int32)
    digests = np.zeros(len(lengths), np.uint64)
    digests[rows[rows >= 0]] = gathered.bundle.digest[rows >= 0]
    own_rows = [one[one >= 0] for one in (rows[file.first : file.stop] for file in gathered.files)]
    for file, own in zip(gathered.files, own_rows, strict=True):
        lengths[own] = file.lengths
    with RaggedWriter(
        output,
        model.arrays,
        lengths,
        len(records),
        records,
        model.attributes,
        digests=digests,
    ) as writer:
        for file, own in zip(gathered.files, own_rows, strict=True):
            if len(own):
                with reading(file.path), h5py.File(file.path, "r", locking=False) as source:
                    writer.copy(source, own)
