"""What was measured, as rows of one table: ratios of medians and the share of the floor.

    python -m tests.benchmarks.table results.json [--short | --plain]

Prints Markdown: the whole table, or residues/s alone, as in the README.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FORMAT = "esm-pipeline/benchmarks"
COLUMNS = ("", "median", "spread", "residues/s", "ratio", "compared with", "of floor", "max-abs")
LEFT = ("", "compared with")
DASH = "–"
LOGITS = "logits, ESM-2 "
"""How the names of cases of logits begin; the size is next."""


@dataclass
class Row:
    """One way of one case: a value for each round, seconds or bytes; less is better."""

    way: str
    values: list[float] = field(default_factory=list)
    rivals: list[str] = field(default_factory=list)
    """Other ways of this case that it is compared with, in addition to the base of the case."""
    operations: float | None = None
    """That the result costs; `rate`: how many this machine's products of matrices do a second."""
    rate: float | None = None
    max_abs: float | None = None
    problem: str | None = None
    """Why there are no values."""

    @property
    def median(self) -> float:
        """Of the rounds."""
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """From the lowest to the highest round, as a share of the median."""
        return (max(self.values) - min(self.values)) / self.median

    @property
    def floor_share(self) -> float | None:
        """The seconds that the products alone would take, as a share of the median."""
        if self.operations is None or self.rate is None or not self.values:
            return None
        return self.operations / self.rate / self.median


@dataclass
class Case:
    """The same work, done in several ways."""

    name: str
    base: str
    rows: list[Row]
    unit: str = "s"
    residues: int | None = None
    note: str = ""

    def row(self, way: str) -> Row | None:
        """That of a way, if it has values."""
        return next((one for one in self.rows if one.way == way and one.values), None)

    @property
    def size(self) -> str | None:
        """Of ESM-2, if it is a case of logits."""
        known = self.name.startswith(LOGITS)
        return self.name.removeprefix(LOGITS).partition(",")[0] if known else None

    def ratio(self, row: Row, other: str) -> float | None:
        """How many times less than the `other` way `row` takes."""
        base = self.row(other)
        return base.median / row.median if base and row.values else None


@dataclass
class Results:
    """All that was measured in one run on one machine."""

    machine: dict[str, Any]
    threads: int
    cases: list[Case]
    curves: list[dict[str, Any]] = field(default_factory=list)
    """Cost against length: way, residues of each sequence, seconds for each residue by round."""

    def write(self, path: Path) -> None:
        """As JSON, medians, spreads and ratios worked out."""
        told = asdict(self) | {"format": FORMAT}
        for case, shown in zip(self.cases, told["cases"], strict=True):
            for row, own in zip(case.rows, shown["rows"], strict=True):
                own |= worked_out(case, row)
        path.write_text(json.dumps(told, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Results:
        """From what `write` wrote."""
        told = json.loads(path.read_text())
        if told.pop("format", None) != FORMAT:
            raise SystemExit(f"{path}: not a file of results; `make bench` writes one")
        for case in told["cases"]:
            case["rows"] = [Row(**only(Row, row)) for row in case["rows"]]
        told["cases"] = [Case(**case) for case in told["cases"]]
        return cls(**told)


def only(kind: type, told: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the keys that are fields."""
    return {name: told[name] for name in kind.__dataclass_fields__ if name in told}


def worked_out(case: Case, row: Row) -> dict[str, Any]:
    """What follows from a row's values."""
    if not row.values:
        return {}
    ratios = {other: case.ratio(row, other) for other in [case.base, *row.rivals]}
    return {
        "median": row.median,
        "spread": row.spread,
        "floor_share": row.floor_share,
        "ratios": {other: ratio for other, ratio in ratios.items() if ratio is not None},
    }


def three_digits(value: float) -> str:
    """At least as many; never as a power of ten."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def cells(case: Case, row: Row) -> Iterable[list[str]]:
    """The cells of a row: a line for its case's base, and one more for each rival."""
    if not row.values:
        yield [row.way, DASH, "", "", "", row.problem or "not measured", "", ""]
        return
    speed = f"{case.residues / row.median:,.0f}" if case.residues else ""
    share = "" if row.floor_share is None else f"{row.floor_share:.0%}"
    apart = "" if row.max_abs is None else f"{row.max_abs:.0e}"
    median = f"{three_digits(row.median)} {case.unit}"
    others = [case.base, *(other for other in row.rivals if case.row(other))]
    told = [(f"{case.ratio(row, other) or 1:.2f} ×", other) for other in others if case.row(other)]
    told = [("1", "")] if row.way == case.base else told or [("", "")]
    spread = f"{row.spread:.0%}" if len(row.values) > 1 else ""
    yield [row.way, median, spread, speed, *told[0], share, apart]
    for ratio, other in told[1:]:
        yield ["", "", "", "", ratio, other, "", ""]


def plain(results: Results) -> str:
    """The table for a terminal."""
    blocks = [[one for row in case.rows for one in cells(case, row)] for case in results.cases]
    rows = [list(COLUMNS), *(row for block in blocks for row in block)]
    widths = [
        max(len(row[i]) for row in rows if i == 0 or row[1] != DASH) for i in range(len(COLUMNS))
    ]

    def line(row: list[str]) -> str:
        if row[1] == DASH:
            return f"{row[0].ljust(widths[0])}  {DASH}  {row[5]}"
        shown = [
            cell.ljust(width) if name in LEFT else cell.rjust(width)
            for name, cell, width in zip(COLUMNS, row, widths, strict=True)
        ]
        return "  ".join(shown).rstrip()

    lines = [machine_line(results), "", line(list(COLUMNS))]
    for case, block in zip(results.cases, blocks, strict=True):
        lines += ["", case.name, *map(line, block)]
        lines += [f"({case.note})"] if case.note else []
    return "\n".join(lines)


def markdown(results: Results) -> str:
    """The table for the README; notes below it."""
    kinds = ("---" if name in LEFT else "---:" for name in COLUMNS)
    lines = [f"| {' | '.join(COLUMNS)} |", f"| {' | '.join(kinds)} |"]
    notes = []
    for case in results.cases:
        mark = f" [{len(notes) + 1}]" if case.note else ""
        notes += [f"[{len(notes) + 1}] {case.note}"] if case.note else []
        lines.append(f"| **{case.name}**{mark} |{' |' * (len(COLUMNS) - 1)}")
        lines += [f"| {' | '.join(one)} |" for row in case.rows for one in cells(case, row)]
    return "\n".join([machine_line(results), "", *lines, *(f"\n{note}" for note in notes)])


def short(results: Results) -> str:
    """Residues/s of logits by way and size of ESM-2, and how many times the base's."""
    found: dict[str, dict[str, str]] = {}
    for case in results.cases:
        size = case.size
        if size is None or not case.residues:
            continue
        for row in case.rows:
            if row.values:
                speed, ratio = case.residues / row.median, case.ratio(row, case.base) or 1
                found.setdefault(row.way, {})[size] = f"{speed:,.0f} ({ratio:.1f} ×)"
    sizes = list(dict.fromkeys(size for row in found.values() for size in row))
    lines = [f"| residues/s | {' | '.join(sizes)} |", f"| --- |{' ---: |' * len(sizes)}"]
    for way, row in found.items():
        lines.append(f"| {way} | {' | '.join(row.get(size, '') for size in sizes)} |")
    return "\n".join([*lines, "", machine_line(results)])


def machine_line(results: Results) -> str:
    """What it ran on, in a sentence."""
    told = results.machine
    sets = ", ".join(told["instruction sets"]) or "unknown instruction sets"
    versions = ", ".join(f"{name} {one}" for name, one in told["versions"].items())
    capped = "".join(f"; {name}={value}" for name, value in told["capped by"].items())
    kind = f" ({told['kind']})" if told["kind"] else ""
    return (
        f"{told['processor']}{kind}, {told['cores']} cores, {told['memory']} GB, {sets}{capped}; "
        f"{results.threads} thread{'s' * (results.threads > 1)}; {versions}. Ratios compare "
        "medians; the spread is from the lowest to the highest round."
    )


def main() -> None:
    """Print a file of results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--plain", action="store_true", help="for a terminal")
    form.add_argument("--short", action="store_true", help="residues/s alone")
    args = parser.parse_args()
    results = Results.read(args.results)
    print((plain if args.plain else short if args.short else markdown)(results))


if __name__ == "__main__":
    main()
