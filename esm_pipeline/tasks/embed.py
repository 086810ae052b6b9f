"""Embed protein sequences: FASTA in, representations of every sequence out, as HDF5.

Beside OUT.h5 stands OUT.records.tsv, with the fate of every record. The input is validated before
PyTorch is loaded, so that a bad file fails at once.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
from numpy.typing import NDArray

from esm_pipeline.cli import add_common, add_flags, exit_code, section_from
from esm_pipeline.errors import InputError
from esm_pipeline.files import atomic_path, atomic_paths, is_same, require_regular
from esm_pipeline.formats.digests import write_digests
from esm_pipeline.formats.fasta import STANDARD_INPUT
from esm_pipeline.formats.hdf5 import Entry, RaggedWriter
from esm_pipeline.formats.records import FAILED, OK, SKIPPED, Outcome, Record, write_records
from esm_pipeline.settings import CleaningSettings, EmbedSettings
from esm_pipeline.tasks.gathering import gather_ragged
from esm_pipeline.tasks.intake import Intake, open_intake
from esm_pipeline.tasks.progress import progress

if TYPE_CHECKING:
    from esm_pipeline.tasks.representations import Embedded, Encoder

TASK = "embed"
SUFFIX = ".h5"
aggregate = gather_ragged

Int64 = NDArray[np.int64]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `embed`."""
    parser.add_argument("fasta", metavar="IN.fasta", help="FASTA, plain or gzip; - reads stdin")
    parser.add_argument("output", metavar="OUT.h5", type=Path, help="HDF5 file to write")
    parser.add_argument(
        "--model",
        required=True,
        help="hub id, folder with a checkpoint, fair-esm file, demo, or a file of `download --out`",
    )
    parser.add_argument("--revision", help="commit, tag or branch of a hub model")
    parser.add_argument("--allow-empty", action="store_true", help="accept a FASTA with no record")
    parser.add_argument("--sha256", type=Path, metavar="FILE", help="write digests of the outputs")
    add_flags(parser, EmbedSettings)
    add_flags(parser, CleaningSettings)
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Embed `args.fasta`; returns the exit code."""
    started = time.perf_counter()
    settings = section_from(EmbedSettings, args)
    cleaning = section_from(CleaningSettings, args)
    table = check_output(args.output, args.fasta, args.sha256)
    folder = args.output.parent
    with open_intake([args.fasta], cleaning, folder, allow_empty=args.allow_empty) as intake:
        from esm_pipeline.tasks.device import set_threads
        from esm_pipeline.tasks.representations import Encoder

        set_threads(settings.threads)
        encoder = Encoder(args.model, args.revision, settings)
        plan = Plan(intake, encoder.config.max_residues, settings.long)
        listing = [args.sha256] if args.sha256 else []
        with atomic_paths(args.output, table, *listing) as (path, told, *digests):
            embed(encoder, plan, path, quiet=args.quiet)
            counts = write_outcomes(told, plan)
            if args.sha256:
                names = (os.path.relpath(file, args.sha256.parent) for file in (args.output, table))
                write_digests(digests[0], dict(zip(names, (path, told), strict=True)))
    if not args.quiet:
        line = summary(counts, plan, encoder, time.perf_counter() - started)
        see = f"; see {table}" if counts[FAILED] and args.on_failure == "error" else ""
        print(line + see, file=sys.stderr)
    return exit_code(counts[FAILED], args.on_failure)


def check_model(args: argparse.Namespace) -> None:
    """Raise now what every job with these settings would fail at, without loading the weights."""
    from esm_pipeline.tasks.representations import Encoder

    encoder = Encoder(args.model, args.revision, section_from(EmbedSettings, args))
    check_policy(encoder.config.max_residues, encoder.settings.long)
    encoder.check()


def check_policy(limit: int | None, policy: str) -> None:
    """Raise InputError for `full` where the model has positions for `limit` residues only."""
    if limit is not None and policy == "full":
        raise InputError(
            f"embed.long is 'full', but the model has positions for {limit} residues only; "
            "set it to skip or truncate"
        )


def check_output(output: Path, fasta: str, digests: Path | None = None) -> Path:
    """Where the table of records goes, beside `output`.

    Raises InputError if it, `output` or `digests` cannot be written, or would replace another or
    the input.
    """
    if not output.name:
        raise InputError(f"{output}: a folder; name a file for the output")
    table = output.with_name(output.name.removesuffix(SUFFIX) + ".records.tsv")
    taken = {"the input itself": Path("/dev/stdin" if fasta == STANDARD_INPUT else fasta)}
    places = {"the output itself": output, "the table of records": table}
    for what, path in (*places.items(), *([("", digests)] if digests else ())):
        if path.is_dir():
            raise InputError(f"{path}: a folder; name a file for the output")
        require_regular(path)
        parent = next(parent for parent in path.parents if parent.exists())
        if not parent.is_dir():
            raise InputError(f"{parent}: not a folder; choose another one for the output")
        for other, file in taken.items():
            if is_same(path, file):
                raise InputError(f"{path}: {other}; name another file for the output")
        taken[what] = path
    return table


class Plan:
    """Which unique sequences are embedded, how much of each, and what became of it.

    `limit` is the most residues that the model has positions for, None without a limit; `policy` is
    the setting `long`. Raises InputError if they contradict each other.
    """

    def __init__(self, intake: Intake, limit: int | None, policy: str) -> None:
        check_policy(limit, policy)
        self.intake, self.limit, self.truncate = intake, limit, policy == "truncate"
        lengths = intake.lengths
        self.lengths = lengths if limit is None else np.minimum(lengths, limit)
        self.too_long: NDArray[np.bool_] = lengths > self.lengths
        self.failures: dict[int, str] = {}

    def rows(self) -> Int64:
        """(U,) row of each unique sequence; -1 if it is skipped or has failed."""
        kept = np.ones(len(self.lengths), bool) if self.truncate else ~self.too_long
        kept[list(self.failures)] = False
        return np.where(kept, np.cumsum(kept) - 1, -1)

    def sequences(self, unique: Int64) -> list[str]:
        """The residues to embed of some unique sequences."""
        lengths = self.lengths[unique].tolist()
        texts = self.intake.sequences(unique)
        return [text[:length].decode() for text, length in zip(texts, lengths, strict=True)]

    def outcome(self, record: Record) -> Outcome:
        """What became of a record."""
        if record.status != OK:
            return Outcome(SKIPPED, record.reason)
        unique = int(self.intake.unique[record.index])
        if unique < 0:
            return Outcome(SKIPPED, "a complex of several chains; split it at ':'")
        if unique in self.failures:
            return Outcome(FAILED, self.failures[unique])
        if not self.too_long[unique]:
            return Outcome(OK)
        if self.truncate:
            return Outcome(OK, f"truncated to the first {self.limit} residues")
        return Outcome(
            SKIPPED,
            f"{self.intake.lengths[unique]} residues, but the model has positions for "
            f"{self.limit}; set embed.long to truncate, or use a rotary model such as ESM-2",
        )

    def entries(self, rows: Int64) -> Iterator[Entry]:
        """Every record whose sequence has one of `rows`."""
        for record in self.intake.records():
            unique = int(self.intake.unique[record.index])
            if unique >= 0 and rows[unique] >= 0:
                yield Entry(record.id, record.index, int(rows[unique]))

    def entry_count(self, rows: Int64) -> int:
        """The number of `entries`."""
        unique = self.intake.unique
        return int(np.count_nonzero(rows[unique[unique >= 0]] >= 0))


def embed(encoder: Encoder, plan: Plan, path: Path, *, quiet: bool = False) -> None:
    """Embed what `plan` says into a new file at `path`; notes in the plan what failed."""
    rows = plan.rows()
    with open_writer(encoder, plan, rows, path) as writer:
        compute(encoder, plan, np.flatnonzero(rows >= 0), writer, quiet=quiet)
    if plan.failures:
        leave_out_failures(encoder, plan, rows, path)


def open_writer(encoder: Encoder, plan: Plan, rows: Int64, path: Path) -> RaggedWriter:
    """A new file at `path` for the sequences that have `rows`."""
    return RaggedWriter(
        path,
        encoder.arrays,
        plan.lengths[rows >= 0],
        plan.entry_count(rows),
        plan.entries(rows),
        encoder.attributes,
    )


def compute(
    encoder: Encoder, plan: Plan, unique: Int64, writer: RaggedWriter, *, quiet: bool
) -> None:
    """Embed the `unique` sequences, (rows,) of them, batch by batch into the rows of `writer`."""
    from esm_pipeline.tasks.batching import run_with_ladder, token_batches

    def embed_rows(rows: Int64) -> Embedded:
        return encoder(plan.sequences(unique[rows]))

    if len(unique):
        encoder.load()
    lengths = plan.lengths[unique]
    with progress("embed", int(lengths.sum()), "residues", quiet=quiet) as advance:
        for batch in token_batches(lengths, encoder.settings.token_budget):
            for rows, embedded in run_with_ladder(batch, embed_rows):
                if embedded is None:
                    one = int(rows[0])
                    plan.failures[int(unique[one])] = (
                        f"{lengths[one]} residues do not fit into memory, even alone; use a "
                        "machine with more"
                    )
                else:
                    for name, values in embedded.values.items():
                        writer.write(name, rows, values)
                    for place, reason in embedded.problems.items():
                        plan.failures[int(unique[rows[place]])] = reason
                advance(int(lengths[rows].sum()))


def leave_out_failures(encoder: Encoder, plan: Plan, rows: Int64, path: Path) -> None:
    """Write the file at `path` anew without the rows of what failed."""
    kept = plan.rows()
    with (
        atomic_path(path) as smaller,
        h5py.File(path) as source,
        open_writer(encoder, plan, kept, smaller) as writer,
    ):
        writer.copy(source, kept[rows >= 0])


def write_outcomes(table: Path, plan: Plan) -> Counter[str]:
    """Write the table of records; returns the number of each status."""
    counts: Counter[str] = Counter()

    def told(record: Record) -> Record:
        outcome = plan.outcome(record)
        counts[outcome.status] += 1
        return record.with_outcome(TASK, *outcome)

    write_records(table, map(told, plan.intake.records()), [TASK])
    return counts


def summary(counts: Counter[str], plan: Plan, encoder: Encoder, seconds: float) -> str:
    """One line on a finished run."""
    residues = int(plan.lengths[plan.rows() >= 0].sum())
    told = ", ".join(f"{counts[status]:,} {status}" for status in (OK, SKIPPED, FAILED))
    return (
        f"embed: {counts.total():,} records: {told}; {residues:,} residues in {seconds:.1f} s, "
        f"{encoder.seconds:.1f} s of it in the model; {residues / seconds:,.0f} residues/s"
    )
