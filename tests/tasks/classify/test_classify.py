"""`classify`: compared with transformers, every kind of head and output; nothing lost."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from esm_pipeline import EsmForSequenceClassification, EsmTokenizer, open_results
from esm_pipeline.cli import main
from esm_pipeline.errors import InputError
from esm_pipeline.tasks.classify import classifier
from tests.allocator import Allocator, tokens
from tests.oracles.peers import ESM1B, ESM2
from tests.tasks.classify.classifying import (
    FASTA,
    MULTI,
    NAMES,
    PROBLEMS,
    RESIDUE,
    SEQUENCE,
    SEQUENCES,
    TOLERANCE,
    classify,
    expected,
    label_of,
    numbers,
    rows,
    save,
)


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "in.fasta"
    path.write_text(FASTA)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tmp_path / "m"


# Beside transformers.


def difference(model: Path, fasta: Path, problem: str | None, peer: nn.Module) -> float:
    """Largest difference of a table's numbers from the peer's."""
    out = fasta.with_name("classes.tsv")
    assert classify(model, fasta, out, "--token-budget=40") == 0
    table = rows(out)
    return max(
        float(np.abs(np.array(numbers(table[name])) - values).max())
        for name, values in expected(peer, problem).items()
    )


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("kind", [ESM2, ESM1B], ids=["ESM-2", "ESM-1b"])
def test_sequences(
    kind: dict[str, Any], problem: str | None, model: Path, fasta: Path, tmp_path: Path
) -> None:
    peer = save(model, SEQUENCE, kind, problem_type=problem)
    assert difference(model, fasta, problem, peer) <= TOLERANCE
    table = rows(tmp_path / "classes.tsv")
    assert {name: row["status"] for name, row in table.items()} == dict.fromkeys("abcde", "ok") | {
        "stop": "skipped",
        "chains": "skipped",
    }
    outcomes = rows(tmp_path / "classes.records.tsv")
    for name, row in table.items():
        assert list(row)[:4] == ["index", "id", "status", "reason"]
        assert [row["index"], row["status"], row["reason"]] == [
            outcomes[name][key] for key in ("index", "classify_status", "classify_reason")
        ]
    values = "value." if problem == "regression" else "p."
    labels = [] if problem == "regression" else ["label"]
    assert list(table["a"])[4:] == [*labels, *(values + name for name in NAMES.values())]
    assert not any(list(table["stop"].values())[4:])
    for name, p in expected(peer, problem).items():
        assert not labels or table[name]["label"] == label_of(p, problem)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_residues(problem: str | None, model: Path, fasta: Path, tmp_path: Path) -> None:
    peer = save(model, RESIDUE, problem_type=problem)
    assert classify(model, fasta, tmp_path / "o.h5", "--token-budget=40") == 0
    with open_results(tmp_path / "o.h5") as results:
        assert results.labels == list(NAMES.values())
        assert results.row.tolist() == [0, 1, 0, 2, 3]
        table = results.to_pandas()
        for name, values in expected(peer, problem).items():
            one = results[name]
            found = one.value if problem == "regression" else one.p
            assert found.shape == values.shape == (len(SEQUENCES[name]), 3)
            assert np.abs(found - values).max() <= TOLERANCE
            assert one.sequence == SEQUENCES[name]
            part = table[table["id"] == name]
            assert part["position"].tolist() == list(range(1, len(values) + 1))
            assert "".join(part["residue"]) == SEQUENCES[name]
            assert np.array_equal(part.iloc[:, -3:].to_numpy(), found)
            if problem != "regression":
                assert one.label == [label_of(p, problem) for p in values]
                assert part["label"].tolist() == one.label
    assert classify(model, fasta, tmp_path / "o.tsv", "--token-budget=40") == 0
    written = pd.read_csv(tmp_path / "o.tsv", sep="\t", dtype=str, keep_default_na=False)
    pd.testing.assert_frame_equal(written.astype(table.dtypes.to_dict()), table, check_exact=True)


def test_one_label_is_a_value(model: Path, fasta: Path, tmp_path: Path) -> None:
    peer = save(model, SEQUENCE, id2label={0: "stability"})
    assert difference(model, fasta, "regression", peer) <= TOLERANCE
    assert list(rows(tmp_path / "classes.tsv")["a"])[3:] == ["reason", "value"]


def always_softmax(logits: torch.Tensor, problem: str) -> torch.Tensor:
    return logits.softmax(-1)


def another_token(self: Any, tokens: torch.Tensor, layout: Any) -> torch.Tensor:
    hidden = self.esm.represent(tokens, layout, rows=layout.firsts + 1).hidden[-1]
    logits: torch.Tensor = self.classifier(hidden)
    return logits


@pytest.mark.parametrize("mistake", ["softmax", "token"])
def test_twin_of_sequences(
    mistake: str, model: Path, fasta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = save(model, SEQUENCE, problem_type=MULTI)
    if mistake == "softmax":
        monkeypatch.setattr(classifier, "activated", always_softmax)
    else:
        monkeypatch.setattr(EsmForSequenceClassification, "packed_logits", another_token)
    assert difference(model, fasta, MULTI, peer) > 100 * TOLERANCE


def test_twin_of_residues(
    model: Path, fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One token off: BOS for the first residue."""
    peer = save(model, RESIDUE)
    states = classifier.residue_states
    monkeypatch.setattr(
        classifier, "residue_states", lambda x, layout: states(x.roll(1, 0), layout)
    )
    assert classify(model, fasta, tmp_path / "o.h5") == 0
    with open_results(tmp_path / "o.h5") as results:
        assert np.abs(results["a"].p - expected(peer, None)["a"]).max() > 100 * TOLERANCE


# Tables and arrays.


def test_every_kind_of_output_has_the_same(model: Path, fasta: Path, tmp_path: Path) -> None:
    save(model, SEQUENCE)
    kinds = ("tsv", "csv", "parquet", "h5")
    outputs = [tmp_path / f"{kind}.{kind}" for kind in kinds]
    for out in outputs:
        assert classify(model, fasta, out) == 0
    tsv, text, parquet, arrays = outputs
    assert list(rows(tsv).items()) == list(rows(text).items())
    table = pd.read_parquet(parquet)
    assert table["p.inside"].dtype == np.float32
    with open_results(arrays) as results:
        assert (results.ids, results.index.tolist()) == (list("abcde"), [0, 1, 3, 4, 6])
        for item in results:
            assert numbers(rows(tsv)[item.id]) == [float(str(value)) for value in item.p]
            own = table[table["id"] == item.id].iloc[0]
            assert own["label"] == item.label == rows(tsv)[item.id]["label"]
            assert own[-3:].tolist() == item.p.tolist()
        assert results.to_pandas()["p.inside"].tolist() == [float(one.p[0]) for one in results]
        with pytest.raises(InputError, match="'value' is not stored; it holds 'p', by a model for"):
            _ = results["a"].value


def test_a_table_from_arrays(model: Path, fasta: Path, tmp_path: Path) -> None:
    save(model, SEQUENCE, problem_type=MULTI)
    direct, arrays, out = tmp_path / "d.tsv", tmp_path / "a.h5", tmp_path / "t.tsv"
    records = f"--records={tmp_path / 'a.records.tsv'}"
    assert classify(model, fasta, direct, "--threshold=0.65") == 0
    assert classify(model, fasta, arrays) == 0
    assert main(["classes", records, "--threshold=0.65", str(arrays), str(out)]) == 0
    assert out.read_bytes() == direct.read_bytes()
    assert main(["classes", records, str(arrays), str(out)]) == 0
    assert out.read_bytes() != direct.read_bytes()
    assert main(["classes", "--threshold=0.65", str(arrays), str(out)]) == 0
    ok = {name: row for name, row in rows(direct).items() if row["status"] == "ok"}
    assert list(rows(out).items()) == list(ok.items())


@pytest.mark.parametrize("missing", [">b\nGAVLIW\n", ">e\nW\n"])
@pytest.mark.parametrize(
    ("results", "records"), [("less.h5", "all.records.tsv"), ("all.h5", "less.records.tsv")]
)
def test_a_table_of_other_records_is_refused(
    missing: str, results: str, records: str, model: Path, fasta: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    save(model, SEQUENCE)
    for name, text in (("all.h5", FASTA), ("less.h5", FASTA.replace(missing, ""))):
        fasta.write_text(text)
        assert classify(model, fasta, tmp_path / name) == 0
    capsys.readouterr()
    asked = [f"--records={tmp_path / records}", str(tmp_path / results), str(tmp_path / "o.tsv")]
    assert main(["classes", *asked]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        "its records are not those of --records that are ok; give the table of the same run" in line
    )
    assert not (tmp_path / "o.tsv").exists()


@pytest.mark.parametrize("threshold", [0.0, 0.65, 1.0])
def test_labels_from_a_threshold(
    threshold: float, model: Path, fasta: Path, tmp_path: Path
) -> None:
    peer = save(model, SEQUENCE, problem_type=MULTI)
    assert classify(model, fasta, tmp_path / "o.tsv", f"--threshold={threshold}") == 0
    found = [row["label"] for row in rows(tmp_path / "o.tsv").values() if row["status"] == "ok"]
    theirs = [label_of(p, MULTI, threshold) for p in expected(peer, MULTI).values()]
    assert found == theirs
    counts = {label.count(";") + bool(label) for label in found}
    assert {0.0: counts == {3}, 0.65: len(counts) > 1, 1.0: counts == {0}}[threshold]


def test_two_runs_give_the_same_bytes_and_batches_do_not_matter(
    model: Path, fasta: Path, tmp_path: Path
) -> None:
    save(model, SEQUENCE)
    for name in ("one.h5", "two.h5"):
        assert classify(model, fasta, tmp_path / name, f"--sha256={tmp_path / 'd'}") == 0
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()
    assert (tmp_path / "d").read_text().splitlines() == [
        f"{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}  {name}"
        for name in ("two.h5", "two.records.tsv")
    ]
    for budget in (1, 30):
        assert classify(model, fasta, tmp_path / "other.h5", f"--token-budget={budget}") == 0
        with open_results(tmp_path / "one.h5") as one, open_results(tmp_path / "other.h5") as other:
            assert all(np.abs(a.p - b.p).max() <= 1e-6 for a, b in zip(one, other, strict=True))


def test_what_a_result_says_of_itself(model: Path, fasta: Path, tmp_path: Path) -> None:
    save(model, SEQUENCE, problem_type=MULTI)
    provenance = f"--provenance={tmp_path / 'p.json'}"
    assert classify(model, fasta, tmp_path / "o.tsv", provenance, "--threshold=0.2") == 0
    assert classify(model, fasta, tmp_path / "o.h5") == 0
    facts = json.loads((tmp_path / "p.json").read_text())
    assert facts.pop("threshold") == 0.2
    with open_results(tmp_path / "o.h5") as results:
        attributes = {key: str(value) for key, value in results.attributes.items()}
    assert attributes.pop("format_version") == "1"
    assert attributes == facts
    digest = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    assert (facts["problem_type"], facts["weights_sha256"]) == (MULTI, digest)
    assert json.loads(facts["labels"]) == list(NAMES.values())


# What is not classified.


def nothing_finite_of_six(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = EsmForSequenceClassification.packed_logits

    def packed_logits(self: Any, tokens: torch.Tensor, layout: Any) -> torch.Tensor:
        logits = whole(self, tokens, layout)
        logits[[length == 8 for length in layout.lengths]] = torch.nan
        return logits

    monkeypatch.setattr(EsmForSequenceClassification, "packed_logits", packed_logits)


def no_memory_for_six(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Allocator(1000)
    size = tokens({8: 1001})
    memory.limit(monkeypatch, EsmForSequenceClassification, "packed_logits", size)


@pytest.mark.parametrize(
    ("accident", "reason"),
    [
        (nothing_finite_of_six, "the model gave values that are not finite numbers"),
        (no_memory_for_six, "6 residues do not fit into memory, even alone; use a machine with"),
    ],
)
def test_a_failed_sequence_has_its_row(
    accident: Any, reason: str, model: Path, fasta: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    save(model, SEQUENCE)
    assert classify(model, fasta, tmp_path / "whole.tsv") == 0
    accident(monkeypatch)
    assert classify(model, fasta, tmp_path / "o.tsv") == 1
    table, whole = rows(tmp_path / "o.tsv"), rows(tmp_path / "whole.tsv")
    failed = table.pop("b")
    assert (failed["status"], failed["label"], failed["p.inside"]) == ("failed", "", "")
    assert failed["reason"].startswith(reason)
    assert table.keys() == whole.keys() - {"b"}
    for name, row in table.items():
        assert row["label"] == whole[name]["label"]
        assert numbers(row) == pytest.approx(numbers(whole[name]), abs=1e-6, nan_ok=True)
    assert classify(model, fasta, tmp_path / "o.tsv", "--on-failure=keep") == 0


@pytest.mark.parametrize(
    ("policy", "status", "reason"),
    [
        (
            "auto",
            "skipped",
            "22 residues, but the model has positions for 20; set --long",
        ),
        ("truncate", "ok", "truncated to the first 20 residues"),
    ],
)
def test_longer_than_the_table(
    policy: str, status: str, reason: str, model: Path, fasta: Path, tmp_path: Path
) -> None:
    peer = save(model, SEQUENCE, {**ESM1B, "max_position_embeddings": 24})
    assert classify(model, fasta, tmp_path / "o.tsv", f"--long={policy}") == 0
    row = rows(tmp_path / "o.tsv")["a"]
    assert row["status"] == status
    assert row["reason"].startswith(reason)
    if status == "ok":
        cut = EsmTokenizer.standard()(SEQUENCES["a"][:20], return_tensors="pt")
        with torch.no_grad():
            p = peer(**cut).logits[0].softmax(-1)
        assert numbers(row) == pytest.approx(p.tolist(), abs=TOLERANCE)
