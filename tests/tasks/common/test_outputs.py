"""What the ending of an output's name says is what is written, or the name is refused."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from esm_pipeline.formats.results import embedding_tables
from esm_pipeline.formats.results.open import open_results

FASTA = """\
>a first
MKTAYIAKQRQISFVKSHFSRQ
>stop
MK*V
>a again, of the same name
GAVLIW
>c as the first
MKTAYIAKQRQISFVKSHFSRQ
>d,"e"
W
"""
ENDINGS = ".h5, .hdf5, .tsv, .csv, .parquet, .npy"
Run = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "in.fasta"
    path.write_text(FASTA)
    return path


@pytest.fixture(params=[1, embedding_tables.ROWS_AT_ONCE], ids=["row by row", "at once"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_tables, "ROWS_AT_ONCE", request.param)
    monkeypatch.setattr(embedding_tables, "CELLS", request.param * 100)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def as_table(path: Path) -> pd.DataFrame:
    """What a table says, numbers in float32 straight from their text."""
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    with open(path, newline="", encoding="utf-8") as handle:
        rows = list(csv.reader(handle, delimiter="," if path.suffix == ".csv" else "\t"))
    table = pd.DataFrame(rows[1:], columns=rows[0])
    for name in table.columns:
        if name != "id":
            table[name] = table[name].astype(np.int64 if "_" not in name else np.float32)
    return table


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
def test_a_table_of_embeddings(ending: str, esm: Run, rotary: Path, fasta: Path) -> None:
    """The records and, to the last digit, the numbers of the HDF5 file."""
    folder = fasta.parent
    what = ("--layers=-1,0", "--include", "bos,mean", "--model", rotary, fasta)
    assert esm("embed", *what, folder / "out.h5")[0] == 0
    assert esm("embed", *what, folder / f"emb.{ending}")[0] == 0
    table = as_table(folder / f"emb.{ending}")
    assert list(table.columns[:5]) == ["index", "id", "length", "mean_0_0", "mean_0_1"]
    with open_results(folder / "out.h5") as results:
        assert table["id"].tolist() == results.ids == ["a", "a", "c", 'd,"e"']
        assert table["index"].tolist() == results.index.tolist() == [0, 2, 3, 4]
        assert table["length"].tolist() == [22, 6, 22, 1]
        assert table.shape[1] == 3 + 2 * 2 * 16
        for layer in (0, 2):
            for kind in ("mean", "bos"):
                names = [f"{kind}_{layer}_{place}" for place in range(16)]
                found = table[names].to_numpy()
                assert found.dtype == np.float32
                expected = results.to_pandas(kind, layer).to_numpy()[:, 3:].astype(np.float32)
                assert found.tobytes() == np.ascontiguousarray(expected).tobytes()
    records = (folder / "emb.records.tsv").read_text()
    assert records == (folder / "out.records.tsv").read_text()
    assert "'*'" in records
    made = {"in.fasta", "out.h5", "out.records.tsv", f"emb.{ending}", "emb.records.tsv"}
    assert names_in(folder) == made


@pytest.mark.usefixtures("block")
def test_an_array_with_its_ids(esm: Run, rotary: Path, fasta: Path) -> None:
    folder = fasta.parent
    sums = folder / "sums.sha256"
    assert esm("embed", "--model", rotary, fasta, folder / "out.h5")[0] == 0
    assert esm("embed", "--model", rotary, "--sha256", sums, fasta, folder / "v.1.NPY")[0] == 0
    found = np.load(folder / "v.1.NPY")
    with open_results(folder / "out.h5") as results:
        expected = results.to_pandas().to_numpy()[:, 3:].astype(np.float32)
    assert (found.dtype, found.shape) == (np.float32, (4, 16))
    assert found.flags.c_contiguous
    assert found.tobytes() == np.ascontiguousarray(expected).tobytes()
    ids = (folder / "v.1.ids.tsv").read_text().splitlines()
    assert ids[:2] == ["index\tid\tlength", "0\ta\t22"]
    assert len(ids) == 5
    listed = sums.read_text()
    for name in ("v.1.NPY", "v.1.ids.tsv", "v.1.records.tsv"):
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() in listed


@pytest.mark.parametrize("name", ["emb.csv", "emb.tsv", "emb.parquet", "emb.npy", "emb.HDF5"])
def test_no_record_at_all(name: str, esm: Run, rotary: Path, tmp_path: Path) -> None:
    (tmp_path / "in.fasta").write_text(">stop\nMK*V\n")
    assert esm("embed", "--model", rotary, tmp_path / "in.fasta", tmp_path / name)[0] == 0
    if name == "emb.npy":
        assert np.load(tmp_path / name).shape == (0, 16)
        assert (tmp_path / "emb.ids.tsv").read_text() == "index\tid\tlength\n"
    elif name == "emb.HDF5":
        assert h5py.is_hdf5(tmp_path / name)
    else:
        table = as_table(tmp_path / name)
        assert table.shape == (0, 19)


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("emb.csv", ("--include", "mean,residue"), "which residue does not fit into; leave it out"),
        ("emb.npy", ("--include", "contacts"), "which contacts does not fit into; leave it out of"),
        ("emb.npy", ("--layers", "0,1"), "choose one of mean/0, mean/1, or write .h5 or a table"),
        ("emb.npy", ("--include", "mean,bos"), "choose one of mean/2, bos/2, or write .h5 or a t"),
        ("emb.pt", (), f"cannot be written; let its name end in {ENDINGS}"),
        ("emb.txt", (), f"let its name end in {ENDINGS}"),
        ("emb.csv.gz", (), f"let its name end in {ENDINGS}"),
        ("emb.npz", (), f"let its name end in {ENDINGS}"),
        ("emb", (), f"let its name end in {ENDINGS}"),
        (".csv", (), f"let its name end in {ENDINGS}"),
    ],
)
def test_an_output_that_embed_refuses(
    name: str, flags: tuple[str, ...], message: str, esm: Run, rotary: Path, fasta: Path
) -> None:
    code, lines = esm("embed", "--model", rotary, *flags, fasta, fasta.parent / name)
    assert code == 2
    assert len(lines) == 1
    assert f"{fasta.parent / name}: " in lines[0]
    assert message in lines[0]
    assert names_in(fasta.parent) == {"in.fasta"}


def test_the_ids_may_not_replace_the_input(esm: Run, rotary: Path, tmp_path: Path) -> None:
    (tmp_path / "emb.ids.tsv").write_text(FASTA)
    code, lines = esm("embed", "--model", rotary, tmp_path / "emb.ids.tsv", tmp_path / "emb.npy")
    assert code == 2
    assert "emb.ids.tsv: the input itself" in lines[0]


@pytest.mark.parametrize("name", ["emb.csv", "emb.npy"])
def test_a_failure_leaves_the_earlier_files(
    name: str, esm: Run, rotary: Path, fasta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert esm("embed", "--model", rotary, fasta, fasta.parent / name)[0] == 0
    before = {path.name: path.read_bytes() for path in fasta.parent.iterdir()}

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(embedding_tables, "record_cells", full)
    code, lines = esm("embed", "--quiet", "--model", rotary, fasta, fasta.parent / name)
    assert code == 2
    assert len(lines) == 1
    assert {path.name: path.read_bytes() for path in fasta.parent.iterdir()} == before


TINY = ">a\nMKTAY\n"
FOLD = ("fold", "--model", "demo-fold", "--num-recycles", "0", "--quiet")


@pytest.mark.parametrize(
    "name", ["out.pdb", "out.CIF", "out.zip", "out.tsv", "out.tar.gz", "x.npz"]
)
def test_a_folder_of_structures_with_the_name_of_a_file(
    name: str, esm: Run, tmp_path: Path
) -> None:
    (tmp_path / "in.fasta").write_text(TINY)
    code, lines = esm(*FOLD, tmp_path / "in.fasta", tmp_path / name)
    assert code == 2
    ending = Path(name).suffix.lower()
    message = f"structures go into a folder, and {ending} is the ending of a file; name a folder"
    assert lines == [f"esm-pipeline fold: {tmp_path / name}: {message}"]
    assert names_in(tmp_path) == {"in.fasta"}


@pytest.mark.parametrize("name", ["run.1", "v1.2-final", "old.pdb"])
def test_a_folder_with_a_dot(name: str, esm: Run, tmp_path: Path) -> None:
    (tmp_path / "in.fasta").write_text(TINY)
    if name == "old.pdb":  # it is there, and a folder
        (tmp_path / name).mkdir()
    assert esm(*FOLD, tmp_path / "in.fasta", tmp_path / name)[0] == 0
    assert len(list((tmp_path / name / "structures").iterdir())) == 1


@pytest.mark.parametrize("name", ["out.H5", "out.hdf5"])
def test_hdf5_by_any_of_its_names(name: str, esm: Run, rotary: Path, tmp_path: Path) -> None:
    (tmp_path / "in.fasta").write_text(TINY)
    assert esm(*FOLD, tmp_path / "in.fasta", tmp_path / name)[0] == 0
    assert h5py.is_hdf5(tmp_path / name)
    assert (tmp_path / "out.records.tsv").is_file()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("structures", "--records", "{d}/in.fasta", "{d}/in.fasta", "{d}/x.pdb"), "name a folder"),
        (("heatmaps", "{d}/in.fasta", "{d}/x.png"), "name a folder"),
        (("shard", "--bundles", "2", "{d}/in.fasta", "--out", "{d}/x.fasta"), "name a folder"),
        (("report", "{d}", "--out", "{d}/x.pdf"), "let its name end in .html, .htm"),
        (("provenance", "--settings", "{{}}", "--out", "{d}/x.txt"), "let its name end in .json"),
        (("download", "--model", "demo", "--out", "{d}/x.txt"), "let its name end in .json"),
        (
            (
                *("aggregate", "records", "--bundles", "{d}", "--count", "1"),
                *("--out", "{d}/x.csv", "--counts", "{d}/x.json"),
            ),
            "let its name end in .tsv",
        ),
        (
            (
                *("aggregate", "records", "--bundles", "{d}", "--count", "1"),
                *("--out", "{d}/x.tsv", "--counts", "{d}/x.txt"),
            ),
            "let its name end in .json",
        ),
        (("aggregate", "tables", "{d}/in.fasta", "--out", "{d}/x.csv"), "name end in .tsv"),
        (
            (
                *("aggregate", "embed", "--bundle", "{d}/in.fasta", "--out", "{d}/x.csv"),
                *("--ranges", "{d}", "--count", "1", "--status", "{d}/s.status.tsv"),
            ),
            "let its name end in .h5",
        ),
        (
            (
                *("aggregate", "embed", "--bundle", "{d}/in.fasta", "--out", "{d}/x.h5"),
                *("--ranges", "{d}", "--count", "1", "--status", "{d}/s.tsv"),
            ),
            "let its name end in .status.tsv",
        ),
        (("classify", "--model", "demo", "{d}/in.fasta", "{d}/x.xlsx"), "end in .h5, .hdf5, .tsv"),
        (("score", "--model", "demo", "--saturation", "{d}/in.fasta", "{d}/x.txt"), "end in .h5"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_names_that_other_commands_refuse(
    command: tuple[str, ...], message: str, esm: Run, tmp_path: Path
) -> None:
    (tmp_path / "in.fasta").write_text(TINY)
    code, lines = esm(*(part.format(d=tmp_path) for part in command))
    assert code == 2
    assert len(lines) == 1
    assert message in lines[0]
    assert names_in(tmp_path) == {"in.fasta"}


@pytest.mark.parametrize(
    ("command", "endings"),
    [
        ("embed", (".h5", ".hdf5", ".tsv", ".csv", ".parquet", ".npy")),
        ("classify", (".tsv", ".csv", ".parquet", ".h5")),
        ("fold", (".h5", ".hdf5")),
    ],
)
def test_the_help_tells_the_endings(
    command: str, endings: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    from esm_pipeline.cli import main

    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert [ending for ending in endings if ending not in text] == []
