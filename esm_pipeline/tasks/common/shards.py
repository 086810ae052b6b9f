"""Merging the shards of a task: their files, checked, and the row of each record in the result.

Next to a task's result for a shard are its `records.tsv` and its `sha256`. The FASTA headers of a
shard are indices in the sample's input: for each unique sequence, that of its first record.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from esm_pipeline.arrays import Int32, Int64
from esm_pipeline.errors import DamagedError, InputError
from esm_pipeline.formats.checksums import check_digests, check_listed
from esm_pipeline.formats.records import FAILED, INDEX, OK, SKIPPED, Outcome, Record, read_records
from esm_pipeline.formats.results.layout import Array, RecordRow
from esm_pipeline.formats.results.open import open_results
from esm_pipeline.formats.results.validation import arrays_of, open_hdf5, reading
from esm_pipeline.formats.results.writer import RaggedWriter
from esm_pipeline.settings import shard_names

STATUS_CODES = {OK: 1, SKIPPED: 2, FAILED: 3}
"""Statuses as one byte; 0 is a record that is in no shard."""

MAY_DIFFER = {"software", "format_version"}
"""Attributes of a result that may differ between shards."""

EVEN_LENGTH = 7680
"""Residues at which attention costs as much as the linear layers: 6 D, here for D = 1280."""

DIGEST = re.compile("[0-9a-f]{64}")

REMOVE_FOLDER = "remove the folder and run the workflow again"


class ShardResults:
    """The results of all shards of one task, and the outcome of every record of the sample.

    `records` is the sample's `records.tsv` as `shard` wrote it, `results` the files of the shards.
    Takes some bytes of memory for each record. Raises InputError for a missing or damaged shard.
    """

    def __init__(self, task: str, suffix: str, records: Path, folder: Path, shards: int) -> None:
        self.task, self.records, self.folder = task, records, folder
        self.results = [folder / f"{name}{suffix}" for name in shard_names(shards)]
        self._reasons: dict[int, str] = {}
        check_listed(records)
        places, codes, digests = array("q"), array("b"), array("Q")
        for name, result in zip(shard_names(shards), self.results, strict=True):
            table = folder / f"{name}.records.tsv"
            check_digests(folder / f"{name}.sha256", [result, table])
            for place, digest, outcome in self._read(table):
                places.append(place)
                digests.append(digest)
                codes.append(STATUS_CODES[outcome.status])
                if outcome.reason:
                    self._reasons[place] = outcome.reason
        self._sequences = len(places)
        self._codes = np.zeros(max(places, default=-1) + 1, np.int8)
        self._codes[np.frombuffer(places, np.int64)] = np.frombuffer(codes, np.int8)
        self._digests = np.zeros(len(self._codes), np.uint64)
        self._digests[np.frombuffer(places, np.int64)] = np.frombuffer(digests, np.uint64)
        if np.count_nonzero(self._codes) < self._sequences:
            raise InputError(f"{folder}: a sequence is in two shards; {REMOVE_FOLDER}")

    def _read(self, table: Path) -> Iterator[tuple[int, int, Outcome]]:
        """Index in the sample, digest and outcome of each sequence of a shard."""
        for record in read_records(table):
            outcome, digest = record.outcomes.get(self.task), short_digest(record)
            known = outcome is not None and outcome.status in STATUS_CODES
            if outcome is None or digest is None or not (known and INDEX.fullmatch(record.id)):
                raise InputError(
                    f"{table}: record {record.index} does not belong to a shard of "
                    f"'{self.task}'; {REMOVE_FOLDER}"
                )
            yield int(record.id), digest, outcome

    def outcomes(self) -> Iterator[tuple[Record, Outcome]]:
        """Every record of the sample with its outcome.

        Raises InputError for a record that is in no shard, and at the end if the shards have
        sequences that are not in the sample.
        """
        statuses = {code: status for status, code in STATUS_CODES.items()}
        found = 0
        for record in read_records(self.records):
            if record.status != OK:
                yield record, Outcome(SKIPPED, record.reason)
                continue
            first = record.index if record.duplicate_of is None else record.duplicate_of
            code = int(self._codes[first]) if first < len(self._codes) else 0
            if not code:
                raise InputError(
                    f"{self.records}: record {record.index} ('{record.id}') is in no shard of "
                    f"{self.folder}; {REMOVE_FOLDER}"
                )
            if self._digests[first] != short_digest(record):
                raise InputError(
                    f"{self.records}: record {record.index} ('{record.id}') is another sequence "
                    f"than that in the shards of {self.folder}; {REMOVE_FOLDER}"
                )
            found += record.duplicate_of is None
            yield record, Outcome(statuses[code], self._reasons.get(first, ""))
        if found < self._sequences:
            raise InputError(
                f"{self.folder}: the shards have {self._sequences} sequences, {self.records} has "
                f"{found}: they belong to another input; {REMOVE_FOLDER}"
            )

    @cached_property
    def rows(self) -> Int64:
        """Row in the merged result, for each record that is the first of its sequence."""
        return np.cumsum(self._codes == STATUS_CODES[OK]) - 1

    def are_ok(self, places: Int64) -> bool:
        """Whether `places` are first records of sequences that are ok, each once."""
        inside = (places >= 0) & (places < len(self._codes))
        ok = inside.all() and (self._codes[places] == STATUS_CODES[OK]).all()
        return bool(ok) and len(np.unique(places)) == len(places)

    @property
    def row_count(self) -> int:
        """U, the number of unique sequences that are ok."""
        return int(np.count_nonzero(self._codes == STATUS_CODES[OK]))

    def entries(self) -> Iterator[RecordRow]:
        """Every record that is ok, with the row of its sequence."""
        for record, outcome in self.outcomes():
            if outcome.status == OK:
                first = record.index if record.duplicate_of is None else record.duplicate_of
                yield RecordRow(record.id, record.index, int(self.rows[first]))


def forward_cost(lengths: Int64) -> Int64:
    """The relative cost of a forward pass over sequences of some `lengths` in residues."""
    return lengths * (EVEN_LENGTH + lengths)


def short_digest(record: Record) -> int | None:
    """The first 64 bits of the digest of a record's sequence; None if there is no digest."""
    return int(record.sha256[:16], 16) if DIGEST.fullmatch(record.sha256) else None


@dataclass
class RaggedShard:
    """The metadata of a shard's file: `first` (U,) indices in the sample, `lengths` (U,)."""

    path: Path
    attributes: dict[str, Any]
    arrays: list[Array]
    first: Int64
    lengths: Int32


def read_shard(path: Path) -> RaggedShard:
    """Read the metadata of a shard's file. Raises InputError if it is not one."""
    try:
        with open_results(path) as results, reading(path):
            arrays = arrays_of(results.file)
            places = np.array([int(name) for name in results.ids], np.int64)
            first = np.empty(len(results.length), np.int64)
            first[results.row] = places
            attributes = {name: str(value) for name, value in results.attributes.items()}
            return RaggedShard(path, attributes, arrays, first, results.length)
    except DamagedError as error:
        raise InputError(
            f"{path}: not the result of a shard ({error.why}); {REMOVE_FOLDER}"
        ) from None


def require_same(shards: list[RaggedShard]) -> None:
    """Raise InputError unless all shards were made by one model with the same settings."""
    first = shards[0]
    for other in shards[1:]:
        for name in sorted({*first.attributes, *other.attributes} - MAY_DIFFER):
            values = [shard.attributes.get(name) for shard in (other, first)]
            if values[0] != values[1]:
                raise InputError(
                    f"{other.path}: {name} is {values[0]!r}, but {values[1]!r} in "
                    f"{first.path.name}; {REMOVE_FOLDER}"
                )
        if other.arrays != first.arrays:
            raise InputError(
                f"{other.path}: has other arrays than {first.path.name}; {REMOVE_FOLDER}"
            )


def gather_ragged(gathered: ShardResults, records: int, output: str | os.PathLike[str]) -> None:
    """Merge the rows of all shards into one file, in the order of their first records.

    `records` is the number of records that are ok. Takes a block of memory, and some bytes for each
    record. Raises InputError if the shards do not fit together, OSError if the disk is full.
    """
    shards = [read_shard(path) for path in gathered.results]
    require_same(shards)
    for shard in shards:
        if not gathered.are_ok(shard.first):
            raise InputError(
                f"{shard.path}: its rows are not those of its records.tsv; {REMOVE_FOLDER}"
            )
    rows, count = gathered.rows, gathered.row_count
    if sum(len(shard.first) for shard in shards) != count:
        raise InputError(f"{gathered.folder}: sequences that are ok have no row; {REMOVE_FOLDER}")
    lengths = np.zeros(count, np.int32)
    for shard in shards:
        lengths[rows[shard.first]] = shard.lengths
    attributes = shards[0].attributes
    arrays, entries = shards[0].arrays, gathered.entries()
    with RaggedWriter(output, arrays, lengths, records, entries, attributes) as writer:
        for shard in shards:
            with open_hdf5(shard.path) as source:
                writer.copy(source, rows[shard.first])
