"""How sure a prediction is: pLDDT, predicted aligned error, pTM and ipTM, for each sequence.

Peer: transformers openfold_utils/loss.py, whose one pTM for a padded batch is the largest of all
and counts padding; here each sequence has its own, unchanged by what it was padded with. ipTM as
AlphaFold-Multimer's (Evans et al. 2022). Aligned errors are of residue j where the structures are
aligned on residue i: [i, j].

The bins of the aligned error, 64 numbers for each pair of residues, need not exist all at once:
`pair_confidences` makes them a few rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from esm_pipeline.model.folding.structure_module import full_precision
from esm_pipeline.model.losses import precise
from esm_pipeline.structure import residues

BINS = 64
STEP = 0.5
"""Å between the centres of the bins of aligned error: 0.25, 0.75, …, 31.75."""

MAX_ALIGNED_ERROR = (BINS - 0.5) * STEP
"""Å, the centre of the last bin: the largest error that can be predicted."""

SHORTEST = 19
"""Residues below which TM-score's length scale no longer shrinks."""

AT_ONCE = 2**24
"""Logits that `pair_confidences` makes at once, unless told how many rows."""


def plddt(logits: Tensor) -> Tensor:
    """(*, bins) scores of bins from 0 to 100 → (*), their mean in 0–100."""
    bins = logits.shape[-1]
    logits = precise(logits)
    centres = (torch.arange(bins, device=logits.device, dtype=logits.dtype) + 0.5) * (100 / bins)
    with full_precision(logits.device.type):
        mean: Tensor = logits.softmax(-1) @ centres
    return mean


def mean_plddt(by_atom: Tensor, mask: Tensor) -> Tensor:
    """(B, R, 37) pLDDT and mask (B, R) of the residues that count → (B,) mean of the C-alphas.

    Unknown residues count: they have no atoms in a file, but a prediction of how sure it is. A
    sequence without residues has nan.
    """
    shown = mask.to(by_atom.dtype)
    alpha = by_atom[..., residues.ATOM37_INDEX["CA"]] * shown
    return alpha.sum(-1) / shown.sum(-1)


def bin_centres(device: torch.device, dtype: torch.dtype) -> Tensor:
    """(64,) Å."""
    return (torch.arange(BINS, device=device, dtype=dtype) + 0.5) * STEP


def predicted_aligned_error(logits: Tensor) -> dict[str, Tensor]:
    """Logits (*, 64) → the reference's fields of its output.

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
    """For each pair of residues: error (B, R, R), expected, in Å; tm (B, R, R), expected TM-score.

    tm is that of residue j alone when aligned on i: `ptm` and `iptm` average it.
    """

    error: Tensor
    tm: Tensor


def pair_confidences(
    z: Tensor, head: Callable[[Tensor], Tensor], mask: Tensor, rows: int | None = None
) -> PairConfidences:
    """What pTM, ipTM and PAE follow from, without the probabilities of all bins at once.

    z: (B, R, R, Z). head: (*, Z) → logits (*, 64). mask: (B, R), 1 for residues that count, 0 for
    padding and for a linker between chains. rows: of R at once, so that twice B · rows · R · 64
    numbers are held beside the result; chosen if left out.
    """
    rows = rows or max(1, AT_ONCE // (BINS * mask.numel()))
    dtype = torch.promote_types(z.dtype, torch.float32)
    scores = tm_of_bins(mask.sum(-1), dtype)
    centres = bin_centres(z.device, dtype).expand_as(scores)
    values = torch.stack([centres, scores], dim=-1).unsqueeze(1)  # (B, 1, 64, 2)

    def told(some: Tensor) -> Tensor:
        logits = head(some).to(dtype)  # as precise as autocast has it
        with full_precision(z.device.type):
            return logits.softmax(-1) @ values

    parts = [told(some) for some in z.split(rows, dim=1)]
    return PairConfidences(*torch.cat(parts, dim=1).unbind(-1))  # from (B, R, R, 2)


def tm_of_bins(counts: Tensor, dtype: torch.dtype) -> Tensor:
    """(B,) residues → (B, 64) TM-score of a residue in each bin (Zhang and Skolnick 2004)."""
    scale = 1.24 * (counts.to(dtype).clamp(min=SHORTEST) - 15) ** (1 / 3) - 1.8  # d0, Å
    return 1 / (1 + (bin_centres(counts.device, dtype) / scale.unsqueeze(-1)) ** 2)


def ptm(tm: Tensor, mask: Tensor) -> Tensor:
    """(B, R, R) of `pair_confidences` and its mask (B, R) → (B,) predicted TM-scores, 0–1.

    The best over the residues aligned on of the mean over residues. A sequence without residues
    has 0.
    """
    shown = mask.bool()
    return best_mean(tm, shown.unsqueeze(-1) & shown.unsqueeze(-2))


def iptm(tm: Tensor, mask: Tensor, chains: Tensor) -> Tensor:
    """As `ptm`, over pairs of residues in different chains → (B,), nan where there is one chain.

    chains: (B, R) integers, whatever they are where the mask is 0.
    """
    between = different_chains(mask, chains)
    return best_mean(tm, between).masked_fill(~between.any((-1, -2)), math.nan)


def interchain_error(error: Tensor, mask: Tensor, chains: Tensor) -> Tensor:
    """(B, R, R) aligned error in Å → (B,) mean over pairs in different chains, nan without any."""
    between = different_chains(mask, chains)
    return (error * between).sum((-1, -2)) / between.sum((-1, -2))


def chain_errors(error: Tensor, chains: Tensor) -> Tensor:
    """(R, R) aligned error of one complex in Å and chains (R,) 0, 1, … → (chains, chains) means.

    Aligned on the chain of the row, scored on that of the column.
    """
    member = torch.nn.functional.one_hot(chains).to(error.dtype)  # (R, chains)
    sizes = member.sum(0)
    return member.T @ error @ member / (sizes.unsqueeze(1) * sizes)


def different_chains(mask: Tensor, chains: Tensor) -> Tensor:
    """(B, R) mask and chains → (B, R, R) true for pairs that count and are of different chains."""
    shown = mask.bool()
    apart = chains.unsqueeze(-1) != chains.unsqueeze(-2)
    return apart & shown.unsqueeze(-1) & shown.unsqueeze(-2)


def best_mean(tm: Tensor, pairs: Tensor) -> Tensor:
    """(B, R, R) scores and pairs that count → (B,) the best row's mean over its pairs."""
    means = (tm * pairs).sum(-1) / pairs.sum(-1).clamp(min=1)  # (B, R)
    return means.amax(-1)
