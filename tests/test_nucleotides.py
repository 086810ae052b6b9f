"""Nucleotides: what looks like them, and their proteins compared with Biopython's."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from Bio.Data import CodonTable
from Bio.Seq import Seq
from hypothesis import given
from hypothesis import strategies as st

from esm_pipeline.nucleotides import (
    NUCLEOTIDE_CODES,
    genetic_code,
    has_start,
    nucleotides_in,
    only_nucleotides,
    translate,
)

CDS = b"ATGGCGAAACTGGTGATTACCCGTTGGCAGGAATAA"
NUMBERS = sorted(CodonTable.unambiguous_dna_by_id)
USUAL = 11


def peer(sequence: str, number: int) -> str:
    """The protein by Biopython, which reads dual codons as amino acids everywhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return str(Seq(sequence).translate(table=number, cds=False))


def body(protein: bytes) -> str:
    """A protein without the places that Biopython reads otherwise: the first and the last."""
    return protein[1:-1].decode()


SEQUENCES = (
    st.text("ACGT", max_size=60)
    | st.text("ACGUN", max_size=60)
    | st.text(NUCLEOTIDE_CODES.decode() + "U", max_size=60)
)


@given(sequence=SEQUENCES, number=st.sampled_from(NUMBERS))
def test_proteins_are_biopythons(sequence: str, number: int) -> None:
    found = translate(sequence.encode(), number, b"x [partial=5'] y")
    expected = peer(sequence, number)
    assert found.protein[:-1].decode() == expected[:-1]
    dual = {"TGA", "TAA", "TAG"} & {codon.decode() for codon in genetic_code(number).two_readings}
    last = sequence[: len(sequence) // 3 * 3][-3:].replace("U", "T")
    assert found.protein[-1:].decode() == ("*" if last in dual else expected[-1:])
    dropped = [note for note in found.notes if "dropped" in note]
    assert len(dropped) == bool(len(sequence) % 3)


def test_a_wrong_table_or_frame_is_seen() -> None:
    """The twin: the same comparison with one deliberate mistake must fail."""
    rng = np.random.default_rng(0)
    sequence = "".join(rng.choice(list("ACGT"), 300))
    right = translate(sequence.encode(), USUAL).protein
    assert body(right) == peer(sequence, USUAL)[1:-1]
    others = [number for number in NUMBERS if body(right) != peer(sequence, number)[1:-1]]
    assert len(others) >= len(NUMBERS) - 5, "code 1 differs by its starts alone, some by one codon"
    for frame in (1, 2):
        assert body(right) != peer(sequence[frame:], USUAL)[1:-1]
    swapped = sequence.translate(str.maketrans("AC", "CA"))
    assert body(translate(swapped.encode(), USUAL).protein) != peer(sequence, USUAL)[1:-1]


@pytest.mark.parametrize("number", NUMBERS)
def test_every_codon_of_every_code(number: int) -> None:
    letters = NUCLEOTIDE_CODES.decode()
    codons = [a + b + c for a in letters for b in letters for c in letters]
    found = translate(("".join(codons) + "AAA").encode(), number, b"[partial=5']").protein.decode()
    assert found == peer("".join(codons) + "AAA", number)
    assert {"B", "Z", "X", "*"} - set(found) in (set(), {"*"})


@pytest.mark.parametrize(
    ("sequence", "header", "protein", "notes"),
    [
        (CDS, b"a", b"MAKLVITRWQE*", ()),
        (CDS.replace(b"T", b"U"), b"a", b"MAKLVITRWQE*", ()),
        (CDS + b"AC", b"a", b"MAKLVITRWQE*", ("last 2 of 38 nucleotides dropped",)),
        (b"GTG" + CDS[3:], b"a", b"MAKLVITRWQE*", ("start codon GTG read as M",)),
        (
            b"GTG" + CDS[3:-3],
            b"a",
            b"VAKLVITRWQE",
            ("GTG at the beginning read as V: no stop at the end",),
        ),
        (CDS[3:], b"a", b"AKLVITRWQE*", ("begins without a start codon",)),
        (b"GTG" + CDS[3:], b"a [partial=5']", b"VAKLVITRWQE*", ("partial at its start",)),
        (
            b"AC" + CDS,
            b"a [partial=5'] [frame=3]",
            b"MAKLVITRWQE*",
            ("partial at its start",),
        ),
        (b"AC", b"a", b"", ("last 2 of 2 nucleotides dropped",)),
        (b"", b"a", b"", ()),
        (b"ATGRAYSARNNNTAR", b"a", b"MBZX*", ()),
    ],
)
def test_starts_and_ends(
    sequence: bytes, header: bytes, protein: bytes, notes: tuple[str, ...]
) -> None:
    found = translate(sequence, USUAL, header)
    assert (found.protein, found.notes) == (protein, notes)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"c_1 # 2 # 181 # 1 # ID=1_1;partial=10;start_type=Edge;rbs_motif=None", False),
        (b"c_1 # 2 # 181 # 1 # ID=1_1;partial=01;start_type=ATG;rbs_motif=None", True),
        (b"c_1 # 2 # 181 # -1 # ID=1_1;partial=10;start_type=GTG;rbs_motif=None", True),
        (b"c_1 # 2 # 181 # -1 # ID=1_1;partial=01;start_type=Edge;rbs_motif=None", False),
        (b"c_1 # 2 # 181 # -1 # ID=1_1;partial=11;start_type=Edge;rbs_motif=None", False),
        (b"lcl|NC_1_cds_1 [gene=x] [partial=5',3'] [gbkey=CDS]", False),
        (b"lcl|NC_1_cds_1 [gene=x] [partial=3'] [gbkey=CDS]", None),
        (b"anything", None),
    ],
)
def test_headers_tell_whether_the_start_is_there(header: bytes, expected: bool | None) -> None:
    """Prodigal counts edges along the contig: a gene of the other strand starts at the right."""
    assert has_start(header) is expected


def test_a_whole_gene_of_prodigal_begins_with_m_though_its_end_is_missing() -> None:
    header = b"c_1 # 2 # 34 # 1 # ID=1_1;partial=01;start_type=TTG;rbs_motif=None"
    assert translate(b"TTG" + CDS[3:-3], USUAL, header).protein == b"MAKLVITRWQE"
    assert translate(b"TTG" + CDS[3:-3], 2, header).protein[:1] == b"L", "no start of that code"


def test_a_codon_of_two_readings_stops_at_the_end_alone() -> None:
    assert genetic_code(27).two_readings == {b"TGA"}
    assert translate(b"ATGTGAAAATGA", 27).protein == b"MWK*"
    assert peer("ATGTGAAAATGA", 27) == "MWKW"


PEPTIDES = [
    b"A" * 40,
    b"GAGAGSGAGAGSGAGAGSGAGAGS",  # silk
    b"AATAATAATAATAATAATAATAATAATAA",  # as antifreeze: A and T alone
    b"G" * 30 + b"NNN",
    b"CGCGCGCGCGCGCGCGCGCGCGCG",
    b"ACGTACGTACGTACGTACG",  # 19 letters
    CDS + b"L",
    CDS + b"F",
    b"N" * 40,
]


@pytest.mark.parametrize("peptide", PEPTIDES)
def test_peptides_are_not_caught(peptide: bytes) -> None:
    assert nucleotides_in(peptide) == ""


@pytest.mark.parametrize(
    ("sequence", "kind"),
    [
        (CDS, "DNA"),
        (CDS.replace(b"T", b"U"), "RNA"),
        (CDS + b"*", "DNA"),
        (CDS[:20] + b"--.." + CDS[20:], "DNA"),
        (CDS[:20] + b":" + CDS[20:], "DNA"),
        (b"ACGTACGTACGTACGTACGT", "DNA"),
        (b"ACG" * 13 + b"RY", "DNA"),  # 2 of 41, less than 5 %
        (b"ACGT" * 10 + b"NNNNNNNNNN", "DNA"),
        (b"ACGT" * 9 + b"RYK", ""),
    ],
)
def test_what_looks_like_nucleotides(sequence: bytes, kind: str) -> None:
    assert nucleotides_in(sequence) == kind


@given(st.text("ACGTUNRYSWKMBDHVLEF", min_size=1, max_size=80))
def test_the_rule_letter_by_letter(text: str) -> None:
    usual = sum(letter in "ACGTUN" for letter in text)
    codes = sum(letter in NUCLEOTIDE_CODES.decode() + "U" for letter in text)
    counts = [text.count("A"), text.count("C"), text.count("G"), text.count("T") + text.count("U")]
    many = sum(count >= 0.05 * len(text) for count in counts) >= 3
    only = usual >= 0.95 * len(text) and codes == len(text)
    assert only_nucleotides(text.encode()) == only
    assert bool(nucleotides_in(text.encode())) == (len(text) >= 20 and only and many)
