"""Merge the results of the shards of a task; add the outcomes of all tasks to records.tsv.

`aggregate TASK` merges the results of all shards into one file and writes a status table of every
record; `aggregate records` adds the status tables of all tasks to records.tsv. A task that runs on
shards has `SUFFIX`, the suffix of a shard's result, and `aggregate(gathered, records, output)`,
where `records` is the number of records that are ok and `output` a temporary file. The status table
is moved into place after the result, and `digests.sha256`, the list of both digests, last: if the
list exists, both files are those it describes.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from esm_pipeline.errors import InputError
from esm_pipeline.files import atomic_paths, require_apart
from esm_pipeline.flags import number_of_shards
from esm_pipeline.formats.checksums import LISTING, write_digests
from esm_pipeline.formats.records import OK, write_records
from esm_pipeline.locks import Outputs
from esm_pipeline.tasks import commands_with, module_of
from esm_pipeline.tasks.common.outcomes import format_counts, with_outcomes, write_status
from esm_pipeline.tasks.common.outputs import ending_of
from esm_pipeline.tasks.common.shards import ShardResults

RECORD_TABLE = "records"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `aggregate`."""
    commands = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    records = commands.add_parser(RECORD_TABLE, help="records.tsv with the outcomes of all tasks")
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
    if args.what == RECORD_TABLE:
        require_apart([args.out], [args.records, *(file for _, file in args.status)])
        return Outputs([args.out])
    digests = args.status.with_name(LISTING)
    require_apart([args.out, args.status, digests], [args.records])
    return Outputs([args.out, args.status, digests])


def run(args: argparse.Namespace) -> int:
    """Merge shards or add outcomes; returns 0: `verdict` judges failed records."""
    if args.what == RECORD_TABLE:
        add_outcomes(args.records, args.status, args.out)
    else:
        merge_shards(args)
    return 0


def add_outcomes(records: Path, tables: list[tuple[str, Path]], out: Path) -> None:
    """Write `records` with the outcomes in the status tables of tasks. Raises InputError."""
    statuses = dict(tables)
    if len(statuses) < len(tables):
        raise InputError("--status: a task is given twice; drop one")
    require_apart([out], [records, *statuses.values()])
    ending_of(out, (".tsv",))
    write_records(out, with_outcomes(records, statuses), list(statuses))


def merge_shards(args: argparse.Namespace) -> None:
    """Write the result and the status table of the task `args.what`. Raises InputError."""
    started = time.perf_counter()
    task = module_of(args.what)
    digests = args.status.with_name(LISTING)
    require_apart([args.out, args.status, digests], [args.records])
    ending_of(args.out, (task.SUFFIX,))
    ending_of(args.status, (".tsv",))
    gathered = ShardResults(args.what, task.SUFFIX, args.records, args.shards_dir, args.shards)
    require_apart([args.out, args.status], gathered.results)
    with atomic_paths(args.out, args.status, digests) as (output, status, listed):
        rows = ((record.index, outcome) for record, outcome in gathered.outcomes())
        counts = write_status(status, args.what, rows)
        task.aggregate(gathered, counts[OK], output)
        result = os.path.relpath(args.out, digests.parent)
        write_digests(listed, {args.status.name: status, result: output})
    if not args.quiet:
        seconds = time.perf_counter() - started
        found = format_counts(counts, f"records of {args.shards} shards")
        print(f"aggregate {args.what}: {found}; {seconds:.1f} s", file=sys.stderr)
