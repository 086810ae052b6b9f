"""Exported numbers are those of the results, in every format, and every record is accounted for."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest

from esm_pipeline import open_results
from esm_pipeline.formats.exports import anndata_file, parquet, uniprot
from esm_pipeline.formats.exports.anndata_file import unique_names
from esm_pipeline.formats.protein_names import uniprot_accession
from esm_pipeline.formats.results import chosen, embedding_tables
from esm_pipeline.formats.results.layout import Array, RecordRow, unit_starts
from esm_pipeline.formats.results.writer import RaggedWriter
from tests.naive_reader import deal
from tests.results import write_result
from tests.workflow.tools import GOLDEN, SAMPLE

anndata = pytest.importorskip("anndata")

RESULTS = GOLDEN / "results" / SAMPLE
NAMES = ["sp|P69905|HBA_HUMAN", "a/b", ".", "..", "a_b", "twice", "tr|A0A1B2-2|X", "twice", "é|x"]
ROWS = [3, 0, 1, 2, 3, 4, 0, 5, 1]
LENGTHS = np.array([3, 1, 6, 2, 5, 4])
WIDTH = 7


@pytest.fixture(params=["one file", "folder of bundles"])
def results(request, tmp_path):
    """Nine records of six sequences, with names that HDF5 does not take."""
    entries = [
        RecordRow(name, 2 * place, row)
        for place, (name, row) in enumerate(zip(NAMES, ROWS, strict=True))
    ]
    arrays = [
        *(
            Array(f"{kind}/{layer}", "sequence", (WIDTH,), "<f4")
            for kind in ("mean", "bos")
            for layer in (0, 2)
        ),
        *(Array(f"residue/{layer}", "residue", (WIDTH,), "<f2") for layer in (0, 2)),
    ]
    told = {
        "format": "esm-pipeline/embeddings",
        "model": "m",
        "revision": "",
        "weights_sha256": "0" * 64,
        "dtype": "float32",
        "software": '{"esm_pipeline": "0"}',
    }
    path = tmp_path / "embeddings.h5"
    draw = np.random.default_rng(0)
    with RaggedWriter(path, arrays, LENGTHS, len(entries), entries, told) as writer:
        for array in arrays:
            size = int(unit_starts(LENGTHS, array.per)[-1])
            writer.write(array.name, np.arange(6), draw.normal(size=(size, WIDTH)))
    return path if request.param == "one file" else deal(path, tmp_path / "dealt", 3)


def expected(results: Path, kind: str = "mean", layer: int = 2) -> np.ndarray:
    with open_results(results) as found:
        return np.array([getattr(item, kind)[layer] for item in found])


def exported(esm, results: Path, out: Path, *flags: object) -> str:
    code, lines = esm("export", *flags, results, out)
    assert code == 0, lines
    return lines[-1]


def check_parquet(out: Path, numbers: np.ndarray) -> None:
    table = pd.read_parquet(out)
    assert [*table] == ["index", "id", "length", "mean"]
    assert table["id"].tolist() == NAMES
    assert table["index"].tolist() == [2 * place for place in range(9)]
    assert table["length"].tolist() == LENGTHS[ROWS].tolist()
    np.testing.assert_array_equal(np.stack(table["mean"]), numbers)


def check_text(out: Path, numbers: np.ndarray) -> None:
    table = pd.read_csv(out, sep="\t", dtype={"id": str})
    assert table["id"].tolist() == NAMES
    columns = [f"mean_2_{place}" for place in range(WIDTH)]
    assert [*table] == ["index", "id", "length", *columns]
    np.testing.assert_array_equal(table[columns].to_numpy("float32"), numbers)


def check_npy(out: Path, numbers: np.ndarray) -> None:
    found = np.load(out)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, numbers)
    ids = pd.read_csv(out.with_suffix(".ids.tsv"), sep="\t", dtype=str)
    assert ids["id"].tolist() == NAMES


def check_h5ad(out: Path, numbers: np.ndarray) -> None:
    data = anndata.read_h5ad(out)
    assert data.X.dtype == np.float32
    np.testing.assert_array_equal(data.X, numbers)
    assert data.obs["id"].tolist() == NAMES
    assert data.obs["length"].tolist() == LENGTHS[ROWS].tolist()
    assert data.obs_names.is_unique
    assert data.obs_names[7] == "twice-1"
    assert data.uns["model"] == "m"
    assert json.loads(data.uns["software"]) == {"esm_pipeline": "0"}
    assert sorted(data.obsm) == ["bos_0", "bos_2", "mean_0"]
    assert (data[:, 3].X.ravel() == numbers[:, 3]).all()


CHECKS = {
    "a.parquet": check_parquet,
    "a.tsv": check_text,
    "a.npy": check_npy,
    "a.h5ad": check_h5ad,
}


@pytest.mark.parametrize("name", CHECKS)
def test_numbers_are_those_of_the_results(esm, results, tmp_path, name):
    said = exported(esm, results, tmp_path / name)
    assert said == f"export: 9 of 9 records in {tmp_path / name}"
    CHECKS[name](tmp_path / name, expected(results))
    if name == "a.h5ad":
        found = anndata.read_h5ad(tmp_path / name).obsm
        for key in ("bos_0", "bos_2", "mean_0"):
            kind, layer = key.split("_")
            np.testing.assert_array_equal(found[key], expected(results, kind, int(layer)))


def reversed_values(self, name):
    return self.block.values(name, self.places)[::-1]


def rounded_values(self, name):
    return self.block.values(name, self.places).astype("float16").astype("float32")


def other_dataset(results, kind, layer=-1):
    return f"{kind}/{results.layers[0]}"


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("mistake", [reversed_values, rounded_values, other_dataset])
def test_a_mistake_is_seen(esm, results, tmp_path, name, mistake, monkeypatch):
    if mistake is other_dataset:
        monkeypatch.setattr("esm_pipeline.tasks.run.export.dataset_of", mistake)
    else:
        monkeypatch.setattr(chosen.ChosenBlock, "values", mistake)
    exported(esm, results, tmp_path / name)
    with pytest.raises(AssertionError):
        CHECKS[name](tmp_path / name, expected(results))


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("name", CHECKS)
def test_blocks_of_any_size(esm, results, tmp_path, name, size, monkeypatch):
    monkeypatch.setattr(parquet, "ROWS_AT_ONCE", size)
    monkeypatch.setattr(embedding_tables, "ROWS_AT_ONCE", size)
    monkeypatch.setattr(embedding_tables, "CELLS", size * WIDTH)
    monkeypatch.setattr(anndata_file, "BLOCK_NUMBERS", size * 4 * WIDTH)
    exported(esm, results, tmp_path / name)
    CHECKS[name](tmp_path / name, expected(results))


def test_layer_and_kind(esm, results, tmp_path):
    exported(esm, results, tmp_path / "a.npy", "--what=bos", "--layer=0")
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), expected(results, "bos", 0))
    exported(esm, results, tmp_path / "a.parquet", "--what=bos")
    schema = pyarrow.parquet.read_schema(tmp_path / "a.parquet")
    assert "bos" in schema.names
    facts = json.loads(schema.metadata[b"esm_pipeline"])
    assert facts["array"] == "bos/2"
    assert (facts["model"], facts["weights_sha256"]) == ("m", "0" * 64)


# One dataset for each protein.

IN_FILE = {0: "P69905", 1: "a_b", 2: "_", 3: "__", 5: "twice", 6: "A0A1B2-2", 8: "é|x"}
"""Place of a record → its name; `a_b` is then taken, and so is the second `twice`."""


def check_named(out: Path, results: Path, kind: str, dtype: str) -> None:
    with open_results(results) as found:
        items = [*found]
    with open_results(results) as found, h5py.File(out) as file:
        values = [getattr(item, kind)[2] for item in found]
        assert {*file} == {*IN_FILE.values()}
        for place, name in IN_FILE.items():
            assert file[name].dtype == dtype
            np.testing.assert_array_equal(file[name][...], values[place].astype(dtype))
            if kind == "residue":
                assert len(file[name]) == items[place].length
        assert file.attrs["model"] == "m"
    names = pd.read_csv(
        out.with_name(f"{out.stem}.names.tsv"), sep="\t", dtype=str, keep_default_na=False
    )
    assert names["id"].tolist() == NAMES
    assert names["name"].tolist() == [IN_FILE.get(place, "") for place in range(9)]
    reasons = {place: one for place, one in enumerate(names["reason"]) if one}
    assert reasons == {
        **dict.fromkeys((1, 2, 3), "renamed: HDF5 does not allow this name"),
        **dict.fromkeys((4, 7), "left out: an earlier record has this name"),
    }


@pytest.mark.parametrize(
    ("name", "flags", "kind", "dtype"),
    [
        ("per-protein.h5", (), "mean", "float16"),
        ("mine.per-protein.h5", ("--dtype=float32",), "mean", "float32"),
        ("per-residue.h5", (), "residue", "float16"),
        ("x.h5", ("--format=per-residue", "--dtype=float32"), "residue", "float32"),
        ("x.h5", ("--format=per-protein", "--what=bos"), "bos", "float16"),
    ],
)
def test_a_dataset_for_each_protein(esm, results, tmp_path, name, flags, kind, dtype):
    said = exported(esm, results, tmp_path / name, *flags)
    assert "7 of 9 records" in said
    assert "2 left out: an earlier record has this name; 3 renamed: HDF5 does not" in said
    assert f"see {tmp_path / Path(name).stem}.names.tsv" in said
    check_named(tmp_path / name, results, kind, dtype)


def overwriting(file, identifier):
    name = uniprot_accession(identifier).replace("/", "_").replace(".", "_")
    if name in file:
        del file[name]
    return name, ""


def whole_id(identifier):
    return identifier


@pytest.mark.parametrize(
    ("place", "mistake"), [("name_in", overwriting), ("uniprot_accession", whole_id)]
)
def test_a_mistake_with_names_is_seen(esm, results, tmp_path, place, mistake, monkeypatch):
    monkeypatch.setattr(uniprot, place, mistake)
    exported(esm, results, tmp_path / "per-protein.h5")
    with pytest.raises(AssertionError):
        check_named(tmp_path / "per-protein.h5", results, "mean", "float16")


def test_a_number_too_large_for_float16(esm, results, tmp_path):
    file = results if results.is_file() else next(results.glob("*.h5"))
    with h5py.File(file, "r+") as opened:
        opened["mean/2"][0, 0] = 1e6
    code, lines = esm("export", results, tmp_path / "per-protein.h5")
    assert (code, len(lines)) == (2, 1)
    assert "is too large for float16; set --dtype to float32" in lines[0]
    assert not list(tmp_path.glob("per-protein*"))
    exported(esm, results, tmp_path / "per-protein.h5", "--dtype=float32")


@pytest.mark.parametrize(
    ("identifier", "accession"),
    [
        ("sp|P69905|HBA_HUMAN", "P69905"),
        ("tr|A0A1B2-2|X", "A0A1B2-2"),
        ("sp|P69905", "P69905"),
        ("P69905", "P69905"),
        ("gi|123|x", "gi|123|x"),
        ("sp||x", "sp||x"),
        ("xsp|P1|x", "xsp|P1|x"),
    ],
)
def test_accessions(identifier, accession):
    assert uniprot_accession(identifier) == accession


def test_names_of_anndata_are_unique_whatever_the_ids():
    assert unique_names(["a", "a", "a-1", "a", "b"]) == ["a", "a-2", "a-1", "a-3", "b"]


# Some of the records.


@pytest.mark.parametrize("name", ["a.npy", "a.h5ad", "a.parquet", "a.tsv", "per-residue.h5"])
def test_some_ids(esm, results, tmp_path, name):
    """By id or accession; all records with an id."""
    (tmp_path / "ids.txt").write_text("twice\nP69905\r\n\n>é|x\n")
    places = [0, 5, 7, 8]
    exported(esm, results, tmp_path / name, "--ids", tmp_path / "ids.txt")
    numbers = expected(results)[places] if name != "per-residue.h5" else None
    if name == "a.npy":
        np.testing.assert_array_equal(np.load(tmp_path / name), numbers)
    elif name == "a.h5ad":
        np.testing.assert_array_equal(anndata.read_h5ad(tmp_path / name).X, numbers)
    elif name == "per-residue.h5":
        with h5py.File(tmp_path / name) as file, open_results(results) as found:
            assert {*file} == {"P69905", "twice", "é|x"}
            np.testing.assert_array_equal(file["twice"], found[10].residue[2])
    else:
        read = pd.read_parquet if name == "a.parquet" else lambda path: pd.read_csv(path, sep="\t")
        assert read(tmp_path / name)["index"].tolist() == [2 * place for place in places]


def test_ids_that_no_record_has(esm, results, tmp_path):
    (tmp_path / "ids.txt").write_text("twice\n\nNONE\nNOTHING\nNONE\n")
    code, lines = esm("export", "--ids", tmp_path / "ids.txt", results, tmp_path / "a.npy")
    assert (code, len(lines)) == (2, 1)
    place = f"{tmp_path / 'ids.txt'}:3"
    told = f"{place}: no record with the id or accession 'NONE' and 1 more in {results}"
    assert told in lines[0]
    for text, told in (("", "has no ids"), (b"\xff\xfe", "not UTF-8")):
        (tmp_path / "ids.txt").write_bytes(text or b"")
        code, lines = esm("export", "--ids", tmp_path / "ids.txt", results, tmp_path / "a.npy")
        assert (code, len(lines)) == (2, 1)
        assert told in lines[0]
    assert not (tmp_path / "a.npy").exists()


# Records and other results.


def test_headers_come_from_the_table_of_records(esm, tmp_path):
    for results in (RESULTS, RESULTS / "embeddings.h5"):
        exported(esm, results, tmp_path / "a.h5ad")
        obs = anndata.read_h5ad(tmp_path / "a.h5ad").obs
        table = pd.read_csv(RESULTS / "records.tsv", sep="\t", dtype=str, keep_default_na=False)
        table = table[table["embed_status"] == "ok"]
        for name in ("id", "header", "sha256", "notes"):
            assert obs[name].tolist() == table[name].tolist()


def test_another_table_of_records_is_refused(esm, results, tmp_path):
    command = ("export", "--records", RESULTS / "records.tsv", results, tmp_path / "a.h5ad")
    code, lines = esm(*command)
    assert (code, len(lines)) == (2, 1)
    assert "not the records of these results; name their table by --records" in lines[0]
    assert not (tmp_path / "a.h5ad").exists()


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".parquet"])
@pytest.mark.parametrize("kind", ["saturation", "classes", "residue_classes", "structures"])
def test_other_results_are_tables(esm, tmp_path, kind, suffix):
    source = write_result(tmp_path / f"{kind}.h5", kind)
    exported(esm, source, tmp_path / f"out{suffix}")
    with open_results(source) as results:
        wanted = results.to_pandas()
    if suffix == ".parquet":
        table = pd.read_parquet(tmp_path / "out.parquet")
    else:
        separator = {".tsv": "\t", ".csv": ","}[suffix]
        table = pd.read_csv(tmp_path / f"out{suffix}", sep=separator, keep_default_na=False)
    assert len(table) == len(wanted) > 3
    shared = [name for name in wanted if name in table]
    assert len(shared) > 3
    for name in shared:
        if wanted[name].dtype.kind == "f":
            numbers = pd.to_numeric(table[name]).to_numpy()
            np.testing.assert_allclose(numbers, wanted[name], rtol=0, atol=1e-6)
        else:
            assert table[name].astype(str).tolist() == wanted[name].astype(str).tolist()
    code, lines = esm("export", source, tmp_path / "out.npy")
    assert (code, len(lines)) == (2, 1)
    assert "can be exported to .tsv, .csv or .parquet only" in lines[0]
    code, lines = esm("export", "--layer=0", source, tmp_path / "out.tsv")
    assert (code, len(lines)) == (2, 1)
    assert "--layer: only for embeddings" in lines[0]


@pytest.mark.parametrize(
    ("out", "flags", "told"),
    [
        ("a.h5", (), "say what it becomes: --format per-protein or --format per-residue"),
        ("a.txt", (), "cannot be written; let its name end in .tsv, .csv, .parquet, .npy, .h5ad"),
        ("a", (), "cannot be written"),
        ("a.npy", ("--dtype=float16",), "--dtype: not for"),
        ("a.npy", ("--records=x",), "--records: only for .h5ad"),
        ("per-residue.h5", ("--what=mean",), "--what: "),
        ("a.npy", ("--layer=1",), "layer 1 is not stored, only 0, 2"),
        ("a.npy", ("--ids=none.txt",), "none.txt: cannot be read (No such file or directory)"),
    ],
)
def test_what_is_refused_in_one_line(esm, results, tmp_path, out, flags, told):
    before = {*tmp_path.iterdir()}
    code, lines = esm("export", *flags, results, tmp_path / out)
    assert (code, len(lines)) == (2, 1)
    assert told in lines[0]
    assert {*tmp_path.iterdir()} == before


def test_nothing_replaces_what_it_is_made_of(esm, results, tmp_path):
    own = results if results.is_file() else results / "00001.h5"
    whole = own.read_bytes()
    code, lines = esm("export", "--format=per-protein", results, own)
    assert (code, len(lines)) == (2, 1)
    assert own.read_bytes() == whole
    records = results.with_name("records.tsv")
    if results.is_dir():
        records = results / "records.tsv"
    elif results.name != "embeddings.h5":
        records = results.with_name(f"{results.stem}.records.tsv")
    records.write_text("id\n")
    code, lines = esm("export", results, records)
    assert (code, len(lines)) == (2, 1)
    assert records.read_text() == "id\n"
    (tmp_path / "a.ids.tsv").write_text("twice\n")
    code, lines = esm("export", "--ids", tmp_path / "a.ids.tsv", results, tmp_path / "a.npy")
    assert (code, len(lines)) == (2, 1)


@pytest.mark.parametrize(
    "name", ["a.parquet", "a.h5ad", "a.npy", "a.csv", "per-protein.h5", "per-residue.h5"]
)
def test_the_same_bytes_again(esm, results, tmp_path, name):
    made = []
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        assert esm("export", "--quiet", results, tmp_path / place / name) == (0, [])
        made.append({path.name: path.read_bytes() for path in (tmp_path / place).iterdir()})
    assert made[0] == made[1]


def test_without_anndata_one_line_says_what_to_install(esm, results, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "anndata"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "anndata", None)
    code, lines = esm("export", results, tmp_path / "a.h5ad")
    assert (code, len(lines)) == (2, 1)
    assert lines[0].endswith("install it: pip install 'esm-pipeline[anndata]'")
    exported(esm, results, tmp_path / "a.parquet")
    code, lines = esm("export", write_result(tmp_path / "s.h5", "saturation"), tmp_path / "a.h5ad")
    assert (code, len(lines)) == (2, 1)
    assert "what a saturation.h5 has can be exported to" in lines[0]


@pytest.mark.parametrize("name", ["a.npy", "a.h5ad", "a.tsv", "per-protein.h5"])
def test_files_of_structures_are_refused(esm, tmp_path, name):
    folder = tmp_path / "folded"
    folder.mkdir()
    (folder / "structures.tsv").write_text("index\tid\tfile\n0\ta\ta.pdb\n")
    code, lines = esm("export", folder, tmp_path / name)
    assert (code, len(lines)) == (2, 1)
    assert f"{folder}: holds files of structures, which are not exported" in lines[0]
    assert not (tmp_path / name).exists()


def test_an_empty_result(esm, tmp_path):
    told = {"format": "esm-pipeline/embeddings", "model": "m", "software": "{}"}
    array = Array("mean/2", "sequence", (4,), "<f4")
    with RaggedWriter(tmp_path / "e.h5", [array], np.empty(0, int), 0, [], told):
        pass
    for name in ("a.parquet", "a.tsv", "a.npy", "a.h5ad", "per-protein.h5"):
        assert "0 of 0 records" in exported(esm, tmp_path / "e.h5", tmp_path / name)
    assert anndata.read_h5ad(tmp_path / "a.h5ad").shape == (0, 4)
    assert np.load(tmp_path / "a.npy").shape == (0, 4)


def test_one_record_is_one(esm, tmp_path):
    told = {"format": "esm-pipeline/embeddings", "model": "m", "software": "{}"}
    array = Array("mean/2", "sequence", (4,), "<f4")
    entries = [RecordRow("a", 0, 0)]
    with RaggedWriter(tmp_path / "e.h5", [array], np.array([5]), 1, entries, told) as writer:
        writer.write("mean/2", np.arange(1), np.zeros((1, 4)))
    assert exported(esm, tmp_path / "e.h5", tmp_path / "a.npy").startswith(
        f"export: 1 of 1 record in {tmp_path}"
    )
