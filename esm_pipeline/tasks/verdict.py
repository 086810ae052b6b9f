"""Count what became of every record, and fail if any failed: the last word of a workflow.

Results are written and kept whatever the verdict; it comes after all of them. Those of this run are
counted, as the settings name them; what else lies there is named.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from esm_pipeline.cli import exit_code
from esm_pipeline.errors import InputError
from esm_pipeline.files import atomic_path
from esm_pipeline.formats.fasta import shown
from esm_pipeline.formats.records import FAILED, OK, SKIPPED, Outcome, read_records, read_tasks
from esm_pipeline.formats.tables import open_table
from esm_pipeline.results import RECORDS, SCORES, not_of_this_run
from esm_pipeline.settings import Settings, load_settings

VALIDATION = "validation"
COLUMNS = ("sample", "step", "records", OK, SKIPPED, FAILED, "duplicates")
COMMONEST = 3
OTHERS = 10
"""Names of what is not of this run, at most."""

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
    add_run(parser)
    parser.add_argument(
        "--on-failure",
        choices=("error", "keep"),
        default="error",
        help="when a record failed: exit with 1, or with 0 (default: error)",
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a command that reads all results of a run."""
    parser.add_argument("--settings", required=True, help="the workflow's settings, as JSON")
    parser.add_argument(
        "--out", required=True, type=Path, help="file to write, in the folder with the results"
    )


def run(args: argparse.Namespace) -> int:
    """Write the verdict and print it to standard error; returns the exit code."""
    settings, folder = settings_of(args), args.out.parent
    tallies = count_all(settings, folder)
    failed = sum(tally.statuses[FAILED] for tally in tallies)
    text = report(tallies, others_told(settings, folder))
    with atomic_path(args.out) as path:
        path.write_text(text, encoding="utf-8")
    print(text, end="", file=sys.stderr)
    return exit_code(failed, args.on_failure)


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings of the run. Raises InputError if they are none."""
    try:
        values = json.loads(args.settings)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"--settings: not JSON ({error})") from None
    return load_settings(values, "--settings")


def count_all(settings: Settings, folder: Path) -> list[Tally]:
    """Tallies of all samples of a run, whose results lie in `folder`."""
    return [
        tally
        for sample, names in settings.results().items()
        for tally in count(folder / sample, settings.tasks, SCORES in names)
    ]


def others(settings: Settings, folder: Path) -> list[str]:
    """What lies in `folder` beside the results of a run."""
    return list(not_of_this_run(folder, settings.models(), settings.results(), settings.tasks))


def others_told(settings: Settings, folder: Path) -> str:
    """The same as a sentence; empty if there is nothing else."""
    found = list(map(shown, others(settings, folder)))
    if not found:
        return ""
    told = ", ".join(found[:OTHERS])
    more = f" and {len(found) - OTHERS:,} more" if len(found) > OTHERS else ""
    return f"also in {shown(folder.absolute().name)}/, not of this run: {told}{more}"


def count(folder: Path, tasks: Sequence[str], scored: bool) -> list[Tally]:
    """Tallies of validation and each task of a sample's records, and of its variants if `scored`.

    Raises InputError for a task without an outcome, and for records of other tasks.
    """
    path, sample = folder / RECORDS, shown(folder.name)
    if sorted(found := read_tasks(path)) != sorted(tasks):
        raise InputError(
            f"{path}: has columns of {' and '.join(found) or 'no task'}, but this run is of "
            f"{' and '.join(tasks)}; remove it and run the workflow again"
        )
    validation = Tally(sample, VALIDATION)
    tallies = {task: Tally(sample, task) for task in found}
    for record in read_records(path):
        duplicate = record.duplicate_of is not None
        validation.add(Outcome(record.status, record.reason), duplicate=duplicate)
        for task, tally in tallies.items():
            outcome = record.outcomes[task]
            if outcome.status not in (OK, SKIPPED, FAILED):
                raise InputError(
                    f"{path}: record {record.index} has {task}_status '{outcome.status}'; make "
                    "the table again with `esm-pipeline aggregate records`"
                )
            tally.add(outcome, duplicate=duplicate, new=record.status == OK)
    variants = [count_variants(folder / SCORES, sample)] if scored else []
    return [validation, *tallies.values(), *variants]


def count_variants(path: Path, sample: str) -> Tally:
    """What became of the rows of a `scores.tsv`. Raises InputError for one without an outcome."""
    tally = Tally(sample, "variants")
    for block in open_table(path).blocks(["status", "reason"]):
        for status, reason in block.cells:
            if status not in (OK, SKIPPED, FAILED):
                raise InputError(f"{path}: a row has status {status!a}; make it again with `join`")
            tally.add(Outcome(status, reason), duplicate=False)
    return tally


def report(tallies: Sequence[Tally], others: str) -> str:
    """The verdict as text: a table, the commonest reasons of each status, what else lies there.

    Its last line says how many failed in all.
    """
    lines = table([COLUMNS, *(tally.row() for tally in tallies)])
    lines += [
        f"{tally.sample}, {tally.step}: {number:,} {status}: {reason}"
        for tally in tallies
        for status, reasons in tally.reasons.items()
        for reason, number in reasons.most_common(COMMONEST)
    ]
    lines += [others] if others else []
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
