"""Counts of tables: whatever the order of the rows, and after writing and reading, the same."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm_pipeline.errors import InputError
from esm_pipeline.formats.mutations import MisfitError, parse, resolve
from esm_pipeline.formats.records import Outcome
from esm_pipeline.tasks.common import tallies
from esm_pipeline.tasks.common.tallies import (
    MOST_BINS,
    Counts,
    Histogram,
    Tally,
    read_counts,
    reason_kind,
    write_counts,
)

NUMBERS = st.floats(-(2**41), 2**41) | st.floats(-30, 30)


def counted(*values: float) -> Histogram:
    histogram = Histogram()
    histogram.add(np.array(values))
    return histogram


@given(st.lists(NUMBERS, min_size=1, max_size=30), st.integers(1, 9))
def test_a_histogram_does_not_depend_on_the_order(values, step):
    found = Histogram()
    for first in range(step):
        found.add(np.array(values[first::step]))
    assert found == counted(*values)
    assert found.total == len(values)


@given(st.lists(NUMBERS, min_size=1, max_size=30), st.integers(1, 60))
def test_bars_have_what_a_histogram_of_numpy_has(values, most):
    """The oracle: the numbers themselves, in bars of the same edges."""
    edges, counts = counted(*values).bars(most)
    assert len(counts) == len(edges) - 1 <= most
    place = np.searchsorted(edges, values, side="right") - 1
    assert counts.tolist() == np.bincount(place, minlength=len(counts)).tolist()
    assert counts.sum() == len(values)
    assert min(counts[0], counts[-1]) > 0


def test_bins_are_no_wider_than_they_need_be():
    found = counted(0, 20)
    assert found.exponent == -5
    assert 20 * 2**5 < MOST_BINS < 20 * 2**6
    assert counted(3, 3).exponent == tallies.FINEST


def test_numbers_that_are_none_are_left_out():
    assert counted(math.nan, math.inf, 2.0**42, 1) == counted(1)
    assert counted() == counted(math.nan) == Histogram()
    assert [len(one) for one in Histogram().bars(5)] == [0, 0]


def example() -> Counts:
    tally = Tally("embed", "a")
    tally.add(Outcome("ok"), duplicate=True)
    tally.add_many(Outcome("failed", "7 residues do not fit"), 3)
    tally.add_many(Outcome("skipped", "of an earlier step"), 2, new=False)
    for length in (5, 6):
        tally.add(Outcome("skipped", f"{length} residues, but positions for 4"))
    return Counts([tally], {"score": counted(-1.5, 2)}, {7: 3, 5: 1})


def test_counts_come_back(tmp_path: Path) -> None:
    write_counts(tmp_path / "counts.json", example())
    found = read_counts(tmp_path / "counts.json", "a")
    assert found == example()
    assert found.tallies[0].row() == ["a", "embed", "8", "1", "4", "3", "1"]
    assert [*found.tallies[0].common_reasons()] == [
        ("failed", "7 residues do not fit", 3),
        ("skipped", "5 residues, but positions for 4", 2),
    ]
    write_counts(tmp_path / "again.json", found)
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "counts.json").read_bytes()


def test_reasons_of_one_kind_are_shown_as_the_first_record_has_them():
    """Whatever the order in which they are added."""
    reasons = ["residue 9 is E, not K", "residue 3 is S, not E", "residue 5 is A, not E"]
    for order in itertools.permutations(range(3)):
        tally = Tally("variants")
        for at in order:
            tally.add_many(Outcome("skipped", reasons[at]), 1, at=at)
        assert [*tally.common_reasons()] == [("skipped", reasons[0], 3)]
        assert tally.commonest_reason() == (reasons[0], 3)
        assert tally.different == Counter(skipped=1)


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ("residue 3 is E, not K", "residue 4 is S, not A", True),
        ("residue 3 is E, not K; set a", "residue 4 is S, not A; set a", True),
        ("residue 3 is E, not K; set a", "residue 4 is S, not A", False),
        ("mutation leads to B, which is no residue", "mutation leads to Z, which is no", False),
        ("character '1' at residue 3", "character '2' at residue 3", False),
        ("the strategy is A, not Bayes", "the strategy is C, not Bayes", False),
    ],
)
def test_kinds_of_reasons(one: str, other: str, together: bool) -> None:
    assert (reason_kind(one) == reason_kind(other)) is together


def test_the_message_on_another_residue_has_a_kind() -> None:
    kinds = set()
    for text in ("K2A", "R1A"):
        with pytest.raises(MisfitError) as error:
            resolve(parse(text), "MAMA")
        kinds.add(reason_kind(str(error.value)))
    assert kinds == {"residue # is #, not #"}


def test_reasons_that_are_left_out_are_counted(tmp_path: Path) -> None:
    tally = Tally("embed")
    for letter in "abcde":
        tally.add_many(Outcome("skipped", f"why {letter}"), 2)
    tally.add(Outcome("failed", "memory"))
    write_counts(tmp_path / "counts.json", Counts([tally]))
    (found,) = read_counts(tmp_path / "counts.json", "").tallies
    for one in (tally, found):
        assert one.more_reasons() == {"skipped": 2}
        assert one.different == Counter(skipped=5, failed=1)
        assert len([*one.common_reasons()]) == 4


def test_counts_of_older_files_are_read(tmp_path: Path) -> None:
    """They have numbers as # and do not say how many reasons there are."""
    path = tmp_path / "counts.json"
    write_counts(path, example())
    values = json.loads(path.read_text())
    values["tallies"][0] |= {"reasons": {"failed": {"# residues do not fit": 3}, "skipped": {}}}
    del values["tallies"][0]["different_reasons"]
    path.write_text(json.dumps(values))
    (tally,) = read_counts(path, "a").tallies
    assert [*tally.common_reasons()] == [("failed", "# residues do not fit", 3)]
    assert not tally.more_reasons()


def test_rare_reasons_are_dropped_where_there_are_too_many(monkeypatch):
    monkeypatch.setattr(tallies, "DIFFERENT_REASONS", 10)
    tally = Tally("variants")
    for place in range(1000):
        tally.add(Outcome("skipped", "often"))
        tally.add(Outcome("skipped", f"protein '{'x' * place}' is unknown"))
    assert tally.statuses == Counter(skipped=2000)
    assert next(tally.common_reasons()) == ("skipped", "often", 1000)
    assert len(tally.reasons["skipped"]) <= 10


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (["format"], "another"),
        (["format_version"], 2),
        (["tallies"], None),
        (["tallies", 0, "ok"], -1),
        (["tallies", 0, "ok"], True),
        (["tallies", 0, "step"], 1),
        (["tallies", 0, "reasons"], {}),
        (["tallies", 0, "reasons", "failed"], [1]),
        (["tallies", 0, "different_reasons"], 5),
        (["tallies", 0, "different_reasons", "failed"], "1"),
        (["histograms", "score", "exponent"], 1e9),
        (["histograms", "score", "counts"], [1] * (MOST_BINS + 1)),
        (["lengths"], [[1, 2, 3]]),
        (["lengths"], {"1": 2}),
    ],
)
def test_what_is_not_counts_is_one_line(tmp_path: Path, place: list, value: object) -> None:
    path = tmp_path / "counts.json"
    write_counts(path, example())
    values = inner = json.loads(path.read_text())
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"counts\.json: not the counts of a table \([^\n]+\)"):
        read_counts(path, "a")


def test_missing_counts_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file; run the workflow again"):
        read_counts(tmp_path / "counts.json", "a")
