"""The vectors of all records as one array: as NumPy indexes it, in bounded memory."""

from __future__ import annotations

import tracemalloc

import h5py
import numpy as np
import pytest

from esm_pipeline.errors import DamagedError, InputError
from esm_pipeline.formats.results import matrix as matrices
from esm_pipeline.formats.results import stored
from esm_pipeline.formats.results.layout import Array, RecordRow
from esm_pipeline.formats.results.open import open_results
from esm_pipeline.formats.results.writer import RaggedWriter
from tests.naive_reader import NaiveReader, deal

RECORDS, SEQUENCES, WIDTH = 800, 700, 64
NAMES = ("mean/1", "mean/5", "bos/1", "bos/5")
ARRAYS = [Array(name, "sequence", (WIDTH,), "<f4") for name in NAMES]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Records with gaps between indices; some share a sequence, rows are mixed."""
    path = tmp_path_factory.mktemp("matrix") / "a.h5"
    draw = np.random.default_rng(2)
    rows = draw.permutation(np.arange(RECORDS) % SEQUENCES)
    index = np.cumsum(draw.integers(1, 3, RECORDS))
    entries = [RecordRow(f"P{i}", int(i), int(row)) for i, row in zip(index, rows, strict=True)]
    lengths, told = np.ones(SEQUENCES, int), {"format": "esm-pipeline/embeddings"}
    with RaggedWriter(path, ARRAYS, lengths, RECORDS, entries, told) as writer:
        for array in ARRAYS:
            values = draw.random((SEQUENCES, WIDTH), np.float32)
            writer.write(array.name, np.arange(SEQUENCES), values)
    return path


@pytest.fixture(scope="module")
def expected(path):
    naive = NaiveReader(path)
    rows = [record.row for record in naive.records]
    return {name: values[rows] for name, (_, values) in naive.arrays.items()}


@pytest.fixture(scope="module", params=[1, 7])
def results(path, request, tmp_path_factory):
    source = path
    if request.param > 1:
        source = deal(path, tmp_path_factory.mktemp("dealt") / "embeddings", request.param)
    with open_results(source) as results:
        yield results


@pytest.mark.parametrize("least", [1 << 14, 64 << 20])
@pytest.mark.parametrize(("kind", "layer"), [("mean", 1), ("mean", -1), ("bos", 5)])
def test_it_is_indexed_as_an_array(results, expected, monkeypatch, least, kind, layer):
    monkeypatch.setattr(matrices, "LEAST_READ_BYTES", least)
    wanted = expected[f"{kind}/{5 if layer == -1 else layer}"]
    found = results.matrix(kind, layer)
    assert (found.shape, len(found), found.ndim) == (wanted.shape, RECORDS, 2)
    assert found.dtype == wanted.dtype
    some = np.array([5, 799, 5, 0, -1])
    keys = [0, 17, -1, -RECORDS, np.int64(40)]
    keys += [slice(3, 9), slice(None), slice(-5, None), slice(9, 3), slice(0, RECORDS, 161)]
    keys += [slice(20, 3, -4), some, some.tolist(), np.arange(RECORDS) % 150 == 7, some[:0]]
    for key in keys:
        np.testing.assert_array_equal(found[key], wanted[key])
    for key in (RECORDS, -RECORDS - 1, [0, RECORDS]):
        with pytest.raises(IndexError):
            found[key]
    with pytest.raises(TypeError):
        found["P1"]


def test_it_becomes_an_array(results, expected):
    found = results.matrix()
    np.testing.assert_array_equal(np.asarray(found), expected["mean/5"])
    assert np.asarray(found, np.float64).dtype == np.float64
    assert np.array(found).flags.writeable
    with pytest.raises(ValueError, match="is a copy"):
        np.array(found, copy=False)
    assert repr(found) == "RecordMatrix('mean/5', shape=(800, 64), dtype=float32)"


@pytest.mark.parametrize("least", [0, 1 << 16, 64 << 20])
@pytest.mark.parametrize("rows", [1, 199, 200, 65536])
def test_blocks_hold_all_rows_in_order(results, expected, monkeypatch, rows, least):
    monkeypatch.setattr(matrices, "LEAST_READ_BYTES", least)
    blocks = list(results.matrix().blocks(rows))
    assert {len(block) for block in blocks[:-1]} <= {rows}
    np.testing.assert_array_equal(np.concatenate(blocks), expected["mean/5"])
    row = next(iter(results.matrix()))
    np.testing.assert_array_equal(row, expected["mean/5"][0])


def test_blocks_take_the_memory_of_one(results, monkeypatch):
    monkeypatch.setattr(matrices, "LEAST_READ_BYTES", 0)
    monkeypatch.setattr(stored, "NEAR_BYTES", 0)
    whole = RECORDS * WIDTH * 4

    def peak(read) -> int:
        tracemalloc.start()
        try:
            read()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(lambda: [block.sum() for block in results.matrix().blocks(50)]) < whole / 2
    assert peak(lambda: np.asarray(results.matrix())) > whole  # the twin


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("residue",), "'residue' has no single row for each record; choose mean or bos"),
        (("mean", 3), "layer 3 is not stored, only 1, 5"),
    ],
)
def test_what_is_not_there_is_named(results, arguments, told):
    with pytest.raises(InputError, match=told):
        results.matrix(*arguments)


def test_rows_of_no_record_are_damage(path, tmp_path):
    copy = tmp_path / "a.h5"
    copy.write_bytes(path.read_bytes())
    with h5py.File(copy, "r+") as file:
        file["row"][200] = RECORDS
    with open_results(copy) as results:
        matrix = results.matrix()
        assert matrix[:200].shape == (200, WIDTH)
        with pytest.raises(DamagedError, match="its rows are not those of its records"):
            matrix[199:201]
