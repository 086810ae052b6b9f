"""Residues that are none of the 20 amino acids: folded as others, or left out, and always said."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from esm_pipeline.formats.records import Outcome, read_records
from tests.folded import read_pae

FASTA = """\
>unusual
MBUZOXBU
>complex
MKX:OAX
>only B
BB
>only X
XX
"""
SET = "(set --ambiguous to approximate to fold {} as {})"


@pytest.fixture
def fold(esm, tmp_path):
    """Fold the records above with the demo model; gives the folder and the outcomes."""

    def run(*flags: str) -> tuple[Path, dict[str, Outcome]]:
        (tmp_path / "in.fasta").write_text(FASTA)
        given = ("--model=demo", "--num-recycles=0", "--pae=npz", "--quiet", *flags)
        assert esm("fold", *given, tmp_path / "in.fasta", tmp_path / "out") == (0, [])
        records = read_records(tmp_path / "out.records.tsv")
        return tmp_path / "out", {record.header: record.outcomes["fold"] for record in records}

    return run


def flags_of(folder: Path) -> dict[str, list[tuple[str, str, str]]]:
    """What flags.tsv says of residues, by the index of the record."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    with open(folder / "flags.tsv", newline="") as handle:
        for row in csv.DictReader(handle, delimiter="\t"):
            if row["flag"] in ("replaced", "omitted"):
                cells = (row["flag"], row["residues"], row["value"])
                found.setdefault(row["index"], []).append(cells)
    return found


def test_without_a_setting_b_and_z_are_left_out(fold):
    out, found = fold()
    assert found["unusual"].reason.split("; ") == [
        f"B at residue 2 and 1 more left out, without atoms {SET.format('B', 'D')}",
        "O at residue 5 folded as K",
        "U at residue 3 and 1 more folded as C",
        "X at residue 6 left out, without atoms",
        f"Z at residue 4 left out, without atoms {SET.format('Z', 'E')}",
    ]
    assert found["complex"].reason == (
        "O at residue 1 of chain 2 folded as K; "
        "X at residue 3 of chain 1 and 1 more left out, without atoms"
    )
    assert {found[name].status for name in ("only B", "only X")} == {"skipped"}
    assert flags_of(out) == {
        "0": [
            ("replaced", "A5", "O as K"),
            ("replaced", "A3,A8", "U as C"),
            ("omitted", "A2,A7", "B"),
            ("omitted", "A6", "X"),
            ("omitted", "A4", "Z"),
        ],
        "1": [("replaced", "B1", "O as K"), ("omitted", "A3,B3", "X")],
    }
    assert read_pae(out / "pae/00000/0_unusual.npz").shape == (4, 4)
    assert read_pae(out / "pae/00000/1_complex.npz").shape == (4, 4)


def test_b_and_z_are_folded_where_the_user_says_so(fold):
    out, found = fold("--ambiguous=approximate")
    assert found["unusual"].reason == (
        "B at residue 2 and 1 more folded as D; O at residue 5 folded as K; "
        "U at residue 3 and 1 more folded as C; X at residue 6 left out, without atoms; "
        "Z at residue 4 folded as E"
    )
    assert found["only B"] == Outcome("ok", "B at residue 1 and 1 more folded as D")
    assert found["only X"].status == "skipped"
    assert ("replaced", "A2,A7", "B as D") in flags_of(out)["0"]
    assert read_pae(out / "pae/00000/0_unusual.npz").shape == (7, 7)


def test_what_is_cut_off_is_not_told(fold):
    out, found = fold("--max-residues=3", "--long=truncate")
    assert found["unusual"].reason.split("; ") == [
        "truncated to the first 3 residues",
        f"B at residue 2 left out, without atoms {SET.format('B', 'D')}",
        "U at residue 3 folded as C",
    ]
    assert ("replaced", "A3", "U as C") in flags_of(out)["0"]
    with open(out / "flags.tsv", newline="") as handle:
        rows = [row for row in csv.DictReader(handle, delimiter="\t") if row["flag"] == "truncated"]
    assert [(row["index"], row["residues"], row["value"]) for row in rows] == [("0", "A4-8", "8")]
    assert found["complex"].status == "skipped", "a complex is never cut"
