"""The whole way: a classifier trained here on real proteins, saved, and used by every door."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import torch

from esm_pipeline import EsmForSequenceClassification, EsmTokenizer
from esm_pipeline.cli import main
from tests.membrane import (
    KNOWN,
    LABELS,
    UNSEEN,
    are_relatives,
    label_of,
    labels,
    read,
    train,
    words,
)
from tests.workflow.tools import config, snakemake

LEAST = 60
"""Of 80 unseen proteins; by guessing 40 are right, and 60 or more in 5 of a million tries."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = train(tmp_path_factory.mktemp("trained"))
    torch.set_num_threads(before)
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle, delimiter="\t"))


def right(rows: list[dict[str, str]], wanted: list[str]) -> int:
    return sum(row["label"] == label for row, label in zip(rows, wanted, strict=True))


def test_the_proteins_are_what_their_readme_says() -> None:
    known, unseen = ([words(sequence) for _, sequence in read(path)] for path in (KNOWN, UNSEEN))
    assert [labels(KNOWN).count(label) for label in LABELS.values()] == [100, 76]
    assert [labels(UNSEEN).count(label) for label in LABELS.values()] == [40, 40]
    assert not any(are_relatives(one, other) for one in unseen for other in known)


@pytest.mark.parametrize(
    ("told", "label"),
    [
        ("Fructose permease OS=E", "membrane"),
        ("Adenylate kinase OS=E GN=permease", "soluble"),
        ("Sugar kinase and permease OS=E", None),
        ("ABC transporter ATP-binding protein OS=E", None),
        ("Uncharacterized protein OS=E", None),
    ],
)
def test_labels_are_read_in_descriptions(told: str, label: str | None) -> None:
    assert label_of(f"tr|A|A {told}") == label


def test_by_the_command(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "classes.tsv"
    assert main(["classify", "--quiet", f"--model={trained}", str(UNSEEN), str(out)]) == 0
    rows, wanted = table(out), labels(UNSEEN)
    assert right(rows, wanted) >= LEAST
    assert {row["label"] for row in rows} == set(LABELS.values())
    model = EsmForSequenceClassification.from_pretrained(trained)
    tokens = EsmTokenizer.from_pretrained(trained)([read(UNSEEN)[0][1]], return_tensors="pt")
    with torch.no_grad():
        p = model(**tokens).logits.softmax(-1)[0]
    assert [float(rows[0][f"p.{label}"]) for label in LABELS.values()] == pytest.approx(
        p.tolist(), abs=1e-5
    )


def test_without_training_it_would_show(tmp_path: Path) -> None:
    """The twin of the test above: a head on the same trunk that nothing was taught."""
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="classifier.*initialised at random"):
        model = EsmForSequenceClassification.from_pretrained("demo", id2label=LABELS)
    model.save_pretrained(tmp_path / "fresh")
    EsmTokenizer.from_pretrained("demo").save_pretrained(tmp_path / "fresh")
    out = tmp_path / "classes.tsv"
    command = ["classify", "--quiet", f"--model={tmp_path / 'fresh'}", str(UNSEEN), str(out)]
    assert main(command) == 0
    assert right(table(out), labels(UNSEEN)) < LEAST


def test_by_the_workflow(trained: Path, tmp_path: Path) -> None:
    """Nothing but the model and the task is told: that it classifies sequences, its config says."""
    shutil.copy(UNSEEN, tmp_path)
    shutil.copytree(trained, tmp_path / "trained")
    chosen = ["tasks=[classify]", "shards=2", "classify={threads: 1}"]
    done = snakemake(tmp_path, *config(Path("trained"), *chosen, fasta=UNSEEN.name))
    assert done.code == 0, done.said
    rows = table(done.results / "unseen" / "classes.tsv")
    assert [row["id"] for row in rows] == [header.split()[0] for header, _ in read(UNSEEN)]
    assert right(rows, labels(UNSEEN)) >= LEAST
    report = (done.results / "report.html").read_text()
    assert "80 different sequences of 80 records classified" in report
    assert "Classes" in report
