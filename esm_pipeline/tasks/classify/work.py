"""How the work of `classify` grows with the sequences, and what its jobs ask for. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from esm_pipeline.arrays import Int64
from esm_pipeline.footprint import FLOAT32
from esm_pipeline.formats.bundles import Work
from esm_pipeline.settings.sections import ClassifySettings, JobLimits
from esm_pipeline.tasks.common.requests import (
    Need,
    Request,
    batch_bytes,
    model_bytes,
    model_size,
    residues_computed,
    tokens_at_once,
)
from esm_pipeline.tasks.common.work import forward_cost

CLASSIFY_WORK = Work(forward_cost)


def classify_request(
    models: Sequence[Path],
    settings: ClassifySettings,
    lengths: Int64,
    *,
    attempt: int,
    limits: JobLimits,
    where: str,
    threads: int = 0,
) -> Request:
    """What a job asks for that classifies sequences of `lengths` (U,) residues by the only model.

    `threads`: those that the job gets; 0 for the setting. Raises FileNotFoundError if there is no
    model file yet, InputError, which begins with `where`, if the job exceeds the `limits`.
    """
    (path,), threads = models, threads or settings.threads
    size = model_size(path)
    residues = residues_computed(size, settings, lengths)
    need = Need(0, 0, 0)
    if residues.any():
        tokens = tokens_at_once(settings, residues, 1, threads)
        states = FLOAT32 * size.width  # what the classifier reads
        memory = model_bytes(size, settings) + batch_bytes(size, settings, tokens, states)
        need = Need(memory, size.operations(residues), FLOAT32 * size.parameters)
    return need.request(
        "classify", settings, threads=threads, attempt=attempt, limits=limits, where=where
    )
