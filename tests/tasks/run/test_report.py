"""The report: every count and reason on it, pictures that show it, same bytes again."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from unittest.mock import Mock

import h5py
import numpy as np
import pytest

from esm_pipeline.cli import main
from esm_pipeline.formats.records import Record, write_records
from esm_pipeline.formats.results.saturation import Saturations
from esm_pipeline.formats.tables import text as text_tables
from esm_pipeline.tasks.common import report_parts
from esm_pipeline.tasks.common.tallies import Histogram
from esm_pipeline.tasks.embed.report import principal_components
from esm_pipeline.tasks.run import report
from esm_pipeline.tasks.score import report as report_scores


def write_sample(folder, lengths, *, seed=0, means=True):
    """A sample's folder with `len(lengths)` embedded records and one that is skipped."""
    folder.mkdir()
    count = len(lengths)
    records = [
        Record(i, f"id{i}", f"id{i}", int(n), "", "ok").with_outcome("embed", "ok")
        for i, n in enumerate(lengths)
    ]
    why = "digit '1' at residue 5 <b>&"
    records.append(
        Record(count, "bad", "bad", None, "", "skipped", why).with_outcome("embed", "skipped", why)
    )
    write_records(folder / "records.tsv", records, ["embed"])
    with h5py.File(folder / "embeddings.h5", "w") as file:
        file.attrs.update(
            format="esm-pipeline/embeddings",
            format_version=1,
            model="<tiny>",
            weights_sha256="0123456789abcdef" * 4,
            dtype="float32",
        )
        file["id"] = np.array([f"id{i}" for i in range(count)], dtype=h5py.string_dtype())
        file["index"] = file["row"] = np.arange(count)
        file["length"] = np.asarray(lengths, np.int32)
        file["offset"] = np.cumsum([0, *lengths])
        values = np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)
        if means:
            file["mean/2"] = values
        else:
            file["bos/2"] = values
    return folder


def page(tmp_path, *folders):
    out = tmp_path / "report.html"
    assert main(["report", "--out", str(out), *map(str, folders)]) == 0
    return out.read_text()


def test_counts_and_reasons_are_reported_and_escaped(tmp_path):
    text = page(tmp_path, write_sample(tmp_path / "a", [30, 40, 900]))
    cells = re.findall(r"<td[^>]*>(.*?)</td>", text)
    assert cells[:7] == ["a", "validation", "4", "3", "1", "0", "0"]
    assert "digit &#x27;1&#x27; at residue 5 &lt;b&gt;&amp;" in text
    assert "3 records with 3 different sequences; mean of layer 2" in text
    assert "&lt;tiny&gt;" in text
    assert "<tiny>" not in text


def write_scores(folder, *, ok=3):
    """A table of variants and a saturation beside a sample's records."""
    write_sample(folder, [30])
    models = {"a&b": {"model": "<tiny>", "weights_sha256": "ab" * 32, "dtype": "float<"}}
    facts = {"strategy": "wt_marginal", "models": models | {"c": models["a&b"]}}
    (folder / "scores.json").write_text(json.dumps(facts))
    rows = [("K2L", "ok", "", f"{place}.5") for place in range(ok)] + [("x", "skipped", "odd", "")]
    lines = ["mutant\tstatus\treason\twt_marginal", *map("\t".join, rows)]
    (folder / "scores.tsv").write_text("\n".join(lines) + "\n")
    with h5py.File(folder / "saturation.h5", "w") as file:
        file.attrs.update(format="esm-pipeline/saturation", format_version=1, strategy="joint")
        file.attrs.update(alphabet="ACDEFGHIKLMNPQRSTVWY", models=json.dumps(models))
        file["id"] = np.array(["P1", "P2"], dtype=h5py.string_dtype())
        file["index"], file["row"] = np.arange(2), np.zeros(2, int)
        file["length"], file["offset"] = np.array([2], np.int32), np.array([0, 2])
        file["wild_type"] = np.array([b"K", b"X"])
        file["log_odds"] = np.zeros((2, 20), np.float32)
    return folder


def test_scores_are_reported_and_drawn(tmp_path):
    text = page(tmp_path, write_scores(tmp_path / "a"))
    assert "3 of 4 variants scored by wt_marginal. Mean over 2: <code>&lt;tiny&gt;</code>" in text
    assert "float&lt;" in text
    message = (
        "Every substitution of 2 records with 2 different residues, by joint. Model <code>&lt;"
    )
    assert message in text
    assert text.count("<svg") == 3
    cells = re.findall(r"<td[^>]*>(.*?)</td>", text)
    assert "variants" not in cells  # score is no task of this sample's records


def test_every_score_and_the_substitutions_of_an_even_choice_are_drawn(tmp_path, monkeypatch):
    """Rows of several blocks; of three proteins, of which two are drawn, the first and the last."""
    drawn = {}

    def draw(values, title, strategy):
        size = 2.0**values.exponent
        drawn[title] = {place * size: number for place, number in values.counts.items()}
        return "<svg/>"

    monkeypatch.setattr(report_scores, "score_histogram", draw)
    monkeypatch.setattr(report_scores, "MOST_PROTEINS", 2)
    monkeypatch.setattr(text_tables, "ROWS_AT_ONCE", 2)
    folder = write_scores(tmp_path / "a")
    with h5py.File(folder / "saturation.h5", "r+") as file:
        for name, values in {
            "id": np.array(["P1", "P2", "P3"], dtype=h5py.string_dtype()),
            "index": np.arange(3),
            "row": np.arange(3),
            "length": np.ones(3, np.int32),
            "offset": np.arange(4),
            "wild_type": np.array([b"A", b"C", b"X"]),
            "log_odds": np.repeat(np.float32([[1], [2], [3]]), 20, axis=1),
        }.items():
            del file[name]
            file[name] = values
    text = page(tmp_path, folder)
    assert "3 of 4 variants scored" in text
    chosen = "Every substitution (2 proteins)"
    assert drawn == {"Variants": {0.5: 1, 1.5: 1, 2.5: 1}, chosen: {1: 19, 3: 20}}
    monkeypatch.setattr(report_scores, "MOST_PROTEINS", 3)
    page(tmp_path, folder)
    assert drawn["Every substitution"] == {1: 19, 2: 19, 3: 20}


def test_a_histogram_has_all_values(monkeypatch):
    axes, values = Mock(), Histogram()
    values.add(np.array([0.5, -3.0, 2.0]))
    monkeypatch.setattr(report_scores, "svg", lambda draw: draw(axes))
    report_scores.score_histogram(values, "Variants", "wt_marginal")
    edges, counts, widths = axes.bar.call_args.args
    assert counts.sum() == 3
    assert edges[0] == -3 < edges[-1] + widths[-1]
    assert counts[[0, -1]].tolist() == [1, 1]
    assert axes.axvline.call_args.args == (0,)


def test_scores_whose_origin_is_not_reported_are_not_on_the_page(tmp_path):
    folder = write_scores(tmp_path / "a")
    (folder / "scores.json").unlink()
    text = page(tmp_path, folder)
    assert "variants scored" not in text
    assert "Every substitution of 2 records" in text


def test_without_a_score_there_is_no_picture(tmp_path):
    text = page(tmp_path, write_scores(tmp_path / "a", ok=0))
    assert "0 of 1 variant scored by wt_marginal" in text
    assert text.count("<svg") == 2


def test_wild_types_are_not_in_the_picture(tmp_path):
    """A residue that is none of the 20 has 20 substitutions, another 19."""
    with Saturations.open(write_scores(tmp_path / "a") / "saturation.h5") as results:
        assert report_scores.substitution_scores(results, 0).size == 19 + 20


def test_scores_that_are_none_are_one_line(tmp_path, capsys):
    folder = write_scores(tmp_path / "a")
    (folder / "scores.json").write_text("{}")
    assert main(["report", "--out", str(tmp_path / "report.html"), str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "scores.tsv: not as `join` writes it ('strategy'); make it again" in line


def test_page_is_whole_and_needs_nothing_else(tmp_path):
    text = page(tmp_path, write_sample(tmp_path / "a", [30, 40, 900]))
    pictures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(pictures) == 2
    for picture in pictures:
        assert ET.fromstring(picture).tag.endswith("svg")
    addresses = re.findall(r'(?:src|href)="(?!#|data:)([^"]*)"', text)
    assert addresses == []


def test_same_results_give_the_same_bytes(tmp_path):
    folder = write_sample(tmp_path / "a", [30, 40, 900])
    assert page(tmp_path, folder) == page(tmp_path, folder)


@pytest.mark.parametrize("lengths", [[], [7], [7, 7], [7, 7, 7], [1, 5000, 3, 10, 400]])
def test_few_and_alike_records(tmp_path, lengths):
    text = page(tmp_path, write_sample(tmp_path / "a", lengths))
    assert text.count("<svg") == bool(lengths) + (len(lengths) >= 3)


def test_without_means_there_is_no_map(tmp_path):
    text = page(tmp_path, write_sample(tmp_path / "a", [7, 8, 9, 10], means=False))
    assert text.count("<svg") == 1
    assert "bos of layer 2" in text


def test_many_samples_get_tables_and_some_get_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "PICTURES", 1)
    folders = [write_sample(tmp_path / name, [30, 40, 50]) for name in "abc"]
    text = page(tmp_path, *folders)
    assert text.count("<svg") == 2
    assert "Pictures of the first 1 samples of 3." in text
    assert "<td>c</td>" in text


def test_principal_components_find_the_planted_plane():
    rng = np.random.default_rng(1)
    plane = rng.normal(size=(200, 2)) * (10, 3)
    axes = np.linalg.qr(rng.normal(size=(6, 6)))[0][:2]
    values = (plane @ axes + 5).astype(np.float32)
    points, shares = principal_components(values)
    centred = plane - plane.mean(0)
    distances = np.linalg.norm(centred[:, None] - centred, axis=-1)
    assert np.abs(np.linalg.norm(points[:, None] - points, axis=-1) - distances).max() < 1e-3
    assert shares.sum() == pytest.approx(1, abs=1e-6)
    assert shares[0] > 0.8
    assert (points[np.abs(points).argmax(0), [0, 1]] > 0).all()


def test_numbers_are_evenly_spaced_and_within():
    assert report_parts.evenly_spaced(5, 10).tolist() == [0, 1, 2, 3, 4]
    many = report_parts.evenly_spaced(1_000_003, 2_000)
    assert len(many) == 2_000
    assert (many[0], many[-1]) == (0, 1_000_002)
    assert np.diff(many).max() - np.diff(many).min() <= 1


@pytest.mark.parametrize(
    ("least", "most", "expected"),
    [(31, 686, [50, 100, 200, 500]), (1, 3, [1, 2]), (6, 7, [6, 7]), (100, 100, [100])],
)
def test_round_numbers(least, most, expected):
    assert report_parts.round_numbers(least, most) == expected


def test_one_record_is_one(tmp_path):
    text = page(tmp_path, write_sample(tmp_path / "a", [147]))
    assert "<p>1 usable record, 147 residues.</p>" in text
    assert "<p>1 record with 1 different sequence; mean of layer 2" in text
    text = page(tmp_path, write_sample(tmp_path / "b", [10, 20]))
    assert "<p>2 usable records, 30 residues; 10 to 20 in a record.</p>" in text


def test_the_tables_with_all_reasons_are_named(tmp_path):
    folder = write_scores(tmp_path / "a")
    assert "all are in <code>records.tsv</code> of the sample" in page(tmp_path, folder)
    scored = Record(0, "id0", "id0", 30, "", "ok").with_outcome("score", "ok")
    write_records(folder / "records.tsv", [scored], ["score"])
    assert "all are in <code>scores.tsv</code> of the sample" in page(tmp_path, folder)
    skipped = Record(0, "id0", "id0", 30, "", "ok").with_outcome("score", "skipped", "why")
    write_records(folder / "records.tsv", [skipped], ["score"])
    wanted = "all are in <code>records.tsv</code> and <code>scores.tsv</code> of the sample"
    assert wanted in page(tmp_path, folder)
