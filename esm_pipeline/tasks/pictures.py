"""Pictures on the report: one look, as SVG text to put into a page, the same bytes each time."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

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


def spread(count: int, most: int) -> NDArray[np.int64]:
    """At most `most` of the numbers below `count`, evenly spread, each once, ascending."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))
