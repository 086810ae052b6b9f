"""Classify protein sequences, or their residues, by a checkpoint with a classifier.

Classes of sequences go to a table with a row for every record, or to HDF5 (OUT.h5); classes of
residues to HDF5, or to a table with a row for each residue. OUT.records.tsv, next to it, has the
outcome of every record.
"""

from __future__ import annotations

import argparse
import json
import time

from esm_pipeline.flags import section_from
from esm_pipeline.formats.records import FAILED, read_records
from esm_pipeline.formats.tables.base import SUFFIXES
from esm_pipeline.locks import Outputs
from esm_pipeline.settings.sections import ClassifySettings, CleaningSettings, LabelSettings
from esm_pipeline.tasks.classify.classes import write_class_table
from esm_pipeline.tasks.common import command
from esm_pipeline.tasks.common.outputs import HDF5, check_output, ending_of
from esm_pipeline.tasks.common.plan import SequencePlan
from esm_pipeline.tasks.common.shards import gather_ragged

SUFFIX = ".h5"
CLASSIFY_ENDINGS = (*HDF5, *SUFFIXES)
MODEL_SETTINGS = ClassifySettings
aggregate = gather_ragged


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
    extra = [args.provenance, args.sha256]
    table = check_output(args.output, [args.fasta], extra, CLASSIFY_ENDINGS)
    return Outputs([args.output, table, *extra])


def run(args: argparse.Namespace) -> int:
    """Classify `args.fasta`; returns the exit code."""
    started = time.perf_counter()
    settings = section_from(ClassifySettings, args)
    threshold = section_from(LabelSettings, args).threshold
    ending = ending_of(args.output, CLASSIFY_ENDINGS)
    table = check_output(
        args.output, [args.fasta], [args.provenance, args.sha256], CLASSIFY_ENDINGS
    )
    with command.open_input(args, args.output.parent) as sequences:
        from esm_pipeline.model.inference.device import set_threads
        from esm_pipeline.tasks.classify.classifier import Classifier

        set_threads(settings.threads)
        classifier = Classifier(args.model, args.revision, settings)
        plan = SequencePlan(sequences, classifier.policy)
        targets = [args.output, table, *filter(None, [args.provenance])]
        with command.computed(args, classifier, plan, targets) as files:
            if ending not in HDF5:
                records = read_records(files.table)
                write_class_table(files.output, ending, files.rows, records, threshold)
            for provenance in files.extra:
                facts = {**classifier.attributes, "threshold": threshold}
                provenance.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    line = command.summary(classifier, plan, files.counts, started)
    return command.finish(args, line, files.counts[FAILED], table)


def check_model(args: argparse.Namespace) -> None:
    """Raise now what every job with these settings would fail with."""
    from esm_pipeline.tasks.classify.classifier import Classifier

    settings = section_from(ClassifySettings, args)
    command.check_runner(Classifier(args.model, args.revision, settings))
