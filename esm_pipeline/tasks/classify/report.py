"""Classes in the report: counts of labels, or distributions of values."""

from __future__ import annotations

import html
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from esm_pipeline.arrays import Float32, Int64
from esm_pipeline.formats.fasta import shown
from esm_pipeline.formats.results.classes import (
    MULTI_LABEL,
    REGRESSION,
    THRESHOLD,
    Classes,
    ResidueClasses,
    column_names,
)
from esm_pipeline.tasks.common.report_parts import BLUE, ReportSection, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BARS = 12  # most labels in a picture
HISTOGRAMS = 6  # most values that get a picture
PREDICTIONS_AT_ONCE = 1 << 16
LONGEST = 24  # most letters of a label


def classes_section(path: Path) -> ReportSection:
    """The classes of the sequences or residues of a sample, and how many have each."""
    kind = ResidueClasses if path.name == "residue_classes.h5" else Classes
    with kind.open(path) as results:
        return ReportSection(facts(results), pictures(results))


def facts(results: Classes) -> str:
    """Two sentences: how many were classified, by which model."""
    origin = {name: html.escape(str(value)) for name, value in results.attributes.items()}
    return (
        f"{len(results.predictions()):,} {unit(results)} of {len(results):,} records classified. "
        f"Model <code>{origin['model']}</code>, weights "
        f"<code>{origin['weights_sha256'][:16]}</code>, {origin['dtype']}."
    )


def unit(results: Classes) -> str:
    """What is counted: equal sequences count once."""
    what = "residues" if isinstance(results, ResidueClasses) else "sequences"
    return f"different {what}" if what == "sequences" else f"{what} of different sequences"


def pictures(results: Classes) -> list[str]:
    """A bar for each label, or a histogram for each value, as SVG; none without results."""
    values = results.predictions()
    if not len(values):
        return []
    if results.problem != REGRESSION:
        return [svg(partial(draw_bars, results=results, counts=counts_of(results)))]
    names = column_names(results.problem, results.labels)[:HISTOGRAMS]
    return [
        svg(partial(draw_values, values=values[:, place], name=name, what=unit(results)))
        for place, name in enumerate(names)
    ]


def counts_of(results: Classes) -> Int64:
    """(K,) how many have each label."""
    p, counts = results.predictions(), np.zeros(len(results.labels), np.int64)
    for start in range(0, len(p), PREDICTIONS_AT_ONCE):
        block = p[start : start + PREDICTIONS_AT_ONCE]
        if results.problem == MULTI_LABEL:
            counts += (block >= THRESHOLD).sum(0)
        else:
            counts += np.bincount(block.argmax(1), minlength=len(counts))
    return counts


def draw_bars(axes: Axes, results: Classes, counts: Int64) -> None:
    """Draw the most common labels, from the top."""
    order = np.argsort(-counts, kind="stable")[:BARS]
    drawn = axes.barh(range(len(order)), counts[order], height=0.6, color=BLUE)
    axes.bar_label(drawn, labels=[f"{count:,}" for count in counts[order].tolist()], padding=3)
    axes.set_yticks(range(len(order)), [tick(results.labels[place]) for place in order.tolist()])
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.spines["bottom"].set_visible(False)
    several = f", p ≥ {THRESHOLD}" if results.problem == MULTI_LABEL else ""
    some = f" ({len(order)} of {len(counts):,} labels)" if len(order) < len(counts) else ""
    axes.set(xticks=[], xlabel=unit(results), title=f"Classes{several}{some}")


def draw_values(axes: Axes, values: Float32, name: str, what: str) -> None:
    """Draw the distribution of a value."""
    axes.hist(values, bins=50, color=BLUE, edgecolor="white", linewidth=0.3)
    axes.set(xlabel=tick(name), ylabel=what, title="Values")
    axes.yaxis.set_major_formatter("{x:,.0f}")


def tick(label: str) -> str:
    """A label for matplotlib: dollars do not begin mathematics, and long ones are cut."""
    text = shown(label)
    cut = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return cut.replace("$", r"\$")
