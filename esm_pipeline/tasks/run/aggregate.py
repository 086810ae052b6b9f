"""Gather what the shards of a task made, so that every record of the input has its place.

`aggregate TASK` puts the results of all shards into one file and writes a status table of every
record; `aggregate records` adds the status tables of all tasks to records.tsv. A task that can be
gathered has `SUFFIX`, that of its result for a shard, and `aggregate(gathering, records, output)`,
where `records` is the number of those that are ok and `output` a temporary file. The status table
takes its place after the result, and after it the list of both digests, `digests.sha256`: where
that stands, both are its own.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from esm_pipeline.errors import InputError
from esm_pipeline.files import atomic_paths, blaming, require_apart
from esm_pipeline.flags import number_of_shards
from esm_pipeline.formats.checksums import LISTING, check_listed, write_digests
from esm_pipeline.formats.records import (
    ANEW,
    FAILED,
    OK,
    SKIPPED,
    Outcome,
    Record,
    format_row,
    read_records,
    read_status,
    status_columns,
    write_records,
)
from esm_pipeline.locks import Outputs
from esm_pipeline.tasks import commands_with, module_of
from esm_pipeline.tasks.common.endings import ending_of
from esm_pipeline.tasks.common.shards import Gathering

RECORDS = "records"
NO_ROW = (-1, Outcome(""))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `aggregate`."""
    commands = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    records = commands.add_parser(RECORDS, help="records.tsv with the outcomes of all tasks")
    records.add_argument(
        "--status",
        action="append",
        default=[],
        type=task_and_file,
        metavar="TASK=FILE",
        help="status table of a task; may be repeated",
    )
    tasks = commands_with("aggregate")
    gathered = [commands.add_parser(task, help=f"results of {task}") for task in tasks]
    for task in gathered:
        task.add_argument("--shards-dir", required=True, type=Path, help="folder of the shards")
        task.add_argument("--shards", required=True, type=number_of_shards, help="their number")
        task.add_argument("--status", required=True, type=Path, help="status table to write")
    for command in (records, *gathered):
        command.add_argument("--records", required=True, type=Path, help="records.tsv of `shard`")
        command.add_argument("--out", required=True, type=Path, help="file to write")
        command.add_argument("--quiet", action="store_true", help="no summary")


def task_and_file(text: str) -> tuple[str, Path]:
    """Parse `TASK=FILE`."""
    task, equals, file = text.partition("=")
    if not (task and equals and file):
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form TASK=FILE")
    return task, Path(file)


def outputs(args: argparse.Namespace) -> Outputs:
    """What `aggregate` writes. Raises InputError if it would replace what it reads."""
    if args.what == RECORDS:
        require_apart([args.out], [args.records, *(file for _, file in args.status)])
        return Outputs([args.out])
    digests = args.status.with_name(LISTING)
    require_apart([args.out, args.status, digests], [args.records])
    return Outputs([args.out, args.status, digests])


def run(args: argparse.Namespace) -> int:
    """Gather; see the module. Returns 0: failed records are for `verdict` to judge."""
    started = time.perf_counter()
    if args.what == RECORDS:
        statuses = dict(args.status)
        if len(statuses) < len(args.status):
            raise InputError("--status: a task is given twice; drop one")
        require_apart([args.out], [args.records, *statuses.values()])
        ending_of(args.out, (".tsv",))
        write_records(args.out, with_outcomes(args.records, statuses), list(statuses))
        return 0
    module = module_of(args.what)
    digests = args.status.with_name(LISTING)
    require_apart([args.out, args.status, digests], [args.records])
    ending_of(args.out, (module.SUFFIX,))
    ending_of(args.status, (".tsv",))
    gathering = Gathering(args.what, module.SUFFIX, args.records, args.shards_dir, args.shards)
    require_apart([args.out, args.status], gathering.results)
    with atomic_paths(args.out, args.status, digests) as (output, status, listed):
        counts = write_status(status, gathering)
        module.aggregate(gathering, counts[OK], output)
        result = os.path.relpath(args.out, digests.parent)
        write_digests(listed, {args.status.name: status, result: output})
    if not args.quiet:
        told = ", ".join(f"{counts[status]:,} {status}" for status in (OK, SKIPPED, FAILED))
        seconds = time.perf_counter() - started
        print(
            f"aggregate {args.what}: {counts.total():,} records of {args.shards} shards: {told}; "
            f"{seconds:.1f} s",
            file=sys.stderr,
        )
    return 0


def write_status(target: Path, gathering: Gathering) -> Counter[str]:
    """Write a task's status table, one row a record; returns the number of each status."""
    counts: Counter[str] = Counter()
    with blaming(target), open(target, "w", encoding="utf-8", newline="") as handle:
        handle.write(format_row(status_columns(gathering.task)))
        for record, outcome in gathering.outcomes():
            counts[outcome.status] += 1
            handle.write(format_row([str(record.index), *outcome]))
    return counts


def with_outcomes(records: Path, statuses: Mapping[str, Path]) -> Iterator[Record]:
    """The records of `records`, each with its row of every status table.

    Raises InputError if a table is not of the same records, or not as it was written.
    """
    for path in (records, *statuses.values()):
        check_listed(path)
    tables = {task: read_status(path, task) for task, path in statuses.items()}
    for record in read_records(records):
        for task, table in tables.items():
            index, outcome = next(table, NO_ROW)
            if index != record.index:
                raise InputError(
                    f"{statuses[task]}: no row for record {record.index} of {records}; {ANEW}"
                )
            record = record.with_outcome(task, *outcome)
        yield record
    for task, table in tables.items():
        if next(table, None) is not None:
            raise InputError(f"{statuses[task]}: has more records than {records}; {ANEW}")
