"""Which unique sequences and complexes are folded, and the outcome of every record."""

from __future__ import annotations

import numpy as np

from esm_pipeline.arrays import Bool, Int64
from esm_pipeline.errors import InputError, setting
from esm_pipeline.formats.records import OK, SKIPPED, Outcome
from esm_pipeline.settings.sections import FoldSettings
from esm_pipeline.structure.residues import APPROXIMATED_AS, LETTERS, UNKNOWN, folded_sequence
from esm_pipeline.tasks.common.cleaning import CHAIN_BREAK
from esm_pipeline.tasks.common.plan import LengthPolicy, SequencePlan
from esm_pipeline.tasks.common.unique_sequences import UniqueSequences

FOLD = "fold"
USUAL_LETTERS = LETTERS[:UNKNOWN].encode() + CHAIN_BREAK
"""The 20 amino acids, which are folded as they are."""


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


def changes_of(sequence: str, folded: str) -> str:
    """What is folded as another amino acid, and what has no atoms; both have `:` between chains."""
    found: dict[str, list[int]] = {}
    for place, (given, own) in enumerate(zip(sequence, folded, strict=True)):
        if given != own or own not in LETTERS[:UNKNOWN] + CHAIN_BREAK.decode():
            found.setdefault(given, []).append(place)
    parts = []
    for letter, places in sorted(found.items()):
        before = sequence[: places[0]].split(CHAIN_BREAK.decode())
        where = f"{letter} at residue {len(before[-1]) + 1}"
        where += f" of chain {len(before)}" if CHAIN_BREAK.decode() in sequence else ""
        where += f" and {len(places) - 1} more" if len(places) > 1 else ""
        own = folded[places[0]]
        if own != letter:
            parts.append(f"{where} folded as {own}")
        elif other := APPROXIMATED_AS.get(letter):
            remedy = f"set {setting('fold.ambiguous')} to approximate to fold {letter} as {other}"
            parts.append(f"{where} left out, without atoms ({remedy})")
        else:
            parts.append(f"{where} left out, without atoms")
    return "; ".join(parts)


class FoldPlan(SequencePlan):
    """The unique sequences and complexes to fold; `failures` are noted as they happen.

    `breaks` (U,) counts the chain breaks of each. Complexes are never truncated, and sequences
    without a residue that has atoms are skipped. `positions` is the most residues that the model
    has positions for, None without a limit; `ambiguous` is the setting of that name.
    """

    def __init__(
        self,
        sequence_set: UniqueSequences,
        policy: LengthPolicy,
        positions: int | None,
        ambiguous: str = "omit",
    ) -> None:
        self.positions, self.changes = positions, dict[int, str]()
        size = len(sequence_set.lengths)
        self.breaks, self.has_atoms = np.zeros(size, np.int64), np.ones(size, bool)  # (U,) each
        cut = policy.cut if policy.long == "truncate" else None
        for unique, text in enumerate(sequence_set.sequences(np.arange(size))):
            self.breaks[unique] = text.count(CHAIN_BREAK)
            if text.translate(None, USUAL_LETTERS):
                sequence = (text if self.breaks[unique] else text[:cut]).decode()
                folded = folded_sequence(sequence, approximate=ambiguous == "approximate")
                self.has_atoms[unique] = any(letter in folded for letter in LETTERS[:UNKNOWN])
                self.changes[unique] = changes_of(sequence, folded)
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
        changes = self.changes.get(unique, "")
        if self.truncated[unique]:
            what = f"truncated to the first {self.policy.limit} residues"
            return Outcome(OK, "; ".join(filter(None, (what, changes))))
        if self.too_long[unique]:
            return Outcome(SKIPPED, self.why_too_long(unique))
        return Outcome(OK, changes)

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
