"""Classify protein sequences, or their residues, by a checkpoint with a classifier.

Classes of sequences go to a table with a row for every record, or to HDF5 (OUT.h5); classes of
residues to HDF5, or to a table with a row for each residue. OUT.records.tsv, next to it, has the
outcome of every record.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from esm_pipeline.flags import section_from
from esm_pipeline.formats.records import read_records
from esm_pipeline.formats.tables.base import SUFFIXES
from esm_pipeline.locks import Outputs
from esm_pipeline.settings.sections import ClassifySettings, CleaningSettings, LabelSettings
from esm_pipeline.tasks.classify.classes import write_class_table
from esm_pipeline.tasks.classify.work import CLASSIFY_WORK
from esm_pipeline.tasks.common import command
from esm_pipeline.tasks.common.gather import gather_ragged
from esm_pipeline.tasks.common.outputs import HDF5, check_output, ending_of
from esm_pipeline.tasks.common.plan import SequencePlan

SUFFIX = ".h5"
CLASSIFY_ENDINGS = (*HDF5, *SUFFIXES)
MODEL_SETTINGS = ClassifySettings
aggregate = gather_ragged
EXAMPLES = (
    (
        "esm-pipeline classify --model my_classifier proteins.fasta classes.tsv",
        "a label for each protein, by a fine-tuned model in the folder my_classifier",
    ),
    (
        "esm-pipeline classify --model my_classifier --threshold 0.3 proteins.fasta classes.h5",
        "probabilities as arrays, for `classes` to make tables of",
    ),
    (
        "esm-pipeline classify --model my_residue_classifier proteins.fasta residue_classes.h5",
        "probabilities for each residue",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `classify`."""
    command.add_arguments(
        parser,
        (ClassifySettings, LabelSettings, CleaningSettings),
        output="file to write: .tsv, .csv, .parquet, .h5 or .hdf5",
        provenance="model, labels and versions",
    )


def outputs(args: argparse.Namespace) -> Outputs:
    """What `classify` writes. Raises InputError for a place that cannot be used."""
    return Outputs([*classify_files(args), args.sha256])


def classify_files(args: argparse.Namespace) -> list[Path]:
    """The output, the table of records, and the provenance; or the file of a range.

    Raises InputError.
    """
    if args.range:
        command.check_range_output(args, args.output, [args.fasta])
        return [args.output]
    others = [args.provenance, args.sha256]
    table = check_output(args.output, [args.fasta], others, CLASSIFY_ENDINGS)
    return [args.output, table, *filter(None, [args.provenance])]


def run(args: argparse.Namespace) -> int:
    """Classify `args.fasta`; returns the exit code."""
    started = time.perf_counter()
    settings = section_from(ClassifySettings, args)
    threshold = section_from(LabelSettings, args).threshold
    targets, ending = classify_files(args), ending_of(args.output, CLASSIFY_ENDINGS)
    with command.open_input(args, args.output.parent, "classify", CLASSIFY_WORK) as sequences:
        if command.wrote_idle(sequences, args.output, quiet=args.quiet):
            return 0
        from esm_pipeline.model.inference.device import set_threads
        from esm_pipeline.tasks.classify.classifier import Classifier

        set_threads(settings.threads)
        classifier = Classifier(
            args.model, args.revision, settings, command.speaker(args, "classify")
        )
        plan = SequencePlan(sequences, classifier.policy)
        with command.computed(args, classifier, plan, targets) as files:
            if ending not in HDF5:
                records = read_records(files.more[0])
                write_class_table(files.output, ending, files.rows, records, threshold)
            for provenance in files.more[1:]:
                facts = {**classifier.attributes, "threshold": threshold}
                provenance.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    details = command.run_details(classifier, plan, started)
    table = None if args.range else targets[1]
    return command.finish(args, "classify", files.counts, details, table)


def check_model(args: argparse.Namespace) -> None:
    """Raise now what every job with these settings would fail with."""
    from esm_pipeline.tasks.classify.classifier import Classifier

    settings = section_from(ClassifySettings, args)
    command.check_runner(Classifier(args.model, args.revision, settings))
