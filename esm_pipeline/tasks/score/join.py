"""Append the scores of all shards to the variant table, each row in its place.

The counterpart of `split`. Checks the shards' digests, and that they have every row once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from esm_pipeline.errors import InputError
from esm_pipeline.files import atomic_paths, naming_errors
from esm_pipeline.flags import number_of_shards
from esm_pipeline.formats.bundles import REMOVE_FOLDER
from esm_pipeline.formats.checksums import LISTING, check_digests, check_listed
from esm_pipeline.formats.records import (
    FAILED,
    OK,
    SKIPPED,
    Outcome,
    read_records,
    read_status,
)
from esm_pipeline.formats.tables.base import Column, Table
from esm_pipeline.formats.tables.open import create_table, open_table
from esm_pipeline.locks import Outputs
from esm_pipeline.settings.result_names import bundle_names as shard_names
from esm_pipeline.tasks.common.outcomes import format_counts, write_status
from esm_pipeline.tasks.common.outputs import write_checksums
from esm_pipeline.tasks.score.split import STATUS, SUFFIX, UNUSABLE
from esm_pipeline.tasks.score.variant_table import SCORE

KEYS = ["row", "protein", "mutant"]
SEVERITY = {OK: 0, SKIPPED: 1, FAILED: 2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--variants", required=True, metavar="TABLE", help="table that was split")
    parser.add_argument("--records", required=True, type=Path, help="records.tsv of `shard`")
    parser.add_argument("--split", required=True, type=Path, help="folder that `split` wrote")
    parser.add_argument("--scores", required=True, type=Path, help="folder of the shards' scores")
    parser.add_argument("--shards", required=True, type=number_of_shards, help="number of shards")
    parser.add_argument("--out", required=True, type=Path, help="table to write, TSV")
    parser.add_argument("--status", required=True, type=Path, help="status table to write")
    parser.add_argument("--provenance", required=True, type=Path, help="JSON file to write")
    parser.add_argument("--quiet", action="store_true", help="no summary")


def outputs(args: argparse.Namespace) -> Outputs:
    """What `join` writes."""
    return Outputs([args.out, args.status, args.provenance, args.status.with_name(LISTING)])


def run(args: argparse.Namespace) -> int:
    """Join; returns 0, since `verdict` judges failed rows."""
    started = time.perf_counter()
    table = open_table(args.variants)
    shards = [Shard(args.scores, name) for name in shard_names(args.shards)]
    for path in (args.records, args.split / UNUSABLE, args.split / STATUS):
        check_listed(path)
    columns = same([shard.columns for shard in shards], args.scores, "columns")
    same([without_software(shard.provenance) for shard in shards], args.scores, "provenance")
    targets, digests = [args.out, args.provenance, args.status], args.status.with_name(LISTING)
    with naming_errors(args.out), ExitStack() as stack:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        spool = ScoreSpool(stack.enter_context(tempfile.TemporaryFile(dir=args.out.parent)))
        paths = stack.enter_context(atomic_paths(*targets, digests))
        out, provenance, status, listed = paths
        for shard in shards:
            spool.add(shard.rows())
        spool.add(unusable_rows(args.split / UNUSABLE, len(columns)))
        counts = append_scores(out, table, columns, spool)
        facts = json.dumps(shards[0].provenance, indent=2)
        provenance.write_text(facts + "\n", encoding="utf-8")
        before = args.split / STATUS
        write_status(
            status, SCORE, outcomes_of_records(args.records, before, worst_outcomes(shards))
        )
        write_checksums(listed, digests, dict(zip(targets, paths, strict=False)))
    if not args.quiet:
        seconds = time.perf_counter() - started
        print(f"join: {format_counts(counts, 'variants')}; {seconds:.1f} s", file=sys.stderr)
    return 0


class Shard:
    """The files that `score` wrote for a shard. Raises InputError if one is missing or damaged."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}{SUFFIX}"
        self.records = folder / f"{name}.records.tsv"
        origin = folder / f"{name}.json"
        check_digests(folder / f"{name}.sha256", [self.path, self.records, origin])
        self._table = open_table(self.path)
        if self._table.columns[: len(KEYS)] != KEYS:
            raise InputError(f"{self.path}: not the scores of a shard; {REMOVE_FOLDER}")
        self.columns = self._table.columns[len(KEYS) :]
        self.provenance: dict[str, Any] = json.loads(origin.read_text(encoding="utf-8"))

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Number of each row in the input, with its status, reason and scores."""
        for block in self._table.blocks(["row", *self.columns]):
            for number, *cells in block.cells:
                yield int(number), cells


class ScoreSpool:
    """Outcomes and scores of rows that come in any order, held in the file `spool`.

    In memory 16 bytes a row.
    """

    def __init__(self, spool: IO[bytes]) -> None:
        self._spool = spool
        self._numbers, self._ends = array("q"), array("q", [0])

    def add(self, rows: Iterable[tuple[int, list[str]]]) -> None:
        """Append the cells of some rows, with their numbers in the input."""
        for number, cells in rows:
            line = json.dumps(cells).encode()
            self._spool.write(line)
            self._numbers.append(number)
            self._ends.append(self._ends[-1] + len(line))

    def in_order(self) -> Iterator[list[str]]:
        """The cells of rows 0, 1, … Raises InputError if a row is missing, or there twice."""
        self._spool.flush()
        numbers = np.frombuffer(self._numbers, np.int64)
        order = np.argsort(numbers, kind="stable")
        if not np.array_equal(numbers[order], np.arange(len(numbers))):
            raise InputError(f"the shards do not have every row once; {REMOVE_FOLDER}")
        ends, file = self._ends, self._spool.fileno()
        for at in order.tolist():
            start = ends[at]
            cells: list[str] = json.loads(os.pread(file, ends[at + 1] - start, start))
            yield cells


def unusable_rows(path: Path, count: int) -> Iterator[tuple[int, list[str]]]:
    """The rows that `split` could not use, each with as many cells as a scored row (`count`)."""
    for block in open_table(path).blocks(["row", "reason"]):
        for number, reason in block.cells:
            yield int(number), [SKIPPED, reason, *[""] * (count - 2)]


def same(values: list[Any], folder: Path, what: str) -> Any:
    """The value that all shards share. Raises InputError if they differ."""
    for value in values[1:]:
        if value != values[0]:
            raise InputError(f"{folder}: shards differ in their {what}; {REMOVE_FOLDER}")
    return values[0]


def without_software(facts: dict[str, Any]) -> dict[str, Any]:
    """The provenance without versions, in which shards may differ."""
    return {name: value for name, value in facts.items() if name != "software"}


def append_scores(path: Path, table: Table, columns: list[str], spool: ScoreSpool) -> Counter[str]:
    """Write `table` with the `columns` appended; returns how many rows have each status."""
    added = [Column(name, "text") for name in columns]
    table.require_room_for(added, SUFFIX)
    counts: Counter[str] = Counter()
    rows = spool.in_order()
    with create_table(path, SUFFIX, table, added) as writer:
        for block in table.blocks([]):
            found = list(islice(rows, block.count))
            if len(found) < block.count:
                raise InputError(f"{table.path}: has more rows than the shards; {REMOVE_FOLDER}")
            counts.update(row[0] for row in found)
            writer.write(block, list(zip(*found, strict=True)))
    if next(rows, None) is not None:
        raise InputError(f"{table.path}: has fewer rows than the shards; {REMOVE_FOLDER}")
    return counts


def severity(outcome: Outcome) -> tuple[int, bool]:
    """The sort key of outcomes: the worst is largest; of equals, one that has a reason."""
    return SEVERITY[outcome.status], bool(outcome.reason)


def worst_outcomes(shards: Iterable[Shard]) -> dict[int, Outcome]:
    """The worst outcome of each protein over the shards, by the index of its record."""
    worst: dict[int, Outcome] = {}
    for shard in shards:
        for record in read_records(shard.records):
            outcome = record.outcomes[SCORE]
            known = worst.setdefault(int(record.id), outcome)
            if severity(outcome) > severity(known):
                worst[int(record.id)] = outcome
    return worst


def outcomes_of_records(
    records: Path, before: Path, worst: dict[int, Outcome]
) -> Iterator[tuple[int, Outcome]]:
    """Index and outcome of each record: as `split` wrote it to `before`, then as the jobs did.

    Raises InputError if `before` is of other records.
    """
    statuses = read_status(before, SCORE)
    for record, (index, outcome) in zip(read_records(records), statuses, strict=False):
        if index != record.index:
            raise InputError(f"{before}: does not match the records of {records}; {REMOVE_FOLDER}")
        first = index if record.duplicate_of is None else record.duplicate_of
        yield index, worst.get(first, outcome) if outcome.status == OK else outcome
