"""Which unique sequences and complexes are folded, and the outcome of every record."""

from __future__ import annotations

import numpy as np

from esm_pipeline.arrays import Bool, Int64
from esm_pipeline.errors import InputError, setting
from esm_pipeline.formats.records import OK, SKIPPED, Outcome
from esm_pipeline.settings.sections import FoldSettings
from esm_pipeline.structure.residues import LETTERS, UNKNOWN
from esm_pipeline.tasks.common.cleaning import CHAIN_BREAK
from esm_pipeline.tasks.common.plan import LengthPolicy, SequencePlan
from esm_pipeline.tasks.common.unique_sequences import UniqueSequences

FOLD = "fold"
FOLDED_LETTERS = LETTERS[:UNKNOWN].encode()


def fold_policy(positions: int | None, settings: FoldSettings) -> LengthPolicy:
    """How long sequences are handled, under the model's positions and `fold.max_residues`.

    Raises InputError for `full` where there is a limit.
    """
    limits = [limit for limit in (positions, settings.max_residues) if limit]
    if limits and settings.long == "full":
        raise InputError(
            f"{setting('fold.long')} is 'full', but there is a limit of {min(limits)} "
            "residues; set it to skip or truncate"
        )
    return LengthPolicy.choose(FOLD, limits, settings.long)


class FoldPlan(SequencePlan):
    """The unique sequences and complexes to fold; `failures` are noted as they happen.

    `breaks` (U,) counts the chain breaks of each. Complexes are never truncated, and sequences
    without any of the 20 amino acids are skipped. `positions` is the most residues that the model
    has positions for, None without a limit.
    """

    def __init__(
        self, sequence_set: UniqueSequences, policy: LengthPolicy, positions: int | None
    ) -> None:
        texts = sequence_set.sequences(np.arange(len(sequence_set.lengths)))
        facts = [
            (text.count(CHAIN_BREAK), len(text.translate(None, FOLDED_LETTERS)) < len(text))
            for text in texts
        ]
        self.breaks, has_atoms = np.array(facts, np.int64).reshape(-1, 2).T  # (U,) each
        self.has_atoms = has_atoms.astype(bool)
        self.positions = positions
        super().__init__(sequence_set, policy, untruncatable=self.breaks > 0)

    @property
    def sizes(self) -> Int64:
        """(U,) residues as the model counts them, with the linkers between chains."""
        from esm_pipeline.model.folding.complexes import LINKER

        return self.lengths + len(LINKER) * self.breaks

    @property
    def skipped(self) -> Bool:
        """(U,) sequences that are not folded."""
        skipped: Bool = super().skipped | ~self.has_atoms
        return skipped

    def outcome_unless_failed(self, unique: int) -> Outcome:
        """The outcome for a unique sequence, if nothing fails."""
        if not self.has_atoms[unique]:
            return Outcome(SKIPPED, "none of the 20 amino acids in it: no atom to place")
        if self.truncated[unique]:
            return Outcome(OK, f"truncated to the first {self.policy.limit} residues")
        if self.too_long[unique]:
            return Outcome(SKIPPED, self.why_too_long(unique))
        return Outcome(OK)

    def why_too_long(self, unique: int) -> str:
        """Why a sequence is skipped for its length."""
        limit = self.policy.limit
        what = f"{self.sequence_set.lengths[unique]} residues, but "
        if limit == self.positions:
            what += f"the model has positions for {limit}"
        else:
            what += f"{setting('fold.max_residues')} is {limit}"
        if self.breaks[unique]:
            return f"{what}; fold its chains apart, or raise the limit"
        return f"{what}; set {setting('fold.long')} to truncate, or raise the limit"
