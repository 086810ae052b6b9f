"""Append the scores of all ranges to the variant table, each row in its place.

The counterpart of `split`. Checks that the files of the jobs are whole and cover the bundle once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from esm_pipeline.arrays import Float64, Int32, Int64, UInt8
from esm_pipeline.errors import InputError
from esm_pipeline.files import atomic_paths, naming_errors
from esm_pipeline.flags import number_of_parts
from esm_pipeline.formats.bundles import REMOVE_FOLDER
from esm_pipeline.formats.checksums import CHECKSUM_REMEDY, LISTING, check_listed
from esm_pipeline.formats.fasta import shown
from esm_pipeline.formats.records import OK, SKIPPED, Outcome
from esm_pipeline.formats.results.hdf5_file import write_at
from esm_pipeline.formats.results.job_files import STATUS_OF_CODE
from esm_pipeline.formats.tables.base import Column, Table
from esm_pipeline.formats.tables.open import create_table, open_table
from esm_pipeline.formats.variant_bundles import VARIANT_ROWS, WILD_TYPE_FASTA, VariantBundle
from esm_pipeline.locks import Outputs
from esm_pipeline.tasks.common.outcomes import format_counts, write_status
from esm_pipeline.tasks.common.outputs import write_checksums
from esm_pipeline.tasks.common.progress import waiting
from esm_pipeline.tasks.common.tallies import (
    VARIANTS_STEP,
    Counts,
    Histogram,
    Tally,
    write_counts,
)
from esm_pipeline.tasks.score.score_files import RangeScores, score_files
from esm_pipeline.tasks.score.split import OUTCOMES, STATUS, SUFFIX, UNUSABLE
from esm_pipeline.tasks.score.variant_table import SCORE

UNUSABLE_CODE = 0
"""Instead of the status of a row that no job has."""


EXAMPLES = (
    (
        "esm-pipeline join --variants variants.csv --split split --scores score --count 2 --out "
        "scores.tsv --status status.tsv --provenance scores.json --counts counts.json",
        "the table with the scores of two ranges",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--variants", required=True, metavar="TABLE", help="table that was split")
    parser.add_argument("--split", required=True, type=Path, help="folder that `split` wrote")
    parser.add_argument("--scores", required=True, type=Path, help="folder of the jobs' scores")
    parser.add_argument("--count", required=True, type=number_of_parts, help="number of ranges")
    parser.add_argument("--out", required=True, type=Path, help="table to write, TSV")
    parser.add_argument("--status", required=True, type=Path, help="status table to write")
    parser.add_argument("--provenance", required=True, type=Path, help="JSON file to write")
    parser.add_argument(
        "--counts", required=True, type=Path, help="counts of the table to write, JSON"
    )
    parser.add_argument("--quiet", action="store_true", help="no summary")


def outputs(args: argparse.Namespace) -> Outputs:
    """What `join` writes."""
    listing = args.status.with_name(LISTING)
    return Outputs([args.out, args.status, args.provenance, args.counts, listing])


def run(args: argparse.Namespace) -> int:
    """Join; returns 0, since `verdict` judges failed rows."""
    started = time.perf_counter()
    table = open_table(args.variants)
    for path in (args.split / UNUSABLE, args.split / STATUS):
        check_listed(path)
    bundle = VariantBundle.open(args.split / VARIANT_ROWS, args.split / WILD_TYPE_FASTA)
    targets = [args.out, args.provenance, args.status, args.counts]
    digests = args.status.with_name(LISTING)
    with naming_errors(args.out), ExitStack() as stack:
        stack.enter_context(waiting(f"join: writing {args.out}", quiet=args.quiet))
        args.out.parent.mkdir(parents=True, exist_ok=True)
        scratch = stack.enter_context(tempfile.TemporaryFile(dir=args.out.parent))
        paths = stack.enter_context(atomic_paths(*targets, digests))
        out, provenance, status, counted, listed = paths
        parts = score_files(args.scores, args.count, bundle)
        first = next(parts)
        joined = JoinedScores(scratch, bundle, first[1])
        for place, found in chain([first], parts):
            joined.add(place, found)
        counts = append_scores(out, table, joined, args.split / UNUSABLE)
        provenance.write_text(json.dumps(joined.provenance, indent=2) + "\n", encoding="utf-8")
        write_status(status, SCORE, joined.outcomes_of_records(args.split / STATUS))
        write_counts(counted, counts)
        write_checksums(listed, digests, dict(zip(targets, paths, strict=False)))
    if not args.quiet:
        seconds = time.perf_counter() - started
        line = format_counts(counts.tallies[0].statuses, "variants")
        print(f"join: {line}; {seconds:.1f} s; wrote {args.out}", file=sys.stderr)
    return 0


class JoinedScores:
    """What all jobs found out: scores by row in the file `scratch`, the outcomes of proteins.

    In memory 5 bytes a protein, besides the scores of one job and the different reasons.
    """

    def __init__(self, scratch: IO[bytes], bundle: VariantBundle, like: RangeScores) -> None:
        self._scratch, self._first = scratch, bundle.first
        self.columns, self.provenance = like.columns, like.provenance or {}
        self._entry = np.dtype(
            [("status", "u1"), ("reason", "<i4"), ("scores", "<f8", (len(like.columns),))]
        )
        self._reasons = {"": 0}
        self._texts = [""]
        self._severity = np.zeros(len(bundle.first), np.uint8)
        self._reason = np.zeros(len(bundle.first), np.int32)
        self.count = 0

    def add(self, path: Path, found: RangeScores) -> None:
        """Add the scores of the next job. Raises InputError unless they fit to the others."""
        facts = self.provenance if found.provenance is None else found.provenance
        for what, same in (
            ("columns", found.columns == self.columns),
            ("provenance", without_software(facts) == without_software(self.provenance)),
        ):
            if not same:
                raise InputError(
                    f"{path}: differs from the first range in its {what}; {CHECKSUM_REMEDY}"
                )
        for text in found.outcomes.reasons:
            if self._reasons.setdefault(text, len(self._texts)) == len(self._texts):
                self._texts.append(text)
        known = [self._reasons[text] for text in (*found.outcomes.reasons, "")]
        reason = np.array(known, np.int32)[found.outcomes.reason]
        number = len(found.rows)
        entries = np.zeros(number, self._entry)
        entries["status"], entries["reason"] = found.outcomes.codes[:number], reason[:number]
        entries["scores"] = found.scores
        self._write(found.rows, entries)
        self._note_proteins(path, found.proteins, found.outcomes.codes[number:], reason[number:])

    def _write(self, rows: Int64, entries: NDArray[np.void]) -> None:
        """Write the entries of some rows (n,), ascending, to their places."""
        self.count += len(rows)
        size, data = entries.dtype.itemsize, memoryview(entries.tobytes())
        begins = np.flatnonzero(np.diff(rows, prepend=-2) != 1)  # of consecutive rows
        ends = np.append(begins, len(rows))[1:]
        spans = zip(begins.tolist(), ends.tolist(), rows[begins].tolist(), strict=True)
        for begin, end, row in spans:
            write_at(self._scratch.fileno(), row * size, data[begin * size : end * size])

    def _note_proteins(self, path: Path, first: Int64, codes: UInt8, reason: Int32) -> None:
        """Keep the worst outcome of each protein: of equals, the first one that has a reason."""
        places = self._scored(first)
        if (places < 0).any():
            raise InputError(f"{path}: has proteins of another table; {CHECKSUM_REMEDY}")
        severity = 2 * codes + (reason > 0)
        worse = severity > self._severity[places]
        self._severity[places[worse]] = severity[worse]
        self._reason[places[worse]] = reason[worse]

    def entries(self, first: int, count: int) -> NDArray[np.void]:
        """The entries of some rows; a row that no job has has the status `UNUSABLE_CODE`."""
        size = self._entry.itemsize
        data = os.pread(self._scratch.fileno(), count * size, first * size)
        return np.frombuffer(data.ljust(count * size, b"\0"), self._entry)

    def reasons(self, places: Int32) -> list[str]:
        """Some reasons by their numbers."""
        return [self._texts[place] for place in places.tolist()]

    def outcomes_of_records(self, before: Path) -> Iterator[tuple[int, Outcome]]:
        """Index and outcome of each record: as `split` wrote it to `before`, or as the jobs did."""
        for block in open_table(before).blocks([column.name for column in OUTCOMES]):
            first = np.array([int(cells[1]) for cells in block.cells])
            for cells, place in zip(block.cells, self._scored(first).tolist(), strict=True):
                index, _, status, reason = cells
                if status == OK and place >= 0:
                    status = STATUS_OF_CODE[int(self._severity[place]) // 2]
                    (reason,) = self.reasons(self._reason[place : place + 1])
                yield int(index), Outcome(status, reason)

    def _scored(self, first: Int64) -> Int64:
        """(n,) places of some proteins by their first records; -1 if no job has one."""
        places = np.searchsorted(self._first, first)
        places[places == len(self._first)] = -1
        same = self._first[places] == first if len(self._first) else np.zeros(len(first), bool)
        return np.where(same, places, -1)


def without_software(facts: dict[str, Any]) -> dict[str, Any]:
    """The provenance without versions, in which jobs may differ."""
    return {name: value for name, value in facts.items() if name != "software"}


def unusable_rows(path: Path) -> Iterator[tuple[int, str]]:
    """Number and reason of the rows that `split` could not use."""
    for block in open_table(path).blocks(["row", "reason"]):
        for number, reason in block.cells:
            yield int(number), reason


def append_scores(path: Path, table: Table, joined: JoinedScores, unusable: Path) -> Counts:
    """Write `table` with the scores appended; returns what is counted of it.

    Raises InputError unless each row is in one range, or among those that are `unusable`.
    """
    added = [Column("status", "text"), Column("reason", "text"), *map(Column, joined.columns)]
    table.require_room_for(added, SUFFIX)
    tally, first, scored = Tally(VARIANTS_STEP), 0, 0
    histograms = {name: Histogram() for name in joined.columns}
    others = unusable_rows(unusable)
    with create_table(path, SUFFIX, table, added) as writer:
        for block in table.blocks([]):
            entries = joined.entries(first, block.count)
            codes, scores = entries["status"], entries["scores"]
            statuses = [STATUS_OF_CODE.get(code, SKIPPED) for code in codes.tolist()]
            reasons = joined.reasons(entries["reason"])
            missing = np.flatnonzero(codes == UNUSABLE_CODE)
            for place in missing.tolist():
                number, reasons[place] = next(others, (-1, ""))
                if number != first + place:
                    raise InputError(
                        f"{shown(table.path)}: row {first + place} is in no range, or in two; "
                        f"{REMOVE_FOLDER}"
                    )
            scores = np.where((codes == UNUSABLE_CODE)[:, None], np.nan, scores)
            writer.write(block, [statuses, reasons, *scores.T])
            scored += block.count - len(missing)
            first += block.count
            count_block(tally, histograms, statuses, reasons, scores)
    if scored != joined.count or next(others, None) is not None:
        raise InputError(f"{shown(table.path)}: has fewer rows than were split; {REMOVE_FOLDER}")
    return Counts([tally], histograms)


def count_block(
    tally: Tally,
    histograms: dict[str, Histogram],
    statuses: list[str],
    reasons: list[str],
    scores: Float64,
) -> None:
    """Count some rows: their outcomes, and the scores (n, C) of those that are ok."""
    for outcome, number in Counter(zip(statuses, reasons, strict=True)).items():
        tally.add_many(Outcome(*outcome), number)
    is_ok = np.array([status == OK for status in statuses], bool)
    for histogram, values in zip(histograms.values(), scores[is_ok].T, strict=True):
        histogram.add(values)
