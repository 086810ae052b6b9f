"""Log-probabilities of residues from forward passes over masked copies: planned, batched, run.

A pass shows a model one sequence, or a window of it, with some residues masked or none, and is read
at some positions. Whatever needs the same pass shares it. The longest copies go first, those of one
length together, as many as fill the token budget; the head sees only the tokens that are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
import torch

from esm_pipeline.arrays import Float32, Float64, Int64
from esm_pipeline.errors import WeightsError
from esm_pipeline.formats.mutations import AMINO_ACIDS
from esm_pipeline.model import EsmForMaskedLM, PackedLayout
from esm_pipeline.model.base import EsmPreTrainedModel
from esm_pipeline.model.inference.batching import SPECIAL_TOKEN_COUNT, compute_batches
from esm_pipeline.settings.sections import ComputeSettings
from esm_pipeline.tasks.common.runner import Runner
from esm_pipeline.tasks.score import windows

CLEANED_LETTERS = AMINO_ACIDS + "BUZOX"
"""The letters of a cleaned sequence."""

ReadSequences: TypeAlias = Callable[[Int64], Sequence[str]]
"""Gives the residues of sequences by their numbers."""


@dataclass(frozen=True)
class ForwardPasses:
    """P passes, and the Q positions at which their log-probabilities are read.

    `sequence`, `start` and `stop` (P,): the number of the sequence, and the tokens of it that the
    model sees. `ends` (P + 1,): where the positions of each pass begin. `position` (Q,): tokens of
    the sequence, BOS being 0. `slot` (Q,): where the result goes, and `weight` (Q,): its share in
    the result there.
    """

    sequence: Int64
    start: Int64
    stop: Int64
    ends: Int64
    position: Int64
    slot: Int64
    weight: Float64
    masked: bool
    """Whether each position is masked in the pass that reads it."""

    def __len__(self) -> int:
        return len(self.sequence)

    @property
    def tokens(self) -> Int64:
        """(P,) tokens that each pass shows."""
        return self.stop - self.start

    def read_by(self, part: Int64) -> tuple[Int64, Int64]:
        """Indices of the positions that some passes read, and how many each reads."""
        counts = self.ends[part + 1] - self.ends[part]
        return ranges(self.ends[part], counts), counts


class MaskedLogProbs(NamedTuple):
    """Log-probabilities at M positions: their sequences, slots and weights, (M,) each.

    `wild_type` (M,) are the tokens there, `log_p` (M, V) natural logarithms over the whole
    vocabulary; NaN where not even one pass fits into memory (`fits`). `tokens` is the number shown.
    """

    sequence: Int64
    slot: Int64
    weight: Float64
    wild_type: Int64
    log_p: Float32
    tokens: int
    fits: bool = True


class LanguageModel(Runner[EsmForMaskedLM]):
    """A checkpoint that predicts residues; `passes` counts the forward passes that were run."""

    model_class = EsmForMaskedLM
    passes = 0

    def __init__(
        self, model: str | EsmPreTrainedModel, revision: str | None, settings: ComputeSettings
    ) -> None:
        super().__init__(model, revision, settings)
        vocabulary = self.tokenizer.get_vocab()
        missing = [letter for letter in sorted(CLEANED_LETTERS) if letter not in vocabulary]
        if missing:
            raise WeightsError(
                f"{self.checkpoint.name}: the vocabulary has no token for residue {missing[0]}; "
                "choose a model with the ESM alphabet"
            )

    def letters(self) -> Int64:
        """(256,) token of each residue by its ASCII code."""
        table = np.full(256, self.tokenizer.unk_token_id)
        for letter in CLEANED_LETTERS:
            table[ord(letter)] = self.tokenizer.convert_tokens_to_ids(letter)
        return table

    def amino_acids(self) -> Int64:
        """(20,) tokens of the amino acids, in alphabetical order of their letters."""
        return self.letters()[np.frombuffer(AMINO_ACIDS.encode(), np.uint8)]

    def run_passes(
        self, passes: ForwardPasses, read: ReadSequences, token_budget: int
    ) -> Iterator[MaskedLogProbs]:
        """Run all `passes`, batch by batch."""

        def compute(part: Int64) -> MaskedLogProbs:
            return self._run(passes, part, read)

        lengths = passes.tokens - SPECIAL_TOKEN_COUNT
        for part, found in compute_batches(lengths, token_budget, compute, self.device):
            if found is None:
                yield self._no_memory(passes, part)
            else:
                self.passes += len(part)
                yield found

    @torch.inference_mode()
    def _run(self, passes: ForwardPasses, part: Int64, read: ReadSequences) -> MaskedLogProbs:
        """Run the passes `part` together. Raises what PyTorch raises when memory runs out."""
        numbers, which = np.unique(passes.sequence[part], return_inverse=True)
        ids = [self.tokenizer.encode_residues(sequence) for sequence in read(numbers)]
        starts, stops = passes.start[part], passes.stop[part]
        spans = zip(which.tolist(), starts.tolist(), stops.tolist(), strict=True)
        tokens = np.concatenate([ids[one][start:stop] for one, start, stop in spans])  # (T,)
        lengths = stops - starts
        firsts = np.cumsum(lengths) - lengths
        read_at, counts = passes.read_by(part)
        rows = passes.position[read_at] + np.repeat(firsts - starts, counts)  # (M,)
        wild_type = tokens[rows]
        if passes.masked:
            tokens[rows] = self.tokenizer.mask_token_id
        layout = PackedLayout.from_lengths(lengths.tolist(), self.device)
        with self.timed():
            logits = self.model.packed_logits(
                torch.from_numpy(tokens).to(self.device),
                layout,
                torch.from_numpy(rows).to(self.device),
            )
            log_p = logits.float().log_softmax(-1).cpu().numpy()  # (M, V)
        sequence = np.repeat(passes.sequence[part], counts)
        slot, weight = passes.slot[read_at], passes.weight[read_at]
        return MaskedLogProbs(sequence, slot, weight, wild_type, log_p, len(tokens))

    def _no_memory(self, passes: ForwardPasses, part: Int64) -> MaskedLogProbs:
        """In place of log-probabilities that memory had no room for."""
        read_at, counts = passes.read_by(part)
        sequence = np.repeat(passes.sequence[part], counts)
        slot, weight = passes.slot[read_at], passes.weight[read_at]
        log_p = np.full((len(slot), len(self.tokenizer)), np.nan, np.float32)
        shown = int(passes.tokens[part[0]])
        unknown = np.zeros(len(slot), np.int64)
        return MaskedLogProbs(sequence, slot, weight, unknown, log_p, shown, fits=False)


Ensemble: TypeAlias = Mapping[str, LanguageModel]
"""Models by their labels."""


def one_masked(
    sequence: Int64, position: Int64, slot: Int64, tokens: Int64, window: int
) -> ForwardPasses:
    """A pass for each position (P,), with that one masked; all arguments but the window are (P,).

    `tokens` are those of the position's sequence; with a `window` that is not 0, a position in a
    longer sequence is seen in its optimal window.
    """
    count = np.arange(len(position) + 1)
    start, stop = np.zeros_like(tokens), tokens
    if window:
        start, stop = windows.optimal(position, tokens, window)
    weight = np.ones(len(position))
    return ForwardPasses(sequence, start, stop, count, position, slot, weight, True)


def together_masked(
    sequence: Int64, ends: Int64, position: Int64, tokens: Int64, window: int
) -> ForwardPasses:
    """A pass for each set of positions, all masked at once; each position has its own slot.

    Set i has the positions `ends[i]` to `ends[i + 1]`, ascending, of a sequence of `tokens[i]`.
    With a `window`, the set is seen in the optimal window of its middle, which has to hold it.
    """
    start, stop = np.zeros_like(tokens), tokens
    if window:
        start, stop = set_windows(ends, position, tokens, window)
    slot, weight = np.arange(len(position)), np.ones(len(position))
    return ForwardPasses(sequence, start, stop, ends, position, slot, weight, True)


def set_windows(ends: Int64, position: Int64, tokens: Int64, window: int) -> tuple[Int64, Int64]:
    """Starts and stops of the windows around the middles (rounded up) of sets of positions."""
    middle = (position[ends[:-1]] + position[ends[1:] - 1] + 1) // 2
    return windows.optimal(middle, tokens, window)


def unmasked(
    sequence: Int64, position: Int64, slot: Int64, tokens: Int64, window: int
) -> ForwardPasses:
    """A pass for each sequence, nothing masked; arguments as in `one_masked`, positions ascending.

    With a `window`, longer sequences are seen in overlapping windows, and the log-probabilities of
    a position are weighted over its windows.
    """
    first = np.flatnonzero(np.diff(sequence, prepend=-1))
    ends = np.append(first, len(position))
    if window and (tokens > window).any():
        return _in_overlapping_windows(sequence, ends, position, slot, tokens, window)
    start, ones = np.zeros(len(first), np.int64), np.ones(len(position))
    return ForwardPasses(sequence[first], start, tokens[first], ends, position, slot, ones, False)


def _in_overlapping_windows(
    sequence: Int64, ends: Int64, position: Int64, slot: Int64, tokens: Int64, window: int
) -> ForwardPasses:
    """A pass for each window of each sequence, those of sequence i from position `ends[i]` on."""
    spans: list[tuple[int, int, int]] = []
    read_at: list[Int64] = []
    weights: list[Float64] = []
    for begin, end in pairwise(ends.tolist()):
        found = windows.overlapping(int(tokens[begin]), window)
        inside, shares = window_shares(position[begin:end], found, int(tokens[begin]), window)
        for (start, stop), indices, share in zip(found, inside, shares, strict=True):
            if len(indices):
                spans.append((int(sequence[begin]), start, stop))
                read_at.append(begin + indices)
                weights.append(share)
    numbers, starts, stops = np.array(spans, np.int64).T
    index, counts = np.concatenate(read_at), np.cumsum([0, *map(len, read_at)])
    return ForwardPasses(
        *(numbers, starts, stops, counts, position[index], slot[index]),
        np.concatenate(weights),
        False,
    )


def window_shares(
    position: Int64, spans: list[tuple[int, int]], tokens: int, window: int
) -> tuple[list[Int64], list[Float64]]:
    """For each window over a sequence: which positions it holds, and its share in each of them."""
    inside = [np.flatnonzero((position >= start) & (position < stop)) for start, stop in spans]
    curve = windows.weights(window) if tokens > window else np.ones(tokens)
    shares = [curve[position[one] - start] for one, (start, _) in zip(inside, spans, strict=True)]
    total = np.zeros(len(position))
    for one, share in zip(inside, shares, strict=True):
        total[one] += share
    return inside, [share / total[one] for one, share in zip(inside, shares, strict=True)]


def ranges(starts: Int64, counts: Int64) -> Int64:
    """`counts[0]` numbers from `starts[0]` on, then `counts[1]` from `starts[1]`, and so on."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - ends + counts, counts) + np.arange(total)
