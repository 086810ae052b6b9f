"""Scores in the report: how many, by which models, and their distribution."""

from __future__ import annotations

import html
import json
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from esm_pipeline.arrays import Float32, Float64
from esm_pipeline.errors import InputError
from esm_pipeline.formats.records import OK
from esm_pipeline.formats.results.saturation import Saturations
from esm_pipeline.formats.tables.open import open_table
from esm_pipeline.tasks.common.report_parts import (
    BLUE,
    GREY,
    ReportSection,
    evenly_spaced,
    svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_PROTEINS = 200  # in the histogram of a saturation

Values: TypeAlias = NDArray[np.floating[Any]]


def saturation_section(path: Path) -> ReportSection:
    """The saturation of a sample, with a histogram."""
    with Saturations.open(path) as results:
        residues, chosen = int(results.length.sum()), evenly_spaced(len(results), MOST_PROTEINS)
        odds = [substitution_scores(results, place) for place in chosen.tolist()]
        facts = (
            f"Every substitution of {len(results):,} records with {residues:,} different residues, "
            f"by {results.strategy}. {describe_models(json.loads(results.attributes['models']))}"
        )
        some = f" ({len(chosen):,} proteins)" if len(chosen) < len(results) else ""
        values = np.concatenate(odds) if odds else np.empty(0)
        picture = score_histogram(values, f"Every substitution{some}", results.strategy)
        return ReportSection(facts, [picture])


def substitution_scores(results: Saturations, place: int) -> Float32:
    """The log-odds of a record, without those of each residue to itself."""
    item = results.item(place)
    letters = np.array(list(item.sequence))[:, None]
    found: Float32 = item.log_odds[letters != np.array(list(results.alphabet))]
    return found


def variants_section(path: Path) -> ReportSection:
    """The scores of a variant table, with a histogram. Raises InputError for a damaged file."""
    try:
        facts = json.loads(path.with_name("scores.json").read_text(encoding="utf-8"))
        strategy, models = facts["strategy"], describe_models(facts["models"])
        rows, values = read_scores(path, strategy)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not as `join` writes it ({error}); make it again") from None
    text = f"{len(values):,} of {rows:,} variants scored by {strategy}. {models}"
    return ReportSection(text, [score_histogram(values, "Variants", strategy)])


def read_scores(path: Path, strategy: str) -> tuple[int, Float64]:
    """The number of rows, and the scores of those that are ok, which take 8 bytes each."""
    rows, values = 0, array("d")
    for block in open_table(path).blocks(["status", strategy]):
        rows += block.count
        values.extend(float(value) for status, value in block.cells if status == OK)
    return rows, np.frombuffer(values, np.float64) if values else np.empty(0)


def describe_models(models: Mapping[str, Mapping[str, str]]) -> str:
    """The models, with the first digits of their weights' digests, as HTML."""
    texts = [
        f"<code>{html.escape(one['model'])}</code>, weights <code>{one['weights_sha256'][:16]}"
        f"</code>, {html.escape(one['dtype'])}"
        for one in models.values()
    ]
    if len(texts) == 1:
        return f"Model {texts[0]}."
    return f"Mean over {len(texts)}: {'; '.join(texts)}."


def score_histogram(values: Values, title: str, strategy: str) -> str:
    """The distribution of the scores, as SVG; empty if there are none."""
    if not values.size:
        return ""

    def draw(axes: Axes) -> None:
        axes.hist(values, bins=50, color=BLUE, edgecolor="white", linewidth=0.3)
        axes.axvline(0, color=GREY, linewidth=0.8, linestyle=":")
        axes.set(xlabel=f"{strategy}, higher is fitter", ylabel="variants", title=title)
        axes.yaxis.set_major_formatter("{x:,.0f}")

    return svg(draw)
