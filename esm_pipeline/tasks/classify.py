"""Classify protein sequences with a fine-tuned checkpoint: labels and probabilities of every one.

OUT is a table of sequences, classes.tsv, or if it ends in .h5 the same as arrays; classes of
residues are always arrays. Beside it stands OUT.records.tsv, with the fate of every record.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from esm_pipeline.cli import add_common, add_flags, exit_code, section_from
from esm_pipeline.errors import InputError
from esm_pipeline.files import atomic_paths, scratch_path
from esm_pipeline.formats.records import FAILED, read_records
from esm_pipeline.sections import ClassifySettings, CleaningSettings, LabelSettings
from esm_pipeline.tasks.classes import write_classes
from esm_pipeline.tasks.computing import compute_file, summary
from esm_pipeline.tasks.gathering import gather_ragged
from esm_pipeline.tasks.intake import open_intake
from esm_pipeline.tasks.model_file import MODEL_HELP
from esm_pipeline.tasks.outputs import check_output, vouch
from esm_pipeline.tasks.planning import Plan, Reach

if TYPE_CHECKING:
    from esm_pipeline.tasks.classifiers import Classifier

TASK = "classify"
SUFFIX = ".h5"
MODEL_SETTINGS = ClassifySettings
aggregate = gather_ragged


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `classify`."""
    parser.add_argument("fasta", metavar="IN.fasta", help="FASTA, plain or gzip; - reads stdin")
    parser.add_argument(
        "output", metavar="OUT", type=Path, help="table to write, or an HDF5 file if it ends in .h5"
    )
    parser.add_argument("--model", required=True, help=MODEL_HELP)
    parser.add_argument("--revision", help="commit, tag or branch of a hub model")
    parser.add_argument("--allow-empty", action="store_true", help="accept a FASTA with no record")
    parser.add_argument("--sha256", type=Path, metavar="FILE", help="write digests of the outputs")
    add_flags(parser, ClassifySettings)
    add_flags(parser, LabelSettings)
    add_flags(parser, CleaningSettings)
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Classify `args.fasta`; returns the exit code."""
    started = time.perf_counter()
    settings = section_from(ClassifySettings, args)
    cleaning = section_from(CleaningSettings, args)
    threshold = section_from(LabelSettings, args).threshold
    arrays = args.output.suffix == SUFFIX
    if settings.of == "residues" and not arrays:
        raise InputError(f"{args.output}: classes of residues are arrays; let it end in {SUFFIX}")
    suffixes = [SUFFIX, ".tsv", ".csv", ".txt"]
    table = check_output(args.output, [args.fasta], [args.sha256], suffixes)
    folder = args.output.parent
    with open_intake([args.fasta], cleaning, folder, allow_empty=args.allow_empty) as intake:
        from esm_pipeline.tasks.device import set_threads

        set_threads(settings.threads)
        classifier = classifier_of(args)
        plan = Plan(intake, Reach.choose(TASK, [classifier.config.max_residues], settings.long))
        listing = [args.sha256] if args.sha256 else []
        with atomic_paths(args.output, table, *listing) as (path, told, *digests):
            if arrays:
                compute_file(classifier, plan, path, quiet=args.quiet)
                counts = plan.write_outcomes(told)
            else:
                with scratch_path(args.output) as scratch:
                    compute_file(classifier, plan, scratch, quiet=args.quiet)
                    counts = plan.write_outcomes(told)
                    write_classes(scratch, read_records(told), path, threshold)
            if args.sha256:
                vouch(digests[0], args.sha256, {args.output: path, table: told})
    if not args.quiet:
        line = summary(counts, plan, classifier, time.perf_counter() - started)
        see = f"; see {table}" if counts[FAILED] and args.on_failure == "error" else ""
        print(line + see, file=sys.stderr)
    return exit_code(counts[FAILED], args.on_failure)


def classifier_of(args: argparse.Namespace) -> Classifier:
    """The classifier that the flags ask for. Raises WeightsError."""
    from esm_pipeline.tasks.classifiers import CLASSIFIERS

    settings = section_from(ClassifySettings, args)
    return CLASSIFIERS[settings.of](args.model, args.revision, settings)


def check_model(args: argparse.Namespace) -> None:
    """Raise now what every job with these settings would fail at, without loading the weights."""
    classifier = classifier_of(args)
    Reach.choose(TASK, [classifier.config.max_residues], classifier.settings.long)
    classifier.check()
