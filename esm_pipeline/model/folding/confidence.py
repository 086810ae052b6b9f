"""Confidence of predictions: pLDDT, predicted aligned error, pTM and ipTM of each sequence.

Peer: transformers openfold_utils/loss.py, which gives a padded batch one pTM, the largest of all,
and counts padding; here each sequence has its own, which does not depend on padding. ipTM is that
of AlphaFold-Multimer (Evans et al. 2022). The aligned error at [i, j] is that of residue j when the
structures are aligned on residue i.

`pair_confidences` computes the 64 bins of the aligned error for a few rows of pairs at a time, so
that they are never all in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from esm_pipeline.footprint import BINS, LOGITS_AT_ONCE
from esm_pipeline.model.folding.structure_module import full_precision
from esm_pipeline.model.losses import precise
from esm_pipeline.structure import residues

BIN_WIDTH = 0.5
"""Å between the centres of the bins of aligned error: 0.25, 0.75, …, 31.75."""

MAX_ALIGNED_ERROR = (BINS - 0.5) * BIN_WIDTH
"""Å, the centre of the last bin: the largest error that can be predicted."""

SHORTEST = 19
"""Length in residues below which the length scale of the TM-score no longer shrinks."""


def plddt(logits: Tensor) -> Tensor:
    """Logits (*, bins) of bins from 0 to 100 → (*): their mean, 0–100."""
    bins = logits.shape[-1]
    logits = precise(logits)
    centres = (torch.arange(bins, device=logits.device, dtype=logits.dtype) + 0.5) * (100 / bins)
    with full_precision(logits.device.type):
        mean: Tensor = logits.softmax(-1) @ centres
    return mean


def mean_plddt(by_atom: Tensor, mask: Tensor) -> Tensor:
    """pLDDT (B, R, 37) and mask (B, R) of the residues that count → (B,): mean over C-alphas.

    Unknown residues count: they have no atoms in a file, but a predicted confidence. The mean of a
    sequence without residues is nan.
    """
    counted = mask.to(by_atom.dtype)
    alpha = by_atom[..., residues.ATOM37_INDEX["CA"]] * counted
    return alpha.sum(-1) / counted.sum(-1)


def bin_centres(device: torch.device, dtype: torch.dtype) -> Tensor:
    """(64,) centres of the bins in Å."""
    return (torch.arange(BINS, device=device, dtype=dtype) + 0.5) * BIN_WIDTH


def predicted_aligned_error(logits: Tensor) -> dict[str, Tensor]:
    """Logits (*, 64) → fields of the reference's output.

    `aligned_confidence_probs` (*, 64), `predicted_aligned_error` (*) in Å, and
    `max_predicted_aligned_error` (), 31.75 Å.
    """
    probabilities = precise(logits).softmax(-1)
    centres = bin_centres(logits.device, probabilities.dtype)
    with full_precision(logits.device.type):
        error = probabilities @ centres
    return {
        "aligned_confidence_probs": probabilities,
        "predicted_aligned_error": error,
        "max_predicted_aligned_error": centres[-1],
    }


class PairConfidences(NamedTuple):
    """For each pair of residues: expected error (B, R, R) in Å and TM-score tm (B, R, R).

    tm is the score of residue j alone, aligned on i: `ptm` and `iptm` average it.
    """

    error: Tensor
    tm: Tensor


def pair_confidences(
    z: Tensor, head: Callable[[Tensor], Tensor], mask: Tensor, rows: int | None = None
) -> PairConfidences:
    """The basis of pTM, ipTM and PAE, without the probabilities of all bins at once.

    z: (B, R, R, Z). head: (*, Z) → logits (*, 64). mask: (B, R), 1 for residues that count, 0 for
    padding and linkers. rows: rows of pairs at a time, which take 2 · B · rows · R · 64 numbers;
    chosen by default.
    """
    rows = rows or max(1, LOGITS_AT_ONCE // (BINS * mask.numel()))
    dtype = torch.promote_types(z.dtype, torch.float32)
    scores = tm_of_bins(mask.sum(-1), dtype)
    centres = bin_centres(z.device, dtype).expand_as(scores)
    values = torch.stack([centres, scores], dim=-1).unsqueeze(1)  # (B, 1, 64, 2)

    def expected(some: Tensor) -> Tensor:
        logits = head(some).to(dtype)  # the head itself may run under autocast
        with full_precision(z.device.type):
            return logits.softmax(-1) @ values

    parts = [expected(some) for some in z.split(rows, dim=1)]
    return PairConfidences(*torch.cat(parts, dim=1).unbind(-1))  # from (B, R, R, 2)


def tm_of_bins(counts: Tensor, dtype: torch.dtype) -> Tensor:
    """Residues (B,) → (B, 64): TM-score of a residue in each bin (Zhang and Skolnick 2004)."""
    scale = 1.24 * (counts.to(dtype).clamp(min=SHORTEST) - 15) ** (1 / 3) - 1.8  # d0, Å
    return 1 / (1 + (bin_centres(counts.device, dtype) / scale.unsqueeze(-1)) ** 2)


def ptm(tm: Tensor, mask: Tensor) -> Tensor:
    """tm (B, R, R) of `pair_confidences` and its mask (B, R) → (B,): predicted TM-scores, 0–1.

    The mean over residues, for the alignment with the best mean; 0 for a sequence without residues.
    """
    counted = mask.bool()
    return best_mean(tm, counted.unsqueeze(-1) & counted.unsqueeze(-2))


def iptm(tm: Tensor, mask: Tensor, chains: Tensor) -> Tensor:
    """As `ptm`, but only over pairs in different chains → (B,), nan for a single chain.

    chains: (B, R) integers; ignored where the mask is 0.
    """
    between = different_chains(mask, chains)
    return best_mean(tm, between).masked_fill(~between.any((-1, -2)), math.nan)


def chain_iptm(tm: Tensor, mask: Tensor, chains: Tensor) -> Tensor:
    """As `iptm`, but over the pairs of residues of two chains at a time → (B, C, C), C chains.

    Symmetric; nan for a chain with itself, and for chains that a sequence does not have. For two
    chains it is their `iptm`.
    """
    count = int(chains.max()) + 1
    own = torch.nn.functional.one_hot(chains, count).to(tm.dtype) * mask.unsqueeze(-1).to(tm.dtype)
    means = (tm @ own) / own.sum(1, keepdim=True).clamp(min=1)  # (B, R, C): of i to each chain
    found = tm.new_full((len(tm), count, count), math.nan)
    for one in range(count):
        there = own[..., one].bool().unsqueeze(-1)
        best = means.masked_fill(~there, -1).amax(1)  # (B, C), of the residues of one chain
        found[:, one] = best
    found = torch.maximum(found, found.transpose(1, 2))
    size = own.sum(1)
    known = (size.unsqueeze(1) > 0) & (size.unsqueeze(2) > 0)
    known &= ~torch.eye(count, dtype=torch.bool, device=tm.device)
    return found.masked_fill(~known, math.nan)


def interchain_error(error: Tensor, mask: Tensor, chains: Tensor) -> Tensor:
    """Aligned error (B, R, R) in Å → (B,): mean over pairs in different chains, nan without any."""
    between = different_chains(mask, chains)
    return (error * between).sum((-1, -2)) / between.sum((-1, -2))


def different_chains(mask: Tensor, chains: Tensor) -> Tensor:
    """Mask and chains (B, R) → (B, R, R): true for pairs that count, in different chains."""
    counted = mask.bool()
    apart = chains.unsqueeze(-1) != chains.unsqueeze(-2)
    return apart & counted.unsqueeze(-1) & counted.unsqueeze(-2)


def best_mean(tm: Tensor, pairs: Tensor) -> Tensor:
    """Scores and pairs that count (B, R, R) → (B,): the best mean of a row over its pairs."""
    means = (tm * pairs).sum(-1) / pairs.sum(-1).clamp(min=1)  # (B, R)
    return means.amax(-1)
