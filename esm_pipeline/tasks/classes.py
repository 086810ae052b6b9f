"""The table of classes: one row for every record, from the arrays that `classify` made."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from esm_pipeline.cli import add_flags, section_from
from esm_pipeline.errors import InputError
from esm_pipeline.files import atomic_path, blaming, require_apart
from esm_pipeline.formats.classes import MULTI_LABEL, REGRESSION, Classes, P
from esm_pipeline.formats.records import OK, Record, format_row, read_records
from esm_pipeline.sections import LabelSettings

TASK = "classify"
COLUMNS = ("index", "id", "status", "reason")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `classes`."""
    parser.add_argument("arrays", metavar="CLASSES.h5", type=Path, help="what `classify` made")
    parser.add_argument("output", metavar="OUT.tsv", type=Path, help="table to write")
    parser.add_argument(
        "--records", required=True, type=Path, help="records.tsv, with what classify made of each"
    )
    parser.add_argument("--quiet", action="store_true", help="accepted, as by other commands")
    add_flags(parser, LabelSettings)


def run(args: argparse.Namespace) -> int:
    """Write the table; returns 0."""
    require_apart([args.output], [args.arrays, args.records])
    threshold = section_from(LabelSettings, args).threshold
    with atomic_path(args.output) as path:
        write_classes(args.arrays, read_records(args.records), path, threshold)
    return 0


def write_classes(arrays: Path, records: Iterable[Record], target: Path, threshold: float) -> None:
    """Write a row for each of `records`, in their order, from the file `arrays`.

    `threshold` is the probability from which a label counts, where a sequence may have several.
    Probabilities are read through a map of the file, so that memory holds some bytes a record.
    Raises InputError if they are not of these records.
    """
    with (
        Classes.open(arrays) as results,
        blaming(target),
        open(target, "w", encoding="utf-8", newline="") as handle,
    ):
        labelled = results.problem != REGRESSION
        handle.write(format_row([*COLUMNS, *["label"] * labelled, *results.columns]))
        for row in rows_of(results, records, threshold):
            handle.write(format_row(row))


def rows_of(results: Classes, records: Iterable[Record], threshold: float) -> Iterator[list[str]]:
    """The cells of each record."""
    p, row, index = mapped(results), results.row, results.index
    labelled = results.problem != REGRESSION
    width = len(results.columns) + labelled
    position = 0
    for record in records:
        outcome = record.outcomes.get(TASK)
        if outcome is None:
            raise InputError(f"{results.path}: its table of records has no {TASK}_status")
        told = [str(record.index), record.id, *outcome]
        if outcome.status != OK:
            yield told + [""] * width
            continue
        if position >= len(index) or index[position] != record.index:
            raise InputError(f"{results.path}: not of these records; make both again")
        values = p[row[position]]
        position += 1
        label = [label_of(results, values, threshold)] if labelled else []
        yield told + label + [str(value) for value in values]
    if position < len(index):
        raise InputError(f"{results.path}: has more records than the table; make both again")


def label_of(results: Classes, values: NDArray[np.float32], threshold: float) -> str:
    """The likeliest label, or all that are likely enough, with `;` between."""
    if results.problem != MULTI_LABEL:
        return results.labels[int(values.argmax())]
    pairs = zip(results.labels, values, strict=True)
    return ";".join(label for label, value in pairs if value >= threshold)


def mapped(results: Classes) -> NDArray[np.float32]:
    """(U, K) probabilities, mapped."""
    dataset = results.file[P]
    if not dataset.size:
        return np.empty(dataset.shape, np.float32)
    place = dataset.id.get_offset()
    return np.memmap(results.path, "<f4", mode="r", offset=place, shape=dataset.shape)
