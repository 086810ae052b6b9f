"""Fold protein sequences: FASTA in, a structure of every sequence out, with its confidences.

OUTDIR gets structures.tsv, structures.parquet, flags.tsv, chain_pairs.tsv, structures/ and pae/;
OUTDIR.records.tsv, next to it, has the outcome of every record. An OUT that ends in .h5 gets all
structures as arrays instead, from which `esm-pipeline structures` writes the files. Chains of a
complex are separated by `:`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from esm_pipeline.errors import InputError
from esm_pipeline.files import require_apart, require_regular
from esm_pipeline.flags import section_from
from esm_pipeline.formats.records import read_records
from esm_pipeline.locks import Outputs
from esm_pipeline.settings.sections import CleaningSettings, FoldSettings, StructureSettings
from esm_pipeline.tasks.common import command
from esm_pipeline.tasks.common.gather import gather_ragged
from esm_pipeline.tasks.common.outputs import HDF5, check_output, require_folder_name
from esm_pipeline.tasks.fold.plan import FOLD, FoldPlan
from esm_pipeline.tasks.fold.structures import require_packages, write_files, written_to
from esm_pipeline.tasks.fold.tables import STRUCTURES_TABLE
from esm_pipeline.tasks.fold.work import FOLD_WORK

SUFFIX = ".h5"
H5 = "structures.h5"
MODEL_SETTINGS = FoldSettings
aggregate = gather_ragged


EXAMPLES = (
    (
        "esm-pipeline fold --model esmfold_v1 proteins.fasta folded",
        "a folder with the structures as PDB, and the table structures.tsv",
    ),
    (
        "esm-pipeline fold --model esmfold_v1 --formats pdb,cif --num-recycles 1 --max-residues "
        "400 proteins.fasta quick",
        "faster and less exact; longer proteins are skipped",
    ),
    (
        "esm-pipeline fold --model esmfold_v1 proteins.fasta structures.h5",
        "all structures as arrays, for `structures` to make files of",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `fold`."""
    command.add_arguments(
        parser,
        (FoldSettings, StructureSettings, CleaningSettings),
        metavar="OUTDIR",
        output="folder for the structures, or an HDF5 file: .h5, .hdf5",
        model="esmfold_v1, hub id, folder with a folding checkpoint, a file of `download --out`, "
        "or demo: random weights made on the spot, whose structures are meaningless",
    )


def outputs(args: argparse.Namespace) -> Outputs:
    """What `fold` writes. Raises InputError for a place that cannot be used."""
    files = fold_files(args)
    if files[0] == args.output:
        return Outputs([*files, args.sha256])
    written = written_to(args.output)
    targets = [*files, *filter(None, [args.sha256, *written.files])]
    require_apart(targets, [Path(args.fasta), *args.unchanged])
    return Outputs([*files, args.sha256, *written.files], written.replaced)


def fold_files(args: argparse.Namespace) -> list[Path]:
    """The arrays and the table of records, or the file of a range. Raises InputError."""
    if args.range:
        command.check_range_output(args, args.output, [args.fasta])
        return [args.output]
    return [*check_places(args.output, args.fasta, args.sha256)]


def run(args: argparse.Namespace) -> int:
    """Fold `args.fasta`; returns the exit code."""
    started = time.perf_counter()
    settings = section_from(FoldSettings, args)
    written = section_from(StructureSettings, args)
    arrays, *tables = targets = fold_files(args)
    as_files = arrays != args.output
    if as_files:
        require_packages(written)
    stale = args.output / STRUCTURES_TABLE if as_files else None
    with command.open_input(args, arrays.parent, FOLD, FOLD_WORK, complexes=True) as sequences:
        if command.wrote_idle(sequences, args.output, quiet=args.quiet):
            return 0
        from esm_pipeline.model.inference.device import set_threads
        from esm_pipeline.tasks.fold.predictor import Predictor

        threads = set_threads(settings.threads)
        predictor = Predictor(args.model, args.revision, settings, command.speaker(args, FOLD))
        limit = predictor.config.max_residues
        plan = FoldPlan(sequences, predictor.policy, limit, settings.ambiguous)
        with command.computed(args, predictor, plan, targets, stale=stale) as files:
            counts = files.counts
    if as_files:
        rows = read_records(*tables)
        write_files(arrays, args.output, rows, written, processes=threads, quiet=args.quiet)
    details = command.run_details(predictor, plan, started, rate=False)
    details += "; random weights: the structures are meaningless" if predictor.random else ""
    return command.finish(args, FOLD, counts, details, tables[0] if tables else None)


def check_model(args: argparse.Namespace) -> None:
    """Raise now what every job with these settings would fail with."""
    from esm_pipeline.tasks.fold.predictor import Predictor

    command.check_runner(Predictor(args.model, args.revision, section_from(FoldSettings, args)))


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
