"""Write a page about the results: outcomes and lengths of the records, pictures of the results.

One self-contained HTML file with pictures as inline SVG; the same results give the same bytes.
"""

from __future__ import annotations

import argparse
import html
from collections.abc import Callable, Collection, Sequence
from itertools import islice
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import numpy as np

from esm_pipeline.arrays import Float32, Float64
from esm_pipeline.files import atomic_path
from esm_pipeline.formats.fasta import shown
from esm_pipeline.formats.results.embeddings import Embeddings
from esm_pipeline.locks import Outputs
from esm_pipeline.settings.result_names import RECORDS, SCORES
from esm_pipeline.tasks.classify.report import classes_section
from esm_pipeline.tasks.common.outputs import ending_of
from esm_pipeline.tasks.common.report_parts import BLUE, ReportSection, evenly_spaced, svg, table
from esm_pipeline.tasks.fold.report import structures_section
from esm_pipeline.tasks.fold.structures import STRUCTURES_TABLE
from esm_pipeline.tasks.run.tallies import (
    MOST_REASONS,
    TALLY_COLUMNS,
    Tally,
    add_run_flags,
    find_results,
)
from esm_pipeline.tasks.score.report import saturation_section, variants_section

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 2_000  # most sequences in the picture of embeddings
PICTURES = 20  # most samples that get pictures
PAGE_TEMPLATE = Template("""<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 15px/1.5 Helvetica, Arial, sans-serif; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; color: #222; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse } caption { text-align: left; color: #555 }
th, td { padding: .25rem .8rem .25rem 0; text-align: left; border-bottom: 1px solid #ddd;
  vertical-align: top }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
code { font-size: .9em; overflow-wrap: anywhere }
.pictures { display: flex; flex-wrap: wrap; gap: 1.5rem } .pictures svg { max-width: 100%;
  height: auto }
</style>
<h1>$title</h1>
$body
</html>
""")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `report`."""
    parser.add_argument(
        "samples", nargs="*", type=Path, help="folders of samples, with records.tsv and results"
    )
    add_run_flags(parser)


def outputs(args: argparse.Namespace) -> Outputs:
    """What `report` writes."""
    return Outputs([args.out])


def run(args: argparse.Namespace) -> int:
    """Write the page; returns 0."""
    ending_of(args.out, (".html", ".htm"))
    found = find_results(args, [folder / RECORDS for folder in args.samples])
    sections = islice(found.samples.items(), PICTURES)
    parts = [
        records_table(found.tallies),
        reasons_table(found.tallies),
        *(sample_section(folder, names) for folder, names in sections),
    ]
    if len(found.samples) > PICTURES:
        parts.append(f"<p>Pictures of the first {PICTURES} samples of {len(found.samples):,}.</p>")
    if found.others:
        parts.append(f"<p>{html.escape(found.others[0].upper() + found.others[1:])}.</p>")
    page = PAGE_TEMPLATE.substitute(
        title="Results of protein language models", body="\n".join(filter(None, parts))
    )
    with atomic_path(args.out) as path:
        path.write_text(page, encoding="utf-8")
    return 0


def records_table(tallies: Sequence[Tally]) -> str:
    """How many records were ok, skipped or failed."""
    rows = [tally.row() for tally in tallies]
    return "<h2>Records</h2>\n" + table(TALLY_COLUMNS, rows, numbers=range(2, len(TALLY_COLUMNS)))


def reasons_table(tallies: Sequence[Tally]) -> str:
    """The most common reasons; those that differ only in numbers count as one."""
    rows = [
        [tally.sample, tally.step, f"{number:,}", status, reason]
        for tally in tallies
        for status, reason, number in tally.common_reasons()
    ]
    if not rows:
        return "<p>No record was skipped and none failed.</p>"
    heading = f"<h2>Why records were skipped or failed</h2>\n<p>The {MOST_REASONS} most common "
    heading += "reasons of each step; <code>records.tsv</code> has those of all records.</p>\n"
    return heading + table(("sample", "step", "records", "status", "reason"), rows, numbers=(2,))


def sample_section(folder: Path, names: Collection[str]) -> str:
    """Facts and pictures of the results of one sample, the files `names` in its folder.

    A table of scores is left out if there is no file that describes its origin.
    """
    names = {*names} if "scores.json" in names else {*names} - {SCORES}
    found = [section(folder / name) for name, section in SECTIONS.items() if name in names]
    if not found:
        return ""
    heading = f"<h2>Sample {html.escape(shown(folder.absolute().name))}</h2>\n"
    facts = "".join(f"<p>{text}</p>\n" for text, _ in found)
    pictures = "\n".join(picture for _, some in found for picture in some if picture)
    return f'{heading}{facts}<div class="pictures">\n{pictures}\n</div>'


def embeddings_section(path: Path) -> ReportSection:
    """The embeddings of a sample, with their lengths and a map."""
    with Embeddings.open(path) as results:
        pictures = [length_histogram(results), embedding_map(results)]
        return ReportSection(embedding_facts(results), pictures)


def embedding_facts(results: Embeddings) -> str:
    """How many embeddings there are, of which model."""
    origin = {name: html.escape(str(value)) for name, value in results.attributes.items()}
    layers = ", ".join(map(str, results.layers))
    return (
        f"{len(results):,} records with {len(results.length):,} different sequences; "
        f"{', '.join(results.kinds)} of layer {layers}. Model <code>{origin['model']}</code>, "
        f"weights <code>{origin['weights_sha256'][:16]}</code>, {origin['dtype']}."
    )


def length_histogram(results: Embeddings) -> str:
    """How many records have how many residues, as SVG; empty without records."""
    lengths = results.length[results.row]
    if not len(lengths):
        return ""
    least, most = int(lengths.min()), int(lengths.max())
    wide = most > 20 * least
    edges = np.geomspace(least, most + 1, 41) if wide else np.linspace(least, most + 1, 41)

    def draw(axes: Axes) -> None:
        axes.hist(lengths, bins=edges, color=BLUE, edgecolor="white", linewidth=0.5)
        axes.set(xlabel="residues", ylabel="records", title="Length")
        axes.yaxis.get_major_locator().set_params(integer=True)
        if wide:
            axes.set_xscale("log")
            axes.set_xticks(round_numbers(least, most), minor=False)
            axes.minorticks_off()
            axes.xaxis.set_major_formatter("{x:,.0f}")

    return svg(draw)


def embedding_map(results: Embeddings) -> str:
    """The first two principal components of the mean embeddings, coloured by length, as SVG.

    Empty without means or with fewer than three sequences.
    """
    if "mean" not in results.kinds or len(results.length) < 3:
        return ""
    layer, rows = results.layers[-1], evenly_spaced(len(results.length), POINTS)
    means = results.stored("mean")[str(layer)][rows]  # (points, D)
    points, shares = principal_components(means)
    lengths = results.length[rows]

    def draw(axes: Axes) -> None:
        dots = axes.scatter(*points.T, c=lengths, s=14, norm="log", linewidths=0, rasterized=True)
        axes.set(
            xlabel=f"first component, {shares[0]:.0%} of the variance",
            ylabel=f"second, {shares[1]:.0%}",
            title=f"Mean embeddings, layer {layer}"
            + (f" ({len(rows):,} sequences)" if len(rows) < len(results.length) else ""),
            xticks=[],
            yticks=[],
        )
        bar = axes.figure.colorbar(dots, ax=axes, label="residues", format="{x:,.0f}")
        bar.outline.set_visible(False)
        bar.set_ticks(round_numbers(int(lengths.min()), int(lengths.max())))
        bar.minorticks_off()

    return svg(draw)


def round_numbers(least: int, most: int) -> list[int]:
    """1, 2, 5, 10, 20, … between two positive numbers, or these two if there are none."""
    steps = [digit * 10**power for power in range(len(str(most))) for digit in (1, 2, 5)]
    return [step for step in steps if least <= step <= most] or [least, most]


def principal_components(values: Float32) -> tuple[Float64, Float64]:
    """First two principal components (N, 2), and their shares of the variance (2,).

    The sign makes the coordinate of largest size positive.
    """
    centred = values.astype(np.float64) - values.mean(0, dtype=np.float64)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    points = left[:, :2] * scale[:2]
    points *= np.sign(points[np.abs(points).argmax(0), range(points.shape[1])])
    return points, scale[:2] ** 2 / max((scale**2).sum(), np.finfo(float).tiny)


SECTIONS: dict[str, Callable[[Path], ReportSection]] = {
    "embeddings.h5": embeddings_section,
    "saturation.h5": saturation_section,
    SCORES: variants_section,
    "classes.h5": classes_section,
    "residue_classes.h5": classes_section,
    STRUCTURES_TABLE: structures_section,
}
"""The sections of a sample, by the files of its results."""
