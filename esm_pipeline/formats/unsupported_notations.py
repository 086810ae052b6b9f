"""Why the notation of a variant cannot be read or scored: what it looks like, and what to write.

Notations for DNA and RNA (HGVS, dbSNP, VCF), for effects without a sequence, and of Enrich2; and
cells that a spreadsheet changed.
"""

from __future__ import annotations

import re
from collections.abc import Container

from esm_pipeline.errors import setting

PROTEIN = "write the change of the protein, as A42G or p.Ala42Gly"
GIVE_SEQUENCE = "give the protein it makes as a sequence"
ROWS = "give each its own row"
FEWEST_RESIDUES = 12
"""Letters from which a text without a number counts as a sequence, not as a word."""

MISSING_VALUES = frozenset(("na", "n/a", "nan", "none", "null", "-", ".", "p.", "<na>"))
"""What a cell says if its value is missing, in lower case."""

UNSUPPORTED: tuple[tuple[str, str], ...] = (
    (r"#(NAME\?|REF!|VALUE!|NUM!|DIV/0!|NULL!|N/A)", f"is an error of a spreadsheet; {PROTEIN}"),
    (r"\d{1,2}-[A-Z]{3}(-\d+)?|[A-Z]{3}-\d{2}", f"is a date of a spreadsheet; {PROTEIN}"),
    (r"p\.\(?0\??\)?", "says that no protein is made; leave it out"),
    (r"p\.\(?\?\)?", "says that the effect on the protein is not known; leave it out"),
    (r"_sy", "stands for all synonymous changes together; write WT for the wild type"),
    (r"rs\d+", f"is a number of dbSNP; {PROTEIN}"),
    (r"([^\s]+:)?[cgmnr]\.[^:\s]+:p\..+", "has a change of DNA too; write p.Ala42Gly alone"),
    (r"([^\s:]+:)?[cgmnor]\.\S.*", f"is a change of DNA or RNA; {PROTEIN}"),
    (
        r"(chr)?[\dXYMT]+[-:_]\d+[-:_]?[ACGT]*[-:_/>|][ACGT*,-]+",
        f"is a change of DNA; {PROTEIN}",
    ),
    (r"\d+[ACGTU]+>[ACGTU]+", f"is a change of DNA or RNA; {PROTEIN}"),
    (r".*\](\(;\)|;)\[.*|.*\(;\).*", f"is of two alleles, or may be; {ROWS}"),
    (r".*\^.*", f"is one change or another; {ROWS}"),
    (r".*\[[\d?_]+\]", "repeats residues; write it as an insertion, K23_L24insQS"),
    (r".*\?.*", "is uncertain; write the change that you mean, or leave it out"),
    (r"(p\.)?\(?([A-Z]|[A-Z]{3})-?\d+(stop|och|amb|opa|trm)\)?", f"is a stop; {GIVE_SEQUENCE}"),
    (r"(p\.)?\(?(\*|ter|stop)-?\d+.*", f"is an extension; {GIVE_SEQUENCE}"),
    (r"(p\.)?\(?[A-Z]+-?\d+[A-Z]*(fs|frame).*", f"is a frame shift; {GIVE_SEQUENCE}"),
    (r"(p\.)?\(?-?\d+([A-Z]|[A-Z]{3})\)?", f"names no residue of the wild type; {PROTEIN}"),
    (r"(p\.)?\(?([A-Z]|[A-Z]{3})-?\d+\)?", f"does not say what the residue becomes; {PROTEIN}"),
    (
        r".*[/|&].*",
        f"joins several by a sign that can mean both or either; write A42G:T50K, or {ROWS}",
    ),
    (r".*\d[A-Z]+_[A-Z]+-?\d+[A-Z]+", "joins several by '_'; write A42G:T50K"),
)
"""Patterns of a whole cell, and why it cannot be read or scored."""

PART = re.compile(r"[A-Z*-]+/[A-Z*-]+|-?\d+(-\d+)?(/\d+)?|[A-Z*]", re.ASCII | re.IGNORECASE)
"""VEP's `A/V` or `20`: only a part of the mutation."""

LONGEST_COMPARED = 1000  # letters of a cell that is compared with the patterns
KINDS_OF_VARIANT = re.compile(
    r"missense|nonsense|silent|synonymous|frame.?shift|in.?frame|splice", re.I
)
SUBSTITUTION = re.compile(r"(?:p\.)?\(?([A-Z]{3})-?\d+([A-Z]{3})\)?", re.ASCII | re.IGNORECASE)
SEQUENCE_LETTERS = re.compile(rf"[ACDEFGHIKLMNPQRSTVWYXBZUO*-]{{{FEWEST_RESIDUES},}}", re.I)
PATTERNS = [(re.compile(look, re.ASCII | re.IGNORECASE), why) for look, why in UNSUPPORTED]


def is_missing(text: str) -> bool:
    """Whether the value of a cell is missing."""
    return not text or text.lower() in MISSING_VALUES


def looks_like_a_sequence(text: str) -> bool:
    """Whether a cell holds residues rather than a mutation."""
    return bool(SEQUENCE_LETTERS.fullmatch("".join(text.split())))


def why_unread(text: str, residues: Container[str]) -> str:
    """Why no mutation can be read from a cell, as a predicate for a message; '' if not known.

    `residues` are the three-letter codes, in lower case.
    """
    if looks_like_a_sequence(text):
        whole = setting("score.mutated_sequence_col")
        return f"looks like a whole sequence; name its column by {whole}"
    if PART.fullmatch(text):
        columns = f"{setting('score.position_col')} and {setting('score.mutant_aa_col')}"
        return f"is no more than a position or residues; name the columns of both by {columns}"
    if len(text) > LONGEST_COMPARED:
        return ""
    if KINDS_OF_VARIANT.fullmatch(text.split("_")[0]):
        return f"is a kind of variant; {PROTEIN}"
    for pattern, why in PATTERNS:
        if pattern.fullmatch(text):
            return why
    if match := SUBSTITUTION.fullmatch(text):
        for code in match.groups():
            if code.lower() not in residues:
                return f"names {code!a}, which is no amino acid; correct it"
    return ""
