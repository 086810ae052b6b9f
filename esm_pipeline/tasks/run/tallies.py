"""Counts of the outcomes of records, for the commands that look at all results of a run.

The settings name the results of a run; what else is in the folder is listed.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from esm_pipeline.errors import InputError
from esm_pipeline.formats.fasta import shown
from esm_pipeline.formats.records import FAILED, OK, SKIPPED, Outcome, read_records, read_tasks
from esm_pipeline.formats.tables.open import open_table
from esm_pipeline.settings import Settings, load_settings
from esm_pipeline.settings.result_names import RECORDS, SCORES, not_of_this_run

VALIDATION = "validation"
TALLY_COLUMNS = ("sample", "step", "records", OK, SKIPPED, FAILED, "duplicates")
MOST_REASONS = 3
"""Reasons that are shown for each status of a step."""

MOST_OTHERS = 10
"""Most names of files of other runs in a message."""

NUMBER = re.compile(r"(?<!')\d+")
"""A number in a reason, but not a digit in quotes, which is part of a sequence."""


@dataclass
class Tally:
    """The outcomes of a sample's records in one step: validation or a task."""

    sample: str
    step: str
    statuses: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, Counter[str]] = field(
        default_factory=lambda: {FAILED: Counter(), SKIPPED: Counter()}
    )
    duplicates: int = 0

    def add(self, outcome: Outcome, *, duplicate: bool, new: bool = True) -> None:
        """Count a record. Its reason counts if it is `new`, not the one of an earlier step.

        Reasons that differ only in numbers count as one.
        """
        self.statuses[outcome.status] += 1
        self.duplicates += duplicate
        if new and outcome.status in self.reasons:
            self.reasons[outcome.status][NUMBER.sub("#", outcome.reason)] += 1

    def common_reasons(self) -> Iterator[tuple[str, str, int]]:
        """The most common reasons of each status: status, reason, number of records."""
        for status, reasons in self.reasons.items():
            for reason, number in reasons.most_common(MOST_REASONS):
                yield status, reason, number

    def row(self) -> list[str]:
        """The cells of `TALLY_COLUMNS`."""
        counts = (self.statuses.total(), *(self.statuses[name] for name in (OK, SKIPPED, FAILED)))
        return [self.sample, self.step, *(f"{count:,}" for count in (*counts, self.duplicates))]


class RunResults(NamedTuple):
    """The results of a run: tallies, names of files in each sample's folder, a note on others."""

    tallies: list[Tally]
    samples: Mapping[Path, Collection[str]]
    others: str


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a command that reads all results of a run."""
    parser.add_argument(
        "--settings",
        help="settings of a workflow, as JSON: its results, in the folder of OUT, are read",
    )
    parser.add_argument("--out", required=True, type=Path, help="file to write")


def find_results(args: argparse.Namespace, tables: Sequence[Path]) -> RunResults:
    """The results of the run with these `--settings`, or all that are next to the `tables`.

    `tables` are those of records. Raises InputError for unusable settings, and for tables of
    another run.
    """
    if bool(tables) == (args.settings is not None):
        raise InputError("give the samples, or the --settings of a run, and not both")
    if tables:
        names = {
            table.parent: [path.name for path in table.parent.iterdir()]
            for table in tables
            if table.exists()
        }
        tallies = [count_records(table, SCORES in names.get(table.parent, [])) for table in tables]
        return RunResults(list(chain.from_iterable(tallies)), names, "")
    settings, folder = settings_of(args), args.out.parent
    results = settings.results()
    tallies = [
        count_records(folder / sample / RECORDS, SCORES in names, settings.tasks)
        for sample, names in results.items()
    ]
    samples = {folder / sample: names for sample, names in results.items()}
    return RunResults(list(chain.from_iterable(tallies)), samples, note_on_others(settings, folder))


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings of the run. Raises InputError if they cannot be used."""
    try:
        values = json.loads(args.settings or "null")
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"--settings: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise InputError("--settings: not an object; give the settings of a workflow, as JSON")
    return load_settings(values, "--settings")


def files_of_other_runs(settings: Settings, folder: Path) -> list[str]:
    """What is in `folder` and not among the results of the run."""
    return list(not_of_this_run(folder, settings.models(), settings.results(), settings.tasks))


def note_on_others(settings: Settings, folder: Path) -> str:
    """A sentence that names other files in `folder`; empty if there are none."""
    found = list(map(shown, files_of_other_runs(settings, folder)))
    if not found:
        return ""
    names = ", ".join(found[:MOST_OTHERS])
    more = f" and {len(found) - MOST_OTHERS:,} more" if len(found) > MOST_OTHERS else ""
    return f"also in {shown(folder.absolute().name)}/, not of this run: {names}{more}"


def count_records(path: Path, scored: bool, tasks: Sequence[str] | None = None) -> list[Tally]:
    """Tallies of validation and of each task in one `records.tsv`, named after its folder.

    Also of the table of scores next to it, if the records were `scored`. Raises InputError for a
    task without an outcome, or tasks other than `tasks`.
    """
    sample, found = shown(path.absolute().parent.name), read_tasks(path)
    if tasks is not None and sorted(found) != sorted(tasks):
        raise InputError(
            f"{path}: has columns of {' and '.join(found) or 'no task'}, but this run has "
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
    """The tally of the rows of a `scores.tsv`. Raises InputError for a row without an outcome."""
    tally = Tally(sample, "variants")
    for block in open_table(path).blocks(["status", "reason"]):
        for status, reason in block.cells:
            if status not in (OK, SKIPPED, FAILED):
                raise InputError(f"{path}: a row has status {status!a}; make it again with `join`")
            tally.add(Outcome(status, reason), duplicate=False)
    return tally
