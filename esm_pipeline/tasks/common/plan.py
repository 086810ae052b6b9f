"""Which unique sequences a task computes, how much of each, and the outcome of every record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from esm_pipeline.arrays import Bool, Int32, Int64
from esm_pipeline.errors import InputError, setting
from esm_pipeline.files import atomic_path
from esm_pipeline.formats.records import FAILED, OK, SKIPPED, Outcome, Record, write_records
from esm_pipeline.formats.results.job_files import StoredOutcomes, lay_out_job, seal
from esm_pipeline.formats.results.layout import Array, RecordRow
from esm_pipeline.formats.results.validation import open_hdf5
from esm_pipeline.formats.results.writer import RaggedWriter
from esm_pipeline.tasks.common.room import require_room
from esm_pipeline.tasks.common.tallies import Tally
from esm_pipeline.tasks.common.unique_sequences import BundlePart, UniqueSequences

DOES_NOT_FIT = "{} residues do not fit into memory, even alone; use a machine with more"
NOT_FINITE = "the model gave values that are not finite numbers"


@dataclass(frozen=True)
class LengthPolicy:
    """How sequences longer than the context are handled.

    `limit` is the most residues that the model has positions for, None without a limit; `long` is
    skip, truncate, window or full; `window` is the most tokens seen at once, 0 for all.
    """

    task: str
    limit: int | None
    long: str
    window: int = 0

    @classmethod
    def choose(
        cls, task: str, limits: Iterable[int | None], long: str, window: int = 0
    ) -> LengthPolicy:
        """The policy by the setting `long`; of several models, the shortest table counts.

        Only tasks that can compute in windows give a `window`. Raises InputError for `full` if a
        model has a table.
        """
        tables = [limit for limit in limits if limit is not None]
        limit = min(tables, default=None)
        if limit is not None and long == "full":
            others = "skip, truncate or window" if window else "skip or truncate"
            raise InputError(
                f"{setting(f'{task}.long')} is 'full', but the model has positions for {limit} "
                f"residues only; set it to {others}"
            )
        if long == "auto":
            long = "full" if limit is None else "skip"
        if long == "window" and limit is not None:
            window = min(window, token_count(limit))
        return cls(task, limit, long, window if long == "window" else 0)

    @property
    def cut(self) -> int | None:
        """Residues beyond which a sequence is skipped or truncated."""
        return self.limit if self.long in ("skip", "truncate") else None

    def computed(self, lengths: Int32) -> Int32:
        """The residues to compute of each sequence of some `lengths` that is not skipped."""
        if self.cut is None:
            return lengths
        return (
            np.minimum(lengths, self.cut)
            if self.long == "truncate"
            else lengths[lengths <= self.cut]
        )

    def outcome(self, length: int) -> Outcome:
        """The outcome for a sequence of `length` residues, if nothing fails."""
        if self.cut is not None and length > self.cut:
            if self.long == "truncate":
                return Outcome(OK, f"truncated to the first {self.cut} residues")
            other = "window or truncate" if self.task == "score" else "truncate"
            return Outcome(
                SKIPPED,
                f"{length} residues, but the model has positions for {self.cut}; set "
                f"{setting(f'{self.task}.long')} to {other}, or use a rotary model such as ESM-2",
            )
        if self.window and token_count(length) > self.window:
            return Outcome(OK, f"in windows of {self.window} tokens")
        return Outcome(OK)


def token_count(residues: int) -> int:
    """Tokens of a sequence of so many residues, with BOS and EOS."""
    from esm_pipeline.model.inference.batching import SPECIAL_TOKEN_COUNT  # loads PyTorch

    return residues + SPECIAL_TOKEN_COUNT


class SequencePlan:
    """The unique sequences of a set that a task computes; `failures` are noted as they happen.

    `too_long` and `truncated` are (U,) masks, `lengths` (U,) the residues to compute. Sequences
    that are `untruncatable`, a (U,) mask, are skipped where others would be truncated.
    """

    def __init__(
        self,
        sequence_set: UniqueSequences,
        policy: LengthPolicy,
        untruncatable: Bool | None = None,
    ) -> None:
        self.sequence_set, self.policy = sequence_set, policy
        lengths = sequence_set.lengths
        self.too_long: Bool = lengths > (lengths if policy.cut is None else policy.cut)
        self.truncated: Bool = self.too_long & (policy.long == "truncate")
        if untruncatable is not None:
            self.truncated &= ~untruncatable
        self.lengths = np.where(self.truncated, policy.cut or 0, lengths)
        self.failures: dict[int, str] = {}

    @property
    def sizes(self) -> Int64:
        """(U,) residues of each unique sequence as the model counts them."""
        return self.lengths

    @property
    def skipped(self) -> Bool:
        """(U,) sequences that are not computed."""
        return self.too_long & ~self.truncated

    def rows(self) -> Int64:
        """(U,) row of each unique sequence; -1 if it is skipped or has failed."""
        kept = ~self.skipped
        kept[list(self.failures)] = False
        return np.where(kept, np.cumsum(kept) - 1, -1)

    def sequences(self, unique: Int64) -> list[str]:
        """The residues to compute of some unique sequences, `:` between chains."""
        texts = self.sequence_set.sequences(unique)
        return [
            text[: self.policy.cut].decode() if truncated else text.decode()
            for text, truncated in zip(texts, self.truncated[unique].tolist(), strict=True)
        ]

    def outcome(self, record: Record) -> Outcome:
        """The outcome of a record."""
        if record.status != OK:
            return Outcome(SKIPPED, record.reason)
        unique = int(self.sequence_set.unique[record.index])
        if unique < 0:
            return Outcome(SKIPPED, "a complex of several chains; split it at ':'")
        if unique in self.failures:
            return Outcome(FAILED, self.failures[unique])
        return self.outcome_unless_failed(unique)

    def outcome_unless_failed(self, unique: int) -> Outcome:
        """The outcome for a unique sequence, if nothing fails."""
        return self.policy.outcome(int(self.sequence_set.lengths[unique]))

    def outcomes(self) -> Iterator[Outcome]:
        """The outcome of every record, in index order; its reason is on one line."""
        for record in self.sequence_set.records():
            status, reason = self.outcome(record)
            yield Outcome(status, " ".join(reason.split()))

    def entries(self, rows: Int64) -> Iterator[RecordRow]:
        """Every record whose sequence has one of `rows`."""
        for record in self.sequence_set.records():
            unique = int(self.sequence_set.unique[record.index])
            if unique >= 0 and rows[unique] >= 0:
                yield RecordRow(record.id, record.index, int(rows[unique]))

    def entry_count(self, rows: Int64) -> int:
        """The number of `entries`."""
        unique = self.sequence_set.unique
        return int(np.count_nonzero(rows[unique[unique >= 0]] >= 0))

    def write_outcomes(self, table: Path | None = None) -> Tally:
        """Write the table of records to `table`, if given; returns what is counted of it."""
        counts = Tally(self.policy.task)
        if table is None:
            for outcome, number in Counter(self.outcomes()).items():
                counts.add_many(outcome, number)
            return counts

        def with_outcome(record: Record) -> Record:
            outcome = self.outcome(record)
            counts.add(outcome)
            return record.with_outcome(self.policy.task, *outcome)

        records = map(with_outcome, self.sequence_set.records())
        write_records(table, records, [self.policy.task])
        return counts


def write_idle(path: Path, part: BundlePart) -> None:
    """Write the file of a range without sequences."""
    lay_out = partial(lay_out_job, outcomes=StoredOutcomes.of([]))
    with RaggedWriter(path, [], np.empty(0, np.int32), 0, [], part.attributes, lay_out):
        pass
    seal(path)


@dataclass(frozen=True)
class ResultLayout:
    """What a ragged result file contains: its arrays and its attributes."""

    arrays: Sequence[Array]
    attributes: Mapping[str, str]

    def writer(self, path: Path, plan: SequencePlan, rows: Int64) -> RaggedWriter:
        """A new file at `path` for the sequences that have `rows`; `complete` it when written.

        For a range of a bundle it also has the outcomes. Raises CapacityError if the disk is too
        small for it and for the gathered result, OSError if it is full.
        """
        lengths, part = plan.lengths[rows >= 0], plan.sequence_set.part
        if part:
            require_room(path, self.arrays, lengths, plan.policy.computed(part.bundle_lengths))
        return self._writer(path, plan, rows)

    def complete(self, path: Path, plan: SequencePlan, rows: Int64) -> None:
        """Leave out the rows of sequences that failed, and seal the file of a range."""
        if plan.failures:
            self._leave_out_failures(path, plan, rows)
        if plan.sequence_set.part:
            seal(path)

    def _writer(self, path: Path, plan: SequencePlan, rows: Int64) -> RaggedWriter:
        part = plan.sequence_set.part
        return RaggedWriter(
            path,
            self.arrays,
            plan.lengths[rows >= 0],
            plan.entry_count(rows),
            plan.entries(rows),
            {**self.attributes, **(part.attributes if part else {})},
            partial(lay_out_job, outcomes=StoredOutcomes.of(plan.outcomes())) if part else None,
            plan.sequence_set.digest[rows >= 0],
        )

    def _leave_out_failures(self, path: Path, plan: SequencePlan, rows: Int64) -> None:
        kept = plan.rows()
        with (
            atomic_path(path) as smaller,
            open_hdf5(path) as source,
            self._writer(smaller, plan, kept) as writer,
        ):
            writer.copy(source, kept[rows >= 0])
