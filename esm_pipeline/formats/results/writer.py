"""Writing a result, with the values at their places in the file; see `layout`.

HDF5 lays the file out; the values are then written to their byte offsets with plain system calls.
Memory use stays flat, rows may come in any order, and a full disk raises OSError instead of
crashing HDF5. Any HDF5 reader can read the file, and any program can memory-map it. There are no
timestamps: the same input gives the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from esm_pipeline.arrays import Bool, Int64
from esm_pipeline.formats.results.hdf5_file import create_hdf5, reserve, write_at
from esm_pipeline.formats.results.layout import FORMAT_VERSION, Array, unit_starts
from esm_pipeline.formats.results.lookup import LookupKeys

COPIED_BYTES = 4 << 20
"""Bytes of values that are read at a time when rows are copied."""

RECORDS_AT_ONCE = 1 << 14
"""Records that are written at a time."""


class RaggedWriter:
    """Creates a file at `path` and writes the rows of its arrays, in any order.

    `lengths` (U,) are the residues of each row; `entries` are id, index and row of the N =
    `records` records, in input order; `add` adds further datasets to the file. `digests` (U,) are
    the `sequence_digest` of each row, by which records are found. A row that is never written reads
    as zeros. Raises OSError; a full disk is noticed at once, not later.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        arrays: Iterable[Array],
        lengths: NDArray[Any],
        records: int,
        entries: Iterable[tuple[str, int, int]],
        attributes: Mapping[str, Any],
        add: Callable[[h5py.File], None] | None = None,
        digests: NDArray[np.uint64] | None = None,
    ) -> None:
        self.arrays = {array.name: array for array in arrays}
        self._starts = {
            per: unit_starts(lengths, per)
            for per in {"residue", *(array.per for array in self.arrays.values())}
        }
        # In a thread: a signal may interrupt the main thread anywhere, but must not interrupt HDF5.
        with ThreadPoolExecutor(1) as thread:
            task = thread.submit(
                self._lay_out, path, lengths, records, entries, attributes, add, digests
            )
            task.result()
        self._file = os.open(path, os.O_WRONLY)
        try:
            reserve(self._file)
        except OSError:
            os.close(self._file)
            raise

    def _lay_out(
        self,
        path: str | os.PathLike[str],
        lengths: NDArray[Any],
        records: int,
        entries: Iterable[tuple[str, int, int]],
        attributes: Mapping[str, Any],
        add: Callable[[h5py.File], None] | None,
        digests: NDArray[np.uint64] | None,
    ) -> None:
        keys = LookupKeys(digests)
        with create_hdf5(path) as (file, disk):
            found = {**attributes, "format_version": FORMAT_VERSION}
            file.attrs.update(sorted(found.items()))  # their order is in the file
            write_record_rows(file, records, keys.noting(entries), disk.check)
            create_flat(file, "length", "<i4", (len(lengths),))[...] = lengths
            create_flat(file, "offset", "<i8", (len(lengths) + 1,))[...] = self._starts["residue"]
            if add:
                add(file)
            self._offsets = {name: self._create(file, name) for name in self.arrays}
            for name, values in keys.arrays():
                create_flat(file, name, values.dtype, values.shape)[...] = values

    def _create(self, file: h5py.File, name: str) -> int | None:
        array, starts = self.arrays[name], self._starts[self.arrays[name].per]
        if array.per == "pair":
            create_flat(file, f"{name}_offset", "<i8", starts.shape)[...] = starts
        dataset = create_flat(file, name, array.dtype, (int(starts[-1]), *array.shape))
        dataset.attrs["per"] = array.per
        offset: int | None = dataset.id.get_offset()  # None where the dataset has no bytes
        return offset

    def __enter__(self) -> RaggedWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._file)

    def write(self, name: str, rows: NDArray[Any], values: NDArray[Any]) -> None:
        """Write `values` (units of all `rows`, *shape) of the array `name`.

        Rows that are adjacent in the file are written together.
        """
        array, starts = self.arrays[name], self._starts[self.arrays[name].per]
        begin, end = starts[rows], starts[np.asarray(rows) + 1]
        source = np.concatenate([[0], np.cumsum(end - begin)])
        assert values.shape == (source[-1], *array.shape), f"{values.shape} do not fill the rows"
        if not values.size:
            return
        data = np.ascontiguousarray(values, array.dtype).reshape(-1).view(np.uint8).data
        offset = self._offsets[name]
        assert offset is not None
        size = array.item_bytes
        firsts = np.concatenate([[0], np.flatnonzero(begin[1:] != end[:-1]) + 1])
        stops = np.append(source[firsts[1:]], source[-1])
        for place, start, stop in zip(
            (begin[firsts] * size + offset).tolist(),
            (source[firsts] * size).tolist(),
            (stops * size).tolist(),
            strict=True,
        ):
            write_at(self._file, place, data[start:stop])

    def copy(self, source: h5py.File, rows: Int64) -> None:
        """Copy row r of `source`, a file with the same arrays, to row `rows[r]`; -1 skips it."""
        lengths = source["length"][...]
        for array in self.arrays.values():
            starts = unit_starts(lengths, array.per)
            for first, stop in kept_blocks(
                starts, rows >= 0, max(1, COPIED_BYTES // array.item_bytes)
            ):
                values = source[array.name][starts[first] : starts[stop]]
                self.write(array.name, rows[first:stop], values)


def create_flat(
    file: h5py.File, name: str, dtype: str | np.dtype[Any], shape: tuple[int, ...]
) -> h5py.Dataset:
    """Create a contiguous dataset whose place in the file is allocated at once, but not written."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)
    folder, _, leaf = name.rpartition("/")
    group = file.require_group(folder) if folder else file
    kind = h5py.h5t.py_create(np.dtype(dtype), logical=True)
    space = h5py.h5s.create_simple(shape)
    return h5py.Dataset(h5py.h5d.create(group.id, leaf.encode(), kind, space, properties))


def write_record_rows(
    file: h5py.File,
    records: int,
    entries: Iterable[tuple[str, int, int]],
    check: Callable[[], None],
) -> None:
    """Write the datasets id, index and row, block by block, and call `check` after each block."""
    ids = file.create_dataset("id", (records,), h5py.string_dtype(), track_times=False)
    index = create_flat(file, "index", "<i8", (records,))
    row = create_flat(file, "row", "<i8", (records,))
    done, remaining = 0, iter(entries)
    while block := list(islice(remaining, RECORDS_AT_ONCE)):
        stop = done + len(block)
        assert stop <= records, "more entries than records"
        ids[done:stop], index[done:stop], row[done:stop] = zip(*block, strict=True)
        check()
        done = stop
    assert done == records, f"{done} entries for {records} records"


def kept_blocks(starts: Int64, keep: Bool, units: int) -> Iterator[tuple[int, int]]:
    """Cut the rows to `keep` into runs [first, stop) of at most `units` units, or of one row."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], keep.view(np.int8), [0]])))
    for first, end in edges.reshape(-1, 2).tolist():
        while first < end:
            stop = int(np.searchsorted(starts, starts[first] + units, side="right")) - 1
            stop = max(first + 1, min(stop, end))
            yield first, stop
            first = stop
