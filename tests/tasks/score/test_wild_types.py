"""The wild type of each row: from FASTA, columns and reference tables; and the offset that fits."""

from __future__ import annotations

import pandas as pd
import pytest

from esm_pipeline.formats.records import read_records
from tests.tasks.score.scoring import (
    MARGINAL,
    OTHER,
    WILD_TYPE,
    mutants,
    passes,
    rows_of,
    run,
    shifted,
)

PROTEINS = {"sp|P1|ONE": WILD_TYPE, "two": OTHER, "gap": "MK-V", "again": WILD_TYPE, "ab": "MKMK"}


def test_a_column_names_the_protein(esm, rotary, files):
    named = {"P1": "K2L", "ONE": "K2L", "sp|P1|ONE": "K2L", "again": "K2L", "two": "A2L"}
    bad = {"gap": "M1A", "none": "M1A", "": "K2L"}
    given = [{"mutant": text, "protein": name} for name, text in (named | bad).items()]
    fasta, table, out = files(PROTEINS, given, "tsv")
    code, message, rows = run(esm, rotary, fasta, table, out)
    assert code == 0
    assert passes(message) == 2, "the same protein under four names is one"
    by_name = {row["protein"]: row for row in rows}
    assert len({by_name[name][MARGINAL] for name in ("P1", "ONE", "sp|P1|ONE", "again")}) == 1
    assert by_name["two"]["status"] == "ok"
    assert by_name["gap"]["reason"].startswith("the wild type cannot be used: gap '-' at residue 3")
    assert by_name["none"]["reason"] == "no protein 'none' among the wild types; check the name"
    assert by_name[""]["reason"] == "column 'protein' is empty; name the protein in it"
    alone = {name: text for name, text in named.items() if name != "two"}
    fasta, table, out = files({"x": WILD_TYPE}, mutants(*alone.values()))
    score = float(run(esm, rotary, fasta, table, out)[2][0][MARGINAL])
    assert score == pytest.approx(float(by_name["P1"][MARGINAL]), abs=1e-5)


def test_other_names_of_columns(esm, rotary, files):
    given = [{"acc": "two", "change": "A2L", "protein": "?"}, {"acc": "again", "change": "K2L"}]
    fasta, table, out = files(PROTEINS, given)
    arguments = ["--protein-col", "acc", "--mutation-col", "change"]
    assert [row["status"] for row in run(esm, rotary, fasta, table, out, *arguments)[2]] == [
        "ok",
        "ok",
    ]
    code, message, _ = run(esm, rotary, fasta, table, out, "--mutation-col", "chnage")
    assert code == 2
    assert (
        "no column 'chnage'; it has 'acc', 'change', 'protein'; set --mutation-col to 'change'"
        in message
    )
    arguments = ["--mutation-col", "change", "--protein", "two"]
    found = run(esm, rotary, fasta, table, out, *arguments)[2]
    assert [row["status"] for row in found] == ["ok", "skipped"]
    code, message, _ = run(esm, rotary, fasta, table, out, *arguments[:3], "three")
    assert code == 2
    assert "no protein 'three' among the wild types" in message


def test_several_proteins_need_a_column(esm, rotary, files):
    fasta, table, out = files(PROTEINS, mutants("K2L", acc="P1"))
    code, message, _ = run(esm, rotary, fasta, table, out)
    assert code == 2
    assert "no column 'protein', but there are 5 proteins; set --protein-col to 'acc'" in message


def test_an_id_of_several_proteins(esm, rotary, files):
    fasta, table, out = files({"a": WILD_TYPE}, [{"mutant": "K2L", "protein": "a"}])
    fasta.write_text(f">a\n{WILD_TYPE}\n>a\n{WILD_TYPE}\n>b|x\n{OTHER}\n>c|x\nMKV\n>d|x\nMKV\n")
    rows = [
        {"mutant": text, "protein": n} for n, text in (("a", "K2L"), ("x", "M1A"), ("b", "G1A"))
    ]
    pd.DataFrame(rows).to_csv(table, index=False)
    found = run(esm, rotary, fasta, table, out)[2]
    assert [row["status"] for row in found] == ["ok", "skipped", "ok"]
    assert found[1]["reason"] == "'x' names several wild types; give each a name of its own"


def test_wild_types_in_a_column(esm, rotary, files, tmp_path):
    rows = [
        {"mutant": "K2L", "target_seq": WILD_TYPE},
        {"mutant": "A2L", "target_seq": OTHER},
        {"mutant": "K2L", "target_seq": WILD_TYPE.lower()},
        {"mutant": "K2L", "target_seq": "MK-V"},
        {"mutant": "K2S", "target_seq": WILD_TYPE},
    ]
    _, table, out = files({}, rows)
    arguments = ("--sequence-col", "target_seq", "--variants", table, out)
    code, lines = esm("score", "--model", rotary, *arguments)
    assert code == 0
    assert passes(lines[-1]) == 2
    found = rows_of(out)
    assert [row["status"] for row in found] == ["ok", "ok", "ok", "skipped", "ok"]
    assert found[0][MARGINAL] == found[2][MARGINAL] != found[1][MARGINAL]
    assert found[3]["reason"].startswith("the wild type cannot be used: gap")
    records = list(read_records(tmp_path / "out.records.tsv"))
    assert [record.status for record in records] == ["ok", "ok", "ok", "skipped"]
    assert records[2].duplicate_of == 0
    code, lines = esm("score", "--model", rotary, "--variants", table, out)
    assert code == 2
    assert "where are the wild types? give a FASTA file, or set --sequence-col" in lines[0]
    (tmp_path / "wt.fasta").write_text(">a\nMKV\n")
    both = (*arguments[:4], tmp_path / "wt.fasta", out)
    code, lines = esm("score", "--model", rotary, *both)
    assert code == 2
    assert "wild types in a FASTA, and in a column by --sequence-col; leave out one" in lines[0]


def test_proteingyms_files(esm, rotary, files, tmp_path):
    """An assay, and the reference file with its wild type."""
    rows = mutants("K2L", "K2S:T3A", DMS_score="0.5", DMS_score_bin="1")
    sequences = ["MLTAYIAKQRQISFVKSHFSRQ", "MSAAYIAKQRQISFVKSHFSRQ"]
    rows = [{**row, "mutated_sequence": one} for row, one in zip(rows, sequences, strict=True)]
    fasta, table, out = files({"a": WILD_TYPE}, rows)
    reference = tmp_path / "DMS_substitutions.csv"
    names = {"DMS_id": ["OTHER_X", "BLAT_X"], "target_seq": [OTHER, WILD_TYPE]}
    pd.DataFrame(names).to_csv(reference)
    columns = ["--protein-col", "DMS_id", "--sequence-col", "target_seq"]
    one = run(esm, rotary, fasta, table, out)[2]
    two = run(esm, rotary, reference, table, out, *columns, "--protein", "BLAT_X")[2]
    whole = ["--mutated-sequence-col", "mutated_sequence"]
    three = run(esm, rotary, fasta, table, out, *whole)[2]
    assert one == two == three
    assert [row["status"] for row in one] == ["ok", "ok"]
    code, message, _ = run(esm, rotary, reference, table, out)
    assert code == 2
    assert "a table; set --protein-col and --sequence-col to its columns" in message


def test_the_offset_that_fits_is_suggested(esm, rotary, files):
    texts = [*shifted(23), "Z1", "K24A:A25C"]
    fasta, table, out = files({"a": WILD_TYPE}, mutants(*texts))
    rows = run(esm, rotary, fasta, table, out)[2]
    hint = "; an offset of 23 fits 22 of 23 rows of this protein, set --offset"
    assert rows[0]["reason"] == f"residue 24 does not exist: the protein has 22 residues{hint}"
    assert hint not in rows[22]["reason"]
    rows = run(esm, rotary, fasta, table, out, "--offset", "23")[2]
    assert [row["status"] for row in rows] == ["ok"] * 22 + ["skipped"] * 2
    assert rows[23]["reason"] == "residue 24 is M, not K"
    values = [row[MARGINAL] for row in rows[:22]]
    fasta, table, out = files({"a": WILD_TYPE}, mutants(*shifted(0)))
    assert values == [row[MARGINAL] for row in run(esm, rotary, fasta, table, out)[2]]


def test_no_offset_is_suggested_without_reason(esm, rotary, files):
    """Not if several fit equally or the present one fits better; for the right protein only."""
    fasta, table, out = files({"a": WILD_TYPE}, mutants("K9A"))
    assert run(esm, rotary, fasta, table, out)[2][0]["reason"] == "residue 9 is Q, not K"
    fasta, table, out = files({"a": WILD_TYPE}, mutants(*shifted(0), "K9A"))
    assert run(esm, rotary, fasta, table, out)[2][-1]["reason"] == "residue 9 is Q, not K"
    rows = [{"mutant": text, "protein": "a"} for text in shifted(-3)]
    rows += [{"mutant": "L4A", "protein": "b"}, {"mutant": "G2A", "protein": "b"}]
    fasta, table, out = files({"a": WILD_TYPE, "b": OTHER}, rows)
    found = run(esm, rotary, fasta, table, out)[2]
    assert "an offset of -3 fits 22 of 22 rows" in found[0]["reason"]
    assert found[-2]["status"] == "ok"
    assert found[-1]["reason"] == "residue 2 is A, not G"
