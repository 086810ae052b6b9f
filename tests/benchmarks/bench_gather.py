"""Time and memory of `shard`, and of `aggregate` of every bundle, on generated records.

`python -m tests.benchmarks.bench_gather [RECORDS ...]`; without numbers, of 1e5, 1e6 and 1e7.
The files of the jobs have made-up embeddings. Disk: about 700 bytes a record. Seconds are those of
CPU, which other processes change little.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from esm_pipeline.settings.result_names import bundle_names
from tests.benchmarks.bench_shard import generate
from tests.benchmarks.costs import Cost, exponent, measure
from tests.jobs import make_jobs

SIZES = (100_000, 1_000_000, 10_000_000)
RECORDS_PER_BUNDLE, RECORDS_PER_JOB = 500_000, 12_500
MEDIAN = 85  # residues, as of a metagenome


def run_of(folder: Path, records: int) -> dict[str, Cost]:
    """What `shard` took, and the gathering of all bundles together, their largest memory."""
    fasta, bundles = folder / "in.fasta", folder / "bundles"
    names = bundle_names(max(1, records // RECORDS_PER_BUNDLE))
    generate(fasta, records, MEDIAN)
    given = (f"--bundles={len(names)}", f"--out={bundles}", "--quiet", fasta)
    found = {"shard": measure("shard", *given)}
    fasta.unlink()
    jobs = max(1, min(records, RECORDS_PER_BUNDLE) // RECORDS_PER_JOB)
    costs = []
    for name in names:
        ranges = folder / name
        make_jobs(bundles / f"{name}.fasta", ranges, jobs)
        given = (f"--bundle={bundles / name}.fasta", f"--ranges={ranges}", f"--count={jobs}")
        wanted = (f"--out={folder / name}.h5", f"--status={folder / name}.status.tsv", "--quiet")
        costs.append(measure("aggregate", "embed", *given, *wanted))
        for file in ranges.iterdir():
            file.unlink()
    cpu, seconds, memory = zip(*costs, strict=True)
    return found | {"gather": Cost(sum(cpu), sum(seconds), max(memory))}


def main(sizes: list[int]) -> None:
    """Print seconds, memory and exponents of both."""
    runs = []
    for records in sizes:
        with tempfile.TemporaryDirectory() as name:
            runs.append(run_of(Path(name), records))
        for command, cost in runs[-1].items():
            print(
                f"{records:>11,} records, {command}: {cost.cpu:.1f} s of CPU "
                f"({1e6 * cost.cpu / records:.1f} µs a record), {cost.seconds:.1f} s, "
                f"{cost.memory / 1e6:,.0f} MB",
                flush=True,
            )
    if len(sizes) > 1:
        for command in runs[0]:
            power = exponent(sizes, [run[command].cpu for run in runs])
            print(f"{command}: exponent {power:.2f} of CPU")


if __name__ == "__main__":
    main([int(float(one)) for one in sys.argv[1:]] or [*SIZES])
