"""Outcomes of records: a status table written, read again, and counted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from esm_pipeline.errors import InputError
from esm_pipeline.formats.records import Outcome, Record, write_records
from esm_pipeline.tasks.common.outcomes import format_counts, with_outcomes, write_status

OUTCOMES = [Outcome("ok"), Outcome("skipped", "no residues"), Outcome("ok", "truncated")]


def write_table(folder: Path, count: int) -> Path:
    records = [
        Record(index, f"r{index}", "", 3, "ab" * 32, "ok", "", "", None) for index in range(count)
    ]
    write_records(folder / "records.tsv", records)
    return folder / "records.tsv"


def test_outcomes_come_back_with_their_records(tmp_path: Path) -> None:
    counts = write_status(tmp_path / "status.tsv", "embed", enumerate(OUTCOMES))
    assert counts == {"ok": 2, "skipped": 1}
    found = with_outcomes(write_table(tmp_path, 3), {"embed": tmp_path / "status.tsv"})
    assert [record.outcomes["embed"] for record in found] == OUTCOMES


@pytest.mark.parametrize(("count", "message"), [(2, "has more records than"), (4, "no row for")])
def test_a_table_of_other_records_is_refused(tmp_path: Path, count: int, message: str) -> None:
    write_status(tmp_path / "status.tsv", "embed", enumerate(OUTCOMES))
    with pytest.raises(InputError, match=message):
        list(with_outcomes(write_table(tmp_path, count), {"embed": tmp_path / "status.tsv"}))


def test_counts_of_all_statuses() -> None:
    assert format_counts(Counter(ok=1200, failed=1), "records") == (
        "1,201 records: 1,200 ok, 0 skipped, 1 failed"
    )
