"""Scores of variants by transformers, one masked copy at a time: plain, slow, obviously right.

Windows are written out here as ProteinGym's loops have them, a token at a time.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import torch
import transformers

LETTERS = "LAGVSERTIDPKQNFYMHWCXBUZO"
CLS, EOS, FIRST, MASK = 0, 2, 4, 32
AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"

Substitutions = list[tuple[int, str]]
"""Residues, from 0, and what they become."""


def token(letter: str) -> int:
    return FIRST + LETTERS.index(letter)


class Oracle:
    """One model; `window` tokens are seen at once, 0 for all."""

    def __init__(self, folder: Path, window: int = 0) -> None:
        self.model = transformers.EsmForMaskedLM.from_pretrained(folder).double().eval()
        self.window = window

    def log_p(self, tokens: list[int]) -> torch.Tensor:
        """(L, V) log-probabilities at every token."""
        with torch.no_grad():
            logits = self.model(torch.tensor([tokens])).logits[0]
        return logits.log_softmax(-1)

    @cache  # noqa: B019
    def masked(self, sequence: str, residues: tuple[int, ...], around: int | None = None) -> list:
        """(V,) log-probabilities at each of `residues`, all of them masked at once."""
        tokens = [CLS, *map(token, sequence), EOS]
        places = [residue + 1 for residue in residues]
        for place in places:
            tokens[place] = MASK
        start, stop = 0, len(tokens)
        if self.window and len(tokens) > self.window:
            middle = places[0] if around is None else around
            start, stop = optimal(middle, len(tokens), self.window)
        found = self.log_p(tokens[start:stop])
        return [found[place - start] for place in places]

    @cache  # noqa: B019
    def unmasked(self, sequence: str) -> torch.Tensor:
        """(R, V) log-probabilities at every residue."""
        tokens = [CLS, *map(token, sequence), EOS]
        if not self.window or len(tokens) <= self.window:
            return self.log_p(tokens)[1:-1]
        total = torch.zeros(len(tokens), 33, dtype=torch.float64)
        weight = torch.zeros(len(tokens), dtype=torch.float64)
        curve = torch.tensor(ramp(self.window), dtype=torch.float64)
        for start in overlapping(len(tokens), self.window):
            span = slice(start, start + self.window)
            total[span] += self.log_p(tokens[span]) * curve[:, None]
            weight[span] += curve
        return (total / weight[:, None])[1:-1]

    def masked_marginal(self, wild_type: str, mutations: Substitutions) -> float:
        score = 0.0
        for residue, letter in mutations:
            (log_p,) = self.masked(wild_type, (residue,))
            score += float(log_p[token(letter)] - log_p[token(wild_type[residue])])
        return score

    def masked_marginal_joint(self, wild_type: str, mutations: Substitutions) -> float:
        if not mutations:
            return 0.0
        residues = tuple(sorted(residue for residue, _ in mutations))
        middle = (residues[0] + 1 + residues[-1] + 1 + 1) // 2
        found = dict(zip(residues, self.masked(wild_type, residues, middle), strict=True))
        return sum(
            float(found[residue][token(letter)] - found[residue][token(wild_type[residue])])
            for residue, letter in mutations
        )

    def wt_marginal(self, wild_type: str, mutations: Substitutions) -> float:
        found = self.unmasked(wild_type)
        return sum(
            float(found[residue][token(letter)] - found[residue][token(wild_type[residue])])
            for residue, letter in mutations
        )

    def pseudo_log_likelihood(self, sequence: str) -> float:
        return sum(
            float(self.masked(sequence, (residue,))[0][token(letter)])
            for residue, letter in enumerate(sequence)
        )

    def saturation(self, wild_type: str, strategy: str) -> list[list[float]]:
        """(R, 20), each cell as a variant of its own."""
        score = getattr(self, strategy)
        return [
            [score(wild_type, [(residue, letter)]) for letter in AMINO_ACIDS]
            for residue in range(len(wild_type))
        ]


def optimal(place: int, tokens: int, window: int) -> tuple[int, int]:
    half = window // 2
    if place < half:
        return 0, window
    if place >= tokens - half:
        return tokens - window, tokens
    return place - half, place + half


def overlapping(tokens: int, window: int) -> list[int]:
    """Starts of the windows, of `window` tokens each."""
    found = []
    left, right = 0, tokens - window
    while True:
        found += [left, right]
        left_end = left + window - 1
        if left_end > right:
            break
        left, right = left + window // 2 - 1, right - (window // 2 - 1)
    if left_end - right + 1 < window // 2 - 1:
        found.append(tokens // 2 - window // 2)
    return found


def ramp(window: int) -> list[float]:
    """256, 128 and 16 of 1,024 tokens, in proportion."""
    weights = [1.0] * window
    for i in range(1, window // 4 + 1):
        weights[i] = 1 / (1 + math.exp(-(i - window / 8) / (window / 64)))
    for i in range(window - 2 - window // 4, window - 1):
        weights[i] = 1 / (1 + math.exp((i - (window - 2) + window / 8) / (window / 64)))
    return weights
