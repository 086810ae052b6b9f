"""How the work of `fold` grows with the length of a sequence. No torch."""

from __future__ import annotations

from esm_pipeline.arrays import Float64, Int64
from esm_pipeline.formats.bundles import Work
from esm_pipeline.tasks.common.work import LEAST_OF_LONG_WORK

CUBIC = 640
"""Residues beyond which triangle products and attention, R³, cost more than linear layers, R²."""


def cost(residues: int) -> float:
    """The cost of a sequence padded to `residues`, in pairs of residues of a short one."""
    return residues**2 * (1 + residues / CUBIC)


def fold_cost(lengths: Int64) -> Float64:
    """The cost of each of some sequences of `lengths` residues, as by `cost`."""
    return lengths**2 * (1 + lengths / CUBIC)


FOLD_WORK = Work(fold_cost, least=LEAST_OF_LONG_WORK)
