"""Write results in the formats of other programs: Parquet, NumPy, AnnData, UniProt's HDF5.

RESULTS is what a command or the workflow has written. The name of OUT, or --format, says what it
becomes. Every record of RESULTS is in OUT, except those that OUT.names.tsv lists with a reason.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import NamedTuple, TypeVar

from esm_pipeline.errors import InputError
from esm_pipeline.files import atomic_paths, require_apart
from esm_pipeline.formats.exports.anndata_file import anndata_writer, write_h5ad
from esm_pipeline.formats.exports.parquet import write_lists
from esm_pipeline.formats.exports.structure_table import write_structure_rows
from esm_pipeline.formats.exports.uniprot import TAKEN, write_named
from esm_pipeline.formats.results.chosen import ChosenRecords, dataset_of
from esm_pipeline.formats.results.classes import THRESHOLD, Classes, ResidueClasses
from esm_pipeline.formats.results.embedding_tables import write_npy, write_wide
from esm_pipeline.formats.results.embeddings import FIXED_SIZE, Embeddings
from esm_pipeline.formats.results.open import RESULT_CLASSES, Results
from esm_pipeline.formats.results.reader import open_kind
from esm_pipeline.formats.results.result_files import alternatives, has_results
from esm_pipeline.formats.results.saturation import Saturations
from esm_pipeline.formats.results.structures import Structures
from esm_pipeline.formats.structure_reader import is_structure_files
from esm_pipeline.formats.tables.base import PARQUET, SUFFIXES
from esm_pipeline.locks import Outputs
from esm_pipeline.tasks.common.outcomes import count_text
from esm_pipeline.tasks.common.progress import Amounts, progress

EXAMPLES = (
    ("esm-pipeline export embeddings.h5 embeddings.parquet", "a table, its numbers in one column"),
    ("esm-pipeline export results/my_sample embeddings.h5ad", "AnnData, for scanpy"),
    ("esm-pipeline export embeddings.h5 per-protein.h5", "one dataset for each accession"),
)
"""Command lines for the help, and what they do."""

PROTEIN_FORMAT, RESIDUE_FORMAT = "per-protein", "per-residue"
TABLE_FORMATS = tuple(suffix[1:] for suffix in SUFFIXES)
EXPORT_FORMATS = (*TABLE_FORMATS, "npy", "h5ad", PROTEIN_FORMAT, RESIDUE_FORMAT)
TABLE_BESIDE = {"npy": "ids", PROTEIN_FORMAT: "names", RESIDUE_FORMAT: "names"}
"""Formats with a table of the records next to the file, and what it is named after."""

EXPORT_DTYPES = ("float16", "float32")
USUAL_RECORDS = "records.tsv"

T = TypeVar("T")


class StoppedError(Exception):
    """Ends the thread that writes, because a signal has ended the command."""


class Export(NamedTuple):
    """What is exported, checked: the format, and the files to write."""

    format: str
    targets: list[Path]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `export`."""
    parser.add_argument(
        "results",
        metavar="RESULTS",
        type=Path,
        help="embeddings.h5 or another result in HDF5, or the folder of a sample",
    )
    parser.add_argument(
        "output",
        metavar="OUT",
        type=Path,
        help="file to write: .parquet, .tsv, .csv, .npy, .h5ad, per-protein.h5 or per-residue.h5",
    )
    parser.add_argument(
        "--format",
        choices=EXPORT_FORMATS,
        help="format of OUT, if its name does not say it",
    )
    parser.add_argument(
        "--what",
        choices=FIXED_SIZE,
        help="embeddings: mean over the residues, or representation of the first token (default: "
        "mean)",
    )
    parser.add_argument(
        "--layer", type=int, help="embeddings: a stored layer; -1 is the last one (default: -1)"
    )
    parser.add_argument(
        "--dtype",
        choices=EXPORT_DTYPES,
        help="precision in per-protein.h5 and per-residue.h5; other formats have float32 "
        "(default: float16)",
    )
    parser.add_argument(
        "--ids",
        type=Path,
        metavar="FILE",
        help="embeddings: export only these records: an id or accession of UniProt on each line",
    )
    parser.add_argument(
        "--records",
        type=Path,
        metavar="FILE",
        help=".h5ad: records.tsv of the input, with headers; by default that next to RESULTS",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress, no summary")


def outputs(args: argparse.Namespace) -> Outputs:
    """What `export` writes. Raises InputError for a place or a name that cannot be used."""
    return Outputs(checked_export(args).targets)


def checked_export(args: argparse.Namespace) -> Export:
    """The format and the files of an export. Raises InputError."""
    name = args.format or format_in_name(args.output)
    targets = [args.output]
    if name in TABLE_BESIDE:
        targets.append(args.output.with_name(f"{args.output.stem}.{TABLE_BESIDE[name]}.tsv"))
    records = args.records or records_beside(args.results)
    require_apart(targets, filter(None, [args.results, args.ids, records]))
    if args.results.is_dir():
        with opened(args.results, name) as results:
            require_apart(targets, [Path(part.path) for part in results.parts])
    return Export(name, targets)


def opened(results: Path, name: str) -> Results:
    """The results to export to the format `name`: any for a table, else embeddings.

    Raises InputError for others.
    """
    embedded = has_results(results, [Embeddings.file_name])
    if results.is_dir() and name not in TABLE_FORMATS and embedded:
        return Embeddings.open(results)
    names = [kind.file_name for kind in RESULT_CLASSES]
    if is_structure_files(results) and not has_results(results, names):
        raise InputError(
            f"{results}: holds files of structures, which are not exported; give the structures.h5 "
            "they were written from, to export their confidences to a table"
        )
    found = open_kind(results, RESULT_CLASSES)
    if name in TABLE_FORMATS:
        return found
    if not isinstance(found, Embeddings):
        found.close()
        raise InputError(
            f"{results}: what a {type(found).file_name} has can be exported to "
            f"{alternatives(SUFFIXES)} only; let the name of OUT end in one of them"
        )
    return found


def format_in_name(output: Path) -> str:
    """The format that the name of a file says. Raises InputError if it says none."""
    for name in (PROTEIN_FORMAT, RESIDUE_FORMAT):
        if output.name.lower().endswith(f"{name}.h5"):
            return name
    suffix = output.suffix.lower()
    if suffix in (".h5", ".hdf5"):
        raise InputError(
            f"{output}: say what it becomes: --format {PROTEIN_FORMAT} or --format {RESIDUE_FORMAT}"
        )
    if suffix[1:] not in EXPORT_FORMATS:
        endings = ", ".join(f".{name}" for name in EXPORT_FORMATS if "-" not in name)
        raise InputError(
            f"{output}: cannot be written; let its name end in {endings}, {PROTEIN_FORMAT}.h5 or "
            f"{RESIDUE_FORMAT}.h5, or set --format"
        )
    return suffix[1:]


def run(args: argparse.Namespace) -> int:
    """Write the file; returns 0."""
    export = checked_export(args)
    with opened(args.results, export.format) as results, atomic_paths(*export.targets) as paths:
        if export.format == "h5ad":
            anndata_writer()  # before any number is read
        if isinstance(results, Embeddings):
            summary = export_embeddings(args, export, results, paths)
        else:
            export_table(args, export, results, paths[0])
            summary = f"{count_text(len(results), 'records')} in {args.output}"
    if not args.quiet:
        print(f"export: {summary}", file=sys.stderr)
    return 0


def export_embeddings(
    args: argparse.Namespace, export: Export, results: Embeddings, paths: Sequence[Path]
) -> str:
    """Write embeddings to `paths`; returns what was written, for people."""
    dataset = chosen_dataset(args, export.format, results)
    wanted = None if args.ids is None else read_ids(args.ids)
    records = ChosenRecords(results, wanted)

    def write() -> Counter[str]:
        return write_embeddings(args, export.format, records, dataset, paths)

    amounts = Amounts(records.count, "records")
    with progress("export", amounts, quiet=args.quiet, short=True) as advance:
        reasons = in_thread(write, records, advance)
    written = records.count - reasons[TAKEN]
    notes = [f"{count:,} {reason}" for reason, count in sorted(reasons.items()) if reason]
    see = f" ({'; '.join(notes)}; see {export.targets[1]})" if notes else ""
    return f"{written:,} of {count_text(len(results), 'records')} in {args.output}{see}"


def in_thread(write: Callable[[], T], records: ChosenRecords, advance: Callable[[int], None]) -> T:
    """The result of `write`, in a thread: a signal must not interrupt HDF5.

    The thread ends after the block of `records` that it is writing when this one is interrupted.
    """
    stopped = Event()

    def after_block(count: int) -> None:
        if stopped.is_set():
            raise StoppedError
        advance(count)

    records.advance = after_block
    with ThreadPoolExecutor(1) as thread:
        task = thread.submit(write)
        try:
            return task.result()
        except BaseException:
            stopped.set()
            raise


def write_embeddings(
    args: argparse.Namespace,
    name: str,
    records: ChosenRecords,
    dataset: str,
    paths: Sequence[Path],
) -> Counter[str]:
    """Write the files of the format `name`; returns reasons of records with another name or none.

    Raises InputError.
    """
    results = records.results
    facts = {**attributes_of(results), "array": dataset}
    if name == PARQUET[1:]:
        write_lists(paths[0], records, dataset, facts)
    elif name in TABLE_FORMATS:
        write_wide(paths[0], f".{name}", records, [dataset])
    elif name == "npy":
        write_npy(paths[0], paths[1], records, dataset)
    elif name == "h5ad":
        arrays = [f"{kind}/{layer}" for kind in FIXED_SIZE for layer in results.layers]
        stored = [one for one in arrays if one.partition("/")[0] in results.kinds]
        others = [one for one in stored if one != dataset]
        table = args.records or records_beside(args.results)
        write_h5ad(paths[0], records, [dataset, *others], table, facts)
    else:
        dtype = args.dtype or EXPORT_DTYPES[0]
        return write_named(paths[0], paths[1], records, dataset, dtype, facts)
    return Counter()


def chosen_dataset(args: argparse.Namespace, name: str, results: Embeddings) -> str:
    """The array to export, such as mean/33. Raises InputError for flags that do not fit it."""
    if args.dtype and name not in (PROTEIN_FORMAT, RESIDUE_FORMAT):
        raise InputError(f"--dtype: not for {args.output}, which has float32; leave it out")
    if args.records and name != "h5ad":
        raise InputError(f"--records: only for .h5ad, not for {args.output}; leave it out")
    if name == RESIDUE_FORMAT and args.what:
        raise InputError(
            f"--what: {args.output} has all residues; leave it out, or write {PROTEIN_FORMAT}.h5"
        )
    kind = "residue" if name == RESIDUE_FORMAT else args.what or FIXED_SIZE[0]
    return dataset_of(results, kind, -1 if args.layer is None else args.layer)


def export_table(
    args: argparse.Namespace,
    export: Export,
    results: Saturations | Classes | ResidueClasses | Structures,
    path: Path,
) -> None:
    """Write a result of another kind as a table. Raises InputError for flags of embeddings."""
    for name in ("what", "layer", "dtype", "ids", "records"):
        if getattr(args, name) is not None:
            raise InputError(
                f"--{name}: only for embeddings, and {args.results} has others; leave it out"
            )
    suffix = f".{export.format}"
    if isinstance(results, Saturations):
        from esm_pipeline.tasks.score.saturation import write_long_table

        write_long_table(args.results, path, suffix)
    elif isinstance(results, Classes | ResidueClasses):
        from esm_pipeline.tasks.classify.classes import write_class_table

        write_class_table(path, suffix, args.results, None, THRESHOLD)
    else:
        write_structure_rows(path, suffix, results)


def attributes_of(results: Embeddings) -> dict[str, str]:
    """How the results were made, as text: model, revision, weights_sha256, dtype, software."""
    names = ("model", "revision", "weights_sha256", "dtype", "software")
    return {name: str(results.attributes[name]) for name in names if name in results.attributes}


def read_ids(path: Path) -> dict[str, str]:
    """The ids in a file, one on each line, and where each is. Raises InputError without any."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8"
        raise InputError(f"{path}: cannot be read ({why}); give a text file of ids") from None
    ids: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            ids.setdefault(line.strip().removeprefix(">"), f"{path}:{number}")
    if not ids:
        raise InputError(f"{path}: has no ids; write one on each line")
    return ids


def records_beside(results: Path) -> Path | None:
    """The records.tsv of a result, if it is where a command or the workflow puts it."""
    if results.is_dir():
        places = [results / USUAL_RECORDS, results.parent / USUAL_RECORDS]
    else:
        places = [results.with_name(f"{results.stem}.{USUAL_RECORDS}")]
        if results.name == Embeddings.file_name:
            places.append(results.with_name(USUAL_RECORDS))
    return next((place for place in places if place.is_file()), None)
