"""The outcome of every record: read from status tables, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from esm_pipeline.errors import InputError
from esm_pipeline.formats.checksums import check_listed
from esm_pipeline.formats.records import (
    ANEW,
    FAILED,
    OK,
    SKIPPED,
    Outcome,
    Record,
    read_records,
    read_status,
)

NO_ROW = (-1, Outcome(""))


def format_counts(counts: Counter[str], unit: str) -> str:
    """`3 records: 2 ok, 1 skipped, 0 failed`, by the number of each status."""
    each = ", ".join(f"{counts[status]:,} {status}" for status in (OK, SKIPPED, FAILED))
    return f"{counts.total():,} {unit}: {each}"


def with_outcomes(records: Path, statuses: Mapping[str, Path]) -> Iterator[Record]:
    """The records of `records`, each with its row of every status table.

    Raises InputError if a table is not of the same records, or not as it was written.
    """
    for path in (records, *statuses.values()):
        check_listed(path)
    tables = {task: read_status(path, task) for task, path in statuses.items()}
    for record in read_records(records):
        for task, table in tables.items():
            index, outcome = next(table, NO_ROW)
            if index != record.index:
                raise InputError(
                    f"{statuses[task]}: no row for record {record.index} of {records}; {ANEW}"
                )
            record = record.with_outcome(task, *outcome)
        yield record
    for task, table in tables.items():
        if next(table, None) is not None:
            raise InputError(f"{statuses[task]}: has more records than {records}; {ANEW}")
