"""How the work of a saturation, and of a table of variants, grows with the proteins."""

from __future__ import annotations

from esm_pipeline.arrays import Int64
from esm_pipeline.formats.bundles import Work
from esm_pipeline.tasks.common.work import LEAST_OF_LONG_WORK, forward_cost


def saturation_cost(lengths: Int64) -> Int64:
    """The relative cost of one forward pass for each residue of proteins of some `lengths`."""
    return lengths * forward_cost(lengths)


SATURATION_WORK = Work(saturation_cost, least=LEAST_OF_LONG_WORK)

VARIANTS_WORK = Work(forward_cost)
"""That of each forward pass of a variant bundle."""
