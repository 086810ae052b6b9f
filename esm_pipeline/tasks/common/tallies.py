"""What is counted of a table of outcomes while it is written, so that nobody reads it again.

Whoever writes `records.tsv` or `scores.tsv` writes its counts to `counts/records.json` or
`counts/variants.json` in the same pass, and puts it into the list with the digest of the table;
`verdict`, `report` and `provenance` read only these:

    tally, histogram = Tally(VARIANTS), Histogram()
    tally.add(Outcome("failed", "out of memory"))         # one row, or
    tally.add_many(Outcome("ok"), 1000)                   # many that are alike
    histogram.add(np.array([-1.25, 0.5]))                 # scores of rows that are ok
    write_counts(path, Counts([tally], {"masked_marginal": histogram}))

A tally takes memory for its different reasons, a histogram for its bins; neither grows with rows.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from esm_pipeline.arrays import Float32, Float64, Int64
from esm_pipeline.errors import InputError
from esm_pipeline.files import naming_errors
from esm_pipeline.formats.mutations import OTHER_RESIDUE
from esm_pipeline.formats.records import FAILED, OK, SKIPPED, STATUSES, Outcome
from esm_pipeline.json_files import read_object

VALIDATION, VARIANTS_STEP = "validation", "variants"
"""Steps of a sample that are no tasks: of its records, and of the rows of its variant table."""

TALLY_COLUMNS = ("sample", "step", "records", OK, SKIPPED, FAILED, "duplicates")
MOST_REASONS = 3
"""Reasons that are kept for each status of a step."""

DIFFERENT_REASONS = 100_000
"""Most reasons of a status that are counted at a time; beyond it, the rarer half is dropped."""

NUMBER = re.compile(r"(?<!')\d+")
"""A number in a reason, but not a digit in quotes, which is part of a sequence."""

COUNTS_FORMAT, COUNTS_VERSION = "esm-pipeline/counts", 1
FINEST, WIDEST = -10, 42
"""Binary logarithms of the narrowest bin of a histogram, and of the numbers that have none."""

MOST_BINS = 1_000


@dataclass
class Tally:
    """The outcomes of records in one step: validation, a task, or the variants."""

    step: str
    sample: str = ""
    statuses: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, Counter[str]] = field(
        default_factory=lambda: {FAILED: Counter(), SKIPPED: Counter()}
    )
    """Status → how many records have each kind of reason; see `reason_kind`."""
    duplicates: int = 0
    different: Counter[str] = field(default_factory=Counter)
    """Status → how many kinds of reasons there are; those dropped in between may count again."""
    examples: dict[str, tuple[int, str]] = field(default_factory=dict, compare=False)
    """Each kind of reason → place and reason of the first record that has it."""

    def add(self, outcome: Outcome, *, duplicate: bool = False, new: bool = True) -> None:
        """Count a record; see `add_many`."""
        self.duplicates += duplicate
        self.add_many(outcome, 1, new=new)

    def add_many(self, outcome: Outcome, number: int, *, new: bool = True, at: int = 0) -> None:
        """Count records of one outcome. Their reason counts if `new`, not that of an earlier step.

        Reasons of one kind count as one. `at`: place of the first of these records in the input,
        if they are not added in its order.
        """
        self.statuses[outcome.status] += number
        if new and outcome.status in self.reasons:
            reasons = self.reasons[outcome.status]
            text, example = reason_kind(outcome.reason), (at, outcome.reason)
            self.different[outcome.status] += bool(text) and text not in reasons
            reasons[text] += number
            if at < self.examples.setdefault(text, example)[0]:
                self.examples[text] = example
            if len(reasons) > DIFFERENT_REASONS:
                kept = sorted(reasons.items(), key=_commonest_first)[: DIFFERENT_REASONS // 2]
                self.reasons[outcome.status] = Counter(dict(kept))
                known = {one for some in self.reasons.values() for one in some}
                self.examples = {one: self.examples[one] for one in known}

    def common_reasons(self) -> Iterator[tuple[str, str, int]]:
        """The most common kinds of reasons: status, reason of the first record, number of records.

        `MOST_REASONS` of each status; of equals by letters.
        """
        for status, reasons in self.reasons.items():
            for text, number in sorted(reasons.items(), key=_commonest_first)[:MOST_REASONS]:
                yield status, self.examples[text][1], number

    def more_reasons(self) -> Counter[str]:
        """Status → how many kinds of reasons `common_reasons` leaves out, where it does."""
        left_out = {status: number - MOST_REASONS for status, number in self.different.items()}
        return +Counter(left_out)

    def commonest_reason(self) -> tuple[str, int]:
        """The most common of all reasons, as its first record has it, and how often.

        Of equals, that of failures. Empty, and 0, if there is none.
        """
        found = [(reason, number) for _, reason, number in self.common_reasons() if reason]
        return max(found, key=lambda one: one[1], default=("", 0))

    def row(self) -> list[str]:
        """The cells of `TALLY_COLUMNS`."""
        counts = (self.statuses.total(), *(self.statuses[name] for name in (OK, SKIPPED, FAILED)))
        return [self.sample, self.step, *(f"{count:,}" for count in (*counts, self.duplicates))]

    def values(self) -> dict[str, Any]:
        """The tally as values for JSON, with the most common reasons only."""
        reasons: dict[str, dict[str, int]] = {status: {} for status in self.reasons}
        for status, reason, number in self.common_reasons():
            reasons[status][reason] = number
        counts = {status: self.statuses[status] for status in STATUSES}
        return {
            "step": self.step,
            **counts,
            "duplicates": self.duplicates,
            "reasons": reasons,
            "different_reasons": {status: self.different[status] for status in reasons},
        }

    @classmethod
    def of(cls, values: Mapping[str, Any], sample: str) -> Tally:
        """The tally that `values` returned. Raises ValueError, KeyError or TypeError for others."""
        statuses = Counter({status: whole(values[status]) for status in STATUSES})
        tally = cls(text(values["step"]), sample, statuses, duplicates=whole(values["duplicates"]))
        known = values.get("different_reasons", {})  # not in older files
        for status, reasons in tally.reasons.items():
            found = {text(one): whole(number) for one, number in values["reasons"][status].items()}
            for reason, number in found.items():
                reasons[reason_kind(reason)] += number
                tally.examples.setdefault(reason_kind(reason), (0, reason))
            tally.different[status] = whole(known.get(status, len(found)))
        return tally


def reason_kind(reason: str) -> str:
    """A reason without its numbers and residues: what reasons that count as one have in common."""
    return NUMBER.sub("#", OTHER_RESIDUE.sub("#", reason))


def _commonest_first(one: tuple[str, int]) -> tuple[int, str]:
    return -one[1], one[0]


@dataclass
class Histogram:
    """How many numbers lie in each of at most `MOST_BINS` bins of equal width, a power of two.

    The width is the narrowest, from 2^`FINEST` on, with which that many bins hold all: it, and the
    counts, do not depend on the order in which numbers are added.
    """

    exponent: int = FINEST
    """Binary logarithm of the width."""
    counts: Counter[int] = field(default_factory=Counter)
    """Bin → how many; bin 0 begins at 0."""

    @property
    def total(self) -> int:
        """How many numbers were added."""
        return self.counts.total()

    def add(self, values: Float64 | Float32) -> None:
        """Count numbers (n,); those that are not below 2^`WIDEST` in size are left out."""
        values = np.asarray(values, np.float64)
        values = values[np.abs(values) < 1 << WIDEST]  # also false for NaN
        if not values.size:
            return
        finest = np.floor(np.ldexp(values, -FINEST)).astype(np.int64)
        ends = [int(finest.min()), int(finest.max())]
        while not self._holds(*(end >> self.exponent - FINEST for end in ends)):
            self._widen()
        bins = finest >> self.exponent - FINEST
        for place, number in zip(*np.unique(bins, return_counts=True), strict=True):
            self.counts[int(place)] += int(number)

    def bars(self, most: int) -> tuple[Float64, Int64]:
        """The edges (n + 1,) and counts (n,) of at most `most` bars, each of as many bins.

        Empty without numbers.
        """
        if not self.counts:
            return np.empty(0), np.empty(0, np.int64)
        least, span = min(self.counts), max(self.counts) - min(self.counts) + 1
        together = math.ceil(span / most)
        counts = np.zeros(math.ceil(span / together), np.int64)
        for place, number in self.counts.items():
            counts[(place - least) // together] += number
        edges = least + together * np.arange(len(counts) + 1, dtype=np.float64)
        return np.ldexp(edges, self.exponent), counts

    def _holds(self, first: int, last: int) -> bool:
        first, last = min(first, *self.counts, last), max(last, *self.counts, first)
        return last - first < MOST_BINS

    def _widen(self) -> None:
        counts, self.exponent = self.counts, self.exponent + 1
        self.counts = Counter()
        for place, number in counts.items():
            self.counts[place // 2] += number

    def values(self) -> dict[str, Any]:
        """The histogram as values for JSON: width of a bin, place of the first, and all counts."""
        least = min(self.counts, default=0)
        counts = [self.counts[place] for place in range(least, max(self.counts, default=-1) + 1)]
        return {"exponent": self.exponent, "first": least, "counts": counts}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Histogram:
        """The one that `values` returned. Raises ValueError, KeyError or TypeError for others."""
        first, exponent = values["first"], values["exponent"]
        if not isinstance(first, int) or exponent not in range(FINEST, WIDEST + 1):
            raise ValueError("the bins of a histogram have no place")
        if len(values["counts"]) > MOST_BINS:
            raise ValueError("a histogram has too many bins")
        counts = {place: whole(one) for place, one in enumerate(values["counts"], first) if one}
        return cls(exponent, Counter(counts))


@dataclass
class Counts:
    """What is counted of a table, besides its tallies to be drawn."""

    tallies: list[Tally]
    """Of each step."""
    histograms: dict[str, Histogram] = field(default_factory=dict)
    """Of columns, by name."""
    lengths: dict[int, int] = field(default_factory=dict)
    """Residues → how many records that are ok in validation have as many."""


def write_counts(path: Path, counts: Counts) -> None:
    """Write the counts of a table as JSON."""
    values = {
        "format": COUNTS_FORMAT,
        "format_version": COUNTS_VERSION,
        "tallies": [tally.values() for tally in counts.tallies],
        "histograms": {name: one.values() for name, one in counts.histograms.items()},
        "lengths": sorted(counts.lengths.items()),
    }
    with naming_errors(path):
        path.write_text(json.dumps(values, ensure_ascii=False) + "\n", encoding="utf-8")


def read_counts(path: Path, sample: str) -> Counts:
    """The counts of a table of `sample`. Raises InputError if it is not as `write_counts` does."""
    try:
        values = read_object(path)
        if (values["format"], values["format_version"]) != (COUNTS_FORMAT, COUNTS_VERSION):
            raise ValueError("another format")
        tallies = [Tally.of(one, sample) for one in values["tallies"]]
        histograms = {name: Histogram.of(one) for name, one in values["histograms"].items()}
        lengths = {whole(length): whole(number) for length, number in values["lengths"]}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run the workflow again to make it") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: not the counts of a table ({error}); remove it and run the workflow again"
        ) from None
    return Counts(tallies, histograms, lengths)


def whole(value: Any) -> int:
    """`value` if it is a number of records. Raises ValueError otherwise."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError("a count is not a whole number")
    return value


def text(value: Any) -> str:
    """`value` if it is text. Raises ValueError otherwise."""
    if not isinstance(value, str):
        raise ValueError("a name is not text")
    return value
