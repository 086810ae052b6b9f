"""The vectors of all records as one array, whose rows are read as they are asked for."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import DTypeLike, NDArray

from esm_pipeline.arrays import Float32, Int64
from esm_pipeline.formats.results.reader import RaggedResults

MATRIX_ROWS = 1 << 16
"""Rows of a block, unless told otherwise."""

LEAST_READ_BYTES = 64 << 20
"""Bytes that are read at a time, at least: short rows are far apart in the file."""

PLACE_BYTES = 64
"""Bytes that finding a row takes."""


class RecordMatrix:
    """(N, …) the values of dataset `name`, one for each record of `results`, in input order.

    `matrix[5]` and `matrix[5:9]` read some rows, `matrix.blocks()` all of them in bounded memory,
    `np.asarray(matrix)` all at once. `matrix[[5, 9, 2]]` reads these rows; of several files it also
    looks at all indices.
    """

    def __init__(self, results: RaggedResults[Any], name: str) -> None:
        self._results, self._name = results, name
        one = results.parts[0].array(name)
        self.shape, self.dtype = (len(results), *one.shape[1:]), one.dtype

    def __repr__(self) -> str:
        return f"RecordMatrix({self._name!r}, shape={self.shape}, dtype={self.dtype})"

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Float32]:
        return (row for block in self.blocks() for row in block)

    def __getitem__(self, key: SupportsIndex | slice | list[int] | NDArray[Any]) -> Float32:
        if isinstance(key, slice):
            first, stop, step = key.indices(len(self))
            if step == 1:
                return self._rows(first, max(first, stop))
            return self._scattered(np.arange(first, stop, step))
        if isinstance(key, list | np.ndarray):
            return self._scattered(np.arange(len(self))[np.asarray(key)])
        place = operator.index(key)
        if not -len(self) <= place < len(self):
            raise IndexError(f"row {place} of {len(self)}")
        found: Float32 = self._rows(place % len(self), place % len(self) + 1)[0]
        return found

    def blocks(self, rows: int = MATRIX_ROWS) -> Iterator[Float32]:
        """All rows, `rows` at a time; memory is that of one block, or 64 MiB."""
        return (values for _, values in self.indexed_blocks(rows))

    def indexed_blocks(self, rows: int) -> Iterator[tuple[Int64, Float32]]:
        """The same, each with the indices of its records."""
        for block in self._results.blocks(rows * self._read_at_once(rows)):
            values = block.values(self._name)
            for first in range(0, len(values), rows):
                part = slice(first, first + rows)
                yield block.index[part], values[part]
            del values  # before the next ones are read

    def _read_at_once(self, rows: int) -> int:
        """How many blocks of `rows` are read at a time."""
        one = PLACE_BYTES + self.dtype.itemsize * math.prod(self.shape[1:])
        return max(1, LEAST_READ_BYTES // (rows * one))

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("the values are in files: an array of them is a copy")
        return self._rows(0, len(self)).astype(dtype or self.dtype, copy=False)

    def _rows(self, first: int, stop: int) -> Float32:
        values = np.empty((stop - first, *self.shape[1:]), self.dtype)
        done = 0
        for block in self._results.blocks(self._read_at_once(1), first, stop):
            values[done : done + len(block)] = block.values(self._name)
            done += len(block)
        return values

    def _scattered(self, places: Int64) -> Float32:
        order = np.argsort(places, kind="stable")
        ascending = places[order]
        values = np.empty((len(places), *self.shape[1:]), self.dtype)
        if not len(places):
            return values
        done = int(ascending[0])
        for block in self._results.blocks(self._read_at_once(1), done, int(ascending[-1]) + 1):
            low, high = np.searchsorted(ascending, [done, done + len(block)])
            if low < high:
                chosen = ascending[low:high] - done
                values[order[low:high]] = block.values(self._name, chosen)
            done += len(block)
        return values
