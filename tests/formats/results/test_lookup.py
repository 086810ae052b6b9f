"""Finding records by id, index and sequence: as a search of all records, without reading all."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm_pipeline.errors import AmbiguousIdError, DamagedError, InputError
from esm_pipeline.formats.results import lookup, stored
from esm_pipeline.formats.results.layout import BY_ID, BY_SEQUENCE, Array, RecordRow
from esm_pipeline.formats.results.open import open_results
from esm_pipeline.formats.results.stored import StoredArray, first_place
from esm_pipeline.formats.results.writer import RaggedWriter
from tests.naive_reader import AMBIGUOUS, NaiveReader

ARRAY = Array("mean/3", "sequence", (4,), "<f4")
TOLD = {"format": "esm-pipeline/embeddings"}
SEQUENCES = [f"M{'K' * number}" for number in range(30)]


def write(path: Path, entries: list[RecordRow], count: int, *, digests: bool = True) -> Path:
    keys = [lookup.sequence_digest(one.encode()) for one in SEQUENCES[:count]]
    known = np.array(keys, np.uint64) if digests else None
    lengths = np.arange(count) + 1
    with RaggedWriter(path, [ARRAY], lengths, len(entries), entries, TOLD, digests=known) as writer:
        values = np.arange(4 * count, dtype=np.float32).reshape(count, 4)
        writer.write(ARRAY.name, np.arange(count), values)
    return path


def some_entries(seed: int, count: int = 30) -> list[RecordRow]:
    """Records with gaps between their indices; ids and sequences occur more than once."""
    draw = np.random.default_rng(seed)
    rows = [*draw.permutation(count), *draw.integers(0, count, 40)]
    names = [f"P{draw.integers(0, 50)}" if draw.random() < 0.9 else "é|\u2028" for _ in rows]
    index = np.cumsum(draw.integers(1, 4, len(rows))) - 1
    return [RecordRow(*one) for one in zip(names, index.tolist(), map(int, rows), strict=True)]


def without_lookup(path: Path) -> Path:
    with h5py.File(path, "r+") as file:
        del file["lookup"]
    return path


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("older", [False, True], ids=["with lookup", "an older file"])
def test_records_are_those_that_a_search_of_all_finds(tmp_path, seed, older):
    path = write(tmp_path / "a.h5", some_entries(seed), 30)
    if older:
        without_lookup(path)
    naive, kinds = NaiveReader(path), set()
    with open_results(path) as results:
        for name in [*(f"P{number}" for number in range(60)), "é|\u2028", "", "\ud800"]:
            expected = naive.with_id(name)
            kinds.add(expected if expected in (None, AMBIGUOUS) else "one")
            assert (name in results) == (expected is not None)
            if expected is None:
                with pytest.raises(InputError, match="no record with id"):
                    results[name]
            elif expected is AMBIGUOUS:
                first = min(one.position for one in naive.records if one.id == name)
                with pytest.raises(AmbiguousIdError, match=rf"such as {first}$"):
                    results[name]
            else:
                same_record(results[name], expected, naive)
        for index in (*range(-3, naive.index[-1] + 3), 2**62, 2**70, -(2**70)):
            expected = naive.with_index(index)
            assert (index in results) == (expected is not None)
            if expected:
                same_record(results[index], expected, naive)
    assert kinds == {None, AMBIGUOUS, "one"}


def same_record(found, expected, naive):
    assert (found.id, found.index, found.length) == (
        *(expected.id, expected.position, expected.length),
    )
    (vector,) = naive.values(ARRAY.name, expected.row)
    np.testing.assert_array_equal(found.mean[3], vector)


@pytest.mark.parametrize("older", [False, True], ids=["with lookup", "an older file"])
def test_ids_with_equal_hashes_are_told_apart(tmp_path, monkeypatch, older):
    monkeypatch.setattr(lookup, "_hash_bytes", lambda name: b"\1" * 8)
    test_records_are_those_that_a_search_of_all_finds(tmp_path, 1, older)


def test_records_by_sequence(tmp_path):
    entries = some_entries(3)
    path = write(tmp_path / "a.h5", entries, 29 + 1)
    with open_results(path) as results:
        for row, sequence in enumerate(SEQUENCES):
            wanted = [entry.index for entry in entries if entry.row == row]
            assert [item.index for item in results.by_sequence(sequence)] == wanted
        assert results.by_sequence("m\nkk ")[0].index == results.by_sequence("MKK")[0].index
        for other in ("MA", "", "\ud800", "M" * 9_999):
            with pytest.raises(InputError, match=r"a\.h5: no record with the sequence '.{,80}'; "):
                results.by_sequence(other)


@pytest.mark.parametrize("older", [False, True], ids=["no digests", "no lookup"])
def test_without_digests_sequences_are_not_looked_for(tmp_path, older):
    path = write(tmp_path / "a.h5", some_entries(1), 30, digests=False)
    if older:
        without_lookup(path)
    told = r"a\.h5: has no digests of sequences"
    with open_results(path) as results, pytest.raises(InputError, match=told):
        results.by_sequence("MK")


def test_keys_stay_what_they_are():
    """Files with them exist."""
    assert lookup.id_hash("P12345") == 0xD8128BE4E55CA43F
    assert lookup.sequence_digest(b"MKV") == int(sha256(b"MKV").hexdigest()[:16], 16)
    assert lookup.hashes_of(["P12345", "é"]).tolist() == [
        *(lookup.id_hash(name) for name in ("P12345", "é"))
    ]


def test_keys_are_sorted_and_equal_ones_in_input_order(tmp_path):
    path = write(tmp_path / "a.h5", some_entries(2), 30)
    with h5py.File(path) as file:
        for (keys, positions), own in (
            (BY_ID, [lookup.id_hash(name) for name in file["id"].asstr()]),
            (
                BY_SEQUENCE,
                [lookup.sequence_digest(SEQUENCES[row].encode()) for row in file["row"]],
            ),
        ):
            wanted = sorted(zip(own, range(len(own)), strict=True))
            found = zip(file[keys][...].tolist(), file[positions][...].tolist(), strict=True)
            assert list(found) == wanted


def swap(name: str, first: int, second: int):
    def change(file: h5py.File) -> None:
        values = file[name][...]
        values[[first, second]] = values[[second, first]]
        file[name][...] = values

    return change


def fill(name: str, value: int):
    return lambda file: file[name].__setitem__(slice(None), value)


@pytest.mark.parametrize(
    "change",
    [swap(BY_ID[1], 0, 5), fill(BY_ID[1], 99), fill(BY_ID[1], -1), fill("row", 30)],
    ids=["others", "beyond", "below", "row beyond"],
)
def test_a_lookup_that_points_elsewhere_is_damage(tmp_path, change):
    with pytest.raises(DamagedError):
        find_the_first_key(tmp_path / "a.h5", change)


def test_a_lookup_as_it_was_written_finds_the_record(tmp_path):
    """The twin of the test above."""
    assert find_the_first_key(tmp_path / "a.h5", swap(BY_ID[1], 5, 5))


def find_the_first_key(path: Path, change) -> bool:
    """Whether the record with the first key is found after a change of the file."""
    write(path, [RecordRow(f"P{place}", place, place) for place in range(30)], 30)
    with h5py.File(path, "r+") as file:
        (place,) = file[BY_ID[1]][:1].tolist()
        change(file)
    with open_results(path) as results:
        return results[f"P{place}"].index == place


@contextmanager
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The bytes that are read, call by call."""
    found: list[int] = []
    pread, preadv = os.pread, os.preadv

    def counted(number: int, size: int, place: int) -> bytes:
        found.append(size)
        return pread(number, size, place)

    def filled(number: int, buffers: list[memoryview], place: int) -> int:
        found.append(sum(map(len, buffers)))
        return preadv(number, buffers, place)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", counted)
        patch.setattr(os, "preadv", filled)
        yield found


def test_one_record_of_many_reads_little(tmp_path, monkeypatch):
    count = 100_000
    entries = (RecordRow(f"P{place}", place, place) for place in range(count))
    lengths = np.ones(count, np.int32)
    digests = np.random.default_rng(0).integers(0, 2**64, count, np.uint64)
    path = tmp_path / "a.h5"
    with RaggedWriter(path, [ARRAY], lengths, count, entries, TOLD, digests=digests) as writer:
        writer.write(ARRAY.name, np.arange(count), np.zeros((count, 4)))
    with reads(monkeypatch) as found, open_results(path) as results:
        assert results["P77777"].index == 77_777
        assert results[5].id == "P5"
        assert (sum(found) < 200_000, len(found) < 60) == (True, True)
        assert len(results.ids) == count
        assert sum(found) > 1_000_000  # the twin: all of them


NUMBERS = st.lists(st.integers(0, 2**63 - 1) | st.integers(0, 50), max_size=300).map(sorted)


@given(NUMBERS, st.integers(-5, 2**63 - 1), st.integers(-1000, 1000))
def test_a_number_is_found_wherever_it_was_guessed(numbers, wanted, guess):
    ascending = np.array(numbers, np.int64)
    for one in (wanted, *numbers[:3]):
        assert first_place(ascending, one, guess) == bisect_left(numbers, one)


def test_skewed_numbers_are_found():
    ascending = np.concatenate([np.arange(5000), np.arange(10) + 10**9])
    for place in (0, 1, 2500, 4999, 5000, 5009):
        number = int(ascending[place])
        assert first_place(ascending, number, number * 5010 // 10**9) == place


@pytest.fixture
def array(tmp_path: Path) -> Iterator[StoredArray]:
    values = np.arange(3000, dtype=np.float32).reshape(1000, 3)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = values
    with h5py.File(tmp_path / "a.h5", "r") as file:
        yield StoredArray(str(tmp_path / "a.h5"), lambda: file, file["x"])


@pytest.mark.parametrize(
    ("near", "stretch"), [(1, 1), (1, 1 << 20), (100, 600), (1 << 20, 1 << 20)]
)
def test_scattered_values_are_those_of_the_dataset(array, monkeypatch, near, stretch):
    monkeypatch.setattr(stored, "NEAR_BYTES", near)
    monkeypatch.setattr(stored, "STRETCH_BYTES", stretch)
    values = np.arange(3000, dtype=np.float32).reshape(1000, 3)
    draw = np.random.default_rng(1)
    for places in (draw.integers(0, 1000, 300), np.arange(1000), np.array([999, 0, 999])):
        np.testing.assert_array_equal(array.at(places), values[places])
    assert array.at(np.empty(0, np.int64)).shape == (0, 3)
    np.testing.assert_array_equal(array[7], values[7])
    np.testing.assert_array_equal(array[5:9], values[5:9])
    assert (len(array), len(array[:]), len(array[4:4])) == (1000, 1000, 0)


def test_scattered_values_near_each_other_are_read_at_once(array, monkeypatch):
    with reads(monkeypatch) as found:
        array.at(np.array([5, 3, 4, 9]))
        assert found == [7 * 12]
        monkeypatch.setattr(stored, "NEAR_BYTES", 12)
        array.at(np.array([5, 3, 4, 9]))
        assert found == [7 * 12, 3 * 12, 12]


@pytest.mark.parametrize("places", [[1000], [-1], [5, 5000]])
def test_places_outside_are_damage(array, places):
    with pytest.raises(DamagedError, match="'x' does not have"):
        array.at(np.array(places))


def test_a_file_cut_short_after_it_was_opened_is_damage(array, tmp_path):
    os.truncate(tmp_path / "a.h5", 3000)
    with pytest.raises(DamagedError, match="cut short since it was opened"):
        _ = array[:]
