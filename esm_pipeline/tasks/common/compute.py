"""Unique sequences in, rows of a result file out: what all tasks share that compute arrays.

The file is the ragged one of `formats/results/writer.py`, with a row for each sequence that could
be computed.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esm_pipeline.arrays import Float32, Int64
from esm_pipeline.errors import setting
from esm_pipeline.formats.results.layout import Array
from esm_pipeline.formats.results.writer import RaggedWriter
from esm_pipeline.model.base import EsmPreTrainedModel
from esm_pipeline.model.inference.batching import BatchResult, compute_batches
from esm_pipeline.settings.sections import ArraySettings
from esm_pipeline.tasks.common.plan import (
    DOES_NOT_FIT,
    NOT_FINITE,
    LengthPolicy,
    ResultLayout,
    SequencePlan,
)
from esm_pipeline.tasks.common.progress import Amounts, progress, waiting
from esm_pipeline.tasks.common.runner import Runner
from esm_pipeline.tasks.common.work import forward_cost

HostArray: TypeAlias = NDArray[np.float16] | Float32 | NDArray[np.bytes_]
M = TypeVar("M", bound=EsmPreTrainedModel)

TOO_LARGE = (
    f"a value beyond ±{torch.finfo(torch.float16).max:.0f} does not fit into float16; set "
    f"{setting('embed.residue_dtype')} to float32"
)


class BatchOutput(Protocol):
    """The results of a batch, in host memory."""

    @property
    def problems(self) -> Mapping[int, str]:
        """Place of a sequence in the batch → why its results cannot be stored."""

    def write(self, writer: RaggedWriter, rows: Int64) -> None:
        """Write the results into the `rows` (B,) of the batch's sequences."""


class BatchArrays:
    """Arrays of a batch: `values` has name → (units of all sequences, *shape)."""

    def __init__(self) -> None:
        self.values: dict[str, HostArray] = {}
        self.problems: dict[int, str] = {}

    def add(
        self, name: str, values: Tensor, units: list[int], dtype: torch.dtype = torch.float32
    ) -> None:
        """Add an array with `units` entries for each sequence, to be stored as `dtype`."""
        limit = torch.finfo(dtype).max
        if not largest(values) <= limit:
            for place, part in enumerate(torch.split(values, units)):
                size = largest(part)
                if not size <= limit:
                    self.problems[place] = TOO_LARGE if math.isfinite(size) else NOT_FINITE
        self.values[name] = values.to(dtype).cpu().numpy()

    def write(self, writer: RaggedWriter, rows: Int64) -> None:
        """Write the arrays into `rows`; those of sequences with problems are to be left out."""
        for name, values in self.values.items():
            writer.write(name, rows, values)


def largest(values: Tensor) -> float:
    """The largest absolute value, or NaN if there is one."""
    low, high = torch.aminmax(values)
    return float(torch.maximum(-low, high))


class ArrayRunner(Runner[M]):
    """A checkpoint that computes arrays for sequences."""

    task: ClassVar[str]
    settings: ArraySettings

    @property
    @abstractmethod
    def arrays(self) -> Sequence[Array]:
        """The arrays to store, as datasets."""

    @property
    @abstractmethod
    def attributes(self) -> dict[str, str]:
        """How the results were made: the attributes of the file."""

    @abstractmethod
    def __call__(self, sequences: Sequence[str]) -> BatchOutput:
        """Compute a batch. Raises what PyTorch raises when memory runs out."""

    def cost(self, lengths: Int64) -> NDArray[np.number[Any]]:
        """The relative cost (U,) of sequences of some `lengths` (U,), for the time left."""
        return forward_cost(lengths)

    @property
    def policy(self) -> LengthPolicy:
        """How long sequences are handled. Raises InputError if model and settings disagree."""
        return LengthPolicy.choose(self.task, [self.config.max_residues], self.settings.long)

    def run_batches(self, plan: SequencePlan, unique: Int64) -> Iterator[BatchResult[BatchOutput]]:
        """Compute the `unique` sequences in batches; parts are places in `unique`."""

        def compute(part: Int64) -> BatchOutput:
            return self(plan.sequences(unique[part]))

        return compute_batches(
            plan.lengths[unique], self.settings.token_budget, compute, self.device
        )

    def does_not_fit(self, residues: int) -> str:
        """Why a sequence of so many residues failed when memory ran out."""
        return DOES_NOT_FIT.format(residues)


def write_rows(
    runner: ArrayRunner[M], plan: SequencePlan, path: Path, *, quiet: bool = False
) -> None:
    """Compute the sequences of `plan` into a new file at `path`; notes in the plan what failed."""
    rows = plan.rows()
    with waiting(f"{runner.say.title}: reading the weights", quiet=runner.say.quiet):
        layout = ResultLayout(runner.arrays, runner.attributes)
    with layout.writer(path, plan, rows) as writer:
        compute_rows(runner, plan, np.flatnonzero(rows >= 0), writer, quiet=quiet)
    layout.complete(path, plan, rows)


def compute_rows(
    runner: ArrayRunner[M], plan: SequencePlan, unique: Int64, writer: RaggedWriter, *, quiet: bool
) -> None:
    """Compute the `unique` sequences, one for each row of `writer`, batch by batch."""
    if len(unique):
        runner.load()
    lengths = plan.lengths[unique]
    cost = runner.cost(plan.sizes[unique].astype(np.int64))
    amounts = Amounts(
        *(len(unique), "sequences", float(cost.sum())), rated=int(lengths.sum()), rate="residues"
    )
    title = runner.say.title or runner.task
    with progress(title, amounts, quiet=quiet, short=runner.say.short) as advance:
        for rows, output in runner.run_batches(plan, unique):
            if output is None:
                only = int(rows[0])
                plan.failures[int(unique[only])] = runner.does_not_fit(int(lengths[only]))
            else:
                output.write(writer, rows)
                for place, reason in output.problems.items():
                    plan.failures[int(unique[rows[place]])] = reason
            advance(len(rows), work=float(cost[rows].sum()), rated=int(lengths[rows].sum()))
