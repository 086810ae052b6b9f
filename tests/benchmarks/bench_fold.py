"""The folding trunk beside transformers: seconds, ratios and memory.

    python tests/benchmarks/bench_fold.py [--residues 128 256 512] [--blocks 1] [--rounds 3]

Blocks of the published widths with shared random weights, float32. A trunk has 48 blocks, all
alike: run a few and count. All run in turn in each round, and the least time of each counts: other
work on the machine only ever adds. With one thread (the default) it is the processor's time, which
other work disturbs less. Peaks are of a process each, for the whole trunk with its structure module
and one recycle, above what is resident before; transformers gets zeros to start from, as it has to.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.models.esm.configuration_esm import TrunkConfig as PeerConfig
from transformers.models.esm.modeling_esmfold import EsmFoldingTrunk

from esm_pipeline.model.folding.config import TrunkConfig
from esm_pipeline.model.folding.trunk import FoldingTrunk
from esm_pipeline.model.optimize import can_pack, optimize_block, twin
from tests.benchmarks.bench_fold_memory import MALLOC, MEBI, forget_peak, status

WAYS = ("transformers", "transformers, chunk 64", "ours", "ours, chunk 64", "ours, optimized")
Run = Callable[[], Tensor]


def spread(model: nn.Module) -> nn.Module:
    """Random weights of a size at which blocks neither vanish nor blow up."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.5 * parameter.shape[-1] ** -0.5)
    return model.requires_grad_(False).eval()


def trunk_of(way: str, blocks: int) -> nn.Module:
    """A trunk as one of `WAYS` runs it; all have the same weights."""
    chunk = 64 if way.endswith("64") else None
    torch.manual_seed(0)
    peer = spread(EsmFoldingTrunk(PeerConfig(num_blocks=blocks, chunk_size=chunk)))
    if way.startswith("transformers"):
        return peer
    ours = FoldingTrunk(TrunkConfig(num_blocks=blocks, chunk_size=chunk)).eval()
    ours.load_state_dict(peer.state_dict())
    if way.endswith("optimized"):
        ours = twin(ours, None)
        for block in ours.blocks:
            optimize_block(block, can_pack(torch.float32))
    return ours


def blocks_of(trunk: nn.Module, residues: int) -> Run:
    """All blocks, once; gives z."""
    torch.manual_seed(1)
    s, z = torch.randn(1, residues, 1024), torch.randn(1, residues, residues, 128)
    mask = torch.ones(1, residues)

    def run() -> Tensor:
        if isinstance(trunk, FoldingTrunk):
            return trunk.run_blocks(s, z.clone(), None)[1]
        x, y = s, z.clone()  # it is changed in place here too
        for block in trunk.blocks:
            x, y = block(x, y, mask=mask, chunk_size=trunk.chunk_size)
        return y

    return run


def seconds(run: Run) -> float:
    """Of the processor with one thread, else by the clock."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    run()
    return clock() - start


def measure_peak(way: str, residues: int) -> int:
    """Bytes at peak in this process for a trunk of two blocks and its structure module."""
    trunk = trunk_of(way, 2)
    peer = way.startswith("transformers")

    def run(length: int) -> None:
        s, z = torch.zeros(1, length, 1024), torch.zeros(1, length, length, 128) if peer else None
        aatype = torch.zeros(1, length, dtype=torch.int64)
        mask = torch.ones(1, length, dtype=torch.int64)
        trunk(s, z, aatype, torch.arange(length)[None], mask if peer else None, 1)

    run(3)
    forget_peak()
    before = status("VmRSS")
    run(residues)
    return status("VmHWM") - before


def peak(way: str, residues: int) -> int:
    """The same in a fresh process, where freed memory goes back to the system at once."""
    found = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.benchmarks.bench_fold",
            "--peak",
            json.dumps([way, residues]),
        ],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **MALLOC, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).resolve().parents[2],
    )
    return int(found.stdout)


@torch.inference_mode()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--residues", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-peaks", action="store_true", help="time alone")
    parser.add_argument("--peak", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        print(measure_peak(*args.peak))
        return
    trunks = {way: trunk_of(way, args.blocks) for way in WAYS}
    print(f"trunk, {args.blocks} of 48 blocks, float32, {args.threads} threads")
    print(f"{'':<24}{'residues':>9}{'s a block':>11}{'x peer':>8}{'peak MiB':>10}{'max-abs':>9}")
    for residues in args.residues:
        runs = {way: blocks_of(trunk, residues) for way, trunk in trunks.items()}
        results = {way: run() for way, run in runs.items()}
        taken: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(args.rounds):
            for way, run in runs.items():
                taken[way].append(seconds(run) / args.blocks)
        best = min(taken["transformers"])
        for way in WAYS:
            held = "" if args.no_peaks else f"{peak(way, residues) / MEBI:.0f}"
            apart = float((results[way] - results["transformers"]).abs().max())
            fast = min(taken[way])
            row = f"{way:<24}{residues:>9}{fast:>11.3f}{best / fast:>8.2f}{held:>10}"
            print(f"{row}{apart:>9.0e}")


if __name__ == "__main__":
    main()
