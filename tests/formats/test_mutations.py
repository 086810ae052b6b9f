"""Notations of mutations: what each one means, and why some cannot be scored."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm_pipeline.errors import InputError
from esm_pipeline.formats.mutations import (
    AMINO_ACIDS,
    THREE_LETTERS,
    MisfitError,
    compare,
    mutate,
    parse,
    resolve,
    spell,
    substitutions,
)

WILD_TYPE = "MKVLAGKSTW"
#            1234567890

SPELLINGS = {
    "MLVLAGKSTW": [
        "K2L",
        "k2l",
        " K2L ",
        "p.K2L",
        "p.Lys2Leu",
        "p.(Lys2Leu)",
        "p.LYS2LEU",
        "NP_000537.3:p.Lys2Leu",
        "sp|P1|X:p.K2L",
        "P62593:K2L",
        "NM_000518.5(HBB):c.20A>T (p.Lys2Leu)",
        "c.20A>T (p.Lys2Leu)",
        "(p.Lys2Leu)",
        "K2_K2delinsL",
        "K2delinsL",
        "K2L:V3V",
    ],
    "MLVLAGKTTW": [
        "K2L:S8T",
        "S8T:K2L",
        "K2L;S8T",
        "K2L,S8T",
        "K2L + S8T",
        "K2L S8T",
        "K2L::S8T",
        "p.[Lys2Leu;Ser8Thr]",
        "p.[(Lys2Leu);(Ser8Thr)]",
        "K2L:p.S8T",
        "P62593:K2L:S8T",
        "[K2L;S8T]",
    ],
    WILD_TYPE: [
        "WT",
        "wt",
        "_wt",
        "wild-type",
        "wildtype",
        "=",
        "p.=",
        "p.(=)",
        "K2K",
        "K2=",
        "p.Lys2=",
        "p.(Lys2=)",
        "ENSP00000269305.4:p.Lys2%3D",
        "P62593:WT",
        "K2delinsK",
        "M1_V3delinsMKV",
    ],
    "MVLAGKSTW": ["K2del", "k2del", "K2-", "p.Lys2del", "K2delK", "p.Lys2delLys", "K2_K2del"],
    "MAGKSTW": ["K2_L4del", "p.Lys2_Leu4del", "p.(Lys2_Leu4del)", "K2_L4delKVL"],
    "MKQSVLAGKSTW": ["K2_V3insQS", "p.Lys2_Val3insGlnSer", "K2delinsKQS", "V3delinsQSV"],
    "MKKVLAGKSTW": ["K2dup", "p.Lys2dup", "K2dupK", "M1_K2insK"],
    "MKVLKVLAGKSTW": ["K2_L4dup", "p.Lys2_Leu4dup", "K2_L4dupKVL", "L4_A5insKVL"],
    "MQSAGKSTW": ["K2_L4delinsQS", "p.Lys2_Leu4delinsGlnSer", "K2_L4delKVLinsQS"],
    "MUVLAGKSTO": ["K2U:W10O", "p.Lys2Sec:p.Trp10Pyl"],
    "MKVLALAGKSTW": ["L4_A5insAL", "A5_A5delinsALA", "p.Leu4_Ala5insAlaLeu"],
    "MKVLAALAGSTW": ["A5_G6insALA:K7del", "Ala5_Gly6insAlaLeuAla:K7del"],
    "KVLAGKSTW": ["M1del"],
    "MKVLAGKST": ["W10del"],
    "MKVLAGKSTWW": ["W10dup", "W10delinsWW"],
    "MALVLAGKSTW": ["M1_K2insA:K2L", "K2delinsAL"],
}


@pytest.mark.parametrize(
    ("text", "mutant"), [(text, mutant) for mutant, texts in SPELLINGS.items() for text in texts]
)
def test_spellings(text, mutant):
    assert mutate(resolve(parse(text), WILD_TYPE), WILD_TYPE) == mutant


UNREADABLE = "cannot be read; write it as A42G or p.Ala42Gly"
STOP = "is a stop; give the protein it makes as a sequence"
PROTEIN = "write the change of the protein, as A42G or p.Ala42Gly"
UNREAD = {
    "joins several by a sign that can mean both or either; write A42G:T50K, or give each": (
        "K2L/S8T",
        "K2L|S8T",
        "K2L/T",
    ),
    "joins several by '_'; write A42G:T50K": ("K2L_S8T",),
    "says that the effect on the protein is not known; leave it out": ("p.?", "p.(?)"),
    "says that no protein is made; leave it out": ("p.0", "p.0?", "p.(0?)"),
    "stands for all synonymous changes together; write WT for the wild type": ("_sy",),
    STOP: ("K2Stop", "K2stop", "K2STOP", "p.Lys2Stop"),
    "is a frame shift; give the protein it makes as a sequence": ("K2FS", "K2frameshift"),
    "is an extension; give the protein it makes as a sequence": ("Ter123Ext", "*11Qext"),
    f"is a change of DNA or RNA; {PROTEIN}": (
        *("c.20A>T", "g.100A>T", "NM_000518.5:c.20A>T", "chr1:g.5A>T", "n.5del", "r.5a>u", "20A>T"),
    ),
    f"is a change of DNA; {PROTEIN}": ("1-5-G-A", "chr1:5:G:A", "1_5_G/A", "X:153:G>T"),
    "has a change of DNA too; write p.Ala42Gly alone": ("HBB:exon1:c.A20T:p.E7V",),
    f"is a number of dbSNP; {PROTEIN}": ("rs334",),
    f"is an error of a spreadsheet; {PROTEIN}": ("#NAME?", "#VALUE!", "#REF!"),
    f"is a date of a spreadsheet; {PROTEIN}": ("1-Mar", "Mar-01", "1-Sep-2024"),
    "is uncertain; write the change that you mean, or leave it out": ("K2?", "p.Met1?"),
    "is of two alleles, or may be; give each its own row": (
        "p.[Lys2Leu];[Ser8Thr]",
        "p.[Lys2Leu](;)[Ser8Thr]",
    ),
    "is one change or another; give each its own row": ("p.(Lys2Leu^Ser)",),
    "repeats residues; write it as an insertion, K23_L24insQS": ("p.Lys2_Val3[4]", "K2[3]"),
    f"names no residue of the wild type; {PROTEIN}": ("2L", "2Leu"),
    f"does not say what the residue becomes; {PROTEIN}": ("K2", "p.Lys2"),
    "names 'Foo', which is no amino acid; correct it": ("p.Lys2Foo",),
    "names 'Lis', which is no amino acid; correct it": ("p.Lis2Leu",),
    f"is a kind of variant; {PROTEIN}": ("missense", "missense_variant", "synonymous"),
    "has blanks in it; write it as 'K2L'": ("K 2 L", "K2 L"),
    "looks like a whole sequence; name its column by --mutated-sequence-col": (
        *("MKVLAGKSTWMKV", "mkvlagkstwmkv"),
    ),
    "is no more than a position or residues; name the columns of both by --position-col and "
    "--mutant-aa-col": ("K/L", "KV/-", "-/L", "2", "2-3", "2/10", "K"),
}
"""Notations of the field that no mutation can be read from, each with its reason."""

REFUSED = {
    "": "no mutation; write WT for the wild type",
    " ": "no mutation; write WT for the wild type",
    "K2*": f"mutation 'K2*' {STOP}",
    "p.Lys2Ter": f"mutation 'Lys2Ter' {STOP}",
    "K2_V3ins*": f"mutation 'K2_V3ins*' {STOP}",
    "K2fs": "mutation 'K2fs' is a frame shift; give the protein it makes as a sequence",
    "p.Lys2ProfsTer5": "mutation 'Lys2ProfsTer5' is a frame shift; give",
    "p.Met1ext-5": "mutation 'Met1ext-5' is an extension; give",
    "p.Ter11GlnextTer17": "mutation 'Ter11GlnextTer17' is an extension; give",
    "K2X": "mutation 'K2X' leads to X, which is no single amino acid; name one of the 20, U or O",
    "p.Lys2Asx": "leads to B, which is no single amino acid",
    "K2J": "leads to J, which is no single amino acid",
    "K3L": "residue 3 is V, not K",
    "K2L:W9A": "residue 9 is T, not W",
    "K2delV": "residue 2 is K, not V",
    "K0L": "residue 0 does not exist: the protein has 10 residues",
    "K11L": "residue 11 does not exist: the protein has 10 residues",
    "K2_W11del": "residue 11 does not exist: the protein has 10 residues",
    "W10_A11insG": "residue 11 does not exist: the protein has 10 residues",
    "K2L:K2S": "residue 2 is mutated twice; keep one of them",
    "K2L:M1_V3del": "residue 2 is mutated twice; keep one of them",
    "K2_V3insA:K2_V3insG": "residue 3 is mutated twice; keep one of them",
    "K2_A5insQ": "mutation 'K2_A5insQ' should name two neighbours, as K23_L24insQS does",
    "K2insQ": "should name two neighbours",
    "L4_K2del": "mutation 'L4_K2del' ends before it begins; put the smaller place first",
    "K2_L4delKV": "names 2 residues in the place of 3; correct one of the two",
    "K2_L4A": "write ranges as K23_V25delinsQS",
    **{
        text: f"mutation {text!a} {UNREADABLE}"
        for text in ("foo", "K2Lx", ":", "A42G!", "K2>L", "K٢L", "K2L\x00")
    },
    **{text: f"mutation {text!a} {reason}" for reason, texts in UNREAD.items() for text in texts},
    "-": "no mutation; write WT for the wild type",
    "NA": "no mutation; write WT for the wild type",
    "p.": "no mutation; write WT for the wild type",
    "K2ins5": f"mutation 'K2ins5' {UNREADABLE}",
    "K2INSQ": f"mutation 'K2INSQ' {UNREADABLE}",
    "é2L" * 40: "mutation '\\xe92L\\xe92L",
}


@pytest.mark.parametrize(("text", "reason"), REFUSED.items())
def test_what_cannot_be_scored_has_its_reason(text, reason):
    with pytest.raises(InputError) as refused:
        resolve(parse(text), WILD_TYPE)
    message = str(refused.value)
    assert reason in message
    assert len(message.splitlines()) == 1
    assert len(message) < 250
    misfits = message.startswith("residue") and "twice" not in message
    assert isinstance(refused.value, MisfitError) == misfits


@pytest.mark.parametrize(
    ("text", "offset", "mutant"),
    [
        ("K26L", 24, "MLVLAGKSTW"),
        ("p.Lys26_Val27insGln", 24, "MKQVLAGKSTW"),
        ("K1L", -1, "MLVLAGKSTW"),
        ("M-3A", -4, "AKVLAGKSTW"),
        ("M-3_K-2del", -4, "VLAGKSTW"),
    ],
)
def test_offsets(text, offset, mutant):
    assert mutate(resolve(parse(text, offset), WILD_TYPE, offset), WILD_TYPE) == mutant


def test_reasons_count_as_the_text_does():
    for text, reason in (
        ("K27L", "residue 27 is V, not K"),
        ("K2L", "residue 2 does not exist: the protein has 25 to 34"),
    ):
        with pytest.raises(MisfitError, match=reason):
            resolve(parse(text, 24), WILD_TYPE, 24)


def test_a_notation_is_read_in_no_time_however_long():
    for text in ("K2_L4del" + "ALA" * 5000 + "!", "K2_L4del" + "ALAins" * 3000 + "!", "K2" * 9000):
        with pytest.raises(InputError, match="cannot be read"):
            parse(text)


PROTEINS = st.text("AC", min_size=1, max_size=6) | st.text(AMINO_ACIDS, min_size=1, max_size=15)
THREE = {letter: code.capitalize() for code, letter in THREE_LETTERS.items()}


@given(wild_type=PROTEINS, mutant=PROTEINS, offset=st.integers(-30, 30))
def test_any_mutant_can_be_spelled_and_read_again(wild_type, mutant, offset):
    variant = compare(wild_type, mutant)
    assert mutate(variant, wild_type) == mutant
    text = spell(variant, wild_type)
    again = resolve(parse(text), wild_type)
    assert mutate(again, wild_type) == mutant
    assert spell(again, wild_type) == text
    found = substitutions(variant, wild_type)
    if len(wild_type) != len(mutant):
        assert found is None
    else:
        letters = list(wild_type)
        for at, letter in found:
            assert letters[at] != letter
            letters[at] = letter
        assert "".join(letters) == mutant


@given(wild_type=PROTEINS, data=st.data(), offset=st.integers(-30, 30))
def test_substitutions_in_one_letter_or_three(wild_type, data, offset):
    changes = data.draw(
        st.dictionaries(
            st.integers(0, len(wild_type) - 1), st.sampled_from(AMINO_ACIDS), min_size=1
        )
    )
    order = data.draw(st.permutations(sorted(changes)))
    separator = data.draw(st.sampled_from(":;, +"))
    short = [f"{wild_type[at]}{at + 1 + offset}{changes[at]}" for at in order]
    long = [f"p.{THREE[wild_type[at]]}{at + 1 + offset}{THREE[changes[at]]}" for at in order]
    expected = sorted((at, new) for at, new in changes.items() if new != wild_type[at])
    for parts in (short, long):
        variant = resolve(parse(separator.join(parts), offset), wild_type, offset)
        assert substitutions(variant, wild_type) == expected


@given(
    wild_type=PROTEINS,
    text=st.text("AKLpWT.:;_0123456789delinsdupfsTer()[]=*- ", max_size=12) | st.text(max_size=8),
)
def test_any_text_is_read_or_refused(wild_type, text):
    try:
        mutant = mutate(resolve(parse(text), wild_type), wild_type)
    except InputError:
        return
    assert set(mutant) <= set(AMINO_ACIDS + "UO")


def test_a_length_that_comes_out_the_same_is_a_substitution():
    variant = resolve(parse("K2del:T9_W10insT"), WILD_TYPE)
    assert mutate(variant, WILD_TYPE) == "MVLAGKSTTW"
    assert substitutions(variant, WILD_TYPE) == [
        (1, "V"), (2, "L"), (3, "A"), (4, "G"), (5, "K"), (6, "S"), (7, "T"),
    ]  # fmt: skip
