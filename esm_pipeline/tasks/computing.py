"""What every task does that computes arrays of sequences: batches, failures, a file, a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from esm_pipeline.formats.hdf5 import Array, RaggedWriter
from esm_pipeline.formats.records import FAILED, OK, SKIPPED
from esm_pipeline.sections import ComputeSettings
from esm_pipeline.tasks.planning import DOES_NOT_FIT, Layout, Plan
from esm_pipeline.tasks.progress import progress

if TYPE_CHECKING:
    from esm_pipeline.tasks.batched import Computed

Int64 = NDArray[np.int64]


class Computes(Protocol):
    """A model that makes arrays of sequences, as `Runner` with `arrays` and a call is."""

    settings: Any
    seconds: float

    @property
    def arrays(self) -> Sequence[Array]:
        """What is stored, as datasets."""

    @property
    def attributes(self) -> Mapping[str, str]:
        """What the file says of itself."""

    def load(self) -> None:
        """Load the weights."""

    def __call__(self, sequences: Sequence[str]) -> Computed:
        """Compute a batch."""


def compute_file(runner: Computes, plan: Plan, path: Path, *, quiet: bool = False) -> None:
    """Compute what `plan` says into a new file at `path`; notes in the plan what failed."""
    rows, layout = plan.rows(), Layout(runner.arrays, runner.attributes)
    with layout.writer(path, plan, rows) as writer:
        compute(runner, plan, np.flatnonzero(rows >= 0), writer, quiet=quiet)
    if plan.failures:
        layout.leave_out_failures(path, plan, rows)


def compute(
    runner: Computes, plan: Plan, unique: Int64, writer: RaggedWriter, *, quiet: bool
) -> None:
    """Compute the `unique` sequences, (rows,) of them, batch by batch into the rows of `writer`."""
    from esm_pipeline.tasks.batching import run_with_ladder, token_batches

    def compute_rows(rows: Int64) -> Computed:
        return runner(plan.sequences(unique[rows]))

    if len(unique):
        runner.load()
    lengths, settings = plan.lengths[unique], runner.settings
    assert isinstance(settings, ComputeSettings), "of every task that runs a model"
    with progress(plan.reach.task, int(lengths.sum()), "residues", quiet=quiet) as advance:
        for batch in token_batches(lengths, settings.token_budget):
            for rows, computed in run_with_ladder(batch, compute_rows):
                if computed is None:
                    one = int(rows[0])
                    plan.failures[int(unique[one])] = DOES_NOT_FIT.format(lengths[one])
                else:
                    for name, values in computed.values.items():
                        writer.write(name, rows, values)
                    for place, reason in computed.problems.items():
                        plan.failures[int(unique[rows[place]])] = reason
                advance(int(lengths[rows].sum()))


def summary(counts: Counter[str], plan: Plan, runner: Computes, seconds: float) -> str:
    """One line on a finished run."""
    residues = int(plan.lengths[plan.rows() >= 0].sum())
    told = ", ".join(f"{counts[status]:,} {status}" for status in (OK, SKIPPED, FAILED))
    return (
        f"{plan.reach.task}: {counts.total():,} records: {told}; {residues:,} residues in "
        f"{seconds:.1f} s, {runner.seconds:.1f} s of it in the model; "
        f"{residues / seconds:,.0f} residues/s"
    )
