"""How the rows of a table of variants are scored: what to ask a model, and how to add that up.

Marginals ask for the places that are mutated: one pass for each, whatever the number of rows that
mutate it. Likelihoods ask for every place of every different sequence. Published scripts score the
pseudo-perplexity one residue off: they mask token i, which is residue i - 1, and look up residue i.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esm_pipeline.arrays import Bool, Float64, Int32, Int64
from esm_pipeline.errors import setting
from esm_pipeline.formats.records import FAILED, OK, SKIPPED, Outcome
from esm_pipeline.formats.results.writer import unit_starts
from esm_pipeline.model.inference.windows import SPECIAL_TOKENS
from esm_pipeline.settings.sections import ScoreSettings
from esm_pipeline.tasks.common.plan import DOES_NOT_FIT, NOT_FINITE, Plan
from esm_pipeline.tasks.common.sequences import Intake
from esm_pipeline.tasks.score.marginals import (
    Answers,
    LanguageModel,
    Passes,
    one_masked,
    ranges,
    set_windows,
    together_masked,
    unmasked,
)
from esm_pipeline.tasks.score.variant_rows import Rows

READY, UNUSABLE, TOO_LONG, BEYOND, APART, RESIZED = range(6)
"""What can be said of a row before any model runs."""

PLACES_PLANNED = 1 << 14
"""Places of sequences for which passes are planned together, about."""

Advance = Callable[[int], None]


class Strategy(ABC):
    """Scores the N rows of a table. `codes` (N,) tell which are ready, or why they are not."""

    codes: NDArray[np.int8]
    work: int
    """Tokens of all passes, for one model."""

    def __init__(self, rows: Rows, plan: Plan) -> None:
        self.rows, self.plan = rows, plan
        protein = rows.protein
        usable = protein >= 0
        kept, lengths = plan.rows() >= 0, plan.lengths
        self.codes = np.where(usable, READY, UNUSABLE).astype(np.int8)
        if len(lengths):
            self.codes[usable & ~kept[protein]] = TOO_LONG
            cut = plan.reach.policy == "truncate"
            self.codes[(self.codes == READY) & cut & (rows.last > lengths[protein])] = BEYOND

    @property
    def ready(self) -> Bool:
        """(N,) whether the row is to be scored."""
        return np.equal(self.codes, READY)

    @abstractmethod
    def score(self, model: LanguageModel, advance: Advance) -> list[Float64]:
        """A value (N,) for each column of the strategy; NaN for rows that are not ready, or failed.

        `advance` is told the tokens of each batch.
        """

    def outcome(self, row: int, failed: bool) -> Outcome:
        """What became of a row that could be used."""
        protein, code = int(self.rows.protein[row]), self.codes[row]
        if code == BEYOND:
            return Outcome(
                SKIPPED,
                f"residue {self.rows.last[row]} is mutated, but the protein is truncated to the "
                f"first {self.plan.reach.cut}; set {setting('score.long')} to window",
            )
        if failed:
            return Outcome(FAILED, self.failure(row))
        return self.plan.reach.outcome(int(self.plan.intake.lengths[protein]))

    def failure(self, row: int) -> str:
        """Why a row failed."""
        return self.plan.failures[int(self.rows.protein[row])]


class Marginals(Strategy):
    """Log-odds of mutated residues against those of the wild type, added up over a row.

    In memory, some 60 bytes a substitution.
    """

    def __init__(self, settings: ScoreSettings, rows: Rows, plan: Plan) -> None:
        super().__init__(rows, plan)
        self.budget = settings.token_budget
        joint = settings.strategy == "masked_marginal_joint"
        if joint and plan.reach.window:
            self._refuse_far_apart(plan.reach.window)
        counts = np.diff(rows.ends)
        self.row = np.repeat(np.arange(len(rows)), counts)  # (E,)
        entries = np.flatnonzero(self.ready[self.row])
        self.row, self.letter = self.row[entries], rows.letter[entries]
        if joint:
            self.passes, slot = self._sets()
        else:
            self.passes, slot = self._sites(rows.position[entries], settings.strategy)
        self.order = np.argsort(slot, kind="stable")
        self.first = np.searchsorted(slot[self.order], np.arange(int(slot.max(initial=-1)) + 2))
        self.work = int((self.passes.stop - self.passes.start).sum())

    def _tokens(self, sequence: NDArray[np.signedinteger[Any]]) -> Int64:
        return np.asarray(self.plan.lengths[sequence], np.int64) + SPECIAL_TOKENS

    def _sites(self, position: Int32, strategy: str) -> tuple[Passes, Int64]:
        """Passes for the different sites, and the site of each substitution."""
        starts = unit_starts(self.plan.lengths, "residue")
        site = starts[self.rows.protein[self.row]] + position
        sites, slot = np.unique(site, return_inverse=True)
        sequence = np.asarray(np.searchsorted(starts, sites, side="right") - 1, np.int64)
        place = sites - starts[sequence] + 1  # BOS is 0
        plan = unmasked if strategy == "wt_marginal" else one_masked
        slots, tokens = np.arange(len(sites)), self._tokens(sequence)
        return plan(sequence, place, slots, tokens, self.plan.reach.window), slot

    def _sets(self) -> tuple[Passes, Int64]:
        """Passes for the different sets of sites, and the slot of each substitution."""
        rows, ends = self.rows, self.rows.ends
        counts = np.diff(ends)
        mutated = np.flatnonzero(self.ready & (counts > 0))
        _, first, which = np.unique(rows.sets[mutated], return_index=True, return_inverse=True)
        chosen = mutated[first]  # a row for each set
        asked = ranges(ends[chosen], counts[chosen])
        set_ends = np.concatenate([[0], np.cumsum(counts[chosen])])
        place = rows.position[asked].astype(np.int64) + 1
        sequence = rows.protein[chosen].astype(np.int64)
        passes = together_masked(
            sequence, set_ends, place, self._tokens(sequence), self.plan.reach.window
        )
        return passes, ranges(set_ends[which], counts[mutated])

    def _refuse_far_apart(self, window: int) -> None:
        """Rows whose sites no one window holds are not ready."""
        ends = self.rows.ends
        mutated = np.flatnonzero(self.ready & (np.diff(ends) > 0))
        firsts, lasts = ends[mutated], ends[mutated + 1] - 1
        first, last = (self.rows.position[one].astype(np.int64) + 1 for one in (firsts, lasts))
        tokens = self._tokens(self.rows.protein[mutated])
        pairs = np.stack([first, last], axis=1).ravel()
        start, stop = set_windows(np.arange(0, len(pairs) + 1, 2), pairs, tokens, window)
        self.codes[mutated[(first < start) | (last >= stop)]] = APART

    def score(self, model: LanguageModel, advance: Advance) -> list[Float64]:
        """The sum over each row."""
        letters = model.letters()
        sums = np.where(self.ready, 0.0, np.nan)
        for answers in model.ask(self.passes, self.plan.sequences, self.budget):
            note_failures(self.plan, answers)
            slots = answers.slot
            counts = self.first[slots + 1] - self.first[slots]
            entries = self.order[ranges(self.first[slots], counts)]
            place = np.repeat(np.arange(len(slots)), counts)
            mutant, wild_type = letters[self.letter[entries]], answers.wild_type[place]
            odds = answers.log_p[place, mutant] - answers.log_p[place, wild_type]
            np.add.at(sums, self.row[entries], answers.weight[place] * odds)
            advance(answers.tokens)
        return [sums]

    def outcome(self, row: int, failed: bool) -> Outcome:
        """Also of rows whose sites are too far apart."""
        if self.codes[row] == APART:
            return Outcome(
                SKIPPED,
                f"the mutations lie too far apart for one window of {self.plan.reach.window} "
                f"tokens; set {setting('score.strategy')} to masked_marginal",
            )
        return super().outcome(row, failed)


class Likelihoods(Strategy):
    """Log-likelihoods of whole sequences, each residue with it alone masked.

    `sequences` has the mutants of the usable rows, in their order, and then the wild types. In
    memory, some 40 bytes a row.
    """

    def __init__(self, settings: ScoreSettings, rows: Rows, plan: Plan, sequences: Intake) -> None:
        super().__init__(rows, plan)
        self.budget = settings.token_budget
        self.mutants = Plan(sequences, plan.reach)
        protein = rows.protein
        usable = protein >= 0
        wild_types, which = np.unique(protein[usable], return_inverse=True)
        count = int(usable.sum())
        self.mutant = np.full(len(rows), -1)
        self.mutant[usable] = sequences.unique[:count]
        self.wild_type = np.full(len(rows), -1)
        self.wild_type[usable] = sequences.unique[count:][which]
        self.wild_types = wild_types.tolist(), sequences.unique[count:].tolist()
        kept = self.mutants.rows() >= 0
        if len(kept):
            self.codes[self.ready & ~kept[self.mutant]] = TOO_LONG
        if plan.reach.policy == "truncate" and plan.reach.cut is not None and len(kept):
            own, other = (sequences.lengths[which] for which in (self.mutant, self.wild_type))
            cut = np.maximum(own, other) > plan.reach.cut
            self.codes[self.ready & cut & (own != other)] = RESIZED
        needed = np.unique(np.concatenate([self.mutant[self.ready], self.wild_type[self.ready]]))
        lengths = self.mutants.lengths[needed].astype(np.int64)
        self.needed = needed[np.argsort(-lengths, kind="stable")]
        seen = lengths + SPECIAL_TOKENS
        if plan.reach.window:
            seen = np.minimum(seen, plan.reach.window)
        self.work = int((lengths * seen).sum())

    def score(self, model: LanguageModel, advance: Advance) -> list[Float64]:
        """The likelihood of each mutant, and the same less that of its wild type."""
        sums = np.zeros(len(self.mutants.lengths) + 1)
        sums[-1] = np.nan  # of rows without a mutant
        for passes in self._passes():
            for answers in model.ask(passes, self.mutants.sequences, self.budget):
                note_failures(self.mutants, answers)
                own = answers.log_p[np.arange(len(answers.slot)), answers.wild_type]
                np.add.at(sums, answers.slot, answers.weight * own)
                advance(answers.tokens)
        for protein, number in zip(*self.wild_types, strict=True):
            if number in self.mutants.failures:
                self.plan.failures[protein] = self.mutants.failures[number]
        likelihood = np.where(self.ready, sums[self.mutant], np.nan)
        return [likelihood, likelihood - sums[self.wild_type]]

    def _passes(self) -> Iterator[Passes]:
        """Passes for every place of every sequence, some sequences at a time, longest first."""
        window = self.plan.reach.window
        for numbers in blocks_of(self.needed, self.mutants.lengths):
            lengths = self.mutants.lengths[numbers].astype(np.int64)
            sequence = np.repeat(numbers, lengths)
            place = ranges(np.ones_like(lengths), lengths)
            tokens = np.repeat(lengths + SPECIAL_TOKENS, lengths)
            yield one_masked(sequence, place, sequence, tokens, window)

    def outcome(self, row: int, failed: bool) -> Outcome:
        """Also of mutants that are long by themselves, or cut in another place."""
        if self.codes[row] == RESIZED:
            return Outcome(
                SKIPPED,
                "the variant changes the length of the protein, of which only the first "
                f"{self.plan.reach.cut} residues are scored; set {setting('score.long')} to window",
            )
        found = super().outcome(row, failed)
        if found != Outcome(OK):
            return found
        return self.plan.reach.outcome(int(self.mutants.intake.lengths[self.mutant[row]]))

    def failure(self, row: int) -> str:
        """That of the mutant or of its wild type."""
        failures = self.mutants.failures
        for number in (int(self.mutant[row]), int(self.wild_type[row])):
            if number in failures:
                return failures[number]
        raise AssertionError("a row that failed has a reason")


def blocks_of(numbers: Int64, lengths: Int32) -> Iterator[Int64]:
    """Cut `numbers` of sequences, in their order, into blocks of `PLACES_PLANNED`, about."""
    ends = np.cumsum(lengths[numbers], dtype=np.int64)
    yield from np.split(numbers, np.flatnonzero(np.diff(ends // PLACES_PLANNED)) + 1)


def note_failures(plan: Plan, answers: Answers) -> None:
    """Have `plan` know the sequences that something is wrong with, and what."""
    wrong = ~np.isfinite(answers.log_p).all(1)
    for number in np.unique(answers.sequence[wrong]).tolist():
        reason = DOES_NOT_FIT.format(plan.lengths[number])
        plan.failures.setdefault(number, NOT_FINITE if answers.fits else reason)
