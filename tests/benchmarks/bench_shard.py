"""Speed, memory and temporary disk of `shard` on generated records.

`python -m tests.benchmarks.bench_shard [RECORDS ...]`, a million unless told.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

MILLION = 1_000_000
MEDIANS = (85, 270)  # residues: short ones of a metagenome, UniProt's
BUNDLES = 2
SHARD = "import sys; from esm_pipeline.cli import main; sys.exit(main(sys.argv[1:]))"
LETTERS = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", np.uint8)
BLOCK = 10_000
INTERVAL = 0.1  # seconds between two looks at the open files


class Cost(NamedTuple):
    """What a run took: seconds on the clock and of CPU, bytes of memory and of disk at most."""

    seconds: float
    cpu: float
    memory: int
    disk: int
    """Of files without a name, which are gone afterwards."""


def generate(path: Path, records: int, median: int) -> None:
    """Write `records` random proteins, spread in length as UniProt's are, on one line each."""
    rng = np.random.default_rng(1)
    with open(path, "wb") as file:
        for begin in range(0, records, BLOCK):
            count = min(BLOCK, records - begin)
            lengths = np.clip(rng.lognormal(np.log(median), 0.6, count), 20, 2000).astype(np.int64)
            ends = lengths.cumsum()
            text = LETTERS[rng.integers(0, 20, ends[-1])].tobytes()
            for index, (end, length) in enumerate(zip(ends, lengths, strict=True), begin):
                file.write(b">protein_%d a generated protein\n" % index)
                file.write(text[end - length : end] + b"\n")


def measure(fasta: Path, out: Path) -> Cost:
    """Run `shard` in a process of its own."""
    arguments = ["shard", "--quiet", f"--bundles={BUNDLES}", f"--out={out}", str(fasta)]
    began = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-c", SHARD, *arguments])
    disk = 0
    while not (ended := os.wait4(child.pid, os.WNOHANG))[0]:
        disk = max(disk, nameless_bytes(child.pid))
        time.sleep(INTERVAL)
    _, status, usage = ended
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"shard ended with {child.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    seconds = time.perf_counter() - began
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit, disk)


def nameless_bytes(pid: int) -> int:
    """Bytes of the open files of a process that have no name; 0 where that is not known."""
    total = 0
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            found = entry.stat()
            total += found.st_size if found.st_nlink == 0 else 0
    return total


def main() -> None:
    """Print records a second, bytes a record, and temporary disk."""
    counts = [int(text) for text in sys.argv[1:]] or [MILLION]
    for records, median in itertools.product(counts, MEDIANS):
        with tempfile.TemporaryDirectory() as folder:
            fasta, out = Path(folder, "in.fasta"), Path(folder, "out")
            fasta.write_text(">one\nMKV\n")
            least = measure(fasta, out).memory
            generate(fasta, records, median)
            cost, size = measure(fasta, out), fasta.stat().st_size
        print(
            f"shard: {records:,} records of about {median} residues ({size / 1e6:,.0f} MB) "
            f"in {cost.seconds:.1f} s ({records / cost.seconds:,.0f} records/s; "
            f"{cost.cpu:.1f} s of CPU), "
            f"{cost.memory / 1e6:.0f} MB of memory at most, "
            f"{(cost.memory - least) / records:.0f} bytes a record; "
            f"{cost.disk / 1e6:,.0f} MB of temporary disk"
        )


if __name__ == "__main__":
    main()
