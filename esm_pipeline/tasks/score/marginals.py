"""Log-probabilities of residues from passes over masked copies: planned, batched, computed.

A pass shows a model one sequence, or a window of it, with some residues masked or none, and is
asked for the probabilities at some places. Whatever wants the same pass shares it. Copies go
longest first, those of one length side by side, as many as fill the token budget; the head sees
the wanted tokens alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from esm_pipeline.arrays import Float32, Float64, Int64
from esm_pipeline.errors import WeightsError
from esm_pipeline.formats.mutations import AMINO_ACIDS
from esm_pipeline.model import EsmForMaskedLM, PackedLayout
from esm_pipeline.model.inference import windows
from esm_pipeline.model.inference.batching import compute_batches
from esm_pipeline.model.inference.windows import SPECIAL_TOKENS
from esm_pipeline.settings.sections import ComputeSettings
from esm_pipeline.tasks.common.runner import Runner

LETTERS = AMINO_ACIDS + "BUZOX"
"""What a cleaned sequence is made of."""

Read = Callable[[Int64], Sequence[str]]
"""Gives the residues of sequences by their numbers."""


@dataclass(frozen=True)
class Passes:
    """P passes, and the Q places at which they are asked.

    `sequence`, `start` and `stop` (P,): the sequence by its number, and the tokens of it that the
    model sees. `ends` (P + 1,): where the places of each pass begin. `place` (Q,): tokens of the
    sequence, BOS being 0. `slot` (Q,): where the answer goes, and `weight` (Q,): how much of it.
    """

    sequence: Int64
    start: Int64
    stop: Int64
    ends: Int64
    place: Int64
    slot: Int64
    weight: Float64
    masked: bool
    """Whether a place is masked in the pass that is asked about it."""

    def __len__(self) -> int:
        return len(self.sequence)

    def asked(self, part: Int64) -> tuple[Int64, Int64]:
        """Indices of the places of some passes, and how many each has."""
        counts = self.ends[part + 1] - self.ends[part]
        return ranges(self.ends[part], counts), counts


class Answers(NamedTuple):
    """What some passes tell of M places: numbers of their sequences, slots and weights, (M,) each.

    `wild_type` (M,) are the tokens there, `log_p` (M, V) natural logarithms over the whole
    vocabulary; NaN where the one pass did not fit into memory. `tokens` were shown in all.
    """

    sequence: Int64
    slot: Int64
    weight: Float64
    wild_type: Int64
    log_p: Float32
    tokens: int
    fits: bool = True


class LanguageModel(Runner[EsmForMaskedLM]):
    """A checkpoint that predicts residues; `passes` counts those that were run."""

    model_class = EsmForMaskedLM
    passes = 0

    def __init__(self, name: str, revision: str | None, settings: ComputeSettings) -> None:
        super().__init__(name, revision, settings)
        missing = [letter for letter in sorted(LETTERS) if letter not in self.tokenizer.get_vocab()]
        if missing:
            raise WeightsError(
                f"{self.checkpoint.name}: the vocabulary has no token for residue {missing[0]}; "
                "choose a model with the ESM alphabet"
            )

    def letters(self) -> Int64:
        """(256,) token of each residue by its ASCII code."""
        table = np.full(256, self.tokenizer.unk_token_id)
        for letter in LETTERS:
            table[ord(letter)] = self.tokenizer.convert_tokens_to_ids(letter)
        return table

    def amino_acids(self) -> Int64:
        """(20,) tokens of the amino acids, in alphabetical order of their letters."""
        return self.letters()[np.frombuffer(AMINO_ACIDS.encode(), np.uint8)]

    def ask(self, passes: Passes, read: Read, token_budget: int) -> Iterator[Answers]:
        """Run all `passes`, batch by batch."""

        def compute(part: Int64) -> Answers:
            return self._answers(passes, part, read)

        lengths = passes.stop - passes.start - SPECIAL_TOKENS
        for part, answers in compute_batches(lengths, token_budget, compute, self.device):
            if answers is None:
                yield self._none(passes, part)
            else:
                self.passes += len(part)
                yield answers

    @torch.inference_mode()
    def _answers(self, passes: Passes, part: Int64, read: Read) -> Answers:
        """What the passes `part` tell. Raises what PyTorch raises when memory runs out."""
        numbers, which = np.unique(passes.sequence[part], return_inverse=True)
        ids = [self.tokenizer.encode_residues(sequence) for sequence in read(numbers)]
        starts, stops = passes.start[part], passes.stop[part]
        spans = zip(which.tolist(), starts.tolist(), stops.tolist(), strict=True)
        tokens = np.concatenate([ids[one][start:stop] for one, start, stop in spans])
        lengths = stops - starts
        firsts = np.cumsum(lengths) - lengths
        asked, counts = passes.asked(part)
        rows = passes.place[asked] + np.repeat(firsts - starts, counts)
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
        sequence, count = np.repeat(passes.sequence[part], counts), len(tokens)
        return Answers(sequence, passes.slot[asked], passes.weight[asked], wild_type, log_p, count)

    def _none(self, passes: Passes, part: Int64) -> Answers:
        """In place of answers that memory had no room for."""
        asked, counts = passes.asked(part)
        log_p = np.full((len(asked), len(self.tokenizer)), np.nan, np.float32)
        unknown, count = (
            np.zeros(len(asked), np.int64),
            int(passes.stop[part[0]] - passes.start[part[0]]),
        )
        sequence = np.repeat(passes.sequence[part], counts)
        return Answers(
            sequence, passes.slot[asked], passes.weight[asked], unknown, log_p, count, fits=False
        )


def one_masked(sequence: Int64, place: Int64, slot: Int64, tokens: Int64, window: int) -> Passes:
    """A pass for each place (P,), with it alone masked; all arguments but the window are (P,).

    `tokens` are those of the place's sequence; with a `window` that is not 0, a place in a longer
    sequence is seen in its optimal window.
    """
    count = np.arange(len(place) + 1)
    start, stop = np.zeros_like(tokens), tokens
    if window:
        start, stop = windows.optimal(place, tokens, window)
    return Passes(sequence, start, stop, count, place, slot, np.ones(len(place)), True)


def together_masked(
    sequence: Int64, ends: Int64, place: Int64, tokens: Int64, window: int
) -> Passes:
    """A pass for each set of places, all masked at once, each with a slot of its own.

    Set i has the places `ends[i]` to `ends[i + 1]`, ascending, of a sequence of `tokens[i]`. With a
    `window`, the set is seen in the optimal window of its middle, which has to hold it.
    """
    start, stop = np.zeros_like(tokens), tokens
    if window:
        start, stop = set_windows(ends, place, tokens, window)
    slot, weight = np.arange(len(place)), np.ones(len(place))
    return Passes(sequence, start, stop, ends, place, slot, weight, True)


def set_windows(ends: Int64, place: Int64, tokens: Int64, window: int) -> tuple[Int64, Int64]:
    """Starts and stops of the windows around the middles of sets of places, rounded up."""
    middle = (place[ends[:-1]] + place[ends[1:] - 1] + 1) // 2
    return windows.optimal(middle, tokens, window)


def unmasked(sequence: Int64, place: Int64, slot: Int64, tokens: Int64, window: int) -> Passes:
    """A pass for each sequence, nothing masked; arguments as of `one_masked`, places ascending.

    With a `window`, longer sequences are seen in overlapping windows, and what those tell of a
    place is weighted.
    """
    first = np.flatnonzero(np.diff(sequence, prepend=-1))
    ends = np.append(first, len(place))
    if window and (tokens > window).any():
        return _in_overlapping_windows(sequence, ends, place, slot, tokens, window)
    start, ones = np.zeros(len(first), np.int64), np.ones(len(place))
    return Passes(sequence[first], start, tokens[first], ends, place, slot, ones, False)


def _in_overlapping_windows(
    sequence: Int64, ends: Int64, place: Int64, slot: Int64, tokens: Int64, window: int
) -> Passes:
    """A pass for each window of each sequence, those of sequence i from place `ends[i]` on."""
    spans: list[tuple[int, int, int]] = []
    asked: list[Int64] = []
    weight = []
    for begin, end in pairwise(ends.tolist()):
        found = windows.overlapping(int(tokens[begin]), window)
        inside, shares = shares_of(place[begin:end], found, int(tokens[begin]), window)
        for (start, stop), places, share in zip(found, inside, shares, strict=True):
            if len(places):
                spans.append((int(sequence[begin]), start, stop))
                asked.append(begin + places)
                weight.append(share)
    index, counts = np.concatenate(asked), np.cumsum([0, *map(len, asked)])
    numbers, starts, stops = np.array(spans, np.int64).T
    weights = np.concatenate(weight)
    return Passes(numbers, starts, stops, counts, place[index], slot[index], weights, False)


def shares_of(
    place: Int64, spans: list[tuple[int, int]], tokens: int, window: int
) -> tuple[list[Int64], list[Float64]]:
    """Of each window over a sequence, which places it has and its share in what is told of each."""
    inside = [np.flatnonzero((place >= start) & (place < stop)) for start, stop in spans]
    curve = windows.weights(window) if tokens > window else np.ones(tokens)
    shares = [curve[place[one] - start] for one, (start, _) in zip(inside, spans, strict=True)]
    total = np.zeros(len(place))
    for one, share in zip(inside, shares, strict=True):
        total[one] += share
    return inside, [share / total[one] for one, share in zip(inside, shares, strict=True)]


def ranges(starts: Int64, counts: Int64) -> Int64:
    """`counts[0]` numbers from `starts[0]` on, then `counts[1]` from `starts[1]`, and so on."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - ends + counts, counts) + np.arange(total)
