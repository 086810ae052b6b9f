"""What the commands that look at a whole run know of it: counts, names of results, digests.

The settings name the results of a run; what else is in the folder is listed. With settings, counts
are those that were written with the tables; without, the tables are read.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from esm_pipeline.errors import InputError
from esm_pipeline.formats.checksums import read_list, sha256, wrong_digest
from esm_pipeline.formats.fasta import shown
from esm_pipeline.formats.records import FAILED, OK, SKIPPED, Outcome, read_records, read_tasks
from esm_pipeline.formats.tables.open import open_table
from esm_pipeline.settings import Settings, load_settings
from esm_pipeline.settings.result_names import (
    BY_BUNDLE,
    RECORD_COUNTS,
    SCORE_COUNTS,
    SCORE_FACTS,
    SCORES,
    WORK,
    found_as,
    not_of_this_run,
)
from esm_pipeline.tasks.common.tallies import (
    VALIDATION,
    VARIANTS_STEP,
    Counts,
    Histogram,
    Tally,
    read_counts,
)

MOST_OTHERS = 10
"""Most names of files of other runs in a message."""


class SampleResults(NamedTuple):
    """The results of a sample: its folder, their names in it, and what is counted of them."""

    folder: Path
    names: Collection[str]
    records: Counts
    scores: Counts | None = None
    """Of the variant table, if `score` is one of its tasks."""

    def paths(self, name: str) -> list[Path]:
        """The files of the result `name`: one, or one of each bundle; none if it is not there."""
        return [self.folder / one for one in found_as(name, self.names)]

    def tallies(self) -> list[Tally]:
        """Those of validation, each task and the variants."""
        return [*self.records.tallies, *(self.scores.tallies if self.scores else [])]


class RunResults(NamedTuple):
    """The results of a run: those of each sample, and a note on others."""

    samples: list[SampleResults]
    others: str

    def tallies(self) -> list[Tally]:
        """Those of all samples."""
        return list(chain.from_iterable(sample.tallies() for sample in self.samples))


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
        return RunResults([read_sample(table) for table in tables], "")
    settings, folder = settings_of(args), args.out.parent
    samples = [
        counted_sample(folder / sample, names, settings.tasks)
        for sample, names in settings.results().items()
    ]
    return RunResults(samples, note_on_others(settings, folder))


def counted_sample(folder: Path, names: Collection[str], tasks: Sequence[str]) -> SampleResults:
    """The results `names` in a sample's folder, as they were counted.

    Raises InputError for counts that are damaged, or of other tasks.
    """
    listed, sample = listed_digests(folder), shown(folder.absolute().name)
    for path in (folder / RECORD_COUNTS, folder / SCORE_COUNTS):
        digest, listing = listed.get(os.path.normpath(path), ("", path))
        if digest and path.exists() and sha256(path) != digest:
            raise wrong_digest(path, listing.name)
    records = read_counts(folder / RECORD_COUNTS, sample)
    require_tasks(folder / RECORD_COUNTS, [tally.step for tally in records.tallies[1:]], tasks)
    scores = read_counts(folder / SCORE_COUNTS, sample) if SCORES in names else None
    return SampleResults(folder, names, records, scores)


def require_tasks(path: Path, found: Sequence[str], tasks: Sequence[str]) -> None:
    """Raise InputError for counts of other tasks than those of the run."""
    if sorted(found) != sorted(tasks):
        raise InputError(
            f"{path}: has {' and '.join(found) or 'no task'}, but this run has "
            f"{' and '.join(tasks)}; remove it and run the workflow again"
        )


def read_sample(table: Path) -> SampleResults:
    """The results in the folder of a table of records, which is counted by reading it."""
    records, folder = count_records(table), table.parent
    names = [path.name for path in folder.iterdir()]
    for pattern in BY_BUNDLE.values():
        names += [path.relative_to(folder).as_posix() for path in folder.glob(pattern.format("*"))]
    scored = SCORES in names and "score" in [tally.step for tally in records.tallies]
    scores = count_variants(folder / SCORES, records.tallies[0].sample) if scored else None
    return SampleResults(folder, names, records, scores)


def listed_digests(folder: Path) -> dict[str, tuple[str, Path]]:
    """The digest of each file of a sample that was listed when it was written, and that list.

    Later lists take precedence: an earlier run may have left one.
    """
    lists = (path for work in WORK for path in (folder / work).glob("*.sha256"))
    there = sorted(lists, key=lambda path: (path.stat().st_ctime_ns, path))
    return {
        os.path.normpath(listing.parent / name): (digest, listing)
        for listing in there
        for digest, name in read_list(listing)
    }


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


def count_records(path: Path) -> Counts:
    """What is counted of one `records.tsv`, in validation and each task, named after its folder.

    Raises InputError for a task without an outcome.
    """
    sample, found = shown(path.absolute().parent.name), read_tasks(path)
    validation, lengths = Tally(VALIDATION, sample), Counter[int]()
    tallies = {task: Tally(task, sample) for task in found}
    for record in read_records(path):
        duplicate = record.duplicate_of is not None
        validation.add(Outcome(record.status, record.reason), duplicate=duplicate)
        if record.status == OK and record.length is not None:
            lengths[record.length] += 1
        for task, tally in tallies.items():
            outcome = record.outcomes[task]
            if outcome.status not in (OK, SKIPPED, FAILED):
                raise InputError(
                    f"{path}: record {record.index} has {task}_status '{outcome.status}'; make "
                    "the table again with `esm-pipeline aggregate records`"
                )
            tally.add(outcome, duplicate=duplicate, new=record.status == OK)
    return Counts([validation, *tallies.values()], lengths=lengths)


def count_variants(path: Path, sample: str) -> Counts:
    """What is counted of a `scores.tsv`: the outcomes of its rows, and its scores.

    The scores are those of the strategy in `scores.json`, if that is next to it. Raises InputError
    for a row without an outcome, or a file that is not as `join` writes it.
    """
    tally, histogram, strategies = Tally(VARIANTS_STEP, sample), Histogram(), []
    try:
        if path.with_name(SCORE_FACTS).exists():
            facts = json.loads(path.with_name(SCORE_FACTS).read_text(encoding="utf-8"))
            strategies = [facts["strategy"]]
        for block in open_table(path).blocks(["status", "reason", *strategies]):
            for status, reason, *_ in block.cells:
                if status not in (OK, SKIPPED, FAILED):
                    raise InputError(
                        f"{path}: a row has status {status!a}; make it again with `join`"
                    )
                tally.add(Outcome(status, reason))
            scores = [float(cells[2]) for cells in block.cells if strategies and cells[0] == OK]
            histogram.add(np.array(scores))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not as `join` writes it ({error}); make it again") from None
    return Counts([tally], dict.fromkeys(strategies, histogram))
