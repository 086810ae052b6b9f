"""Scores in the report: how many, by which models, and their distribution."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from esm_pipeline.arrays import Float32
from esm_pipeline.errors import InputError
from esm_pipeline.formats.records import OK
from esm_pipeline.formats.results.saturation import LOG_ODDS, WILD_TYPE, Saturations
from esm_pipeline.formats.results.validation import letters_of
from esm_pipeline.tasks.common.outcomes import count_text
from esm_pipeline.tasks.common.report_parts import GREY, ReportSection, draw_bars, spread, svg
from esm_pipeline.tasks.common.tallies import Counts, Histogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_PROTEINS = 200  # in the histogram of a saturation


def saturation_section(paths: Sequence[Path]) -> ReportSection:
    """The saturation in the files of a sample, with a histogram of evenly spaced sequences."""
    records, residues, sizes = 0, 0, []
    for path in paths:
        with Saturations.open(path) as results:
            records += len(results)
            residues += int(results.length.sum(dtype=np.int64))
            sizes.append(len(results.length))
    values, chosen = Histogram(), spread(sizes, MOST_PROTEINS)
    for path, rows in zip(paths, chosen, strict=True):
        with Saturations.open(path) as results:
            for row in rows.tolist():
                values.add(substitution_scores(results, row))
            strategy, models = results.strategy, json.loads(str(results.attributes["models"]))
    facts = (
        f"Every substitution of {count_text(records, 'records')} with "
        f"{count_text(residues, 'residues', 'different')}, by {strategy}. {describe_models(models)}"
    )
    drawn = sum(map(len, chosen))
    some = f" ({drawn:,} proteins)" if drawn < sum(sizes) else ""
    return ReportSection(facts, [score_histogram(values, f"Every substitution{some}", strategy)])


def substitution_scores(results: Saturations, row: int) -> Float32:
    """The log-odds of a sequence, without those of each residue to itself."""
    units = slice(*results.offset[row : row + 2].tolist())
    with results.reading():
        letters = np.array(list(letters_of(results.file[WILD_TYPE][units], WILD_TYPE)))
    odds: Float32 = results.file[LOG_ODDS][units]
    found: Float32 = odds[letters[:, None] != np.array(list(results.alphabet))]
    return found


def variants_section(origin: Path, counts: Counts) -> ReportSection:
    """The scores of a variant table, whose models are in `origin`, with a histogram.

    Raises InputError for a damaged file.
    """
    try:
        facts = json.loads(origin.read_text(encoding="utf-8"))
        strategy, models = facts["strategy"], describe_models(facts["models"])
        values, (tally,) = counts.histograms[strategy], counts.tallies
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{origin}: not as `join` writes it ({error}); make it again") from None
    rows = count_text(tally.statuses.total(), "variants")
    text = f"{tally.statuses[OK]:,} of {rows} scored by {strategy}. {models}"
    return ReportSection(text, [score_histogram(values, "Variants", strategy)])


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


def score_histogram(values: Histogram, title: str, strategy: str) -> str:
    """The distribution of the scores, as SVG; empty if there are none."""
    if not values.total:
        return ""

    def draw(axes: Axes) -> None:
        draw_bars(axes, *values.bars(50))
        axes.axvline(0, color=GREY, linewidth=0.8, linestyle=":")
        axes.set(xlabel=f"{strategy}, higher is fitter", ylabel="variants", title=title)
        axes.yaxis.set_major_formatter("{x:,.0f}")

    return svg(draw)
