"""Recognising files of other formats that are given as FASTA."""

from __future__ import annotations

import re
from typing import NamedTuple

from esm_pipeline.errors import InputError, setting

LOOK = 1024
"""First bytes of a file that are examined."""

FIRST = 1000
"""Most records that are examined for an alignment."""

TO_FASTA = "convert it to FASTA"
WRITE = "write its sequences as FASTA"
CHAINS = "write the sequences of its chains as FASTA"
PROTEINS = "give the FASTA file of proteins"
LEAST_COLUMNS = 10
LOWER = bytes(range(ord("a"), ord("z") + 1))


class OtherFormat(NamedTuple):
    """The pattern of a format, its name, and the remedy."""

    pattern: re.Pattern[bytes]
    what: str
    remedy: str = TO_FASTA


def other(pattern: bytes, what: str, remedy: str = TO_FASTA) -> OtherFormat:
    """An `OtherFormat` with its pattern compiled."""
    return OtherFormat(re.compile(pattern), what, remedy)


BEGINNINGS = (
    other(
        rb"\xff\xfe|\xfe\xff|(?:\0[^\0]){2}|(?:[^\0]\0){2}",
        "UTF-16 text",
        "save it as UTF-8",
    ),
    other(rb"\x1f\x8b", "gzip inside gzip", "unpack it once"),
    other(
        rb"PK\x03\x04",
        "a zip archive, such as a Word or Excel file",
        "unpack it, or save its text as FASTA",
    ),
    other(
        rb"BZh[1-9]|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|\x04\x22\x4d\x18|Rar!|\x1f\x9d",
        "a compressed file",
        "unpack it, or use gzip",
    ),
    other(rb"(?s).{257}ustar", "a tar archive", "unpack it, and name the FASTA file in it"),
    other(rb"%PDF-", "PDF", "save its sequences as a text file in FASTA"),
    other(rb"\{\\rtf", "RTF", "save it as plain text, in FASTA"),
    other(rb"\xd0\xcf\x11\xe0", "an old Word or Excel file", "save its sequences as FASTA"),
    other(rb"(?s)[^>].{0,500}?[\0-\x08\x0e-\x1f\x7f]", "binary data", "give a FASTA file"),
    other(rb"@(?:HD|SQ|RG|PG|CO)\t", "SAM"),
    other(rb"@", "FASTQ"),
    other(rb"<", "HTML or XML, perhaps the error page of a download", "fetch the file again"),
    other(rb"[{\[]", "JSON", WRITE),
    other(rb"#[ \t]*STOCKHOLM", "Stockholm"),
    other(rb"(?i)#NEXUS", "NEXUS"),
    other(
        rb"##gff|#!|#gtf", "GFF or GTF, which has no sequences", "give the FASTA file of proteins"
    ),
    other(rb"##fileformat=VCF", "VCF, which has no sequences", "give the FASTA file of proteins"),
    other(rb"LOCUS[ \t]", "GenBank"),
    other(rb"ID {3}", "an EMBL or UniProt flat file"),
    other(rb"CLUSTAL|MUSCLE \(", "ClustalW"),
    other(rb"!!(?:AA|NA)_|PileUp|(?:[^\n>]*\n){0,9}[^\n>]*MSF:[ \t]*[0-9]", "MSF"),
    other(rb"[ \t]*[0-9]+[ \t]+[0-9]+(?:[ \t]+[IiSs])?[ \t]*(?:\n|\Z)", "PHYLIP"),
    other(
        rb"(?:HEADER|OBSLTE|TITLE|CAVEAT|COMPND|REMARK|SEQRES|CRYST1|MODEL|ATOM|HETATM) ",
        "PDB",
        CHAINS,
    ),
    other(rb"data_\S", "mmCIF", CHAINS),
    other(rb"HMMER[23]", "a profile of HMMER", PROTEINS),
    other(
        rb"#[0-9,]+\t[0-9,]+[ \t]*\n>",
        "A3M of ColabFold",
        "take its first line out, and convert it to FASTA",
    ),
    other(rb"[^\n>]*\t", "a table (TSV)", "write its sequences as FASTA"),
    other(
        rb"[^\n,;>]+(?:[,;](?! )[^\n,;]*)+(?:\n|\Z)",
        "a table (CSV)",
        "write its sequences as FASTA",
    ),
    other(
        rb"[A-Za-z*.\-]{5,}[ \t]*(?:\n|\Z)|[ \t]*1[ \t]+[A-Za-z]{3}",
        "a sequence without a header",
        "put a line '>id' before it",
    ),
)
"""Beginnings of files that are not FASTA; the first match counts."""

PIR = other(
    rb">(?:[PF]1|D[LC]|R[LC]|N[13]|XX);",
    "PIR, whose second line is a title",
)

INSIDE = (
    (b";", OtherFormat(re.compile(rb"\n" + PIR.pattern.pattern), PIR.what)),
    (b"@", other(rb"\n@[^\n]*\n(?:[A-Za-z*.\-]+\n)+\+", "FASTQ from here on")),
    (
        b"/",
        other(rb"\n//[ \t]*(?=\n)", "the end of a GenBank, EMBL or Stockholm record"),
    ),
    (b"{", other(rb"\n\{", "JSON from here on")),
    (b"<", other(rb"(?i)\n<(?:!doctype|html|\?xml)", "HTML or XML from here on")),
)
"""Other formats that may occur between records, each with a byte that it contains."""


def require_fasta(text: bytes | bytearray, place: str) -> None:
    """Raise InputError unless a file begins with a record; `place` is the file name and line."""
    for one in BEGINNINGS:
        if one.pattern.match(text[:LOOK]):
            raise refusal(one, place)
    if text.startswith(b">"):
        return
    start = text.split(b"\n", 1)[0][:40].decode("utf-8", "replace")
    remedy = "begin each record with a line '>id'"
    raise InputError(f"{place}: text before the first '>': {start!a}; {remedy}")


def require_no_other(records: bytes, name: str, line: int) -> None:
    """Raise InputError for another format among records, the first of which is at `line`."""
    if PIR.pattern.match(records):
        raise refusal(PIR, f"{name}:{line}")
    for byte, one in INSIDE:
        if byte in records and (match := one.pattern.search(records)):
            line += records.count(b"\n", 0, match.start() + 1)
            raise refusal(one, f"{name}:{line}")


def require_no_a3m(records: bytes, name: str, line: int) -> None:
    """Raise InputError if the first records of a file are an alignment with insertions.

    Insertions are lower-case letters outside of the columns: without them all records have the same
    length, with them they do not. FASTA with lower case (masked residues) has many lengths.
    """
    if b"-" not in records:
        return
    bodies = [text.partition(b"\n")[2] for text in records[1:].split(b"\n>", FIRST)[:FIRST]]
    letters = [body.translate(None, b" \t\n\v\f.") for body in bodies]
    columns = [body.translate(None, LOWER) for body in letters]
    widths, lengths = {len(one) for one in columns}, {len(one) for one in letters}
    if (
        len(widths) == 1
        and len(lengths) > 1
        and min(widths) >= LEAST_COLUMNS
        and columns[0].strip(b"-")
        and any(b"-" in one for one in columns)
    ):
        remedy = f"convert it to FASTA, or set {setting('shard.gaps')} to 'remove' to drop gaps"
        what = "A3M or A2M, an alignment with insertions in lower case"
        raise InputError(f"{name}:{line}: not FASTA, looks like {what}; {remedy}")


def refusal(one: OtherFormat, place: str) -> InputError:
    """The error that names the format of a file."""
    return InputError(f"{place}: not FASTA, looks like {one.what}; {one.remedy}")
