"""Four threads and memory for two of them: each sequence is computed, alone if it has to be."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from esm_pipeline import iter_packed, open_results
from esm_pipeline.formats.records import read_records
from esm_pipeline.model import EsmForMaskedLM, EsmForSequenceClassification, EsmModel
from esm_pipeline.tasks.variant_rows import LIKELIHOOD
from tests.allocator import Allocator, tokens
from tests.tasks.classifying import SEQUENCE, save
from tests.tasks.scoring import MARGINAL, mutants, run

RESIDUES, COUNT = 500, 12
ROOM = 2 * (RESIDUES + 2) + 100
SEQUENCES = ["MKTAYIAKQRQISFVKSHFS"[n % 20] + "ACDEFGHIKL" * 49 + "MNPQRSTVW" for n in range(COUNT)]
THREADS = "--threads=4"


@pytest.fixture(autouse=True)
def own_threads() -> Iterator[None]:
    """The number of threads from before, after each test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fasta(tmp_path):
    path = tmp_path / "in.fasta"
    path.write_text("".join(f">p{n}\n{one}\n" for n, one in enumerate(SEQUENCES)))
    return path


def memory_for_two(monkeypatch, model, name):
    return Allocator(ROOM, waits=True).limit(monkeypatch, model, name, tokens())


def test_embed(esm, rotary, fasta, tmp_path, monkeypatch):
    command = ("embed", "--model", rotary, THREADS, fasta)
    assert esm(*command, tmp_path / "whole.h5")[0] == 0
    memory = memory_for_two(monkeypatch, EsmModel, "represent")
    code, lines = esm(*command, tmp_path / "out.h5")
    assert memory.crowded
    assert memory.most > RESIDUES + 2, "several at once"
    assert "12 ok, 0 skipped, 0 failed" in lines[-1]
    assert code == 0
    with open_results(tmp_path / "out.h5") as found, open_results(tmp_path / "whole.h5") as whole:
        for one, other in zip(found, whole, strict=True):
            assert np.abs(one.mean[2] - other.mean[2]).max() <= 1e-5


def test_classify(esm, fasta, tmp_path, monkeypatch):
    save(tmp_path / "model", SEQUENCE)
    memory = memory_for_two(monkeypatch, EsmForSequenceClassification, "packed_logits")
    command = ("classify", "--model", tmp_path / "model", THREADS, fasta, tmp_path / "out.tsv")
    code, lines = esm(*command)
    assert memory.crowded
    assert "12 ok, 0 skipped, 0 failed" in lines[-1]
    assert code == 0


@pytest.mark.parametrize("strategy", [MARGINAL, "masked_marginal_joint", "wt_marginal"])
def test_score(esm, rotary, files, monkeypatch, strategy):
    proteins = {f"p{n}": one for n, one in enumerate(SEQUENCES)}
    rows = [{"mutant": "A2C", "protein": name} for name in proteins]
    fasta, table, out = files(proteins, rows)
    options = (THREADS, "--strategy", strategy)
    wanted = run(esm, rotary, fasta, table, out, *options)[2]
    memory = memory_for_two(monkeypatch, EsmForMaskedLM, "packed_logits")
    code, _, found = run(esm, rotary, fasta, table, out, *options)
    assert memory.crowded
    assert [row["status"] for row in found] == ["ok"] * COUNT
    assert code == 0
    for one, other in zip(wanted, found, strict=True):
        assert float(one[strategy]) == pytest.approx(float(other[strategy]), abs=1e-5)


def test_likelihoods(esm, rotary, files, monkeypatch):
    """Passes of 40 residues, dozens in a batch: halved, and alone at the end."""
    wild_type = SEQUENCES[0][:40]
    fasta, table, out = files({"a": wild_type}, mutants("A2C", "C3A"))
    wanted = run(esm, rotary, fasta, table, out, THREADS, "--strategy", LIKELIHOOD)[2]
    memory = Allocator(45, waits=True)
    memory.limit(monkeypatch, EsmForMaskedLM, "packed_logits", tokens())
    code, _, found = run(esm, rotary, fasta, table, out, THREADS, "--strategy", LIKELIHOOD)
    assert memory.crowded
    assert [row["status"] for row in found] == ["ok", "ok"]
    assert code == 0
    for one, other in zip(wanted, found, strict=True):
        assert float(one[LIKELIHOOD]) == pytest.approx(float(other[LIKELIHOOD]), abs=1e-4)


def test_saturation(esm, rotary, fasta, tmp_path, monkeypatch):
    memory = memory_for_two(monkeypatch, EsmForMaskedLM, "packed_logits")
    options = ("--strategy", "wt_marginal", THREADS, "--saturation", fasta, tmp_path / "out.h5")
    code, lines = esm("score", "--model", rotary, *options)
    assert memory.crowded
    assert "12 ok, 0 skipped, 0 failed" in lines[-1]
    assert code == 0
    assert {one.outcomes["score"].status for one in read_records(tmp_path / "out.records.tsv")} == {
        "ok"
    }


def test_iter_packed(rotary, monkeypatch):
    torch.set_num_threads(4)
    model = EsmForMaskedLM.from_pretrained(rotary)
    expected = dict(iter_packed(model, SEQUENCES))
    memory = memory_for_two(monkeypatch, EsmForMaskedLM, "packed_logits")
    found = dict(iter_packed(model, SEQUENCES))
    assert memory.crowded
    assert sorted(found) == list(range(COUNT))
    for place, logits in found.items():
        torch.testing.assert_close(logits, expected[place], atol=1e-5, rtol=0)
