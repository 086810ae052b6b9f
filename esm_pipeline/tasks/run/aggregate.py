"""Merge the results of the shards of a task; merge the tables of all bundles.

`aggregate TASK` merges the results of all shards into one file and writes a status table of every
record; `aggregate records` and `aggregate tables` are in `record_table`. A task that runs on
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

from esm_pipeline.files import atomic_paths, require_apart
from esm_pipeline.flags import number_of_shards
from esm_pipeline.formats.checksums import LISTING, write_digests
from esm_pipeline.formats.records import OK
from esm_pipeline.locks import Outputs
from esm_pipeline.tasks import commands_with, module_of
from esm_pipeline.tasks.common.outcomes import format_counts, write_status
from esm_pipeline.tasks.common.outputs import ending_of
from esm_pipeline.tasks.common.shards import ShardResults
from esm_pipeline.tasks.run import record_table

OF_RECORDS, OF_TABLES = "records", "tables"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `aggregate`."""
    commands = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    records = commands.add_parser(OF_RECORDS, help="records.tsv with the outcomes of all tasks")
    record_table.add_record_arguments(records)
    tables = commands.add_parser(OF_TABLES, help="one table from those of all bundles")
    record_table.add_table_arguments(tables)
    tasks = commands_with("aggregate")
    gathered = [commands.add_parser(task, help=f"results of {task}") for task in tasks]
    for task in gathered:
        task.add_argument("--shards-dir", required=True, type=Path, help="folder of the shards")
        task.add_argument("--shards", required=True, type=number_of_shards, help="their number")
        task.add_argument("--status", required=True, type=Path, help="status table to write")
        task.add_argument("--records", required=True, type=Path, help="records.tsv of `shard`")
        task.add_argument("--out", required=True, type=Path, help="file to write")
        task.add_argument("--quiet", action="store_true", help="no summary")


def outputs(args: argparse.Namespace) -> Outputs:
    """What `aggregate` writes. Raises InputError if it would replace what it reads."""
    if args.what == OF_RECORDS:
        return record_table.record_outputs(args)
    if args.what == OF_TABLES:
        return record_table.table_outputs(args)
    digests = args.status.with_name(LISTING)
    require_apart([args.out, args.status, digests], [args.records])
    return Outputs([args.out, args.status, digests])


def run(args: argparse.Namespace) -> int:
    """Merge results or tables; returns 0: `verdict` judges failed records."""
    if args.what == OF_RECORDS:
        record_table.write_record_table(args)
    elif args.what == OF_TABLES:
        record_table.write_merged_table(args)
    else:
        merge_shards(args)
    return 0


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
