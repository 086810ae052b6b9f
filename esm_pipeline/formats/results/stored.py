"""A dataset of a result, read with plain system calls: as much of it as is wanted, and no more.

Memory is that of the values. A memory map would count every page that was looked at, and end the
process where the file was cut short after it was opened.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, TypeAlias

import h5py
import numpy as np
from numpy.typing import NDArray

from esm_pipeline.arrays import Int64
from esm_pipeline.formats.results.validation import damaged_result, unreadable

NEAR_BYTES = 16 << 10
"""Values that are no further apart are read at once: this takes as long as another call."""

STRETCH_BYTES = 4 << 20
"""Bytes that are read at a time for scattered values."""


class StoredArray:
    """A contiguous `dataset`; `file` returns the open file it is in, or raises InputError.

    `array[5]`, `array[5:9]` and `array.at([9, 5])` read values from the file. Raises DamagedError
    for places outside of the dataset or the file.
    """

    def __init__(self, path: str, file: Callable[[], h5py.File], dataset: h5py.Dataset) -> None:
        self.path, self._open_file, self._name = path, file, dataset.name.lstrip("/")
        self.shape: tuple[int, ...] = dataset.shape
        self.dtype: np.dtype[Any] = dataset.dtype
        self._item_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        self._offset: int = dataset.id.get_offset() or 0  # None where it has no bytes

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: int | slice) -> Any:
        if isinstance(key, slice):
            assert key.step is None
            return self._read(key.start or 0, len(self) if key.stop is None else key.stop)
        return self._read(key, key + 1)[0]

    def at(self, places: Int64) -> NDArray[Any]:
        """The values at some places, in this order."""
        order = np.argsort(places, kind="stable")
        ascending = places[order]
        values = np.empty((len(places), *self.shape[1:]), self.dtype)
        for first, stop in self._stretches(ascending):
            begin, end = int(ascending[first]), int(ascending[stop - 1]) + 1
            values[order[first:stop]] = self._read(begin, end)[ascending[first:stop] - begin]
        return values

    def _stretches(self, ascending: Int64) -> Iterator[tuple[int, int]]:
        """Cut ascending places into [first, stop) that are near each other."""
        if not len(ascending):
            return
        size = max(1, self._item_bytes)
        number = ascending // max(1, STRETCH_BYTES // size)
        apart = np.diff(ascending) > max(1, NEAR_BYTES // size)
        cuts = np.flatnonzero(apart | (np.diff(number) != 0)) + 1
        edges = [0, *cuts.tolist(), len(ascending)]
        yield from pairwise(edges)

    def _read(self, first: int, stop: int) -> NDArray[Any]:
        file = self._open_file()
        if not 0 <= first <= stop <= len(self):
            raise damaged_result(self.path, f"{self._name!r} does not have what others point to")
        values = np.empty((stop - first, *self.shape[1:]), self.dtype)
        rest = values.reshape(-1).view(np.uint8).data
        number, place = file.id.get_vfd_handle(), self._offset + first * self._item_bytes
        while len(rest):
            try:
                count = os.preadv(number, [rest], place)
            except OSError as error:
                raise unreadable(self.path, error) from None
            if not count:
                raise damaged_result(self.path, "cut short since it was opened")
            rest, place = rest[count:], place + count
        return values


StoredNumbers: TypeAlias = StoredArray | NDArray[Any]


def first_place(ascending: StoredNumbers, number: int | np.uint64, guess: int) -> int:
    """The first place with `number` or a larger one; the length where there is none.

    Looks around the place `guess`, as far as it would be off by chance: of numbers that are spread
    evenly, one look finds it. Otherwise there is one look for each bit of the length.
    """
    count = len(ascending)
    reach = 64 + 4 * math.isqrt(count)
    low, high = max(0, min(guess, count) - reach), min(count, max(0, guess) + reach)
    place = low + int(np.searchsorted(ascending[low:high], number))
    if (low < place or low == 0) and (place < high or high == count):
        return place
    return bisect_left(ascending, number)
