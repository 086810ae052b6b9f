"""Which unique sequences a task computes, how much of each, and what became of every record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from esm_pipeline.arrays import Bool, Int64
from esm_pipeline.errors import InputError, setting
from esm_pipeline.files import atomic_path
from esm_pipeline.formats.records import FAILED, OK, SKIPPED, Outcome, Record, write_records
from esm_pipeline.formats.results.validation import open_hdf5
from esm_pipeline.formats.results.writer import Array, Entry, RaggedWriter
from esm_pipeline.model.inference.windows import SPECIAL_TOKENS
from esm_pipeline.tasks.common.sequences import Intake

DOES_NOT_FIT = "{} residues do not fit into memory, even alone; use a machine with more"
NOT_FINITE = "the model gave values that are not finite numbers"


@dataclass(frozen=True)
class Reach:
    """What becomes of long sequences.

    `limit` is the most residues that the model has positions for, None without a limit; `policy`
    is skip, truncate, window or full; `window` is the most tokens seen at once, 0 for all.
    """

    task: str
    limit: int | None
    policy: str
    window: int = 0

    @classmethod
    def choose(cls, task: str, limits: Iterable[int | None], policy: str, window: int = 0) -> Reach:
        """The reach under the setting `long`; of several models, the shortest table counts.

        `window` is given by tasks that have that policy. Raises InputError for full with a table.
        """
        tables = [limit for limit in limits if limit is not None]
        limit = min(tables, default=None)
        if limit is not None and policy == "full":
            others = "skip, truncate or window" if window else "skip or truncate"
            raise InputError(
                f"{setting(f'{task}.long')} is 'full', but the model has positions for {limit} "
                f"residues only; set it to {others}"
            )
        if policy == "auto":
            policy = "full" if limit is None else "skip"
        if policy == "window" and limit is not None:
            window = min(window, limit + SPECIAL_TOKENS)
        return cls(task, limit, policy, window if policy == "window" else 0)

    @property
    def cut(self) -> int | None:
        """Residues beyond which a sequence is skipped or truncated."""
        return self.limit if self.policy in ("skip", "truncate") else None

    def outcome(self, length: int) -> Outcome:
        """What becomes of a sequence of `length` residues, if nothing fails."""
        if self.cut is not None and length > self.cut:
            if self.policy == "truncate":
                return Outcome(OK, f"truncated to the first {self.cut} residues")
            other = "window or truncate" if self.task == "score" else "truncate"
            return Outcome(
                SKIPPED,
                f"{length} residues, but the model has positions for {self.cut}; set "
                f"{setting(f'{self.task}.long')} to {other}, or use a rotary model such as ESM-2",
            )
        if self.window and length + SPECIAL_TOKENS > self.window:
            return Outcome(OK, f"in windows of {self.window} tokens")
        return Outcome(OK)


class Plan:
    """The unique sequences of `intake` within `reach`; `failures` are noted as they happen."""

    def __init__(self, intake: Intake, reach: Reach) -> None:
        self.intake, self.reach = intake, reach
        lengths = intake.lengths
        self.lengths = lengths if reach.cut is None else np.minimum(lengths, reach.cut)
        self.too_long: Bool = lengths > self.lengths
        self.failures: dict[int, str] = {}

    def rows(self) -> Int64:
        """(U,) row of each unique sequence; -1 if it is skipped or has failed."""
        truncated = self.reach.policy == "truncate"
        kept = np.ones(len(self.lengths), bool) if truncated else ~self.too_long
        kept[list(self.failures)] = False
        return np.where(kept, np.cumsum(kept) - 1, -1)

    def sequences(self, unique: Int64) -> list[str]:
        """The residues to compute of some unique sequences."""
        lengths = self.lengths[unique].tolist()
        texts = self.intake.sequences(unique)
        return [text[:length].decode() for text, length in zip(texts, lengths, strict=True)]

    def outcome(self, record: Record) -> Outcome:
        """What became of a record."""
        if record.status != OK:
            return Outcome(SKIPPED, record.reason)
        unique = int(self.intake.unique[record.index])
        if unique < 0:
            return Outcome(SKIPPED, "a complex of several chains; split it at ':'")
        if unique in self.failures:
            return Outcome(FAILED, self.failures[unique])
        return self.reach.outcome(int(self.intake.lengths[unique]))

    def entries(self, rows: Int64) -> Iterator[Entry]:
        """Every record whose sequence has one of `rows`."""
        for record in self.intake.records():
            unique = int(self.intake.unique[record.index])
            if unique >= 0 and rows[unique] >= 0:
                yield Entry(record.id, record.index, int(rows[unique]))

    def entry_count(self, rows: Int64) -> int:
        """The number of `entries`."""
        unique = self.intake.unique
        return int(np.count_nonzero(rows[unique[unique >= 0]] >= 0))

    def write_outcomes(self, table: Path) -> Counter[str]:
        """Write the table of records to `table`; returns the number of each status."""
        counts: Counter[str] = Counter()

        def told(record: Record) -> Record:
            outcome = self.outcome(record)
            counts[outcome.status] += 1
            return record.with_outcome(self.reach.task, *outcome)

        write_records(table, map(told, self.intake.records()), [self.reach.task])
        return counts


@dataclass(frozen=True)
class Layout:
    """What a ragged file has: its arrays, and what it says of itself."""

    arrays: Sequence[Array]
    attributes: Mapping[str, str]

    def writer(self, path: Path, plan: Plan, rows: Int64) -> RaggedWriter:
        """A new file at `path` for the sequences that have `rows`."""
        return RaggedWriter(
            path,
            self.arrays,
            plan.lengths[rows >= 0],
            plan.entry_count(rows),
            plan.entries(rows),
            self.attributes,
        )

    def leave_out_failures(self, path: Path, plan: Plan, rows: Int64) -> None:
        """Write the file at `path` anew without the rows of what failed."""
        kept = plan.rows()
        with (
            atomic_path(path) as smaller,
            open_hdf5(path) as source,
            self.writer(smaller, plan, kept) as writer,
        ):
            writer.copy(source, kept[rows >= 0])
