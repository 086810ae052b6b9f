"""Files of jobs with made-up results, for tests and measurements of what gathers them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from esm_pipeline.formats.bundles import Range, Work
from esm_pipeline.formats.results.layout import Array
from esm_pipeline.tasks.common.bundle_sequences import BundleSequences
from esm_pipeline.tasks.common.plan import LengthPolicy, ResultLayout, SequencePlan
from esm_pipeline.tasks.embed.work import EMBED_WORK

WIDTH = 8
MEAN = Array("mean/0", "sequence", (WIDTH,), "<f4")
ATTRIBUTES = {
    "format": "esm-pipeline/embeddings",
    "layers": "0",
    "include": "mean",
    "software": "{}",
}


def make_jobs(fasta: Path, folder: Path, count: int, work: Work = EMBED_WORK) -> None:
    """Write the files of all ranges of a bundle; see `make_job`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        part = Range(number, count)
        make_job(fasta, part, folder / f"{part.name}.h5", work)


def make_job(fasta: Path, part: Range, path: Path, work: Work = EMBED_WORK) -> None:
    """Write the file of one range, with an embedding of each sequence that follows from it."""
    layout = ResultLayout([MEAN], ATTRIBUTES)
    with BundleSequences(fasta, part, "embed", work) as sequences:
        plan = SequencePlan(sequences, LengthPolicy("embed", None, "full"))
        rows = plan.rows()
        with layout.writer(path, plan, rows) as writer:
            writer.write(MEAN.name, np.arange(len(sequences.first)), values_of(sequences.first))
        layout.complete(path, plan, rows)


def values_of(first: np.ndarray) -> np.ndarray:
    """(U, WIDTH) made-up embeddings of sequences, by the index of their first record."""
    return (first[:, None] + np.arange(WIDTH) / WIDTH).astype(np.float32)
