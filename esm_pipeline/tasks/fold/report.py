"""The structures of a sample on the report's page: how sure they are, what is wrong with them."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from esm_pipeline.arrays import Float64
from esm_pipeline.formats.structure_files import read_table
from esm_pipeline.structure.structure import MEANINGLESS, RANDOM
from esm_pipeline.tasks.common.pictures import BLUE, GREY, svg, table
from esm_pipeline.tasks.score.report import Part

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEVELS = (50, 70, 90)
"""pLDDT at which the AlphaFold database changes the word: low, confident, very high."""


def structures_section(path: Path) -> Part:
    """What the structures of a sample are, and how good they are held to be, by their table."""
    plddt, ptm, flags = [], [], Counter[str]()
    for row in read_table(path):
        if row["plddt"]:
            plddt.append(float(row["plddt"]))
            ptm.append(float(row["ptm"]))
            flags.update(filter(None, row["flags"].split(";")))
    facts = f"{len(plddt):,} records with a structure."
    if flags.pop(RANDOM, 0):
        facts += f" <strong>{html.escape(MEANINGLESS)}.</strong>"
    shown = []
    if plddt:
        shown = [
            histogram(plddt, np.linspace(0, 100, 41), "mean pLDDT", "Local confidence"),
            histogram(ptm, np.linspace(0, 1, 41), "pTM", "Global confidence"),
        ]
    if flags:
        rows = [[name, f"{number:,}"] for name, number in flags.most_common()]
        shown.append(table(("flag", "structures"), rows, numbers=(1,)))
    return facts, shown


def histogram(values: Sequence[float], edges: Float64, label: str, title: str) -> str:
    """How many structures have which value, as SVG; dotted lines at levels of pLDDT."""

    def draw(axes: Axes) -> None:
        axes.hist(values, bins=list(edges), color=BLUE, edgecolor="white", linewidth=0.5)
        for level in LEVELS if edges[-1] > 1 else ():
            axes.axvline(level, color=GREY, linewidth=0.8, linestyle=":")
        axes.set(xlabel=label, ylabel="structures", xlim=(0, edges[-1]), title=title)
        axes.yaxis.get_major_locator().set_params(integer=True)

    return svg(draw)
