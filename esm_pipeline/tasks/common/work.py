"""How the work of a forward pass grows with the length of a sequence. No torch."""

from __future__ import annotations

from esm_pipeline.arrays import Int64

EVEN_LENGTH = 7680
"""Residues at which attention costs as much as the linear layers: 6 D, here for D = 1280."""

LEAST_OF_LONG_WORK = 1 / 20
"""The smallest job of folding and of saturations, as a part of that of other tasks."""


def forward_cost(lengths: Int64) -> Int64:
    """The relative cost of a forward pass over sequences of some `lengths` in residues."""
    return lengths * (EVEN_LENGTH + lengths)
