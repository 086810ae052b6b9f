"""Join what the shards of a table of variants made: every row again in its place, with its scores.

The counterpart of `split`. The shards' digests are checked, and that every row is there once.
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
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from esm_pipeline.errors import InputError
from esm_pipeline.files import atomic_paths, blaming
from esm_pipeline.flags import number_of_shards
from esm_pipeline.formats.checksums import LISTING, check_digests, check_listed, write_digests
from esm_pipeline.formats.records import (
    FAILED,
    OK,
    SKIPPED,
    Outcome,
    format_row,
    read_records,
    read_status,
    status_columns,
)
from esm_pipeline.formats.tables.base import Column, Table, create_table, open_table
from esm_pipeline.locks import Outputs
from esm_pipeline.settings import shard_names
from esm_pipeline.tasks.score.scored_table import told
from esm_pipeline.tasks.score.split import STATUS, SUFFIX, UNUSABLE

TASK = "score"
KEYS = ["row", "protein", "mutant"]
AGAIN = "remove the folder and run the workflow again"
SEVERITY = {OK: 0, SKIPPED: 1, FAILED: 2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--variants", required=True, metavar="TABLE", help="what `split` was given")
    parser.add_argument("--records", required=True, type=Path, help="records.tsv of `shard`")
    parser.add_argument("--split", required=True, type=Path, help="folder that `split` wrote")
    parser.add_argument("--scores", required=True, type=Path, help="folder of the shards' scores")
    parser.add_argument("--shards", required=True, type=number_of_shards, help="their number")
    parser.add_argument("--out", required=True, type=Path, help="table to write, TSV")
    parser.add_argument("--status", required=True, type=Path, help="status table to write")
    parser.add_argument("--provenance", required=True, type=Path, help="JSON file to write")
    parser.add_argument("--quiet", action="store_true", help="no summary")


def outputs(args: argparse.Namespace) -> Outputs:
    """What `join` writes."""
    return Outputs([args.out, args.status, args.provenance, args.status.with_name(LISTING)])


def run(args: argparse.Namespace) -> int:
    """Join; returns 0: failed rows are for `verdict` to judge."""
    started = time.perf_counter()
    table = open_table(args.variants)
    shards = [Shard(args.scores, name) for name in shard_names(args.shards)]
    for path in (args.records, args.split / UNUSABLE, args.split / STATUS):
        check_listed(path)
    with ExitStack() as stack:
        stack.enter_context(blaming(args.out))
        args.out.parent.mkdir(parents=True, exist_ok=True)
        spool = stack.enter_context(tempfile.TemporaryFile(dir=args.out.parent))
        targets = [args.out, args.provenance, args.status]
        digests = args.status.with_name(LISTING)
        paths = stack.enter_context(atomic_paths(*targets, digests))
        out, provenance, status, listed = paths
        columns = same([shard.columns for shard in shards], args.scores, "columns")
        facts = shards[0].provenance
        same([without_software(shard.provenance) for shard in shards], args.scores, "provenance")
        provenance.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        cells = Cells(spool)
        for shard in shards:
            cells.take(shard.rows())
        cells.take(unusable_rows(args.split / UNUSABLE, len(columns)))
        counts = write_rows(out, table, columns, cells)
        write_status(status, args.records, args.split / STATUS, shards)
        names = [os.path.relpath(target, digests.parent) for target in targets]
        write_digests(listed, dict(zip(names, paths, strict=False)))
    if not args.quiet:
        seconds = time.perf_counter() - started
        print(f"join: {told(counts, 'variants')}; {seconds:.1f} s", file=sys.stderr)
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
            raise InputError(f"{self.path}: not the scores of a shard; {AGAIN}")
        self.columns = self._table.columns[len(KEYS) :]
        self.provenance: dict[str, Any] = json.loads(origin.read_text(encoding="utf-8"))

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Place of each row in the input, and its status, reason and scores."""
        for block in self._table.blocks(["row", *self.columns]):
            for place, *cells in block.cells:
                yield int(place), cells


class Cells:
    """Cells of rows that come in any order, held in the file `spool`; in memory 16 bytes a row."""

    def __init__(self, spool: IO[bytes]) -> None:
        self._spool = spool
        self._places, self._ends = array("q"), array("q", [0])

    def take(self, rows: Iterator[tuple[int, list[str]]]) -> None:
        """Take up some rows, with their places in the input."""
        for place, cells in rows:
            line = json.dumps(cells).encode()
            self._spool.write(line)
            self._places.append(place)
            self._ends.append(self._ends[-1] + len(line))

    def in_order(self) -> Iterator[list[str]]:
        """The cells of rows 0, 1, … Raises InputError if one is missing, or there twice."""
        self._spool.flush()
        places = np.frombuffer(self._places, np.int64)
        order = np.argsort(places, kind="stable")
        if not np.array_equal(places[order], np.arange(len(places))):
            raise InputError(f"the shards do not have every row once; {AGAIN}")
        ends, file = self._ends, self._spool.fileno()
        for number in order.tolist():
            start = ends[number]
            cells: list[str] = json.loads(os.pread(file, ends[number + 1] - start, start))
            yield cells


def unusable_rows(path: Path, count: int) -> Iterator[tuple[int, list[str]]]:
    """The rows that `split` found unusable, with `count` cells each."""
    for block in open_table(path).blocks(["row", "reason"]):
        for place, reason in block.cells:
            yield int(place), [SKIPPED, reason, *[""] * (count - 2)]


def same(values: list[Any], folder: Path, what: str) -> Any:
    """What all shards have in common. Raises InputError if they differ."""
    for value in values[1:]:
        if value != values[0]:
            raise InputError(f"{folder}: shards differ in their {what}; {AGAIN}")
    return values[0]


def without_software(facts: dict[str, Any]) -> dict[str, Any]:
    """All but the versions, in which shards need not agree."""
    return {name: value for name, value in facts.items() if name != "software"}


def write_rows(path: Path, table: Table, columns: list[str], cells: Cells) -> Counter[str]:
    """Write `table` with the cells of every row behind; returns the number of each status."""
    added = [Column(name, "text") for name in columns]
    table.refuse(added, SUFFIX)
    counts: Counter[str] = Counter()
    rows = cells.in_order()
    with create_table(path, SUFFIX, table, added) as writer:
        for block in table.blocks([]):
            found = list(islice(rows, block.count))
            if len(found) < block.count:
                raise InputError(f"{table.path}: has more rows than the shards; {AGAIN}")
            counts.update(row[0] for row in found)
            writer.write(block, list(zip(*found, strict=True)))
    if next(rows, None) is not None:
        raise InputError(f"{table.path}: has fewer rows than the shards; {AGAIN}")
    return counts


def severity(outcome: Outcome) -> tuple[int, bool]:
    """Which of two outcomes of one protein is told: the worse, and if alike, one with a reason."""
    return SEVERITY[outcome.status], bool(outcome.reason)


def write_status(path: Path, records: Path, before: Path, shards: list[Shard]) -> None:
    """Write what became of each record: as `split` found it, then as the shards' jobs did."""
    found: dict[int, Outcome] = {}
    for shard in shards:
        for record in read_records(shard.records):
            outcome = record.outcomes[TASK]
            known = found.setdefault(int(record.id), outcome)
            if severity(outcome) > severity(known):
                found[int(record.id)] = outcome
    with path.open("w", encoding="utf-8", newline="") as handle:
        handle.write(format_row(status_columns(TASK)))
        statuses = read_status(before, TASK)
        for record, (index, outcome) in zip(read_records(records), statuses, strict=False):
            if index != record.index:
                raise InputError(f"{before}: not of the records of {records}; {AGAIN}")
            first = index if record.duplicate_of is None else record.duplicate_of
            outcome = found.get(first, outcome) if outcome.status == OK else outcome
            handle.write(format_row([str(index), *outcome]))
