"""Peak memory of folding, measured beside what `folding/memory.py` predicts.

    python -m tests.benchmarks.bench_fold_memory [--points R,B,CHUNK …]

The published widths with two blocks and a small language model, random weights, float32. Each point
is a process of its own: the most that was resident during `infer(compact=True)` above what was
before it. Memory that is freed goes back to the system at once, so that it does not count twice.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from esm_pipeline import EsmConfig, EsmForProteinFolding
from esm_pipeline.model.folding.demo import LANGUAGE_MODEL
from esm_pipeline.model.folding.memory import fold_memory

POINTS = (
    *((64, 1, None), (128, 1, None), (256, 1, None), (256, 1, 16), (256, 1, 64), (256, 4, None)),
    *((128, 4, 64), (512, 1, None), (512, 1, 64), (512, 1, 16), (768, 1, None), (768, 1, 64)),
)
"""Residues, sequences and chunk size."""

MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
MEBI = 2**20
Point = tuple[int, int, int | None]


def config_of(blocks: int = 2) -> EsmConfig:
    """The published widths of the trunk behind a small language model."""
    folding = {"trunk": {"num_blocks": blocks, "chunk_size": None}}
    return EsmConfig(is_folding_model=True, esmfold_config=folding, **LANGUAGE_MODEL)


def build(blocks: int = 2) -> EsmForProteinFolding:
    """A model of `config_of` with random weights."""
    torch.manual_seed(0)
    return EsmForProteinFolding(config_of(blocks)).eval()


def status(name: str) -> int:
    """Bytes that the system tells of this process: VmRSS, resident; VmHWM, the most so far."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{name}:")[1].split()[0]) * 1024


def forget_peak() -> None:
    """Let VmHWM begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(point: Point) -> int:
    """Bytes at peak in this process, beside the weights."""
    residues, batch, chunk_size = point
    torch.set_num_threads(1)
    model = build()
    model.infer("MK", num_recycles=1, compact=True)  # libraries make their tables
    forget_peak()
    before = status("VmRSS")
    model.infer(["A" * residues] * batch, num_recycles=1, chunk_size=chunk_size, compact=True)
    return status("VmHWM") - before


def measured(point: Point) -> int:
    """The same in a fresh process."""
    found = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.benchmarks.bench_fold_memory",
            "--measure",
            json.dumps(point),
        ],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **MALLOC, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).resolve().parents[2],
    )
    return int(found.stdout)


def predicted(point: Point) -> int:
    """Bytes at peak as the formula has them."""
    residues, batch, chunk_size = point
    torch.set_num_threads(1)
    return fold_memory(config_of(), batch, residues, chunk_size).total


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--points", nargs="*", type=json.loads, default=POINTS)
    args = parser.parse_args()
    if args.measure:
        print(measure(args.measure))
        return
    print(f"{'residues':>8}{'batch':>7}{'chunk':>7}{'measured':>10}{'predicted':>11}{'':>8}  MiB")
    for point in args.points:
        real, told = measured(point), predicted(point)
        residues, batch, chunk_size = point
        row = f"{residues:>8}{batch:>7}{chunk_size or 'None':>7}{real / MEBI:>10.0f}"
        print(f"{row}{told / MEBI:>11.0f}{told / real - 1:>+8.0%}")


if __name__ == "__main__":
    main()
