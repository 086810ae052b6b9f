"""In truncated proteins, exactly the variant of the row is scored, or nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from esm_pipeline import EsmForMaskedLM, EsmTokenizer, open_results
from esm_pipeline.formats.records import read_records
from esm_pipeline.tasks.score.variant_table import LIKELIHOOD
from tests.tasks.conftest import TABLE
from tests.tasks.score.scoring import MARGINAL, run

LONG = "ACDEFGHIKLMNPQRSTVWY" * 2 + "ACDE"
JUST = LONG[:TABLE]
RATIO = f"{LIKELIHOOD}_ratio"
TRUNCATE = ("--long", "truncate", "--strategy", LIKELIHOOD)
RESIZED = (
    "the variant changes the length of the protein, of which only the first 30 residues are "
    "scored; set --long to window"
)
BEYOND = "residue {} is mutated, but the protein is truncated to the first 30; set --long to"
CUT = "truncated to the first 30 residues"


@torch.no_grad()
def likelihood(folder, sequence: str) -> float:
    """Of a sequence that the model has positions for, one residue masked at a time."""
    model, tokenizer = EsmForMaskedLM.from_pretrained(folder), EsmTokenizer.standard()
    tokens = tokenizer(sequence, return_tensors="pt").input_ids[0]
    total = 0.0
    for place in range(1, len(tokens) - 1):
        masked = tokens.clone()
        masked[place] = tokenizer.mask_token_id
        total += float(model(masked[None]).logits[0, place].log_softmax(-1)[tokens[place]])
    return total


# protein, variant, status, reason, and the mutant and wild type that are compared if it is ok
CASES = [
    ("long", "C2A", "ok", CUT, "AA" + JUST[2:], JUST),
    ("long", f"{LONG[29]}30A", "ok", CUT, JUST[:29] + "A", JUST),
    ("long", f"{LONG[30]}31C", "skipped", BEYOND.format(31), None, None),
    ("long", "WT", "ok", CUT, JUST, JUST),
    ("long", "C2_D3insW", "skipped", RESIZED, None, None),
    ("long", f"{LONG[29]}30_{LONG[30]}31insW", "skipped", RESIZED, None, None),
    ("long", f"{LONG[30]}31_{LONG[31]}32insW", "skipped", BEYOND.format(31), None, None),
    ("long", "C2del", "skipped", RESIZED, None, None),
    ("long", f"C2_{LONG[20]}21del", "skipped", RESIZED, None, None),
    ("long", f"{LONG[28]}29_{LONG[30]}31del", "skipped", BEYOND.format(31), None, None),
    # as long as before, and nothing leaves or enters at the cut
    ("long", "C2del:F5_G6insW", "ok", CUT, "ADEFW" + JUST[5:], JUST),
    ("long", f"C2del:{LONG[29]}30_{LONG[30]}31insW", "ok", CUT, "A" + JUST[2:] + "W", JUST),
    ("long", f"C2del:{LONG[30]}31_{LONG[31]}32insW", "skipped", BEYOND.format(31), None, None),
    ("just", "C2A", "ok", "", "AA" + JUST[2:], JUST),
    ("just", "C2del", "ok", "", "A" + JUST[2:], JUST),
    ("just", "C2_D3insW", "skipped", RESIZED, None, None),
    ("just", "C2_D3insW:F5del", "ok", "", "ACWDE" + JUST[5:], JUST),
    ("short", "A1_C2insW", "ok", "", "AW" + JUST[1:29], JUST[:29]),
    ("short", "A1_C2insWW", "skipped", RESIZED, None, None),
]
PROTEINS = {"long": LONG, "just": JUST, "short": JUST[:29]}


def test_likelihoods_are_those_of_the_variant(esm, absolute, files):
    rows = [{"protein": name, "mutant": text} for name, text, *_ in CASES]
    fasta, table, out = files(PROTEINS, rows)
    code, _, found = run(esm, absolute, fasta, table, out, *TRUNCATE)
    assert code == 0
    for row, (name, text, status, reason, mutant, wild_type) in zip(found, CASES, strict=True):
        assert (row["status"], row["reason"][: len(reason)]) == (status, reason), (name, text)
        assert bool(row["reason"]) == bool(reason)
        if mutant is None:
            assert not row[LIKELIHOOD]
            assert not row[RATIO]
            continue
        expected = likelihood(absolute, mutant)
        assert float(row[LIKELIHOOD]) == pytest.approx(expected, abs=1e-3), (name, text)
        ratio = expected - likelihood(absolute, wild_type)
        assert float(row[RATIO]) == pytest.approx(ratio, abs=2e-3), (name, text)


def test_mutated_sequences_are_those_asked_for(esm, absolute, files):
    """The same, with the variants as whole sequences."""
    sequences = {
        LONG[:1] + "A" + LONG[2:]: ("ok", CUT),
        LONG[:30] + "C" + LONG[31:]: ("skipped", BEYOND.format(31)),
        LONG[:2] + "W" + LONG[2:]: ("skipped", RESIZED),
        LONG[:1] + LONG[2:]: ("skipped", RESIZED),
        LONG[:25]: ("skipped", BEYOND.format(44)),
        LONG: ("ok", CUT),
    }
    fasta, table, out = files({"long": LONG}, [{"seq": one} for one in sequences])
    found = run(esm, absolute, fasta, table, out, "--mutated-sequence-col", "seq", *TRUNCATE)[2]
    for row, (status, reason) in zip(found, sequences.values(), strict=True):
        assert (row["status"], row["reason"][: len(reason)]) == (status, reason)


def test_windows_take_all_of_them(esm, absolute, files):
    """Windows cut nothing; the reason mentions them also where only the mutant is long."""
    rows = [{"protein": name, "mutant": text} for name, text, *_ in CASES]
    fasta, table, out = files(PROTEINS, rows)
    arguments = ("--long", "window", "--strategy", LIKELIHOOD)
    found = run(esm, absolute, fasta, table, out, *arguments)[2]
    assert {row["status"] for row in found} == {"ok"}
    windows = "in windows of 32 tokens"
    for row, (name, text, *_) in zip(found, CASES, strict=True):
        grown = text in ("C2_D3insW", "A1_C2insWW")
        assert row["reason"] == (windows if name == "long" or grown else ""), (name, text)


@pytest.mark.parametrize("strategy", [MARGINAL, "masked_marginal_joint", "wt_marginal"])
def test_the_last_residue_that_is_left_is_scored(esm, absolute, files, strategy):
    """As in a protein that ends there; residues after the cut have no scores."""
    last, beyond = f"{LONG[29]}30W", f"{LONG[30]}31W"
    rows = [
        {"protein": name, "mutant": text}
        for name, text in [
            ("just", last),
            ("long", last),
            ("long", f"A1W:{last}"),
            ("long", beyond),
            ("long", f"A1W:{beyond}"),
        ]
    ]
    fasta, table, out = files(PROTEINS, rows)
    arguments = ("--long", "truncate", "--strategy", strategy)
    found = run(esm, absolute, fasta, table, out, *arguments)[2]
    assert [row["status"] for row in found] == ["ok", "ok", "ok", "skipped", "skipped"]
    assert found[0][strategy] == found[1][strategy] != "0.000000"
    assert [row["reason"] for row in found[:3]] == ["", CUT, CUT]
    assert {row["reason"][:60] for row in found[3:]} == {BEYOND.format(31)[:60]}


def test_a_saturation_and_embeddings_are_of_what_is_left(esm, absolute, tmp_path):
    """As in a protein that ends there, and the records say so."""
    fasta = tmp_path / "in.fasta"
    fasta.write_text(f">just\n{JUST}\n>long\n{LONG}\n")
    cut = ("--model", absolute, "--long", "truncate")
    for command in (
        ("score", *cut, "--saturation", fasta, tmp_path / "score.h5"),
        ("embed", *cut, "--include=mean,bos,residue,contacts", fasta, tmp_path / "embed.h5"),
    ):
        assert esm(*command)[0] == 0
        path = tmp_path / f"{command[0]}.records.tsv"
        reasons = [record.outcomes[command[0]].reason for record in read_records(path)]
        assert reasons == ["", CUT]
    with open_results(tmp_path / "score.h5") as results:
        just, long = results["just"], results["long"]
        assert (long.length, long.sequence) == (TABLE, JUST)
        assert np.abs(just.log_odds - long.log_odds).max() <= 1e-5
    with open_results(tmp_path / "embed.h5") as results:
        just, long = results["just"], results["long"]
        assert long.length == TABLE
        for one, other in (
            (just.mean[2], long.mean[2]),
            (just.bos[2], long.bos[2]),
            (just.residue[2], long.residue[2]),
            (just.contacts, long.contacts),
        ):
            assert one.shape == other.shape
            assert np.abs(one.astype(np.float32) - other.astype(np.float32)).max() <= 2e-3
