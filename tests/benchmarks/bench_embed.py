"""The `embed` command: the whole process beside its model, and one job beside several.

    python -m tests.benchmarks.bench_embed [--quick] [--rounds 5] [--threads N]

The packaged model on sequences like real ones (`proteins.records`): seconds of the whole process,
start, files and all, beside those that it says its model took. Then a true size of ESM-2: one job
on all threads beside as many jobs as there are threads, at once, each with an equal part of the
sequences.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.models import write_checkpoint
from tests.benchmarks.plan import Plan, run_alone
from tests.benchmarks.proteins import proteins, records, write_fasta
from tests.benchmarks.table import Case, Row

ROOT = Path(__file__).resolve().parents[2]
JOBS_REPEAT = 2
"""How often the 64 proteins are in the jobs' input, each time without another last residue."""


class Job:
    """A run of the command in a process of its own, started now."""

    def __init__(self, model: str | Path, fasta: Path, threads: int) -> None:
        output = fasta.with_suffix(".h5")
        command = [sys.executable, "-m", "esm_pipeline", "embed", f"--threads={threads}"]
        self.start = time.perf_counter()
        self.process = subprocess.Popen(
            [*command, f"--model={model}", fasta, output],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait(self) -> tuple[float, float]:
        """Seconds of the whole process, and those of its model."""
        _, said = self.process.communicate()
        seconds = time.perf_counter() - self.start
        model = re.search(r"([\d.]+) s of it in the model", said)
        if self.process.returncode or not model:
            raise SystemExit(f"embed ended with {self.process.returncode}: {said}")
        return seconds, float(model[1])


def measure(plan: Plan) -> list[Case]:
    """Both cases."""
    with tempfile.TemporaryDirectory() as name:
        return [whole_process(plan, Path(name)), jobs(plan, Path(name))]


def whole_process(plan: Plan, folder: Path) -> Case:
    """The packaged model: process and model of the same runs."""
    sequences = records(plan.records)
    fasta = write_fasta(folder / "records.fasta", sequences)
    inner, whole = Row("its model alone"), Row("ours, the whole process")
    for round_ in range(1 + plan.rounds):
        seconds, model = Job("demo", fasta, plan.threads).wait()
        if round_:  # the first warms the disk
            whole.values.append(seconds)
            inner.values.append(model)
    residues = sum(map(len, sequences))
    told = f"embed, packaged model, {len(sequences):,} proteins, {residues:,} residues"
    return Case(told, inner.way, [inner, whole], residues=residues)


def jobs(plan: Plan, folder: Path) -> Case:
    """One job and several, in turn."""
    model = write_checkpoint(plan.jobs_size, folder / "model")
    sequences = [one[cut:] for cut in range(JOBS_REPEAT) for one in proteins(plan.proteins)]
    everything = [write_fasta(folder / "all.fasta", sequences)]
    parts = [
        write_fasta(folder / f"part{i}.fasta", sequences[i :: plan.threads])
        for i in range(plan.threads)
    ]
    one, several = Row("ours, one job on all threads"), Row("ours, one job on each thread, at once")
    for round_ in range(1 + plan.rounds):
        for row, files in ((one, everything), (several, parts)):
            threads = plan.threads // len(files)
            start = time.perf_counter()
            for job in [Job(model, fasta, threads) for fasta in files]:
                job.wait()
            if round_:
                row.values.append(time.perf_counter() - start)
    residues = sum(map(len, sequences))
    told = f"embed, ESM-2 {plan.jobs_size}, {len(sequences)} proteins, {residues:,} residues"
    rows = [one, several] if plan.threads > 1 else [one]
    return Case(told, one.way, rows, residues=residues)


if __name__ == "__main__":
    run_alone(__doc__, measure, ("records", "jobs_size", "proteins"))
