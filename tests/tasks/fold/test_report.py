"""Structures on the report: how many, how sure, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from esm_pipeline.formats.records import format_row
from esm_pipeline.formats.structure_files import STRUCTURE_COLUMNS
from esm_pipeline.structure.quality import FLAGS
from esm_pipeline.structure.structure import MEANINGLESS
from esm_pipeline.tasks.fold import report as report_structures
from esm_pipeline.tasks.fold.report import structures_section


@pytest.fixture
def drawn(monkeypatch):
    """What the histograms are made of: bars that are not empty, by their number from 0 to 39."""
    found = {}

    def histogram(counts, most, label, title):
        found[label] = {int(place): int(counts[place]) for place in np.flatnonzero(counts)}
        assert (len(counts), most) == (40, {"mean pLDDT": 100, "pTM": 1}[label])
        return f"<svg>{title}</svg>"

    monkeypatch.setattr(report_structures, "confidence_histogram", histogram)
    return found


def write(folder: Path, *rows: tuple[str, str, str]) -> Path:
    """A table with pLDDT, pTM and flags."""
    blank = dict.fromkeys(STRUCTURE_COLUMNS, "")
    lines = [blank | {"plddt": one[0], "ptm": one[1], "flags": one[2]} for one in rows]
    texts = [format_row(STRUCTURE_COLUMNS), *(format_row(list(line.values())) for line in lines)]
    (folder / "structures.tsv").write_text("".join(texts))
    return folder


def section(folder: Path) -> tuple[str, str]:
    """Facts and pictures of a sample's structures."""
    part = structures_section(folder / "structures.tsv")
    return part[0], "\n".join(map(str, part[1]))


@pytest.mark.parametrize("rows_at_once", [1, 4096])
def test_counts_confidence_and_flags(tmp_path, drawn, monkeypatch, rows_at_once):
    monkeypatch.setattr(report_structures, "ROWS_AT_ONCE", rows_at_once)
    rows = [("80.5", "0.71", "clashes"), ("", "", ""), ("40", "0.2", "clashes;low_ptm")]
    facts, shown = section(write(tmp_path, *rows))
    assert facts == "2 records with a structure."
    assert drawn == {"mean pLDDT": {32: 1, 16: 1}, "pTM": {28: 1, 8: 1}}
    assert '<td>clashes</td><td class="number">2</td>' in shown
    assert '<td>low_ptm</td><td class="number">1</td>' in shown
    assert f"<td>{FLAGS['clashes'].meaning}</td>" in shown
    assert "flags.tsv" in shown


def test_random_weights_are_reported(tmp_path, drawn):
    facts, shown = section(write(tmp_path, ("80", "0.7", "random_weights")))
    assert f"<strong>{MEANINGLESS}.</strong>" in facts
    assert "<td>random_weights</td>" not in shown


def test_no_structure(tmp_path, drawn):
    assert section(write(tmp_path, ("", "", ""))) == ("0 records with a structure.", "")
    assert drawn == {}


def test_the_pictures_are_drawn_the_same_each_time(tmp_path):
    write(tmp_path, ("80.5", "0.7", ""), ("40", "0.2", ""))
    shown = section(tmp_path)[1]
    assert shown.count("<svg") == 2
    assert "Local confidence" in shown
    assert section(tmp_path)[1] == shown
