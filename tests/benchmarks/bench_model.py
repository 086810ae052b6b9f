"""Logits of real proteins by every peer and by ours: residues/s, ratios, share of the floor.

    python -m tests.benchmarks.bench_model [--quick | --full] [--sizes 35M] [--ways …] [--threads N]

Random weights of the true size, one checkpoint for all; logits of every residue of the 64 proteins.
`peers.py` tells how each runs; all are processes of their own that take turns (`rounds.py`). The
floor is what the products would take at the rate of this machine's matrix products of that dtype,
measured in the same rounds. 650M takes some 30 GB of memory, in all processes together;
fewer with --ways.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from tests.benchmarks.machine import rate
from tests.benchmarks.models import SIZES, operations, write_checkpoint
from tests.benchmarks.peers import (
    BASE,
    RIVALS,
    WAYS,
    Engine,
    Logits,
    convert,
    dtype_of,
)
from tests.benchmarks.plan import Plan, run_alone
from tests.benchmarks.proteins import proteins
from tests.benchmarks.rounds import UnavailableError, Worker, interleave, workers
from tests.benchmarks.table import LOGITS, Case, Row

RATE = "products of matrices in "


def products(threads: int, dtype: str, width: int) -> Engine:
    """Measures the floor's rate as ways are measured."""
    torch.set_num_threads(threads)
    return lambda _: partial(rate, dtype, width)


def conversion(folder: Path) -> Engine:
    """Converts a checkpoint as ways are loaded, so that nothing of it stays in memory."""
    convert(folder)
    raise UnavailableError("nothing is timed")


def convert_apart(folder: Path, plan: Plan) -> None:
    """Convert a checkpoint for OpenVINO in a process of its own, if that is among the ways."""
    if any(way.startswith("OpenVINO") for way in plan.ways):
        with workers({"conversion": partial(conversion, folder)}, plan.threads):
            pass


def measure(plan: Plan) -> list[Case]:
    """A case for each size."""
    return [measure_size(size, plan) for size in plan.sizes]


def measure_size(size: str, plan: Plan) -> Case:
    """All ways on one size."""
    sequences = proteins(plan.proteins)
    with tempfile.TemporaryDirectory() as name:
        folder = write_checkpoint(size, Path(name))
        convert_apart(folder, plan)
        loads = {way: partial(WAYS[way], folder, plan.threads) for way in plan.ways}
        for dtype in dict.fromkeys(map(dtype_of, plan.ways)):
            loads[RATE + dtype] = partial(products, plan.threads, dtype, SIZES[size][1])
        with workers(loads, plan.threads) as ready:
            found = {
                way: worker.prepare(sequences)
                for way, worker in ready.items()
                if not worker.problem
            }
            timed = interleave(ready, plan.rounds)
    lengths = [len(sequence) for sequence in sequences]
    rates = {
        way.removeprefix(RATE): statistics.median(figure for _, figure in told)
        for way, told in timed.items()
        if way.startswith(RATE) and told
    }
    work = operations(size, lengths)
    rows = [row_of(way, ready[way], timed[way], found, rates, work) for way in plan.ways]
    told = f"{len(sequences)} proteins, {sum(lengths):,} residues"
    return Case(f"{LOGITS}{size}, {told}", BASE, rows, residues=sum(lengths))


def row_of(
    way: str,
    worker: Worker,
    timed: list[tuple[float, object]],
    found: Mapping[str, Logits],
    rates: Mapping[str, float],
    work: float,
) -> Row:
    """The row of a way."""
    row = Row(way, [seconds for seconds, _ in timed], problem=worker.problem)
    row.rivals = list(RIVALS.get(way, ()))
    row.operations, row.rate = work, rates.get(dtype_of(way))
    if row.values and way != BASE and BASE in found:
        row.max_abs = max_abs(found[way], found[BASE])
    return row


def max_abs(one: Logits, other: Logits) -> float:
    """The largest difference over all sequences."""
    assert one.keys() == other.keys()
    return max(float(abs(one[i] - other[i]).max()) for i in one)


if __name__ == "__main__":
    run_alone(__doc__, measure, ("sizes", "ways", "proteins"))
