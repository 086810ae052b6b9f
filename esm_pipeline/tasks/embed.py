"""Embed protein sequences: FASTA in, representations of every sequence out, as HDF5.

Beside OUT.h5 stands OUT.records.tsv, with the fate of every record. The input is validated before
PyTorch is loaded, so that a bad file fails at once.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from esm_pipeline.cli import add_common, add_flags, exit_code, section_from
from esm_pipeline.files import atomic_paths
from esm_pipeline.formats.inputs import require_unchanged
from esm_pipeline.formats.records import FAILED
from esm_pipeline.sections import CleaningSettings, EmbedSettings
from esm_pipeline.tasks.gathering import gather_ragged
from esm_pipeline.tasks.intake import open_intake
from esm_pipeline.tasks.model_file import MODEL_HELP
from esm_pipeline.tasks.outputs import check_output, vouch
from esm_pipeline.tasks.planning import Plan, Reach

TASK = "embed"
SUFFIX = ".h5"
MODEL_SETTINGS = EmbedSettings
aggregate = gather_ragged


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
    require_unchanged(args.unchanged)
    settings = section_from(EmbedSettings, args)
    cleaning = section_from(CleaningSettings, args)
    table = check_output(args.output, [args.fasta], [args.sha256], [SUFFIX])
    folder = args.output.parent
    with open_intake([args.fasta], cleaning, folder, allow_empty=args.allow_empty) as intake:
        from esm_pipeline.tasks.computing import summary, write_rows
        from esm_pipeline.tasks.device import set_threads
        from esm_pipeline.tasks.representations import Encoder

        set_threads(settings.threads)
        encoder = Encoder(args.model, args.revision, settings)
        plan = Plan(intake, Reach.choose(TASK, [encoder.config.max_residues], settings.long))
        listing = [args.sha256] if args.sha256 else []
        with atomic_paths(args.output, table, *listing) as (path, told, *digests):
            write_rows(encoder, plan, path, quiet=args.quiet)
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
