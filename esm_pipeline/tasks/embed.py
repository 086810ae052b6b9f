"""Embed protein sequences: FASTA in, representations of every sequence out, as HDF5.

Beside OUT.h5 stands OUT.records.tsv, with the fate of every record. The input is validated before
PyTorch is loaded, so that a bad file fails at once.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from esm_pipeline.cli import add_common, add_flags, exit_code, section_from
from esm_pipeline.files import atomic_paths
from esm_pipeline.formats.hdf5 import RaggedWriter
from esm_pipeline.formats.records import FAILED, OK, SKIPPED
from esm_pipeline.sections import CleaningSettings, EmbedSettings
from esm_pipeline.tasks.gathering import gather_ragged
from esm_pipeline.tasks.intake import open_intake
from esm_pipeline.tasks.model_file import MODEL_HELP
from esm_pipeline.tasks.outputs import check_output, vouch
from esm_pipeline.tasks.planning import DOES_NOT_FIT, Layout, Plan, Reach
from esm_pipeline.tasks.progress import progress

if TYPE_CHECKING:
    from esm_pipeline.tasks.representations import Embedded, Encoder

TASK = "embed"
SUFFIX = ".h5"
MODEL_SETTINGS = EmbedSettings
aggregate = gather_ragged

Int64 = NDArray[np.int64]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `embed`."""
    parser.add_argument("fasta", metavar="IN.fasta", help="FASTA, plain or gzip; - reads stdin")
    parser.add_argument("output", metavar="OUT.h5", type=Path, help="HDF5 file to write")
    parser.add_argument("--model", required=True, help=MODEL_HELP)
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
    table = check_output(args.output, [args.fasta], [args.sha256], [SUFFIX])
    folder = args.output.parent
    with open_intake([args.fasta], cleaning, folder, allow_empty=args.allow_empty) as intake:
        from esm_pipeline.tasks.device import set_threads
        from esm_pipeline.tasks.representations import Encoder

        set_threads(settings.threads)
        encoder = Encoder(args.model, args.revision, settings)
        plan = Plan(intake, Reach.choose(TASK, [encoder.config.max_residues], settings.long))
        listing = [args.sha256] if args.sha256 else []
        with atomic_paths(args.output, table, *listing) as (path, told, *digests):
            embed(encoder, plan, path, quiet=args.quiet)
            counts = plan.write_outcomes(told)
            if args.sha256:
                vouch(digests[0], args.sha256, {args.output: path, table: told})
    if not args.quiet:
        line = summary(counts, plan, encoder, time.perf_counter() - started)
        see = f"; see {table}" if counts[FAILED] and args.on_failure == "error" else ""
        print(line + see, file=sys.stderr)
    return exit_code(counts[FAILED], args.on_failure)


def check_model(args: argparse.Namespace) -> None:
    """Raise now what every job with these settings would fail at, without loading the weights."""
    from esm_pipeline.tasks.representations import Encoder

    encoder = Encoder(args.model, args.revision, section_from(EmbedSettings, args))
    Reach.choose(TASK, [encoder.config.max_residues], encoder.settings.long)
    encoder.check()


def embed(encoder: Encoder, plan: Plan, path: Path, *, quiet: bool = False) -> None:
    """Embed what `plan` says into a new file at `path`; notes in the plan what failed."""
    rows, layout = plan.rows(), Layout(encoder.arrays, encoder.attributes)
    with layout.writer(path, plan, rows) as writer:
        compute(encoder, plan, np.flatnonzero(rows >= 0), writer, quiet=quiet)
    if plan.failures:
        layout.leave_out_failures(path, plan, rows)


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
                    plan.failures[int(unique[one])] = DOES_NOT_FIT.format(lengths[one])
                else:
                    for name, values in embedded.values.items():
                        writer.write(name, rows, values)
                    for place, reason in embedded.problems.items():
                        plan.failures[int(unique[rows[place]])] = reason
                advance(int(lengths[rows].sum()))


def summary(counts: Counter[str], plan: Plan, encoder: Encoder, seconds: float) -> str:
    """One line on a finished run."""
    residues = int(plan.lengths[plan.rows() >= 0].sum())
    told = ", ".join(f"{counts[status]:,} {status}" for status in (OK, SKIPPED, FAILED))
    return (
        f"embed: {counts.total():,} records: {told}; {residues:,} residues in {seconds:.1f} s, "
        f"{encoder.seconds:.1f} s of it in the model; {residues / seconds:,.0f} residues/s"
    )
