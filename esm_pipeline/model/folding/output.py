"""Output of folding. Peer: transformers `EsmForProteinFoldingOutput`, whose fields come first."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from esm_pipeline.model.outputs import ModelOutput

PER_BLOCK = (
    *("frames", "sidechain_frames", "unnormalized_angles", "angles", "positions", "states"),
    "lddt_head",
)
PER_RESIDUE = (
    *("s_s", "lm_logits", "aatype", "atom14_atom_exists", "residx_atom14_to_atom37"),
    *("residx_atom37_to_atom14", "atom37_atom_exists", "residue_index", "plddt"),
    *("chain_index", "attention_mask"),
)
PER_PAIR = (
    *("s_z", "distogram_logits", "ptm_logits", "aligned_confidence_probs"),
    "predicted_aligned_error",
)
"""Fields by their first dimensions: (n, B, R, …), (B, R, …) and (B, R, R, …)."""


@dataclass
class EsmForProteinFoldingOutput(ModelOutput):
    """Structures of B sequences, padded to R residues, after each of n blocks.

    frames (n, B, R, 7): quaternions and alpha carbons. sidechain_frames (n, B, R, 8, 4, 4).
    unnormalized_angles, angles (n, B, R, 7, 2). positions (n, B, R, 14, 3) in Å, zeros where there
    is no atom. states (n, B, R, ·). s_s (B, R, S), s_z (B, R, R, Z): the trunk's representations.
    distogram_logits (B, R, R, 64), lm_logits (B, R, 23). aatype (B, R), 0–20. atom14_atom_exists
    (B, R, 14), residx_atom14_to_atom37, residx_atom37_to_atom14, atom37_atom_exists (B, R, 37).
    residue_index (B, R), from 0 in each chain. lddt_head (n, B, R, 37, 50), plddt (B, R, 37) from 0
    to 100. ptm_logits (B, R, R, 64), ptm (B,), aligned_confidence_probs (B, R, R, 64),
    predicted_aligned_error (B, R, R) in Å, max_predicted_aligned_error ().

    Those that may be None are left out by `compact`.

    Not in the reference: mean_plddt (B,) of alpha carbons; iptm (B,) and interchain_error (B,) in
    Å, nan for single chains; chain_iptm (B, C, C), ipTM of each two of up to C chains, else nan;
    chain_index (B, R), from 0; attention_mask (B, R), 1 for residues.
    """

    frames: Tensor = None  # type: ignore[assignment]
    sidechain_frames: Tensor | None = None
    unnormalized_angles: Tensor | None = None
    angles: Tensor = None  # type: ignore[assignment]
    positions: Tensor = None  # type: ignore[assignment]
    states: Tensor | None = None
    s_s: Tensor | None = None
    s_z: Tensor | None = None
    distogram_logits: Tensor | None = None
    lm_logits: Tensor | None = None
    aatype: Tensor = None  # type: ignore[assignment]
    atom14_atom_exists: Tensor = None  # type: ignore[assignment]
    residx_atom14_to_atom37: Tensor = None  # type: ignore[assignment]
    residx_atom37_to_atom14: Tensor = None  # type: ignore[assignment]
    atom37_atom_exists: Tensor = None  # type: ignore[assignment]
    residue_index: Tensor = None  # type: ignore[assignment]
    lddt_head: Tensor | None = None
    plddt: Tensor = None  # type: ignore[assignment]
    ptm_logits: Tensor | None = None
    ptm: Tensor = None  # type: ignore[assignment]
    aligned_confidence_probs: Tensor | None = None
    predicted_aligned_error: Tensor = None  # type: ignore[assignment]
    max_predicted_aligned_error: Tensor = None  # type: ignore[assignment]
    mean_plddt: Tensor = None  # type: ignore[assignment]
    iptm: Tensor = None  # type: ignore[assignment]
    chain_iptm: Tensor = None  # type: ignore[assignment]
    interchain_error: Tensor = None  # type: ignore[assignment]
    chain_index: Tensor = None  # type: ignore[assignment]
    attention_mask: Tensor = None  # type: ignore[assignment]

    def select(self, kept: Tensor, present: Tensor) -> EsmForProteinFoldingOutput:
        """Only the residues `kept` (B, R'), with zeros where `present` (B, R') is false."""
        changed: dict[str, Tensor] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            if field.name in PER_BLOCK:
                changed[field.name] = select_residues(
                    value.transpose(0, 1), 0, kept, present
                ).transpose(0, 1)
            elif field.name in PER_RESIDUE:
                changed[field.name] = select_residues(value, 1, kept, present)
            elif field.name in PER_PAIR:
                rows = select_residues(value, 1, kept, present)
                changed[field.name] = select_residues(
                    rows.transpose(1, 2), 1, kept, present
                ).transpose(1, 2)
        return replace(self, **changed)


def select_residues(value: Tensor, dimension: int, kept: Tensor, present: Tensor) -> Tensor:
    """(B, R, …) → (B, R', …); with `dimension` 0, (B, n, R, …) → (B, n, R', …)."""
    if dimension == 0:
        parts = [one[:, places] for one, places in zip(value, kept, strict=True)]
        shown = present.unsqueeze(1)
    else:
        parts = [one[places] for one, places in zip(value, kept, strict=True)]
        shown = present
    found = torch.stack(parts)
    return found * shown.view(*shown.shape, *[1] * (found.ndim - shown.ndim)).to(found.dtype)
