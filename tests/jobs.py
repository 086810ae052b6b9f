"""Files of jobs with made-up results, for tests and measurements of what gathers them."""

from __future__ import annotations

from pathlib import Path

import h5py
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


def assert_same_results(one: Path, other: Path) -> None:
    """All of two results is the same, values within 1e-4 or a step of float16."""
    with h5py.File(one) as a, h5py.File(other) as b:
        assert dict(a.attrs) == dict(b.attrs)
        names: set[str] = set()
        others: set[str] = set()
        a.visit(names.add)
        b.visit(others.add)
        assert names == others
        for name in names:
            if isinstance(a[name], h5py.Group):
                continue
            if a[name].dtype.kind == "f":
                steps = 1e-3 if a[name].dtype == np.float16 else 0  # float16 rounds in steps
                np.testing.assert_allclose(a[name][...], b[name][...], rtol=steps, atol=1e-4)
            else:
                assert a[name][...].tolist() == b[name][...].tolist(), name
