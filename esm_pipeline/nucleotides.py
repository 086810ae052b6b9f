"""Nucleotides: whether a sequence looks like them, and the protein that they code for.

Peer: Biopython's `Seq.translate`; its tables of the NCBI's genetic codes are read here.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from esm_pipeline.arrays import UInt8

CODES = b"ACGTRYSWKMBDHVN"
"""The IUPAC codes of nucleotides, in the order of their numbers here; U is T."""

USUAL = b"ACGTUN"
RARE = b"RYSWKMBDHV"
NO_LETTERS = b"-.*:"
LEAST_LETTERS = 20
TWENTIETH = 20

STOP, METHIONINE = b"*", b"M"

NUMBERS = np.zeros(256, np.int64)
NUMBERS[np.frombuffer(CODES, np.uint8)] = range(len(CODES))
NUMBERS[ord("U")] = CODES.index(b"T")
PLACES = np.array([256, 16, 1])

NUCLEOTIDES = ("refuse", "keep")
"""What a function that takes sequences can do with them."""

KEEP_NUCLEOTIDES = "translate it, or pass nucleotides='keep' to take the letters as residues"

FRAME = re.compile(rb"\[frame=([123])\]")
"""How the NCBI's files of coding sequences tell the frame, where it is not the first."""

PRODIGAL = re.compile(rb" # (-?1) # ID=[^;]*;partial=([01])([01]);")
"""Strand, and whether the gene runs off the contig at its left and right edge."""

PARTIAL = re.compile(rb"\[partial=5'")
"""How the NCBI's files tell that the start is missing."""


class GeneticCode(NamedTuple):
    """A genetic code: `acids` (4096,) in ASCII, by 256 a + 16 b + c of the numbers of a codon."""

    acids: UInt8
    starts: frozenset[bytes]
    two_readings: frozenset[bytes]
    """Codons that stop at the end of a gene, and code for an amino acid inside it."""


class Translation(NamedTuple):
    """A protein, with `*` for stops, and how it was read."""

    protein: bytes
    frame: int
    notes: tuple[str, ...]


def nucleotides_in(sequence: bytes) -> str:
    """ "DNA" or "RNA" if an upper-case sequence looks like that, else "".

    It does with 20 letters or more, 95 % of them A C G T U N, the rest IUPAC codes, and at least
    three of A, C, G, T/U at 5 % each: a peptide of few kinds of residues does not.
    """
    if b"L" in sequence or b"E" in sequence:  # nearly every protein ends here
        return ""
    letters = sequence.translate(None, NO_LETTERS)
    if len(letters) < LEAST_LETTERS or not only_nucleotides(letters):
        return ""
    a, c, g, t, u = (letters.count(letter) for letter in (b"A", b"C", b"G", b"T", b"U"))
    if sum(TWENTIETH * count >= len(letters) for count in (a, c, g, t + u)) < 3:
        return ""
    return "RNA" if u > t else "DNA"


def nucleotides_among(sequence: bytes) -> str:
    """The same of each chain of a complex, which has `:` between them: "DNA in chain 2", or ""."""
    chains = sequence.split(b":")
    for number, one in enumerate(chains, 1):
        if kind := nucleotides_in(one):
            return f"{kind} in chain {number}" if len(chains) > 1 else kind
    return ""


def only_nucleotides(letters: bytes) -> bool:
    """Whether some letters can be nucleotides: IUPAC codes, 95 % of them A C G T U N."""
    rare = letters.translate(None, USUAL)
    return bool(letters) and TWENTIETH * len(rare) <= len(letters) and not rare.strip(RARE)


def translate(sequence: bytes, number: int, header: bytes = b"") -> Translation:
    """The protein of an upper-case coding sequence by the NCBI's genetic code `number`.

    It is read in frame 1 unless the header says otherwise. Bases after the last whole codon are
    dropped. An alternative start codon is M where the gene is whole: as its header says (Prodigal,
    NCBI), or, without such a header, where it ends with a stop codon. An ambiguous codon is the
    amino acid of all its readings (B, Z or J where they are those two), else X.
    """
    code = genetic_code(number)
    frame = int(match[1]) if (match := FRAME.search(header)) else 1
    coding = sequence[frame - 1 :].replace(b"U", b"T")
    extra = len(coding) % 3
    coding = coding[: len(coding) - extra]
    codons = NUMBERS[np.frombuffer(coding, np.uint8)].reshape(-1, 3) @ PLACES
    protein = code.acids[codons].tobytes()
    notes = [f"last {extra} of {len(sequence)} nucleotides dropped"] if extra else []
    if not protein:
        return Translation(protein, frame, tuple(notes))
    if coding[-3:] in code.two_readings:
        protein = protein[:-1] + STOP
    first = coding[:3]
    whole = has_start(header)
    if whole is False or frame > 1:
        notes.append("partial at its start")
    elif first not in code.starts:
        notes.append("begins without a start codon")
    elif protein[:1] != METHIONINE:
        if whole or protein.endswith(STOP):
            notes.append(f"start codon {first.decode()} read as M")
            protein = METHIONINE + protein[1:]
        else:
            read = protein[:1].decode()
            notes.append(f"{first.decode()} at the beginning read as {read}: no stop at the end")
    return Translation(protein, frame, tuple(notes))


def has_start(header: bytes) -> bool | None:
    """Whether the gene of a header begins with its start codon; None if the header tells nothing.

    Prodigal tells which edge of the contig a gene runs off: on the other strand it starts at the
    right one.
    """
    if match := PRODIGAL.search(header):
        strand, left, right = match.groups()
        return (left if strand == b"1" else right) == b"0"
    return False if PARTIAL.search(header) else None


@lru_cache(4)
def genetic_code(number: int) -> GeneticCode:
    """The NCBI's genetic code `number`, by Biopython's tables."""
    from Bio.Data import CodonTable

    table = CodonTable.ambiguous_dna_by_id[number]
    plain = CodonTable.unambiguous_dna_by_id[number]
    acids = np.full(16**3, ord("X"), np.uint8)
    letters = CODES.decode()
    for a, first in enumerate(letters):
        for b, second in enumerate(letters):
            for c, third in enumerate(letters):
                codon = first + second + third
                try:
                    acid = table.forward_table[codon]
                except (KeyError, CodonTable.TranslationError):  # a stop; several readings
                    acid = "*" if codon in table.stop_codons else "X"
                acids[256 * a + 16 * b + c] = ord(acid)
    two = [codon for codon in plain.stop_codons if codon in plain.forward_table]
    as_bytes = [frozenset(map(str.encode, codons)) for codons in (plain.start_codons, two)]
    return GeneticCode(acids, *as_bytes)
