"""Classify protein sequences, or their residues, by a checkpoint with a classifier.

What is said of sequences goes to a table with a row for every record, or to HDF5 (OUT.h5); what is
said of residues to HDF5, or to a table with a row for each residue. Beside OUT stands its
`.records.tsv`, with the fate of every record.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from esm_pipeline.files import atomic_paths, scratch_path
from esm_pipeline.flags import add_common, add_flags, exit_code, section_from
from esm_pipeline.formats.input_checksums import require_unchanged
from esm_pipeline.formats.records import FAILED, read_records
from esm_pipeline.formats.tables.base import SUFFIXES
from esm_pipeline.locks import Outputs
from esm_pipeline.settings.sections import ClassifySettings, CleaningSettings, LabelSettings
from esm_pipeline.tasks.classify.classes import write_table
from esm_pipeline.tasks.common.endings import HDF5, ending_of
from esm_pipeline.tasks.common.model_file import MODEL_HELP
from esm_pipeline.tasks.common.outputs import check_output, vouch
from esm_pipeline.tasks.common.plan import Plan, Reach
from esm_pipeline.tasks.common.sequences import open_intake
from esm_pipeline.tasks.common.shards import gather_ragged

if TYPE_CHECKING:
    from esm_pipeline.tasks.classify.classifier import Classifier

TASK = "classify"
SUFFIX = ".h5"
ENDINGS = (*HDF5, *SUFFIXES)
MODEL_SETTINGS = ClassifySettings
aggregate = gather_ragged


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `classify`."""
    parser.add_argument("fasta", metavar="IN.fasta", help="FASTA, plain or gzip; - reads stdin")
    parser.add_argument(
        "output", metavar="OUT", type=Path, help="file to write: .tsv, .csv, .parquet, .h5 or .hdf5"
    )
    parser.add_argument("--model", required=True, help=MODEL_HELP)
    parser.add_argument("--revision", help="commit, tag or branch of a hub model")
    parser.add_argument("--allow-empty", action="store_true", help="accept a FASTA with no record")
    parser.add_argument(
        "--provenance", type=Path, metavar="FILE", help="write model, labels and versions, as JSON"
    )
    parser.add_argument("--sha256", type=Path, metavar="FILE", help="write digests of the outputs")
    for section in (ClassifySettings, LabelSettings, CleaningSettings):
        add_flags(parser, section)
    add_common(parser)


def outputs(args: argparse.Namespace) -> Outputs:
    """What `classify` writes. Raises InputError for a place that cannot be."""
    extra = [args.provenance, args.sha256]
    table = check_output(args.output, [args.fasta], extra, ENDINGS)
    return Outputs([args.output, table, *extra])


def run(args: argparse.Namespace) -> int:
    """Classify `args.fasta`; returns the exit code."""
    started = time.perf_counter()
    require_unchanged(args.unchanged)
    settings = section_from(ClassifySettings, args)
    threshold = section_from(LabelSettings, args).threshold
    cleaning = section_from(CleaningSettings, args)
    ending_of(args.output, ENDINGS)
    table = check_output(args.output, [args.fasta], [args.provenance, args.sha256], ENDINGS)
    folder = args.output.parent
    with open_intake([args.fasta], cleaning, folder, allow_empty=args.allow_empty) as intake:
        from esm_pipeline.model.inference.device import set_threads
        from esm_pipeline.tasks.classify.classifier import Classifier
        from esm_pipeline.tasks.common.compute import summary

        set_threads(settings.threads)
        classifier = Classifier(args.model, args.revision, settings)
        plan = Plan(intake, Reach.choose(TASK, [classifier.config.max_residues], settings.long))
        counts = write(classifier, plan, table, threshold, args)
    if not args.quiet:
        line = summary(counts, plan, classifier, time.perf_counter() - started)
        see = f"; see {table}" if counts[FAILED] and args.on_failure == "error" else ""
        print(line + see, file=sys.stderr)
    return exit_code(counts[FAILED], args.on_failure)


def check_model(args: argparse.Namespace) -> None:
    """Raise now what every job with these settings would fail at, without loading the weights."""
    from esm_pipeline.tasks.classify.classifier import Classifier

    classifier = Classifier(args.model, args.revision, section_from(ClassifySettings, args))
    Reach.choose(TASK, [classifier.config.max_residues], classifier.settings.long)
    classifier.check()


def write(
    classifier: Classifier, plan: Plan, table: Path, threshold: float, args: argparse.Namespace
) -> Counter[str]:
    """Write all outputs; returns the number of records of each status."""
    from esm_pipeline.tasks.common.compute import write_rows

    targets = [args.output, table, *filter(None, [args.provenance, args.sha256])]
    suffix = args.output.suffix.lower()
    with ExitStack() as stack:
        paths = stack.enter_context(atomic_paths(*targets))
        ragged = paths[0] if suffix in HDF5 else stack.enter_context(scratch_path(args.output))
        write_rows(classifier, plan, ragged, quiet=args.quiet)
        counts = plan.write_outcomes(paths[1])
        if suffix not in HDF5:
            write_table(paths[0], suffix, ragged, read_records(paths[1]), threshold)
        if args.provenance:
            facts = {**classifier.attributes, "threshold": threshold}
            paths[2].write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        if args.sha256:
            vouch(paths[-1], args.sha256, dict(zip(targets[:-1], paths, strict=False)))
    return counts
