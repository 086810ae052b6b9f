"""Embeddings in the report: how many, by which model, and a map of them."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from esm_pipeline.arrays import Float32, Float64, Int32
from esm_pipeline.formats.results.embeddings import Embeddings
from esm_pipeline.tasks.common.outcomes import count_text
from esm_pipeline.tasks.common.report_parts import ReportSection, round_numbers, spread, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 2_000  # most sequences in the picture


def embeddings_section(paths: Sequence[Path]) -> ReportSection:
    """The embeddings in the files of a sample, and a map of evenly spaced ones.

    One file is read at a time: its lengths, and the means of the sequences in the map.
    """
    records, sizes = 0, []
    for path in paths:
        with Embeddings.open(path) as results:
            records += len(results)
            sizes.append(len(results.length))
    with Embeddings.open(paths[0]) as results:
        facts = embedding_facts(results, records, sum(sizes))
        layer = results.layers[-1] if "mean" in results.kinds else None
    if layer is None or sum(sizes) < 3:
        return ReportSection(facts, [])
    means, lengths = [], []
    for path, rows in zip(paths, spread(sizes, POINTS), strict=True):
        if len(rows):
            with Embeddings.open(path) as results:
                means.append(results.mapped(f"mean/{layer}")[rows])
                lengths.append(results.length[rows])
    picture = embedding_map(np.concatenate(means), np.concatenate(lengths), layer, sum(sizes))
    return ReportSection(facts, [picture])


def embedding_facts(results: Embeddings, records: int, sequences: int) -> str:
    """How many embeddings there are, of which model."""
    origin = {name: html.escape(str(value)) for name, value in results.attributes.items()}
    layers = ", ".join(map(str, results.layers))
    return (
        f"{count_text(records, 'records')} with {count_text(sequences, 'sequences', 'different')}; "
        f"{', '.join(results.kinds)} of layer {layers}. Model <code>{origin['model']}</code>, "
        f"weights <code>{origin['weights_sha256'][:16]}</code>, {origin['dtype']}."
    )


def embedding_map(means: Float32, lengths: Int32, layer: int, of: int) -> str:
    """The first two principal components of `means` (points, D), coloured by length, as SVG.

    of: how many sequences there are.
    """
    points, shares = principal_components(means)

    def draw(axes: Axes) -> None:
        dots = axes.scatter(*points.T, c=lengths, s=14, norm="log", linewidths=0, rasterized=True)
        axes.set(
            xlabel=f"first component, {shares[0]:.0%} of the variance",
            ylabel=f"second, {shares[1]:.0%}",
            title=f"Mean embeddings, layer {layer}"
            + (f" ({len(means):,} sequences)" if len(means) < of else ""),
            xticks=[],
            yticks=[],
        )
        bar = axes.figure.colorbar(dots, ax=axes, label="residues", format="{x:,.0f}")
        bar.outline.set_visible(False)
        bar.set_ticks(round_numbers(int(lengths.min()), int(lengths.max())))
        bar.minorticks_off()

    return svg(draw)


def principal_components(values: Float32) -> tuple[Float64, Float64]:
    """First two principal components (N, 2), and their shares of the variance (2,).

    The sign makes the coordinate of largest size positive.
    """
    centred = values.astype(np.float64) - values.mean(0, dtype=np.float64)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    points = left[:, :2] * scale[:2]
    points *= np.sign(points[np.abs(points).argmax(0), range(points.shape[1])])
    return points, scale[:2] ** 2 / max((scale**2).sum(), np.finfo(float).tiny)
