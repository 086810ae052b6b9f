"""The structures of a sample in the report: their confidence and their flags."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from esm_pipeline.arrays import Float64
from esm_pipeline.formats.structure_files import structure_rows
from esm_pipeline.structure.structure import MEANINGLESS, RANDOM
from esm_pipeline.tasks.common.report_parts import BLUE, GREY, ReportSection, svg, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLDDT_LEVELS = (50, 70, 90)
"""Lowest pLDDT that the AlphaFold database calls low, confident, very high."""


def structures_section(path: Path) -> ReportSection:
    """The number of structures of a sample, their confidence and flags, from their table."""
    plddt, ptm, flags = [], [], Counter[str]()
    for row in structure_rows(path):
        if row["plddt"]:
            plddt.append(float(row["plddt"]))
            ptm.append(float(row["ptm"]))
            flags.update(filter(None, row["flags"].split(";")))
    facts = f"{len(plddt):,} records with a structure."
    if flags.pop(RANDOM, 0):
        facts += f" <strong>{html.escape(MEANINGLESS)}.</strong>"
    pictures = []
    if plddt:
        pictures = [
            plddt_histogram(plddt, np.linspace(0, 100, 41), "mean pLDDT", "Local confidence"),
            plddt_histogram(ptm, np.linspace(0, 1, 41), "pTM", "Global confidence"),
        ]
    if flags:
        rows = [[name, f"{number:,}"] for name, number in flags.most_common()]
        pictures.append(table(("flag", "structures"), rows, numbers=(1,)))
    return ReportSection(facts, pictures)


def plddt_histogram(values: Sequence[float], edges: Float64, label: str, title: str) -> str:
    """The distribution of a value over the structures, as SVG; dotted lines at levels of pLDDT."""

    def draw(axes: Axes) -> None:
        axes.hist(values, bins=list(edges), color=BLUE, edgecolor="white", linewidth=0.5)
        for level in PLDDT_LEVELS if edges[-1] > 1 else ():
            axes.axvline(level, color=GREY, linewidth=0.8, linestyle=":")
        axes.set(xlabel=label, ylabel="structures", xlim=(0, edges[-1]), title=title)
        axes.yaxis.get_major_locator().set_params(integer=True)

    return svg(draw)
