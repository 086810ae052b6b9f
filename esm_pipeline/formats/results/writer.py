"""Flat HDF5 files of ragged arrays, written in place: never a group or dataset for each record.

U unique sequences lie in rows, N records point to them. Every array has one value for each
sequence, residue or pair of residues, all sequences end to end in one contiguous dataset:

    id (N,), index (N,), row (N,)    the records, and the row that holds the sequence of each
    length (U,), offset (U + 1,)     residues of each sequence, and where they begin
    {name} (units, …)                what a task computed; its attribute `per` names the unit
    {name}_offset (U + 1,)           where the pairs of each sequence begin, if the unit is a pair

HDF5 lays the file out, then the values are written to their byte offsets with plain system calls:
memory stays flat, rows may come in any order, a full disk is an OSError and no crash of HDF5. Any
HDF5 reader can read the result and any program can memory-map it. No timestamps: the same input
gives the same bytes.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Any, Literal, NamedTuple, get_args

import h5py
import numpy as np
from numpy.typing import NDArray

from esm_pipeline.arrays import Bool, Int64
from esm_pipeline.formats.results.hdf5_file import create, reserve, write_at

Per = Literal["sequence", "residue", "pair"]
"""What an array has one value for."""


KINDS = ("<f2", "<f4", "<i4", "|u1", "|S1")
"""Types of what is stored: numbers, and letters."""

FORMAT_VERSION = 1
BLOCK = 4 << 20  # bytes read at a time when rows are copied
MOST_BYTES = 1 << 16  # of an attribute; what HDF5 lets stand in a header
ENTRIES = 1 << 14  # records written at a time


@dataclass(frozen=True)
class Array:
    """One dataset of a file: a value of `shape` and `dtype` for each unit of `per`."""

    name: str
    per: Per
    shape: tuple[int, ...]
    dtype: str

    @property
    def item_bytes(self) -> int:
        """Bytes of the value of one unit."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


class Entry(NamedTuple):
    """A record: its id, its place in the input, and the row that holds its sequence."""

    id: str
    place: int
    row: int


def unit_starts(lengths: NDArray[Any], per: Per) -> Int64:
    """First unit of each row, and behind the last: (U + 1,) int64, from the rows' `lengths`."""
    exponent = get_args(Per).index(per)  # a sequence has length⁰ units, and so on
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(np.asarray(lengths, np.int64) ** exponent, out=starts[1:])
    return starts


class RaggedWriter:
    """Creates a file at `path` and writes the rows of its arrays, in any order.

    `lengths` (U,) are the residues of each row; `entries` are the N = `records` records, in input
    order. A row that is never written reads as zeros. Raises OSError, a full disk at once and not
    later.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        arrays: Iterable[Array],
        lengths: NDArray[Any],
        records: int,
        entries: Iterable[Entry],
        attributes: Mapping[str, Any],
    ) -> None:
        self.arrays = {array.name: array for array in arrays}
        self._starts = {
            per: unit_starts(lengths, per)
            for per in {"residue", *(array.per for array in self.arrays.values())}
        }
        # A signal, which ends the main thread's work at any point, must not end HDF5's midway.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(self._lay_out, path, lengths, records, entries, attributes).result()
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
        entries: Iterable[Entry],
        attributes: Mapping[str, Any],
    ) -> None:
        with create(path) as (file, disk):
            file.attrs.update({**attributes, "format_version": FORMAT_VERSION})
            write_entries(file, records, entries, disk.check)
            create_flat(file, "length", "<i4", (len(lengths),))[...] = lengths
            create_flat(file, "offset", "<i8", (len(lengths) + 1,))[...] = self._starts["residue"]
            self._offsets = {name: self._create(file, name) for name in self.arrays}

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
        """Write `values` (units of all `rows` in turn, *shape) of array `name`.

        Rows that are neighbours in the file are written in one go.
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
        """Copy row r of `source`, a file of the same arrays, to row `rows[r]`; -1 leaves it out."""
        lengths = source["length"][...]
        for array in self.arrays.values():
            starts = unit_starts(lengths, array.per)
            for first, stop in blocks(starts, rows >= 0, max(1, BLOCK // array.item_bytes)):
                values = source[array.name][starts[first] : starts[stop]]
                self.write(array.name, rows[first:stop], values)


def create_flat(
    file: h5py.File, name: str, dtype: str | np.dtype[Any], shape: tuple[int, ...]
) -> h5py.Dataset:
    """Create a contiguous dataset that has its place in the file at once, with nothing written."""
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


def write_entries(
    file: h5py.File, records: int, entries: Iterable[Entry], check: Callable[[], None]
) -> None:
    """Write the datasets id, index and row, block by block, with a `check` after each."""
    ids = file.create_dataset("id", (records,), h5py.string_dtype(), track_times=False)
    index = create_flat(file, "index", "<i8", (records,))
    row = create_flat(file, "row", "<i8", (records,))
    done, remaining = 0, iter(entries)
    while block := list(islice(remaining, ENTRIES)):
        stop = done + len(block)
        assert stop <= records, "more entries than records"
        ids[done:stop], index[done:stop], row[done:stop] = zip(*block, strict=True)
        check()
        done = stop
    assert done == records, f"{done} entries for {records} records"


def blocks(starts: Int64, keep: Bool, units: int) -> Iterator[tuple[int, int]]:
    """Cut the rows to `keep` into runs [first, stop) of at most `units` units, or one row."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], keep.view(np.int8), [0]])))
    for first, end in edges.reshape(-1, 2).tolist():
        while first < end:
            stop = int(np.searchsorted(starts, starts[first] + units, side="right")) - 1
            stop = max(first + 1, min(stop, end))
            yield first, stop
            first = stop


def arrays_of(file: h5py.File) -> list[Array]:
    """The arrays that a `RaggedWriter` put into `file`, by name.

    Raises ValueError, KeyError or TypeError for a file that is not as one writes it: whatever is
    copied from it lies in it.
    """
    found = dict(datasets(file))
    for name in ("id", "index", "row", "length", "offset"):
        require(found[name].ndim == 1, name)
    lengths, rows = found["length"][...], found["row"][...]
    require(lengths.dtype == "<i4" and (lengths > 0).all(), "length")
    require(np.array_equal(found["offset"][...], unit_starts(lengths, "residue")), "offset")
    require(np.array_equal(np.unique(rows), np.arange(len(lengths))), "row")
    require(found["id"].shape == found["index"].shape == rows.shape, "id")
    arrays = []
    for name, item in found.items():
        if "per" in item.attrs:
            per, kind = read_attribute(item, "per"), item.dtype.str
            require(isinstance(per, str) and per in get_args(Per) and kind in KINDS, name)
            require(not item.size or item.id.get_offset() is not None, name)
            require(item.shape[:1] == (unit_starts(lengths, per)[-1],), name)
            arrays.append(Array(name, per, item.shape[1:], kind))
    return arrays


def datasets(group: h5py.Group, prefix: str = "") -> Iterator[tuple[str, h5py.Dataset]]:
    """Name and dataset of all in a file, which lie in it or in a group of it, no deeper.

    Raises ValueError for a link, and for data in another file: nothing else is opened.
    """
    for name in group:
        path = prefix + name
        require(isinstance(group.get(name, getlink=True), h5py.HardLink), path)
        item = group[name]
        if isinstance(item, h5py.Group) and not prefix:
            yield from datasets(item, f"{name}/")
        else:
            require(isinstance(item, h5py.Dataset), path)
            require(not item.external and not item.is_virtual, path)
            yield path, item


def read_attribute(item: h5py.File | h5py.Dataset, name: str) -> Any:
    """An attribute that is text, or numbers, few enough for the header of a file.

    Raises ValueError for anything else: HDF5 crashes on text of a type that there is not.
    """
    name.encode()
    kind = h5py.h5a.open(item.id, name.encode())
    stored, count = kind.get_type(), math.prod(kind.shape)
    text = isinstance(stored, h5py.h5t.TypeStringID)
    number = isinstance(stored, (h5py.h5t.TypeIntegerID, h5py.h5t.TypeFloatID))
    if not (text or number) or count * stored.get_size() > MOST_BYTES:
        raise ValueError(f"attribute {name!a} is neither text nor a number")
    value = item.attrs[name]
    if isinstance(value, str):
        value.encode()
    return value


def letters_of(values: NDArray[np.bytes_], name: str) -> str:
    """Capital letters, (units,) of dataset `name`, as text. Raises ValueError for anything else."""
    found = values.tobytes()
    require(re.fullmatch(b"[A-Z]*", found), name)
    return str(found, "ascii")


def require(holds: Any, name: str) -> None:
    """Raise ValueError, naming a dataset, unless it `holds` that it is as it is written here."""
    if not holds:
        raise ValueError(f"{name!r} is not as a task writes it")
