"""Nucleotides given as proteins: refused, translated or kept, by `shard` and every command."""

from __future__ import annotations

import gzip
import hashlib
import io
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from Bio.Seq import Seq
from hypothesis import given
from hypothesis import strategies as st

from esm_pipeline.cli import main
from esm_pipeline.errors import IN_WORKFLOW, InputError
from esm_pipeline.formats.records import Record, read_records
from esm_pipeline.settings.sections import CleaningSettings
from esm_pipeline.tasks.common.cleaning import CleanedSequence, read_sequence
from esm_pipeline.tasks.common.sequences import open_sequences

CDS = "ATGGCGAAACTGGTGATTACCCGTTGGCAGGAATAA"
PROTEIN = "MAKLVITRWQE"
HOW = "translated in frame 1 by genetic code 11"
END = "'*' at the end removed"
REMEDY = (
    "set --nucleotides to 'translate' to read coding sequences, or to 'keep' to take the letters "
    "as residues"
)
KEYS = REMEDY.replace("--nucleotides", "shard.nucleotides")
REFUSED = f"looks like DNA; {REMEDY}"


def read(sequence: str, header: bytes = b"", **settings: Any) -> CleanedSequence:
    return read_sequence(sequence.encode(), CleaningSettings(**settings), header)


def translated(sequence: str, **settings: Any) -> CleanedSequence:
    return read(sequence, nucleotides="translate", **settings)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, CleanedSequence(b"", REFUSED)),
        ({"nucleotides": "keep"}, CleanedSequence(CDS.encode())),
        ({"nucleotides": "translate"}, CleanedSequence(PROTEIN.encode(), "", (HOW, END))),
    ],
)
def test_a_record_of_nucleotides(settings: dict[str, str], expected: CleanedSequence) -> None:
    assert read(CDS, **settings) == expected


@pytest.mark.parametrize(
    ("sequence", "settings", "expected"),
    [
        ("ATGAAAC", {}, CleanedSequence(b"MK", "", (HOW, "last 1 of 7 nucleotides dropped"))),
        ("AUGAAA", {}, CleanedSequence(b"MK", "", (HOW,))),
        ("AAAAAA", {}, CleanedSequence(b"KK", "", (HOW, "begins without a start codon"))),
        (
            "ATGTAAAAATAA",
            {},
            CleanedSequence(
                b"",
                f"{HOW}: stop '*' at residue 2 inside the sequence; set --internal-stops to "
                "'replace' to read it as X",
            ),
        ),
        (
            "ATGTAAAAATAA",
            {"internal_stops": "replace"},
            CleanedSequence(b"MXK", "", (HOW, "stop '*' at residue 2 replaced by X", END)),
        ),
        (
            "ATGTGAAAATAA",
            {"genetic_code": 4},
            CleanedSequence(b"MWK", "", (HOW.replace("11", "4"), END)),
        ),
        (
            "ATGMTH" + "AAA" * 20,  # I or L
            {},
            CleanedSequence(b"MX" + b"K" * 20, "", (HOW, "J at residue 2 replaced by X")),
        ),
        (
            "ATG-AAA",
            {},
            CleanedSequence(b"", "gap '-' at nucleotide 4; set --gaps to 'remove' to drop gaps"),
        ),
        (
            "ATG-AA.A",
            {"gaps": "remove"},
            CleanedSequence(b"MK", "", (HOW, "gap '-' at nucleotide 4 and 1 more removed")),
        ),
        (
            "ATGAAA:ATGCCCA",
            {},
            CleanedSequence(b"MK:MP", "", (HOW, "last 1 of 7 nucleotides dropped (chain 2)")),
        ),
        ("AT", {}, CleanedSequence(b"", f"{HOW}: no residues")),
        ("TAA", {}, CleanedSequence(b"", f"{HOW}: no residues")),
        (f"{CDS}*", {}, CleanedSequence(b"", "stop '*' at nucleotide 37; correct the sequence")),
        ("MKVLA*", {}, CleanedSequence(b"MKVLA", "", ("not nucleotides: taken as a protein", END))),
        (
            "MKV1",
            {},
            CleanedSequence(
                b"", "character '1' at residue 4 is no amino acid; correct the sequence"
            ),
        ),
        ("", {}, CleanedSequence(b"", "no residues")),
    ],
)
def test_translation(sequence: str, settings: dict[str, Any], expected: CleanedSequence) -> None:
    assert translated(sequence, **settings) == expected


@given(st.text("ACGT", min_size=60, max_size=300), st.sampled_from([1, 4, 11]))
def test_length_and_digest_are_of_biopythons_protein(sequence: str, code: int) -> None:
    sequence = "ATG" + sequence[: len(sequence) // 3 * 3]
    expected = str(Seq(sequence).translate(table=code)).rstrip("*")
    found = translated(sequence, genetic_code=code, internal_stops="replace")
    assert found.sequence.decode() == expected.replace("*", "X")


@pytest.fixture
def shard(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Shard some records; gives the exit code, standard error, and the rows."""

    def run(text: str, *flags: str) -> tuple[int, str, list[Record]]:
        path, out = tmp_path / "in.fasta", tmp_path / "out"
        path.write_text(text)
        code = main(["shard", "--quiet", "--bundles=1", f"--out={out}", *flags, str(path)])
        table = out / "00000.records.tsv"
        rows = list(read_records(table)) if table.exists() else []
        return code, capsys.readouterr().err.replace(f"{tmp_path}/", ""), rows

    return run


def test_a_file_of_nucleotides_is_an_error(shard, tmp_path: Path) -> None:
    code, error, rows = shard(f"; mine\n>CDS\n{CDS}\n>P\nMKVLA\n>CDS2\n{CDS.lower()}\n")
    assert (code, rows) == (2, [])
    assert error == (
        "esm-pipeline shard: in.fasta:2: looks like DNA, as 2 of the first 3 records do; "
        f"{REMEDY}\n"
    )
    assert not (tmp_path / "out").exists()


def test_a_record_among_proteins_is_skipped(shard) -> None:
    code, _, rows = shard(f">P\nMKVLA\n>CDS\n{CDS}\n")
    assert code == 0, "half is not most"
    assert [(row.status, row.reason) for row in rows] == [("ok", ""), ("skipped", REFUSED)]
    assert (rows[1].length, rows[1].sha256) == (None, "")


def test_a_chain_of_a_complex_is_skipped_too(shard) -> None:
    """As structures of proteins with DNA are asked for elsewhere."""
    code, _, rows = shard(f">P\nMKVLA\n>C\nMKLVELAYIAKQRQ:{CDS}\n>D\nMKVLA:MKE\n")
    assert code == 0
    told = REFUSED.replace("DNA", "DNA in chain 2")
    assert [(row.status, row.reason) for row in rows] == [("ok", ""), ("skipped", told), ("ok", "")]


def test_the_row_is_of_the_protein(shard, tmp_path: Path) -> None:
    code, _, (row, same) = shard(f">CDS a\n{CDS}\n>P\n{PROTEIN}\n", "--nucleotides=translate")
    assert code == 0
    assert (row.id, row.length, row.status) == ("CDS", 11, "ok")
    assert row.sha256 == hashlib.sha256(PROTEIN.encode()).hexdigest()
    assert row.notes == f"{HOW}; {END}"
    assert (same.duplicate_of, same.notes) == (0, "not nucleotides: taken as a protein")
    assert (tmp_path / "out" / "00000.fasta").read_text() == f">0\n{PROTEIN}\n"


def test_prodigals_genes_are_its_proteins(shard) -> None:
    """A gene with a start other than ATG, one that runs off the contig, one of the other strand."""
    tail = ";start_type=x;rbs_motif=None;rbs_spacer=None;gc_cont=0.5"
    text = (
        f">c_1 # 2 # 37 # 1 # ID=1_1;partial=10{tail}\nGTG{CDS[3:]}\n"
        f">c_2 # 40 # 75 # 1 # ID=1_2;partial=00{tail}\nGTG{CDS[3:]}\n"
        f">c_3 # 80 # 112 # -1 # ID=1_3;partial=10{tail}\nTTG{CDS[3:-3]}\n"
    )
    _, _, rows = shard(text, "--nucleotides=translate")
    digests = [
        hashlib.sha256(protein.encode()).hexdigest()
        for protein in ("V" + PROTEIN[1:], PROTEIN, PROTEIN)
    ]
    assert [row.sha256 for row in rows] == digests
    assert [row.notes for row in rows] == [
        f"{HOW}; partial at its start; {END}",
        f"{HOW}; start codon GTG read as M; {END}",
        f"{HOW}; start codon TTG read as M",
    ]


def test_the_first_thousand_records_tell(tmp_path: Path) -> None:
    def text(nucleotides: int, proteins: int) -> str:
        return f">c\n{CDS}\n" * nucleotides + ">p\nMKVLAA\n" * proteins

    path = tmp_path / "in.fasta"
    for content, refused in (
        (text(501, 499), True),
        (text(500, 500), False),
        (text(501, 4000), True),
        (text(500, 500) + text(4000, 0), False),
        (text(1, 0), True),
        (text(1, 1), False),
    ):
        path.write_text(content)
        with (
            pytest.raises(InputError, match=r"in\.fasta:1: looks like DNA")
            if refused
            else nullcontext()
        ):
            open_sequences([str(path)], CleaningSettings(), tmp_path).close()


def test_every_file_is_judged_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = tmp_path / "1.fasta", tmp_path / "2.fasta.gz"
    one.write_text(">p\nMKVLAA\n" * 50)
    two.write_bytes(gzip.compress(f">c\n{CDS.replace('T', 'U')}\n".encode()))
    assert main(["shard", "--bundles=1", f"--out={tmp_path / 'out'}", str(one), str(two)]) == 2
    error = capsys.readouterr().err
    assert f"{two}:1: looks like RNA, as the first record does; {REMEDY}\n" in error


COMMANDS = {
    "embed": ["{fasta}", "{out}.h5"],
    "classify": ["{fasta}", "{out}.tsv"],
    "fold": ["{fasta}", "{out}"],
    "score": ["--saturation", "{fasta}", "{out}.h5"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_before_a_model_is_sought(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    path = tmp_path / "in.fasta"
    path.write_text(f">CDS\n{CDS}\n")
    places = [one.format(fasta=path, out=tmp_path / "out") for one in COMMANDS[command]]
    assert main([command, f"--model={tmp_path / 'none'}", *places]) == 2
    told = f"{path}:1: looks like DNA, as the first record does; {REMEDY}"
    assert capsys.readouterr().err == f"esm-pipeline {command}: {told}\n"
    assert [one.name for one in tmp_path.rglob("*") if one.is_file()] == ["in.fasta"]


@pytest.mark.parametrize("command", ["embed", "score", "fold"])
def test_every_command_translates_and_keeps(tmp_path: Path, command: str) -> None:
    path = tmp_path / "in.fasta"
    path.write_text(f">CDS\n{CDS}\n")
    places = [one.format(fasta=path, out=tmp_path / "out") for one in COMMANDS[command]]
    for flags, length in (
        (["--nucleotides=translate", "--genetic-code=4"], 11),
        (["--nucleotides=keep"], 36),
    ):
        recycles = ["--num-recycles=0"] if command == "fold" else []
        assert main([command, "--model=demo", "--quiet", *flags, *recycles, *places]) == 0
        (row,) = read_records(tmp_path / "out.records.tsv")
        assert (row.status, row.length) == ("ok", length)


def test_the_workflow_is_told_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(IN_WORKFLOW, "1")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f">c\n{CDS}\n".encode())))
    assert main(["shard", "--bundles=1", f"--out={tmp_path}", "-"]) == 2
    assert capsys.readouterr().err == (
        f"esm-pipeline shard: standard input:1: looks like DNA, as the first record does; {KEYS}\n"
    )


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        (
            "--genetic-code=7",
            "--genetic-code = '7': not the number of an NCBI genetic code; choose one of 1, ",
        ),
        ("--genetic-code=x", "--genetic-code = 'x': should be a whole number"),
        ("--nucleotides=dna", "--nucleotides = 'dna': should be 'refuse', 'translate' or 'keep'"),
        ("--max-letters=0", "--max-letters = 0: should be a whole number from 1 to 2000000000"),
    ],
)
def test_an_impossible_setting_names_its_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, told: str
) -> None:
    path = tmp_path / "in.fasta"
    path.write_text(">a\nMK\n")
    assert main(["shard", "--bundles=1", f"--out={tmp_path / 'out'}", flag, str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"esm-pipeline shard: command line: {told}")
    assert error.count("\n") == 1


def test_three_letters_are_one_residue_of_the_most(shard) -> None:
    _, _, rows = shard(f">a\n{CDS}\n>b\n{CDS}A\n", "--nucleotides=translate", "--max-letters=12")
    assert [(row.status, row.reason.split(";")[0]) for row in rows] == [
        ("ok", ""),
        ("skipped", "more than 36 letters"),
    ]


def test_a_table_of_wild_types_has_a_reason_a_row(files, esm) -> None:
    _, table, out = files({}, [{"mutant": "A1G", "wild": CDS}, {"mutant": "M1A", "wild": PROTEIN}])
    code, _ = esm("score", "--model=demo", f"--variants={table}", "--sequence-col=wild", out)
    assert code == 0
    rows = out.read_text().splitlines()
    assert "looks like DNA" in rows[1]
    assert ",ok," in rows[2]
