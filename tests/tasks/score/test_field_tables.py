"""Tables from the field: scored like the plain notation, or refused with the setting to use."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from tests.tasks.score.scoring import MARGINAL, WILD_TYPE, mutants, rows_of, run

BLAT = "sp|P62593|BLAT_TEST"
PLAIN = ["K2L", "T3S", "A4A", "Q9Q"]
"""The variants in the first rows of all tables below."""

ALPHAMISSENSE = (
    "# Copyright 2023 DeepMind Technologies Limited\n#\n# Licensed, under CC BY-NC-SA 4.0\n"
    "uniprot_id\tprotein_variant\tam_pathogenicity\n"
    + "".join(f"P62593\t{text}\t0.5\n" for text in PLAIN)
    + "P38398\tK2L\t0.5\n"
)
VEP = (
    "## ENSEMBL VARIANT EFFECT PREDICTOR v110.1\n"
    "#Uploaded_variation\tFeature\tConsequence\tProtein_position\tAmino_acids\tExtra\n"
    "rs1\tENST1\tmissense_variant\t2\tK/L\t-\n"
    "rs2\tENST1\tmissense_variant\t3/22\tT/S\t-\n"
    "rs3\tENST1\tsynonymous_variant\t4\tA\t-\n"
    "rs4\tENST1\tsynonymous_variant\t9\tQ\t-\n"
    "rs5\tENST1\tintron_variant\t-\t-\t-\n"
    "rs6\tENST1\tstop_gained\t2\tK/*\t-\n"
    "rs7\tENST1\tinframe_insertion\t2-3\t-/L\t-\n"
    "rs8\tENST1\tcoding_sequence_variant\t?-3\tT/S\t-\n"
)
CLINVAR = "#AlleleID\tName\tGeneSymbol\n" + "".join(
    f"{at}\tNM_000518.5(HBB):c.{at}A>T ({text})\tHBB\n"
    for at, text in enumerate(["p.Lys2Leu", "p.Thr3Ser", "p.Ala4=", "p.Gln9=", "p.Lys2Ter"])
)
CLINVAR += "9\tNM_000518.5(HBB):c.9-5A>T\tHBB\n"
SEQUENCES = [
    *(WILD_TYPE.replace("MKT", "MLT"), WILD_TYPE.replace("MKT", "MKS"), WILD_TYPE, WILD_TYPE)
]
COLUMNS = "wt,pos,mt\nK,2,L\nThr,3.0,Ser\nA,4,=\nQ,9,Q\nK,3,L\n,5,A\n"

TABLES = {
    "alphamissense": (
        ALPHAMISSENSE,
        ["--mutation-col", "protein_variant", "--protein-col", "uniprot_id"],
        ["no protein 'P38398' among the wild types"],
    ),
    "vep": (
        VEP,
        ["--position-col", "Protein_position", "--mutant-aa-col", "Amino_acids"],
        [
            "no position; the variant changes no residue",
            "mutation 'K2*' is a stop",
            "no residue of the wild type to compare",
            "position '?-3' is not known exactly",
        ],
    ),
    "clinvar": (
        CLINVAR,
        ["--mutation-col", "Name", "--protein", "P62593"],
        ["mutation 'Lys2Ter' is a stop", "mutation 'NM_000518.5(HBB):c.9-5A>T' is a change of DNA"],
    ),
    "sequences": (
        "mutant\n" + "\n".join(SEQUENCES) + "\nK2L\n",
        ["--mutated-sequence-col", "mutant"],
        ["a mutation, not a sequence; name its column by --mutation-col"],
    ),
    "columns": (
        COLUMNS,
        ["--wild-type-aa-col", "wt", "--position-col", "pos", "--mutant-aa-col", "mt"],
        ["residue 3 is T, not K", "no residue of the wild type to compare"],
    ),
    "with names": (
        "mutant\n" + "".join(f"P62593:{text}\n" for text in PLAIN) + "P38398:K2L\n",
        [],
        ["no protein 'P38398' among the wild types"],
    ),
}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("name", TABLES)
def test_they_give_what_the_plain_notation_gives(esm, rotary, files, tmp_path, name, kind):
    fasta, table, out = files({BLAT: WILD_TYPE}, mutants(*PLAIN))
    wanted = [row[MARGINAL] for row in run(esm, rotary, fasta, table, out)[2]]
    assert wanted[0] != wanted[1] != wanted[2] == wanted[3] == "0.000000"
    text, arguments, reasons = TABLES[name]
    table = tmp_path / ("in.tsv" if "\t" in text else "in.csv")
    table.write_text(text)
    if kind == "parquet":
        above = text.startswith("# ") * 3 + text.startswith("## ")
        delimiter = "\t" if "\t" in text else ","
        frame = pd.read_csv(table, sep=delimiter, skiprows=above, keep_default_na=False)
        table = tmp_path / "in.parquet"
        frame.rename(columns=lambda one: one.removeprefix("#")).to_parquet(table)
    code, message, rows = run(esm, rotary, fasta, table, out, *arguments)
    assert code == 0, message
    if kind == "csv" and text.startswith("#"):
        lines = out.read_text().splitlines()
        comments = [line for line in text.splitlines() if re.match("#($|[ #])", line)]
        assert lines[: len(comments)] == comments
        out.write_text("\n".join(lines[len(comments) :]) + "\n")
        rows = rows_of(out)
    assert [row[MARGINAL] for row in rows[: len(PLAIN)]] == wanted
    assert [row["status"] for row in rows] == ["ok"] * len(PLAIN) + ["skipped"] * len(reasons)
    for row, reason in zip(rows[len(PLAIN) :], reasons, strict=True):
        assert row["reason"].startswith(reason)


SUGGESTED = {
    "alphamissense": "'am_pathogenicity'; set --mutation-col to 'protein_variant' and "
    "--protein-col to 'uniprot_id'",
    "vep": "'Extra'; set --position-col to 'Protein_position' and --mutant-aa-col to 'Amino_acids'",
    "clinvar": "'GeneSymbol'; set --mutation-col to 'Name'",
    "columns": "'mt'; set --position-col to 'pos' and --wild-type-aa-col to 'wt' and "
    "--mutant-aa-col to 'mt'",
}


@pytest.mark.parametrize("name", SUGGESTED)
def test_what_reads_a_table_is_suggested(esm, rotary, files, tmp_path, name):
    """Suggested by the cells, where no column is called 'mutant'; with the setting, it is read."""
    fasta, _, out = files({BLAT: WILD_TYPE}, mutants("K2L"))
    text = TABLES[name][0]
    table = tmp_path / ("in.tsv" if "\t" in text else "in.csv")
    table.write_text(text)
    code, message, _ = run(esm, rotary, fasta, table, out)
    assert code == 2
    assert f"{table.name}: no column 'mutant'; it has" in message
    assert message.endswith(SUGGESTED[name])


def test_sequences_are_suggested(esm, rotary, files):
    rows = [{"target": WILD_TYPE, "variant": one, "n": "1.5"} for one in SEQUENCES]
    fasta, table, out = files({BLAT: WILD_TYPE}, rows)
    message = run(esm, rotary, fasta, table, out)[1]
    assert message.endswith(
        "it has 'target', 'variant', 'n'; set --mutated-sequence-col to 'variant'"
    )
    fasta, table, out = files({BLAT: WILD_TYPE}, [{"x": "1.5"}])
    assert run(esm, rotary, fasta, table, out)[1].endswith("no column 'mutant'; it has 'x'")
    fasta, table, out = files({BLAT: WILD_TYPE}, mutants("K2L", acc="P62593"))
    message = run(esm, rotary, fasta, table, out, "--protein-col", "uniprot")[1]
    assert message.endswith(
        "no column 'uniprot'; it has 'mutant', 'acc'; set --protein-col to 'acc'"
    )


@pytest.mark.parametrize(
    ("column", "cells", "reason"),
    [
        ("mutant", [WILD_TYPE], "looks like a whole sequence; name its column by --mutated-seq"),
        ("Amino_acids", ["K/L"], "name the columns of both by --position-col and --mutant-aa-col"),
        ("Protein_position", ["2", "2-3"], "by --position-col and --mutant-aa-col"),
    ],
)
def test_a_column_that_is_not_of_mutations(esm, rotary, files, column, cells, reason):
    fasta, table, out = files({BLAT: WILD_TYPE}, [{column: cell} for cell in cells])
    code, _, rows = run(esm, rotary, fasta, table, out, "--mutation-col", column)
    assert code == 0
    assert all(reason in row["reason"] for row in rows)


def test_an_offset_of_numbers_in_a_column(esm, rotary, files):
    rows = [{"p": str(at + 24), "a": f"{one}/W"} for at, one in enumerate(WILD_TYPE)]
    fasta, table, out = files({BLAT: WILD_TYPE}, rows)
    columns = ("--position-col", "p", "--mutant-aa-col", "a")
    found = run(esm, rotary, fasta, table, out, *columns)[2]
    assert "an offset of 23 fits 22 of 22 rows of this protein, set --offset" in found[0]["reason"]
    found = run(esm, rotary, fasta, table, out, *columns, "--offset", "23")[2]
    assert {row["status"] for row in found} == {"ok"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--position-col=p"], "--position-col and --mutant-aa-col go together"),
        (["--mutant-aa-col=p"], "--position-col and --mutant-aa-col go together"),
        (["--wild-type-aa-col=p"], "--wild-type-aa-col needs --position-col and --mutant-aa-col"),
        (
            ["--position-col=p", "--mutant-aa-col=a", "--mutated-sequence-col=s"],
            "--position-col and --mutated-sequence-col exclude each other; choose one",
        ),
    ],
)
def test_columns_that_do_not_go_together(esm, rotary, files, arguments, message):
    fasta, table, out = files({BLAT: WILD_TYPE}, mutants("K2L"))
    code, line, _ = run(esm, rotary, fasta, table, out, *arguments)
    assert (code, message in line) == (2, True), line


def test_positions_in_the_protein_are_suggested(esm, rotary, files):
    row = {
        "cDNA_position": "20",
        "CDS_position": "5",
        "Protein_position": "2",
        "Amino_acids": "K/L",
    }
    message = run(esm, rotary, *files({BLAT: WILD_TYPE}, [row]))[1]
    assert message.endswith(
        "--position-col to 'Protein_position' and --mutant-aa-col to 'Amino_acids'"
    )
    del row["Protein_position"]
    message = run(esm, rotary, *files({BLAT: WILD_TYPE}, [row]))[1]
    assert "--position-col" not in message


def test_hints_for_clinvar_lead_to_scores(esm, rotary, files, tmp_path):
    fasta, _, out = files({f"{BLAT} Lactamase GN=HBB PE=1": WILD_TYPE}, mutants("K2L"))
    table = tmp_path / "in.tsv"
    table.write_text(CLINVAR + "10\tNM_000558.5(HBA1):c.20A>T (p.Lys2Leu)\tHBA1\n")
    message = run(esm, rotary, fasta, table, out)[1]
    assert message.endswith("set --mutation-col to 'Name' and --protein-col to 'GeneSymbol'")
    options = ("--mutation-col", "Name")
    message = run(esm, rotary, fasta, table, out, *options)[1]
    assert "column 'GeneSymbol' names 'HBB' and 'HBA1', but the only wild type" in message
    assert "set --protein-col to 'GeneSymbol', or --protein" in message
    out = tmp_path / "out.tsv"
    found = run(esm, rotary, fasta, table, out, *options, "--protein-col", "GeneSymbol")[2]
    assert [row["status"] for row in found] == ["ok"] * 4 + ["skipped"] * 3
    assert found[-1]["reason"] == "no protein 'HBA1' among the wild types; check the name"


@pytest.mark.parametrize("text", ["E7V\nK2L\n", "E7V\n", "P62593,p.Lys2Leu\nP62593,K2L\n"])
def test_a_table_without_column_names(esm, rotary, files, text):
    fasta, table, out = files({BLAT: WILD_TYPE}, mutants("K2L"))
    table.write_text(text)
    code, message, _ = run(esm, rotary, fasta, table, out)
    first = text.splitlines()[0].split(",")[-1]
    assert code == 2
    assert message.endswith(
        f"in.csv: its first line has {first!a}, so it has no line of column names; add one, in "
        "which 'mutant' names the column to read"
    )
