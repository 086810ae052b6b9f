"""Batches of sequences to fold, and the modes that need less memory.

A batch is padded to its longest sequence, and its cost is that of its pairs of residues: it grows
while the padding costs less than another batch. The longest sequences go first: neighbours have
similar lengths, and memory runs out at the start if at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from esm_pipeline.arrays import Int64
from esm_pipeline.tasks.fold.work import cost

LAUNCH = 128**2
"""Pairs of residues that cost a GPU about as much as starting another batch."""

CHUNKS = (128, 64, 32, 16)
"""Chunk sizes, tried one after the other."""


def fold_batches(
    lengths: NDArray[Any], token_budget: int, fits: Callable[[int, int], bool]
) -> Iterator[Int64]:
    """Cut sequences of `lengths` residues into batches, longest first, equals in their order.

    Yields indices into `lengths`, each once. A batch has at most `token_budget` residues, padding
    included, and `fits(sequences, residues of the longest)`, unless it is a single sequence.
    """
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    start = 0
    while start < len(order):
        longest, stop = int(lengths[order[start]]), start + 1
        while (
            stop < len(order)
            and (stop + 1 - start) * longest <= token_budget
            and cost(longest) - cost(int(lengths[order[stop]])) <= LAUNCH
            and fits(stop + 1 - start, longest)
        ):
            stop += 1
        yield order[start:stop]
        start = stop


class FoldMode(NamedTuple):
    """How a batch is folded: a fallback for less memory takes more time than the mode before."""

    chunk_size: int | None = None
    """Rows of the pair representation computed at once, None for all."""
    offload: bool = False
    """Whether the language model leaves the device after it has run."""
    cpu: bool = False
    """Whether everything runs on the CPU."""


def fold_modes(chunk_size: int | None, device: torch.device) -> list[FoldMode]:
    """The modes to try on `device`, one after the other, from the one with `chunk_size` on."""
    smaller = [size for size in CHUNKS if chunk_size is None or size < chunk_size]
    found = [FoldMode(size) for size in (chunk_size, *smaller)]
    if device.type == "cpu":
        return found
    least = found[-1].chunk_size
    return [*found, FoldMode(least, offload=True), FoldMode(least, offload=True, cpu=True)]
