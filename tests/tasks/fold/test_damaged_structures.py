"""Damaged databases, archives and tables of structures: one line, never another structure."""

from __future__ import annotations

import builtins
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from esm_pipeline.errors import InputError
from esm_pipeline.formats.structure_archives import ARCHIVE_INDEX
from esm_pipeline.formats.structure_files import FileBundle
from esm_pipeline.formats.structure_reader import StructureFiles
from tests.tasks.fold.test_structure_formats import inputs, write  # noqa: F401 - fixtures

pytest.importorskip("foldcomp", reason="no foldcomp here")

DATABASE = ("--formats=foldcomp", "--pae=")
ARCHIVES = ("--formats=pdb", "--archive=true", "--pae=")


def rewrite(path: Path, change: Callable[[list[list[str]]], object]) -> None:
    """Change the cells of a table in place."""
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    change(rows)
    path.write_text("".join("\t".join(row) + "\n" for row in rows))


def swap(first: int, second: int, *columns: int) -> Callable[[list[list[str]]], None]:
    def change(rows: list[list[str]]) -> None:
        for column in columns:
            one, other = rows[first], rows[second]
            one[column], other[column] = other[column], one[column]

    return change


def put(row: int, column: int, value: str) -> Callable[[list[list[str]]], None]:
    return lambda rows: rows[row].__setitem__(column, value)


def add(row: int, column: int, more: int) -> Callable[[list[list[str]]], None]:
    return lambda rows: rows[row].__setitem__(column, str(int(rows[row][column]) + more))


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x5A
    path.write_bytes(data)


def without_sums(change: Callable[[Path], object]) -> Callable[[Path], object]:
    """A change of a database of others, which has no checksums."""

    def both(folder: Path) -> None:
        (folder / "foldcomp.checksums").unlink()
        change(folder)

    return both


def index(change: Callable[[list[list[str]]], object]) -> Callable[[Path], object]:
    return lambda folder: rewrite(folder / "foldcomp.index", change)


# Entries by the rows of the index: 0 sp|P1|A, 1 twin (its bytes), 2 far, 3 same (its bytes).
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "places exchanged": (index(swap(0, 2, 1, 2)), "do not have the checksum"),
    "wrong size": (index(add(2, 2, -7)), "has no end"),
    "size of all": (index(put(2, 2, "99999999")), "cut short, or not of its index"),
    "no size": (index(put(2, 2, "0")), "cut short, or not of its index"),
    "offset below 0": (index(put(2, 1, "-3")), "cut short, or not of its index"),
    "largest offset": (index(put(2, 1, str(2**63 - 1))), "cut short, or not of its index"),
    "larger offset": (index(put(2, 1, "9" * 30)), "cut short, or not of its index"),
    "no numbers": (index(put(2, 1, "x")), "not the index of a Foldcomp database"),
    "flipped byte": (lambda folder: flip(folder / "foldcomp", -60), "do not have the checksum"),
    "other header": (lambda folder: flip(folder / "foldcomp", -900), "do not have the checksum"),
    "other checksum": (
        lambda folder: rewrite(folder / "foldcomp.checksums", put(2, 1, "7")),
        "do not have the checksum",
    ),
    "no checksum": (
        lambda folder: rewrite(folder / "foldcomp.checksums", lambda rows: rows.pop(2)),
        "do not have the checksum",
    ),
    "places exchanged, of others": (
        without_sums(index(swap(0, 2, 1, 2))),
        "is that of 'sp|P1|A', not of",
    ),
    "size of all, of others": (without_sums(index(put(2, 2, "99999999"))), "cut short"),
    "wrong size, of others": (without_sums(index(add(2, 2, -7))), "has no end"),
}


@pytest.mark.parametrize("place", ["structures.tsv", "structures/foldcomp"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_database_is_one_line(write, esm, tmp_path, place, damage):  # noqa: F811
    out = write(*DATABASE)
    assert esm("structures", "--id=far", out / place, tmp_path / "whole.pdb") == (0, [])
    change, why = DAMAGES[damage]
    change(out / "structures")
    code, said = esm("structures", "--id=far", out / place, tmp_path / "one.pdb")
    assert (code, len(said)) == (2, 1)
    assert why in said[0]
    assert not (tmp_path / "one.pdb").exists()


@pytest.mark.parametrize(("sums", "rows"), [(True, (0, 2)), (True, (1, 3)), (False, (0, 2))])
def test_exchanged_names_are_seen(write, sums, rows):  # noqa: F811
    out = write(*DATABASE) / "structures"
    names = StructureFiles(out / "foldcomp").ids
    rewrite(out / "foldcomp.lookup", swap(*rows, 1))
    if not sums:
        (out / "foldcomp.checksums").unlink()
    files = StructureFiles(out / "foldcomp")
    for row in rows:
        with pytest.raises(InputError, match="checksum" if sums else "is that of"):
            files[names[row]]


def test_titles_of_others_need_not_be_names(write):  # noqa: F811
    out = write(*DATABASE) / "structures"
    (out / "foldcomp.checksums").unlink()
    lookup = out / "foldcomp.lookup"
    lookup.write_text(lookup.read_text().replace("\t0\n", ".pdb\t0\n"))
    alone = out.parent / "alone"
    out.rename(alone)
    found = StructureFiles(alone / "foldcomp")["far.pdb"].text
    assert found.count(" CA ") == 60
    assert "pLDDT" not in found, "of others nothing is known"


def test_another_entry_in_the_table_is_seen(write):  # noqa: F811
    out = write(*DATABASE)
    text = (out / "structures.tsv").read_text()
    (out / "structures.tsv").write_text(text.replace("foldcomp/1003", "foldcomp/0"))
    with pytest.raises(InputError, match="another sequence than record 1003 in"):
        StructureFiles(out)["far"]
    (out / "structures.tsv").write_text(text.replace("foldcomp/1003", "foldcomp/x"))
    with pytest.raises(InputError, match="record 1003 has 'x' for an entry"):
        StructureFiles(out)["far"]


ARCHIVE_DAMAGES = {
    "places exchanged": (swap(1, 3, 4, 5), "is not where the index has it"),
    "other size": (add(3, 5, -9), "is not where the index has it"),
    "other offset": (add(3, 4, 512), "is not where the index has it|header"),
    "first": (put(3, 4, "3"), "lies outside of it"),
    "below 0": (put(3, 4, "-3"), "make the files again"),
    "largest": (put(3, 4, str(2**63)), "lies outside of it"),
    "absurd": (put(3, 5, "9" * 30), "lies outside of it"),
    "huge": (put(3, 5, str(2**45)), "lies outside of it"),
}


@pytest.mark.parametrize("damage", ARCHIVE_DAMAGES)
def test_a_damaged_index_of_archives_is_one_line(write, esm, tmp_path, damage):  # noqa: F811
    out = write(*ARCHIVES)
    change, why = ARCHIVE_DAMAGES[damage]
    rewrite(out / "structures" / "index.tsv", change)
    code, said = esm("structures", "--index=3", out, tmp_path / "one.pdb")
    assert (code, len(said)) == (2, 1)
    assert re.search(why, said[0])
    assert not (tmp_path / "one.pdb").exists()


def test_the_index_of_archives_is_read_once(tmp_path, monkeypatch):
    from esm_pipeline.formats.structure_archives import ArchiveWriter

    (tmp_path / "structures").mkdir()
    writer = ArchiveWriter(tmp_path / "structures", 100_000)
    rows = ["index\tid\tfile\n"]
    with FileBundle(tmp_path / "structures", "00000", archive=True) as bundle:
        for number in range(2_000):
            bundle.add(f"{number}.pdb", b"ATOM  %d\n" % number, number, f"P{number}")
            path = f"structures/00000.tar/00000/{number}.pdb.gz"
            rows.append(f"{number}\tP{number}\t{path}\n")
    writer.append(bundle.part, bundle.members)
    writer.close()
    (tmp_path / "structures.tsv").write_text("".join(rows))
    opened, real = [], builtins.open

    def counted(file, *more, **options):
        opened.append(os.fspath(file))
        return real(file, *more, **options)

    files = StructureFiles(tmp_path)
    monkeypatch.setattr(builtins, "open", counted)
    assert [one.text for one in files] == [f"ATOM  {number}\n" for number in range(2_000)]
    assert len([name for name in opened if name.endswith(ARCHIVE_INDEX)]) == 1


@pytest.mark.parametrize("source", ["out", "in.h5"])
@pytest.mark.parametrize("number", ["9" * 23, str(2**63), "-1", f"-{2**64}"])
def test_an_index_of_any_size_is_one_line(write, inputs, esm, tmp_path, source, number):  # noqa: F811
    place = write("--pae=") if source == "out" else inputs / source
    code, said = esm("structures", f"--index={number}", place, tmp_path / "one.pdb")
    assert (code, len(said)) == (2, 1)


def test_keys_of_any_type(write):  # noqa: F811
    files = StructureFiles(write("--pae="))
    assert np.int64(3) in files
    assert files[np.int64(3)].id == "complex"
    for key in (True, False, 1.0, None, b"far", 2**70, "\udc80"):
        assert key not in files
        with pytest.raises(InputError):
            files[key]


FILES = {
    "empty": (b"", "is empty"),
    "of something else": (b"root:x:0:0\n", "has no ATOM records"),
    "not text": (b"ATOM  \xff\xfe\n", "not text in UTF-8"),
}


@pytest.mark.parametrize("contents", FILES)
def test_a_file_that_is_no_structure_is_one_line(write, esm, tmp_path, contents):  # noqa: F811
    out = write("--pae=")
    data, why = FILES[contents]
    (out / "structures/00001/1003_far.pdb").write_bytes(data)
    code, said = esm("structures", "--id=far", out, tmp_path / "one.pdb")
    assert (code, len(said)) == (2, 1)
    assert why in said[0]


@pytest.mark.parametrize(
    "path", ["../../../outside.pdb", "structures/../../outside.pdb", "/{}", "."]
)
def test_a_path_out_of_the_folder_is_refused(write, esm, tmp_path, path):  # noqa: F811
    out = write("--pae=")
    for place in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        shutil.copy(out / "structures/00001/1003_far.pdb", place / "outside.pdb")
    text = (out / "structures.tsv").read_text()
    path = path.format(str(tmp_path / "outside.pdb")[1:])
    (out / "structures.tsv").write_text(text.replace("structures/00001/1003_far.pdb", path))
    code, said = esm("structures", "--id=far", out, tmp_path / "one.pdb")
    assert (code, len(said)) == (2, 1)
    assert "has a file outside of the folder" in said[0]


@pytest.mark.parametrize("kind", ["folder", "archive", "index", "database"])
def test_a_file_without_permission_is_not_called_damaged(write, monkeypatch, kind):  # noqa: F811
    out = write(*{"folder": ("--pae=",), "database": DATABASE}.get(kind, ARCHIVES))
    files, real = StructureFiles(out), builtins.open
    names = {"archive": "00000.tar", "index": "index.tsv", "database": "foldcomp"}
    refused = names.get(kind, "1003_far.pdb")

    def denied(file, *more, **options):
        if os.fspath(file).endswith(f"/{refused}"):
            raise PermissionError(13, "Permission denied", os.fspath(file))
        return real(file, *more, **options)

    monkeypatch.setattr(builtins, "open", denied)
    monkeypatch.setattr(Path, "read_bytes", lambda path: denied(path, "rb").read())
    with pytest.raises(InputError, match="Permission denied") as error:
        files["far"]
    assert "check its permissions" in str(error.value)
    assert "again" not in str(error.value)


@pytest.mark.parametrize("archive", ["true", "false"])
@pytest.mark.parametrize("formats", ["foldcomp,cif", "cif,foldcomp"])
def test_every_format_of_a_folder_is_found(write, esm, tmp_path, formats, archive):  # noqa: F811
    out = write(f"--formats={formats}", f"--archive={archive}", "--pae=")
    for key in ("--id=far", "--id=twin", "--index=2500"):
        for kind, start in (("cif", "data_"), ("pdb", "HEADER")):
            one = tmp_path / f"one.{kind}"
            assert esm("structures", key, out, one) == (0, []), (key, kind)
            assert one.read_text().startswith(start)


def test_exact_arrays_are_preferred(write, inputs, esm, tmp_path):  # noqa: F811
    out = write(*DATABASE)
    shutil.copy(inputs / "in.h5", out / "structures.h5")
    for source, name in (
        (out, "folder"),
        (inputs / "in.h5", "arrays"),
        (out / "structures.tsv", "table"),
    ):
        assert esm("structures", "--id=far", source, tmp_path / f"{name}.pdb") == (0, [])
    whole = (tmp_path / "arrays.pdb").read_bytes()
    assert (tmp_path / "folder.pdb").read_bytes() == whole
    assert (tmp_path / "table.pdb").read_bytes() != whole


@pytest.mark.parametrize("place", ["structures.tsv", "structures/foldcomp"])
def test_an_entry_has_the_heading_of_a_file(write, place):  # noqa: F811
    out = write(*DATABASE)
    text = (out / "structures.tsv").read_text()
    lines = StructureFiles(out / place)["far"].text.splitlines()
    assert lines[0].startswith("HEADER ")
    assert lines[1].split() == ["TITLE", "Predicted", "structure", "of", "far"]
    assert any("B-factors are pLDDT" in line for line in lines)
    assert any(line.startswith("CRYST1") for line in lines)
    assert lines[-1].strip() == "END"
    assert {len(line) for line in lines} == {80}
    assert not any("RANDOM WEIGHTS" in line for line in lines)
    changed = re.sub(r"(?m)(foldcomp/1003\t)", r"\1random_weights;", text)
    (out / "structures.tsv").write_text(changed)
    assert (
        "RANDOM WEIGHTS: this structure is meaningless" in StructureFiles(out / place)["far"].text
    )


@pytest.mark.skipif(not shutil.which("mkdssp"), reason="no mkdssp here")
def test_dssp_reads_an_entry(write, tmp_path):  # noqa: F811
    found = []
    for place, flags in (("plain", ("--pae=",)), ("database", DATABASE)):
        one, told = tmp_path / f"{place}.pdb", tmp_path / f"{place}.dssp"
        one.write_bytes(StructureFiles(write(*flags, out=place))["sp|P1|A"].data)
        command = ["mkdssp", "--output-format", "dssp", str(one), str(told)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")
        lines = told.read_text().splitlines()
        start = next(number for number, line in enumerate(lines) if line.startswith("  #  RES"))
        found.append([(line[13], line[16]) for line in lines[start + 1 :]])
    assert found[0] == found[1]
    assert len(found[0]) == 40
