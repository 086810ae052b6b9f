"""The folding trunk beside transformers: seconds, ratios and memory.

    python -m tests.benchmarks.bench_fold [--trunk-residues 128 256] [--trunk-blocks 1]

Blocks of the published widths with shared random weights, float32. A trunk has 48 blocks, all
alike: a few are run. All run in turn in each round. Peaks are of a process each, for a trunk of two
blocks with its structure module and one recycle, above what is resident before; transformers gets
zeros to start from, as it has to.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.esm.configuration_esm import TrunkConfig as PeerConfig
from transformers.models.esm.modeling_esmfold import EsmFoldingTrunk

from esm_pipeline import optimize_for_inference
from tests.benchmarks.bench_fold_memory import MALLOC, MEBI, build, forget_peak, status
from tests.benchmarks.plan import Plan, run_alone
from tests.benchmarks.table import Case, Row

BASE = "transformers float32"
WAYS = (
    BASE,
    "transformers float32, chunks of 64",
    "ours float32, as loaded",
    "ours float32",
    "ours float32, chunks of 64",
    "ours bfloat16",
)
ROOT = Path(__file__).resolve().parents[2]
BLOCKS, PEAK_BLOCKS = 48, 2
Run = Callable[[], Tensor]


def spread(model: nn.Module) -> nn.Module:
    """Random weights of a size at which blocks neither vanish nor blow up."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.5 * parameter.shape[-1] ** -0.5)
    return model.requires_grad_(False).eval()


def trunk_of(way: str, blocks: int) -> Any:
    """A trunk as one of `WAYS` runs it; all have the same weights."""
    chunk = 64 if way.endswith("64") else None
    torch.manual_seed(0)
    peer = spread(EsmFoldingTrunk(PeerConfig(num_blocks=blocks, chunk_size=chunk)))
    if way.startswith("transformers"):
        return peer
    model = build(blocks)
    model.trunk.load_state_dict(peer.state_dict())
    if not way.endswith("as loaded"):
        dtype = torch.bfloat16 if "bfloat16" in way else torch.float32
        model = optimize_for_inference(model, trunk_dtype=dtype)
    model.trunk.set_chunk_size(chunk)
    return model.trunk


def blocks_of(trunk: Any, residues: int) -> Run:
    """All blocks, once; gives z."""
    torch.manual_seed(1)
    s, z = torch.randn(1, residues, 1024), torch.randn(1, residues, residues, 128)
    mask = torch.ones(1, residues)

    def run() -> Tensor:
        x, y = s, z.clone()  # it is changed in place
        if not isinstance(trunk, EsmFoldingTrunk):
            last: Tensor = trunk.run_blocks(x, y, None)[1]
            return last
        for block in trunk.blocks:
            x, y = block(x, y, mask=mask, chunk_size=trunk.chunk_size)
        return y

    return run


def structure(trunk: Any, residues: int, num_recycles: int) -> Tensor:
    """Positions, in Å, by blocks and structure module, of an input without a pair part."""
    peer = isinstance(trunk, EsmFoldingTrunk)
    torch.manual_seed(2)
    s = torch.randn(1, residues, 1024)
    z = torch.zeros(1, residues, residues, 128) if peer else None
    aatype, places = torch.zeros(1, residues, dtype=torch.int64), torch.arange(residues)[None]
    mask = torch.ones_like(aatype) if peer else None
    positions: Tensor = trunk(s, z, aatype, places, mask, num_recycles)["positions"]
    return positions


def seconds(run: Run) -> float:
    """On the clock."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@torch.inference_mode()
def measure_peak(way: str, residues: int) -> int:
    """Bytes at peak in this process for a trunk of two blocks and its structure module."""
    trunk = trunk_of(way, PEAK_BLOCKS)
    structure(trunk, 3, 1)
    forget_peak()
    before = status("VmRSS")
    structure(trunk, residues, 1)
    return status("VmHWM") - before


def peak(way: str, residues: int) -> int:
    """The same in a fresh process, where freed memory goes back to the system at once."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_fold", "--peak"]
    found = subprocess.run(
        [*command, json.dumps([way, residues])],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, **MALLOC, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
    )
    return int(found.stdout)


@torch.inference_mode()
def measure(plan: Plan) -> list[Case]:
    """Seconds, then peaks."""
    torch.set_num_threads(plan.threads)
    rows = {way: Row(way) for way in WAYS}
    trunks = {way: trunk_of(way, plan.trunk_blocks) for way in rows}
    told = f"ESMFold trunk, {plan.trunk_blocks} of {BLOCKS} blocks"
    cases = [
        timed(f"{told}, {one} residues", trunks, rows, one, plan) for one in plan.trunk_residues
    ]
    return cases + [peaks(trunks, residues) for residues in plan.peak_residues]


def timed(
    name: str, trunks: dict[str, Any], all_rows: dict[str, Row], residues: int, plan: Plan
) -> Case:
    """Blocks of all trunks in turn."""
    runs = {way: blocks_of(trunk, residues) for way, trunk in trunks.items()}
    rows = {way: Row(way, problem=row.problem) for way, row in all_rows.items()}
    expected = structure(trunks[BASE], residues, 0)
    for way, run in runs.items():
        run()
        if way != BASE:
            rows[way].max_abs = float((structure(trunks[way], residues, 0) - expected).abs().max())
    for _ in range(plan.rounds):
        for way, run in runs.items():
            rows[way].values.append(seconds(run))
    note = "max-abs of the positions that the structure module makes of these blocks, in Å"
    return Case(name, BASE, list(rows.values()), note=note)


def peaks(trunks: dict[str, Any], residues: int) -> Case:
    """The most memory, a process each."""
    rows = [Row(way, [peak(way, residues) / MEBI]) for way in trunks]
    name = f"ESMFold trunk and structure module, most memory, {residues} residues"
    return Case(name, BASE, rows, unit="MiB", note="without weights and input; one recycle")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        print(measure_peak(*json.loads(sys.argv[2])))
    else:
        run_alone(__doc__, measure, ("trunk_residues", "trunk_blocks", "peak_residues"))
