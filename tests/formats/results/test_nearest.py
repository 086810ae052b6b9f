"""The nearest records: those that a comparison of all finds, in memory that does not grow."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from esm_pipeline import embed
from esm_pipeline.errors import InputError
from esm_pipeline.formats.results import matrix as matrices
from esm_pipeline.formats.results import nearest
from esm_pipeline.formats.results.layout import Array, RecordRow
from esm_pipeline.formats.results.open import open_results
from esm_pipeline.formats.results.writer import RaggedWriter
from tests.naive_reader import deal

RECORDS, SEQUENCES, WIDTH = 500, 450, 24
ARRAYS = [
    Array(name, "sequence", (WIDTH,), "<f4") for name in ("mean/1", "mean/5", "bos/1", "bos/5")
]


def write(path: Path, arrays: dict[str, np.ndarray], rows: np.ndarray, index: np.ndarray) -> Path:
    """Embeddings of records P0, P1, … that have some `rows`."""
    count, width = next(iter(arrays.values())).shape
    entries = [
        RecordRow(f"P{i}", int(at), int(row))
        for i, (at, row) in enumerate(zip(index, rows, strict=True))
    ]
    layout = [Array(name, "sequence", (width,), "<f4") for name in arrays]
    told = {"format": "esm-pipeline/embeddings", "model": "m"}
    with RaggedWriter(path, layout, np.ones(count, int), len(rows), entries, told) as writer:
        for name, values in arrays.items():
            writer.write(name, np.arange(count), values)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Records with gaps between indices, rows that are mixed and shared, one of them zero."""
    path = tmp_path_factory.mktemp("nearest") / "a.h5"
    draw = np.random.default_rng(5)
    rows = draw.permutation(np.arange(RECORDS) % SEQUENCES)
    index = np.cumsum(draw.integers(1, 3, RECORDS))
    arrays = {one.name: draw.normal(size=(SEQUENCES, WIDTH)).astype("f4") for one in ARRAYS}
    for values in arrays.values():
        values *= draw.random((SEQUENCES, 1), np.float32) * 3
    arrays["mean/5"][7] = 0
    write(path, arrays, rows, index)
    return path, {name: values[rows] for name, values in arrays.items()}, index


@pytest.fixture(scope="module", params=[1, 4])
def results(made, request, tmp_path_factory):
    source = made[0]
    if request.param > 1:
        source = deal(source, tmp_path_factory.mktemp("dealt") / "embeddings", request.param)
    with open_results(source, "embeddings") as results:
        yield results


def brute_force(values: np.ndarray, query: np.ndarray, metric: str, left_out: int | None):
    """Places of all records, the nearest first, with similarities and distances."""
    values, query = values.astype(float), np.asarray(query, float)
    norms = np.linalg.norm(values, axis=1) * np.linalg.norm(query)
    similarity = np.where(norms > 0, values @ query / np.where(norms > 0, norms, 1), 0)
    distance = np.linalg.norm(values - query, axis=1)
    order = np.argsort(-similarity if metric == "cosine" else distance, kind="stable")
    return [(one, similarity[one], distance[one]) for one in order.tolist() if one != left_out]


def same(found, expected, index) -> bool:
    return [(one.id, one.index) for one in found] == [
        (f"P{place}", index[place]) for place, _, _ in expected
    ] and np.allclose([one[2:] for one in found], [one[1:] for one in expected], atol=1e-9)


@pytest.mark.parametrize("block", [WIDTH * 4 * 77, 16 << 20])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_they_are_those_of_a_comparison_of_all(results, made, monkeypatch, metric, block):
    _, arrays, index = made
    monkeypatch.setattr(nearest, "COMPARED_BYTES", block)
    monkeypatch.setattr(matrices, "LEAST_READ_BYTES", block)
    for place in (0, 44, 7, RECORDS - 1):
        values = arrays["mean/5"]
        expected = brute_force(values, values[place], metric, place)
        for query in (f"P{place}", int(index[place]), np.int64(index[place])):
            assert same(results.nearest(query, 12, metric=metric), expected[:12], index)
        wrong = brute_force(values, values[place], metric, None)
        assert not same(results.nearest(f"P{place}", 12, metric=metric), wrong[:12], index)
    vector = np.random.default_rng(0).normal(size=WIDTH)
    for kind, layer in (("mean", 1), ("bos", -1)):
        values = arrays[f"{kind}/{5 if layer == -1 else layer}"]
        expected = brute_force(values, vector, metric, None)
        found = results.nearest(vector.tolist(), 3, metric=metric, kind=kind, layer=layer)
        assert same(found, expected[:3], index)
        assert same(
            results.nearest(vector, 9999, metric=metric, kind=kind, layer=layer), expected, index
        )


def test_they_make_a_data_frame(results):
    table = pd.DataFrame(results.nearest("P3", 2))
    assert list(table.columns) == ["id", "index", "similarity", "distance"]
    assert len(results.nearest("P3")) == 10


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        ("P3", {"metric": "manhattan"}, "metric 'manhattan' is not known; use cosine or euclidean"),
        ("P3", {"k": 0}, "k is 0; give a whole number from 1"),
        ("P3", {"k": True}, "k is True"),
        ("P3", {"layer": 2}, "layer 2 is not stored, only 1, 5"),
        ("P3", {"kind": "residue"}, "choose mean or bos"),
        ("Q3", {}, "no record with id 'Q3'"),
        ([0.0] * WIDTH, {}, "a vector of zeros to compare, which has no direction; give another"),
        ([1.0, 2.0], {}, "a vector of shape (2,) to compare; give one of 24 finite numbers"),
        ([np.nan] * WIDTH, {}, "give one of 24 finite numbers"),
        ([["x"]], {}, "is neither an id, an index nor a vector"),
    ],
)
def test_what_cannot_be_compared(results, query, options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        results.nearest(query, **options)


def test_zeros_have_distances(results, made):
    _, arrays, index = made
    expected = brute_force(arrays["mean/5"], np.zeros(WIDTH), "euclidean", None)
    assert same(results.nearest(np.zeros(WIDTH), 3, metric="euclidean"), expected[:3], index)


def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    """Blocks of 4 MiB: 41 MB of vectors are compared in less than half of it, as 20 MB are."""
    monkeypatch.setattr(matrices, "LEAST_READ_BYTES", 4 << 20)
    monkeypatch.setattr(nearest, "COMPARED_BYTES", 1 << 20)
    peaks = []
    for count in (40_000, 80_000):
        values = np.random.default_rng(1).random((count, 128), np.float32)
        rows = np.arange(count)
        path = write(tmp_path / f"{count}.h5", {"mean/1": values}, rows, rows)
        (expected,) = brute_force(values, values[0], "cosine", 0)[:1]
        with open_results(path, "embeddings") as results:
            results.nearest("P0", 5)
            tracemalloc.start()
            found = results.nearest("P0", 5)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert found[0].index == expected[0]
        path.unlink()
    assert peaks[1] < 1.1 * peaks[0]
    assert peaks[1] < 20e6


def test_of_a_result_in_memory(made):
    sequences = {"sp|P84927|DMS7_PHYTS": "MKTAYIAK", "gap": "M-", "b": "MKTAYLAK", "c": "GWGW"}
    with pytest.warns(UserWarning, match="1 of 4 skipped"):
        result = embed(sequences, "demo")
    found = result.nearest("P84927", 5)
    assert [(one.id, one.index) for one in found] == [("b", 2), ("c", 3)]
    values = result.mean[[0, 2, 3]]
    assert found[0].similarity == pytest.approx(brute_force(values, values[0], "cosine", 0)[0][1])
    assert [one.id for one in result.nearest(result["c"].mean, 1, metric="euclidean")] == ["c"]
