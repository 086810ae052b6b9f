"""`open_results`: by id, by index, as a table; clear words for what is not there."""

import errno
import os

import h5py
import numpy as np
import pytest

from esm_pipeline import open_results
from esm_pipeline.errors import AmbiguousIdError, DamagedError, InputError
from esm_pipeline.formats.results.layout import Array, RecordRow
from esm_pipeline.formats.results.writer import RaggedWriter

LENGTHS = np.array([3, 1, 2])
ARRAYS = [
    Array("mean/2", "sequence", (4,), "<f4"),
    Array("mean/33", "sequence", (4,), "<f4"),
    Array("residue/2", "residue", (4,), "<f2"),
    Array("residue/33", "residue", (4,), "<f2"),
    Array("contacts", "pair", (), "<f2"),
]
ENTRIES = [
    RecordRow("P1", 0, 0),
    RecordRow("é|x", 2, 1),
    RecordRow("P1", 3, 0),  # the same sequence again: fine
    RecordRow("twice", 7, 1),
    RecordRow("twice", 9, 2),  # another sequence: ambiguous
]


def write_file(path, attributes=(("format", "esm-pipeline/embeddings"), ("model", "m"))):
    values = {}
    with RaggedWriter(path, ARRAYS, LENGTHS, 5, ENTRIES, dict(attributes)) as writer:
        for number, array in enumerate(ARRAYS):
            units = {"sequence": 3, "residue": 6, "pair": 14}[array.per]
            flat = np.arange(units * int(np.prod(array.shape))) + 100 * number
            values[array.name] = flat.reshape(units, *array.shape).astype(array.dtype)
            writer.write(array.name, np.arange(3), values[array.name])
    return values


@pytest.fixture
def values(tmp_path):
    return write_file(tmp_path / "a.h5")


@pytest.fixture
def results(tmp_path, values):
    with open_results(tmp_path / "a.h5") as results:
        yield results


def test_what_is_in_it(results):
    assert len(results) == 5
    assert results.ids == ["P1", "é|x", "P1", "twice", "twice"]
    assert results.index.tolist() == [0, 2, 3, 7, 9]
    assert results.kinds == ["mean", "residue", "contacts"]
    assert results.layers == [2, 33]
    assert results.attributes["model"] == "m"
    assert [item.index for item in results] == [0, 2, 3, 7, 9]


def test_an_item_has_its_own_values(results, values):
    item = results["é|x"]
    assert (item.id, item.index, item.length) == ("é|x", 2, 1)
    np.testing.assert_array_equal(item.mean[33], values["mean/33"][1])
    np.testing.assert_array_equal(item.residue[2], values["residue/2"][3:4])
    np.testing.assert_array_equal(item.contacts, values["contacts"][9:10].reshape(1, 1))
    first = results["P1"]
    np.testing.assert_array_equal(first.residue[33], values["residue/33"][:3])
    np.testing.assert_array_equal(first.contacts, values["contacts"][:9].reshape(3, 3))
    assert not np.array_equal(first.mean[33], item.mean[33])
    assert repr(first) == "Embedding(id='P1', index=0, length=3)"


def test_by_index_means_the_place_in_the_input(results):
    assert results[9].id == "twice"
    assert results[np.int64(3)].index == 3
    unknown = "if it was in the input, its row .* says why"
    for index, told in ((1, unknown), (5, unknown), (-1, "an index is a position in the input")):
        with pytest.raises(InputError, match=f"no record with index {index} has results; {told}"):
            results[index]


@pytest.mark.parametrize("key", [1.5, slice(0, 2), ["P1"], None])
def test_what_names_no_record_is_one_line(results, key):
    with pytest.raises(InputError, match=r"a\.h5: .* is neither an id nor an index; give one "):
        results[key]


def test_the_last_layer_of_a_record(results):
    item = results["P1"]
    for arrays in (item.mean, item.residue):
        np.testing.assert_array_equal(arrays[-1], arrays[33])
        assert not np.array_equal(arrays[-1], arrays[2])
        assert list(arrays) == [2, 33]
        for layer in (1, -2, "33"):
            with pytest.raises(InputError, match=rf"a\.h5: layer {layer!r} is not stored, only 2"):
                arrays[layer]


def test_one_record_is_singular(tmp_path):
    array = Array("mean/2", "sequence", (4,), "<f4")
    told = {"format": "esm-pipeline/embeddings", "model": "m"}
    entries = [RecordRow("a", 0, 0)]
    with RaggedWriter(tmp_path / "one.h5", [array], np.ones(1, int), 1, entries, told) as writer:
        writer.write(array.name, np.arange(1), np.zeros((1, 4), np.float32))
    with open_results(tmp_path / "one.h5") as results:
        assert "1 record, 1 different sequence, mean" in repr(results)


def test_ids_that_name_several_records(results):
    assert results["P1"].index == 0
    with pytest.raises(
        AmbiguousIdError, match=r"a\.h5: id 'twice' names.*use the index.*such as 7"
    ):
        results["twice"]


def test_an_unknown_id(results):
    with pytest.raises(InputError, match=r"a\.h5: no record with id 'P2'"):
        results["P2"]


def test_a_kind_that_is_not_stored(results):
    with pytest.raises(InputError, match="'bos' is not stored, only mean, residue, contacts; add"):
        _ = results["é|x"].bos


def test_values_stay_when_the_file_is_closed(tmp_path, values):
    with open_results(tmp_path / "a.h5") as results:
        mean = results[0].mean
    np.testing.assert_array_equal(mean[2], values["mean/2"][0])


def test_whether_it_is_there(results):
    assert [key for key in ("P1", "é|x", "twice", "P2", "") if key in results] == [
        *("P1", "é|x", "twice")
    ]
    assert [key for key in range(-1, 12) if key in results] == [0, 2, 3, 7, 9]
    assert np.int64(7) in results
    assert [key for key in (7.0, None, b"P1") if key in results] == []


def test_closed_results_say_so(tmp_path, values):
    with open_results(tmp_path / "a.h5") as results:
        item = results["P1"]
        ids = results.ids
    results.close()
    uses = [
        lambda: results["P1"],
        lambda: results[0],
        lambda: "P1" in results,
        lambda: len(results),
        lambda: iter(results),
        lambda: results.attributes,
        lambda: results.to_pandas(),
        lambda: item.mean,
        lambda: item.residue,
        lambda: item.contacts,
    ]
    for use in uses:
        with pytest.raises(InputError, match=r"a\.h5: results are closed"):
            use()
    assert results.ids is ids


def test_to_pandas(results, values):
    table = results.to_pandas()
    assert list(table.columns) == ["id", "index", "length", "mean_0", "mean_1", "mean_2", "mean_3"]
    assert table["id"].tolist() == results.ids
    assert table["length"].tolist() == [3, 1, 3, 1, 2]
    rows = [entry.row for entry in ENTRIES]
    np.testing.assert_array_equal(table.filter(like="mean_"), values["mean/33"][rows])
    np.testing.assert_array_equal(
        results.to_pandas(layer=2).filter(like="mean_"), values["mean/2"][rows]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "residue"}, "'residue' has no single row for each record; choose mean or bos"),
        ({"kind": "bos"}, "'bos' is not stored"),
        ({"layer": 3}, "layer 3 is not stored, only 2, 33"),
    ],
)
def test_to_pandas_of_what_is_not_there(results, arguments, message):
    with pytest.raises(InputError, match=message):
        results.to_pandas(**arguments)


def test_files_that_are_not_ours(tmp_path):
    with pytest.raises(InputError, match=r"none\.h5: no such file"):
        open_results(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("text")
    with pytest.raises(
        InputError, match=r"text\.h5: is not an HDF5 file .*; give an embeddings.h5"
    ):
        open_results(tmp_path / "text.h5")
    (tmp_path / "empty.h5").write_text("")
    with pytest.raises(DamagedError, match=r"empty\.h5: cannot be read as HDF5"):
        open_results(tmp_path / "empty.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.attrs["format"] = "other"
    with pytest.raises(InputError, match=r"other\.h5: an HDF5 file, but not of esm-pipeline"):
        open_results(tmp_path / "other.h5")
    write_file(tmp_path / "new.h5")
    with h5py.File(tmp_path / "new.h5", "a") as file:
        file.attrs["format_version"] = 2
    with pytest.raises(InputError, match="format version 2, newer than this esm-pipeline"):
        open_results(tmp_path / "new.h5")


def test_what_cannot_be_read_is_one_line(tmp_path, values, monkeypatch):
    os.mkfifo(tmp_path / "fifo")
    for path, told in (
        (tmp_path, "has no results"),
        (tmp_path / "fifo", "not a file"),
    ):
        with pytest.raises(InputError, match=rf": {told}; give the path of embeddings\.h5, sat"):
            open_results(path)

    def refuse(path, mode, locking):
        raise PermissionError(errno.EACCES, "Unable to open file (time = Sun\n, errno = 13)")

    monkeypatch.setattr(h5py, "File", refuse)
    with pytest.raises(InputError) as caught:
        open_results(tmp_path / "a.h5")
    told = (
        f"{tmp_path / 'a.h5'}: cannot be read (Permission denied); its contents may be whole: "
        "check the permissions, the file system and the limits of this machine"
    )
    assert str(caught.value) == told
    assert not isinstance(caught.value, DamagedError)


def test_a_file_cut_short(tmp_path, values):
    whole = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"a\.h5: cannot be read as HDF5 .*truncated"):
        open_results(tmp_path / "a.h5")


@pytest.mark.parametrize("row", [3, -1])
def test_rows_that_are_not_there(tmp_path, values, row):
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["row"][2] = row
    told = pytest.raises(InputError, match="its rows are not those of its records")
    with open_results(tmp_path / "a.h5") as results, told:
        _ = results.row
