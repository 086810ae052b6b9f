"""Embed protein sequences: FASTA in, representations of every sequence out.

OUT is HDF5 with all that was asked for, a table with a row for each record, or one array of NumPy,
with its ids in OUT.ids.tsv. Beside it stands OUT.records.tsv, with the fate of every record. The
input is validated before PyTorch is loaded, so that a bad file fails at once.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from esm_pipeline.errors import InputError
from esm_pipeline.files import atomic_paths, scratch_path
from esm_pipeline.flags import add_common, add_flags, exit_code, section_from
from esm_pipeline.formats.input_checksums import require_unchanged
from esm_pipeline.formats.records import FAILED
from esm_pipeline.formats.results.embedding_tables import FIXED, write_array, write_table
from esm_pipeline.formats.tables.base import SUFFIXES
from esm_pipeline.locks import Outputs
from esm_pipeline.settings.sections import CleaningSettings, EmbedSettings
from esm_pipeline.tasks.common.endings import HDF5, ending_of
from esm_pipeline.tasks.common.model_file import MODEL_HELP
from esm_pipeline.tasks.common.outputs import check_output, vouch
from esm_pipeline.tasks.common.plan import Plan, Reach
from esm_pipeline.tasks.common.sequences import open_intake
from esm_pipeline.tasks.common.shards import gather_ragged

TASK = "embed"
SUFFIX = ".h5"
ARRAY = ".npy"
ENDINGS = (*HDF5, *SUFFIXES, ARRAY)
MODEL_SETTINGS = EmbedSettings
aggregate = gather_ragged


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `embed`."""
    parser.add_argument("fasta", metavar="IN.fasta", help="FASTA, plain or gzip; - reads stdin")
    parser.add_argument(
        "output",
        metavar="OUT",
        type=Path,
        help="file to write: .h5 or .hdf5; .tsv, .csv or .parquet, a table with a row for each "
        "record, of mean and bos; .npy, one of these as an array, with OUT.ids.tsv beside it",
    )
    parser.add_argument("--model", required=True, help=MODEL_HELP)
    parser.add_argument("--revision", help="commit, tag or branch of a hub model")
    parser.add_argument("--allow-empty", action="store_true", help="accept a FASTA with no record")
    parser.add_argument("--sha256", type=Path, metavar="FILE", help="write digests of the outputs")
    add_flags(parser, EmbedSettings)
    add_flags(parser, CleaningSettings)
    add_common(parser)


def outputs(args: argparse.Namespace) -> Outputs:
    """What `embed` writes. Raises InputError for a place that cannot be."""
    ids = ids_beside(args.output)
    table = check_output(args.output, [args.fasta], [args.sha256, *ids], ENDINGS)
    return Outputs([args.output, table, args.sha256, *ids])


def ids_beside(output: Path) -> list[Path]:
    """The file of the ids of an array's rows; none where the output itself has them."""
    is_array = output.suffix.lower() == ARRAY
    return [output.with_suffix(".ids.tsv")] if is_array else []


def run(args: argparse.Namespace) -> int:
    """Embed `args.fasta`; returns the exit code."""
    started = time.perf_counter()
    require_unchanged(args.unchanged)
    settings = section_from(EmbedSettings, args)
    cleaning = section_from(CleaningSettings, args)
    ids = ids_beside(args.output)
    table = check_output(args.output, [args.fasta], [args.sha256, *ids], ENDINGS)
    ending = ending_of(args.output, ENDINGS)
    if ending not in HDF5:
        require_fixed(args.output, settings.include)
    folder = args.output.parent
    with open_intake([args.fasta], cleaning, folder, allow_empty=args.allow_empty) as intake:
        from esm_pipeline.model.inference.device import set_threads
        from esm_pipeline.tasks.common.compute import summary, write_rows
        from esm_pipeline.tasks.embed.representations import Encoder

        set_threads(settings.threads)
        encoder = Encoder(args.model, args.revision, settings)
        if ids and len(encoder.arrays) > 1:
            raise InputError(
                f"{args.output}: an array of one layer, and of mean or bos; choose one of "
                f"{', '.join(array.name for array in encoder.arrays)}, or write .h5 or a table"
            )
        plan = Plan(intake, Reach.choose(TASK, [encoder.config.max_residues], settings.long))
        targets = [args.output, table, *ids, *([args.sha256] if args.sha256 else [])]
        with ExitStack() as stack:
            paths = stack.enter_context(atomic_paths(*targets))
            rows = paths[0]
            if ending not in HDF5:
                rows = stack.enter_context(scratch_path(args.output))
            write_rows(encoder, plan, rows, quiet=args.quiet)
            counts = plan.write_outcomes(paths[1])
            if ids:
                write_array(paths[0], paths[2], rows)
            elif ending not in HDF5:
                write_table(paths[0], ending, rows)
            if args.sha256:
                vouch(paths[-1], args.sha256, dict(zip(targets[:-1], paths, strict=False)))
    if not args.quiet:
        line = summary(counts, plan, encoder, time.perf_counter() - started)
        see = f"; see {table}" if counts[FAILED] and args.on_failure == "error" else ""
        print(line + see, file=sys.stderr)
    return exit_code(counts[FAILED], args.on_failure)


def require_fixed(output: Path, include: Iterable[str]) -> None:
    """Raise InputError for what has no place in a row of a table: it is as long as the sequence."""
    for kind in include:
        if kind not in FIXED:
            raise InputError(
                f"{output}: has a row for each record, which {kind} does not fit into; leave it "
                "out of --include, or write .h5"
            )


def check_model(args: argparse.Namespace) -> None:
    """Raise now what every job with these settings would fail at, without loading the weights."""
    from esm_pipeline.tasks.embed.representations import Encoder

    encoder = Encoder(args.model, args.revision, section_from(EmbedSettings, args))
    Reach.choose(TASK, [encoder.config.max_residues], encoder.settings.long)
    encoder.check()
