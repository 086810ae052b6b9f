"""Embed protein sequences: FASTA in, representations of every sequence out.

OUT is HDF5 with everything requested, a table with a row for each record, or one NumPy array with
its ids in OUT.ids.tsv. OUT.records.tsv, next to it, has the outcome of every record.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from esm_pipeline.errors import InputError, setting
from esm_pipeline.flags import section_from
from esm_pipeline.formats.results.embedding_tables import write_array, write_embedding_table
from esm_pipeline.formats.results.embeddings import FIXED_SIZE
from esm_pipeline.formats.tables.base import SUFFIXES
from esm_pipeline.locks import Outputs
from esm_pipeline.settings.sections import CleaningSettings, EmbedSettings
from esm_pipeline.tasks.common import command
from esm_pipeline.tasks.common.gather import gather_ragged
from esm_pipeline.tasks.common.outputs import HDF5, check_output, ending_of
from esm_pipeline.tasks.common.plan import SequencePlan
from esm_pipeline.tasks.embed.work import EMBED_WORK

if TYPE_CHECKING:
    from esm_pipeline.tasks.embed.representations import Encoder

SUFFIX = ".h5"
ARRAY = ".npy"
EMBED_ENDINGS = (*HDF5, *SUFFIXES, ARRAY)
MODEL_SETTINGS = EmbedSettings
aggregate = gather_ragged
EXAMPLES = (
    (
        "esm-pipeline embed --model esm2_t12_35M_UR50D proteins.fasta embeddings.h5",
        "one vector for each protein, the mean over its residues",
    ),
    (
        "esm-pipeline embed --model esm2_t12_35M_UR50D --include mean,residue --layers=0,-1 "
        "proteins.fasta all.h5",
        "vectors of proteins and of all residues, from the first and the last layer",
    ),
    (
        "esm-pipeline embed --model esm2_t33_650M_UR50D --dtype bfloat16 proteins.fasta "
        "embeddings.parquet",
        "a table for pandas or R, computed in half precision",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `embed`."""
    command.add_arguments(
        parser,
        (EmbedSettings, CleaningSettings),
        output="file to write: .h5 or .hdf5; .tsv, .csv or .parquet, a table of mean and bos with "
        "a row for each record; .npy, one of these as an array, with its ids in OUT.ids.tsv",
    )


def outputs(args: argparse.Namespace) -> Outputs:
    """What `embed` writes. Raises InputError for a place that cannot be used."""
    return Outputs([*embed_files(args), args.sha256])


def embed_files(args: argparse.Namespace) -> list[Path]:
    """The output, the table of records, and the ids of an array's rows; or the file of a range.

    Raises InputError.
    """
    if args.range:
        command.check_range_output(args, args.output, [args.fasta])
        return [args.output]
    is_array = args.output.suffix.lower() == ARRAY
    ids = [args.output.with_suffix(".ids.tsv")] if is_array else []
    table = check_output(args.output, [args.fasta], [args.sha256, *ids], EMBED_ENDINGS)
    return [args.output, table, *ids]


def run(args: argparse.Namespace) -> int:
    """Embed `args.fasta`; returns the exit code."""
    started = time.perf_counter()
    settings = section_from(EmbedSettings, args)
    targets, ending = embed_files(args), ending_of(args.output, EMBED_ENDINGS)
    if ending not in HDF5:
        require_fixed(args.output, settings.include)
    with command.open_input(args, args.output.parent, "embed", EMBED_WORK) as sequences:
        if command.wrote_idle(sequences, args.output, quiet=args.quiet):
            return 0
        from esm_pipeline.model.inference.device import set_threads
        from esm_pipeline.tasks.embed.representations import Encoder

        set_threads(settings.threads)
        encoder = Encoder(args.model, args.revision, settings, command.speaker(args, "embed"))
        if ending == ARRAY:
            require_one_array(args.output, encoder)
        plan = SequencePlan(sequences, encoder.policy)
        with command.computed(args, encoder, plan, targets) as files:
            if ending == ARRAY:
                write_array(files.output, files.more[1], files.rows)
            elif ending not in HDF5:
                write_embedding_table(files.output, ending, files.rows)
    details = command.run_details(encoder, plan, started)
    table = None if args.range else targets[1]
    return command.finish(args, "embed", files.counts, details, table)


def require_fixed(output: Path, include: Iterable[str]) -> None:
    """Raise InputError for what does not fit into a table's row: its size varies with length."""
    for kind in include:
        if kind not in FIXED_SIZE:
            raise InputError(
                f"{output}: has a row for each record, which {kind} does not fit into; leave it "
                f"out of {setting('embed.include')}, or write .h5"
            )


def require_one_array(output: Path, encoder: Encoder) -> None:
    """Raise InputError if the settings give more arrays than one."""
    if len(encoder.arrays) > 1:
        raise InputError(
            f"{output}: an array of one layer, and of mean or bos; choose one of "
            f"{', '.join(array.name for array in encoder.arrays)}, or write .h5 or a table"
        )


def check_model(args: argparse.Namespace) -> None:
    """Raise now what every job with these settings would fail with."""
    from esm_pipeline.tasks.embed.representations import Encoder

    command.check_runner(Encoder(args.model, args.revision, section_from(EmbedSettings, args)))
