"""Threads that compute batches at once; where memory is for two of four, nothing is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from esm_pipeline import iter_packed, open_results
from esm_pipeline.formats.records import read_records
from esm_pipeline.model import EsmForMaskedLM, EsmForSequenceClassification, EsmModel
from esm_pipeline.model.inference.batching import LEAST_TOKENS, compute_batches
from esm_pipeline.tasks.score.variant_table import LIKELIHOOD
from tests.allocator import Allocator, tokens
from tests.tasks.classify.classifying import SEQUENCE, save
from tests.tasks.score.scoring import MARGINAL, mutants, run

RESIDUES, COUNT = 500, 12
ROOM = 2 * (RESIDUES + 2) + 100
SEQUENCES = ["MKTAYIAKQRQISFVKSHFS"[n % 20] + "ACDEFGHIKL" * 49 + "MNPQRSTVW" for n in range(COUNT)]
THREADS = "--threads=4"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_threads() -> Iterator[None]:
    """The number of threads from before, after each test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def threads() -> Iterator[None]:
    """PyTorch with 3 threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_threads_compute_at_once_and_results_keep_their_order():
    lengths = np.array([*range(2000, 2010), *[100] * 100])
    meeting, alone, calls = threading.Barrier(3, timeout=300), [], []

    def compute(part):
        if threading.current_thread() is threading.main_thread():
            alone.extend(part.tolist())
            assert torch.get_num_threads() == 3
        else:
            assert torch.get_num_threads() == 1
        return part

    found = list(compute_batches(lengths, 4096, compute, CPU))
    order = np.concatenate([part for part, _ in found]).tolist()
    assert order == np.argsort(-lengths, kind="stable").tolist()
    assert sorted(alone) == list(range(10)), "beyond a share of 1,365 tokens: one at a time"
    assert torch.get_num_threads() == 3

    def meet(part):
        calls.append(part)
        if len(calls) <= 3:
            meeting.wait()
        return part

    list(compute_batches(np.full(12, 300), 9 * LEAST_TOKENS, meet, CPU))
    assert len(calls) > 3


@pytest.mark.usefixtures("threads")
def test_new_threads_have_the_number_from_before():
    list(compute_batches(np.full(12, 300), 16_384, lambda part: part, CPU))
    seen = []
    other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert seen == [3]


@pytest.mark.usefixtures("threads")
def test_an_error_ends_all_at_their_next_part():
    """Batches that wait are not begun, and splitting in another thread does not go on."""
    lengths, begun, failed = np.full(200, 600), [], threading.Event()

    def compute(part):
        begun.append(part.tolist())
        if 6 in part:
            failed.set()
            raise ValueError("six")
        assert failed.wait(20)
        time.sleep(0.2)  # the pool hears of the error first
        if len(part) > 1:
            raise MemoryError
        return part

    with pytest.raises(ValueError, match="six"):
        list(compute_batches(lengths, 8000, compute, CPU))
    assert len(begun) <= 3, "one of each thread: no other batch, no half of one"
    assert {len(part) for part in begun} == {4}
    assert not [one for one in threading.enumerate() if one.name.startswith("batch")]


@pytest.mark.usefixtures("threads")
def test_whoever_stops_reading_ends_all():
    """The first part comes while others are at work: they do not go on with halves."""
    begun, go_on = [], threading.Event()

    def compute(part):
        begun.append(part.tolist())
        if 0 not in part:
            assert go_on.wait(20)
            raise MemoryError
        return part

    parts = compute_batches(np.full(200, 1000), 3 * 2 * 1002, compute, CPU)
    assert next(parts).part.tolist() == [0, 1]
    while len(begun) < 4:
        time.sleep(0.01)
    timer = threading.Timer(0.5, go_on.set)
    timer.start()
    parts.close()
    timer.join()
    assert sorted(begun) == [[0, 1], [2, 3], [4, 5], [6, 7]]


@pytest.mark.usefixtures("threads")
def test_splitting_in_threads():
    """What does not fit alone is reported last: it had to be tried alone."""
    memory = Allocator(900)

    def compute(part):
        with memory.hold(9999 if 7 in part else 102 * len(part)):
            return part

    found = list(compute_batches(np.full(40, 100), 16_384, compute, CPU))
    order = np.concatenate([part for part, _ in found]).tolist()
    assert sorted(order) == list(range(40))
    assert [part.tolist() for part, result in found if result is None] == [[7]]
    assert order[-1] == 7


@pytest.mark.usefixtures("threads")
def test_what_does_not_fit_with_others_is_computed_alone():
    memory, alone = Allocator(800, MemoryError(), waits=True), []

    def compute(part):
        with memory.hold(502 * len(part)):
            if threading.current_thread() is threading.main_thread():
                assert torch.get_num_threads() == 3
                assert memory.held == 502
                alone.extend(part.tolist())
            return part * 10

    found = list(compute_batches(np.full(12, 500), 16_384, compute, CPU))
    assert sorted(int(part[0]) for part, _ in found) == list(range(12))
    for part, result in found:
        assert result is not None
        assert result.tolist() == (part * 10).tolist()
    assert memory.crowded
    assert alone == sorted(alone)
    assert alone == [int(part[0]) for part, _ in found[-len(alone) :]]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("why", ["autocast", "small budget", "one batch", "device"])
def test_one_thread_where_others_are_of_no_use(why):
    """Autocast is of one thread; a GPU has its own."""
    seen = []

    def compute(part):
        seen.append(threading.current_thread())
        return part

    lengths = np.full(40, 100) if why != "one batch" else np.full(1, 100)
    budget = 1000 if why == "small budget" else 16_384
    device = torch.device("meta") if why == "device" else CPU
    with torch.autocast("cpu", torch.bfloat16, enabled=why == "autocast"):
        list(compute_batches(lengths, budget, compute, device))
    assert set(seen) == {threading.main_thread()}


# Four threads, twelve sequences, memory for two.


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
