"""Everything that is compared with peers, as one table and one file: what `make bench` runs.

    python -m tests.benchmarks [--quick | --full] [--threads N] [--only model load …] [--out FILE]

Each benchmark is a process of its own, one after the other. What was measured is written after each
of them, so that a run that was cut off leaves what it had; with --only, an earlier run's file keeps
its other parts if it is of the same machine, versions and threads.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.machine import describe
from tests.benchmarks.plan import add_flags
from tests.benchmarks.table import Case, Results, plain

BENCHMARKS = ("model", "fold", "saturation", "load", "embed", "length")
ROOT = Path(__file__).resolve().parents[2]
OUT = Path("build/benchmarks.json")


def flags_of(args: argparse.Namespace) -> list[str]:
    """The flags that each benchmark gets too."""
    size = [f"--{name}" for name in ("quick", "full") if getattr(args, name)]
    rounds = [] if args.rounds is None else [f"--rounds={args.rounds}"]
    return [*size, *rounds, f"--threads={args.threads}"]


def run(name: str, flags: list[str]) -> Results | None:
    """What a benchmark writes; None if it fails, which it has told of by then."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "results.json")
        command = [sys.executable, "-m", f"tests.benchmarks.bench_{name}", f"--out={file}", *flags]
        ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode
        if ended:
            print(f"bench_{name} ended with exit code {ended}", file=sys.stderr, flush=True)
            return None
        return Results.read(file)


def merge(results: Results, found: Results) -> None:
    """Take up what was found, in place of what is of the same name."""
    cases: dict[str, Case] = {one.name: one for one in [*results.cases, *found.cases]}
    results.cases = list(cases.values())
    results.curves = found.curves or results.curves


def earlier(path: Path, now: Results) -> Results:
    """The results at `path` to add to, if they are there and of the same machine and versions."""
    if not path.exists():
        return now
    before = Results.read(path)
    same = before.threads == now.threads and before.machine == now.machine | {
        "load": before.machine["load"]
    }
    return before if same else now


def main() -> int:
    """Run, write, print; 1 if a benchmark failed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=(__doc__ or "").splitlines()[0]
    )
    add_flags(parser)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS)
    args = parser.parse_args()
    out = args.out or OUT
    results = Results(describe(), args.threads, [])
    if args.only != BENCHMARKS:
        results = earlier(out, results)
    out.parent.mkdir(parents=True, exist_ok=True)
    failed = False
    for number, name in enumerate(args.only, 1):
        print(f"{number} of {len(args.only)}: {name}", file=sys.stderr, flush=True)
        found = run(name, flags_of(args))
        failed |= found is None
        if found:
            merge(results, found)
            results.write(out)
    print(plain(results))
    print(f"\nwritten to {out}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
