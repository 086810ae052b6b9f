"""Sequences given to functions: read as `shard` reads them, or refused with index and place."""

from __future__ import annotations

import re

import pytest
import torch

from esm_pipeline import iter_packed
from esm_pipeline.errors import InputError
from esm_pipeline.model import EsmForMaskedLM, EsmTokenizer

CDS = "ATGGCGAAACTGGTGATTACCCGTTGGCAG"


@pytest.fixture(scope="module")
def model(rotary):
    return EsmForMaskedLM.from_pretrained(rotary)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("mktayiakqr", "MKTAYIAKQR"),
        ("MKT ayi\nAKQR\n", "MKTAYIAKQR"),
        ("MKTAYIAKQR*", "MKTAYIAKQR"),
        ("mkt<mask>yi*", "MKT<mask>YI"),
        ("MJK", "MXK"),
    ],
)
def test_sequences_are_read_as_they_are_written(model, written, meant):
    (_, found), (_, expected) = (next(iter_packed(model, [one])) for one in (written, meant))
    torch.testing.assert_close(found, expected, atol=0, rtol=0)
    tokens = EsmTokenizer.standard()([meant], return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(found, model(**tokens).logits[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("MK7", "sequence 1: '7' at place 3 is no residue; correct the sequence"),
        ("M*K", "sequence 1: '*' at place 2 is inside the sequence; correct the sequence"),
        ("MK-V", "sequence 1: gap '-' at place 3; remove the gaps"),
        ("<mask>.V", "sequence 1: gap '.' at place 7; remove the gaps"),
        ("MK:V", "sequence 1: ':' at place 3 is no residue"),
        ("MK<maks>", "sequence 1: '<' at place 3 is no residue"),
        ("", "sequence 1 has no residues; leave it out"),
        (" *", "sequence 1 has no residues; leave it out"),
        (CDS.lower(), "sequence 1 looks like DNA; translate it, or pass nucleotides='keep'"),
        (CDS.replace("T", "U"), "sequence 1 looks like RNA"),
    ],
)
def test_what_is_no_protein_is_refused_at_once(model, wrong, told):
    with pytest.raises(InputError, match=re.escape(told)):
        iter_packed(model, ["MKV", wrong])


def test_nucleotides_can_be_kept(model):
    ((_, found),) = iter_packed(model, [CDS], nucleotides="keep")
    assert len(found) == len(CDS) + 2
    with pytest.raises(InputError, match="nucleotides 'no' is not 'refuse' or 'keep'"):
        iter_packed(model, [CDS], nucleotides="no")


def test_tokens_are_counted_not_characters(absolute):
    model = EsmForMaskedLM.from_pretrained(absolute)  # positions for 30 residues
    for one in ("A" * 29 + "<mask>", "<mask>" * 30, "A " * 30, "A" * 30 + "*"):
        ((_, found),) = iter_packed(model, [one])
        assert len(found) == 32
    with pytest.raises(InputError, match="sequence 0 has 31 residues, the model has positions"):
        iter_packed(model, ["A" * 30 + "<mask>"])
