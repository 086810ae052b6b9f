"""`classify`: beside transformers, every kind of head; nothing lost; trained and used for real."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from esm_pipeline import (
    EsmConfig,
    EsmForMaskedLM,
    EsmForSequenceClassification,
    EsmForTokenClassification,
    EsmModel,
    EsmTokenizer,
    iter_packed,
    open_results,
)
from esm_pipeline.cli import main
from esm_pipeline.formats.fasta import read_fasta
from esm_pipeline.tasks import classifiers
from tests.oracles.peers import ESM1B, ESM2, SMALL, enliven

FASTA = """\
>a first
MKTAYIAKQRQISFVKSHFSRQ
>b
GAVLIW
>stop
MK*V
>c again
MKTAYIAKQRQISFVKSHFSRQ
>d
ACDEFGHIKLMNPQRSTVWYBUZOX
>chains
MKV:GAV
>e
W
"""
SEQUENCES = {"a": "MKTAYIAKQRQISFVKSHFSRQ", "b": "GAVLIW", "c": "MKTAYIAKQRQISFVKSHFSRQ"}
SEQUENCES |= {"d": "ACDEFGHIKLMNPQRSTVWYBUZOX", "e": "W"}
NAMES = {0: "inside", 1: "outside", 2: "spans it"}
TOLERANCE = 1e-5
MEMBRANE = Path(__file__).parents[1] / "data" / "membrane.fasta"
KNOWN = 200
"""Proteins to train on; the others are kept apart."""

PROBLEMS = ["regression", "single_label_classification", "multi_label_classification", None]


def save(folder: Path, name: str, kind: dict[str, Any] = ESM2, **settings: Any) -> nn.Module:
    """A checkpoint of transformers with random weights, large enough to tell things apart."""
    settings.setdefault("id2label", NAMES)
    torch.manual_seed(0)
    config = transformers.EsmConfig(**{**SMALL, **kind, **settings})
    peer = getattr(transformers, name)(config)
    enliven(peer)
    peer.eval().save_pretrained(folder)
    EsmTokenizer.standard().save_pretrained(folder)
    return peer


@torch.no_grad()
def expected(peer: nn.Module, problem: str | None) -> dict[str, np.ndarray]:
    """What the checkpoint says of each sequence, one at a time."""
    tokenizer = EsmTokenizer.standard()
    found = {}
    for name, sequence in SEQUENCES.items():
        logits = peer(**tokenizer(sequence, return_tensors="pt")).logits[0]
        if logits.ndim == 2:
            logits = logits[1:-1]
        told = {"regression": logits, "multi_label_classification": logits.sigmoid()}
        found[name] = told.get(problem or "", logits.softmax(-1)).numpy()
    return found


def rows(path: Path) -> dict[str, dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as handle:
        return {row["id"]: row for row in csv.DictReader(handle, delimiter="\t")}


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "in.fasta"
    path.write_text(FASTA)
    return path


def classify(model: Path, fasta: Path, out: Path, *flags: str) -> int:
    command = ["classify", "--quiet", "--device=cpu", f"--model={model}", *flags]
    return main([*command, str(fasta), str(out)])


def difference(model: Path, fasta: Path, problem: str | None, peer: nn.Module) -> float:
    """Largest difference of the table's numbers from the peer's."""
    out = fasta.with_name("classes.tsv")
    assert classify(model, fasta, out, "--token-budget=40") == 0
    table, theirs = rows(out), expected(peer, problem)
    worst = 0.0
    for name, values in theirs.items():
        row = table[name]
        numbers = [float(row[key]) for key in row if key.startswith(("p.", "value"))]
        worst = max(worst, float(np.abs(np.array(numbers) - values).max()))
    return worst


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("kind", [ESM2, ESM1B], ids=["ESM-2", "ESM-1b"])
def test_classes_of_sequences(
    kind: dict[str, Any], problem: str | None, tmp_path: Path, fasta: Path
) -> None:
    peer = save(tmp_path / "m", "EsmForSequenceClassification", kind, problem_type=problem)
    assert difference(tmp_path / "m", fasta, problem, peer) <= TOLERANCE
    table = rows(tmp_path / "classes.tsv")
    assert list(table) == ["a", "b", "stop", "c", "d", "chains", "e"]
    assert {name: row["status"] for name, row in table.items() if row["status"] != "ok"} == {
        "stop": "skipped",
        "chains": "skipped",
    }
    assert "complex" in table["chains"]["reason"]
    assert not any(table["stop"][key] for key in table["stop"] if key.startswith(("p.", "value")))
    theirs = expected(peer, problem)
    for name, values in theirs.items():
        if problem == "multi_label_classification":
            label = ";".join(NAMES[place] for place in np.flatnonzero(values >= 0.5))
        else:
            label = NAMES[int(values.argmax())]
        assert table[name].get("label", label) == label
    assert ("label" in table["a"]) == (problem != "regression")
    told = rows(tmp_path / "classes.records.tsv")
    assert told["a"]["classify_status"] == "ok"
    assert told["stop"]["classify_status"] == "skipped"


def test_a_regression_has_one_value(tmp_path: Path, fasta: Path) -> None:
    peer = save(tmp_path / "m", "EsmForSequenceClassification", id2label={0: "stability"})
    assert difference(tmp_path / "m", fasta, "regression", peer) <= TOLERANCE
    assert list(rows(tmp_path / "classes.tsv")["a"]) == ["index", "id", "status", "reason", "value"]


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_labels_from_a_threshold(threshold: float, tmp_path: Path, fasta: Path) -> None:
    problem = "multi_label_classification"
    save(tmp_path / "m", "EsmForSequenceClassification", problem_type=problem)
    assert classify(tmp_path / "m", fasta, tmp_path / "o.tsv", f"--threshold={threshold}") == 0
    label = rows(tmp_path / "o.tsv")["a"]["label"]
    assert label == (";".join(NAMES.values()) if threshold == 0 else "")


def test_classes_of_residues(tmp_path: Path, fasta: Path) -> None:
    peer = save(tmp_path / "m", "EsmForTokenClassification")
    out = tmp_path / "residue_classes.h5"
    assert classify(tmp_path / "m", fasta, out, "--of=residues", "--token-budget=40") == 0
    theirs = expected(peer, None)
    with open_results(out) as results:
        assert results.labels == list(NAMES.values())
        assert results.ids == ["a", "b", "c", "d", "e"]
        for name, values in theirs.items():
            assert results[name].p.shape == (len(SEQUENCES[name]), 3)
            assert np.abs(results[name].p - values).max() <= TOLERANCE
        table = results.to_pandas()
        assert list(table.columns) == [
            "id",
            "index",
            "position",
            *(f"p.{n}" for n in NAMES.values()),
        ]
        assert len(table) == sum(map(len, SEQUENCES.values()))
        assert table[table["id"] == "b"]["position"].tolist() == [1, 2, 3, 4, 5, 6]
        assert results.row.tolist() == [0, 1, 0, 2, 3]
    assert json.loads(results_attributes(out)["labels"]) == list(NAMES.values())


def results_attributes(path: Path) -> dict[str, Any]:
    with open_results(path) as results:
        return results.attributes


def test_arrays_of_sequences_are_the_tables(tmp_path: Path, fasta: Path) -> None:
    save(tmp_path / "m", "EsmForSequenceClassification")
    assert classify(tmp_path / "m", fasta, tmp_path / "classes.tsv") == 0
    assert classify(tmp_path / "m", fasta, tmp_path / "classes.h5") == 0
    table = rows(tmp_path / "classes.tsv")
    with open_results(tmp_path / "classes.h5") as results:
        for item in results:
            cells = [table[item.id][f"p.{name}"] for name in NAMES.values()]
            assert [str(value) for value in item.p] == cells
        assert results.to_pandas().shape == (5, 5)
    flags = ["--quiet", f"--records={tmp_path / 'classes.records.tsv'}"]
    assert main(["classes", *flags, str(tmp_path / "classes.h5"), str(tmp_path / "t.tsv")]) == 0
    assert (tmp_path / "t.tsv").read_bytes() == (tmp_path / "classes.tsv").read_bytes()


def softmax_of_all(self: classifiers.Classifier, logits: torch.Tensor) -> torch.Tensor:
    return logits.flatten().softmax(-1).view_as(logits)


def another_token(
    self: EsmForSequenceClassification, tokens: torch.Tensor, layout: Any
) -> torch.Tensor:
    hidden = self.esm.represent(tokens, layout).hidden[-1]
    logits: torch.Tensor = self.classifier(hidden[layout.firsts + 1])
    return logits


@pytest.mark.parametrize("mistake", ["softmax", "token"])
def test_twin_fails(
    mistake: str, tmp_path: Path, fasta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = save(tmp_path / "m", "EsmForSequenceClassification")
    if mistake == "softmax":
        monkeypatch.setattr(classifiers.Classifier, "outputs", softmax_of_all)
    else:
        monkeypatch.setattr(EsmForSequenceClassification, "packed_logits", another_token)
    assert difference(tmp_path / "m", fasta, None, peer) > 100 * TOLERANCE


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("EsmForMaskedLM", (), "a checkpoint of EsmForMaskedLM, which tells no classes of sequenc"),
        ("EsmForTokenClassification", (), "tells no classes of sequences; set classify.of to resi"),
        ("EsmForSequenceClassification", ("--of=residues",), "set classify.of to sequences"),
        ("EsmModel", ("--of=residues",), "a checkpoint of EsmModel"),
    ],
)
def test_checkpoints_of_other_heads(
    name: str, flags: tuple[str, ...], message: str, tmp_path: Path, fasta: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    save(tmp_path / "m", name)
    capsys.readouterr()
    assert classify(tmp_path / "m", fasta, tmp_path / "o.h5", *flags) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "o.h5").exists()
    assert main(["download", f"--model={tmp_path / 'm'}", "classify", *flags]) == 2


def test_a_classifier_is_not_made_up(
    tmp_path: Path, fasta: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = EsmConfig(**SMALL, **ESM2, architectures=["EsmForSequenceClassification"])
    EsmModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "m")
    told = json.loads((tmp_path / "m" / "config.json").read_text())
    del told["architectures"]
    (tmp_path / "m" / "config.json").write_text(json.dumps(told))
    EsmTokenizer.standard().save_pretrained(tmp_path / "m")
    assert classify(tmp_path / "m", fasta, tmp_path / "o.tsv") == 2
    said = capsys.readouterr().err
    assert "no 'classifier.dense.bias' among its weights, so it classifies nothing" in said
    assert not list(tmp_path.glob("o*"))


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ({0: "a\tb", 1: "c"}, None),
        ({0: "a", 1: "a"}, None),
        ({0: "", 1: "b"}, None),
        ({0: "a;b", 1: "c"}, "multi_label_classification"),
    ],
)
def test_labels_that_no_table_can_have(
    labels: dict[int, str], problem: str | None, tmp_path: Path, fasta: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    save(tmp_path / "m", "EsmForSequenceClassification", problem_type=problem)
    file = tmp_path / "m" / "config.json"
    told = json.loads(file.read_text())
    told |= {"id2label": labels, "label2id": {}}
    file.write_text(json.dumps(told))
    capsys.readouterr()
    code = classify(tmp_path / "m", fasta, tmp_path / "o.tsv")
    said = capsys.readouterr().err
    assert (code, said.count("\n")) == (2, 1), said
    assert "of its config is" in said or "config.json" in said


def test_residues_need_arrays(
    tmp_path: Path, fasta: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "m", "EsmForTokenClassification")
    assert classify(tmp_path / "m", fasta, tmp_path / "o.tsv", "--of=residues") == 2
    assert "classes of residues are arrays; let it end in .h5" in capsys.readouterr().err


def test_a_failed_sequence_has_its_row(
    tmp_path: Path, fasta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "m", "EsmForSequenceClassification")
    forward = EsmForSequenceClassification.packed_logits

    def poisoned(self: Any, tokens: torch.Tensor, layout: Any) -> torch.Tensor:
        logits = forward(self, tokens, layout).clone()
        logits[[length == 8 for length in layout.lengths]] = torch.nan
        return logits

    monkeypatch.setattr(EsmForSequenceClassification, "packed_logits", poisoned)
    assert classify(tmp_path / "m", fasta, tmp_path / "o.tsv") == 1
    table = rows(tmp_path / "o.tsv")
    assert table["b"]["status"] == "failed"
    assert "not finite" in table["b"]["reason"]
    assert table["b"]["label"] == ""
    assert [table[name]["status"] for name in "acde"] == ["ok"] * 4
    assert classify(tmp_path / "m", fasta, tmp_path / "o.tsv", "--on-failure=keep") == 0


# The whole way: trained on real proteins, and used.


def membrane() -> tuple[list[str], list[int]]:
    """Real proteins, described in turn as of a membrane and as something else."""
    sequences = [sequence.decode() for _, _, sequence in read_fasta(str(MEMBRANE))]
    return sequences, [place % 2 for place in range(len(sequences))]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head trained on the packaged model's states of the first proteins."""
    folder = tmp_path_factory.mktemp("trained")
    sequences, labels = membrane()
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="classifier"):
        model = EsmForSequenceClassification.from_pretrained(
            "demo", id2label={0: "membrane", 1: "other"}, problem_type="single_label_classification"
        )
    tokenizer = EsmTokenizer.from_pretrained("demo")
    states = torch.zeros(KNOWN, model.config.hidden_size)
    for place, found in iter_packed(model.esm, sequences[:KNOWN], output="representation"):
        states[place] = found[0]
    wanted = torch.tensor(labels[:KNOWN])
    optimizer = torch.optim.AdamW(model.classifier.parameters(), lr=1e-3, weight_decay=0.1)
    model.classifier.train()
    for _ in range(60):
        loss = F.cross_entropy(model.classifier(states.clone()), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_trained_classifier_knows_proteins_it_never_saw(trained: Path, tmp_path: Path) -> None:
    """By guessing, 50 of 100 are right, and 60 or more in 3 of 100 tries."""
    out = tmp_path / "classes.tsv"
    assert classify(trained, MEMBRANE, out) == 0
    labels = [row["label"] for row in rows(out).values()]
    sequences, wanted = membrane()
    assert len(labels) == len(sequences)
    right = [
        label == ("membrane", "other")[answer] for label, answer in zip(labels, wanted, strict=True)
    ]
    assert sum(right[KNOWN:]) / len(right[KNOWN:]) >= 0.65
    model = EsmForSequenceClassification.from_pretrained(trained)
    tokenizer = EsmTokenizer.from_pretrained(trained)
    with torch.no_grad():
        logits = model(**tokenizer(sequences[0], return_tensors="pt")).logits[0]
    first = next(iter(rows(out).values()))
    assert abs(float(first["p.membrane"]) - float(logits.softmax(-1)[0])) <= TOLERANCE


def test_both_classes_of_models_are_told_apart() -> None:
    assert classifiers.Classifier.model_class is EsmForSequenceClassification
    assert classifiers.ResidueClassifier.model_class is EsmForTokenClassification
    assert EsmForMaskedLM not in [one.model_class for one in classifiers.CLASSIFIERS.values()]
