"""The outcomes of records: in status tables, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from esm_pipeline.errors import InputError
from esm_pipeline.files import naming_errors
from esm_pipeline.formats.checksums import LISTING, check_listed
from esm_pipeline.formats.records import (
    FAILED,
    OK,
    REMAKE,
    SKIPPED,
    Outcome,
    Record,
    format_row,
    read_records,
    read_status,
    status_columns,
)
from esm_pipeline.tasks.common.progress import format_amount
from esm_pipeline.tasks.common.tallies import VARIANTS_STEP, Tally

VARIANT_REASONS = "reason"
"""Column of the reasons of variants, in the table of their scores."""

NO_ROW = (-1, Outcome(""))
OF_BUNDLE = ".status.tsv"
"""What the name of a bundle's status table ends in, after its number."""


def format_counts(counts: Counter[str], unit: str) -> str:
    """The number of each status as `3 records: 2 ok, 1 skipped, 0 failed`."""
    each = ", ".join(f"{counts[status]:,} {status}" for status in (OK, SKIPPED, FAILED))
    return f"{count_text(counts.total(), unit)}: {each}"


def count_text(number: int, unit: str, kind: str = "") -> str:
    """`1,200 records of a range`, `1 record`: the first word of `unit` is a plural.

    With the `kind` "usable", `1,200 usable records`.
    """
    word, space, rest = unit.partition(" ")
    amount, _, noun = format_amount(number, word).rpartition(" ")
    return f"{' '.join(filter(None, (amount, kind, noun)))}{space}{rest}"


def closing_line(
    title: str, tally: Tally, unit: str, details: str, output: Path, table: Path | None = None
) -> str:
    """The line at the end of a command: outcomes, the commonest reason, and where the files are.

    `unit` is what is counted, and `table` has the reasons, if there is one; those of variants are
    in the output itself.
    """
    counts, (reason, number) = tally.statuses, tally.commonest_reason()
    total, without = counts.total(), counts[SKIPPED] + counts[FAILED]
    why = ""
    if reason:
        kinds = tally.different.total()
        if number == without:
            why = f'; reason: "{reason}"'
        elif number > 1 or kinds == 1:
            why = f'; most often: "{reason}" ({count_text(number, unit.split()[0])})'
        else:
            why = f"; {count_text(kinds, 'reasons', 'different')}"
    is_own = tally.step == VARIANTS_STEP
    see = f"; see {table}" if table and without else ""
    where = f"; wrote {output}" + (f" and {table}" if table and (is_own or not see) else "")
    if is_own and see:
        see = f"; see the column '{VARIANT_REASONS}' in {output}"
    if total and without == total:
        both = f", none computed: {counts[SKIPPED]:,} skipped, {counts[FAILED]:,} failed"
        one = f" {SKIPPED if counts[SKIPPED] else FAILED}, none computed"
        what = both if counts[SKIPPED] and counts[FAILED] else one
        return f"{title}: {count_text(total, unit)}{what}{why}{where if is_own else ''}{see}"
    return f"{title}: {format_counts(counts, unit)}; {details}{why}{where}{see}"


def write_status(target: Path, task: str, outcomes: Iterable[tuple[int, Outcome]]) -> Counter[str]:
    """Write the status table of a task, a row for each index; returns the number of each status."""
    counts: Counter[str] = Counter()
    with naming_errors(target), open(target, "w", encoding="utf-8", newline="") as handle:
        handle.write(format_row(status_columns(task)))
        for index, outcome in outcomes:
            counts[outcome.status] += 1
            handle.write(format_row([str(index), *outcome]))
    return counts


def listing_of(status: Path) -> Path:
    """The list with the digests of a status table and of the result that was written with it.

    `00000.sha256` for that of a bundle, `00000.status.tsv`; otherwise that of its folder.
    """
    if not status.name.endswith(OF_BUNDLE):
        return status.with_name(LISTING)
    return status.with_name(status.name.removesuffix(OF_BUNDLE) + ".sha256")


def with_outcomes(records: Path, statuses: Mapping[str, Path]) -> Iterator[Record]:
    """The records of `records`, each with its outcome in every status table.

    Raises InputError if a table has other records, or has changed since it was written.
    """
    check_listed(records)
    for path in statuses.values():
        check_listed(path, listing_of(path))
    tables = {task: read_status(path, task) for task, path in statuses.items()}
    for record in read_records(records):
        for task, table in tables.items():
            index, outcome = next(table, NO_ROW)
            if index != record.index:
                raise InputError(
                    f"{statuses[task]}: no row for record {record.index} of {records}; {REMAKE}"
                )
            record = record.with_outcome(task, *outcome)
        yield record
    for task, table in tables.items():
        if next(table, None) is not None:
            raise InputError(f"{statuses[task]}: has more records than {records}; {REMAKE}")
