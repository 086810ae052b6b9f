"""Classes on the report: how many sequences or residues are of each, or how values are spread."""

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
from esm_pipeline.tasks.common.pictures import BLUE, svg
from esm_pipeline.tasks.score.report import Part

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BARS = 12  # labels in a picture, at most
HISTOGRAMS = 6  # values of several that get a picture, at most
BLOCK = 1 << 16
LONGEST = 24  # letters of a label


def classes_section(path: Path) -> Part:
    """What the classes of a sample, of sequences or residues, are, with their numbers."""
    kind = ResidueClasses if path.name == "residue_classes.h5" else Classes
    with kind.open(path) as results:
        return facts(results), pictures(results)


def facts(results: Classes) -> str:
    """Two sentences: how many, by which model."""
    told = {name: html.escape(str(value)) for name, value in results.attributes.items()}
    return (
        f"{len(results.mapped()):,} {unit(results)} of {len(results):,} records classified. Model "
        f"<code>{told['model']}</code>, weights <code>{told['weights_sha256'][:16]}</code>, "
        f"{told['dtype']}."
    )


def unit(results: Classes) -> str:
    """What is counted: a sequence that is there twice counts once."""
    what = "residues" if isinstance(results, ResidueClasses) else "sequences"
    return f"different {what}" if what == "sequences" else f"{what} of different sequences"


def pictures(results: Classes) -> list[str]:
    """A bar for each label, or a histogram of each value, as SVG; none where there is nothing."""
    values = results.mapped()
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
    """(K,) how many are of each label."""
    p, counts = results.mapped(), np.zeros(len(results.labels), np.int64)
    for start in range(0, len(p), BLOCK):
        block = p[start : start + BLOCK]
        if results.problem == MULTI_LABEL:
            counts += (block >= THRESHOLD).sum(0)
        else:
            counts += np.bincount(block.argmax(1), minlength=len(counts))
    return counts


def draw_bars(axes: Axes, results: Classes, counts: Int64) -> None:
    """The commonest labels, from the top."""
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
    """How many have which value."""
    axes.hist(values, bins=50, color=BLUE, edgecolor="white", linewidth=0.3)
    axes.set(xlabel=tick(name), ylabel=what, title="Values")
    axes.yaxis.set_major_formatter("{x:,.0f}")


def tick(label: str) -> str:
    """A label as matplotlib takes it: no mathematics between dollars, and not too long."""
    text = shown(label)
    cut = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return cut.replace("$", r"\$")
