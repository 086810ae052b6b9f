"""Tables of bundles, as `shard` and `aggregate` write them, from records made up in a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from esm_pipeline.formats.checksums import write_digests
from esm_pipeline.formats.records import FAILED, OK, SKIPPED, Outcome, Record, write_records
from esm_pipeline.settings.result_names import bundle_names
from esm_pipeline.tasks.common.outcomes import write_status

HEADERS = ('a "quoted" one', "with\ttabs\t", "plain", "\rreturn", "é", '"', "two\nlines", "")
REASONS = (
    "1500 residues, but positions for 1022",
    "a gap '-' at residue 7",
    'of "x"',
    "out of\tit",
)


def made_up(count: int, tasks: Sequence[str] = ("embed",)) -> list[Record]:
    """Records of all kinds: skipped, duplicates, with odd headers and reasons."""
    found = []
    for index in range(count):
        header = HEADERS[index % len(HEADERS)]
        if index % 7 == 3:
            record = Record(index, f"id{index}", header, None, "", SKIPPED, REASONS[index % 4])
        else:
            first = index - index % 11 if index % 5 == 0 and index % 11 else None
            record = Record(
                index, f"id{index}", header, 20 + index % 13, "ab" * 32, OK, "", "", first
            )
        for number, task in enumerate(tasks):
            kind = (index + number) % 9
            outcome = {0: (FAILED, REASONS[index % 3]), 1: (SKIPPED, REASONS[index % 2])}
            status = (record.status, record.reason) if record.status != OK else (OK, "")
            record = record.with_outcome(
                task, *(outcome.get(kind, status) if record.length else status)
            )
        found.append(record)
    return found


def write_bundles(folder: Path, records: Sequence[Record], count: int) -> Path:
    """Deal records to the tables of `count` bundles in `folder`/bundles, and list their digests."""
    bundles = folder / "bundles"
    bundles.mkdir(parents=True, exist_ok=True)
    tables = [bundles / f"{name}.records.tsv" for name in bundle_names(count)]
    for number, table in enumerate(tables):
        write_records(table, dealt(records, number, count))
    write_digests(bundles / "digests.sha256", {table.name: table for table in tables})
    return bundles


def dealt(records: Sequence[Record], number: int, count: int) -> list[Record]:
    """The records of one bundle, some of which has many in a row."""
    return [one for one in records if (one.index * 2654435761 >> 7) % count == number]


def write_statuses(folder: Path, records: Sequence[Record], task: str, count: int) -> Path:
    """Write the status tables of a task, one for each bundle, and the lists of their digests."""
    for number, name in enumerate(bundle_names(count)):
        table = folder / task / f"{name}.status.tsv"
        write_whole_status(table, dealt(records, number, count), task)
    return folder / task


def write_whole_status(table: Path, records: Sequence[Record], task: str) -> Path:
    """Write one status table, and the list of its digest."""
    table.parent.mkdir(parents=True, exist_ok=True)
    write_status(table, task, ((one.index, Outcome(*one.outcomes[task])) for one in records))
    stem = table.name.removesuffix("status.tsv").rstrip(".")
    write_digests(table.with_name(f"{stem or 'digests'}.sha256"), {table.name: table})
    return table
