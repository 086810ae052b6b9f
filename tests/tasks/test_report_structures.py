"""Structures on the report: how many, how sure, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from esm_pipeline.formats.records import format_row
from esm_pipeline.formats.structure_files import COLUMNS
from esm_pipeline.formats.structures import MEANINGLESS
from esm_pipeline.tasks import report_structures
from esm_pipeline.tasks.report_structures import structures_section


@pytest.fixture
def drawn(monkeypatch):
    """What the histograms are made of."""
    found = {}

    def histogram(values, edges, label, title):
        found[label] = list(values)
        return f"<svg>{title}</svg>"

    monkeypatch.setattr(report_structures, "histogram", histogram)
    return found


def write(folder: Path, *rows: tuple[str, str, str]) -> Path:
    """A table with pLDDT, pTM and flags."""
    blank = dict.fromkeys(COLUMNS, "")
    lines = [blank | {"plddt": one[0], "ptm": one[1], "flags": one[2]} for one in rows]
    texts = [format_row(COLUMNS), *(format_row(list(line.values())) for line in lines)]
    (folder / "structures.tsv").write_text("".join(texts))
    return folder


def test_counts_confidence_and_flags(tmp_path, drawn):
    rows = [("80.5", "0.7", "clashes"), ("", "", ""), ("40", "0.2", "clashes;low_ptm")]
    page = structures_section(write(tmp_path, *rows))
    assert "<p>2 records with a structure.</p>" in page
    assert drawn == {"mean pLDDT": [80.5, 40], "pTM": [0.7, 0.2]}
    assert '<td>clashes</td><td class="number">2</td>' in page
    assert '<td>low_ptm</td><td class="number">1</td>' in page
    assert MEANINGLESS not in page


def test_random_weights_are_told(tmp_path, drawn):
    page = structures_section(write(tmp_path, ("80", "0.7", "random_weights")))
    assert f"<strong>{MEANINGLESS}.</strong>" in page
    assert "<td>random_weights</td>" not in page


def test_no_structure(tmp_path, drawn):
    assert structures_section(tmp_path) == ""
    page = structures_section(write(tmp_path, ("", "", "")))
    assert "<p>0 records with a structure.</p>" in page
    assert drawn == {}


def test_the_pictures_are_drawn_the_same_each_time(tmp_path):
    write(tmp_path, ("80.5", "0.7", ""), ("40", "0.2", ""))
    page = structures_section(tmp_path)
    assert page.count("<svg") == 2
    assert "Local confidence" in page
    assert page == structures_section(tmp_path)
