"""Batches of sequences to fold, and what is tried when memory runs out.

A batch is padded to its longest sequence, and costs what its pairs of residues cost: it grows while
the padding costs less than another batch would. Sequences go longest first: neighbours are of like
length, and if memory runs out it does so at the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from esm_pipeline.arrays import Int64
from esm_pipeline.model.inference.batching import is_out_of_memory, release_memory

CUBIC = 640
"""Residues from which on triangle products and attention, R³, cost more than linear layers, R²."""

LAUNCH = 128**2
"""Pairs of residues that cost what starting another batch costs a graphics card, about."""

CHUNKS = (128, 64, 32, 16)
"""Chunk sizes that are tried one after the other."""

R = TypeVar("R")


def cost(residues: int) -> float:
    """What a sequence costs in a batch padded to `residues`, in pairs of a short one."""
    return residues**2 * (1 + residues / CUBIC)


def fold_batches(
    lengths: NDArray[Any], token_budget: int, fits: Callable[[int, int], bool]
) -> Iterator[Int64]:
    """Cut sequences of `lengths` residues into batches, longest first, equals in their order.

    Yields indices into `lengths`, each once. A batch has at most `token_budget` residues, padding
    counted, and `fits(sequences, residues of the longest)`, unless it is one sequence alone.
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


class Rung(NamedTuple):
    """One way to fold a batch; each saves memory over the one before, and takes more time."""

    chunk_size: int | None
    """Rows of the pair representation at once, None for all."""
    offload: bool = False
    """The language model leaves the device when it is done."""
    cpu: bool = False
    """The CPU does it all."""


def rungs(chunk_size: int | None, device: torch.device) -> list[Rung]:
    """The ways to fold one sequence on `device`, from the one with `chunk_size` on."""
    smaller = [size for size in CHUNKS if chunk_size is None or size < chunk_size]
    found = [Rung(size) for size in (chunk_size, *smaller)]
    if device.type == "cpu":
        return found
    least = found[-1].chunk_size
    return [*found, Rung(least, offload=True), Rung(least, offload=True, cpu=True)]


class Folded(NamedTuple, Generic[R]):
    """A part of a batch; `result` is None where its one sequence does not fit into memory."""

    part: Int64
    result: R | None
    rung: Rung


def run_with_rungs(
    batch: Int64, ways: Sequence[Rung], compute: Callable[[Int64, Rung], R]
) -> Iterator[Folded[R]]:
    """Fold `batch`, or if memory runs out its halves, and a sequence alone in the other `ways`.

    Yields each part in its order, and holds none of them while it computes the next. Errors that
    are not about memory pass through.
    """
    pending = [(batch, 0)]
    while pending:
        part, level = pending.pop()
        try:
            folded = Folded(part, compute(part, ways[level]), ways[level])
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            yield folded
            del folded
            continue
        release_memory()  # here the error is gone, and with it what its frames held
        if len(part) > 1:
            middle = len(part) // 2
            pending += [(part[middle:], level), (part[:middle], level)]
        elif level + 1 < len(ways):
            pending.append((part, level + 1))
        else:
            yield Folded(part, None, ways[level])
