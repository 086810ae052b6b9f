"""Write a page about the results: outcomes and lengths of the records, pictures of the results.

One self-contained HTML file with pictures as inline SVG; the same results give the same bytes.
"""

from __future__ import annotations

import argparse
import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import numpy as np

from esm_pipeline.files import atomic_path
from esm_pipeline.formats.fasta import shown
from esm_pipeline.formats.results.classes import Classes, ResidueClasses
from esm_pipeline.locks import Outputs
from esm_pipeline.settings.result_names import RECORDS, SCORE_FACTS, SCORES
from esm_pipeline.tasks.classify.report import classes_section
from esm_pipeline.tasks.common.outcomes import count_text
from esm_pipeline.tasks.common.outputs import ending_of
from esm_pipeline.tasks.common.progress import waiting
from esm_pipeline.tasks.common.report_parts import (
    ReportSection,
    draw_bars,
    round_numbers,
    svg,
    table,
)
from esm_pipeline.tasks.common.tallies import MOST_REASONS, TALLY_COLUMNS, VARIANTS_STEP, Tally
from esm_pipeline.tasks.embed.report import embeddings_section
from esm_pipeline.tasks.fold.report import structures_section
from esm_pipeline.tasks.fold.tables import STRUCTURES_TABLE
from esm_pipeline.tasks.run.tallies import (
    RunResults,
    SampleResults,
    add_run_flags,
    count_variants,
    find_results,
)
from esm_pipeline.tasks.score.report import saturation_section, variants_section

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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


EXAMPLES = (
    (
        "esm-pipeline report --out report.html results/my_sample",
        "a page about the results in a folder",
    ),
)


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
    with waiting(f"report: drawing {args.out}"):
        page = page_of(find_results(args, [folder / RECORDS for folder in args.samples]))
    with atomic_path(args.out) as path:
        path.write_text(page, encoding="utf-8")
    return 0


def page_of(found: RunResults) -> str:
    """The page as HTML."""
    tallies = found.tallies()
    parts = [
        records_table(tallies),
        reasons_table(tallies),
        *(sample_section(sample) for sample in found.samples[:PICTURES]),
    ]
    if len(found.samples) > PICTURES:
        parts.append(f"<p>Pictures of the first {PICTURES} samples of {len(found.samples):,}.</p>")
    if found.others:
        parts.append(f"<p>{html.escape(found.others[0].upper() + found.others[1:])}.</p>")
    return PAGE_TEMPLATE.substitute(
        title="Results of protein language models", body="\n".join(filter(None, parts))
    )


def records_table(tallies: Sequence[Tally]) -> str:
    """How many records were ok, skipped or failed."""
    rows = [tally.row() for tally in tallies]
    return "<h2>Records</h2>\n" + table(TALLY_COLUMNS, rows, numbers=range(2, len(TALLY_COLUMNS)))


def reasons_table(tallies: Sequence[Tally]) -> str:
    """The most common reasons, as in `Tally.common_reasons`."""
    rows = [
        [tally.sample, tally.step, f"{number:,}", status, reason]
        for tally in tallies
        for status, reason, number in tally.common_reasons()
    ]
    if not rows:
        return "<p>No record was skipped and none failed.</p>"
    tables = {f"<code>{SCORES if row[1] == VARIANTS_STEP else RECORDS}</code>" for row in rows}
    heading = (
        f"<h2>Why records were skipped or failed</h2>\n<p>The {MOST_REASONS} most common reasons "
        "of each step, of those that differ only in numbers or residues the first; "
        f"all are in {' and '.join(sorted(tables))} of the sample.</p>\n"
    )
    return heading + table(("sample", "step", "records", "status", "reason"), rows, numbers=(2,))


def sample_section(sample: SampleResults) -> str:
    """Facts and pictures of the results of one sample."""
    found = [section(sample) for name, section in SECTIONS.items() if sample.paths(name)]
    facts = "".join(f"<p>{text}</p>\n" for text, _ in found if text)
    if not facts:
        return ""
    heading = f"<h2>Sample {html.escape(shown(sample.folder.absolute().name))}</h2>\n"
    pictures = "\n".join(picture for _, some in found for picture in some if picture)
    return f'{heading}{facts}<div class="pictures">\n{pictures}\n</div>'


def lengths_section(sample: SampleResults) -> ReportSection:
    """How long the records of a sample are; empty if none is ok."""
    lengths = sample.records.lengths
    if not lengths:
        return ReportSection("", [])
    least, most = min(lengths), max(lengths)
    residues = sum(length * number for length, number in lengths.items())
    records = sum(lengths.values())
    each = f"; {least:,} to {most:,} in a record" if records > 1 else ""
    facts = f"{count_text(records, 'records', 'usable')}, {count_text(residues, 'residues')}{each}."
    return ReportSection(facts, [length_histogram(lengths)])


def length_histogram(lengths: Mapping[int, int]) -> str:
    """How many records have how many residues, as SVG."""
    least, most = min(lengths), max(lengths)
    wide = most > 20 * least
    edges = np.geomspace(least, most + 1, 41) if wide else np.linspace(least, most + 1, 41)
    edges[[0, -1]] = least, most + 1  # without errors of rounding
    counts, _ = np.histogram([*lengths], edges, weights=[*lengths.values()])

    def draw(axes: Axes) -> None:
        draw_bars(axes, edges, counts)
        axes.set(xlabel="residues", ylabel="records", title="Length")
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        if wide:
            axes.set_xscale("log")
            axes.set_xticks(round_numbers(least, most), minor=False)
            axes.minorticks_off()
            axes.xaxis.set_major_formatter("{x:,.0f}")

    return svg(draw)


def scores_section(sample: SampleResults) -> ReportSection:
    """The scores of the variant table; empty if no file describes their origin."""
    if not sample.paths(SCORE_FACTS):
        return ReportSection("", [])
    counts = sample.scores or count_variants(sample.folder / SCORES, "")
    return variants_section(sample.folder / SCORE_FACTS, counts)


SECTIONS: dict[str, Callable[[SampleResults], ReportSection]] = {
    RECORDS: lengths_section,
    "embeddings.h5": lambda sample: embeddings_section(sample.paths("embeddings.h5")),
    "saturation.h5": lambda sample: saturation_section(sample.paths("saturation.h5")),
    SCORES: scores_section,
    "classes.h5": lambda sample: classes_section(sample.paths("classes.h5"), Classes),
    "residue_classes.h5": lambda sample: classes_section(
        sample.paths("residue_classes.h5"), ResidueClasses
    ),
    STRUCTURES_TABLE: lambda sample: structures_section(sample.folder / STRUCTURES_TABLE),
}
"""The sections of a sample, by the result that each is about."""
