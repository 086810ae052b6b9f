"""Draw the substitutions in a saturation.h5 as heatmaps, one for each record.

Residues run from left to right, wrapped into panels with a row for each amino acid, similar ones
next to each other. Red is harmful, blue is not; a dot marks the wild type; residues other than the
20 amino acids are grey.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from esm_pipeline.arrays import Float32
from esm_pipeline.errors import InputError
from esm_pipeline.files import atomic_path, remove_leftovers
from esm_pipeline.formats.checksums import check_listed
from esm_pipeline.formats.results.saturation import SaturatedProtein, Saturations
from esm_pipeline.locks import Outputs
from esm_pipeline.tasks.common.outputs import require_folder_name, write_checksums
from esm_pipeline.tasks.common.progress import Amounts, progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

ORDER = "GAVLIMPFWYCSTNQHKRDE"
"""Amino acids from top to bottom: small and hydrophobic, with rings, polar, charged."""

WIDE, NARROW = 100, 30  # residues in a row; least residues that a row has room for
ROWS_PER_PICTURE = 10  # a longer protein has several pictures
CELL = 0.115  # inches, like the lengths below
LEFT, RIGHT, PANEL_TOP, PANEL_GAP, BAR = 0.25, 0.95, 0.5, 0.45, 0.12
DPI = 120
LEAST = 1e-6  # log-odds at the ends of the scale
NOT_IN_NAME = re.compile(r"[^A-Za-z0-9._-]+")
ID_LENGTH = 60
LIGHT_GREY, UNKNOWN_COLOUR = "#555555", "#cccccc"
FONT_STYLE = {"font.size": 8, "axes.linewidth": 0.5, "font.family": "DejaVu Sans"}


EXAMPLES = (
    (
        "esm-pipeline heatmaps saturation.h5 heatmaps",
        "a picture of each protein, into the folder heatmaps",
    ),
    ("esm-pipeline heatmaps --id BRCA1 saturation.h5 heatmaps", "only that of the protein BRCA1"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `heatmaps`."""
    parser.add_argument("saturation", metavar="SATURATION.h5", type=Path, help="file to draw")
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder for the pictures, PNG")
    parser.add_argument(
        "--id", action="append", default=[], help="draw only the records of this id; repeatable"
    )
    parser.add_argument(
        "--listed", type=Path, metavar="FILE", help="list with the digest of SATURATION.h5"
    )
    parser.add_argument("--sha256", type=Path, metavar="FILE", help="write digests of the pictures")
    parser.add_argument("--quiet", action="store_true", help="no progress, no summary")


def outputs(args: argparse.Namespace) -> Outputs:
    """What `heatmaps` writes: pictures in a folder, and their digests."""
    require_folder_name(args.folder, "pictures")
    return Outputs([args.sha256], added_to=[args.folder])


def run(args: argparse.Namespace) -> int:
    """Draw; returns 0."""
    if args.listed:
        check_listed(args.saturation, args.listed)
    with Saturations.open(args.saturation) as results:
        for name in args.id:
            if name not in results:
                raise InputError(f"{args.saturation}: no record with id {name!a}; check the id")
        wanted = [item for item in results if not args.id or item.id in args.id]
        drawn = draw_all(results, wanted, args.folder, quiet=args.quiet)
    if args.sha256:
        with atomic_path(args.sha256) as path:
            write_checksums(path, args.sha256, {picture: picture for picture in drawn})
    if not args.quiet:
        count = "1 picture" if len(drawn) == 1 else f"{len(drawn):,} pictures"
        print(f"heatmaps: {count} in {args.folder}", file=sys.stderr)
    return 0


def draw_all(
    results: Saturations, wanted: Iterable[SaturatedProtein], folder: Path, *, quiet: bool = False
) -> list[Path]:
    """Draw the records `wanted`; returns the pictures, which are named by index and id."""
    wanted = list(wanted)
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    drawn, amounts = [], Amounts(len(wanted), "proteins", work=sum(item.length for item in wanted))
    with progress("heatmaps", amounts, quiet=quiet, short=True) as advance:
        for item in wanted:
            for page, figure in enumerate(figures(item, results.alphabet, results.strategy), 1):
                drawn.append(folder / file_name(item, page))
                with atomic_path(drawn[-1], sweep=False) as path:
                    figure.canvas.print_png(path, metadata={"Software": None})
            advance(1, work=item.length)
    return drawn


def file_name(item: SaturatedProtein, page: int) -> str:
    """The name of a picture: the index, the id without special characters, and the page."""
    name = NOT_IN_NAME.sub("_", item.id).strip("._")[:ID_LENGTH] or "protein"
    return f"{item.index:06d}_{name}{f'.{page}' if page > 1 else ''}.png"


def figures(item: SaturatedProtein, alphabet: str, strategy: str) -> Iterator[Figure]:
    """The pictures of a record, 1,000 residues each, all with the same scale of colours."""
    values = item.log_odds[:, [alphabet.index(letter) for letter in ORDER]].T  # (20, R)
    values[:, [letter not in ORDER for letter in item.sequence]] = np.nan
    known = np.abs(values[np.isfinite(values)])
    limit = max(float(np.percentile(known, 99)), LEAST) if len(known) else LEAST
    starts = [*range(0, item.length, WIDE), item.length]
    rows = list(pairwise(starts))
    with matplotlib.rc_context(FONT_STYLE):
        for first in range(0, len(rows), ROWS_PER_PICTURE):
            page = rows[first : first + ROWS_PER_PICTURE]
            last = page[-1][1]
            title = f"{item.id[:ID_LENGTH]}   residues {page[0][0] + 1:,} to {last:,}"
            title += f" of {item.length:,}"
            yield picture(item, values, page, limit, title, strategy)


def picture(
    item: SaturatedProtein,
    values: Float32,
    rows: list[tuple[int, int]],
    limit: float,
    title: str,
    strategy: str,
) -> Figure:
    """One picture: a panel for each row of residues, and the scale of the colours."""
    widest = max(NARROW, *(stop - start for start, stop in rows))
    wide, high = widest * CELL, len(ORDER) * CELL
    width, height = LEFT + wide + RIGHT, len(rows) * (high + PANEL_GAP) + PANEL_TOP
    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)

    def box(left: float, top: float, across: float, down: float) -> tuple[float, ...]:
        return left / width, 1 - (top + down) / height, across / width, down / height

    for number, (start, stop) in enumerate(rows):
        panel = figure.add_axes(box(LEFT, PANEL_TOP + number * (high + PANEL_GAP), wide, high))
        image = draw_row(panel, values[:, start:stop], item.sequence[start:stop], start, limit)
        panel.set_xlim(-0.5, widest - 0.5)
    figure.text(LEFT / width, 1 - 0.15 / height, title, fontsize=9, va="center", parse_math=False)
    below_top = height - PANEL_TOP - PANEL_GAP
    scale = figure.add_axes(box(LEFT + wide + PANEL_GAP / 2, PANEL_TOP, BAR, below_top))
    bar = figure.colorbar(image, cax=scale)
    bar.set_label(f"{strategy}, log-odds", color=LIGHT_GREY)
    bar.outline.set_visible(False)
    return figure


def draw_row(axes: Axes, values: Float32, sequence: str, start: int, limit: float) -> AxesImage:
    """Draw a row: `values` (20, R) from residue `start` on, the wild type above and dotted."""
    colours = matplotlib.colormaps["RdBu"].with_extremes(bad=UNKNOWN_COLOUR)
    image = axes.imshow(
        values, cmap=colours, vmin=-limit, vmax=limit, interpolation="nearest", aspect="auto"
    )
    known = [place for place, letter in enumerate(sequence) if letter in ORDER]
    axes.plot(known, [ORDER.index(sequence[place]) for place in known], "k.", markersize=2.5)
    axes.set_yticks(range(len(ORDER)), list(ORDER), fontsize=6)
    count = len(sequence)
    numbers = [place for place in range(count) if (start + place + 1) % 10 == 0 or place == 0]
    axes.set_xticks(numbers, [f"{start + place + 1}" for place in numbers], fontsize=6)
    axes.tick_params(length=1.5, width=0.5, pad=1, colors=LIGHT_GREY)
    for place, letter in enumerate(sequence):
        axes.text(place, -1.1, letter, ha="center", va="center", fontsize=5.5)
    for side in axes.spines.values():
        side.set_visible(False)
    return image
