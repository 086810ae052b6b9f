"""Count what became of every record, and fail if any failed: the last word of a workflow.

Results are written and kept whatever the verdict; it comes after all of them.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from esm_pipeline.cli import exit_code
from esm_pipeline.errors import InputError
from esm_pipeline.files import atomic_path, require_apart
from esm_pipeline.formats.fasta import shown
from esm_pipeline.formats.records import FAILED, OK, SKIPPED, Outcome, read_records, read_tasks
from esm_pipeline.formats.tables import open_table
from esm_pipeline.locks import Outputs

VALIDATION = "validation"
SCORES = "scores.tsv"
COLUMNS = ("sample", "step", "records", OK, SKIPPED, FAILED, "duplicates")
COMMONEST = 3
NUMBER = re.compile(r"(?<!')\d+")
"""A number in a reason; not a digit between quotes, which stood in a sequence."""


@dataclass
class Tally:
    """What one step, validation or a task, made of a sample's records."""

    sample: str
    step: str
    statuses: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, Counter[str]] = field(
        default_factory=lambda: {FAILED: Counter(), SKIPPED: Counter()}
    )
    duplicates: int = 0

    def add(self, outcome: Outcome, *, duplicate: bool, new: bool = True) -> None:
        """Count a record. Its reason counts if it is `new`, not that of an earlier step.

        Reasons that differ in numbers alone are one.
        """
        self.statuses[outcome.status] += 1
        self.duplicates += duplicate
        if new and outcome.status in self.reasons:
            self.reasons[outcome.status][NUMBER.sub("#", outcome.reason)] += 1

    def row(self) -> list[str]:
        """The cells of `COLUMNS`."""
        counts = (self.statuses.total(), *(self.statuses[name] for name in (OK, SKIPPED, FAILED)))
        return [self.sample, self.step, *(f"{count:,}" for count in (*counts, self.duplicates))]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `verdict`."""
    parser.add_argument("records", nargs="+", type=Path, metavar="SAMPLE/records.tsv")
    parser.add_argument("--out", required=True, type=Path, help="text file to write")
    parser.add_argument(
        "--on-failure",
        choices=("error", "keep"),
        default="error",
        help="when a record failed: exit with 1, or with 0 (default: error)",
    )


def outputs(args: argparse.Namespace) -> Outputs:
    """What `verdict` writes."""
    return Outputs([args.out])


def run(args: argparse.Namespace) -> int:
    """Write the verdict and print it to standard error; returns the exit code."""
    require_apart([args.out], args.records)
    tallies = [tally for path in args.records for tally in count(path)]
    failed = sum(tally.statuses[FAILED] for tally in tallies)
    text = report(tallies)
    with atomic_path(args.out) as path:
        path.write_text(text, encoding="utf-8")
    print(text, end="", file=sys.stderr)
    return exit_code(failed, args.on_failure)


def count(path: Path) -> list[Tally]:
    """Tallies of validation and of each task of one `records.tsv`, and of the variants beside it.

    The sample is named after the folder. Raises InputError for a task without an outcome.
    """
    sample = shown(path.absolute().parent.name)
    validation = Tally(sample, VALIDATION)
    tasks = {task: Tally(sample, task) for task in read_tasks(path)}
    for record in read_records(path):
        duplicate = record.duplicate_of is not None
        validation.add(Outcome(record.status, record.reason), duplicate=duplicate)
        for task, tally in tasks.items():
            outcome = record.outcomes[task]
            if outcome.status not in (OK, SKIPPED, FAILED):
                raise InputError(
                    f"{path}: record {record.index} has {task}_status '{outcome.status}'; make "
                    "the table again with `esm-pipeline aggregate records`"
                )
            tally.add(outcome, duplicate=duplicate, new=record.status == OK)
    scores = path.with_name(SCORES)
    scored = [count_variants(scores, sample)] if "score" in tasks and scores.exists() else []
    return [validation, *tasks.values(), *scored]


def count_variants(path: Path, sample: str) -> Tally:
    """What became of the rows of a `scores.tsv`. Raises InputError for one without an outcome."""
    tally = Tally(sample, "variants")
    for block in open_table(path).blocks(["status", "reason"]):
        for status, reason in block.cells:
            if status not in (OK, SKIPPED, FAILED):
                raise InputError(f"{path}: a row has status {status!a}; make it again with `join`")
            tally.add(Outcome(status, reason), duplicate=False)
    return tally


def report(tallies: Sequence[Tally]) -> str:
    """The verdict as text: a table, the commonest reasons of each status, what failed in all."""
    lines = table([COLUMNS, *(tally.row() for tally in tallies)])
    lines += [
        f"{tally.sample}, {tally.step}: {number:,} {status}: {reason}"
        for tally in tallies
        for status, reasons in tally.reasons.items()
        for reason, number in reasons.most_common(COMMONEST)
    ]
    failed = sum(tally.statuses[FAILED] for tally in tallies)
    lines.append(f"{failed:,} failed" if failed else "nothing failed")
    return "\n".join(lines) + "\n"


def table(rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines with the columns aligned: two of names to the left, numbers to the right."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
