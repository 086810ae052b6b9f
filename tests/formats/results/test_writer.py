"""Flat HDF5 files: what is written is read, in any order, byte for byte the same."""

import errno
import hashlib
import os
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esm_pipeline.formats.results import hdf5_file as disk
from esm_pipeline.formats.results import writer as hdf5
from esm_pipeline.formats.results.layout import Array, RecordRow, unit_starts
from esm_pipeline.formats.results.validation import arrays_of
from esm_pipeline.formats.results.writer import RaggedWriter, kept_blocks

ARRAYS = [
    Array("mean/3", "sequence", (4,), "<f4"),
    Array("residue/3", "residue", (4,), "<f2"),
    Array("contacts", "pair", (), "<f2"),
]


def entries(count):
    return [RecordRow(f"id{place}", place, place) for place in range(count)]


def values_of(array, lengths):
    """What row r of `array` holds: counted numbers, so that a misplaced unit shows."""
    starts = unit_starts(lengths, array.per)
    units = np.arange(starts[-1])
    flat = np.arange(units.size * np.prod(array.shape, dtype=int)) % 2003
    return flat.reshape(-1, *array.shape).astype(array.dtype), starts


def write_file(path, lengths, order, cuts=(), arrays=ARRAYS):
    """Write the rows in `order`, in parts that end at `cuts`."""
    lengths = np.asarray(lengths, np.int32)
    count = len(lengths)
    with RaggedWriter(path, arrays, lengths, count, entries(count), {"format": "f"}) as writer:
        for rows in np.split(np.asarray(order, dtype=np.int64), sorted(cuts)):
            for array in arrays:
                flat, starts = values_of(array, lengths)
                parts = [flat[starts[row] : starts[row + 1]] for row in rows]
                empty = np.empty((0, *array.shape), array.dtype)
                writer.write(array.name, rows, np.concatenate([empty, *parts]))
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_everything_is_where_the_layout_says(tmp_path):
    path, lengths = tmp_path / "a.h5", [3, 1, 5]
    write_file(path, lengths, [2, 0, 1])
    with h5py.File(path) as file:
        assert file.attrs["format_version"] == 1
        assert file["id"].asstr()[...].tolist() == ["id0", "id1", "id2"]
        assert file["index"][...].tolist() == file["row"][...].tolist() == [0, 1, 2]
        assert file["length"][...].tolist() == lengths
        assert file["offset"][...].tolist() == [0, 3, 4, 9]
        assert file["contacts_offset"][...].tolist() == [0, 9, 10, 35]
        for array in ARRAYS:
            np.testing.assert_array_equal(file[array.name][...], values_of(array, lengths)[0])
        assert sorted(map(str, arrays_of(file))) == sorted(map(str, ARRAYS))


@settings(deadline=None, max_examples=40)
@given(data=st.data(), lengths=st.lists(st.integers(1, 9), max_size=12))
def test_any_order_and_any_parts_give_the_same_bytes(tmp_path_factory, data, lengths):
    folder = tmp_path_factory.mktemp("order")
    order = data.draw(st.permutations(range(len(lengths))))
    cuts = data.draw(st.lists(st.integers(0, len(lengths)), max_size=4))
    straight = write_file(folder / "a.h5", lengths, range(len(lengths)))
    assert write_file(folder / "b.h5", lengths, order, cuts) == straight


def test_a_misplaced_row_shows(tmp_path):
    """The twin of the test above: it can fail."""
    straight = write_file(tmp_path / "a.h5", [2, 3], [0, 1])
    with RaggedWriter(tmp_path / "b.h5", ARRAYS, np.array([2, 3]), 2, entries(2), {}) as writer:
        for array in ARRAYS:
            writer.write(array.name, np.array([0, 1]), values_of(array, [2, 3])[0][::-1])
    assert hashlib.sha256((tmp_path / "b.h5").read_bytes()).hexdigest() != straight


def test_no_timestamps(tmp_path):
    first = write_file(tmp_path / "a.h5", [2, 3], [0, 1])
    with h5py.File(tmp_path / "stamped1.h5", "w") as file:
        file.create_dataset("x", data=[1], track_times=True)
    time.sleep(1.1)
    with h5py.File(tmp_path / "stamped2.h5", "w") as file:
        file.create_dataset("x", data=[1], track_times=True)
    stamped = [(tmp_path / f"stamped{n}.h5").read_bytes() for n in (1, 2)]
    assert stamped[0] != stamped[1], "the clock must have moved for this test to mean something"
    assert write_file(tmp_path / "b.h5", [2, 3], [0, 1]) == first


def test_large_datasets_can_be_mapped(tmp_path):
    path, lengths = tmp_path / "a.h5", [700, 900]
    write_file(path, lengths, [1, 0], arrays=ARRAYS[:2])
    with h5py.File(path) as file:
        dataset = file["residue/3"]
        place, shape = dataset.id.get_offset(), dataset.shape
        assert dataset.chunks is None
    assert place % disk.PAGE_BYTES == 0
    mapped = np.memmap(path, "<f2", "r", place, shape)
    np.testing.assert_array_equal(mapped, values_of(ARRAYS[1], lengths)[0])


def test_a_file_without_rows(tmp_path):
    write_file(tmp_path / "a.h5", [], [])
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["mean/3"].shape == (0, 4)
        assert file["id"].shape == (0,)
        assert file["offset"][...].tolist() == [0]


@pytest.mark.parametrize("block", [1, 10, 64, 1 << 20])
def test_copy_leaves_out_and_reorders(tmp_path, monkeypatch, block):
    monkeypatch.setattr(hdf5, "COPIED_BYTES", block)
    lengths = np.array([3, 1, 5, 2, 2])
    write_file(tmp_path / "a.h5", lengths, range(5))
    rows = np.array([2, -1, 0, 1, -1])
    kept = lengths[[2, 3, 0]]
    with (
        h5py.File(tmp_path / "a.h5") as source,
        RaggedWriter(tmp_path / "b.h5", arrays_of(source), kept, 3, entries(3), {}) as writer,
    ):
        writer.copy(source, rows)
    with h5py.File(tmp_path / "b.h5") as file:
        for array in ARRAYS:
            flat, starts = values_of(array, lengths)
            expected = np.concatenate([flat[starts[row] : starts[row + 1]] for row in (2, 3, 0)])
            np.testing.assert_array_equal(file[array.name][...], expected)


@given(lengths=st.lists(st.integers(1, 50), max_size=30), units=st.integers(1, 100), data=st.data())
def test_blocks_cover_each_kept_row_once(lengths, units, data):
    keep = np.array(
        data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    )
    starts = unit_starts(np.array(lengths, int), "residue")
    found = list(kept_blocks(starts, keep.astype(bool), units))
    assert [row for first, stop in found for row in range(first, stop)] == np.flatnonzero(
        keep
    ).tolist()
    for first, stop in found:
        assert stop - first == 1 or starts[stop] - starts[first] <= units


def test_a_sequence_without_residues_is_refused(tmp_path):
    write_file(tmp_path / "a.h5", [2, 0], [0, 1])
    with h5py.File(tmp_path / "a.h5") as file, pytest.raises(ValueError, match="'length' is not"):
        arrays_of(file)


def test_a_full_disk_is_noticed_at_the_start(tmp_path, monkeypatch):
    def full(file, offset, size):
        assert size == os.fstat(file).st_size > 0
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match="No space left") as error:
        write_file(tmp_path / "a.h5", [2], [0])
    assert error.value.errno == errno.ENOSPC


def test_a_file_system_without_reservations_is_fine(tmp_path, monkeypatch):
    expected = write_file(tmp_path / "a.h5", [2, 3], [0, 1])

    def unsupported(file, offset, size):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported, raising=False)
    assert write_file(tmp_path / "b.h5", [2, 3], [0, 1]) == expected


def test_short_writes_are_continued(tmp_path, monkeypatch):
    expected = write_file(tmp_path / "a.h5", [2, 3], [0, 1])
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, place: whole(file, data[:3], place))
    assert write_file(tmp_path / "b.h5", [2, 3], [0, 1]) == expected


def test_the_disk_is_taken_at_the_start(tmp_path):
    lengths = np.full(100, 500)
    path = tmp_path / "a.h5"
    with RaggedWriter(path, ARRAYS, lengths, 100, entries(100), {}):
        assert path.stat().st_blocks * 512 >= 100 * 500 * 500 * 2
