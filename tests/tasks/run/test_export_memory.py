"""Memory of `export`: it does not grow with the numbers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from esm_pipeline.formats.results.layout import Array, RecordRow
from esm_pipeline.formats.results.writer import RaggedWriter

MEASURED = """
import resource, sys
from esm_pipeline.cli import main
assert main(["export", "--quiet", *sys.argv[1:]]) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_of_export(source: Path, out: Path) -> float:
    """Peak memory of an export in MB."""
    command = [sys.executable, "-c", MEASURED, source, out]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    scale = 1 if sys.platform == "darwin" else 1024
    return int(done.stdout) * scale / 1e6


@pytest.mark.parametrize("name", ["a.parquet", "a.npy", "a.h5ad", "per-protein.h5"])
def test_memory_does_not_grow_with_the_numbers(tmp_path, name):
    """100 MB more of numbers."""
    peaks = []
    for count in (1_000, 20_000):
        entries = [RecordRow(f"r{place}", place, place) for place in range(count)]
        told = {"format": "esm-pipeline/embeddings", "model": "m", "software": "{}"}
        array = Array("mean/2", "sequence", (1280,), "<f4")
        source = tmp_path / f"{count}.h5"
        with RaggedWriter(source, [array], np.ones(count, int), count, entries, told) as writer:
            for first in range(0, count, 1_000):
                rows = np.arange(first, first + 1_000)
                writer.write(array.name, rows, np.full((1_000, 1280), first / 1e4, "f4"))
        peaks.append(peak_of_export(source, tmp_path / name))
        for file in tmp_path.iterdir():
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    assert peaks[1] < peaks[0] + 60
