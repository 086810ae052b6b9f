"""Results found by names in their ids, similar names, and how a result shows itself."""

from __future__ import annotations

import numpy as np
import pytest

from esm_pipeline import embed, open_results
from esm_pipeline.errors import AmbiguousIdError, InputError
from esm_pipeline.formats.results import part, reader
from esm_pipeline.formats.results.embeddings import Embeddings
from esm_pipeline.formats.results.layout import Array, RecordRow
from esm_pipeline.formats.results.writer import RaggedWriter
from tests.naive_reader import deal

ENTRIES = [
    RecordRow("sp|P84927|DMS7_PHYTS", 0, 0),
    RecordRow("P62593", 1, 1),
    RecordRow("tr|P62593|OTHER", 2, 2),  # an id wins over a name in another one
    RecordRow("a|SHARED", 3, 1),
    RecordRow("b|SHARED", 5, 1),  # the same sequence: fine
    RecordRow("a|TWICE", 6, 3),
    RecordRow("b|TWICE", 8, 4),
    RecordRow("ref|NP_000509.1|", 9, 0),
]


@pytest.fixture(params=[1, 3])
def results(request, tmp_path):
    path = tmp_path / "a.h5"
    array = Array("mean/2", "sequence", (4,), "<f4")
    told = {"format": "esm-pipeline/embeddings", "model": "m"}
    with RaggedWriter(path, [array], np.arange(5) + 1, len(ENTRIES), ENTRIES, told) as writer:
        writer.write(array.name, np.arange(5), np.arange(20, dtype="f4").reshape(5, 4))
    if request.param > 1:
        path = deal(path, tmp_path / "embeddings", request.param)
    with open_results(path, "embeddings") as results:
        yield results


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("P84927", 0),
        ("DMS7_PHYTS", 0),
        ("sp|P84927|DMS7_PHYTS", 0),
        ("P62593", 1),
        ("OTHER", 2),
        ("NP_000509.1", 9),
    ],
)
@pytest.mark.parametrize("at_once", [1 << 14, 2])
def test_a_record_is_found_by_a_name_in_its_id(results, monkeypatch, name, index, at_once):
    monkeypatch.setattr(part, "HASHED_AT_ONCE", at_once)
    assert results[name].index == index
    assert name in results


def test_a_name_of_equal_sequences_is_fine_in_one_file(results):
    if len(results.parts) == 1:
        assert results["SHARED"].index == 3


@pytest.mark.parametrize("name", ["sp", "tr", "ref", "p84927", "P8492", "", "|"])
def test_tags_and_parts_are_no_names(results, name):
    assert name not in results
    with pytest.raises(InputError, match=r"no record with id"):
        results[name]


def test_a_name_of_different_sequences_is_ambiguous(results):
    assert "TWICE" in results
    with pytest.raises(AmbiguousIdError, match=r"names records with different .*, such as 6$"):
        results["TWICE"]


def test_a_similar_name_is_suggested(results, monkeypatch):
    told = r" has results; if it was in the input, .* \(records.tsv\) says why there are none"
    for name, near in (("P84928", "P84927"), ("dms7_phyts", "DMS7_PHYTS"), ("P6259", "P62593")):
        with pytest.raises(InputError, match=f"no record with id '{name}'; did you mean '{near}'"):
            results[name]
    with pytest.raises(InputError, match=rf"no record with id 'xyz'{told}$"):
        results["xyz"]
    monkeypatch.setattr(reader, "MOST_COMPARED", 5)
    with pytest.raises(InputError, match=rf"'P84928'{told}$"):
        results["P84928"]


def test_a_known_id_reads_no_other_ids(results, monkeypatch):
    monkeypatch.setattr(part.ResultPart, "find_name", None)
    assert results["P62593"].index == 1


def test_keys_and_what_it_shows(results):
    assert results.keys() == [one.id for one in ENTRIES]
    files = f", {len(results.parts)} files" if len(results.parts) > 1 else ""
    rows = sum(one.row_count for one in results.parts)
    what = f"8 records, {rows} different sequences{files}, mean, layers 2, model m"
    assert repr(results) == f"<Embeddings: {what}>"
    results.close()
    assert repr(results) == f"<Embeddings: {results.path}, closed>"


def test_a_kind_is_asked_for(results):
    with open_results(results.path, "embeddings") as again:
        assert type(again) is Embeddings
    with pytest.raises(InputError, match=r"give the path of saturation.h5"):
        open_results(results.path, "saturation")
    with pytest.raises(InputError, match=r"no kind 'embedding'; use one of embeddings, saturation"):
        open_results(results.path, "embedding")


def test_a_sample_with_several_kinds(tmp_path, results):
    for kind in ("embeddings", "saturation"):
        (tmp_path / "sample").mkdir(exist_ok=True)
        (tmp_path / "sample" / f"{kind}.h5").write_bytes(b"")
    with pytest.raises(InputError, match=r"several results"):
        open_results(tmp_path / "sample")
    with pytest.raises(InputError, match=r"saturation.h5: .*HDF5"):
        open_results(tmp_path / "sample", "saturation")


def test_names_in_a_result_in_memory():
    result = embed({"sp|P84927|DMS7_PHYTS": "MKT", "a|X": "MK", "b|X": "MV", "P1": "M"}, "demo")
    assert result["P84927"].id == "sp|P84927|DMS7_PHYTS"
    with pytest.raises(AmbiguousIdError, match=r"'X' names records with different sequences"):
        result["X"]
    with pytest.raises(InputError, match=r"did you mean 'P84927'"):
        result["P84928"]
