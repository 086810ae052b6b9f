"""Lines above the column names that begin with `#`: AlphaMissense's, VEP's; kept, never read."""

from __future__ import annotations

import gzip
from pathlib import Path

import pandas as pd
import pytest

from esm_pipeline.errors import InputError
from esm_pipeline.formats.tables import text as text_tables
from esm_pipeline.formats.tables.base import Column, suffix_of
from esm_pipeline.formats.tables.open import create_table, open_table

ALPHAMISSENSE = """\
# Copyright 2023 DeepMind Technologies Limited
#
# Licensed under CC BY-NC-SA 4.0 license
uniprot_id\tprotein_variant\tam_pathogenicity
A0A024R1R8\tM1A\t0.467
A0A024R1R8\tM1C\t0.3829
"""
VEP = """\
## ENSEMBL VARIANT EFFECT PREDICTOR v110.1
## Output produced at 2023-10-01 12:00:00
## Column descriptions:
## Uploaded_variation : Identifier of uploaded variant
#Uploaded_variation\tProtein_position\tAmino_acids
rs1\t2\tS/A
rs2\t-\t-
"""
HG38 = "# Copyright\n\n#CHROM\tPOS\tprotein_variant\nchr1\t69094\tV2L\nchr1\t69095\tV2M\n"


def copy(source: Path, target: Path, wanted: list[str]) -> list[list[str]]:
    """Copy a table with a column added; gives the wanted cells."""
    table = open_table(source)
    cells = []
    with create_table(target, suffix_of(target), table, [Column("status", "text")]) as writer:
        for block in table.blocks(wanted):
            writer.write(block, [["ok"] * block.count])
            cells += block.cells
    return cells


CASES = {
    "alphamissense": (ALPHAMISSENSE, ["protein_variant"], [["M1A"], ["M1C"]], 3),
    "vep": (VEP, ["Uploaded_variation", "Amino_acids"], [["rs1", "S/A"], ["rs2", "-"]], 4),
    "vep, by its own name": (VEP, ["#Uploaded_variation"], [["rs1"], ["rs2"]], 4),
    "hg38": (HG38, ["CHROM", "protein_variant"], [["chr1", "V2L"], ["chr1", "V2M"]], 2),
    "names alone": ("#a\tb\n1\t2\n", ["a", "b"], [["1", "2"]], 0),
    "no rows": ("## x\n#a\tb\n", ["a", "b"], [], 1),
    "a comma in a comment": ("# a, b\nx\ty\n1\t2\n", ["x"], [["1"]], 1),
    "a comment without a blank": ("#made by me\nx\ty\n1\t2\n", ["x"], [["1"]], 1),
    "a column": ("# c\nx\n1\n", ["x"], [["1"]], 1),
    "a column behind a hash": ("#x\n1\n", ["x"], [["1"]], 0),
    "a quoted tab": ("#a\tb\n'1'\t\"2\t3\"\n", ["b"], [["2\t3"]], 0),
    "a quote in a comment": ('# "open\nx\ty\n1\t2\n', ["x"], [["1"]], 1),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("packed", [True, False])
def test_comments_stay_on_top(tmp_path, name, end, mark, packed):
    text, wanted, cells, above = CASES[name]
    content = (mark + text.replace("\n", end)).encode()
    source = tmp_path / ("in.tsv.gz" if packed else "in.tsv")
    source.write_bytes(gzip.compress(content) if packed else content)
    assert copy(source, tmp_path / "out.tsv", wanted) == cells
    lines = text.splitlines()
    rows = [f"{line}\t{'status' if not at else 'ok'}" for at, line in enumerate(lines[above:])]
    expected = "".join(f"{line}{end}" for line in [*lines[:above], *rows])
    assert (tmp_path / "out.tsv").read_bytes().decode() == expected
    again = open_table(tmp_path / "out.tsv")
    assert again.columns[-1] == "status"
    assert [row for block in again.blocks(wanted) for row in block.cells] == cells


def test_comments_in_other_formats(tmp_path):
    source = tmp_path / "in.tsv"
    source.write_text(ALPHAMISSENSE)
    copy(source, tmp_path / "out.csv", [])
    copy(source, tmp_path / "out.parquet", [])
    text = (tmp_path / "out.csv").read_text().splitlines()
    assert text[:4] == [*ALPHAMISSENSE.splitlines()[:3], "uniprot_id,protein_variant,am_patho" + (
        "genicity,status"
    )]  # fmt: skip
    frames = [
        pd.read_csv(tmp_path / "out.csv", comment="#"),
        pd.read_parquet(tmp_path / "out.parquet"),
    ]
    assert frames[0].astype(str).equals(frames[1].astype(str))


def test_an_old_mac(tmp_path):
    source = tmp_path / "in.tsv"
    source.write_bytes(ALPHAMISSENSE.replace("\n", "\r").encode())
    assert copy(source, tmp_path / "out.tsv", ["protein_variant"]) == [["M1A"], ["M1C"]]


BAD = {
    "only.tsv": ("# a\n# b\n", ":3: no column names; begin with a line of them"),
    "ragged.tsv": (f"{ALPHAMISSENSE}x\n", ":7: 1 cell under 3 columns; quote a cell"),
    "below.tsv": (
        f"{ALPHAMISSENSE}# the end\n",
        ":7: 1 cell under 3 columns; comments can stand above the column names only: move or",
    ),
    "many.tsv": ("# x\n" * 10_001, ": more than 10,000 lines of comments; cut them"),
}


@pytest.mark.parametrize("name", BAD)
def test_lines_are_counted_with_the_comments(tmp_path, name):
    text, told = BAD[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as refused:
        for _ in open_table(tmp_path / name).blocks([]):
            pass
    assert told in str(refused.value)
    assert text_tables.MOST_LINES == 10_000
