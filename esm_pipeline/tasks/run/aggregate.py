"""Gather the results of a task for a bundle; add the outcomes of all tasks to records.tsv.

`aggregate TASK` merges the files of all ranges of a bundle into one result, and writes a status
table of every record of the bundle; `aggregate records` adds the status tables of all tasks to
records.tsv. A task that runs on bundles has `SUFFIX`, the suffix of its result, and
`aggregate(gathered, records, output)`, where `records` are those that are ok and `output` is a
temporary file. The status table is moved into place after the result, and `{bundle}.sha256`, the
list of both digests, last: if the list exists, both files are those it describes.
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
from esm_pipeline.formats.bundles import index_of, record_table_of
from esm_pipeline.formats.checksums import write_digests
from esm_pipeline.formats.records import write_records
from esm_pipeline.locks import Outputs
from esm_pipeline.tasks import commands_with, module_of
from esm_pipeline.tasks.common.gather import BundleResults
from esm_pipeline.tasks.common.outcomes import format_counts, with_outcomes
from esm_pipeline.tasks.common.outputs import ending_of

RECORDS_COMMAND = "records"
STATUS_ENDING = ".status.tsv"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `aggregate`."""
    commands = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    records = commands.add_parser(
        RECORDS_COMMAND, help="records.tsv with the outcomes of all tasks"
    )
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
        task.add_argument(
            "--bundle", required=True, type=Path, metavar="FASTA", help="bundle of `shard`"
        )
        task.add_argument(
            "--ranges", required=True, type=Path, metavar="DIR", help="folder of the ranges' files"
        )
        task.add_argument("--count", required=True, type=number_of_shards, help="their number")
        task.add_argument(
            "--status",
            required=True,
            type=Path,
            metavar="FILE",
            help=f"status table to write: NAME{STATUS_ENDING}, with digests in NAME.sha256",
        )
    records.add_argument("--records", required=True, type=Path, help="records.tsv of `shard`")
    for command in (records, *gathered):
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
    if args.what == RECORDS_COMMAND:
        require_apart([args.out], [args.records, *(file for _, file in args.status)])
        return Outputs([args.out])
    files = [args.out, args.status, digests_of(args.status)]
    fasta = args.bundle
    require_apart(files, [fasta, index_of(fasta), record_table_of(fasta)])
    return Outputs(files)


def digests_of(status: Path) -> Path:
    """The list of digests next to a status table. Raises InputError for another name."""
    if not status.name.endswith(STATUS_ENDING):
        raise InputError(f"{status}: cannot be written; let its name end in {STATUS_ENDING}")
    return status.with_name(f"{status.name.removesuffix(STATUS_ENDING)}.sha256")


def run(args: argparse.Namespace) -> int:
    """Gather results or add outcomes; returns 0: `verdict` judges failed records."""
    if args.what == RECORDS_COMMAND:
        add_outcomes(args.records, args.status, args.out)
    else:
        gather_bundle(args)
    return 0


def add_outcomes(records: Path, tables: list[tuple[str, Path]], out: Path) -> None:
    """Write `records` with the outcomes in the status tables of tasks. Raises InputError."""
    statuses = dict(tables)
    if len(statuses) < len(tables):
        raise InputError("--status: a task is given twice; drop one")
    require_apart([out], [records, *statuses.values()])
    ending_of(out, (".tsv",))
    write_records(out, with_outcomes(records, statuses), list(statuses))


def gather_bundle(args: argparse.Namespace) -> None:
    """Write the result and the status table of the task `args.what`. Raises InputError."""
    started = time.perf_counter()
    task, digests = module_of(args.what), digests_of(args.status)
    ending_of(args.out, (task.SUFFIX,))
    gathered = BundleResults(args.what, args.bundle, args.ranges, args.count)
    require_apart([args.out, args.status, digests], [file.path for file in gathered.files])
    with atomic_paths(args.out, args.status, digests) as (output, status, listed):
        records = gathered.write_status(status)
        task.aggregate(gathered, records, output)
        result = os.path.relpath(args.out, digests.parent)
        write_digests(listed, {args.status.name: status, result: output})
    if not args.quiet:
        seconds = time.perf_counter() - started
        ranges = "range" if args.count == 1 else "ranges"
        found = format_counts(records.counts, f"records of {args.count} {ranges}")
        print(f"aggregate {args.what}: {found}; {seconds:.1f} s", file=sys.stderr)
