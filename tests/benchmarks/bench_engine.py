"""What Snakemake itself costs: a workflow of the shape of ours, whose jobs do nothing.

    python -m tests.benchmarks.bench_engine [--jobs N ...] [--finish N] [--flags '--scheduler ilp']

One sample, bundles of 200 jobs with made-up sequences and real indices, and the real functions of
memory and run time. Printed for each number of jobs: CPU and memory of a dry run; CPU of Snakemake
until the first job of a bundle has run, and of each job after that, until `--finish` have; the
files that it leaves for each. At the end, the exponents of the growth.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from esm_pipeline.formats.bundles import write_index
from esm_pipeline.formats.checksums import write_digests
from tests.benchmarks.costs import exponent

JOBS = (100, 1_000, 10_000, 50_000)
RANGES = 200
SEQUENCES = 2_000
FLAGS = "--cores 2 --scheduler greedy --scheduler-subsample 100"
FLAGS += " --scheduler-greedy-omit-prioritize-by-temp-and-input"
INTERVAL = 0.2  # seconds between two looks
ROOT = Path(__file__).resolve().parents[2]
MEBI = 2**20

MODEL = {
    "format": "esm-pipeline/model",
    "name": "m",
    "revision": None,
    "weights_sha256": "0",
    "parameters": 650_000_000,
    "config": {
        "num_hidden_layers": 33,
        "hidden_size": 1280,
        "num_attention_heads": 20,
        "intermediate_size": 5120,
        "max_residues": None,
    },
}

SNAKEFILE = """
import os, sys
from functools import cache
from pathlib import Path

sys.path.insert(0, {root!r})
from esm_pipeline.formats.bundles import Bundle, Range, range_names
from esm_pipeline.settings.sections import EmbedSettings, JobLimits
from esm_pipeline.tasks.embed.work import EMBED_WORK, embed_need

BUNDLES = [f"{{number:05d}}" for number in range({bundles})]
NAMES = range_names({ranges})
IN = "out/{{sample}}/bundles/"


wildcard_constraints:
    sample="s",
    bundle=r"\\d{{5}}",
    range=r"\\d+-of-\\d+",


@cache
def lengths_of(fasta, changed, count):
    bundle = Bundle.open(Path(fasta))
    return bundle.length.astype("i8"), bundle.bounds(EMBED_WORK, count)



@cache
def ask(fasta, changed, model, part, attempt):
    number, count = Range.parse(part)
    lengths, bounds = lengths_of(fasta, changed, count)
    own = lengths[bounds[number - 1] : bounds[number]]
    settings = EmbedSettings()
    need = embed_need([Path(model)], settings, own, threads=1)
    return need.request(settings, threads=1, attempt=attempt, limits=JobLimits(), where=fasta)


def asked(wildcards, input, attempt):
    changed = os.stat(input.index).st_mtime_ns
    return ask(input.fasta, changed, input.model, wildcards.range, attempt)


def command(wildcards, output):
    return "python -P -m esm_pipeline"


rule all:
    input: "out/accepted"

rule shard:
    input: "in.fasta"
    output:
        inputs="out/s/inputs.sha256",
        digests="out/s/bundles/digests.sha256",
        bundles=[
            f"out/s/bundles/{{name}}{{end}}"
            for name in BUNDLES
            for end in (".fasta", ".index.npz", ".records.tsv")
        ],
    log: "out/logs/shard.log"
    benchmark: "out/benchmarks/shard.tsv"
    shell: "cp -r cache/. out/s/bundles/ && touch {{output.inputs}}"

rule model:
    input: "m.json"
    output: "out/model.json"
    localrule: True
    shell: "cp {{input}} {{output}}"

rule check:
    input: "out/model.json"
    output: touch("out/checked")
    localrule: True
    shell: "true"

rule embed:
    input:
        fasta=IN + "{{bundle}}.fasta",
        index=IN + "{{bundle}}.index.npz",
        model="out/model.json",
        checked="out/checked",
    output:
        temp("out/{{sample}}/embed/{{bundle}}/{{range}}.h5"),
    log: "out/logs/embed/{{sample}}/{{bundle}}/{{range}}.log"
    benchmark: "out/benchmarks/embed/{{sample}}/{{bundle}}/{{range}}.tsv"
    retries: 2
    threads: 1
    resources:
        mem_mb=lambda wildcards, input, attempt: asked(wildcards, input, attempt).mem_mb,
        runtime=lambda wildcards, input, attempt: asked(wildcards, input, attempt).runtime,
        device="auto",
        gpu=0,
        token_budget=lambda wildcards, attempt: 16384 // attempt,
    params:
        command=command,
        flags="--dtype=float32",
        inputs="out/{{sample}}/inputs.sha256",
    message: "embed: {{wildcards.range}} of bundle {{wildcards.bundle}} of {{wildcards.sample}}"
    shell: "touch {{output}}"

rule gather:
    input:
        index=IN + "{{bundle}}.index.npz",
        records=IN + "{{bundle}}.records.tsv",
        h5=lambda wildcards: [
            f"out/{{wildcards.sample}}/embed/{{wildcards.bundle}}/{{name}}.h5" for name in NAMES
        ],
    output:
        h5="out/{{sample}}/embeddings/{{bundle}}.h5",
        status="out/{{sample}}/embed/{{bundle}}.status.tsv",
        digests="out/{{sample}}/embed/{{bundle}}.sha256",
    log: "out/logs/gather/{{sample}}/{{bundle}}.log"
    resources:
        mem_mb=4000,
        runtime=240,
    shell: "touch {{output}}"

rule records:
    input:
        [f"out/s/bundles/{{name}}.records.tsv" for name in BUNDLES],
        [f"out/s/embed/{{name}}{{end}}" for name in BUNDLES for end in (".status.tsv", ".sha256")],
    output: "out/s/records.tsv"
    localrule: True
    shell: "touch {{output}}"

rule verdict:
    input:
        "out/s/records.tsv",
        [f"out/s/embeddings/{{name}}.h5" for name in BUNDLES],
    output: touch("out/accepted")
    localrule: True
    shell: "true"
"""


class Process(NamedTuple):
    """What a process has used so far: seconds of CPU, and bytes of memory at most."""

    cpu: float
    memory: int


class Cost(NamedTuple):
    """What the engine costs for a number of jobs."""

    jobs: int
    dry: Process
    start: Process
    """Until the first job of a bundle has run."""
    a_job: float
    """Seconds of CPU for each job after that."""
    files: float
    """Files that are left for each job that has run: logs, benchmarks, metadata."""


def write_workflow(folder: Path, jobs: int) -> None:
    """Write a workflow of about so many jobs, and the bundles that its first job copies."""
    bundles = -(-jobs // RANGES)
    ranges = -(-jobs // bundles)
    (folder / "cache").mkdir(parents=True)
    (folder / "out" / "s" / "bundles").mkdir(parents=True)
    (folder / "in.fasta").write_text(">one\nMKV\n")
    (folder / "m.json").write_text(json.dumps(MODEL))
    length = np.sort(np.random.default_rng(1).integers(30, 1_000, SEQUENCES).astype("i4"))[::-1]
    offset = np.concatenate([[0], np.cumsum(length + 10)])
    first = np.arange(SEQUENCES)
    for number in range(bundles):
        own = folder / "cache" / f"{number:05d}"
        for end in (".fasta", ".records.tsv"):
            Path(f"{own}{end}").write_text(">0\nMKV\n")
        write_index(
            Path(f"{own}.index.npz"),
            first=first,
            length=length,
            offset=offset,
            digest=first.astype("u8"),
            least=1,
        )
    indexes = {path.name: path for path in (folder / "cache").glob("*.npz")}
    write_digests(folder / "cache" / "digests.sha256", indexes)
    values = {"root": str(ROOT), "bundles": bundles, "ranges": ranges}
    (folder / "Snakefile").write_text(SNAKEFILE.format(**values))


def start(folder: Path, *flags: str) -> subprocess.Popen[bytes]:
    """Start Snakemake in `folder`; what it says is in the file `said`."""
    with open(folder / "said", "wb") as said:
        command = [sys.executable, "-m", "snakemake", *flags]
        return subprocess.Popen(command, cwd=folder, stdout=said, stderr=said)


def dry_run(folder: Path) -> Process:
    """CPU and memory of a dry run."""
    child = start(folder, "-n", "-q")
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    require_no_error(folder, child.returncode)
    return Process(usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def require_no_error(folder: Path, code: int | None) -> None:
    """End with what Snakemake said if it failed."""
    if code:
        raise SystemExit((folder / "said").read_text()[-2000:])


def used_by(pid: int) -> Process:
    """What a process has used itself, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    most = Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0]
    return Process(cpu, int(most) * 1024)


def done(folder: Path) -> int:
    """Number of jobs that have run."""
    benchmarks = folder / "out" / "benchmarks" / "embed"
    return sum(len(names) for _, _, names in os.walk(benchmarks))


def run(folder: Path, flags: Sequence[str], finish: int) -> tuple[Process, float, float]:
    """Run until `finish` jobs have; the cost of the start, CPU a job, and files a job."""
    child, first, began = start(folder, *flags), None, 0
    try:
        while child.poll() is None:
            count = done(folder)
            now = used_by(child.pid)
            if count and first is None:
                first, began = now, count
            if count >= finish:
                break
            time.sleep(INTERVAL if first is None else 5 * INTERVAL)
        require_no_error(folder, child.poll())
    finally:
        child.kill()
        child.wait()
    assert first is not None, "no job has run"
    left = (*(folder / "out").glob("logs"), *(folder / "out").glob("benchmarks"))
    files = sum(
        len(names) for top in (*left, folder / ".snakemake") for _, _, names in os.walk(top)
    )
    return first, (now.cpu - first.cpu) / max(1, count - began), files / count


def measure(jobs: int, flags: Sequence[str], finish: int) -> Cost:
    """All figures for a number of jobs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "workflow")
        write_workflow(folder, jobs)
        dry = dry_run(folder)
        first, a_job, files = run(folder, flags, min(jobs, finish))
        shutil.rmtree(folder)
    return Cost(jobs, dry, first, a_job, files)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, nargs="+", default=JOBS)
    parser.add_argument("--finish", type=int, default=1_000, help="jobs to run; 1000")
    parser.add_argument("--flags", default=FLAGS, help="of Snakemake, as one word")
    args = parser.parse_args()
    print(f"snakemake {args.flags}")
    print(
        f"{'jobs':>8}{'dry run':>10}{'first job':>11}{'a job':>10}{'memory':>9}{'files a job':>13}"
    )
    costs = []
    for jobs in args.jobs:
        one = measure(jobs, shlex.split(args.flags), args.finish)
        costs.append(one)
        memory = max(one.dry.memory, one.start.memory) / MEBI
        print(
            f"{one.jobs:>8,}{one.dry.cpu:>8.1f} s{one.start.cpu:>9.1f} s{one.a_job * 1e3:>7.1f} ms"
            f"{memory:>5.0f} MiB{one.files:>13.1f}",
            flush=True,
        )
    if len(costs) > 1:
        sizes = [one.jobs for one in costs]
        for what, values in {
            "dry run": [one.dry.cpu for one in costs],
            "first job": [one.start.cpu for one in costs],
            "memory": [one.start.memory for one in costs],
        }.items():
            print(f"{what}: grows as jobs ** {exponent(sizes, values):.2f}")


if __name__ == "__main__":
    main()
