"""How the rows of a variant table are scored: which forward passes to run, and how to add them up.

Marginals read the mutated positions: one pass for each, whatever the number of rows that mutate it.
Likelihoods read every position of every different sequence. Published scripts compute the
pseudo-perplexity one residue off: they mask token i, which is residue i - 1, and look up residue i.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esm_pipeline.arrays import Bool, Float64, Int32, Int64
from esm_pipeline.errors import setting
from esm_pipeline.formats.records import FAILED, OK, SKIPPED, Outcome
from esm_pipeline.formats.results.layout import unit_starts
from esm_pipeline.model.inference.batching import SPECIAL_TOKEN_COUNT
from esm_pipeline.settings.sections import ScoreSettings
from esm_pipeline.tasks.common.plan import DOES_NOT_FIT, NOT_FINITE, SequencePlan
from esm_pipeline.tasks.common.progress import Advance
from esm_pipeline.tasks.common.sequences import SequenceSet
from esm_pipeline.tasks.common.work import forward_cost
from esm_pipeline.tasks.score import windows
from esm_pipeline.tasks.score.forward_passes import (
    Ensemble,
    ForwardPasses,
    LanguageModel,
    MaskedLogProbs,
    PassWork,
    one_masked,
    ranges,
    set_windows,
    together_masked,
    unmasked,
)
from esm_pipeline.tasks.score.variant_table import JOINT, VariantArrays

POSITIONS_PLANNED = 1 << 14
"""Positions for which passes are planned together, about."""


class RowState(IntEnum):
    """What is known of a row before any model runs."""

    READY = 0
    UNUSABLE = 1
    TOO_LONG = 2
    BEYOND_CUT = 3
    """A residue is mutated that truncation cuts off."""
    TOO_FAR_APART = 4
    """No one window holds all mutations."""
    LENGTH_CHANGED = 5
    """The variant and its wild type would be truncated at different residues."""


class Strategy(ABC):
    """Scores the N rows of a table.

    `states` (N,) are those of the rows, `work` that of all passes for one model. Once the
    rows are scored, `failed` (N,) shows those that were ready, but have no score.
    """

    states: NDArray[np.int8]
    work: PassWork
    failed: Bool

    def __init__(self, rows: VariantArrays, plan: SequencePlan) -> None:
        self.rows, self.plan = rows, plan
        protein = rows.protein
        self.states = np.where(self.usable, RowState.READY, RowState.UNUSABLE).astype(np.int8)
        if len(plan.lengths):
            self.states[self.ready & plan.skipped[protein]] = RowState.TOO_LONG
            self.states[self.ready & (rows.last > plan.lengths[protein])] = RowState.BEYOND_CUT

    @property
    def usable(self) -> Bool:
        """(N,) whether the table's row says something that can be scored."""
        return self.rows.protein >= 0

    @property
    def ready(self) -> Bool:
        """(N,) whether the row is to be scored."""
        return np.equal(self.states, RowState.READY)

    def score(self, models: Ensemble, advance: Advance) -> list[Float64]:
        """The columns of scores, (N,) each; NaN for rows that are not ready, or failed.

        First the means over the models, then of several models the scores by each. One model at a
        time is in memory. `advance` is called with the passes of each batch.
        """
        by_model = []
        for model in models.values():
            if self.work.passes:
                model.load()
            by_model.append(self.score_with(model, advance))
            model.unload()
        columns = list(zip(*by_model, strict=True))
        scores: list[Float64] = [sum(column) / len(column) for column in columns]
        if len(models) > 1:
            scores += [values for column in columns for values in column]
        self.failed = self.ready & np.isnan(sum(scores))
        return scores

    @abstractmethod
    def score_with(self, model: LanguageModel, advance: Advance) -> list[Float64]:
        """The scores (N,) by one model, for each column of the strategy."""

    def outcome(self, row: int) -> Outcome:
        """The outcome of a usable row, once the rows are scored."""
        if self.states[row] == RowState.BEYOND_CUT:
            return Outcome(
                SKIPPED,
                f"residue {self.rows.last[row]} is mutated, but the protein is truncated to the "
                f"first {self.plan.policy.cut}; set {setting('score.long')} to window",
            )
        if self.failed[row]:
            return Outcome(FAILED, self.failure(row))
        return self.plan.outcome_unless_failed(int(self.rows.protein[row]))

    def failure(self, row: int) -> str:
        """Why a row failed."""
        return self.plan.failures[int(self.rows.protein[row])]


class Marginals(Strategy):
    """Log-odds of mutated residues against those of the wild type, added up over a row.

    In memory, some 60 bytes a substitution.
    """

    def __init__(self, settings: ScoreSettings, rows: VariantArrays, plan: SequencePlan) -> None:
        super().__init__(rows, plan)
        self.budget = settings.token_budget
        joint = settings.strategy == JOINT
        if joint and plan.policy.window:
            self._skip_far_apart(plan.policy.window)
        row = np.repeat(np.arange(len(rows)), np.diff(rows.ends))  # (E,)
        chosen = np.flatnonzero(self.ready[row])
        self.row, self.letter = row[chosen], rows.letter[chosen]
        if joint:
            self.passes, slot = self._plan_joint()
        else:
            self.passes, slot = self._plan_single(rows.position[chosen], settings.strategy)
        self.order = np.argsort(slot, kind="stable")
        self.first = np.searchsorted(slot[self.order], np.arange(int(slot.max(initial=-1)) + 2))
        self.work = PassWork.of(self.passes.tokens)

    def _tokens(self, sequence: NDArray[np.signedinteger[Any]]) -> Int64:
        return np.asarray(self.plan.lengths[sequence], np.int64) + SPECIAL_TOKEN_COUNT

    def _plan_single(self, position: Int32, strategy: str) -> tuple[ForwardPasses, Int64]:
        """Passes for the different mutated residues, and the slot of each substitution."""
        starts = unit_starts(self.plan.lengths, "residue")
        residue = starts[self.rows.protein[self.row]] + position
        residues, slot = np.unique(residue, return_inverse=True)
        sequence = np.asarray(np.searchsorted(starts, residues, side="right") - 1, np.int64)
        token = residues - starts[sequence] + 1  # BOS is 0
        plan = unmasked if strategy == "wt_marginal" else one_masked
        slots, tokens = np.arange(len(residues)), self._tokens(sequence)
        return plan(sequence, token, slots, tokens, self.plan.policy.window), slot

    def _plan_joint(self) -> tuple[ForwardPasses, Int64]:
        """Passes for the different sets of residues, and the slot of each substitution."""
        rows, ends = self.rows, self.rows.ends
        counts = np.diff(ends)
        mutated = np.flatnonzero(self.ready & (counts > 0))
        _, first, which = np.unique(rows.sets[mutated], return_index=True, return_inverse=True)
        chosen = mutated[first]  # a row for each set
        set_ends = np.concatenate([[0], np.cumsum(counts[chosen])])
        token = rows.position[ranges(ends[chosen], counts[chosen])].astype(np.int64) + 1
        sequence = rows.protein[chosen].astype(np.int64)
        passes = together_masked(
            sequence, set_ends, token, self._tokens(sequence), self.plan.policy.window
        )
        return passes, ranges(set_ends[which], counts[mutated])

    def _skip_far_apart(self, window: int) -> None:
        """Rows whose residues do not fit into one window are not ready."""
        ends = self.rows.ends
        mutated = np.flatnonzero(self.ready & (np.diff(ends) > 0))
        firsts, lasts = ends[mutated], ends[mutated + 1] - 1
        first, last = (self.rows.position[one].astype(np.int64) + 1 for one in (firsts, lasts))
        tokens = self._tokens(self.rows.protein[mutated])
        pairs = np.stack([first, last], axis=1).ravel()
        start, stop = set_windows(np.arange(0, len(pairs) + 1, 2), pairs, tokens, window)
        self.states[mutated[(first < start) | (last >= stop)]] = RowState.TOO_FAR_APART

    def score_with(self, model: LanguageModel, advance: Advance) -> list[Float64]:
        """The sum over each row."""
        letters = model.letters()
        sums = np.where(self.ready, 0.0, np.nan)
        for found in model.run_passes(self.passes, self.plan.sequences, self.budget):
            note_failures(self.plan, found)
            slots = found.slot
            counts = self.first[slots + 1] - self.first[slots]
            chosen = self.order[ranges(self.first[slots], counts)]  # substitutions
            at = np.repeat(np.arange(len(slots)), counts)
            mutant, wild_type = letters[self.letter[chosen]], found.wild_type[at]
            log_odds = found.log_p[at, mutant] - found.log_p[at, wild_type]
            np.add.at(sums, self.row[chosen], found.weight[at] * log_odds)
            advance(found.passes, work=found.cost)
        return [sums]

    def outcome(self, row: int) -> Outcome:
        """Also of rows whose mutations are too far apart."""
        if self.states[row] == RowState.TOO_FAR_APART:
            return Outcome(
                SKIPPED,
                f"the mutations lie too far apart for one window of {self.plan.policy.window} "
                f"tokens; set {setting('score.strategy')} to masked_marginal",
            )
        return super().outcome(row)


class Likelihoods(Strategy):
    """Log-likelihoods of whole sequences: of each residue, with that one masked.

    `sequences` has the mutants of the usable rows, in their order, and then the wild types. In
    memory, some 40 bytes a row.
    """

    def __init__(
        self,
        settings: ScoreSettings,
        rows: VariantArrays,
        plan: SequencePlan,
        sequences: SequenceSet,
    ) -> None:
        super().__init__(rows, plan)
        self.budget = settings.token_budget
        self.mutants = SequencePlan(sequences, plan.policy)
        usable = self.usable
        count = int(usable.sum())
        proteins, which = np.unique(rows.protein[usable], return_inverse=True)
        self.mutant = np.full(len(rows), -1)
        self.mutant[usable] = sequences.unique[:count]
        self.wild_type = np.full(len(rows), -1)
        self.wild_type[usable] = sequences.unique[count:][which]
        self.wild_type_of = dict(
            zip(proteins.tolist(), sequences.unique[count:].tolist(), strict=True)
        )
        self._skip_long()
        needed = np.unique(np.concatenate([self.mutant[self.ready], self.wild_type[self.ready]]))
        self.needed, self.work = longest_first(needed, self.mutants)

    def _skip_long(self) -> None:
        """Rows whose mutant is too long, or cut at another residue, are not ready."""
        lengths, truncated = self.mutants.sequence_set.lengths, self.mutants.truncated
        if not len(lengths):
            return
        mutant, wild_type = self.mutant, self.wild_type
        self.states[self.ready & self.mutants.skipped[mutant]] = RowState.TOO_LONG
        changed = lengths[mutant] != lengths[wild_type]
        cut_apart = changed & (truncated[mutant] | truncated[wild_type])
        self.states[self.ready & cut_apart] = RowState.LENGTH_CHANGED

    def score_with(self, model: LanguageModel, advance: Advance) -> list[Float64]:
        """The likelihood of each mutant, and the same less that of its wild type."""
        sums = np.zeros(len(self.mutants.lengths) + 1)
        sums[-1] = np.nan  # of rows without a mutant
        for passes in self._passes():
            for found in model.run_passes(passes, self.mutants.sequences, self.budget):
                note_failures(self.mutants, found)
                own = found.log_p[np.arange(len(found.slot)), found.wild_type]
                np.add.at(sums, found.slot, found.weight * own)
                advance(found.passes, work=found.cost)
        for protein, number in self.wild_type_of.items():
            if number in self.mutants.failures:
                self.plan.failures[protein] = self.mutants.failures[number]
        likelihood = np.where(self.ready, sums[self.mutant], np.nan)
        return [likelihood, likelihood - sums[self.wild_type]]

    def _passes(self) -> Iterator[ForwardPasses]:
        """Passes for every residue of every sequence, some sequences at a time, longest first."""
        window = self.plan.policy.window
        for numbers in blocks_of(self.needed, self.mutants.lengths):
            sequence, token, tokens = every_residue(numbers, self.mutants)
            yield one_masked(sequence, token, sequence, tokens, window)

    def outcome(self, row: int) -> Outcome:
        """Also of mutants that are too long themselves, or truncated at another residue."""
        if self.states[row] == RowState.LENGTH_CHANGED:
            return Outcome(
                SKIPPED,
                "the variant changes the length of the protein, of which only the first "
                f"{self.plan.policy.cut} residues are scored; set {setting('score.long')} to "
                "window",
            )
        outcome = super().outcome(row)
        if outcome != Outcome(OK):
            return outcome
        return self.mutants.outcome_unless_failed(int(self.mutant[row]))

    def failure(self, row: int) -> str:
        """That of the mutant or of its wild type."""
        failures = self.mutants.failures
        for number in (int(self.mutant[row]), int(self.wild_type[row])):
            if number in failures:
                return failures[number]
        raise AssertionError("a row that failed has a reason")


def longest_first(numbers: Int64, plan: SequencePlan) -> tuple[Int64, PassWork]:
    """Sequences in the order to compute them, and the work of one pass for each residue."""
    lengths = plan.lengths[numbers].astype(np.int64)
    shown = lengths + SPECIAL_TOKEN_COUNT
    if plan.policy.window:
        shown = np.minimum(shown, plan.policy.window)
    work = PassWork(int(lengths.sum()), float((lengths * forward_cost(shown)).sum()))
    return numbers[np.argsort(-lengths, kind="stable")], work


def unmasked_work(numbers: Int64, plan: SequencePlan) -> PassWork:
    """The work of passes over whole sequences, or over all windows of those that are longer."""
    tokens, window = (
        plan.lengths[numbers].astype(np.int64) + SPECIAL_TOKEN_COUNT,
        plan.policy.window,
    )
    if not window:
        return PassWork.of(tokens)
    shown = [
        stop - start
        for count in tokens[tokens > window].tolist()
        for start, stop in windows.overlapping(count, window)
    ]
    return PassWork.of(np.concatenate([tokens[tokens <= window], np.array(shown, np.int64)]))


def blocks_of(numbers: Int64, lengths: Int32) -> Iterator[Int64]:
    """Cut `numbers` of sequences, in their order, into blocks of about `POSITIONS_PLANNED`."""
    ends = np.cumsum(lengths[numbers], dtype=np.int64)
    yield from np.split(numbers, np.flatnonzero(np.diff(ends // POSITIONS_PLANNED)) + 1)


def every_residue(numbers: Int64, plan: SequencePlan) -> tuple[Int64, Int64, Int64]:
    """For each residue of some sequences: the sequence, the token, and the sequence's tokens."""
    lengths = plan.lengths[numbers].astype(np.int64)
    sequence, tokens = (np.repeat(x, lengths) for x in (numbers, lengths + SPECIAL_TOKEN_COUNT))
    return sequence, ranges(np.ones_like(lengths), lengths), tokens  # BOS is token 0


def note_failures(plan: SequencePlan, found: MaskedLogProbs) -> None:
    """Note the sequences with log-probabilities that are missing or not finite, and the reason."""
    wrong = ~np.isfinite(found.log_p).all(1)
    for number in np.unique(found.sequence[wrong]).tolist():
        reason = DOES_NOT_FIT.format(plan.lengths[number])
        plan.failures.setdefault(number, NOT_FINITE if found.fits else reason)
