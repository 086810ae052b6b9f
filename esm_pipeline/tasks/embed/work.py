"""How the work of `embed` grows with the sequences, and what its jobs ask for. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from esm_pipeline.arrays import Int64
from esm_pipeline.footprint import FLOAT32
from esm_pipeline.formats.bundles import Work
from esm_pipeline.settings.sections import EmbedSettings
from esm_pipeline.tasks.common.requests import (
    ModelSize,
    Need,
    forward_need,
    model_size,
    residues_computed,
    tokens_at_once,
)
from esm_pipeline.tasks.common.work import forward_cost

EMBED_WORK = Work(forward_cost)

CONTACT_BYTES = 18
"""Bytes of a pair of residues for each attention head while contacts are computed."""


def embed_need(
    models: Sequence[Path], settings: EmbedSettings, lengths: Int64, threads: int
) -> Need:
    """What a job needs that embeds sequences of `lengths` (U,) residues by the only model.

    `threads`: those that the job gets. Raises FileNotFoundError if there is no model file yet.
    """
    (path,) = models
    size = model_size(path)
    residues = residues_computed(size, settings, lengths)
    item = np.dtype(settings.residue_dtype).itemsize if "residue" in settings.include else 0
    stored = len(settings.layers) * size.width * (FLOAT32 + item)
    need = forward_need("embed", size, settings, residues, threads, stored)
    if "contacts" in settings.include and residues.any():
        tokens = tokens_at_once(settings, residues, 1, threads)
        need = need.with_more(contact_bytes(size, residues, tokens))
    return need


def contact_bytes(size: ModelSize, residues: Int64, tokens: int) -> int:
    """Bytes of the attention maps of a batch of `tokens`, the longest sequences first."""
    longest = int(residues.max())
    return CONTACT_BYTES * size.heads * longest * max(longest, tokens)
