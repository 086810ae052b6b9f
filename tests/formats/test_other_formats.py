"""Other formats given as FASTA: each is named, at the beginning of a file or inside it."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from esm_pipeline.errors import InputError
from esm_pipeline.formats import fasta
from esm_pipeline.formats.fasta import read_batches, read_fasta

FASTA = b">a\nMKV\n>b\nMKT\n"
CONVERT = "; convert it to FASTA"
WRITE = "; write its sequences as FASTA"
CHAINS = "; write the sequences of its chains as FASTA"
PROTEINS = "; give the FASTA file of proteins"
PIR = "PIR, whose second line is a title" + CONVERT

FORMATS = {
    "PIR": (b">P1;CRAB_ANAPL\nALPHA CRYSTALLIN B CHAIN\nMDITIHNPLI*\n", PIR),
    **{
        f"PIR {code}": (f">{code};X\ntitle\nMK*\n".encode(), PIR)
        for code in ("F1", "DL", "DC", "RL", "RC", "N3", "N1", "XX")
    },
    "A3M of ColabFold": (
        b"#60\t1\n>101\nMKTAYIAKQRQISF\n>x\nMKTAyyYIAKQ-QISF\n",
        "A3M of ColabFold; take its first line out, and convert it to FASTA",
    ),
    "Stockholm": (b"# STOCKHOLM 1.0\n#=GF ID x\na MK-V\n//\n", "Stockholm" + CONVERT),
    "GenBank": (b"LOCUS       SCU49845  5028 bp\nORIGIN\n 1 gatc\n//\n", "GenBank" + CONVERT),
    "UniProt": (
        b"ID   CRAB_ANAPL  Reviewed;  174 AA.\nAC   Q05557;\nSQ   SEQUENCE\n     MDIT\n//\n",
        "an EMBL or UniProt flat file" + CONVERT,
    ),
    "EMBL": (
        b"ID   X56734; SV 1; linear; mRNA; STD; PLN; 1859 BP.\n",
        "an EMBL or UniProt flat file" + CONVERT,
    ),
    "Clustal": (b"CLUSTAL W (1.83) multiple sequence alignment\n\na MK-V\n", "ClustalW" + CONVERT),
    "Clustal Omega": (b"CLUSTAL O(1.2.4)\n\na  MK-V\n", "ClustalW" + CONVERT),
    "PHYLIP": (b" 2 4\na         MK-V\nb         MKAV\n", "PHYLIP" + CONVERT),
    "PHYLIP interleaved": (b"2 4 I\na MK-V\nb MKAV\n", "PHYLIP" + CONVERT),
    "NEXUS": (b"#NEXUS\nbegin data;\n", "NEXUS" + CONVERT),
    "MSF": (b"!!AA_MULTIPLE_ALIGNMENT 1.0\n", "MSF" + CONVERT),
    "PileUp": (b"PileUp\n\n MSF: 10 Type: P\n", "MSF" + CONVERT),
    "MSF without its first line": (b"\n x.msf  MSF: 10  Type: P  Check: 1 ..\n", "MSF" + CONVERT),
    "PDB": (b"HEADER    OXYGEN TRANSPORT\nSEQRES   1 A  3  MET LYS VAL\n", "PDB" + CHAINS),
    "SEQRES": (b"SEQRES   1 A  3  MET LYS VAL\n", "PDB" + CHAINS),
    "ATOM": (b"ATOM      1  N   MET A   1  1.0 1.0 1.0\n", "PDB" + CHAINS),
    "mmCIF": (b"data_1ABC\nloop_\n", "mmCIF" + CHAINS),
    "GFF": (b"##gff-version 3\nc\t.\tCDS\t1\t9\n", "GFF or GTF, which has no sequences" + PROTEINS),
    "VCF": (b"##fileformat=VCFv4.2\n", "VCF, which has no sequences" + PROTEINS),
    "SAM": (b"@HD\tVN:1.6\n@SQ\tSN:c\tLN:9\n", "SAM" + CONVERT),
    "FASTQ": (b"@r1\nMKV\n+\nIII\n", "FASTQ" + CONVERT),
    "FASTQ of several lines": (b"@r1 x\nMKV\nMKV\n+r1\nIII\nIII\n", "FASTQ" + CONVERT),
    "JSON": (b'{"id": "a", "sequence": "MKV"}\n', "JSON" + WRITE),
    "JSON list": (b'[{"id": "a"}]\n', "JSON" + WRITE),
    "TSV": (b"id\tsequence\na\tMKV\n", "a table (TSV)" + WRITE),
    "CSV": (b"id,sequence\na,MKV\n", "a table (CSV)" + WRITE),
    "CSV with semicolons": (b"id;sequence\na;MKV\n", "a table (CSV)" + WRITE),
    "raw": (b"MKTAYIAKQR\nMKVLA\n", "a sequence without a header; put a line '>id' before it"),
    "raw, cut": (b"MKTAYIAKQR", "a sequence without a header; put a line '>id' before it"),
    "raw, numbered": (
        b"        1 mktayiakqr qisfvkshfs\n",
        "a sequence without a header; put a line '>id' before it",
    ),
    "HMM": (b"HMMER3/f [3.1b2]\nNAME x\n", "a profile of HMMER" + PROTEINS),
    "Word": (
        b"PK\3\4" + bytes(20),
        "a zip archive, such as a Word or Excel file; unpack it, or save its text as FASTA",
    ),
    "old Word": (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(20),
        "an old Word or Excel file; save its sequences as FASTA",
    ),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3", "PDF; save its sequences as a text file in FASTA"),
    "RTF": (b"{\\rtf1\\ansi >a MKV}", "RTF; save it as plain text, in FASTA"),
    "tar": (
        (b"in.fasta" + bytes(249) + b"ustar\x0000").ljust(1024, b"\0"),
        "a tar archive; unpack it, and name the FASTA file in it",
    ),
    "7z": (b"7z\xbc\xaf\x27\x1c", "a compressed file; unpack it, or use gzip"),
}
"""What stands in a file, and what is said of it."""


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as error:
        list(read_fasta(str(path)))
    return str(error.value).replace(f"{path.parent}/", "")


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_named(tmp_path: Path, name: str, packed: bool) -> None:
    content, told = FORMATS[name]
    path = tmp_path / "in.fasta"
    path.write_bytes(gzip.compress(content) if packed else content)
    line = 2 if content.startswith(b"\n") else 1
    assert refusal(path) == f"in.fasta:{line}: not FASTA, looks like {told}"


@pytest.mark.parametrize("name", [name for name in FORMATS if "raw" not in name])
def test_a_format_is_named_whatever_the_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A pipe, or a gzip file of small members, may give a few bytes at a time."""
    monkeypatch.setattr(fasta, "READ_BYTES", 3)
    content, told = FORMATS[name]
    path = tmp_path / "in.fasta"
    path.write_bytes(content)
    assert refusal(path).endswith(f": not FASTA, looks like {told}")


@pytest.mark.parametrize(
    ("second", "line", "told"),
    [
        (b">P1;X\ntitle\nMK*\n", 5, PIR),
        (b"@r1\nACGT\nACGT\n+\nIIII\nIIII\n", 5, "FASTQ from here on" + CONVERT),
        (b"LOCUS x\n 1 gatc\n//\n", 7, "the end of a GenBank, EMBL or Stockholm record" + CONVERT),
        (b"# STOCKHOLM 1.0\na MK\n//\n", 7, "the end of a GenBank, EMBL or Stockholm record"),
        (b'{"id": "a"}\n', 5, "JSON from here on" + CONVERT),
        (b"<!DOCTYPE html>\n", 5, "HTML or XML from here on" + CONVERT),
    ],
)
def test_a_format_behind_records_is_named(
    tmp_path: Path, second: bytes, line: int, told: str
) -> None:
    path = tmp_path / "in.fasta"
    path.write_bytes(FASTA + second)
    assert refusal(path).startswith(f"in.fasta:{line}: not FASTA, looks like {told}")
    path.write_bytes(FASTA * 100_000 + second)
    assert refusal(path).startswith(f"in.fasta:{line + 399_996}: not FASTA, looks like {told}")


A3M = b">q\nMKTAYIAKQRQI\n>a\nMK--YIAKqrQRQI\n>b\nMKTAYvIAKQ--I\n"
A2M = b">q\nMKTAY.IAK..QRQI\n>a\nMK--Y.IAKqrQRQI\n>b\nMKTAYvIAK..Q--I\n"
ALIGNED = b">q\nMKTAYIAKQRQI\n>a\nMK--YIAKQRQI\n>b\nMKTAYIAKQ--I\n"
MASKED = b">q x-y\nMKTAYIAKQRQI\n>a\nMKtayiaYIAK\n>b\nmkTAY-IAKQI\n"


@pytest.mark.parametrize("content", [A3M, A2M])
def test_an_alignment_with_insertions_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "in.a3m"
    path.write_bytes(content)
    assert refusal(path) == (
        "in.a3m:1: not FASTA, looks like A3M or A2M, an alignment with insertions in lower case; "
        "convert it to FASTA, or set --gaps to 'remove' to drop gaps"
    )
    rows = [entry for batch in read_batches(str(path), aligned=True) for entry in batch]
    assert rows[1][2].replace(b".", b"") == b"MK--YIAKQRQRQI", "with its insertions"


@pytest.mark.parametrize(
    "content",
    [
        ALIGNED,
        ALIGNED.lower(),
        MASKED,
        A3M.replace(b"-", b""),
        b">a\nMKtayi-AKQRQIS\n>b\nMKtayi-AKQRQIS\n",
        b">a\nM-k\n>b\nMK\n>c\nMKv\n",
    ],
)
def test_other_gaps_and_lower_case_are_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "in.fasta"
    path.write_bytes(content)
    assert len(list(read_fasta(str(path)))) == content.count(b">")


def test_ordinary_headers_and_sequences_are_no_other_format(tmp_path: Path) -> None:
    content = (
        b">P1 ; one\nMKV\n>x P1;y @r\nMK@V\n>A1;b\nMKV\n>c/1-20 {x} <y> // z\nMKV\n"
        b">1 2\nMKV\n>LOCUS \nMKV\n>@r1\nMKV\n>+\nMKV\n>data_x\nMKV\n"
    )
    path = tmp_path / "in.fasta"
    path.write_bytes(content)
    assert len(list(read_fasta(str(path)))) == content.count(b"\n>") + 1
