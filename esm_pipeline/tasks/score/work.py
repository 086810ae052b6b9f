"""How the work of `score` grows with the proteins, and what its jobs ask for. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from esm_pipeline.arrays import Int64
from esm_pipeline.footprint import FLOAT32
from esm_pipeline.formats.bundles import Work
from esm_pipeline.settings.sections import StrategySettings
from esm_pipeline.tasks.common.requests import (
    SPECIAL_TOKEN_COUNT,
    ModelSize,
    Need,
    batch_bytes,
    model_bytes,
    model_size,
    residues_computed,
    tokens_at_once,
)
from esm_pipeline.tasks.common.work import LEAST_OF_LONG_WORK, forward_cost

OVERLAPPING = 2
"""Times that overlapping windows show each residue, about."""

BYTES_OF_RESIDUE = 2_000
"""Bytes of memory for each residue whose substitutions are all scored: 20 log-odds, positions,
passes and log-probabilities."""

POSITIONS_PLANNED = 1 << 14
"""Positions for which passes are planned together, about."""

BYTES_OF_PASS, BYTES_OF_ROW = 400, 130
"""Bytes of memory for each forward pass of a table's variants, and for each of its rows."""


def saturation_cost(lengths: Int64) -> Int64:
    """The relative cost of one forward pass for each residue of proteins of some `lengths`."""
    return lengths * forward_cost(lengths)


SATURATION_WORK = Work(saturation_cost, least=LEAST_OF_LONG_WORK)

VARIANTS_WORK = Work(forward_cost)
"""That of each forward pass of a variant bundle."""


def saturation_need(
    models: Sequence[Path], settings: StrategySettings, lengths: Int64, threads: int
) -> Need:
    """What a job needs that scores all substitutions in proteins of `lengths` (U,) residues.

    The `models` run one after the other. `threads`: those that the job gets. Raises
    FileNotFoundError if there is no model file yet.
    """
    return passes_need(models, settings, lengths, None, threads)


def variants_need(
    models: Sequence[Path],
    settings: StrategySettings,
    lengths: Int64,
    threads: int,
    *,
    passes: Int64,
    rows: int,
) -> Need:
    """What a job needs that scores so many `rows` of a table.

    It runs `passes` (U,) over proteins of `lengths` (U,) residues; see also `saturation_need`.
    """
    need = passes_need(models, settings, lengths, passes, threads)
    return need.with_more(BYTES_OF_ROW * rows)


def passes_need(
    models: Sequence[Path],
    settings: StrategySettings,
    lengths: Int64,
    passes: Int64 | None,
    threads: int,
) -> Need:
    """What `passes` (U,) of each model need, None for those of a saturation."""
    memory, operations, weights = 0.0, 0.0, 0.0
    for path in models:
        size = model_size(path)
        residues, counts = passes_shown(size, settings, lengths, passes)
        if not (residues * counts).any():
            continue
        tokens = tokens_at_once(settings, residues, counts, threads)
        held = BYTES_OF_PASS * counts.sum() if passes is not None else saturation_bytes(residues)
        batch = batch_bytes(size, settings, tokens, 0)
        memory = max(memory, model_bytes(size, settings) + batch + float(held))
        operations += size.operations(residues, counts)
        weights += FLOAT32 * size.parameters
    return Need("score", memory, operations, weights)


def saturation_bytes(residues: Int64) -> int:
    """Bytes of the results of the proteins that are planned together, one of them at least."""
    return BYTES_OF_RESIDUE * max(int(residues.max()), min(POSITIONS_PLANNED, int(residues.sum())))


def passes_shown(
    size: ModelSize, settings: StrategySettings, lengths: Int64, passes: Int64 | None
) -> tuple[Int64, Int64]:
    """(U,) the residues that a pass shows of each protein, 0 if it is skipped; and its passes."""
    residues = lengths if settings.long == "window" else residues_computed(size, settings, lengths)
    masks = settings.strategy != "wt_marginal"
    counts = (residues if masks else residues.clip(max=1)) if passes is None else passes
    if settings.long != "window":
        return residues, counts
    most = settings.window - SPECIAL_TOKEN_COUNT
    if not masks:
        counts = counts * np.where(lengths > most, OVERLAPPING * lengths // most + 1, 1)
    return residues.clip(max=most), counts
