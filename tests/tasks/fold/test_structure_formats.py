"""Foldcomp databases and archives by the command, and one structure out of each kind by its id."""

from __future__ import annotations

import csv
import subprocess
from pathlib import Path

import numpy as np
import pytest

from esm_pipeline import open_results
from esm_pipeline.errors import AmbiguousIdError, InputError
from esm_pipeline.formats.records import Record, write_records
from esm_pipeline.formats.results.layout import RecordRow
from esm_pipeline.formats.structure_reader import StructureFiles
from esm_pipeline.structure.structure import Structure
from tests.folded import made_up, write_arrays
from tests.ideal_chains import ideal_chain

foldcomp = pytest.importorskip("foldcomp", reason="no foldcomp here")

DATABASE_ENDINGS = ("", ".index", ".lookup", ".dbtype", ".checksums")

STRUCTURES: list[Structure] = [
    ideal_chain("helix", 40, seed=1),
    made_up("ACDEFGHIKLMNPQRSTVWY", seed=2),
    made_up("MKV", "AC", seed=3),
    ideal_chain("loop", 60, seed=4),
]
ROWS = {0: 0, 2: 1, 3: 2, 4: 0, 1_003: 3, 2_500: 3}
"""Index of each record that is ok, and its row."""

NAMES = {0: "sp|P1|A", 2: "random", 3: "complex", 4: "twin", 1_003: "far", 2_500: "same"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    entries = [RecordRow(NAMES[index], index, row) for index, row in ROWS.items()]
    write_arrays(folder / "in.h5", STRUCTURES, entries)
    firsts = {row: index for index, row in reversed(ROWS.items())}
    records = []
    for index in range(2_501):
        if index not in ROWS:
            record = Record(index, f"no{index}", "", 9, "", "ok")
            records.append(record.with_outcome("fold", "skipped", "why"))
            continue
        row = ROWS[index]
        first = None if firsts[row] == index else firsts[row]
        length = len(STRUCTURES[row].aatype)
        record = Record(index, NAMES[index], "", length, "", "ok", duplicate_of=first)
        records.append(record.with_outcome("fold", "ok"))
    write_records(folder / "records.tsv", records, ["fold"])
    return folder


@pytest.fixture
def write(inputs, esm, tmp_path):
    def run(*flags: str, out: str = "out") -> Path:
        given = ("--quiet", f"--records={inputs / 'records.tsv'}", *flags)
        code, said = esm("structures", *given, inputs / "in.h5", tmp_path / out)
        assert code == 0, said
        return tmp_path / out

    return run


def rows_of(path: Path) -> dict[str, dict[str, str]]:
    with open(path, newline="") as handle:
        return {row["index"]: row for row in csv.DictReader(handle, delimiter="\t")}


def files_of(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


FALLBACKS = {"2": "structures/00000/2_random.pdb", "3": "structures/00000/3_complex.pdb"}


def test_what_comes_back_is_in_the_database_and_the_rest_lies_next_to_it(write):
    out = write("--formats=foldcomp", "--pae=")
    table = rows_of(out / "structures.tsv")
    found = {index: row["file"] for index, row in table.items() if row["file"]}
    kept = {"0": 0, "4": 0, "1003": 1_003, "2500": 1_003}
    database = {index: f"structures/foldcomp/{first}" for index, first in kept.items()}
    assert found == database | FALLBACKS
    flags = [row for row in rows_of(out / "flags.tsv").values() if row["flag"] == "not_foldcomp"]
    assert [row["id"] for row in flags] == ["random", "complex"]
    assert flags[0]["value"].startswith("its atoms differ by ")
    assert flags[1]["value"] == "2 chains, Foldcomp has entries of one"
    assert "not_foldcomp" in table["2"]["flags"].split(";")
    assert "not_foldcomp" not in table["0"]["flags"]
    with foldcomp.open(out / "structures" / "foldcomp") as entries:
        assert [name for name, _ in entries] == ["sp|P1|A", "sp|P1|A", "far", "far"]
    with foldcomp.open(out / "structures" / "foldcomp", ids=["same", "twin"]) as entries:
        assert [text.count(" CA ") for _, text in entries] == [60, 40]
    names = {f"structures/foldcomp{end}" for end in DATABASE_ENDINGS}
    assert set(files_of(out)) == {
        *(*names, *FALLBACKS.values(), "structures.tsv", "structures.parquet"),
        *("structures.sha256", "flags.tsv", "chain_pairs.tsv"),
    }
    listed = (out / "structures.sha256").read_text()
    assert all(f"  {name}\n" in listed for name in (*names, *FALLBACKS.values()))
    subprocess.run(["sha256sum", "--check", "--quiet", "structures.sha256"], cwd=out, check=True)


def test_other_formats_beside_the_database(write):
    out = write("--formats=cif,foldcomp", "--pae=")
    table = rows_of(out / "structures.tsv")
    assert table["0"]["file"] == "structures/00000/0_sp_P1_A.cif"
    assert table["2"]["file"] == "structures/00000/2_random.cif"
    assert (out / "structures" / "foldcomp").stat().st_size > 1_000
    assert not list(out.rglob("*.pdb")), "what is refused has a file of its own already"


@pytest.mark.parametrize("archive", ["true", "false"])
def test_processes_and_time_change_no_byte(write, archive):
    flags = ("--formats=foldcomp,pdb", f"--archive={archive}", "--archive-records=1000")
    one = files_of(write(*flags, "--threads=1"))
    assert files_of(write(*flags, "--threads=2", out="other")) == one
    assert one["structures/foldcomp"]
    hidden = [name for name in one if "/." in name]
    assert hidden == []


def test_archives_of_so_many_records(write):
    out = write("--archive=true", "--archive-records=1000", "--pae=npz")
    table = rows_of(out / "structures.tsv")
    assert table["0"]["file"] == "structures/00000.tar/00000/0_sp_P1_A.pdb.gz"
    assert table["2500"]["file"] == "structures/00001.tar/00001/1003_far.pdb.gz"
    names = sorted(path.name for path in (out / "pae").iterdir())
    assert names == ["00000.tar", "00001.tar", "index.tsv"]
    assert [row["id"] for row in rows_of(out / "pae" / "index.tsv").values()] == [
        *("sp|P1|A", "random", "complex", "far")
    ]


def test_a_size_that_is_no_multiple_of_a_folder_is_refused(inputs, esm, tmp_path):
    given = (f"--records={inputs / 'records.tsv'}", "--archive-records=1500")
    code, said = esm("structures", *given, inputs / "in.h5", tmp_path / "out")
    assert (code, len(said)) == (2, 1)
    assert "--archive-records = 1500: should be a multiple of 1,000" in said[0]


KINDS = {
    "folder": ("--formats=pdb,cif",),
    "archives": ("--formats=pdb,cif", "--archive=true", "--archive-records=1000"),
    "database": ("--formats=foldcomp",),
    "database and archives": ("--formats=foldcomp", "--archive=true"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_one_structure_is_read_by_id_or_index(write, kind):
    out = write(*KINDS[kind], "--pae=")
    wanted = files_of(write("--formats=pdb", "--pae=", out="plain"))
    for place in (out, out / "structures", out / "structures.tsv"):
        with open_results(place, "structure_files") as files:
            assert isinstance(files, StructureFiles)
            assert len(files) == len(ROWS)
            assert files.ids == list(NAMES.values())
            assert files.index == list(ROWS)
            assert ["sp|P1|A" in files, 1 in files, "no1" in files] == [True, False, False]
    read = {one.index: one for one in open_results(out, "structure_files")}
    for index, row in ROWS.items():
        for one in (read[index], files[index], files[NAMES[index]]):
            assert (one.id, one.index, one.kind) == (NAMES[index], index, "pdb")
            assert one.text.count(" CA ") == len(STRUCTURES[row].aatype)
    for key, told in (
        ("nobody", "no structure with id 'nobody'; if it was in the input, its row in structures"),
        (-1, "no structure with index -1; an index is a position in the input, from 0"),
        (slice(0, 2), r"slice\(0, 2, None\) is neither an id nor an index; give one record"),
    ):
        with pytest.raises(InputError, match=told):
            files[key]
    assert files["random"].data == wanted[FALLBACKS["2"]]
    if kind in ("folder", "archives"):
        assert files["twin"].data == wanted["structures/00000/0_sp_P1_A.pdb"]
        assert files.read("twin", "cif").text.startswith("data_0_sp_P1_A")
    assert list(files.to_pandas()) == ["index", "id", "file"]


def test_a_database_of_others_is_read(write):
    out = write("--formats=foldcomp", "--pae=")
    with open_results(out / "structures" / "foldcomp", "structure_files") as files:
        assert files.ids == ["sp|P1|A", "twin", "far", "same"]
        assert files["far"].text.count(" CA ") == 60
        assert files[2_500].id == "same"


@pytest.mark.parametrize("kind", [*KINDS, "arrays"])
@pytest.mark.parametrize("flag", ["--id=far", "--index=1003"])
def test_the_command_writes_one_structure(write, inputs, esm, tmp_path, kind, flag):
    source = inputs / "in.h5" if kind == "arrays" else write(*KINDS[kind], "--pae=")
    assert esm("structures", flag, source, tmp_path / "one.pdb")[0] == 0
    text = (tmp_path / "one.pdb").read_text()
    lines = [line for line in text.splitlines() if line[12:16] == " CA "]
    places = np.array([[float(line[at : at + 8]) for at in (30, 38, 46)] for line in lines])
    assert np.abs(places - STRUCTURES[3].positions[:, 1]).max() < 0.5
    code, said = esm("structures", flag, source, tmp_path / "one.cif")
    if kind.startswith("database"):
        assert (code, len(said)) == (2, 1)
        assert "holds PDB, not cif; ask for pdb" in said[0]
    else:
        assert (code, said) == (0, [])
        assert (tmp_path / "one.cif").read_text().startswith("data_1003_far")


@pytest.mark.parametrize(
    ("flags", "output", "why"),
    [
        (
            ["--id=nobody"],
            "one.pdb",
            "no structure with id 'nobody'; if it was in the input, its row",
        ),
        (["--index=1"], "one.pdb", "no structure with index 1; if it was in the input, its row"),
        (["--id=far"], "one.txt", "let its name end in .pdb or .cif, the format to write"),
        (["--id=far"], "one.cif", "ask for pdb"),
        ([], "other", "--records is missing; give the records.tsv of the input"),
    ],
)
def test_what_cannot_be_written_is_one_line(write, esm, tmp_path, flags, output, why):
    code, said = esm("structures", *flags, write("--pae="), tmp_path / output)
    assert (code, len(said)) == (2, 1)
    assert why in said[0]
    assert not (tmp_path / output).exists()


def test_to_standard_output(write, tmp_path):
    import sys

    out = write("--formats=pdb", "--pae=")
    command = [sys.executable, "-m", "esm_pipeline", "structures", "--id=twin", out, "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stdout == (out / "structures/00000/0_sp_P1_A.pdb").read_bytes()
    assert done.stderr == b""


def test_an_id_of_several_structures_is_not_guessed(write):
    out = write("--pae=")
    text = (out / "structures.tsv").read_text()
    (out / "structures.tsv").write_text(text.replace("\tcomplex\t", "\trandom\t"))
    files = open_results(out, "structure_files")
    with pytest.raises(AmbiguousIdError, match="use the index of the one you mean, such as 2"):
        files["random"]
    assert files[3].id == "random"


def test_archives_of_earlier_versions_are_read(write):
    """Zip archives of a folder each, without an index."""
    import zipfile

    out = write("--formats=pdb,cif", "--pae=")
    for folder in ("00000", "00001"):
        with zipfile.ZipFile(out / "structures" / f"{folder}.zip", "w") as archive:
            for path in sorted((out / "structures" / folder).iterdir()):
                archive.write(path, path.name)
                path.unlink()
    text = (out / "structures.tsv").read_text()
    for folder in ("00000", "00001"):
        text = text.replace(f"structures/{folder}/", f"structures/{folder}.zip/")
    (out / "structures.tsv").write_text(text)
    files = open_results(out, "structure_files")
    assert files["far"].text.count(" CA ") == 60
    assert files.read("far", "cif").kind == "cif"


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda out: (out / "structures.tsv").write_text("what\nis\n"), "not a structures.tsv"),
        (lambda out: (out / "structures/00001/1003_far.pdb").unlink(), "make the files again"),
    ],
)
def test_damage_is_one_line(write, damage, why):
    out = write("--pae=")
    damage(out)
    with pytest.raises(InputError, match=why) as error:
        print(open_results(out, "structure_files")["far"])
    assert "\n" not in str(error.value)


def test_without_the_package_nothing_is_begun(inputs, esm, tmp_path, monkeypatch):
    import builtins
    import sys

    real = builtins.__import__

    def without(name, *rest):
        if name == "foldcomp":
            raise ImportError("No module named 'foldcomp'")
        return real(name, *rest)

    monkeypatch.delitem(sys.modules, "foldcomp", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    given = (f"--records={inputs / 'records.tsv'}", "--formats=foldcomp")
    code, said = esm("structures", *given, inputs / "in.h5", tmp_path / "out")
    assert (code, len(said)) == (2, 1)
    assert "pip install 'esm-pipeline[foldcomp]'" in said[0]
    assert not (tmp_path / "out" / "structures").exists()
    (tmp_path / "in.fasta").write_text(">a\nMKV\n")
    flags = ("--model=demo", "--formats=foldcomp")
    code, again = esm("fold", *flags, tmp_path / "in.fasta", tmp_path / "folded")
    assert (code, len(again)) == (2, 1), "before it folds"
    assert "pip install 'esm-pipeline[foldcomp]'" in again[0]
