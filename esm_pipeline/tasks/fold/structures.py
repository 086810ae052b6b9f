"""Write the structures that `fold` computed as files: PDB, mmCIF, aligned errors, and their table.

Needs no model and no PyTorch. OUTDIR gets `structures.tsv`, with a row for every record of the
input, `structures/`, `pae/`, and `structures.sha256` with the digests of the files in both. Files
of previous runs are replaced.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import InvalidStateError, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from esm_pipeline.errors import CapacityError, InputError, setting
from esm_pipeline.files import atomic_folder, atomic_path, naming_errors
from esm_pipeline.flags import add_flags, require_file, section_from
from esm_pipeline.formats.checksums import check_listed, line
from esm_pipeline.formats.records import OK, Record, format_row, read_records
from esm_pipeline.formats.results.structures import Structures
from esm_pipeline.formats.structure_files import (
    RECORDS_PER_FOLDER,
    STRUCTURE_COLUMNS,
    FileBundle,
    file_stem,
    folder_name,
    require_ours,
)
from esm_pipeline.interruption import leave_to_parent
from esm_pipeline.locks import Outputs
from esm_pipeline.parsers import INPUT_OUTPUT, SPEED_GROUP, group_of
from esm_pipeline.settings.sections import StructureSettings
from esm_pipeline.structure.modelcif import cif_text
from esm_pipeline.structure.pae import json_bytes, npz_bytes
from esm_pipeline.structure.pdb import pdb_problem, pdb_text
from esm_pipeline.structure.structure import MEANINGLESS, RANDOM, Structure
from esm_pipeline.tasks.common.outcomes import listing_of, with_outcomes
from esm_pipeline.tasks.common.outputs import require_folder_name
from esm_pipeline.tasks.common.progress import Amounts, progress
from esm_pipeline.tasks.fold.plan import FOLD

STRUCTURES_TABLE, STRUCTURES_FOLDER, PAE = "structures.tsv", "structures", "pae"
DIGESTS = "structures.sha256"
NOT_PDB = "not_pdb"
"""Flag of a structure that does not fit into a PDB file and is written as mmCIF."""

PAE_BYTES = {"json": json_bytes, "npz": npz_bytes}


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
    files.add_argument("arrays", metavar="STRUCTURES.h5", type=Path, help="HDF5 that `fold` wrote")
    files.add_argument("output", metavar="OUTDIR", type=Path, help="folder for the files")
    files.add_argument("--records", required=True, type=Path, help="records.tsv of the input")
    files.add_argument(
        "--status", type=Path, help="status table of `fold`, if --records has no outcomes of it"
    )
    group_of(parser, SPEED_GROUP).add_argument(
        "--threads", type=int, default=1, help="processes (default: 1)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress, no summary")
    add_flags(parser, StructureSettings)


def outputs(args: argparse.Namespace) -> Outputs:
    """What `structures` writes."""
    require_folder_name(args.output, "structures")
    return written_to(args.output)


def written_to(folder: Path) -> Outputs:
    """What `write_files` writes into a folder. Raises InputError if it holds other files."""
    folders = [folder / STRUCTURES_FOLDER, folder / PAE]
    for one in folders:
        require_ours(one)
    return Outputs([folder / STRUCTURES_TABLE, folder / DIGESTS], folders)


def run(args: argparse.Namespace) -> int:
    """Write the files; returns 0: `verdict` judges failed records."""
    started = time.perf_counter()
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
    are complete, then the table. Raises InputError if `output` holds other files, or records and
    arrays do not belong together.
    """
    folders = written_to(output).replaced
    with ExitStack() as stack:
        table = stack.enter_context(atomic_path(output / STRUCTURES_TABLE))
        digests = stack.enter_context(atomic_path(output / DIGESTS))
        files, errors = (stack.enter_context(atomic_folder(folder)) for folder in folders)
        jobs = [WriteJob(arrays, group, files, errors, settings) for group in groups(arrays)]
        with naming_errors(digests), open(digests, "w", encoding="ascii") as listing:
            unfit = write_groups(jobs, processes, listing, quiet=quiet)
        write_structure_table(table, arrays, records, settings, unfit)
        for old in (STRUCTURES_TABLE, DIGESTS):
            (output / old).unlink(missing_ok=True)  # they describe the previous folders
    if not settings.pae:
        (output / PAE).resolve().rmdir()
    return sum(len(job.group) for job in jobs)


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
    """The structures in `path`, folder by folder."""
    with Structures.open(path) as arrays:
        rows, firsts = np.unique(arrays.row, return_index=True)  # records are in input order
        index, ids = arrays.index[firsts], arrays.ids
        for folder in np.unique(index // RECORDS_PER_FOLDER):
            chosen = index // RECORDS_PER_FOLDER == folder
            names = [ids[place] for place in firsts[chosen].tolist()]
            yield list(map(StoredStructure, rows[chosen].tolist(), index[chosen].tolist(), names))


def write_groups(
    jobs: list[WriteJob], processes: int, listing: IO[str], *, quiet: bool
) -> set[int]:
    """Write all files, and their digests to `listing`.

    Returns the rows that do not fit into a PDB file.
    """
    unfit: set[int] = set()
    amounts = Amounts(sum(len(job.group) for job in jobs), "structures")
    with ExitStack() as stack:
        done: Iterator[tuple[set[int], str]] = map(write_group, jobs)
        if min(processes, len(jobs)) > 1:
            done = stack.enter_context(in_processes(min(processes, len(jobs)), jobs))
        advance = stack.enter_context(progress("structures", amounts, quiet=quiet, short=True))
        for job, (found, lines) in zip(jobs, done, strict=True):
            unfit |= found
            listing.write(lines)
            advance(len(job.group))
    return unfit


@contextmanager
def in_processes(count: int, jobs: list[WriteJob]) -> Iterator[Iterator[tuple[set[int], str]]]:
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


def write_group(job: WriteJob) -> tuple[set[int], str]:
    """Write the files of one folder.

    Returns the rows that do not fit into a PDB file, and the lines of the list of digests.
    """
    unfit = set()
    folder, zipped = folder_name(job.group[0].first), job.settings.archive
    with (
        Structures.open(job.arrays) as arrays,
        FileBundle(job.structures, folder, archive=zipped) as files,
        FileBundle(job.pae, folder, archive=zipped) as errors,
    ):
        for row, first, name in job.group:
            structure, stem = arrays.structure(row), file_stem(first, name)
            fits = pdb_problem(structure) is None
            unfit |= set() if fits else {row}
            facts = facts_of(arrays, row, structure)
            for kind in kinds_written(job.settings, fits=fits):
                files.add(f"{stem}.{kind}", structure_text(kind, structure, stem, name, facts))
            for kind in job.settings.pae:
                errors.add(f"{stem}.{kind}", PAE_BYTES[kind](structure.pae))
    written = ((STRUCTURES_FOLDER, files.digests), (PAE, errors.digests))
    named = [(f"{top}/{file}", found) for top, some in written for file, found in some.items()]
    return unfit, "".join(line(digest, file) for file, digest in named)


def kinds_written(settings: StructureSettings, *, fits: bool) -> list[str]:
    """The formats of a structure, which `fits` into a PDB file or not."""
    if fits:
        return list(settings.formats)
    return ["cif"]


def structure_text(
    kind: str, structure: Structure, stem: str, name: str, facts: dict[str, str]
) -> bytes:
    """The contents of one file. Raises InputError for a structure that biotite cannot write."""
    from biotite.file import SerializationError
    from biotite.structure import BadStructureError

    title = f"Predicted structure of {name}"
    try:
        if kind == "pdb":
            return pdb_text(structure, title, facts).encode("ascii")
        return cif_text(structure, stem, title, facts).encode("ascii")
    except (BadStructureError, SerializationError) as error:
        why = " ".join(str(error).split())
        raise InputError(f"{title}: cannot be written as {kind} ({why}); fold it again") from None


def facts_of(arrays: Structures, row: int, structure: Structure) -> dict[str, str]:
    """How a structure was made, and its confidence."""
    origin = arrays.origin
    facts = {"": MEANINGLESS} if origin[RANDOM] == "true" else {}
    facts["software"] = f"esm_pipeline {origin['software']}"
    for name in ("model", "revision", "weights_sha256", "dtype", "num_recycles"):
        if origin[name]:
            facts[name] = origin[name]
    facts |= structure.facts
    if flags := arrays.flags(row):
        facts["flags"] = " ".join(flags)
    return facts


def write_structure_table(
    target: Path,
    path: Path,
    records: Iterable[Record],
    settings: StructureSettings,
    unfit: set[int],
) -> None:
    """Write `structures.tsv`. Raises InputError if `records` are not those of the arrays."""
    with (
        Structures.open(path) as arrays,
        naming_errors(target),
        open(target, "w", encoding="utf-8", newline="") as handle,
    ):
        table = StructureTable(arrays, settings, unfit)
        handle.write(format_row(STRUCTURE_COLUMNS))
        for record in records:
            handle.write(format_row(table.cells(record)))
        table.require_end()


class StructureTable:
    """The rows of `structures.tsv`, in input order."""

    def __init__(self, arrays: Structures, settings: StructureSettings, unfit: set[int]) -> None:
        self.arrays, self.settings, self.unfit = arrays, settings, unfit
        self.shared = np.bincount(arrays.row, minlength=len(arrays.length)) > 1
        self.files: dict[int, str] = {}  # for rows that several records share
        self.place = 0

    def cells(self, record: Record) -> list[str]:
        """The row of a record."""
        outcome = record.outcomes.get(FOLD)
        if outcome is None:
            raise InputError(f"record {record.index} has no outcome of fold; give another table")
        length = "" if record.length is None else str(record.length)
        cells = [str(record.index), record.id, *outcome, length]
        if outcome.status != OK:
            return [*cells, *[""] * (len(STRUCTURE_COLUMNS) - len(cells))]
        return [*cells, *self.of_row(record, self.next_row(record))]

    def next_row(self, record: Record) -> int:
        """The row of the next stored record. Raises InputError if that is another one."""
        if self.place == len(self.arrays.index) or self.arrays.index[self.place] != record.index:
            raise InputError(
                f"{self.arrays.path}: its records differ from those of the table, first at "
                f"record {record.index}; make both again"
            )
        self.place += 1
        return int(self.arrays.row[self.place - 1])

    def require_end(self) -> None:
        """Raise InputError if there are more stored records."""
        if self.place < len(self.arrays.index):
            index = self.arrays.index[self.place]
            raise InputError(
                f"{self.arrays.path}: holds record {index}, which is not in the table; make both "
                "again"
            )

    def of_row(self, record: Record, row: int) -> list[str]:
        """The cells that describe the structure."""
        value = {name: values[row] for name, values in self.arrays.per_sequence.items()}
        iptm = "" if np.isnan(value["iptm"]) else f"{value['iptm']:.4f}"
        return [
            str(self.arrays.chain_count(row)),
            f"{value['mean_plddt']:.2f}",
            f"{value['ptm']:.4f}",
            iptm,
            self.arrays.origin["num_recycles"],
            str(value["chunk_size"] or ""),
            self.file(record, row),
            ";".join(self.flags(row)),
        ]

    def file(self, record: Record, row: int) -> str:
        """Path of a structure's file, named after the first record with the sequence."""
        if row in self.files:
            return self.files[row]
        kind = kinds_written(self.settings, fits=row not in self.unfit)[0]
        folder = folder_name(record.index) + (".zip" if self.settings.archive else "")
        path = f"{STRUCTURES_FOLDER}/{folder}/{file_stem(record.index, record.id)}.{kind}"
        if self.shared[row]:
            self.files[row] = path
        return path

    def flags(self, row: int) -> list[str]:
        """The flags of a structure and of its file."""
        found = self.arrays.flags(row)
        not_pdb = row in self.unfit and "pdb" in self.settings.formats
        return [*found, *([NOT_PDB] if not_pdb else [])]
