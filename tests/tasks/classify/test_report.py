"""Classes on the report: every label counted where it belongs, pictures that show it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from esm_pipeline.cli import main
from esm_pipeline.formats.records import Record, write_records
from esm_pipeline.formats.results.classes import Classes, ResidueClasses
from esm_pipeline.tasks.classify import report as report_classes
from esm_pipeline.tasks.common.report_parts import svg

SINGLE, MULTI = "single_label_classification", "multi_label_classification"


def write(
    folder: Path, values: np.ndarray, problem: str = SINGLE, *, residues: bool = False
) -> Path:
    """A sample with two records of each row; `values` (units, K), of residues two a row."""
    folder.mkdir()
    count = len(values) // (2 if residues else 1)
    names = [f"r{place}" for place in range(2 * count)]
    records = [Record(place, name, name, 2, "", "ok") for place, name in enumerate(names)]
    records = [record.with_outcome("classify", "ok") for record in records]
    write_records(folder / "records.tsv", records, ["classify"])
    kind = ResidueClasses if residues else Classes
    with h5py.File(folder / f"{'residue_' if residues else ''}classes.h5", "w") as file:
        labels = [f"<{place}> $a_b$" for place in range(values.shape[1])]
        file.attrs.update(format=kind.format, format_version=1, problem_type=problem)
        file.attrs.update(labels=json.dumps(labels), model="<tiny>", dtype="float32")
        file.attrs["weights_sha256"] = "0123456789abcdef" * 4
        file["id"] = np.array(names, dtype=h5py.string_dtype())
        file["index"], file["row"] = np.arange(2 * count), np.arange(2 * count) // 2
        file["length"], file["offset"] = np.full(count, 2, np.int32), 2 * np.arange(count + 1)
        name = "value" if problem == "regression" else "p"
        file[name] = values.astype(np.float32)
        if residues:
            file["sequence"] = np.full(2 * count, b"M")
    return folder


def page(folder: Path) -> str:
    out = folder / "report.html"
    assert main(["report", "--out", str(out), str(folder)]) == 0
    return out.read_text()


P = np.array([[0.9, 0.05, 0.05], [0.2, 0.7, 0.1], [0.6, 0.6, 0.3], [0.8, 0.1, 0.1]])


@pytest.mark.parametrize("residues", [False, True])
@pytest.mark.parametrize(("problem", "counts"), [(SINGLE, [3, 1, 0]), (MULTI, [3, 2, 0])])
def test_every_label_is_counted(
    problem: str, counts: list[int], residues: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_classes, "PREDICTIONS_AT_ONCE", 3)
    folder = write(tmp_path / "a", P, problem, residues=residues)
    kind = ResidueClasses if residues else Classes
    path = next(folder.glob("*classes.h5"))
    predictions = report_classes.CountedPredictions([path], kind, [4])
    assert predictions.size == 4
    with kind.open(path) as results:
        assert report_classes.counts_of(results, predictions).tolist() == counts
    text = page(folder)
    what = "residues of different sequences" if residues else "different sequences"
    message = (
        f"4 {what} of {4 if residues else 8} records classified. Model <code>&lt;tiny&gt;</code>"
    )
    assert message in text
    assert text.count("<svg") == 1 + 1, "of lengths and of labels"
    shown = re.findall(r">([^<>]*)</text>", text)
    assert [one for one in shown if "$" in one] == [f"&lt;{place}&gt; $a_b$" for place in range(3)]
    assert ("Classes, p ≥ 0.5" if problem == MULTI else "Classes") in shown


def test_the_commonest_of_many_labels(tmp_path: Path) -> None:
    p = np.eye(30)[np.repeat(np.arange(30), np.arange(1, 31))]
    text = page(write(tmp_path / "a", p))
    assert "Classes (12 of 30 labels)" in text
    assert "&lt;29&gt;" in text
    assert "&lt;9&gt;" not in text


@pytest.mark.parametrize("width", [1, 2])
def test_values_are_spread(width: int, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(50, width))
    text = page(write(tmp_path / "a", values, "regression"))
    assert text.count("<svg") == 1 + width
    assert ">value</text>" in text if width == 1 else "value.&lt;1&gt;" in text


def test_nothing_to_count(tmp_path: Path) -> None:
    text = page(write(tmp_path / "a", np.zeros((0, 3))))
    assert "0 different sequences of 0 records classified" in text
    assert "<svg" not in text


def test_one_is_one(tmp_path: Path) -> None:
    text = page(write(tmp_path / "a", P[:1]))
    assert "1 different sequence of 2 records classified" in text
    text = page(write(tmp_path / "b", P[:2], residues=True))
    assert "2 residues of different sequences of 2 records classified" in text


def test_long_labels_are_cut() -> None:
    assert report_classes.tick("x" * 50) == "x" * 23 + "…"
    drawn = svg(lambda axes: axes.set_title(report_classes.tick("a$x_1$b")))
    assert "a$x_1$b" in drawn
