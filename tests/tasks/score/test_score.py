"""`score --variants`: every row keeps its place and has a reason, nothing is computed twice."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esm_pipeline import optimize_for_inference
from esm_pipeline.cli import main
from esm_pipeline.formats.records import read_records
from esm_pipeline.formats.tables import text as text_tables
from esm_pipeline.model import EsmForMaskedLM
from esm_pipeline.tasks.common import runner as checkpoints
from esm_pipeline.tasks.common.runner import Runner
from tests.allocator import Allocator, tokens
from tests.tasks.conftest import TABLE
from tests.tasks.score.scoring import MARGINAL, OTHER, WILD_TYPE, mutants, passes, run, shifted

LIKELIHOOD = "pseudo_log_likelihood"


def test_every_row_keeps_its_place(esm, rotary, files, monkeypatch):
    monkeypatch.setattr(text_tables, "ROWS_AT_ONCE", 3)
    texts = ["K2L", "L2K", "K2*", "nonsense", "K2del", "WT", "K99A", "K2L", "p.Lys2Leu:T3S", ""]
    fasta, table, out = files({"a": WILD_TYPE}, mutants(*texts, note="kept"))
    code, message, rows = run(esm, rotary, fasta, table, out)
    assert code == 0
    assert message.startswith("score: 10 variants: 4 ok, 6 skipped, 0 failed; 2 passes, ")
    assert [row["mutant"] for row in rows] == texts
    assert list(rows[0]) == ["mutant", "note", "status", "reason", MARGINAL]
    assert {row["note"] for row in rows} == {"kept"}
    reasons = {row["mutant"]: row["reason"] for row in rows if row["status"] == "skipped"}
    assert reasons == {
        "L2K": "residue 2 is K, not L",
        "K2*": "mutation 'K2*' is a stop; give the protein it makes as a sequence",
        "nonsense": "mutation 'nonsense' is a kind of variant; write the change of the protein, as "
        "A42G or p.Ala42Gly",
        "K2del": "the variant changes the length of the protein, for which no marginal is defined; "
        "set --strategy to pseudo_log_likelihood",
        "K99A": "residue 99 does not exist: the protein has 22 residues",
        "": "no mutation; write WT for the wild type",
    }
    for row in rows:
        assert bool(row[MARGINAL]) == (row["status"] == "ok") == (not row["reason"])
    values = {row["mutant"]: row[MARGINAL] for row in rows if row["status"] == "ok"}
    assert values["WT"] == "0.000000"
    assert rows[0][MARGINAL] == rows[7][MARGINAL] != "0.000000"
    (record,) = read_records(out.with_name("out.records.tsv"))
    assert record.outcomes["score"].status == "ok"


def test_mutated_sequences(esm, rotary, files):
    cells = {
        WILD_TYPE: "0.000000",
        "MLTAYIAKQRQISFVKSHFSRQ": None,
        "mltayiakqrq isfvkshfsrq*": None,
        "MTAYIAKQRQISFVKSHFSRQ": "the variant changes the length of the protein",
        "M-TAYIAKQRQISFVKSHFSRQ": "the mutated sequence cannot be used: gap '-' at residue 2",
        "MK:V": "the mutated sequence has several chains; split it at ':'",
        "": "the mutated sequence cannot be used: no residues",
    }
    fasta, table, out = files({"a": WILD_TYPE}, [{"seq": one} for one in cells])
    rows = run(esm, rotary, fasta, table, out, "--mutated-sequence-col", "seq")[2]
    for row, expected in zip(rows, cells.values(), strict=True):
        if row["status"] == "ok":
            assert expected in (None, row[MARGINAL])
        else:
            assert row["reason"].startswith(expected)
    assert rows[1][MARGINAL] == rows[2][MARGINAL] != "0.000000"
    arguments = ["--mutated-sequence-col", "seq", "--strategy", LIKELIHOOD]
    rows = run(esm, rotary, fasta, table, out, *arguments)[2]
    assert [row["status"] for row in rows] == ["ok"] * 4 + ["skipped"] * 3


def test_a_scan_costs_a_pass_for_each_position(esm, rotary, files):
    """Single and double mutants, twice, of a protein that is there twice."""
    singles = [f"{one}{at + 1}{new}" for at, one in enumerate(WILD_TYPE) for new in "ACDEFGHI"]
    doubles = [f"{one}:{other}" for one, other in zip(singles, singles[80:], strict=False)]
    rows = [{"mutant": text, "protein": name} for text in singles + doubles for name in ("a", "b")]
    fasta, table, out = files({"a": WILD_TYPE, "b": WILD_TYPE}, rows)
    message = run(esm, rotary, fasta, table, out, "--token-budget", "100")[1]
    assert f"{len(rows):,} variants" in message
    assert passes(message) == len(WILD_TYPE)
    assert passes(run(esm, rotary, fasta, table, out, "--strategy", "wt_marginal")[1]) == 1
    pairs = len({tuple(re.findall(r"\d+", text)) for text in singles + doubles})
    joint = run(esm, rotary, fasta, table, out, "--strategy", "masked_marginal_joint")[1]
    assert passes(joint) == pairs


def test_likelihoods_of_equal_sequences_are_computed_once(esm, rotary, files):
    texts = ["K2L", "p.Lys2Leu", "K2L:T3T", "WT", "K2K", "K2del", "K2L"]
    fasta, table, out = files({"a": WILD_TYPE, "unused": OTHER}, mutants(*texts, protein="a"))
    code, message, rows = run(esm, rotary, fasta, table, out, "--strategy", LIKELIHOOD)
    assert code == 0
    assert passes(message) == 22 + 22 + 21, "wild type, K2L, and the deletion"
    ratio = f"{LIKELIHOOD}_ratio"
    assert list(rows[0])[-2:] == [LIKELIHOOD, ratio]
    known = float(rows[3][LIKELIHOOD])
    for row in rows:
        difference = float(row[LIKELIHOOD]) - known
        assert float(row[ratio]) == pytest.approx(difference, abs=2e-6)
    assert rows[3][ratio] == rows[4][ratio] == "0.000000"


def test_a_variant_without_residues_is_skipped(esm, rotary, files):
    texts = ["M1_Q22del", "M1_R21del:Q22del", "M1_R21del"]
    fasta, table, out = files({"a": WILD_TYPE}, mutants(*texts))
    code, _, rows = run(esm, rotary, fasta, table, out, "--strategy", LIKELIHOOD)
    assert code == 0
    assert [row["status"] for row in rows] == ["skipped", "skipped", "ok"]
    assert {row["reason"] for row in rows} == {"the variant leaves no residues; leave it out", ""}


@settings(max_examples=12)
@given(data=st.data())
@pytest.mark.parametrize("strategy", [MARGINAL, "masked_marginal_joint", "wt_marginal", LIKELIHOOD])
def test_any_order_and_budget_give_the_same(tmp_path_factory, rotary, strategy, data):
    folder = tmp_path_factory.mktemp("any")
    proteins = {"a": WILD_TYPE, "b": OTHER, "c": WILD_TYPE + OTHER}
    (folder / "wt.fasta").write_text("".join(f">{n}\n{one}\n" for n, one in proteins.items()))

    def variant(name: str) -> st.SearchStrategy[str]:
        places = st.integers(1, len(proteins[name]))
        one = places.flatmap(
            lambda at: st.sampled_from("ACW").map(lambda new: f"{proteins[name][at - 1]}{at}{new}")
        )
        return st.lists(one, max_size=3, unique_by=lambda text: text[:-1]).map(":".join)

    rows = data.draw(
        st.lists(
            st.sampled_from("abc").flatmap(lambda n: variant(n).map(lambda text: (n, text))),
            min_size=1,
            max_size=8,
        )
    )
    order = data.draw(st.permutations([*range(len(rows)), *data.draw(st.lists(st.just(0)))]))
    budget = data.draw(st.integers(1, 400))
    options = ["score", "--quiet", "--model", str(rotary), "--strategy", strategy, "--long=window"]
    options += ["--window=24"]
    found = []
    for name, places, own in (("straight", range(len(rows)), 16384), ("mixed", order, budget)):
        chosen = [rows[place] for place in places]
        table, out = folder / f"{name}.csv", folder / f"{name}.parquet"
        pd.DataFrame(chosen, columns=["protein", "mutant"]).to_csv(table, index=False)
        paths = ["--variants", str(table), str(folder / "wt.fasta"), str(out)]
        assert main([*options, f"--token-budget={own}", *paths]) == 0
        scores = pd.read_parquet(out)
        found.append(scores.iloc[:, 4:].to_numpy())
    assert found[0].size
    np.testing.assert_allclose(found[0][list(order)], found[1], rtol=0, atol=1e-5)


LONG = {"just": "MNPQRSTVWY" * 3, "long": "MNPQRSTVWY" * 3 + "A"}
LONG_ROWS = [("just", "M1A"), ("long", "M1A"), ("long", "A31C"), ("long", "M1A:A31C")]
TOO_LONG = (
    "31 residues, but the model has positions for 30; set --long to window or truncate, or use "
    "a rotary model such as ESM-2"
)
WINDOWS = "in windows of 32 tokens"


@pytest.mark.parametrize(
    ("strategy", "policy", "expected"),
    [
        (MARGINAL, "auto", [("ok", "")] + [("skipped", TOO_LONG)] * 3),
        (LIKELIHOOD, "skip", [("ok", "")] + [("skipped", TOO_LONG)] * 3),
        (MARGINAL, "window", [("ok", "")] + [("ok", WINDOWS)] * 3),
        (LIKELIHOOD, "window", [("ok", "")] + [("ok", WINDOWS)] * 3),
        ("masked_marginal_joint", "window", [("ok", "")] + [("ok", WINDOWS)] * 3),
        *(
            (
                strategy,
                "truncate",
                [("ok", ""), ("ok", "truncated to the first 30 residues")]
                + [("skipped", "residue 31 is mutated, but the protein is truncated to the first")]
                * 2,
            )
            for strategy in (MARGINAL, LIKELIHOOD)
        ),
    ],
)
def test_proteins_longer_than_the_table(esm, absolute, files, strategy, policy, expected):
    rows = [{"protein": name, "mutant": text} for name, text in LONG_ROWS]
    fasta, table, out = files(LONG, rows)
    arguments = ["--strategy", strategy, "--long", policy]
    code, _, found = run(esm, absolute, fasta, table, out, *arguments)
    assert code == 0
    for row, (status, reason) in zip(found, expected, strict=True):
        assert row["status"] == status
        assert row["reason"].startswith(reason)
        assert bool(reason) == bool(row["reason"])
        assert bool(row[strategy]) == (status == "ok")
    outcomes = {
        record.id: record.outcomes["score"]
        for record in read_records(out.with_name("out.records.tsv"))
    }
    assert outcomes["long"].status == ("skipped" if policy in ("auto", "skip") else "ok")


def test_windows_that_are_far_apart_by_one(esm, rotary, files):
    """Joint masks: the last pair of sites that one window of 16 tokens holds, and the next."""
    sequence = "ACDEFGHIKLMNPQRSTVWY" * 3
    rows = mutants("A21C:R35C", "A21C:S36C", "A21C:T37C", "A1C:R15C", "A1C:S16C", "A1C:T17C")
    fasta, table, out = files({"a": sequence}, rows)
    arguments = ["--strategy", "masked_marginal_joint", "--long", "window", "--window", "16"]
    found = run(esm, rotary, fasta, table, out, *arguments)[2]
    assert [row["status"] for row in found] == ["ok", "ok", "skipped", "ok", "ok", "skipped"]
    assert found[2]["reason"] == (
        "the mutations lie too far apart for one window of 16 tokens; set --strategy to "
        "masked_marginal"
    )


def test_an_insertion_beyond_the_table(esm, absolute, files):
    fasta, table, out = files({"just": LONG["just"]}, mutants("M1_N2insA", "M1del", "M1A"))
    rows = run(esm, absolute, fasta, table, out, "--strategy", LIKELIHOOD)[2]
    assert [row["status"] for row in rows] == ["skipped", "ok", "ok"]
    assert rows[0]["reason"] == TOO_LONG


def test_full_needs_models_without_a_table(esm, absolute, rotary, files):
    rows = [{"protein": name, "mutant": text} for name, text in LONG_ROWS]
    fasta, table, out = files(LONG, rows)
    code, message, _ = run(esm, absolute, fasta, table, out, "--long", "full")
    assert code == 2
    assert "--long is 'full', but the model has positions for 30 residues only; set it" in message
    found = run(esm, rotary, fasta, table, out, "--long", "full")[2]
    assert {row["status"] for row in found} == {"ok"}
    both = ["--model", absolute]
    found = run(esm, rotary, fasta, table, out, *both)[2]
    assert [row["status"] for row in found] == ["ok", "skipped", "skipped", "skipped"]
    assert TABLE == 30


@pytest.mark.parametrize("what", ["table", "saturation"])
def test_an_ensemble_holds_one_model_at_a_time(esm, rotary, absolute, files, monkeypatch, what):
    """Each is unloaded before the next is loaded."""
    alive: weakref.WeakSet[EsmForMaskedLM] = weakref.WeakSet()
    held = []
    whole = Runner.loaded

    def loaded(self):
        held.append(len(alive))
        return whole(self)

    def optimized(model, dtype):
        fast = optimize_for_inference(model, dtype)
        alive.add(fast)
        return fast

    monkeypatch.setattr(Runner, "loaded", loaded)
    monkeypatch.setattr(checkpoints, "optimize_for_inference", optimized)
    fasta, table, out = files({"a": WILD_TYPE}, mutants("K2L"))
    models = ("--model", rotary, "--model", absolute)
    given = ("--variants", table) if what == "table" else ("--saturation",)
    assert esm("score", *models, *given, fasta, out)[0] == 0
    assert held == [0, 0]
    assert not alive


def memory_for(monkeypatch, room, never=()):
    """Limit memory to `room` tokens, too few for sequences of `never`; returns the allocator."""
    heavy = dict.fromkeys(never, room + 1)
    return Allocator(room).limit(monkeypatch, EsmForMaskedLM, "packed_logits", tokens(heavy))


@pytest.mark.parametrize("strategy", [MARGINAL, LIKELIHOOD])
def test_a_batch_that_does_not_fit_is_halved(esm, rotary, files, monkeypatch, strategy):
    fasta, table, out = files({"a": WILD_TYPE}, mutants(*shifted(0)))
    wanted = run(esm, rotary, fasta, table, out, "--strategy", strategy)[2]
    tried = memory_for(monkeypatch, 50).tried
    code, _, found = run(esm, rotary, fasta, table, out, "--strategy", strategy)
    assert code == 0
    assert max(tried) > 200
    for one, other in zip(wanted, found, strict=True):
        assert float(one[strategy]) == pytest.approx(float(other[strategy]), abs=1e-5)


def test_what_does_not_fit_alone_fails_alone(esm, rotary, files, monkeypatch, tmp_path):
    rows = [{"mutant": text, "protein": n} for n, text in (("a", "K2L"), ("b", "A2L"), ("a", "X"))]
    fasta, table, out = files({"a": WILD_TYPE, "b": OTHER}, rows)
    memory_for(monkeypatch, 1000, {len(WILD_TYPE) + 2})
    code, message, found = run(esm, rotary, fasta, table, out)
    assert code == 1
    assert message.endswith(f"; see the column 'reason' in {out}")
    assert [row["status"] for row in found] == ["failed", "ok", "skipped"]
    assert found[0]["reason"] == (
        "22 residues do not fit into memory, even alone; use a machine with more"
    )
    assert found[0][MARGINAL] == ""
    records = list(read_records(tmp_path / "out.records.tsv"))
    assert [record.outcomes["score"].status for record in records] == ["failed", "ok"]
    assert run(esm, rotary, fasta, table, out, "--on-failure", "keep")[0] == 0
    indel = [{"mutant": "A2del", "protein": "b"}, {"mutant": "K2del", "protein": "a"}]
    fasta, table, out = files({"a": WILD_TYPE, "b": OTHER}, indel)
    code, _, found = run(esm, rotary, fasta, table, out, "--strategy", LIKELIHOOD)
    assert code == 1
    assert [row["status"] for row in found] == ["ok", "failed"]
    assert found[1]["reason"].startswith("22 residues do not fit"), "that of the wild type"
    records = list(read_records(tmp_path / "out.records.tsv"))
    assert [record.outcomes["score"].status for record in records] == ["failed", "ok"]


def test_values_that_are_not_finite_fail(esm, rotary, files, monkeypatch):
    whole = EsmForMaskedLM.packed_logits

    def broken(self, ids, layout, rows=None):
        logits = whole(self, ids, layout, rows)
        logits[0] = torch.nan
        return logits

    monkeypatch.setattr(EsmForMaskedLM, "packed_logits", broken)
    fasta, table, out = files({"a": WILD_TYPE}, mutants("M1A", "K2L", "M1A:K2L"))
    code, _, found = run(esm, rotary, fasta, table, out)
    assert code == 1
    assert [row["status"] for row in found] == ["failed", "ok", "failed"]
    assert found[0]["reason"] == "the model gave values that are not finite numbers"


def test_labels_of_models(esm, rotary, absolute, files, tmp_path):
    fasta, table, out = files({"a": WILD_TYPE}, mutants("K2L"))
    found = run(esm, rotary, fasta, table, out, "--model", absolute)[2]
    names = [f"{MARGINAL}.{folder.name}" for folder in (rotary, absolute)]
    assert list(found[0])[-3:] == [MARGINAL, *names]
    mean = np.mean([float(found[0][name]) for name in names])
    assert float(found[0][MARGINAL]) == pytest.approx(mean, abs=1e-6)
    for arguments, message in (
        (["--model", rotary], "two models are called"),
        (["--model", absolute, "--label", "a"], "--label: 1 for 2 models; give one for each"),
        (["--model", absolute, "--label=a", "--label=a"], "two models are called 'a'"),
        (["--model", absolute, "--label=a", "--label=b/c"], "'b/c' should have letters, digits"),
        (["--revision=x"] * 2, "--revision: 2 for 1 models"),
    ):
        code, line, _ = run(esm, rotary, fasta, table, out, *arguments)
        assert code == 2
        assert message in line


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("status", "has a column 'status', which is to be added; rename it, or leave it out"),
        (MARGINAL, f"has a column '{MARGINAL}', which is to be added"),
    ],
)
def test_columns_that_are_there_already(esm, rotary, files, column, message):
    fasta, table, out = files({"a": WILD_TYPE}, mutants("K2L", **{column: "x"}))
    code, line, _ = run(esm, rotary, fasta, table, out)
    assert code == 2
    assert message in line
    assert not out.exists()


def test_a_table_may_be_packed_and_come_out_as_another_kind(esm, rotary, files, tmp_path):
    fasta, table, _ = files({"a": WILD_TYPE}, mutants("K2L", "K2S", number="1.10"))
    packed = tmp_path / "in.csv.gz"
    packed.write_bytes(gzip.compress(table.read_bytes()))
    for suffix in ("tsv", "parquet", "csv"):
        out = tmp_path / f"out.{suffix}"
        assert esm("score", "--model", rotary, "--variants", packed, fasta, out)[0] == 0
    frames = [
        pd.read_csv(tmp_path / "out.tsv", sep="\t", dtype=str),
        pd.read_csv(tmp_path / "out.csv", dtype=str),
    ]
    assert frames[0].equals(frames[1])
    assert frames[0]["number"].tolist() == ["1.10", "1.10"]
    exact = pd.read_parquet(tmp_path / "out.parquet")
    assert exact["number"].tolist() == ["1.10", "1.10"]
    assert exact[MARGINAL].map("{:.6f}".format).tolist() == frames[0][MARGINAL].tolist()


def test_an_empty_table(esm, rotary, files):
    for strategy in (MARGINAL, "masked_marginal_joint", "wt_marginal", LIKELIHOOD):
        fasta, table, out = files({"a": WILD_TYPE}, mutants("K2L"))
        table.write_text("mutant\n")
        code, message, rows = run(esm, rotary, fasta, table, out, "--strategy", strategy)
        assert (code, rows) == (0, [])
        assert message.startswith("score: 0 variants: 0 ok, 0 skipped, 0 failed; 0 passes")
        table.write_text("mutant\nX\n")
        assert run(esm, rotary, fasta, table, out, "--strategy", strategy)[0] == 0
    fasta.write_text("")
    table.write_text("mutant,protein\n")
    assert run(esm, rotary, fasta, table, out)[0] == 2
    assert run(esm, rotary, fasta, table, out, "--allow-empty")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variants", "in.csv", "wt.fasta", "out.txt"], "out.txt: cannot be written; let its"),
        (["--variants", "in.csv", "wt.fasta", "out.h5"], "let its name end in .tsv, .csv, .parq"),
        (["--variants", "in.csv", "wt.fasta", "in.csv"], "in.csv: the input itself"),
        (["--variants", "in.csv", "a", "b", "out.csv"], "give the wild types and the file to wr"),
        (
            ["--variants", "in.csv", "--plots=p", "wt.fasta", "out.csv"],
            "--plots: draws the res",
        ),
        (["--saturation", "out.h5"], "out.h5: give the wild types and the file to write"),
        (["wt.fasta", "out.csv"], "one of the arguments --variants --saturation is required"),
        (["--variants", "none.csv", "wt.fasta", "out.csv"], "none.csv: no such file"),
        (["--variants", "in.csv", "none.fasta", "out.csv"], "none.fasta: no such file"),
        (["--variants", "in.csv", "--strategy=x", "wt.fasta", "out.csv"], "--strategy = 'x'"),
        (["--variants", "in.csv", "--window=3", "wt.fasta", "out.csv"], "--window = 3: should be"),
        (["--variants", "in.csv", "--sha256=wt.fasta", "wt.fasta", "out.csv"], "wt.fasta: the inp"),
    ],
)
def test_what_cannot_be_is_one_line(
    files, rotary, tmp_path, monkeypatch, capsys, arguments, message
):
    files({"a": WILD_TYPE}, mutants("K2L"))
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    try:
        code = main(["score", "--model", str(rotary), *arguments])
    except SystemExit as ended:
        code = ended.code
    (line,) = capsys.readouterr().err.splitlines()
    assert (code, message in line) == (2, True), line
    assert sorted(tmp_path.iterdir()) == before


def test_bad_tables_fail_before_pytorch_is_loaded(tmp_path):
    (tmp_path / "wt.fasta").write_text(f">a\n{WILD_TYPE}\n")
    (tmp_path / "in.csv").write_text("mutant\nK2L\nK2L,x\n")
    program = (
        "import sys; from esm_pipeline.cli import main\n"
        "code = main('score --model demo --variants in.csv wt.fasta out.csv'.split())\n"
        "print(code, 'torch' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["2", "False"]
    assert done.stderr == (
        "esm-pipeline score: in.csv:3: 2 cells under 1 column; quote a cell with ',' in it\n"
    )


def test_two_runs_give_the_same_bytes_and_their_digests(esm, rotary, files, tmp_path):
    fasta, table, _ = files({"a": WILD_TYPE}, mutants("K2L", "K2S:T3A"))
    for name in ("one", "two"):
        arguments = ("--sha256", tmp_path / f"{name}.sha256", "--variants", table, fasta)
        for suffix in ("parquet", "csv"):
            assert (
                esm("score", "--model", rotary, *arguments, tmp_path / f"{name}.{suffix}")[0] == 0
            )
    for suffix in ("csv", "parquet", "records.tsv"):
        one, two = (tmp_path / f"{name}.{suffix}" for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
    check = ["sha256sum", "--check", "--quiet", "one.sha256", "two.sha256"]
    assert subprocess.run(check, cwd=tmp_path).returncode == 0
