"""Rows are of the protein that they name, or of none, however many records the FASTA has."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esm_pipeline.cli import main
from esm_pipeline.errors import IN_WORKFLOW, setting
from tests.tasks.score.scoring import MARGINAL, OTHER, WILD_TYPE, mutants, rows_of, run

BLAT = "sp|P62593|BLAT_TEST"
ISOFORM = "is another isoform or version: add this one, or correct the name"
LIKE = "no protein {!a} among the wild types; "

NAMES = {
    "P62593": "",
    "BLAT_TEST": "",
    BLAT: "",
    " P62593 ": "",
    "tr|P62593|OTHER_NAME": "",
    "P68871": LIKE + "check the name",
    "P38398": LIKE + "check the name",
    "P62594": LIKE + "did you mean 'P62593'?",
    "P62593-2": LIKE + f"'P62593' {ISOFORM}",
    "P62593.2": LIKE + f"'P62593' {ISOFORM}",
    "sp|P62593-2|BLAT_TEST": LIKE + f"'P62593' {ISOFORM}",
    "sp|P38398|BLAT_TEST": LIKE + "check the name",
    "p62593": LIKE + "did you mean 'P62593'?",
    "sp": LIKE + "check the name",
    "": "column 'protein' is empty; name the protein in it",
}
"""Cells that name a protein, and cells that do not, with the reason."""


def reasons(rows) -> dict[str, str]:
    return {row["protein"]: row["reason"] for row in rows}


@pytest.mark.parametrize("more", [{}, {"x": OTHER}, {"x": OTHER, "y": "MKMK"}])
def test_rows_are_of_what_their_column_names(esm, rotary, files, more):
    given_rows = [{"protein": name, "mutant": "K2L"} for name in NAMES]
    fasta, table, out = files({BLAT: WILD_TYPE, **more}, given_rows)
    code, message, rows = run(esm, rotary, fasta, table, out)
    assert code == 0, message
    told_of = reasons(rows)
    for name, reason in NAMES.items():
        assert told_of[name].startswith(reason.format(name)), name
    assert {row[MARGINAL] for row in rows if row["status"] == "skipped"} == {""}
    usable = {row[MARGINAL] for row in rows if row["status"] == "ok"}
    assert len(usable) == 1
    assert sum(row["status"] == "ok" for row in rows) == list(NAMES.values()).count("")


@pytest.mark.parametrize(
    ("identifier", "names", "not_names"),
    [
        ("gi|123|ref|NP_1.1|", ("NP_1.1", "123", "gi|123|ref|NP_1.1|"), ("NP_1", "ref", "gi")),
        ("ref|NP_1.1|", ("NP_1.1", "ref|NP_1.1|", "gi|9|ref|NP_1.1|"), ("NP_1.2", "NP_1", "ref")),
        ("sp|P62593-2|BLAT_TEST", ("P62593-2",), ("BLAT_TEST", "P62593", "P62593-1")),
        ("P62593", ("P62593", BLAT), ("P62593.1", "BLAT_TEST", "sp|P62593-2|BLAT_TEST")),
        ("pdb|4HHB|A", ("pdb|4HHB|A",), ("4HHB", "A", "pdb")),
        ("ENSP1.2", ("ENSP1.2",), ("ENSP1", "ENSP1.3")),
    ],
)
def test_ids_of_the_databases(esm, rotary, files, identifier, names, not_names):
    given_rows = [{"protein": name, "mutant": "K2L"} for name in (*names, *not_names)]
    fasta, table, out = files({identifier: WILD_TYPE}, given_rows)
    rows = run(esm, rotary, fasta, table, out)[2]
    assert [row["status"] for row in rows] == ["ok"] * len(names) + ["skipped"] * len(not_names)


def test_an_accession_of_two_records(esm, rotary, files):
    records = {"sp|P1|ONE": WILD_TYPE, "tr|P1|TWO": OTHER, "sp|P2|ONE": WILD_TYPE}
    given_rows = [{"protein": name, "mutant": "K2L"} for name in ("P1", "ONE", "sp|P1|ONE", "P2")]
    rows = run(esm, rotary, *files(records, given_rows))[2]
    assert [row["status"] for row in rows] == ["skipped", "ok", "ok", "ok"]
    assert rows[0]["reason"] == "'P1' names several wild types; give each a name of its own"


RECORDS = {BLAT: WILD_TYPE, "sp|P68871|HBB_TEST": OTHER, "ref|NP_1.1|": WILD_TYPE[::-1]}
CELLS = [*NAMES, "P68871", "HBB_TEST", "NP_1.1", "NP_1", "nonsense"]


@settings(max_examples=15)
@given(data=st.data())
def test_other_records_change_nothing(tmp_path_factory, rotary, data):
    """The same row, with its record alone in the FASTA, or among others in any order."""
    folder = tmp_path_factory.mktemp("any")
    own = data.draw(st.sampled_from(list(RECORDS)))
    others = data.draw(st.permutations([name for name in RECORDS if name != own]))
    names = data.draw(st.lists(st.sampled_from(CELLS), min_size=1, max_size=6))
    in_notation = data.draw(st.booleans())
    letter = RECORDS[own][0]
    # one row is certainly of it, so that the table is not refused as a whole
    rows = [(name.strip(), f"{letter}1W") for name in [own, *names]]
    if in_notation:
        rows = [("", f"{name}:{text}" if name else text) for name, text in rows if name]
    frame = pd.DataFrame(rows, columns=["protein", "mutant"])
    frame[["mutant"] if in_notation else ["protein", "mutant"]].to_csv(
        folder / "v.csv", index=False
    )
    found = []
    for count in range(len(others) + 1):
        chosen = data.draw(st.permutations([own, *others[:count]]))
        fasta = folder / "wt.fasta"
        fasta.write_text("".join(f">{name}\n{RECORDS[name]}\n" for name in chosen))
        options = ["--quiet", "--model", str(rotary), "--variants", str(folder / "v.csv")]
        assert main(["score", *options, str(fasta), str(folder / "o.tsv")]) == 0
        found.append(rows_of(folder / "o.tsv"))
    known = {names for name in (*others, own) for names in name.split("|")} | set(RECORDS)
    for same in zip(*found, strict=True):
        first, *more = same
        name = first.get("protein") or first["mutant"].rpartition(":")[0]
        for other in more:
            if first["status"] == "ok" or not {name, *name.split("|")} & known:
                assert (other["status"], bool(other[MARGINAL])) == (
                    first["status"],
                    bool(first[MARGINAL]),
                )
                if first["status"] == "ok":
                    assert float(other[MARGINAL]) == pytest.approx(float(first[MARGINAL]), abs=1e-5)


@pytest.mark.parametrize("more", [{}, {"x": OTHER}])
def test_a_table_of_other_proteins_only(esm, rotary, files, more):
    for name, near in (("P38398", ""), ("P62593-2", " (near to 'P62593')")):
        fasta, table, out = files({BLAT: WILD_TYPE, **more}, mutants("K2L", protein=name))
        code, message, _ = run(esm, rotary, fasta, table, out)
        assert code == 2
        assert message.endswith(
            f"in.csv: column 'protein' names none of the wild types, the first row {name!a}{near}; "
            "set --protein-col to the column with their ids, or --protein to the one that all "
            "rows belong to"
        )
        code, _, rows = run(esm, rotary, fasta, table, out, "--protein", "P62593")
        assert (code, rows[0]["status"]) == (0, "ok"), "the user says so"
    fasta, table, out = files({BLAT: WILD_TYPE}, mutants("K2L", protein=""))
    code, message, _ = run(esm, rotary, fasta, table, out)
    assert code == 2
    assert "column 'protein' names none of the wild types, its first cell is empty; set" in message


def test_a_column_and_the_one_protein_together(esm, rotary, files):
    names = ("P62593", "P38398", "x", "", BLAT)
    rows = [{"protein": name, "mutant": "K2L"} for name in names]
    fasta, table, out = files({BLAT: WILD_TYPE, "x": OTHER}, rows)
    both = ("--protein", "BLAT_TEST", "--protein-col", "protein")
    rows = run(esm, rotary, fasta, table, out, *both)[2]
    assert [row["status"] for row in rows] == ["ok", "skipped", "skipped", "skipped", "ok"]
    assert rows[1]["reason"] == (
        "the row is of 'P38398', not of --protein 'BLAT_TEST'; leave out --protein-col if all rows "
        "belong to it"
    )
    assert rows[2]["reason"].startswith("the row is of 'x', not of --protein")
    fasta, table, out = files({BLAT: WILD_TYPE}, mutants("K2L", protein="P38398"))
    code, message, _ = run(esm, rotary, fasta, table, out, *both)
    assert code == 2
    assert "no row of column 'protein' is of 'BLAT_TEST', the first row 'P38398'; leave" in message


HGVS = {
    "P62593:K2L": "",
    "P62593:p.Lys2Leu": "",
    "BLAT_TEST:p.Lys2Leu": "",
    "K2L": None,  # said by the number of proteins alone
    "P38398:p.Lys2Leu": "no protein 'P38398' among the wild types; check the name",
    "P38398:K2L": "no protein 'P38398' among the wild types; check the name",
    "P62593-2:p.Lys2Leu": f"no protein 'P62593-2' among the wild types; 'P62593' {ISOFORM}",
    "NM_000518.5(HBB):c.20A>T (p.Lys2Leu)": "no protein 'NM_000518.5(HBB)' among the wild types",
}


@pytest.mark.parametrize("more", [{}, {"x": OTHER}])
def test_what_a_notation_begins_with_is_the_protein(esm, rotary, files, more):
    fasta, table, out = files({BLAT: WILD_TYPE, **more}, mutants(*HGVS))
    code, _, rows = run(esm, rotary, fasta, table, out)
    assert code == 0
    for row, reason in zip(rows, HGVS.values(), strict=True):
        expected = reason
        if reason is None:
            several = "names none of the 2 proteins; set --protein-col or --protein"
            expected = several if more else ""
        assert row["reason"].startswith(expected)
        assert (row["status"] == "ok") == (not expected)
    # where it is said of what protein all rows are, names of other databases are no contradiction
    rows = run(esm, rotary, fasta, table, out, "--protein", "P62593")[2]
    assert [row["status"] for row in rows] == ["ok"] * 4 + ["skipped"] * 3 + ["ok"]
    assert rows[4]["reason"] == (
        "the mutation is of 'P38398', which the row's protein is not; correct one of the two"
    )


def test_notations_of_unknown_proteins_only(esm, rotary, files):
    texts = ("NM_000518.5(HBB):c.20A>T (p.Lys2Leu)", "NM_000518.5(HBB):c.20A>T (p.Ala4Leu)")
    fasta, table, out = files({BLAT: WILD_TYPE}, mutants(*texts))
    code, message, _ = run(esm, rotary, fasta, table, out)
    assert code == 2
    assert "the mutations name none of the wild types, the first row 'NM_000518.5(HBB)'" in message
    assert message.endswith("; set --protein to the one that all rows belong to")
    rows = run(esm, rotary, fasta, table, out, "--protein", "P62593")[2]
    assert [row["status"] for row in rows] == ["ok", "ok"]
    fasta, table, out = files({"HBB": WILD_TYPE}, mutants(*texts))
    assert [row["status"] for row in run(esm, rotary, fasta, table, out)[2]] == ["ok", "ok"]


OTHER_COLUMNS = {
    "uniprot_id": (["P62593", "P38398"], True),
    "gene": (["BLAT", "HBB"], True),
    "accession": (["P38398", "P68871"], True),
    "Feature": (["ENST00000335295.4", "ENST00000380315.2"], True),
    "anything": (["P62593", "P38398"], True),
    "UniProt_ID": (["P38398", "P38398"], True),
    "dms_id": (["BLAT_ECOLX_Stiffler_2014", "BLAT_ECOLX_Stiffler_2014"], False),
    "uniprot": (["P62593", ""], False),
    "Accession": (["urn:mavedb:00000001-a-1#1", "urn:mavedb:00000001-a-1#2"], False),
    "feature": (["helix", "loop"], False),
    "note": (["BLAT", "HBB"], False),
    "score": (["1.5", "2"], False),
}
"""Columns that are not set, and whether they show that some rows are not of the wild type."""


@pytest.mark.parametrize("column", OTHER_COLUMNS)
def test_a_column_that_names_other_proteins_stops(esm, rotary, files, column):
    cells, stops = OTHER_COLUMNS[column]
    rows = [{"mutant": "K2L", column: cell} for cell in cells]
    fasta, table, out = files({BLAT: WILD_TYPE}, rows)
    code, message, _ = run(esm, rotary, fasta, table, out)
    assert code == (2 if stops else 0), message
    if stops:
        by_column = f"--protein-col to {column!a}, or " if "P62593" in cells else ""
        assert f"column {column!a} names {cells[0]!a}" in message
        assert message.endswith(
            f", but the only wild type is {BLAT!a}; set {by_column}--protein to {BLAT!a} if all "
            "rows belong to it"
        )
    assert run(esm, rotary, fasta, table, out, "--protein", "P62593")[0] == 0


def test_split_does_the_same_and_names_keys(tmp_path, esm, files, monkeypatch):
    """The workflow sets the variable for its jobs; keys of its config file are what users set."""
    fasta, table, _ = files({BLAT: WILD_TYPE}, mutants("K2L", protein="P38398"))
    arguments = ("split", "--out", tmp_path / "split", "--variants", table, fasta)
    assert "set --protein-col to" in esm(*arguments)[1][0]
    monkeypatch.setenv(IN_WORKFLOW, "1")
    code, lines = esm(*arguments)
    assert code == 2
    assert "set score.protein_col to the column with their ids, or score.protein to" in lines[0]
    assert "--" not in lines[0]
    rows = [{"protein": name, "mutant": "K2L"} for name in ("P62593", "P68871", "P38398")]
    rows.append({"protein": "P62593", "mutant": "K2del"})
    files({BLAT: WILD_TYPE}, rows)
    assert esm(*arguments)[0] == 0
    unusable = rows_of(tmp_path / "split" / "unusable.tsv")
    assert [row["row"] for row in unusable] == ["1", "2", "3"]
    assert unusable[2]["reason"].endswith("set score.strategy to pseudo_log_likelihood")


def test_what_a_setting_is_called(monkeypatch):
    monkeypatch.delenv(IN_WORKFLOW, raising=False)
    assert setting("score.protein_col") == "--protein-col"
    monkeypatch.setenv(IN_WORKFLOW, "1")
    assert setting("score.protein_col") == "score.protein_col"


HBB = "sp|P68871|HBB_HUMAN Hemoglobin subunit beta OS=Homo sapiens OX=9606 GN=HBB PE=1 SV=2"

STRANGE = [
    *[(name, "P69905") for name in ("UniProt ID", "Uniprot accession", "protein accession")],
    *[(name, "P69905") for name in ("Uniprot.ID", "prot", "any name", "my_acc")],
    ("isoform", "P69905-2"),
    *[(name, "sp|P69905|HBA_HUMAN") for name in ("accession", "target_id", "any name")],
    ("accession", "tr|Q9XYZ1|Q9XYZ1_HUMAN"),
    *[(name, "HBA_HUMAN") for name in ("uniprot_id", "Entry Name")],
    *[(name, "HBA1") for name in ("gene", "GeneSymbol", "Gene Names", "SYMBOL")],
    ("gene", "HBA1;HBA2"),
]
"""Columns and cells that name another protein than `HBB`."""


@pytest.mark.parametrize(("column", "cell"), STRANGE)
def test_another_protein_however_it_is_named(esm, rotary, files, column, cell):
    fasta, table, out = files({HBB: WILD_TYPE}, mutants("K2L", "T3S", **{column: cell}))
    code, message, _ = run(esm, rotary, fasta, table, out)
    assert code == 2
    assert f"column {column!a} names {cell!a}, but the only wild type is 'sp|P68871|" in message
    assert message.endswith("; set --protein to 'sp|P68871|HBB_HUMAN' if all rows belong to it")
    assert run(esm, rotary, fasta, table, out, "--protein", "P68871")[0] == 0


@pytest.mark.parametrize("cell", ["P69905;P68871", "P68871, P69905", "P68871|P69905"])
@pytest.mark.parametrize("column", ["id", "any name", "uniprot_id"])
def test_several_accessions_in_a_cell(esm, rotary, files, column, cell):
    fasta, table, out = files({HBB: WILD_TYPE}, mutants("K2L", **{column: cell}))
    code, message, _ = run(esm, rotary, fasta, table, out)
    assert code == 2
    assert f"column {column!a} names 'P68871' and 'P69905', but" in message


@pytest.mark.parametrize(
    ("column", "cells"),
    [
        ("gene", ["HBB"]),
        ("gene", ["hbb"]),
        ("gene", ["HBB;LOC107133510"]),
        ("gene_id", ["ENSG00000244734"]),
        ("gene_name", ["hemoglobin subunit beta"]),
        ("Entry Name", ["HBB_HUMAN"]),
        ("uniprot_id", ["tr|P68871|OTHER_NAME"]),
        ("variant_id", ["1", "2"]),
        ("isoform", ["1", "2"]),
        ("id", ["VAR_0001", "VAR_0002"]),
        ("note", ["HBA1", "HBA_HUMAN"]),
        ("note", ["HBB", "P69905"]),
        ("note", ["P69905", "see the paper"]),
        ("site_id", ["urn:mavedb:00000001-a-1#1", "helix"]),
        ("hash", ["a1b2c3", "a1b2c3"]),
    ],
)
def test_what_tells_of_no_other_protein(esm, rotary, files, column, cells):
    rows = [{"mutant": "K2L", column: cell} for cell in cells]
    code, message, _ = run(esm, rotary, *files({HBB: WILD_TYPE}, rows))
    assert code == 0, message


def test_genes_need_a_gene_in_the_header(esm, rotary, files):
    fasta, table, out = files({HBB.split()[0]: WILD_TYPE}, mutants("K2L", gene="HBA1"))
    assert run(esm, rotary, fasta, table, out)[0] == 0
    by_column = ("--protein-col", "gene")
    rows = [{"mutant": "K2L", "gene": name} for name in ("HBB", "HBA1", "P68871", "XYZ")]
    other = "sp|P69905|HBA_HUMAN Hemoglobin GN=XYZ PE=1"
    for records in ({HBB: WILD_TYPE}, {HBB: WILD_TYPE, other: OTHER}):
        fasta, table, out = files(records, rows)
        found = run(esm, rotary, fasta, table, out, *by_column)[2]
        assert [row["status"] for row in found] == ["ok", "skipped", "ok", "skipped"]
        assert found[1]["reason"] == "no protein 'HBA1' among the wild types; check the name"
    assert found[3]["reason"].startswith("residue 2 is A, not K")
    fasta, table, out = files({HBB: WILD_TYPE, "HBB": OTHER}, rows[:1])
    found = run(esm, rotary, fasta, table, out, *by_column)[2]
    assert found[0]["reason"].startswith("residue 2 is A, not K"), "a name before a gene"


def test_the_gene_of_a_notation(esm, rotary, files):
    texts = [f"NM_000558.5({gene}):c.20A>T (p.Lys2Leu)" for gene in ("HBA1", "HBB")]
    for header, statuses in ((HBB, ["skipped", "ok"]), (HBB.split()[0], ["ok", "ok"])):
        fasta, table, out = files({header: WILD_TYPE}, mutants(*texts))
        found = run(esm, rotary, fasta, table, out, "--protein", "P68871")[2]
        assert [row["status"] for row in found] == statuses
        if header == HBB:
            assert found[0]["reason"].startswith("the mutation is of 'NM_000558.5(HBA1)', which")
            found = run(esm, rotary, fasta, table, out)[2]
            assert [row["status"] for row in found] == statuses
