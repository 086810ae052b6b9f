"""Write the structures that `fold` computed as files: PDB, mmCIF, aligned errors, and their tables.

Needs no model and no PyTorch. OUTDIR gets `structures.tsv`, with a row for every record of the
input, `structures.parquet`, the same with the columns of the ESM Metagenomic Atlas, `flags.tsv`,
with the residues behind each flag, `chain_pairs.tsv`, with the confidence of each two chains of a
complex, `structures/`, `pae/`, and `structures.sha256` with the digests of the files in both. Files
of previous runs are replaced.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import InvalidStateError, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from esm_pipeline.errors import CapacityError, InputError, setting
from esm_pipeline.files import atomic_folder, atomic_path, naming_errors, require_apart
from esm_pipeline.flags import add_flags, number_of_threads, require_file, section_from
from esm_pipeline.formats.checksums import check_listed, line
from esm_pipeline.formats.foldcomp_database import EntriesFile
from esm_pipeline.formats.records import Record, read_records
from esm_pipeline.formats.results.structures import Structures
from esm_pipeline.formats.structure_archives import archive_name, member_name
from esm_pipeline.formats.structure_files import (
    DATABASE,
    RECORDS_PER_FOLDER,
    FileBundle,
    file_stem,
    folder_name,
    require_ours,
)
from esm_pipeline.interruption import leave_to_parent
from esm_pipeline.locks import Outputs
from esm_pipeline.parsers import INPUT_OUTPUT, SPEED_GROUP, group_of
from esm_pipeline.settings.sections import StructureSettings
from esm_pipeline.structure.foldcomp_codec import foldcomp_entry, require_foldcomp
from esm_pipeline.structure.modelcif import ErrorFile
from esm_pipeline.structure.pae import cif_bytes, json_bytes, npz_bytes
from esm_pipeline.structure.structure import Structure
from esm_pipeline.tasks.common.outcomes import listing_of, with_outcomes
from esm_pipeline.tasks.common.outputs import require_folder_name
from esm_pipeline.tasks.common.progress import Amounts, progress
from esm_pipeline.tasks.fold.collected import Collector, WrittenArchive, WrittenGroup
from esm_pipeline.tasks.fold.extraction import add_id_arguments, key_of, outputs_of_one, write_one
from esm_pipeline.tasks.fold.plan import FOLD
from esm_pipeline.tasks.fold.tables import (
    ATLAS_TABLE,
    PAE,
    STRUCTURE_TABLES,
    STRUCTURES_FOLDER,
    StructureFacts,
    kinds_written,
    write_structure_tables,
)
from esm_pipeline.tasks.fold.texts import StructureNames, remarks_of, structure_text

DIGESTS = "structures.sha256"
PAE_BYTES: dict[str, Callable[[Structure, str], bytes]] = {
    "json": lambda structure, _: json_bytes(structure),
    "npz": lambda structure, _: npz_bytes(structure),
    "cif": cif_bytes,
}
"""The contents of a file of aligned errors, from the structure and the stem of its file's name."""


EXAMPLES = (
    (
        "esm-pipeline structures --records structures.records.tsv --formats cif structures.h5 "
        "files",
        "mmCIF files of the structures that `fold` wrote to structures.h5",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `structures`."""
    files = group_of(parser, INPUT_OUTPUT)
    files.add_argument(
        "arrays",
        metavar="STRUCTURES.h5",
        type=Path,
        help="HDF5 that `fold` wrote; with --id or --index also what `structures` wrote (OUTDIR or "
        "its structures.tsv), or a Foldcomp database",
    )
    files.add_argument(
        "output",
        metavar="OUTDIR",
        type=Path,
        help="folder for the files; with --id or --index a file, .pdb or .cif, or - for standard "
        "output",
    )
    add_id_arguments(files)
    files.add_argument(
        "--records", type=Path, help="records.tsv of the input; required without --id and --index"
    )
    files.add_argument(
        "--status", type=Path, help="status table of `fold`, if --records has no outcomes of it"
    )
    group_of(parser, SPEED_GROUP).add_argument(
        "--threads", type=number_of_threads, default=1, help="processes (default: 1)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress, no summary")
    add_flags(parser, StructureSettings)


def outputs(args: argparse.Namespace) -> Outputs:
    """What `structures` writes."""
    if key_of(args) is not None:
        return Outputs(outputs_of_one(args.arrays, args.output))
    if args.records is None:
        raise InputError("structures: --records is missing; give the records.tsv of the input")
    require_folder_name(args.output, "structures")
    written = written_to(args.output)
    inputs = filter(None, [args.arrays, args.records, args.status])
    require_apart(list(filter(None, written.files)), inputs)
    return written


def written_to(folder: Path) -> Outputs:
    """What `write_files` writes into a folder. Raises InputError if it holds other files."""
    folders = [folder / STRUCTURES_FOLDER, folder / PAE]
    for one in folders:
        require_ours(one)
    names = (*STRUCTURE_TABLES, ATLAS_TABLE, DIGESTS)
    return Outputs([folder / name for name in names], folders)


def run(args: argparse.Namespace) -> int:
    """Write the files; returns 0: `verdict` judges failed records."""
    started = time.perf_counter()
    key = key_of(args)
    if key is not None:
        write_one(args.arrays, key, args.output)
        return 0
    settings = section_from(StructureSettings, args)
    for path in (args.arrays, args.records, *([args.status] if args.status else [])):
        require_file(str(path))
    statuses = {FOLD: args.status} if args.status else {}
    if args.status:
        check_listed(args.arrays, listing_of(args.status))
    records = with_outcomes(args.records, statuses) if statuses else read_records(args.records)
    count = write_files(
        args.arrays, args.output, records, settings, processes=args.threads, quiet=args.quiet
    )
    if not args.quiet:
        seconds = time.perf_counter() - started
        print(f"structures: {count:,} written, {seconds:.1f} s", file=sys.stderr)
    return 0


def require_packages(settings: StructureSettings) -> None:
    """Raise InputError if a package for the formats of `settings` is missing."""
    if DATABASE in settings.formats:
        require_foldcomp()


def write_files(
    arrays: Path,
    output: Path,
    records: Iterable[Record],
    settings: StructureSettings,
    *,
    processes: int = 1,
    quiet: bool = False,
) -> int:
    """Write all files of the structures in `arrays` into the folder `output`; returns their number.

    `records` are all of the input, with their outcomes. The folders are moved into place when they
    are complete, then the tables. Raises InputError if `output` holds other files, or records and
    arrays do not belong together.
    """
    require_packages(settings)
    folders = written_to(output).replaced
    output.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        tables = [stack.enter_context(atomic_path(output / name)) for name in STRUCTURE_TABLES]
        atlas = stack.enter_context(atomic_path(output / ATLAS_TABLE))
        digests = stack.enter_context(atomic_path(output / DIGESTS))
        files, errors = (stack.enter_context(atomic_folder(folder)) for folder in folders)
        jobs = [WriteJob(arrays, group, files, errors, settings) for group in groups(arrays)]
        facts = stack.enter_context(tempfile.TemporaryFile("w+", encoding="ascii", dir=output))
        database = files / DATABASE if DATABASE in settings.formats else None
        tops = {STRUCTURES_FOLDER: files, PAE: errors}
        collector = Collector(tops, database, settings.archive_records, indexed(settings))
        with naming_errors(digests), open(digests, "w", encoding="ascii") as listing:
            write_groups(jobs, processes, listing, facts, collector, quiet=quiet)
            facts.seek(0)
            entries = write_structure_tables(tables, arrays, records, settings, facts)
            listing.writelines(collector.finish(STRUCTURES_FOLDER, entries))
        from esm_pipeline.formats.atlas_table import write_atlas_table

        write_atlas_table(tables[0], atlas)
        for old in (*STRUCTURE_TABLES, ATLAS_TABLE, DIGESTS):
            (output / old).unlink(missing_ok=True)  # they describe the previous folders
    if not settings.pae:
        (output / PAE).resolve().rmdir()
    return sum(len(job.group) for job in jobs)


def indexed(settings: StructureSettings) -> list[str]:
    """The folders whose files are in archives, if there are any."""
    if not settings.archive:
        return []
    has_files = {STRUCTURES_FOLDER: settings.formats != [DATABASE], PAE: bool(settings.pae)}
    return [name for name, there in has_files.items() if there]


class StoredStructure(NamedTuple):
    """A structure: its row, and the first record with its sequence."""

    row: int
    first: int
    id: str


@dataclass(frozen=True)
class WriteJob:
    """Files that one process writes."""

    arrays: Path
    group: list[StoredStructure]  # those whose files share a folder
    structures: Path
    pae: Path
    settings: StructureSettings


def groups(path: Path) -> Iterator[list[StoredStructure]]:
    """The structures in `path` in the order of their first records, folder by folder."""
    with Structures.open(path) as arrays:
        rows, firsts = np.unique(arrays.row, return_index=True)  # records are in input order
        order = np.argsort(firsts)
        rows, firsts = rows[order], firsts[order]
        index, ids = arrays.index[firsts], arrays.ids
        for folder in np.unique(index // RECORDS_PER_FOLDER):
            chosen = index // RECORDS_PER_FOLDER == folder
            names = [ids[place] for place in firsts[chosen].tolist()]
            yield list(map(StoredStructure, rows[chosen].tolist(), index[chosen].tolist(), names))


def write_groups(
    jobs: list[WriteJob],
    processes: int,
    listing: IO[str],
    facts: IO[str],
    collector: Collector,
    *,
    quiet: bool,
) -> None:
    """Write all files, their digests to `listing`, and to `facts` what the tables say of each."""
    amounts = Amounts(sum(len(job.group) for job in jobs), "structures")
    with ExitStack() as stack:
        done: Iterator[WrittenGroup] = map(write_group, jobs)
        if min(processes, len(jobs)) > 1:
            done = stack.enter_context(in_processes(min(processes, len(jobs)), jobs))
        advance = stack.enter_context(progress("structures", amounts, quiet=quiet, short=True))
        for job, written in zip(jobs, done, strict=True):
            listing.write(written.digests)
            facts.write(written.facts)
            collector.add(written)
            advance(len(job.group))


@contextmanager
def in_processes(count: int, jobs: list[WriteJob]) -> Iterator[Iterator[WrittenGroup]]:
    """Run `jobs` in `count` processes; yields the results of `write_group`.

    On an error the processes are killed at once.
    """
    others, hook = set(multiprocessing.active_children()), threading.excepthook
    pool = ProcessPoolExecutor(count, initializer=leave_to_parent)
    try:
        yield pool.map(write_group, jobs)
    except BrokenProcessPool:
        raise CapacityError(
            f"{jobs[0].arrays}: a process that wrote structures was killed, as happens when memory "
            f"runs out; lower {setting('fold.threads')}, or use a machine with more"
        ) from None
    except BaseException:
        threading.excepthook = report_unless_cancelled
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        threading.excepthook = hook


def report_unless_cancelled(error: threading.ExceptHookArgs) -> None:
    """Print what ended a thread, unless it failed to notify a cancelled job of a dead process."""
    if error.exc_type is not InvalidStateError:
        threading.__excepthook__(error)


def write_group(job: WriteJob) -> WrittenGroup:
    """Write the files of one folder."""
    found = []
    folder, archived = folder_name(job.group[0].first), job.settings.archive
    with (
        Structures.open(job.arrays) as arrays,
        FileBundle(job.structures, folder, archive=archived) as files,
        FileBundle(job.pae, folder, archive=archived) as errors,
        EntriesFile(job.structures, folder) as entries,
    ):
        for row, first, name in job.group:
            structure, stem = arrays.structure(row), file_stem(first, name)
            flags = arrays.flags(row)
            facts = StructureFacts.of(structure, row, flags)
            names = StructureNames(stem, name, error_file(job.settings, first, stem))
            remarks = remarks_of(arrays.origin, flags, structure)
            texts: dict[str, bytes] = {}
            if DATABASE in job.settings.formats:
                if not facts.unfit:
                    texts["pdb"] = structure_text("pdb", structure, names, remarks)
                data, why = entry_of(structure, name, texts.get("pdb", b""), facts.unfit)
                facts = facts._replace(refused=why, size=entries.add(data))
            for kind in kinds_written(job.settings, facts):
                if kind != DATABASE:
                    text = texts.get(kind) or structure_text(kind, structure, names, remarks)
                    files.add(f"{stem}.{kind}", text, first, name)
            for kind in job.settings.pae:
                errors.add(f"{stem}.{kind}", PAE_BYTES[kind](structure, stem), first, name)
            found.append(facts.line())
    bundles = {STRUCTURES_FOLDER: files, PAE: errors}
    return WrittenGroup(
        "".join(
            line(digest, f"{top}/{file}")
            for top, bundle in bundles.items()
            for file, digest in bundle.digests.items()
        ),
        "".join(found),
        {
            top: WrittenArchive(bundle.part, bundle.members)
            for top, bundle in bundles.items()
            if bundle.members
        },
        entries.path if entries.written else None,
    )


def entry_of(structure: Structure, name: str, pdb: bytes, unfit: str) -> tuple[bytes, str]:
    """An entry of the Foldcomp database, or nothing, and why."""
    if unfit:
        return b"", unfit
    return foldcomp_entry(structure, name, pdb.decode("ascii"))


def error_file(settings: StructureSettings, index: int, stem: str) -> ErrorFile | None:
    """Where the mmCIF of the aligned errors is, from the file of the structure, if there is one."""
    if "cif" not in settings.pae:
        return None
    path = f"{folder_name(index)}/{stem}.cif"
    if settings.archive:
        archive = archive_name(index, settings.archive_records)
        return ErrorFile(f"../{PAE}/{archive}", member_name(path))
    return ErrorFile(f"../../{PAE}/{path}")
