"""How much is measured: `--quick` to see that all runs, else minutes, with `--full` hours."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


QUICK: dict[str, Any] = {
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
FULL: dict[str, Any] = {
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
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--out", type=Path, help="JSON file of results")


def plan_of(args: argparse.Namespace) -> Plan:
    """What the flags say."""
    told = QUICK if args.quick else FULL if args.full else {}
    for name in Plan.__dataclass_fields__:
        value = getattr(args, name, None)
        if value is not None:
            told = told | {name: tuple(value) if isinstance(value, list) else value}
    return Plan(**told)


def add_fields(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """A flag for each of some fields of the plan: `trunk_blocks` is --trunk-blocks."""
    for name in names:
        value = getattr(Plan, name)
        several = isinstance(value, tuple)
        kind = type(value[0]) if several else type(value)
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=kind, nargs="+" if several else None, help=f"{value}")


def run_alone(
    description: str | None, measure: Callable[[Plan], Sequence[Case]], fields: Sequence[str] = ()
) -> None:
    """The command line of one benchmark, with flags for those fields of the plan too."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    add_flags(parser)
    add_fields(parser, fields)
    args = parser.parse_args()
    show(measure(plan_of(args)), args)


def show(cases: Sequence[Case], args: argparse.Namespace) -> None:
    """Print the table, and write it where the flags say."""
    results = Results(describe(), args.threads, list(cases))
    print(plain(results))
    if args.out:
        results.write(args.out)
