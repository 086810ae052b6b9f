"""Which unique sequences and complexes are folded, and what became of every record."""

from __future__ import annotations

import numpy as np

from esm_pipeline.arrays import Int64
from esm_pipeline.errors import InputError, setting
from esm_pipeline.formats.records import FAILED, OK, SKIPPED, Outcome, Record
from esm_pipeline.settings.sections import FoldSettings
from esm_pipeline.structure.residues import LETTERS, UNKNOWN
from esm_pipeline.tasks.common.cleaning import CHAIN_BREAK
from esm_pipeline.tasks.common.plan import Plan, Reach
from esm_pipeline.tasks.common.sequences import Intake

TASK = "fold"
AMINO_ACIDS = LETTERS[:UNKNOWN].encode()


class FoldPlan(Plan):
    """The unique sequences of `intake`, complexes among them; `failures` are noted as they happen.

    `positions` is the most residues that the model has positions for, None without a limit. Raises
    InputError if it contradicts the settings.
    """

    def __init__(self, intake: Intake, positions: int | None, settings: FoldSettings) -> None:
        self.intake, self.positions = intake, positions
        self.limit = self.limit_of(positions, settings)
        self.reach = Reach(TASK, self.limit, settings.long)
        truncate = settings.long == "truncate"
        lengths = intake.lengths
        texts = intake.sequences(np.arange(len(lengths)))
        facts = [
            (text.count(CHAIN_BREAK), len(text.translate(None, AMINO_ACIDS)) < len(text))
            for text in texts
        ]
        self.breaks, placed = np.array(facts, np.int64).reshape(-1, 2).T  # (U,) each
        self.placed, self.complexes = placed.astype(bool), self.breaks > 0
        self.too_long = lengths > (lengths if self.limit is None else self.limit)
        self.cut = self.too_long & ~self.complexes & truncate
        self.lengths = np.where(self.cut, self.limit or 0, lengths)
        self.failures = {}

    @staticmethod
    def limit_of(positions: int | None, settings: FoldSettings) -> int | None:
        """The most residues to fold. Raises InputError for `full` where there is a limit."""
        limits = [limit for limit in (positions, settings.max_residues) if limit]
        if limits and settings.long == "full":
            raise InputError(
                f"{setting('fold.long')} is 'full', but there is a limit of {min(limits)} "
                "residues; set it to skip or truncate"
            )
        return min(limits, default=None)

    def rows(self) -> Int64:
        """(U,) row of each unique sequence; -1 if it is skipped or has failed."""
        kept = self.placed & (~self.too_long | self.cut)
        kept[list(self.failures)] = False
        return np.where(kept, np.cumsum(kept) - 1, -1)

    def sequences(self, unique: Int64) -> list[str]:
        """The residues to fold of some unique sequences, `:` between chains."""
        texts = self.intake.sequences(unique)
        return [
            text[: self.limit].decode() if cut else text.decode()
            for text, cut in zip(texts, self.cut[unique].tolist(), strict=True)
        ]

    def outcome(self, record: Record) -> Outcome:
        """What became of a record."""
        if record.status != OK:
            return Outcome(SKIPPED, record.reason)
        unique = int(self.intake.unique[record.index])
        if unique in self.failures:
            return Outcome(FAILED, self.failures[unique])
        if not self.placed[unique]:
            return Outcome(SKIPPED, "none of the 20 amino acids in it: no atom to place")
        if self.cut[unique]:
            return Outcome(OK, f"truncated to the first {self.limit} residues")
        if self.too_long[unique]:
            return Outcome(SKIPPED, self.why_too_long(unique))
        return Outcome(OK)

    def why_too_long(self, unique: int) -> str:
        """Why a sequence is skipped for its length."""
        what = f"{self.intake.lengths[unique]} residues, but "
        if self.limit == self.positions:
            what += f"the model has positions for {self.limit}"
        else:
            what += f"{setting('fold.max_residues')} is {self.limit}"
        if self.complexes[unique]:
            return f"{what}; fold its chains apart, or raise the limit"
        return f"{what}; set {setting('fold.long')} to truncate, or raise the limit"
