"""Write classes of sequences or residues as a table, from the HDF5 that `classify` wrote.

For sequences, the table has a row for every record of `--records`, with status and reason, or else
for every record that is ok. For residues, it has a row for each residue.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from esm_pipeline.arrays import Bool
from esm_pipeline.errors import InputError
from esm_pipeline.files import atomic_path, require_apart
from esm_pipeline.flags import add_flags, section_from
from esm_pipeline.formats.checksums import check_listed
from esm_pipeline.formats.records import OK, Outcome, Record
from esm_pipeline.formats.results.classes import Classes, ResidueClasses
from esm_pipeline.formats.results.open import open_results
from esm_pipeline.formats.tables.base import ROWS_AT_ONCE, Column, Writer, suffix_of
from esm_pipeline.formats.tables.open import create_table
from esm_pipeline.locks import Outputs
from esm_pipeline.settings.sections import LabelSettings
from esm_pipeline.tasks.common.outcomes import listing_of, with_outcomes

CLASSIFY = "classify"
RECORD = [Column("index", "whole"), *(Column(name, "text") for name in ("id", "status", "reason"))]
RESIDUE = [
    *(Column("id", "text"), Column("index", "whole")),
    *(Column("position", "whole"), Column("residue", "text")),
]
"""Columns before those of the model's results."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `classes`."""
    parser.add_argument(
        "results", type=Path, metavar="CLASSES.h5", help="HDF5 that `classify` wrote"
    )
    parser.add_argument(
        "output", type=Path, metavar="OUT", help="file to write: .tsv, .csv or .parquet"
    )
    parser.add_argument("--records", type=Path, help="records.tsv of the same input")
    parser.add_argument(
        "--status", type=Path, help="status table of `classify`, if --records has no outcomes of it"
    )
    add_flags(parser, LabelSettings)


def outputs(args: argparse.Namespace) -> Outputs:
    """What `classes` writes. Raises InputError if it would replace what it reads."""
    require_apart([args.output], filter(None, [args.results, args.records, args.status]))
    return Outputs([args.output])


def run(args: argparse.Namespace) -> int:
    """Write the table; returns 0."""
    threshold = section_from(LabelSettings, args).threshold
    suffix = suffix_of(args.output)
    require_apart([args.output], filter(None, [args.results, args.records, args.status]))
    records = None
    if args.status:
        check_listed(args.results, listing_of(args.status))
    if args.records:
        statuses = {CLASSIFY: args.status} if args.status else {}
        records = with_outcomes(args.records, statuses)
    with atomic_path(args.output) as path:
        write_class_table(path, suffix, args.results, records, threshold)
    return 0


def write_class_table(
    target: Path, suffix: str, source: Path, records: Iterable[Record] | None, threshold: float
) -> None:
    """Write the results at `source` as a table of the format that `suffix` names.

    `records` are those of the input with their outcomes. Raises InputError if they do not belong to
    the results, or the results are of another task.
    """
    with open_results(source) as results:
        if not isinstance(results, Classes | ResidueClasses):
            raise InputError(f"{source}: not what `classify` writes; give a classes.h5")
        before = RESIDUE if isinstance(results, ResidueClasses) else RECORD
        with create_table(target, suffix, None, [*before, *results.columns()]) as writer:
            if isinstance(results, ResidueClasses):
                write_residues(writer, results, threshold)
            else:
                write_sequences(writer, results, rows_of(results, records), threshold)


def rows_of(
    results: Classes | ResidueClasses, records: Iterable[Record] | None
) -> Iterator[tuple[int, str, Outcome]]:
    """Index, id and outcome of all `records`, or else of those that have results."""
    if records is None:
        for index, name in zip(results.index.tolist(), results.ids, strict=True):
            yield index, name, Outcome(OK)
        return
    for record in records:
        if CLASSIFY not in record.outcomes:
            raise InputError(
                f"--records: has no outcomes of '{CLASSIFY}'; give the status table as well, or "
                "the records.tsv next to the results"
            )
        yield record.index, record.id, record.outcomes[CLASSIFY]


def write_sequences(
    writer: Writer,
    results: Classes | ResidueClasses,
    rows: Iterator[tuple[int, str, Outcome]],
    threshold: float,
) -> None:
    """Write a row for each record, with empty cells if it has no results."""
    done, values = 0, results.predictions()
    while block := list(islice(rows, ROWS_AT_ONCE)):
        index, names, outcomes = zip(*block, strict=True)
        statuses, reasons = zip(*outcomes, strict=True)
        ok = np.array([status == OK for status in statuses])
        stop = done + int(ok.sum())
        if not np.array_equal(results.index[done:stop], np.array(index)[ok]):
            raise mismatch(results)
        cells = results.cells(values[results.row[done:stop]], threshold)
        columns = [fill_missing(column, ok) for column in cells]
        writer.write(None, [index, names, statuses, reasons, *columns])
        done = stop
    if done < len(results):
        raise mismatch(results)


def mismatch(results: Classes | ResidueClasses) -> InputError:
    """The error for results and records that do not belong together."""
    return InputError(
        f"{results.path}: its records are not those of --records that are ok; give the table of "
        "the same run"
    )


def fill_missing(column: Any, ok: Bool) -> list[Any]:
    """The cells of a column in the rows that are `ok`, missing values in the others."""
    missing = "" if isinstance(column, list) else np.float32("nan")
    cells = iter(column)
    return [next(cells) if one else missing for one in ok.tolist()]


def write_residues(writer: Writer, results: ResidueClasses, threshold: float) -> None:
    """Write a row for each residue of each record."""
    values = results.predictions()
    for index, name, row in zip(
        results.index.tolist(), results.ids, results.row.tolist(), strict=True
    ):
        units = slice(*results.offset[row : row + 2].tolist())
        residues = results.letters(units).tolist()
        count = len(residues)
        before = [[name] * count, [index] * count, range(1, count + 1), residues]
        writer.write(None, [*before, *results.cells(values[units], threshold)])
