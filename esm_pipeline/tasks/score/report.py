"""Scores on the report: how many, of which models, and how they are spread."""

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
from esm_pipeline.formats.tables.base import open_table
from esm_pipeline.tasks.common.pictures import BLUE, GREY, spread, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PROTEINS = 200  # whose substitutions are in the picture of a saturation, at most

Part: TypeAlias = tuple[str, list[str]]
"""What is told of a sample, as HTML, and its pictures."""

Values: TypeAlias = NDArray[np.floating[Any]]


def saturation_section(path: Path) -> Part:
    """What the saturation of a sample is, with a histogram."""
    with Saturations.open(path) as results:
        residues, chosen = int(results.length.sum()), spread(len(results), PROTEINS)
        odds = [log_odds for place in chosen.tolist() if (log_odds := others(results, place)).size]
        facts = (
            f"Every substitution of {len(results):,} records with {residues:,} different residues, "
            f"by {results.strategy}. {models_told(json.loads(results.attributes['models']))}"
        )
        some = f" ({len(chosen):,} proteins)" if len(chosen) < len(results) else ""
        values = np.concatenate(odds) if odds else np.empty(0)
        return facts, [histogram(values, f"Every substitution{some}", results.strategy)]


def others(results: Saturations, place: int) -> Float32:
    """The log-odds of a record, but for those of each residue to itself."""
    item = results.item(place)
    letters = np.array(list(item.sequence))[:, None]
    found: Float32 = item.log_odds[letters != np.array(list(results.alphabet))]
    return found


def variants_section(path: Path) -> Part:
    """What the scores of a table of variants are, with a histogram."""
    try:
        facts = json.loads(path.with_name("scores.json").read_text(encoding="utf-8"))
        strategy, models = facts["strategy"], models_told(facts["models"])
        rows, values = scores(path, strategy)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not as `join` writes it ({error}); make it again") from None
    told = f"{len(values):,} of {rows:,} variants scored by {strategy}. {models}"
    return told, [histogram(values, "Variants", strategy)]


def scores(path: Path, strategy: str) -> tuple[int, Float64]:
    """The number of rows, and the scores of those that are ok; 8 bytes each are held."""
    rows, values = 0, array("d")
    for block in open_table(path).blocks(["status", strategy]):
        rows += block.count
        values.extend(float(value) for status, value in block.cells if status == OK)
    return rows, np.frombuffer(values, np.float64) if values else np.empty(0)


def models_told(models: Mapping[str, Mapping[str, str]]) -> str:
    """The models, with the beginnings of their weights' digests."""
    told = [
        f"<code>{html.escape(one['model'])}</code>, weights <code>{one['weights_sha256'][:16]}"
        f"</code>, {html.escape(one['dtype'])}"
        for one in models.values()
    ]
    return f"Model {told[0]}." if len(told) == 1 else f"Mean over {len(told)}: {'; '.join(told)}."


def histogram(values: Values, title: str, strategy: str) -> str:
    """How many variants have which score, as SVG; empty without any."""
    if not values.size:
        return ""

    def draw(axes: Axes) -> None:
        axes.hist(values, bins=50, color=BLUE, edgecolor="white", linewidth=0.3)
        axes.axvline(0, color=GREY, linewidth=0.8, linestyle=":")
        axes.set(xlabel=f"{strategy}, higher is fitter", ylabel="variants", title=title)
        axes.yaxis.set_major_formatter("{x:,.0f}")

    return svg(draw)
