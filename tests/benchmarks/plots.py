"""Pictures of the results: cost against length, and against the size of the model.

    python -m tests.benchmarks.plots results.json FOLDER [--format svg]

Writes `cost_length` and `cost_size`. A line goes through the medians, a band from the fastest to
the slowest round.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from tests.benchmarks.models import SIZES
from tests.benchmarks.table import Results

COLORS = {"transformers": "#777777", "OpenVINO": "#d98e04", "esm.cpp": "#3a923a", "ours": "#1f5fbf"}
DASHES = {"float32": "-", "bfloat16": "--", "int8": ":"}
MARKS = {"float32": "o", "bfloat16": "s", "int8": "^"}
PARAMETERS = {"8M": 7.8e6, "35M": 33.5e6, "150M": 148e6, "650M": 651e6}
MICRO = 1e6
SMALL = ", small, "
Points = list[tuple[float, Sequence[float]]]
"""x, and values of each round."""


def by_size(results: Results) -> dict[str, Points]:
    """Way → seconds for each residue against parameters, of the cases of logits.

    Of peers that were measured in small batches too, those: they are faster.
    """
    found: dict[str, Points] = {}
    for case in results.cases:
        if case.size is None or not case.residues:
            continue
        for row in case.rows:
            if row.values and not case.row(SMALL.join(row.way.rsplit(" ", 1))):
                cost = [one / case.residues for one in row.values]
                way = row.way.replace(SMALL, " ")
                found.setdefault(way, []).append((PARAMETERS[case.size], cost))
    return {way: sorted(points) for way, points in found.items()}


def by_length(results: Results) -> dict[str, Points]:
    """Way → seconds for each residue against residues of a sequence."""
    return {one["way"]: [(x, values) for x, values in one["points"]] for one in results.curves}


def draw(axes: Axes, curves: dict[str, Points]) -> None:
    """All ways, each with its name at its end or, where ends meet, in a legend."""
    for way, points in curves.items():
        who, dtype = way.rsplit(" ", 1)
        x = [one for one, _ in points]
        cost = [[MICRO * value for value in values] for _, values in points]
        style = {"color": COLORS[who], "linestyle": DASHES[dtype], "marker": MARKS[dtype]}
        axes.plot(x, [median(one) for one in cost], label=way, markersize=4, **style)
        axes.fill_between(x, [*map(min, cost)], [*map(max, cost)], color=COLORS[who], alpha=0.15)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("microseconds a residue")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    axes.spines[["top", "right"]].set_visible(False)


def picture(curves: dict[str, Points], label: str, ticks: dict[float, str], title: str) -> Figure:
    """A figure of some curves."""
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.subplots()
    draw(axes, curves)
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: ticks.get(value, "")))
    axes.set_xlabel(label)
    axes.set_title(title, fontsize=10, loc="left")
    return figure


def figures(results: Results) -> dict[str, Figure]:
    """Name → picture, of what there is."""
    plural = "s" * (results.threads > 1)
    processor = f"{results.machine['processor']}, {results.threads} thread{plural}"
    found = {}
    if lengths := by_length(results):
        ticks = {x: f"{x:g}" for points in lengths.values() for x, _ in points}
        title = f"Logits of ESM-2 {results.curves[0]['size']}; {processor}"
        found["cost_length"] = picture(lengths, "residues of each sequence", ticks, title)
    sizes = by_size(results)
    if any(len(points) > 1 for points in sizes.values()):
        named = {PARAMETERS[size]: size for size in SIZES}
        there = {x for points in sizes.values() for x, _ in points}
        ticks = {x: name for x, name in named.items() if x in there}
        title = f"Logits of proteins of natural lengths; {processor}"
        found["cost_size"] = picture(sizes, "parameters of ESM-2", ticks, title)
    return found


def main() -> None:
    """Draw a file of results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--format", choices=("svg", "png"), default="png")
    args = parser.parse_args()
    mpl.rcParams["svg.hashsalt"] = "esm_pipeline"
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures(Results.read(args.results)).items():
        path = args.folder / f"{name}.{args.format}"
        figure.savefig(path, dpi=150, metadata={"Date": None} if args.format == "svg" else None)
        print(path)


if __name__ == "__main__":
    main()
