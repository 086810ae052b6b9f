"""How the work of `fold` grows with the sequences, and what its jobs ask for. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from esm_pipeline.arrays import Float64, Int64
from esm_pipeline.errors import InputError
from esm_pipeline.footprint import (
    ELEMENTS,
    FLOAT32,
    LINKER_RESIDUES,
    PRODUCTS,
    FoldShape,
    fold_footprint,
)
from esm_pipeline.formats.bundles import CLOSING, OPENING, Bundle, Work, digit_counts
from esm_pipeline.settings.sections import FoldSettings
from esm_pipeline.tasks.common.requests import (
    GIGA,
    Need,
    model_bytes,
    model_size,
    on_gpu,
    residues_computed,
)
from esm_pipeline.tasks.common.work import LEAST_OF_LONG_WORK

CUBIC = 640
"""Residues beyond which triangle products and attention, R³, cost more than linear layers, R²."""

LEAST_CHUNK = 16
LARGEST_CHUNK = 128
"""Rows of the pair representation computed at once: where memory is short, and where it is not."""

SHARE = 0.8
"""The share of the free memory that a batch may take; the formula is accurate to 20 %."""

PAIR_OPERATIONS = 1e6
"""Operations of a block of the trunk for a pair of residues, of 128 numbers, by `cost`."""

PAIR_WIDTH = 128

RESULT_BYTES = 16
"""Bytes of memory for each pair of residues of a structure that is written."""


def cost(residues: int) -> float:
    """The cost of a sequence padded to `residues`, in pairs of residues of a short one."""
    return residues**2 * (1 + residues / CUBIC)


def fold_cost(lengths: Int64) -> Float64:
    """The cost of each of some sequences of `lengths` residues, as by `cost`."""
    return lengths**2 * (1 + lengths / CUBIC)


FOLD_WORK = Work(fold_cost, least=LEAST_OF_LONG_WORK)


def folded_lengths(bundle: Bundle, span: slice) -> Int64:
    """(U,) residues that the model computes for the sequences `span`, with linkers of chains."""
    first, length = bundle.first[span], bundle.length[span].astype(np.int64)
    offset = bundle.offset[span.start : span.stop + 1]
    breaks = np.diff(offset) - digit_counts(first) - (OPENING + CLOSING) - length
    return length + LINKER_RESIDUES * breaks


def fold_need(models: Sequence[Path], settings: FoldSettings, lengths: Int64, threads: int) -> Need:
    """What a job needs that folds sequences of `lengths` (U,), as by `folded_lengths`.

    The memory is that of the longest with the smallest chunk that may be chosen; with more, `fold`
    takes larger ones. `threads`: those that the job gets. Raises FileNotFoundError if there is no
    model file yet, InputError for a model that does not fold.
    """
    (path,) = models
    size = model_size(path)
    if size.folding is None:
        raise InputError(f"{path}: not a folding model; set fold.model to one")
    residues = residues_computed(size, settings, lengths, settings.max_residues)
    if not residues.any():
        return Need("fold")
    longest = int(residues.max())
    batch = RESULT_BYTES * longest**2
    batch += 0 if on_gpu(settings) else batch_memory(size.folding, settings, longest, threads)
    passes = size.folding.blocks * (settings.num_recycles + 1)
    trunk = PAIR_OPERATIONS * (size.folding.pair_width / PAIR_WIDTH) ** 2 * passes
    operations = trunk * float(fold_cost(residues).sum()) + size.operations(residues)
    memory = model_bytes(size, settings) + batch
    return Need("fold", memory, operations, FLOAT32 * size.parameters)


def batch_memory(shape: FoldShape, settings: FoldSettings, residues: int, threads: int) -> int:
    """Bytes for a sequence of so many `residues` on the CPU, and for batches of shorter ones."""

    def needed(batch: int, chunk: int | None) -> int:
        rows = chunk or max(1, threads * ELEMENTS // (batch * residues**2 * shape.pair_width))
        return fold_footprint(
            shape,
            batch,
            residues,
            min(residues, rows),
            shares=chunk is None,
            products=threads * PRODUCTS,
        ).total

    threads, chosen = max(1, threads), settings.chunk_size
    if chosen != "auto":
        return int(needed(1, None if chosen == "none" else chosen) / SHARE)
    if settings.memory:
        batch = max(1, settings.token_budget // residues)
        most = max(needed(batch, None), needed(batch, LARGEST_CHUNK))
        return min(int(settings.memory * GIGA), most)
    return int(needed(1, LEAST_CHUNK) / SHARE)
