"""Files of structures: every record in the table, every file where it says, whole or absent."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import socket
import subprocess
import tarfile
import threading
import time
from concurrent.futures import InvalidStateError
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np
import pytest
from biotite.structure import BadStructureError

from esm_pipeline.formats.checksums import write_digests
from esm_pipeline.formats.records import Record, write_records
from esm_pipeline.formats.results.layout import RecordRow
from esm_pipeline.formats.structure_files import (
    FLAG_COLUMNS,
    PAIR_COLUMNS,
    STRUCTURE_COLUMNS,
)
from esm_pipeline.structure.pae import to_angstrom
from esm_pipeline.structure.structure import MEANINGLESS
from esm_pipeline.tasks.fold import structures, texts
from esm_pipeline.tasks.fold.collected import Collector, WrittenGroup
from esm_pipeline.tasks.fold.tables import ATLAS_TABLE, STRUCTURE_TABLES
from tests.folded import made_up, read_member, read_pae, read_structure, write_arrays

STRUCTURES = [made_up("MKV", seed=1), made_up("GXA", "W", seed=2), made_up("AC" * 30, seed=3)]
ROWS = {0: 0, 2: 1, 4: 0, 1_003: 2}
"""Index of each record that is ok, and its row."""

NAMES = {0: "sp|P1|A", 2: "a/b", 4: "twin", 1_003: "far"}


def records(count: int = 1_004) -> list[Record]:
    """All records: ok, skipped and failed."""
    firsts = {row: index for index, row in reversed(ROWS.items())}
    found = []
    for index in range(count):
        if index not in ROWS:
            failed = index == 5
            record = Record(index, f"no{index}", "", 9, "", "ok")
            record = record.with_outcome("fold", "failed" if failed else "skipped", "why")
        else:
            row = ROWS[index]
            first = None if firsts[row] == index else firsts[row]
            length = len(STRUCTURES[row].aatype)
            record = Record(index, NAMES[index], "", length, "", "ok", duplicate_of=first)
            record = record.with_outcome("fold", "ok")
        found.append(record)
    return found


@pytest.fixture
def inputs(tmp_path):
    entries = [RecordRow(NAMES[index], index, row) for index, row in ROWS.items()]
    write_arrays(tmp_path / "in.h5", STRUCTURES, entries, [1, 0, 3])
    write_records(tmp_path / "records.tsv", records(), ["fold"])
    return tmp_path


@pytest.fixture
def write(inputs, esm):
    """Write files into `out`; gives the folder."""

    def run(*flags: str, code: int = 0) -> Path:
        given = ("--quiet", f"--records={inputs / 'records.tsv'}", *flags)
        found, said = esm("structures", *given, inputs / "in.h5", inputs / "out")
        assert found == code, said
        return inputs / "out"

    return run


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "structures.tsv", newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t"))


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_table_has_every_record(write):
    rows = table(write())
    assert list(rows[0]) == list(STRUCTURE_COLUMNS)
    assert [int(row["index"]) for row in rows] == list(range(1_004))
    for row in rows:
        if int(row["index"]) not in ROWS:
            assert row["status"] in ("skipped", "failed")
            assert (row["reason"], row["length"]) == ("why", "9")
            assert {row[name] for name in STRUCTURE_COLUMNS[5:]} == {""}
    assert rows[5]["status"] == "failed"
    one, other, twin, far = (rows[index] for index in ROWS)
    assert one == {
        "index": "0",
        "id": "sp|P1|A",
        "status": "ok",
        "reason": "",
        "length": "3",
        "chains": "1",
        "plddt": f"{STRUCTURES[0].mean_plddt:.2f}",
        "ptm": f"{STRUCTURES[0].ptm:.4f}",
        "iptm": "",
        "num_recycles": "3",
        "chunk_size": "",
        "file": "structures/00000/0_sp_P1_A.pdb",
        "flags": "clashes",
        "num_conf": str((STRUCTURES[0].plddt[:, 1] > 70).sum()),
        "crc64": "72C336F000000000",
    }
    assert twin == one | {"index": "4", "id": "twin"}
    assert (other["chains"], other["iptm"]) == ("2", f"{STRUCTURES[1].iptm:.4f}")
    assert (far["file"], far["chunk_size"]) == ("structures/00001/1003_far.pdb", "128")
    assert far["flags"] == "clashes;long"


def rows_of(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text().splitlines()]


def test_flags_name_the_residues_concerned(inputs, write):
    """Of every record with a structure, the second of two that share one included."""
    found = replace(made_up("MKVUX"), mean_plddt=60.0, ptm=0.3)
    found.plddt[:, 1] = [10, 80, 60, 71, 0]
    flags = json.dumps(["low_plddt", "low_ptm", "replaced", "omitted"])
    entries = [RecordRow(NAMES[index], index, row) for index, row in ROWS.items()]
    write_arrays(inputs / "in.h5", [found, *STRUCTURES[1:]], entries, [15, 0, 0], flags=flags)
    header, *rows = rows_of(write() / "flags.tsv")
    assert header == list(FLAG_COLUMNS)
    wanted = [
        ["low_plddt", "A1,A3", "60.00"],
        ["low_ptm", "", "0.3000"],
        ["replaced", "A4", "U as C"],
        ["omitted", "A5", "X"],
    ]
    assert [row[2:] for row in rows[:4]] == wanted
    assert [row[2:] for row in rows[4:]] == wanted
    assert {tuple(row[:2]) for row in rows} == {("0", "sp|P1|A"), ("4", "twin")}


def test_what_is_truncated_or_too_large_for_pdb_is_flagged_with_its_reason(inputs, write):
    large = [made_up(*["G"] * 63), *STRUCTURES[1:]]
    entries = [RecordRow(NAMES[index], index, row) for index, row in ROWS.items()]
    write_arrays(inputs / "in.h5", large, entries)
    longer = [one._replace(length=70) if one.index == 1_003 else one for one in records()]
    longer = [one._replace(length=63) if one.index in (0, 4) else one for one in longer]
    write_records(inputs / "records.tsv", longer, ["fold"])
    out = write()
    rows = {(row[0], row[2]): row[3:] for row in rows_of(out / "flags.tsv")[1:]}
    why = "63 chains, a PDB file has names for 62"
    assert rows == {
        ("0", "not_pdb"): ["", why],
        ("4", "not_pdb"): ["", why],
        ("1003", "truncated"): ["A61-70", "70"],
    }
    assert table(out)[1_003]["flags"] == "truncated"


def test_one_residue_that_was_cut_off_is_no_range(inputs, write):
    whole = records()
    whole[1_003] = whole[1_003]._replace(length=61)
    write_records(inputs / "records.tsv", whole, ["fold"])
    rows = rows_of(write() / "flags.tsv")[1:]
    assert ["1003", "far", "truncated", "A61", "61"] in rows


def test_pairs_of_chains_have_their_confidence(inputs, write):
    one = made_up("GX", "AK", "W", seed=4)
    entries = [RecordRow(NAMES[index], index, row) for index, row in ROWS.items()]
    write_arrays(inputs / "in.h5", [STRUCTURES[0], one, STRUCTURES[2]], entries)
    header, *rows = rows_of(write() / "chain_pairs.tsv")
    assert header == list(PAIR_COLUMNS)
    error = to_angstrom(one.pae)
    places = {"A": [0], "B": [2, 3], "C": [4]}  # X has no atoms
    wanted = []
    for first, second in ("AB", "AC", "BC"):
        a, b = places[first], places[second]
        both = np.concatenate([error[np.ix_(a, b)].ravel(), error[np.ix_(b, a)].ravel()])
        iptm = one.chain_iptm["ABC".index(first), "ABC".index(second)]
        cells = [f"{iptm:.4f}", f"{both.mean():.2f}", f"{both.min():.2f}"]
        wanted.append(["2", "a/b", first, second, *cells])
    assert rows == wanted


def test_the_mmcif_names_the_file_of_its_aligned_errors(write):
    for flag, file, member in (
        ("--archive=false", "../../pae/00000/0_sp_P1_A.cif", None),
        ("--archive=true", "../pae/00000.tar", "00000/0_sp_P1_A.cif.gz"),
    ):
        out = write("--formats=cif", "--pae=cif", flag)
        text = read_structure(out / "structures.tsv", 0).decode()
        block = gemmi.cif.read_string(text).sole_block()
        assert block.find_value("_ma_entry_associated_files.file_url") == file
        assert block.find_value("_ma_associated_archive_file_details.file_path") == member
        formats = [
            block.find_value(f"_ma_{where}.file_format")
            for where in ("entry_associated_files", "associated_archive_file_details")
        ]
        assert formats == (["other", "other"] if member else ["cif", None])
        place = out / "structures" / ("." if member else "00000") / file
        told = read_member(place / member) if member else place.read_bytes()
        pairs = gemmi.cif.read_string(told.decode()).sole_block()
        assert len(pairs.find_values("_ma_qa_metric_local_pairwise.metric_value")) == 9
        assert pairs.name == block.name


def test_every_file_is_where_the_table_says_and_no_other(write):
    out = write("--formats=pdb,cif", "--pae=json,npz")
    stems = {"00000/0_sp_P1_A": 0, "00000/2_a_b": 1, "00001/1003_far": 2}
    wanted = {f"structures/{stem}.{kind}" for stem in stems for kind in ("pdb", "cif")}
    wanted |= {f"pae/{stem}.{kind}" for stem in stems for kind in ("json", "npz")}
    assert set(files(out)) == wanted | {*STRUCTURE_TABLES, ATLAS_TABLE, "structures.sha256"}
    for stem, row in stems.items():
        read = gemmi.read_structure(str(out / f"structures/{stem}.pdb"))
        assert len(read[0]) == len(STRUCTURES[row].ends)
        there = STRUCTURES[row].present
        expected = to_angstrom(STRUCTURES[row].pae[there][:, there])
        np.testing.assert_array_equal(read_pae(out / f"pae/{stem}.npz"), expected)
        assert np.abs(read_pae(out / f"pae/{stem}.json") - expected).max() < 0.051


def test_digests_are_those_of_all_files(write):
    for flags in (("--formats=pdb,cif", "--pae=json,npz"), ("--archive=true",), ("--pae=",)):
        out = write(*flags)
        command = ["sha256sum", "--check", "--strict", "--quiet", "structures.sha256"]
        ran = subprocess.run(command, cwd=out, capture_output=True, text=True)
        assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")
        listed = [
            one.split("  ")[1] for one in (out / "structures.sha256").read_text().splitlines()
        ]
        assert sorted([*listed, "structures.sha256", ATLAS_TABLE, *STRUCTURE_TABLES]) == files(out)


def test_processes_give_the_same_digests(write):
    one = (write("--threads=1") / "structures.sha256").read_bytes()
    assert (write("--threads=2") / "structures.sha256").read_bytes() == one


def test_arrays_that_were_changed_are_reported(inputs, esm):
    """Those that `aggregate` wrote, whose digest is beside the table of statuses."""
    status = inputs / "fold" / "status.tsv"
    status.parent.mkdir()
    status.write_text("index\tfold_status\tfold_reason\n")
    known = {"status.tsv": status, "../in.h5": inputs / "in.h5"}
    write_digests(status.with_name("digests.sha256"), known)
    with open(inputs / "in.h5", "ab") as file:
        file.write(b"x")
    command = ("structures", "--quiet", f"--records={inputs / 'records.tsv'}", f"--status={status}")
    code, lines = esm(*command, inputs / "in.h5", inputs / "out")
    assert (code, len(lines)) == (2, 1)
    assert "in.h5: damaged, its digest is not that in digests.sha256; remove it and run" in lines[0]


def test_the_first_format_is_the_one_in_the_table(write):
    assert table(write("--formats=cif,pdb"))[0]["file"].endswith("/0_sp_P1_A.cif")


def test_archives_hold_the_same_files(write):
    loose = write("--formats=pdb,cif")
    wanted = {name: (loose / name).read_bytes() for name in files(loose)}
    tables = sorted([*STRUCTURE_TABLES, ATLAS_TABLE, "structures.sha256"])
    for name in tables:
        del wanted[name]
    out = write("--formats=pdb,cif", "--archive=true")
    places = [
        f"{top}/{name}" for top in ("pae", "structures") for name in ("00000.tar", "index.tsv")
    ]
    assert files(out) == sorted([*tables, *places])
    found = {}
    for path in out.rglob("*.tar"):
        with tarfile.open(path) as archive:
            for name in archive.getnames():
                data = gzip.decompress(archive.extractfile(name).read())
                found[f"{path.parent.name}/{name.removesuffix('.gz')}"] = data
    assert found == wanted
    assert table(out)[0]["file"] == "structures/00000.tar/00000/0_sp_P1_A.pdb.gz"
    for key in ("twin", 4, 0, "sp|P1|A"):
        text = read_structure(out / "structures.tsv", key)
        assert text == wanted["structures/00000/0_sp_P1_A.pdb"]


@pytest.mark.parametrize("flag", ["--archive=false", "--archive=true"])
def test_any_number_of_processes_gives_the_same_bytes(write, flag):
    def contents():
        return {name: (out / name).read_bytes() for name in files(out)}

    out = write(flag)
    wanted = contents()
    write(flag, "--threads=2")
    assert contents() == wanted


def test_former_files_are_replaced(write):
    out = write("--formats=cif")
    write("--formats=pdb")
    assert not [name for name in files(out) if name.endswith(".cif")]
    assert [name for name in os.listdir(out) if name.startswith(".")] == []


def test_files_of_others_are_left_alone(write, inputs, esm):
    (inputs / "out" / "structures").mkdir(parents=True)
    (inputs / "out" / "structures" / "mine.pdb").touch()
    given = ("--quiet", f"--records={inputs / 'records.tsv'}", inputs / "in.h5", inputs / "out")
    code, said = esm("structures", *given)
    assert (code, len(said)) == (2, 1)
    assert "holds 'mine.pdb', which `fold` did not write" in said[0]
    assert files(inputs / "out") == ["structures/mine.pdb"]


def test_what_a_killed_process_left_is_removed(write, inputs):
    left = inputs / "out" / f".structures.{socket.gethostname()[:64]}-999999999.abcdefgh"
    (left / "00000").mkdir(parents=True)
    (left / "00000" / "0_a.pdb").touch()
    write()
    assert not left.exists()


def test_an_error_leaves_all_as_it_was(write, inputs, monkeypatch):
    out = write()
    before = {name: (out / name).read_bytes() for name in files(out)}

    def fail(*_):
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(structures, "json_bytes", fail)
    monkeypatch.setitem(structures.PAE_BYTES, "json", fail)
    write(code=2)
    assert {name: (out / name).read_bytes() for name in files(out)} == before
    assert [name for name in os.listdir(out) if name.startswith(".")] == []


@pytest.mark.parametrize("kind", ["pdb", "cif"])
def test_what_biotite_cannot_write_is_one_line(inputs, esm, monkeypatch, kind):
    def fail(*arguments: object, **named: object) -> None:
        raise BadStructureError("3 pre-decimal columns\nfor B-factor")

    monkeypatch.setattr(texts, f"{kind}_text", fail)
    given = ("--quiet", f"--records={inputs / 'records.tsv'}", f"--formats={kind}")
    code, said = esm("structures", *given, inputs / "in.h5", inputs / "out")
    assert (code, len(said)) == (2, 1)
    assert f"cannot be written as {kind} (3 pre-decimal columns for B-factor); fold it" in said[0]
    assert not (inputs / "out" / "structures.tsv").exists()


def test_a_table_vouches_for_the_files_beside_it(write, inputs, monkeypatch):
    """Cut off while the folders are moved, no table of the former run is left."""
    out = write("--formats=cif")
    move = os.replace

    def replace(source, target):
        if Path(target).name == "structures":
            raise OSError(28, "No space left on device", "somewhere")
        move(source, target)

    monkeypatch.setattr(os, "replace", replace)
    write("--formats=pdb", code=2)
    assert not (out / "structures.tsv").exists()


def test_random_weights_are_reported_in_every_file(inputs, write):
    entries = [RecordRow(NAMES[index], index, row) for index, row in ROWS.items()]
    flags = json.dumps(["random_weights"])
    attributes = {"random_weights": "true", "flags": flags}
    write_arrays(inputs / "in.h5", STRUCTURES, entries, [1, 1, 1], **attributes)
    out = write("--formats=pdb,cif")
    for name in files(out):
        if name.startswith("structures/"):
            text = (out / name).read_text().replace("\nREMARK 220", "")
            assert MEANINGLESS in " ".join(text.split())
    assert {row["flags"] for row in table(out) if row["file"]} == {"random_weights"}
    write_arrays(inputs / "in.h5", STRUCTURES, entries)
    text = (write() / "structures/00000/2_a_b.pdb").read_text()
    assert "RANDOM" not in text.upper()


def test_what_does_not_fit_into_pdb_becomes_mmcif_and_is_flagged(inputs, write):
    large = [made_up(*["G"] * 63), *STRUCTURES[1:]]
    entries = [RecordRow(NAMES[index], index, row) for index, row in ROWS.items()]
    write_arrays(inputs / "in.h5", large, entries)
    out = write()
    row = table(out)[0]
    assert (row["file"], row["flags"]) == ("structures/00000/0_sp_P1_A.cif", "not_pdb")
    assert table(out)[2]["flags"] == ""
    assert (out / row["file"]).exists()
    assert table(write("--formats=cif"))[0]["flags"] == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found[:-1], r"holds record 1003, which is not in the table"),
        (
            lambda found: [found[1]._replace(index=0), *found[1:]],
            "differ from those of the table, first at record 2",
        ),
        (
            lambda found: [*found[:3], found[2]._replace(index=3), *found[4:]],
            "differ from those of the table, first at record 3",
        ),
        (
            lambda found: [*found, found[0]._replace(index=1_004)],
            "differ from those of the table, first at record 1004",
        ),
    ],
)
def test_records_of_another_run_are_reported(inputs, esm, change, message):
    write_records(inputs / "records.tsv", change(records()), ["fold"])
    given = ("--quiet", f"--records={inputs / 'records.tsv'}", inputs / "in.h5", inputs / "out")
    code, said = esm("structures", *given)
    assert (code, len(said)) == (2, 1)
    assert message in said[0]
    assert files(inputs / "out") == []


def test_records_without_fold_are_reported(inputs, esm):
    plain = [record._replace(outcomes={}) for record in records()]
    write_records(inputs / "records.tsv", plain)
    given = ("--quiet", f"--records={inputs / 'records.tsv'}", inputs / "in.h5", inputs / "out")
    code, said = esm("structures", *given)
    assert (code, len(said)) == (2, 1)
    assert "record 0 has no outcome of fold" in said[0]


def test_nothing_to_write(inputs, esm):
    write_arrays(inputs / "in.h5", [], [])
    write_records(inputs / "records.tsv", [], ["fold"])
    given = (f"--records={inputs / 'records.tsv'}", inputs / "in.h5", inputs / "out")
    code, said = esm("structures", *given)
    assert (code, said[0][:25]) == (0, "structures: 0 written, 0.")
    assert table(inputs / "out") == []
    assert (inputs / "out" / "structures").is_dir()


def mark(job: structures.WriteJob) -> WrittenGroup:
    """Stands for `write_group`: slow, and leaves a mark."""
    time.sleep(0.2)
    (job.structures / str(job.group[0].first)).touch()
    return WrittenGroup("", "", {}, None)


def test_an_error_cancels_the_folders_that_wait(tmp_path, monkeypatch):
    """As an interruption does: processes end what they have begun, and begin nothing more."""

    @contextmanager
    def interrupted(*arguments, **options):
        def advance(count):
            raise KeyboardInterrupt

        yield advance

    monkeypatch.setattr(structures, "write_group", mark)
    monkeypatch.setattr(structures, "progress", interrupted)
    places = [[structures.StoredStructure(row, row, "")] for row in range(40)]
    jobs = [structures.WriteJob(tmp_path, one, tmp_path, tmp_path, None) for one in places]
    collector = Collector({}, None, 1_000)
    with pytest.raises(KeyboardInterrupt):
        structures.write_groups(jobs, 2, io.StringIO(), io.StringIO(), collector, quiet=True)
    assert 0 < len(list(tmp_path.iterdir())) < 20


def test_a_pool_that_is_ended_says_nothing(monkeypatch, capsys):
    """A thread of it may want to tell a cancelled job that its process is gone."""

    class Pool:
        def __init__(self, *arguments, **options):
            pass

        def map(self, *arguments):
            return iter(())

        def shutdown(self, **options):
            for error in (InvalidStateError("cancelled"), ValueError("unforeseen")):
                threading.excepthook(
                    threading.ExceptHookArgs((type(error), error, None, threading.current_thread()))
                )

    monkeypatch.setattr(structures, "ProcessPoolExecutor", Pool)
    hook = threading.excepthook
    with pytest.raises(KeyboardInterrupt), structures.in_processes(2, []):
        raise KeyboardInterrupt
    assert threading.excepthook is hook
    said = capsys.readouterr().err
    assert "unforeseen" in said
    assert "cancelled" not in said
