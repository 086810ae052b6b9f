"""What every task shares that computes arrays of unique sequences: batches in, rows of a file out.

The file is the ragged one of `formats/results/writer.py`, with a row for each sequence that
could be computed.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esm_pipeline.arrays import Float32, Int64
from esm_pipeline.formats.records import FAILED, OK, SKIPPED
from esm_pipeline.formats.results.writer import Array, RaggedWriter
from esm_pipeline.model.base import EsmPreTrainedModel
from esm_pipeline.model.inference.batching import compute_batches
from esm_pipeline.tasks.common.plan import DOES_NOT_FIT, NOT_FINITE, Layout, Plan
from esm_pipeline.tasks.common.progress import progress
from esm_pipeline.tasks.common.runner import Runner

Values = NDArray[np.float16] | Float32 | NDArray[np.bytes_]
M = TypeVar("M", bound=EsmPreTrainedModel)

TOO_LARGE = (
    f"a value beyond ±{torch.finfo(torch.float16).max:.0f} does not fit into float16; set "
    "embed.residue_dtype to float32"
)


class Computed:
    """What came out of a batch, in host memory.

    `values`: array name → (units of all sequences, *shape). `problems`: place of a sequence in the
    batch → why its values cannot be stored.
    """

    def __init__(self) -> None:
        self.values: dict[str, Values] = {}
        self.problems: dict[int, str] = {}

    def add(
        self, name: str, values: Tensor, units: list[int], dtype: torch.dtype = torch.float32
    ) -> None:
        """Take up an array, `units` of it for each sequence, to be stored as `dtype`."""
        limit = torch.finfo(dtype).max
        if not largest(values) <= limit:
            for place, part in enumerate(torch.split(values, units)):
                size = largest(part)
                if not size <= limit:
                    self.problems[place] = TOO_LARGE if math.isfinite(size) else NOT_FINITE
        self.values[name] = values.to(dtype).cpu().numpy()


def largest(values: Tensor) -> float:
    """The largest absolute value, or NaN if one is NaN."""
    low, high = torch.aminmax(values)
    return float(torch.maximum(-low, high))


class ArrayRunner(Runner[M]):
    """A checkpoint that makes arrays of sequences."""

    @property
    @abstractmethod
    def arrays(self) -> list[Array]:
        """What is stored, as datasets."""

    @property
    @abstractmethod
    def attributes(self) -> dict[str, str]:
        """How the results were made: what the file says of itself."""

    @abstractmethod
    def __call__(self, sequences: Sequence[str]) -> Computed:
        """The arrays of a batch. Raises what PyTorch raises when memory runs out."""


def write_rows(runner: ArrayRunner[M], plan: Plan, path: Path, *, quiet: bool = False) -> None:
    """Compute what `plan` says into a new file at `path`; notes in the plan what failed."""
    rows, layout = plan.rows(), Layout(runner.arrays, runner.attributes)
    with layout.writer(path, plan, rows) as writer:
        compute(runner, plan, np.flatnonzero(rows >= 0), writer, quiet=quiet)
    if plan.failures:
        layout.leave_out_failures(path, plan, rows)


def compute(
    runner: ArrayRunner[M], plan: Plan, unique: Int64, writer: RaggedWriter, *, quiet: bool
) -> None:
    """Compute the `unique` sequences, (rows,) of them, batch by batch into the rows of `writer`."""

    def compute_rows(rows: Int64) -> Computed:
        return runner(plan.sequences(unique[rows]))

    if len(unique):
        runner.load()
    lengths, task = plan.lengths[unique], plan.reach.task
    with progress(task, int(lengths.sum()), "residues", quiet=quiet) as advance:
        budget = runner.settings.token_budget
        for rows, computed in compute_batches(lengths, budget, compute_rows, runner.device):
            if computed is None:
                one = int(rows[0])
                plan.failures[int(unique[one])] = DOES_NOT_FIT.format(lengths[one])
            else:
                for name, values in computed.values.items():
                    writer.write(name, rows, values)
                for place, reason in computed.problems.items():
                    plan.failures[int(unique[rows[place]])] = reason
            advance(int(lengths[rows].sum()))


def summary(counts: Counter[str], plan: Plan, runner: Runner[M], seconds: float) -> str:
    """One line on a finished run."""
    residues = int(plan.lengths[plan.rows() >= 0].sum())
    told = ", ".join(f"{counts[status]:,} {status}" for status in (OK, SKIPPED, FAILED))
    return (
        f"{plan.reach.task}: {counts.total():,} records: {told}; {residues:,} residues in "
        f"{seconds:.1f} s, {runner.seconds:.1f} s of it in the model; "
        f"{residues / seconds:,.0f} residues/s"
    )
