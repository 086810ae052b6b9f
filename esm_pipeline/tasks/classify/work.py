"""How the work of `classify` grows with the sequences, and what its jobs ask for. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from esm_pipeline.arrays import Int64
from esm_pipeline.footprint import FLOAT32
from esm_pipeline.formats.bundles import Work
from esm_pipeline.settings.sections import ClassifySettings
from esm_pipeline.tasks.common.requests import Need, forward_need, model_size, residues_computed
from esm_pipeline.tasks.common.work import forward_cost

CLASSIFY_WORK = Work(forward_cost)


def classify_need(
    models: Sequence[Path], settings: ClassifySettings, lengths: Int64, threads: int
) -> Need:
    """What a job needs that classifies sequences of `lengths` (U,) residues by the only model.

    `threads`: those that the job gets. Raises FileNotFoundError if there is no model file yet.
    """
    (path,) = models
    size = model_size(path)
    states = FLOAT32 * size.width  # what the classifier reads
    residues = residues_computed(size, settings, lengths)
    return forward_need("classify", size, settings, residues, threads, states)
