"""What the sections of the report share: tables, and pictures as SVG, the same bytes each time."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from esm_pipeline.arrays import Float64, Int64

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, GREY = "#30638e", "#555555"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "esm-pipeline",
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.titlecolor": "#222222",
    "axes.titlesize": 11,
    "xtick.color": GREY,
    "ytick.color": GREY,
}


class ReportSection(NamedTuple):
    """What the report shows of the results of one sample."""

    facts: str
    """Sentences, as HTML."""
    pictures: list[str]
    """As SVG or HTML; empty ones are left out."""


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int]) -> str:
    """An HTML table; the columns at the places `numbers` are aligned to the right."""
    right = set(numbers)

    def line(cells: Sequence[str], tag: str) -> str:
        marks = (' class="number"' if place in right else "" for place in range(len(cells)))
        texts = map(html.escape, cells)
        return "".join(f"<{tag}{m}>{t}</{tag}>" for m, t in zip(marks, texts, strict=True))

    lines = [line(columns, "th"), *(line(row, "td") for row in rows)]
    return "<table>\n" + "\n".join(f"<tr>{cells}</tr>" for cells in lines) + "\n</table>"


def svg(draw: Callable[[Axes], None]) -> str:
    """A picture of one pair of axes, as SVG text to put into a page."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.8, 3.4), layout="constrained", dpi=150)
        draw(figure.add_subplot())
        text = io.StringIO()
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def evenly_spaced(count: int, most: int) -> Int64:
    """At most `most` of the numbers below `count`, evenly spaced, each once, ascending."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def spread(counts: Sequence[int], most: int) -> list[Int64]:
    """At most `most` places, evenly spaced over files of `counts` rows each: those in each file."""
    chosen, ends = evenly_spaced(sum(counts), most), np.cumsum([0, *counts])
    return [chosen[(chosen >= first) & (chosen < stop)] - first for first, stop in pairwise(ends)]


def draw_bars(axes: Axes, edges: Float64, counts: Int64) -> None:
    """Draw a histogram with `counts` (n,) between `edges` (n + 1,)."""
    widths = np.diff(edges)
    axes.bar(edges[:-1], counts, widths, align="edge", color=BLUE, edgecolor="white", linewidth=0.4)


def round_numbers(least: int, most: int) -> list[int]:
    """1, 2, 5, 10, 20, … between two positive numbers, or these two if there are none."""
    steps = [digit * 10**power for power in range(len(str(most))) for digit in (1, 2, 5)]
    return [step for step in steps if least <= step <= most] or [least, most]
