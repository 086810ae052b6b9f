"""Count the outcomes of all records, and fail if any failed: the last step of a workflow.

Results are written and kept whatever the verdict, which comes after all of them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from esm_pipeline.files import atomic_path, require_apart
from esm_pipeline.flags import exit_code
from esm_pipeline.formats.records import FAILED, OK
from esm_pipeline.locks import Outputs
from esm_pipeline.settings.result_names import RECORDS, SCORES
from esm_pipeline.tasks.common.outcomes import count_text
from esm_pipeline.tasks.common.tallies import TALLY_COLUMNS, VARIANTS_STEP, Tally, reason_kind
from esm_pipeline.tasks.run.tallies import add_run_flags, find_results

EXAMPLES = (
    (
        "esm-pipeline verdict --out verdict.txt results/my_sample/records.tsv",
        "the number of records by outcome; exit code 1 if any failed",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `verdict`."""
    parser.add_argument(
        "records",
        nargs="*",
        type=Path,
        metavar="SAMPLE/records.tsv",
        help="tables of records to count, without --settings",
    )
    add_run_flags(parser)
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
    found = find_results(args, args.records)
    tallies = found.tallies()
    failed = sum(tally.statuses[FAILED] for tally in tallies)
    text = verdict(tallies, found.others)
    with atomic_path(args.out) as path:
        path.write_text(text, encoding="utf-8")
    print(text, end="", file=sys.stderr)
    return exit_code(failed, args.on_failure)


def verdict(tallies: Sequence[Tally], others: str) -> str:
    """The verdict as text: a table, the most common reasons, and a note on files of other runs.

    A step that computed nothing at all is said to be one.

    The last line says how many failed in total.
    """
    lines = aligned([TALLY_COLUMNS, *(tally.row() for tally in tallies)])
    lines += chain.from_iterable(map(reason_lines, tallies))
    lines += [
        f"{tally.sample}, {tally.step}: none of {tally.statuses.total():,} computed"
        for tally in tallies
        if tally.statuses.total() and not tally.statuses[OK]
    ]
    lines += [others] if others else []
    failed = sum(tally.statuses[FAILED] for tally in tallies)
    lines.append(f"{failed:,} failed" if failed else "nothing failed")
    return "\n".join(lines) + "\n"


def reason_lines(tally: Tally) -> Iterator[str]:
    """The most common reasons of a step, and where those that are left out can be read."""
    step = f"{tally.sample}, {tally.step}"
    table = SCORES if tally.step == VARIANTS_STEP else RECORDS
    for status, reason, number in tally.common_reasons():
        such_as = ", such as" if number > 1 and reason_kind(reason) != reason else ""
        yield f"{step}: {number:,} {status}{such_as}: {reason}"
    for status, number in tally.more_reasons().items():
        more = count_text(number, "reasons", "more")
        yield f"{step}: {status} for {more}; see {tally.sample}/{table}"


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table: two columns of names to the left, numbers to the right."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
