"""Classes on the report: how many of each, and how sure the model is of them."""

from __future__ import annotations

import html
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from esm_pipeline.formats.classes import MULTI_LABEL, REGRESSION, Classes, P, ResidueClasses
from esm_pipeline.formats.fasta import shown
from esm_pipeline.tasks.pictures import BLUE, svg
from esm_pipeline.tasks.report_scores import Part, histogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_BARS = 20
BLOCK = 1 << 16
LIKELY = 0.5


def classes_section(folder: Path) -> Part:
    """What the classes of a sample are, with their numbers; None without any."""
    for name, kind in (("classes.h5", Classes), ("residue_classes.h5", ResidueClasses)):
        if (folder / name).exists():
            with kind.open(folder / name) as results:
                return told(results)
    return None


def told(results: Classes) -> tuple[str, list[str]]:
    """The facts of one file, and its picture. Unique sequences count once."""
    dataset = results.file[P]
    what = "residues" if results.per_residue else "sequences"
    facts = (
        f"{len(dataset):,} different {what} of {len(results):,} records, classes of {what} by "
        f"{html.escape(str(results.attributes['model']))}."
    )
    if results.problem == REGRESSION:
        values = [histogram(dataset[:, k], name, name) for k, name in enumerate(results.columns)]
        return facts, values[:MOST_BARS]
    counts: Counter[str] = Counter(dict.fromkeys(results.labels, 0))
    for start in range(0, len(dataset), BLOCK):
        for label, count in zip(results.labels, members(results, dataset, start), strict=True):
            counts[label] += int(count)
    return facts, [bars(counts, what)]


def members(results: Classes, dataset: NDArray[np.float32], start: int) -> NDArray[np.int64]:
    """(K,) how many of a block of rows are of each class."""
    p = dataset[start : start + BLOCK]
    if results.problem == MULTI_LABEL:
        return np.asarray((p >= LIKELY).sum(0), np.int64)
    return np.bincount(p.argmax(1), minlength=p.shape[1])


def bars(counts: Counter[str], what: str) -> str:
    """A bar for each of the commonest labels."""
    return svg(partial(draw_bars, counts=counts.most_common(MOST_BARS), what=what))


def draw_bars(axes: Axes, counts: list[tuple[str, int]], what: str) -> None:
    """Draw them, the commonest on top."""
    names = [shown(label) for label, _ in counts]
    drawn = axes.barh(range(len(counts)), [count for _, count in counts], color=BLUE)
    axes.bar_label(drawn, labels=[f"{count:,}" for _, count in counts], padding=3)
    axes.set_yticks(range(len(counts)), [name.replace("$", r"\$") for name in names])
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(title=f"Classes of {what}", xlabel=what)
