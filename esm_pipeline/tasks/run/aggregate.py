"""Gather the results of a task for a bundle; merge the tables of all bundles.

`aggregate TASK` merges the files of all ranges of a bundle into one result, and writes a status
table of every record of the bundle; `aggregate records` and `aggregate tables` are in
`record_table`; `aggregate atlas` writes `structures.parquet` from a merged `structures.tsv`. A task
that runs on bundles has `SUFFIX`, the suffix of its result, and `aggregate(gathered, records,
output)`, where `records` are those that are ok and `output` is a temporary file. The status table
is moved into place after the result, and `{bundle}.sha256`, the list of both digests, last: if the
list exists, both files are those it describes.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from esm_pipeline.errors import InputError
from esm_pipeline.files import atomic_path, atomic_paths, require_apart
from esm_pipeline.flags import number_of_parts
from esm_pipeline.formats.bundles import RANGE, index_path, record_table_of
from esm_pipeline.formats.checksums import write_digests
from esm_pipeline.locks import Outputs
from esm_pipeline.tasks import commands_with, module_of
from esm_pipeline.tasks.common.command import RANGE_ENDING
from esm_pipeline.tasks.common.gather import BundleResults
from esm_pipeline.tasks.common.outcomes import OF_BUNDLE, count_text, format_counts, listing_of
from esm_pipeline.tasks.common.outputs import ending_of
from esm_pipeline.tasks.common.progress import waiting
from esm_pipeline.tasks.run import record_table

OF_RECORDS, OF_TABLES, OF_ATLAS = "records", "tables", "atlas"


EXAMPLES = (
    (
        "esm-pipeline aggregate embed --bundle bundles/00000.fasta --ranges embed/00000 --count "
        "3 --out embeddings.h5 --status embed/00000.status.tsv",
        "one file from those of three ranges",
    ),
    (
        "esm-pipeline aggregate records --bundles bundles --count 1 --status embed=embed --out "
        "records.tsv --counts records.json",
        "the table of all records, with the outcomes of `embed`",
    ),
    (
        "esm-pipeline aggregate tables --out structures.tsv structures/00000.tsv "
        "structures/00001.tsv",
        "one table from those of two bundles",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `aggregate`."""
    commands = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    records = commands.add_parser(OF_RECORDS, help="records.tsv with the outcomes of all tasks")
    record_table.add_record_arguments(records)
    tables = commands.add_parser(OF_TABLES, help="one table from those of all bundles")
    record_table.add_table_arguments(tables)
    atlas = commands.add_parser(OF_ATLAS, help="structures.parquet from structures.tsv")
    atlas.add_argument("table", type=Path, metavar="TABLE", help="structures.tsv of a sample")
    atlas.add_argument("--out", required=True, type=Path, help="table to write, Parquet")
    tasks = commands_with("aggregate")
    gathered = [commands.add_parser(task, help=f"results of {task}") for task in tasks]
    for task in gathered:
        task.add_argument(
            "--bundle", required=True, type=Path, metavar="FASTA", help="bundle of `shard`"
        )
        task.add_argument(
            "--ranges", required=True, type=Path, metavar="DIR", help="folder of the ranges' files"
        )
        task.add_argument("--count", required=True, type=number_of_parts, help="their number")
        task.add_argument(
            "--status",
            required=True,
            type=Path,
            metavar="FILE",
            help=f"status table to write: NAME{OF_BUNDLE}, with digests in NAME.sha256",
        )
        task.add_argument("--out", required=True, type=Path, help="file to write")
        task.add_argument("--quiet", action="store_true", help="no summary")


def outputs(args: argparse.Namespace) -> Outputs:
    """What `aggregate` writes. Raises InputError if it would replace what it reads."""
    if args.what == OF_RECORDS:
        return record_table.record_outputs(args)
    if args.what == OF_TABLES:
        return record_table.table_outputs(args)
    if args.what == OF_ATLAS:
        require_apart([args.out], [args.table])
        return Outputs([args.out])
    files = [args.out, args.status, digests_of(args.status)]
    fasta = args.bundle
    require_apart(files, [fasta, index_path(fasta), record_table_of(fasta)])
    return Outputs(files)


def digests_of(status: Path) -> Path:
    """The list of digests next to a status table. Raises InputError for another name."""
    if not status.name.endswith(OF_BUNDLE):
        raise InputError(f"{status}: cannot be written; let its name end in {OF_BUNDLE}")
    return listing_of(status)


def run(args: argparse.Namespace) -> int:
    """Gather results or merge tables; returns 0: `verdict` judges failed records."""
    quiet = getattr(args, "quiet", False)
    with waiting(f"aggregate {args.what}: writing {args.out}", quiet=quiet):
        if args.what == OF_RECORDS:
            record_table.write_record_table(args)
        elif args.what == OF_TABLES:
            record_table.write_merged_table(args)
        elif args.what == OF_ATLAS:
            from esm_pipeline.formats.atlas_table import write_atlas_table

            ending_of(args.out, (".parquet",))
            with atomic_path(args.out) as path:
                write_atlas_table(args.table, path)
        else:
            gather_bundle(args)
    return 0


def remove_other_cuts(folder: Path, count: int) -> None:
    """Remove what jobs have left that cut the bundle into other ranges than `count`.

    A run that ended before it gathered them leaves such files, if the next one makes other jobs.
    """
    for path in folder.iterdir():
        match = RANGE.fullmatch(path.stem)
        if match and path.suffix == RANGE_ENDING and int(match[2]) != count:
            path.unlink()


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
    remove_other_cuts(args.ranges, args.count)
    if not args.quiet:
        seconds = time.perf_counter() - started
        unit = f"records of {count_text(args.count, 'ranges')}"
        found = format_counts(records.counts, unit)
        print(f"aggregate {args.what}: {found}; {seconds:.1f} s; wrote {args.out}", file=sys.stderr)
