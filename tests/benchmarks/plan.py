"""How much is measured: `--quick` to see that all runs, the default in minutes, `--full` in hours."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.benchmarks.machine import cores, describe
from tests.benchmarks.peers import WAYS
from tests.benchmarks.table import Case, Results, plain


@dataclass(frozen=True)
class Plan:
    """Sizes of all that is measured."""

    threads: int
    rounds: int = 5
    sizes: tuple[str, ...] = ("35M",)
    """Of ESM-2, for logits."""
    ways: tuple[str, ...] = tuple(WAYS)
    proteins: int = 64
    records: int = 2_000
    """Of the `embed` command."""
    jobs_size: str = "35M"
    load_size: str = "650M"
    lengths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096)
    curve_size: str = "35M"
    saturation_size: str = "35M"
    residues: int = 300
    """Of the protein that is saturated."""
    copies: int = 32
    trunk_residues: tuple[int, ...] = (256,)
    trunk_blocks: int = 1
    peak_residues: tuple[int, ...] = (256,)


QUICK = {
    "rounds": 2,
    "sizes": ("8M",),
    "proteins": 8,
    "records": 100,
    "jobs_size": "8M",
    "load_size": "35M",
    "lengths": (64, 256),
    "curve_size": "8M",
    "saturation_size": "8M",
    "residues": 100,
    "copies": 16,
    "trunk_residues": (64,),
    "peak_residues": (64,),
}
FULL = {
    "sizes": ("8M", "35M", "150M", "650M"),
    "saturation_size": "150M",
    "jobs_size": "150M",
    "trunk_blocks": 8,
    "trunk_residues": (128, 256),
    "peak_residues": (256, 512),
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What all benchmarks take."""
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="small, to see that all runs")
    size.add_argument("--full", action="store_true", help="all sizes of ESM-2, 8 blocks of ESMFold")
    parser.add_argument("--rounds", type=int, help="of each comparison; 5 unless told")
    parser.add_argument("--sizes", nargs="+", help="of ESM-2, for logits")
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="to compute logits")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--out", type=Path, help="JSON file of results")


def plan_of(args: argparse.Namespace) -> Plan:
    """What the flags say."""
    plan = Plan(threads=args.threads, **(QUICK if args.quick else FULL if args.full else {}))
    told = {"rounds": args.rounds, "sizes": args.sizes, "ways": args.ways}
    chosen = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in told.items()
        if value is not None
    }
    return replace(plan, **chosen)


def run_alone(description: str | None, measure: Callable[[Plan], Sequence[Case]]) -> None:
    """The command line of one benchmark."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    add_flags(parser)
    args = parser.parse_args()
    results = Results(describe(), args.threads, list(measure(plan_of(args))))
    print(plain(results))
    if args.out:
        results.write(args.out)
