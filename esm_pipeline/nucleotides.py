"""Nucleotides: whether a sequence looks like DNA or RNA, and its translation into a protein.

Peer: Biopython's `Seq.translate`; the NCBI's genetic codes are taken from its tables.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from esm_pipeline.arrays import UInt8

NUCLEOTIDE_CODES = b"ACGTRYSWKMBDHVN"
"""IUPAC codes of nucleotides; the number of a code is its position here. U counts as T."""

USUAL = b"ACGTUN"
RARE = b"RYSWKMBDHV"
NOT_LETTERS = b"-.*:"
LEAST_LETTERS = 20
"""Shorter sequences are never taken for nucleotides."""

TWENTIETH = 20  # 5 % as a divisor

STOP_SYMBOL, METHIONINE = b"*", b"M"

NUMBERS = np.zeros(256, np.int64)
NUMBERS[np.frombuffer(NUCLEOTIDE_CODES, np.uint8)] = range(len(NUCLEOTIDE_CODES))
NUMBERS[ord("U")] = NUCLEOTIDE_CODES.index(b"T")
PLACES = np.array([256, 16, 1])

NUCLEOTIDES = ("refuse", "keep")
"""What a function that takes sequences can do with nucleotides."""

KEEP_NUCLEOTIDES = "translate it, or pass nucleotides='keep' to take the letters as residues"

FRAME = re.compile(rb"\[frame=([123])\]")
"""The reading frame in headers of the NCBI's coding sequences, if it is not the first."""

PRODIGAL = re.compile(rb" # (-?1) # ID=[^;]*;partial=([01])([01]);")
"""Headers of Prodigal: strand, and whether the gene runs off the contig at its left and right."""

PARTIAL = re.compile(rb"\[partial=5'")
"""Mark of a missing start in the NCBI's headers."""


class GeneticCode(NamedTuple):
    """`acids` (4096,): the amino acid, in ASCII, of the codon a b c at 256 a + 16 b + c."""

    acids: UInt8
    starts: frozenset[bytes]
    two_readings: frozenset[bytes]
    """Codons that are a stop at the end of a gene but an amino acid inside it."""


class Translation(NamedTuple):
    """A protein with `*` for stops, its reading frame, and notes on the translation."""

    protein: bytes
    frame: int
    notes: tuple[str, ...]


def nucleotides_in(sequence: bytes) -> str:
    """Whether an upper-case sequence looks like nucleotides: "DNA", "RNA" or "".

    It does if it has 20 letters or more, 95 % of them A C G T U N and the rest IUPAC codes, and at
    least three of A, C, G, T/U make up 5 % each: unlike a peptide of few kinds of residues.
    """
    if b"L" in sequence or b"E" in sequence:  # nearly every protein returns here
        return ""
    letters = sequence.translate(None, NOT_LETTERS)
    if len(letters) < LEAST_LETTERS or not only_nucleotides(letters):
        return ""
    a, c, g, t, u = (letters.count(letter) for letter in (b"A", b"C", b"G", b"T", b"U"))
    if sum(TWENTIETH * count >= len(letters) for count in (a, c, g, t + u)) < 3:
        return ""
    return "RNA" if u > t else "DNA"


def nucleotides_among(sequence: bytes) -> str:
    """The same for a complex with `:` between its chains: such as "DNA in chain 2", or ""."""
    chains = sequence.split(b":")
    for number, chain in enumerate(chains, 1):
        if kind := nucleotides_in(chain):
            return f"{kind} in chain {number}" if len(chains) > 1 else kind
    return ""


def only_nucleotides(letters: bytes) -> bool:
    """Whether letters can be nucleotides: IUPAC codes, 95 % of them A C G T U N."""
    rare = letters.translate(None, USUAL)
    return bool(letters) and TWENTIETH * len(rare) <= len(letters) and not rare.strip(RARE)


def translate(sequence: bytes, number: int, header: bytes = b"") -> Translation:
    """Translate an upper-case coding sequence with the NCBI's genetic code `number`.

    The reading frame is 1 unless the header says otherwise. Bases after the last complete codon are
    dropped. An alternative start codon becomes M if the gene is complete: as its header says
    (Prodigal, NCBI), or, without such a header, if it ends with a stop codon. An ambiguous codon
    becomes the amino acid that all its readings share (B, Z or J for those pairs), else X.
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
        protein = protein[:-1] + STOP_SYMBOL
    first = coding[:3]
    whole = has_start(header)
    if whole is False or frame > 1:
        notes.append("partial at its start")
    elif first not in code.starts:
        notes.append("begins without a start codon")
    elif protein[:1] != METHIONINE:
        if whole or protein.endswith(STOP_SYMBOL):
            notes.append(f"start codon {first.decode()} read as M")
            protein = METHIONINE + protein[1:]
        else:
            read = protein[:1].decode()
            notes.append(f"{first.decode()} at the beginning read as {read}: no stop at the end")
    return Translation(protein, frame, tuple(notes))


def has_start(header: bytes) -> bool | None:
    """Whether the gene of a header begins with its start codon; None if the header does not say.

    Prodigal says at which edges of the contig a gene runs off; on the reverse strand the gene
    starts at the right one.
    """
    if match := PRODIGAL.search(header):
        strand, left, right = match.groups()
        return (left if strand == b"1" else right) == b"0"
    return False if PARTIAL.search(header) else None


@lru_cache(4)
def genetic_code(number: int) -> GeneticCode:
    """The NCBI's genetic code `number`, from Biopython's tables."""
    from Bio.Data import CodonTable

    table = CodonTable.ambiguous_dna_by_id[number]
    plain = CodonTable.unambiguous_dna_by_id[number]
    acids = np.full(16**3, ord("X"), np.uint8)
    letters = NUCLEOTIDE_CODES.decode()
    for a, first in enumerate(letters):
        for b, second in enumerate(letters):
            for c, third in enumerate(letters):
                codon = first + second + third
                try:
                    acid = table.forward_table[codon]
                except (KeyError, CodonTable.TranslationError):  # a stop, or several readings
                    acid = "*" if codon in table.stop_codons else "X"
                acids[256 * a + 16 * b + c] = ord(acid)
    two = [codon for codon in plain.stop_codons if codon in plain.forward_table]
    as_bytes = [frozenset(map(str.encode, codons)) for codons in (plain.start_codons, two)]
    return GeneticCode(acids, *as_bytes)
