"""Classes in the report: counts of labels, or distributions of values."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
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
from esm_pipeline.tasks.common.outcomes import count_text
from esm_pipeline.tasks.common.report_parts import (
    BLUE,
    ReportSection,
    draw_bars,
    evenly_spaced,
    svg,
)
from esm_pipeline.tasks.common.tallies import Histogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS_DRAWN = 12  # in a picture
HISTOGRAMS = 6  # most values that get a picture
PREDICTIONS_AT_ONCE = 1 << 16
MOST_BLOCKS = 160  # of so many predictions that are counted
LONGEST = 24  # most letters of a label


def classes_section(paths: Sequence[Path], kind: type[Classes | ResidueClasses]) -> ReportSection:
    """The classes in the files of a sample, and how many sequences or residues have each.

    One block of predictions is in memory at a time. If there are very many, evenly spaced blocks
    are counted.
    """
    records, sizes = 0, []
    for path in paths:
        with kind.open(path) as results:
            records += len(results)
            sizes.append(len(results.predictions()))
    counted = CountedPredictions(paths, kind, sizes)
    with kind.open(paths[0]) as results:
        facts = describe(results, records, sum(sizes))
        if counted.size < sum(sizes):
            facts += f" The picture shows {counted.size:,} of them, evenly spaced."
        return ReportSection(facts, pictures(results, counted) if counted.size else [])


class CountedPredictions:
    """The predictions in several files, or evenly spaced blocks of them."""

    def __init__(
        self, paths: Sequence[Path], kind: type[Classes | ResidueClasses], sizes: Sequence[int]
    ) -> None:
        self.kind = kind
        blocks = [
            (path, start, min(size, start + PREDICTIONS_AT_ONCE))
            for path, size in zip(paths, sizes, strict=True)
            for start in range(0, size, PREDICTIONS_AT_ONCE)
        ]
        self.chosen = [blocks[place] for place in evenly_spaced(len(blocks), MOST_BLOCKS).tolist()]
        self.size = sum(stop - start for _, start, stop in self.chosen)

    def __iter__(self) -> Iterator[Float32]:
        """Blocks (n, K) of predictions."""
        for path, start, stop in self.chosen:
            with self.kind.open(path) as results:
                yield np.asarray(results.predictions()[start:stop])


def describe(results: Classes | ResidueClasses, records: int, predictions: int) -> str:
    """Two sentences: how many were classified, by which model."""
    origin = {name: html.escape(str(value)) for name, value in results.attributes.items()}
    if isinstance(results, ResidueClasses):
        what = count_text(predictions, "residues of different sequences")
    else:
        what = count_text(predictions, "sequences", "different")
    return (
        f"{what} of {count_text(records, 'records')} classified. "
        f"Model <code>{origin['model']}</code>, weights "
        f"<code>{origin['weights_sha256'][:16]}</code>, {origin['dtype']}."
    )


def unit(results: Classes | ResidueClasses) -> str:
    """What is counted: equal sequences count once."""
    what = "residues" if isinstance(results, ResidueClasses) else "sequences"
    return f"different {what}" if what == "sequences" else f"{what} of different sequences"


def pictures(results: Classes | ResidueClasses, predictions: CountedPredictions) -> list[str]:
    """A bar for each label, or a histogram for each value, as SVG."""
    if results.problem != REGRESSION:
        counts = counts_of(results, predictions)
        return [svg(partial(draw_labels, results=results, counts=counts))]
    names = column_names(results.problem, results.labels)[:HISTOGRAMS]
    histograms = [Histogram() for _ in names]
    for block in predictions:
        for histogram, column in zip(histograms, block.T, strict=False):
            histogram.add(column)
    return [
        svg(partial(draw_values, values=one, name=name, what=unit(results)))
        for one, name in zip(histograms, names, strict=True)
    ]


def counts_of(results: Classes | ResidueClasses, predictions: CountedPredictions) -> Int64:
    """(K,) how many have each label."""
    counts = np.zeros(len(results.labels), np.int64)
    for block in predictions:
        if results.problem == MULTI_LABEL:
            counts += (block >= THRESHOLD).sum(0)
        else:
            counts += np.bincount(block.argmax(1), minlength=len(counts))
    return counts


def draw_labels(axes: Axes, results: Classes | ResidueClasses, counts: Int64) -> None:
    """Draw the most common labels, from the top."""
    order = np.argsort(-counts, kind="stable")[:LABELS_DRAWN]
    drawn = axes.barh(range(len(order)), counts[order], height=0.6, color=BLUE)
    axes.bar_label(drawn, labels=[f"{count:,}" for count in counts[order].tolist()], padding=3)
    axes.set_yticks(range(len(order)), [tick(results.labels[place]) for place in order.tolist()])
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.spines["bottom"].set_visible(False)
    several = f", p ≥ {THRESHOLD}" if results.problem == MULTI_LABEL else ""
    some = f" ({len(order)} of {len(counts):,} labels)" if len(order) < len(counts) else ""
    axes.set(xticks=[], xlabel=unit(results), title=f"Classes{several}{some}")


def draw_values(axes: Axes, values: Histogram, name: str, what: str) -> None:
    """Draw the distribution of a value."""
    draw_bars(axes, *values.bars(50))
    axes.set(xlabel=tick(name), ylabel=what, title="Values")
    axes.yaxis.set_major_formatter("{x:,.0f}")


def tick(label: str) -> str:
    """A label for matplotlib: dollars do not begin mathematics, and long ones are cut."""
    text = shown(label)
    cut = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return cut.replace("$", r"\$")
