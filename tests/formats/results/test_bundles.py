"""A result in one file for each bundle reads as one file does: records, order, tables."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from esm_pipeline.errors import AmbiguousIdError, DamagedError, InputError
from esm_pipeline.formats.results import record_order
from esm_pipeline.formats.results.embedding_tables import write_array, write_embedding_table
from esm_pipeline.formats.results.embeddings import Embeddings
from esm_pipeline.formats.results.layout import RecordRow, unit_starts
from esm_pipeline.formats.results.open import RESULT_CLASSES, open_results
from esm_pipeline.formats.results.record_order import places_of
from esm_pipeline.formats.results.writer import RaggedWriter
from esm_pipeline.settings.result_names import BY_BUNDLE
from tests.folded import made_up, write_arrays
from tests.naive_reader import NaiveReader, deal
from tests.results import KINDS, NAMES, read_field

SEQUENCES = 17
LENGTHS = np.arange(SEQUENCES) % 5 + 1
LETTERS = "MKVGALIWYFCDEHNPQ"
FOLDER = {kind.format: BY_BUNDLE[kind.file_name].split("/")[0] for kind in RESULT_CLASSES}


def some_entries() -> list[RecordRow]:
    """Records of all sequences, some of them twice; two ids are ambiguous."""
    draw = np.random.default_rng(7)
    rows = [*draw.permutation(SEQUENCES), *draw.integers(0, SEQUENCES, 9)]
    index = np.cumsum(draw.integers(1, 4, len(rows)))
    names = [f"P{row}" for row in rows]
    names[3] = names[11] = "twice"
    return [RecordRow(*one) for one in zip(names, index.tolist(), map(int, rows), strict=True)]


def write_whole(path: Path, kind: str) -> Path:
    entries = some_entries()
    if kind == "structures":
        chains = [LETTERS[: int(length)] for length in LENGTHS]
        made = [made_up(one, seed=seed) for seed, one in enumerate(chains)]
        return write_arrays(path, made, entries, [seed % 4 for seed in range(SEQUENCES)])
    arrays, attributes = KINDS[kind]
    told = {"format": f"esm-pipeline/{kind}", **attributes}
    draw = np.random.default_rng(3)
    with RaggedWriter(path, arrays, LENGTHS, len(entries), entries, told) as writer:
        for array in arrays:
            size = int(unit_starts(LENGTHS, array.per)[-1])
            letters = np.frombuffer((LETTERS * 9)[:size].encode(), "S1")
            values = draw.random((size, *array.shape))
            writer.write(
                array.name, np.arange(SEQUENCES), letters if array.dtype == "|S1" else values
            )
    return path


@pytest.fixture(params=NAMES)
def kind(request):
    return request.param


@pytest.fixture
def whole(tmp_path, kind):
    return write_whole(tmp_path / "whole.h5", kind)


@pytest.fixture
def sample(tmp_path, kind, whole):
    """The folder of a sample with three bundles."""
    deal(whole, tmp_path / "sample" / FOLDER[f"esm-pipeline/{kind}"], 3)
    return tmp_path / "sample"


def fields(item: object) -> dict[str, object]:
    names = [name for name in dir(type(item)) if not name.startswith("_")]
    found = {name: read_or_refusal(item, name) for name in names}
    return {**found, "id": item.id, "index": item.index, "length": item.length}


def read_or_refusal(item: object, name: str) -> object:
    try:
        read_field(item, name)
        return getattr(item, name)
    except InputError as error:
        return type(error)


def assert_same(one: object, other: object) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert_same(value, other[name])
    elif hasattr(one, "positions"):
        assert_same(vars(one), vars(other))
    else:
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("count", [1, 2, 5, 30])
def test_everything_is_as_in_one_file(tmp_path, kind, whole, count):
    """With 30 bundles some are empty."""
    folder = deal(whole, tmp_path / "dealt", count)
    with open_results(whole) as one, open_results(folder) as many:
        assert type(many) is type(one)
        assert (len(many), many.ids, many.attributes) == (len(one), one.ids, one.attributes)
        assert many.index.tolist() == one.index.tolist()
        assert many.length[many.row].tolist() == one.length[one.row].tolist()
        assert many.offset.tolist() == [0, *np.cumsum(many.length)]
        pd.testing.assert_frame_equal(many.to_pandas(), one.to_pandas())
        for position, (item, wanted) in enumerate(zip(many, one, strict=True)):
            assert_same(fields(item), fields(wanted))
            assert many.item(position).index == one.item(position).index == wanted.index
            assert_same(fields(many[item.index]), fields(wanted))
            if item.id != "twice":
                assert many[item.id].index == one[item.id].index
        for key in (*one.ids, "no", *range(-1, 90)):
            assert (key in many) == (key in one), key


@pytest.mark.parametrize("count", [1, 4])
def test_values_are_those_that_h5py_reads(tmp_path, count):
    path = write_whole(tmp_path / "whole.h5", "embeddings")
    naive = NaiveReader(path)
    with open_results(deal(path, tmp_path / "dealt", count)) as results:
        for item, wanted in zip(results, naive.records, strict=True):
            for layer in (0, 2):
                (mean,) = naive.values(f"mean/{layer}", wanted.row)
                residue = naive.values(f"residue/{layer}", wanted.row)
                np.testing.assert_array_equal(item.mean[layer], mean)
                np.testing.assert_array_equal(item.residue[layer], residue)
            contacts = naive.values("contacts", wanted.row)
            np.testing.assert_array_equal(item.contacts.ravel(), contacts)
            assert item.contacts.shape == (item.length, item.length)


def test_an_id_in_two_bundles_is_ambiguous(tmp_path):
    path = write_whole(tmp_path / "whole.h5", "classes")
    first = min(entry.index for entry in some_entries() if entry.id == "twice")
    with open_results(deal(path, tmp_path / "dealt", 9)) as results:
        holders = [part for part in results.parts if part.find_id("twice")]
        assert len(holders) == 2
        with pytest.raises(AmbiguousIdError, match=rf"dealt: id 'twice' .* such as {first}$"):
            results["twice"]


def test_a_samples_folder_is_enough(sample, kind, whole):
    with open_results(sample) as results, open_results(whole) as one:
        assert results.ids == one.ids
        assert results.path == str(next(sample.iterdir()))
    for path in (results.path, f"{results.path}/"):
        with open_results(path) as results:
            assert results.ids == one.ids


def test_a_samples_folder_with_one_file(tmp_path, kind, whole):
    (tmp_path / "sample").mkdir()
    usual = next(one for one in RESULT_CLASSES if one.format == f"esm-pipeline/{kind}").file_name
    (tmp_path / "sample" / f"{kind}.txt").touch()
    shutil.copy(whole, tmp_path / "sample" / usual)
    with open_results(tmp_path / "sample") as results:
        assert results.path == str(tmp_path / "sample" / usual)
        assert len(results.parts) == 1


def test_results_of_several_kinds_are_named(tmp_path):
    sample = tmp_path / "sample"
    deal(write_whole(tmp_path / "a.h5", "embeddings"), sample / "embeddings", 2)
    write_whole(sample / "classes.h5", "classes")
    told = rf"sample: has several results; give .*: {sample}/embeddings or {sample}/classes\.h5$"
    with pytest.raises(InputError, match=told):
        open_results(sample)
    with Embeddings.open(sample) as results:
        assert len(results.parts) == 2
    write_whole(sample / "embeddings.h5", "embeddings")
    with pytest.raises(InputError, match=r"has several results; give .*embeddings\.h5 or .*/embed"):
        Embeddings.open(sample)


@pytest.mark.parametrize("kind", ["embeddings"])
@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("00000.h5", r"00000\.h5 is missing"),
        ("00001.h5", r"00001\.h5 is missing"),
        ("00002.h5", r"00002\.h5 is missing"),
    ],
)
def test_a_missing_bundle_is_named(sample, kind, file, told):
    (sample / "bundles").mkdir()
    for number in range(3):
        (sample / "bundles" / f"0000{number}.fasta").touch()
    open_results(sample).close()
    (sample / "embeddings" / file).unlink()
    with pytest.raises(InputError, match=rf"embeddings: {told}; run the workflow again"):
        open_results(sample)


@pytest.mark.parametrize("kind", ["embeddings"])
def test_a_bundle_of_an_earlier_run_is_named(sample, kind):
    """A run with fewer bundles leaves the others: their records are not those of the sample."""
    (sample / "bundles").mkdir()
    for number in range(2):
        (sample / "bundles" / f"0000{number}.fasta").touch()
    told = r"embeddings/00002\.h5: not of the last run, which has 2 bundles; remove it"
    for place in (sample, sample / "embeddings"):
        with pytest.raises(InputError, match=told):
            open_results(place)
    (sample / "embeddings" / "00002.h5").unlink()
    open_results(sample).close()


@pytest.mark.parametrize("kind", ["embeddings"])
def test_a_bundle_too_many_is_named(sample, kind):
    folder = sample / "embeddings"
    (folder / "00001.h5").rename(folder / "000001.h5")
    with pytest.raises(InputError, match=r"embeddings: 00001\.h5 is missing"):
        open_results(sample)


@pytest.mark.parametrize("kind", ["saturation"])
def test_files_that_do_not_belong_together(tmp_path, sample, kind):
    path = sample / "saturation" / "00002.h5"
    whole = path.read_bytes()
    changes = {
        "attribute 'strategy' is 'other'": lambda file: file.attrs.update(strategy="other"),
        "attribute 'more' is '1'": lambda file: file.attrs.update(more=1),
        "attribute 'models' is None": lambda file: file.attrs.__delitem__("models"),
        "array 'log_odds.b' is None": lambda file: file.__delitem__("log_odds.b"),
    }
    for told, change in changes.items():
        path.write_bytes(whole)
        with h5py.File(path, "r+") as file:
            change(file)
        with pytest.raises(InputError, match=rf"00002\.h5: {told}, but .* in 00000\.h5; give a"):
            open_results(sample)
    path.write_bytes(whole)
    with h5py.File(path, "r+") as file:
        file.attrs["software"] = "another"
        del file["lookup"]
    open_results(sample).close()  # the twin: what may differ
    shutil.copy(write_whole(tmp_path / "b.h5", "classes"), path)
    with pytest.raises(InputError, match=r"00002\.h5: attribute 'alphabet' is None"):
        open_results(sample)


@pytest.mark.parametrize("kind", ["embeddings"])
@pytest.mark.parametrize("use", [list, lambda results: results.index, lambda results: results.row])
def test_an_index_in_two_bundles_is_damage(sample, kind, use):
    with h5py.File(sample / "embeddings/00000.h5") as one:
        index = one["index"][-1]
    with h5py.File(sample / "embeddings/00002.h5", "r+") as other:
        before = other["index"][...]
        place = int(np.searchsorted(before, index))
        other["index"][min(place, len(before) - 1)] = index
    with open_results(sample) as results, pytest.raises(DamagedError, match="'index' is not"):
        use(results)


@pytest.mark.parametrize("kind", ["embeddings"])
def test_a_damaged_bundle_is_named(sample, kind):
    with h5py.File(sample / "embeddings/00001.h5", "r+") as file:
        file["length"][0] = -3
    with open_results(sample) as results, pytest.raises(DamagedError, match=r"00001\.h5: 'length'"):
        list(results)


@pytest.mark.parametrize("kind", ["classes"])
def test_what_only_one_file_has_says_so(sample, kind):
    with open_results(sample) as results:
        for use in (lambda: results.file, results.predictions, lambda: results.mapped("p")):
            with pytest.raises(InputError, match=r"has 3 files, .* such as .*/classes/00000\.h5"):
                use()


@pytest.mark.parametrize("kind", ["embeddings"])
def test_closed_results_say_so(sample, kind):
    with open_results(sample) as results:
        item, matrix = next(iter(results)), results.matrix()
    for use in (
        lambda: len(results),
        lambda: iter(results),
        lambda: results[item.index],
        lambda: item.mean,
        lambda: matrix[0],
        lambda: results.attributes,
    ):
        with pytest.raises(InputError, match=r"0\d\.h5: results are closed"):
            use()


@pytest.mark.parametrize("kind", ["embeddings"])
def test_nothing_stays_open_when_a_bundle_is_refused(sample, kind):
    (sample / "embeddings/00002.h5").write_bytes(b"no HDF5")
    for _ in range(3):
        with pytest.raises(DamagedError, match=r"00002\.h5: is not an HDF5 file of results"):
            open_results(sample)
    with h5py.File(sample / "embeddings/00000.h5", "r+"):  # refused while it is open for reading
        pass


@pytest.mark.parametrize("kind", ["embeddings"])
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize("least", [1, 256])
def test_blocks_of_any_size_are_in_input_order(sample, whole, monkeypatch, kind, size, least):
    monkeypatch.setattr(record_order, "LEAST_READ", least)
    with open_results(sample) as results, open_results(whole) as one:
        for first, stop in ((0, len(one)), (3, 20), (25, 26), (5, 5)):
            blocks = list(results.blocks(size, first, stop))
            assert [len(block) for block in blocks[:-1]] == [size] * (len(blocks) - 1)
            assert [name for block in blocks for name in block.ids()] == one.ids[first:stop]
        for rank in range(len(one) + 1):
            places = places_of(results.parts, rank)
            taken = [
                part.array("index")[:place]
                for part, place in zip(results.parts, places, strict=True)
            ]
            assert sorted(np.concatenate(taken)) == one.index[:rank].tolist()


@pytest.mark.parametrize("kind", ["embeddings"])
def test_tables_of_bundles_are_those_of_one_file(tmp_path, whole, kind):
    with h5py.File(whole, "r+") as file:
        for name in ("residue", "contacts", "contacts_offset", "bos", "mean/0"):
            del file[name]
    folder = deal(whole, tmp_path / "dealt", 4)
    made = []
    for source, name in ((whole, "one"), (folder, "many")):
        table, array, ids = (tmp_path / f"{name}{end}" for end in (".tsv", ".npy", ".ids.tsv"))
        write_embedding_table(table, ".tsv", source)
        write_array(array, ids, source)
        made.append([path.read_bytes() for path in (table, array, ids)])
    assert made[0] == made[1]
    naive = NaiveReader(whole)
    _, values = naive.arrays["mean/2"]
    expected = values[[record.row for record in naive.records]]
    np.testing.assert_array_equal(np.load(array), expected)
