"""Fold protein sequences: FASTA in, a structure of every sequence out, with its confidences.

OUTDIR gets structures.tsv, structures/ and pae/; beside it stands OUTDIR.records.tsv, with the fate
of every record. An OUT that ends in .h5 gets all structures as arrays instead, from which
`esm-pipeline structures` writes the files. Chains of a complex are parted by `:`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from esm_pipeline.arrays import Int64
from esm_pipeline.errors import InputError, setting
from esm_pipeline.files import atomic_paths, require_regular
from esm_pipeline.flags import add_common, add_flags, exit_code, section_from
from esm_pipeline.formats.input_checksums import require_unchanged
from esm_pipeline.formats.records import FAILED, OK, SKIPPED, read_records
from esm_pipeline.formats.results.structures import ARRAYS, write_structures
from esm_pipeline.formats.results.writer import RaggedWriter
from esm_pipeline.locks import Outputs
from esm_pipeline.settings.sections import CleaningSettings, FoldSettings, StructureSettings
from esm_pipeline.tasks.common.endings import HDF5, require_folder_name
from esm_pipeline.tasks.common.outputs import check_output, vouch
from esm_pipeline.tasks.common.plan import Layout
from esm_pipeline.tasks.common.progress import progress
from esm_pipeline.tasks.common.sequences import open_intake
from esm_pipeline.tasks.common.shards import gather_ragged
from esm_pipeline.tasks.fold.plan import FoldPlan
from esm_pipeline.tasks.fold.structures import TABLE, write_files, written_to

if TYPE_CHECKING:
    from esm_pipeline.tasks.fold.batches import Rung
    from esm_pipeline.tasks.fold.predictor import Prediction, Predictor

SUFFIX = ".h5"
H5 = "structures.h5"
MODEL_SETTINGS = FoldSettings
aggregate = gather_ragged


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `fold`."""
    parser.add_argument("fasta", metavar="IN.fasta", help="FASTA, plain or gzip; - reads stdin")
    parser.add_argument(
        "output",
        metavar="OUTDIR",
        type=Path,
        help="folder for the structures, or an HDF5 file: .h5, .hdf5",
    )
    parser.add_argument(
        "--model",
        required=True,
        help="hub id, folder with a folding checkpoint, a file of `download --out`, or demo: "
        "random weights made on the spot, whose structures are meaningless",
    )
    parser.add_argument("--revision", help="commit, tag or branch of a hub model")
    parser.add_argument("--allow-empty", action="store_true", help="accept a FASTA with no record")
    parser.add_argument("--sha256", type=Path, metavar="FILE", help="write digests of the outputs")
    for section in (FoldSettings, StructureSettings, CleaningSettings):
        add_flags(parser, section)
    add_common(parser)


def outputs(args: argparse.Namespace) -> Outputs:
    """What `fold` writes. Raises InputError for a place that cannot be."""
    arrays, table = check_places(args.output, args.fasta, args.sha256)
    files = [arrays, table, args.sha256]
    if arrays == args.output:
        return Outputs(files)
    written = written_to(args.output)
    return Outputs([*files, *written.files], written.replaced)


def run(args: argparse.Namespace) -> int:
    """Fold `args.fasta`; returns the exit code."""
    started = time.perf_counter()
    require_unchanged(args.unchanged)
    settings = section_from(FoldSettings, args)
    written = section_from(StructureSettings, args)
    cleaning = section_from(CleaningSettings, args)
    arrays, table = check_places(args.output, args.fasta, args.sha256)
    options = {"allow_empty": args.allow_empty, "complexes": True}
    with open_intake([args.fasta], cleaning, arrays.parent, **options) as intake:
        from esm_pipeline.model.inference.device import set_threads
        from esm_pipeline.tasks.fold.predictor import Predictor

        threads = set_threads(settings.threads)
        predictor = Predictor(args.model, args.revision, settings)
        plan = FoldPlan(intake, predictor.config.max_residues, settings)
        listing = [args.sha256] if args.sha256 else []
        with atomic_paths(arrays, table, *listing) as (path, told, *digests):
            fold(predictor, plan, path, quiet=args.quiet)
            counts = plan.write_outcomes(told)
            if args.sha256:
                vouch(digests[0], args.sha256, {arrays: path, table: told})
            if arrays != args.output:
                (args.output / TABLE).unlink(missing_ok=True)  # it is of the former arrays
    if arrays != args.output:
        records = read_records(table)
        write_files(arrays, args.output, records, written, processes=threads, quiet=args.quiet)
    if not args.quiet:
        line = summary(counts, plan, predictor, time.perf_counter() - started)
        see = f"; see {table}" if counts[FAILED] and args.on_failure == "error" else ""
        print(line + see, file=sys.stderr)
    return exit_code(counts[FAILED], args.on_failure)


def check_model(args: argparse.Namespace) -> None:
    """Raise now what every job with these settings would fail at, without loading the weights."""
    from esm_pipeline.tasks.fold.predictor import Predictor

    predictor = Predictor(args.model, args.revision, section_from(FoldSettings, args))
    FoldPlan.limit_of(predictor.config.max_residues, predictor.settings)
    predictor.check()


def check_places(output: Path, fasta: str, digests: Path | None) -> tuple[Path, Path]:
    """Where the arrays and the table of records go.

    Raises InputError if they, the files of structures or `digests` cannot be written, or would
    replace another or the input.
    """
    if output.suffix.lower() in HDF5 and not output.is_dir():
        return output, check_output(output, [fasta], [digests], HDF5)
    require_folder_name(output, "structures")
    if not output.name:
        raise InputError(f"{output}: name a folder for the structures")
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: not a folder; name a folder for the structures, or a .h5 file")
    table = output.with_name(f"{output.name}.records.tsv")
    if table.is_dir():
        raise InputError(f"{table}: a folder, but the table of records goes there; rename it")
    require_regular(table)
    check_output(output / H5, [fasta], [digests], [SUFFIX])
    written_to(output)
    return output / H5, table


def fold(predictor: Predictor, plan: FoldPlan, path: Path, *, quiet: bool = False) -> None:
    """Fold what `plan` says into a new file at `path`; notes in the plan what failed."""
    rows, layout = plan.rows(), Layout(ARRAYS, predictor.attributes)
    with layout.writer(path, plan, rows) as writer:
        compute(predictor, plan, np.flatnonzero(rows >= 0), writer, quiet=quiet)
    if plan.failures:
        layout.leave_out_failures(path, plan, rows)


def compute(
    predictor: Predictor, plan: FoldPlan, unique: Int64, writer: RaggedWriter, *, quiet: bool
) -> None:
    """Fold the `unique` sequences, (rows,) of them, batch by batch into the rows of `writer`."""
    from esm_pipeline.model.folding.complexes import LINKER
    from esm_pipeline.tasks.fold.batches import fold_batches, run_with_rungs

    def predict(part: Int64, rung: Rung) -> list[Prediction]:
        return predictor(plan.sequences(unique[part]), rung)

    if len(unique):
        predictor.load()
    lengths = plan.lengths[unique]
    sizes = lengths + len(LINKER) * plan.breaks[unique]  # as the model sees them
    batches = fold_batches(sizes, predictor.settings.token_budget, predictor.fits)
    with progress("fold", int(lengths.sum()), "residues", quiet=quiet) as advance:
        for batch in batches:
            ways = predictor.ways(len(batch), int(sizes[batch[0]]))
            for part, predictions, rung in run_with_rungs(batch, ways, predict):
                if predictions is None:
                    one = int(part[0])
                    reason = does_not_fit(int(lengths[one]), rung, predictor.settings.memory)
                    plan.failures[int(unique[one])] = reason
                else:
                    keep(plan, writer, unique, part, predictions, rung.chunk_size or 0)
                advance(int(lengths[part].sum()))


def does_not_fit(residues: int, last: Rung, memory: float) -> str:
    """Why a sequence could not be folded, `last` being the last way that was tried.

    `memory`: GB that a batch was allowed, 0 for all that was free.
    """
    room = f"the {memory:g} GB of {setting('fold.memory')}" if memory else "memory"
    where = ", nor on the CPU" if last.cpu else ""
    remedy = "raise it" if memory else "use a machine with more"
    return (
        f"{residues} residues do not fit into {room}, even alone and {last.chunk_size} rows at a "
        f"time{where}; {remedy}, or set {setting('fold.max_residues')}"
    )


def keep(
    plan: FoldPlan,
    writer: RaggedWriter,
    unique: Int64,
    part: Int64,
    predictions: list[Prediction],
    chunk_size: int,
) -> None:
    """Write what was predicted for the sequences of `part`; note what failed."""
    for place, found in zip(part.tolist(), predictions, strict=True):
        if found.structure is None:
            plan.failures[int(unique[place])] = found.problem
        else:
            row = np.array([place])
            write_structures(writer, row, [found.structure], [chunk_size], [found.flags])


def summary(counts: Counter[str], plan: FoldPlan, predictor: Predictor, seconds: float) -> str:
    """One line on a finished run."""
    residues = int(plan.lengths[plan.rows() >= 0].sum())
    told = ", ".join(f"{counts[status]:,} {status}" for status in (OK, SKIPPED, FAILED))
    warning = "; random weights: the structures are meaningless" if predictor.random else ""
    return (
        f"fold: {counts.total():,} records: {told}; {residues:,} residues in {seconds:.1f} s, "
        f"{predictor.seconds:.1f} s of it in the model{warning}"
    )
