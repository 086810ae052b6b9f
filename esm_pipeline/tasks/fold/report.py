"""The structures of a sample in the report: their confidence and their flags."""

from __future__ import annotations

import html
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from esm_pipeline.arrays import Int64
from esm_pipeline.formats.structure_files import structure_rows
from esm_pipeline.formats.tables.base import ROWS_AT_ONCE
from esm_pipeline.structure.quality import FLAGS
from esm_pipeline.structure.structure import MEANINGLESS, RANDOM
from esm_pipeline.tasks.common.outcomes import count_text
from esm_pipeline.tasks.common.report_parts import GREY, ReportSection, draw_bars, svg, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BARS_OF_CONFIDENCE = 40
CONFIDENCES = (
    ("plddt", 100.0, "mean pLDDT", "Local confidence"),
    ("ptm", 1.0, "pTM", "Global confidence"),
)
"""Column, largest value, label and title of each picture."""

WHERE_RESIDUES = "The residues behind each flag are in flags.tsv."

PLDDT_LEVELS = (50, 70, 90)
"""Lowest pLDDT that the AlphaFold database calls low, confident, very high."""


def structures_section(path: Path) -> ReportSection:
    """The number of structures of a sample, their confidence and flags, from their table."""
    flags, count = Counter[str](), 0
    drawn = {name: np.zeros(BARS_OF_CONFIDENCE, np.int64) for name, *_ in CONFIDENCES}
    rows = (row for row in structure_rows(path) if row["plddt"])
    while block := list(islice(rows, ROWS_AT_ONCE)):
        count += len(block)
        for name, most, *_ in CONFIDENCES:
            values = np.array([float(row[name]) for row in block])
            drawn[name] += np.histogram(values, BARS_OF_CONFIDENCE, (0, most))[0]
        flags.update(one for row in block for one in row["flags"].split(";") if one)
    facts = f"{count_text(count, 'records')} with a structure."
    if flags.pop(RANDOM, 0):
        facts += f" <strong>{html.escape(MEANINGLESS)}.</strong>"
        return ReportSection(facts, [])
    pictures = []
    if count:
        pictures = [
            confidence_histogram(drawn[name], most, label, title)
            for name, most, label, title in CONFIDENCES
        ]
    if flags:
        lines = [
            [name, f"{number:,}", FLAGS[name].meaning.replace("`", "") if name in FLAGS else ""]
            for name, number in flags.most_common()
        ]
        pictures.append(table(("flag", "structures", "meaning"), lines, numbers=(1,)))
        pictures.append(f"<p>{html.escape(WHERE_RESIDUES)}</p>")
    return ReportSection(facts, pictures)


def confidence_histogram(counts: Int64, most: float, label: str, title: str) -> str:
    """A value from 0 to `most` over the structures, as SVG; dotted lines at levels of pLDDT."""

    def draw(axes: Axes) -> None:
        draw_bars(axes, np.linspace(0, most, len(counts) + 1), counts)
        for level in PLDDT_LEVELS if most > 1 else ():
            axes.axvline(level, color=GREY, linewidth=0.8, linestyle=":")
        axes.set(xlabel=label, ylabel="structures", xlim=(0, most), title=title)
        axes.yaxis.get_major_locator().set_params(integer=True)

    return svg(draw)
