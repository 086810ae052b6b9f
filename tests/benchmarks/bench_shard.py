"""Speed and memory of `shard` on generated records: `python tests/benchmarks/bench_shard.py`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

RECORDS = 1_000_000
SHARDS = 50
SHARD = "import sys; from esm_pipeline.cli import main; sys.exit(main(sys.argv[1:]))"
LETTERS = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", np.uint8)


def generate(path: Path, records: int) -> None:
    """Write `records` random proteins of 50 to 150 residues on one line each."""
    rng = np.random.default_rng(1)
    with open(path, "wb") as file:
        for index, length in enumerate(rng.integers(50, 151, records).tolist()):
            sequence = LETTERS[rng.integers(0, 20, length)].tobytes()
            file.write(b">protein_%d a generated protein\n%b\n" % (index, sequence))


def measure(fasta: Path, out: Path) -> tuple[float, float, int]:
    """Seconds on the clock, seconds of CPU, and bytes of memory at most of one run."""
    arguments = ["shard", "--quiet", f"--shards={SHARDS}", f"--out={out}", str(fasta)]
    began = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-c", SHARD, *arguments])
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"shard ended with {child.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    seconds = time.perf_counter() - began
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit


def main() -> None:
    """Print records a second and bytes a record."""
    with tempfile.TemporaryDirectory() as folder:
        fasta, out = Path(folder, "in.fasta"), Path(folder, "out")
        fasta.write_text(">one\nMKV\n")
        _, _, least = measure(fasta, out)
        generate(fasta, RECORDS)
        seconds, cpu, most = measure(fasta, out)
    print(
        f"shard: {RECORDS:,} records in {seconds:.1f} s ({RECORDS / seconds:,.0f} records/s; "
        f"{cpu:.1f} s of CPU), {most / 1e6:.0f} MB at most, "
        f"{(most - least) / RECORDS:.0f} bytes a record"
    )


if __name__ == "__main__":
    main()
