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
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from esm_pipeline.errors import InputError
from esm_pipeline.files import atomic_path, require_apart
from esm_pipeline.flags import exit_code
from esm_pipeline.formats.fasta import shown
from esm_pipeline.formats.records import FAILED, OK, SKIPPED, Outcome, read_records, read_tasks
from esm_pipeline.formats.tables.open import open_table
from esm_pipeline.locks import Outputs
from esm_pipeline.settings import Settings, load_settings
from esm_pipeline.settings.result_names import RECORDS, SCORES, not_of_this_run

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


class Found(NamedTuple):
    """What a command tells of: tallies, names of the results in each sample's folder, the rest."""

    tallies: list[Tally]
    samples: Mapping[Path, Collection[str]]
    others: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `verdict`."""
    parser.add_argument(
        "records",
        nargs="*",
        type=Path,
        metavar="SAMPLE/records.tsv",
        help="tables of records to count, in place of --settings",
    )
    add_run(parser)
    parser.add_argument(
        "--on-failure",
        choices=("error", "keep"),
        default="error",
        help="when a record failed: exit with 1, or with 0 (default: error)",
    )


def outputs(args: argparse.Namespace) -> Outputs:
    """What `verdict` writes."""
    return Outputs([args.out])


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a command that reads all results of a run."""
    parser.add_argument(
        "--settings",
        help="those of a workflow, as JSON: its results are read, in the folder of OUT",
    )
    parser.add_argument("--out", required=True, type=Path, help="file to write")


def run(args: argparse.Namespace) -> int:
    """Write the verdict and print it to standard error; returns the exit code."""
    require_apart([args.out], args.records)
    found = find(args, args.records)
    failed = sum(tally.statuses[FAILED] for tally in found.tallies)
    text = report(found.tallies, found.others)
    with atomic_path(args.out) as path:
        path.write_text(text, encoding="utf-8")
    print(text, end="", file=sys.stderr)
    return exit_code(failed, args.on_failure)


def find(args: argparse.Namespace, tables: Sequence[Path]) -> Found:
    """The results of the run with these `--settings`, or all that lie beside `tables` of records.

    Raises InputError for settings that are none, and for tables that are not of the run.
    """
    if bool(tables) == (args.settings is not None):
        raise InputError("give the samples, or the --settings of a run, and not both")
    if tables:
        beside = {
            table.parent: [path.name for path in table.parent.iterdir()]
            for table in tables
            if table.exists()
        }
        tallies = [count(table, SCORES in beside.get(table.parent, [])) for table in tables]
        return Found(list(chain.from_iterable(tallies)), beside, "")
    settings, folder = settings_of(args), args.out.parent
    results = settings.results()
    tallies = [
        count(folder / sample / RECORDS, SCORES in names, settings.tasks)
        for sample, names in results.items()
    ]
    samples = {folder / sample: names for sample, names in results.items()}
    return Found(list(chain.from_iterable(tallies)), samples, others_told(settings, folder))


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings of the run. Raises InputError if they are none."""
    try:
        values = json.loads(args.settings or "null")
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"--settings: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise InputError("--settings: no settings; give those of a workflow, as JSON")
    return load_settings(values, "--settings")


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


def count(path: Path, scored: bool, tasks: Sequence[str] | None = None) -> list[Tally]:
    """Tallies of validation and of each task of one `records.tsv`.

    And of the table of scores beside it, if the records were `scored`. The sample is named after
    the folder. Raises InputError for a task without an outcome, or other tasks than `tasks`.
    """
    sample, found = shown(path.absolute().parent.name), read_tasks(path)
    if tasks is not None and sorted(found) != sorted(tasks):
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
    variants = scored and "score" in found
    scores = [count_variants(path.with_name(SCORES), sample)] if variants else []
    return [validation, *tallies.values(), *scores]


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
