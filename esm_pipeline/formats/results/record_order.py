"""The records of one or several files in input order: blocks of them, merged by index.

A sample of several bundles has a file for each, whose records are in input order. Memory is a block
of records, and a few indices of each file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from esm_pipeline.arrays import Int32, Int64
from esm_pipeline.formats.results.part import FoundRecord, ResultPart

LEAST_READ = 256
"""Indices of a file that are read at a time, at least."""

LARGEST = np.iinfo(np.int64).max


class RecordSpan(NamedTuple):
    """The records [first, stop) of the file `number`."""

    number: int
    part: ResultPart
    first: int
    stop: int


@dataclass(frozen=True)
class RecordBlock:
    """n records that follow each other in the input."""

    spans: list[RecordSpan]
    order: Int64
    """(n,) place of each record among those of all `spans` together."""
    index: Int64
    """(n,) position of each record in the input, ascending."""

    def __len__(self) -> int:
        return len(self.index)

    @cached_property
    def starts(self) -> Int64:
        """(spans + 1,) where the records of each span begin, and the last ends."""
        return np.cumsum([0, *(span.stop - span.first for span in self.spans)])

    def ids(self) -> list[str]:
        """The id of each record."""
        found = [name for span in self.spans for name in span.part.ids(span.first, span.stop)]
        return [found[place] for place in self.order.tolist()]

    def rows(self, row_starts: Sequence[int]) -> Int64:
        """(n,) the row of each record; the rows of file i follow `row_starts[i]` others."""
        found = [span.part.rows(span.first, span.stop) for span in self.spans]
        starts = [row_starts[span.number] for span in self.spans]
        joined = [rows + start for rows, start in zip(found, starts, strict=True)]
        return np.concatenate(joined)[self.order]

    def lengths(self) -> Int32:
        """(n,) residues of each record."""
        rows = [span.part.rows(span.first, span.stop) for span in self.spans]
        found = [span.part.lengths(own) for span, own in zip(self.spans, rows, strict=True)]
        return np.concatenate(found)[self.order]

    def values(self, name: str, chosen: Int64 | slice = slice(None)) -> NDArray[Any]:
        """Those of the dataset `name`, with one for each row, for the records `chosen`."""
        places = self.order[chosen]
        back = np.argsort(places, kind="stable")
        edges = np.searchsorted(places[back], self.starts)
        one = self.spans[0].part.array(name)
        values = np.empty((len(places), *one.shape[1:]), one.dtype)
        for span, start, low, high in zip(
            self.spans, self.starts[:-1], edges[:-1], edges[1:], strict=True
        ):
            own = back[low:high]
            rows = span.part.rows(span.first, span.stop)[places[own] - start]
            values[own] = span.part.array(name).at(rows)
        return values

    def records(self) -> Iterator[FoundRecord]:
        """Each record."""
        found: list[tuple[ResultPart, str, int, int]] = []
        for span in self.spans:
            names = span.part.ids(span.first, span.stop)
            rows = span.part.rows(span.first, span.stop)
            lengths = span.part.lengths(rows).tolist()
            found += zip([span.part] * len(names), names, rows.tolist(), lengths, strict=True)
        for place, index in zip(self.order.tolist(), self.index.tolist(), strict=True):
            part, name, row, length = found[place]
            yield FoundRecord(part, name, index, row, length)


class IndexCursor:
    """The records of a file that are not in a block yet, with the indices that were read ahead."""

    def __init__(self, number: int, part: ResultPart, first: int) -> None:
        self._number, self._part, self._first = number, part, first
        self.ahead: Int64 = np.empty(0, np.int64)
        self._last = -1 if first == 0 else int(part.array("index")[first - 1])

    @property
    def known_to(self) -> int:
        """The largest index up to which all records of the file were read."""
        ended = self._first + len(self.ahead) == self._part.record_count
        return LARGEST if ended else self._last

    def read_on(self, count: int) -> None:
        """Read the next indices. Raises DamagedError if they do not ascend."""
        begin = self._first + len(self.ahead)
        found = self._part.array("index")[begin : min(begin + count, self._part.record_count)]
        ascending = (np.diff(found, prepend=self._last) > 0).all() and found[-1] < LARGEST
        self._part.require(ascending, "index")
        self._last = int(found[-1])
        self.ahead = np.concatenate([self.ahead, found])

    def take(self, count: int) -> RecordSpan:
        """The next records."""
        span = RecordSpan(self._number, self._part, self._first, self._first + count)
        self._first, self.ahead = span.stop, self.ahead[count:]
        return span


def in_input_order(
    parts: Sequence[ResultPart], first: int, stop: int, size: int
) -> Iterator[RecordBlock]:
    """The records [first, stop) of all files, in blocks of `size`.

    Raises DamagedError if the indices do not ascend, or two files have the same.
    """
    places = places_of(parts, first)
    cursors = [IndexCursor(*one) for one in zip(range(len(parts)), parts, places, strict=True)]
    step = max(LEAST_READ, size // len(parts))
    for done in range(first, stop, size):
        wanted = min(size, stop - done)
        ready = read_ahead(cursors, wanted, step)
        last = np.partition(np.concatenate(ready), wanted - 1)[wanted - 1]
        counts = [int(np.searchsorted(ahead, last, side="right")) for ahead in ready]
        index = np.concatenate([one[:n] for one, n in zip(ready, counts, strict=True)])
        order = np.argsort(index, kind="stable")
        index = index[order]
        parts[0].require((np.diff(index) > 0).all(), "index")
        taken = [(one, n) for one, n in zip(cursors, counts, strict=True) if n]
        yield RecordBlock([one.take(n) for one, n in taken], order, index)


def read_ahead(cursors: list[IndexCursor], wanted: int, step: int) -> list[Int64]:
    """Indices of each file, together at least the first `wanted` that are left."""
    while True:
        limit = min(one.known_to for one in cursors)
        ready = [
            one.ahead[: int(np.searchsorted(one.ahead, limit, side="right"))] for one in cursors
        ]
        if sum(map(len, ready)) >= wanted or limit == LARGEST:
            return ready
        for one in cursors:
            if one.known_to == limit:
                one.read_on(step)


def places_of(parts: Sequence[ResultPart], rank: int) -> list[int]:
    """How many of the first `rank` records are in each file.

    Looks at some indices of each file. Raises DamagedError if they contradict each other.
    """
    low, high = [0] * len(parts), [part.record_count for part in parts]
    if len(parts) == 1:
        return [rank]
    least, most = 0, 1 + max(part.last_index for part in parts)
    while least < most:
        middle = (least + most) // 2
        places = positions_from(parts, middle, low, high)
        if sum(places) < rank:
            least, low = middle + 1, places
        else:
            most, high = middle, places
    places = positions_from(parts, least, low, high)
    parts[0].require(sum(places) == rank, "index")
    return places


def positions_from(
    parts: Sequence[ResultPart], index: int, low: list[int], high: list[int]
) -> list[int]:
    """The first record of each file with `index` or a larger one, `low` to `high`."""
    ranges = zip(parts, low, high, strict=True)
    return [part.first_from(index, *ends) for part, *ends in ranges]
