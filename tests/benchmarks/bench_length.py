"""Cost against length: seconds for each residue, of sequences from 64 to 4,096 residues.

    python -m tests.benchmarks.bench_length [--quick] [--threads N] [--out results.json]

About 4,096 residues at each length, cut from real proteins laid end to end, so that one long
sequence stands beside many short ones. `plots.py` draws it.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.machine import describe
from tests.benchmarks.models import write_checkpoint
from tests.benchmarks.peers import BASE, WAYS
from tests.benchmarks.plan import Plan, add_fields, add_flags, plan_of
from tests.benchmarks.proteins import text
from tests.benchmarks.rounds import interleave, workers
from tests.benchmarks.table import Results

RESIDUES = 4096
COMPARED = (BASE, "ours float32", "ours bfloat16", "ours int8")


def cut(length: int) -> list[str]:
    """Sequences of `length` residues, 4,096 in all, or one sequence."""
    whole = text()
    return [whole[i * length : (i + 1) * length] for i in range(max(1, RESIDUES // length))]


def measure(plan: Plan) -> list[dict[str, Any]]:
    """A curve for each way that runs here: its residues and, round by round, seconds for each."""
    curves: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = write_checkpoint(plan.curve_size, Path(name))
        loads = {way: partial(WAYS[way], folder, plan.threads) for way in COMPARED}
        with workers(loads, plan.threads) as ready:
            able = {way: worker for way, worker in ready.items() if not worker.problem}
            for length in plan.lengths:
                sequences = cut(length)
                for worker in able.values():
                    worker.prepare(sequences)
                for way, timed in interleave(able, plan.rounds).items():
                    if timed:
                        curve = curves.setdefault(way, {"way": way, "size": plan.curve_size})
                        residues = length * len(sequences)
                        seconds = [one / residues for one, _ in timed]
                        curve.setdefault("points", []).append([length, seconds])
    return list(curves.values())


def main() -> None:
    """Measure and print microseconds for each residue."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_flags(parser)
    add_fields(parser, ("lengths", "curve_size"))
    args = parser.parse_args()
    results = Results(describe(), args.threads, [], measure(plan_of(args)))
    print(f"{'microseconds a residue':<24}{'residues':>9}{'least':>9}{'most':>9}")
    for curve in results.curves:
        for length, seconds in curve["points"]:
            print(
                f"{curve['way']:<24}{length:>9}{1e6 * min(seconds):>9.1f}{1e6 * max(seconds):>9.1f}"
            )
    if args.out:
        results.write(args.out)


if __name__ == "__main__":
    main()
