"""Time and memory of the last commands of a run, on made-up records and embeddings in bundles.

`python -m tests.benchmarks.bench_end [RECORDS ...]`; without numbers, of 1e5, 1e6 and 1e7 records.
Disk: about 600 bytes a record. Seconds are those of CPU, which other processes change little.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from esm_pipeline.formats.checksums import sha256, write_digests
from esm_pipeline.formats.input_checksums import states, write_inputs
from esm_pipeline.formats.records import format_row, header_line, status_columns
from esm_pipeline.formats.results.layout import Array, RecordRow
from esm_pipeline.formats.results.writer import RaggedWriter
from esm_pipeline.settings.result_names import bundle_names, of_bundles
from esm_pipeline.tasks.common.model_file import write_model_file
from tests.benchmarks.costs import Cost, exponent, measure

SIZES = (100_000, 1_000_000, 10_000_000)
RECORDS_PER_BUNDLE, WIDTH = 500_000, 8
FEWEST = 4  # bundles
FACTS = {"model": "made up", "weights_sha256": "ab" * 32, "dtype": "float32"}


def rows(first: int, count: int, bundles: int) -> Iterator[tuple[int, bytes, bytes]]:
    """Bundle, row and outcome of some records, of which a few are skipped or duplicates."""
    rng = np.random.default_rng(first)
    lengths = np.clip(rng.lognormal(5.6, 0.6, count), 20, 2000).astype(int).tolist()
    dealt, digests = rng.integers(0, bundles, count).tolist(), rng.bytes(32 * count).hex()
    for place, (bundle, length) in enumerate(zip(dealt, lengths, strict=True)):
        index = first + place
        start = f"{index}\tsp|P{index:08d}|X\tsp|P{index:08d}|X a made-up protein of a benchmark\t"
        if length % 100 == 0:
            reason = f"a gap '-' at residue {length}"
            row, outcome = f"{start}\t\tskipped\t{reason}\t\t\n", f"{index}\tskipped\t{reason}\n"
        else:
            twin = "0" if length % 10 == 1 and index else ""
            row = f"{start}{length}\t{digests[64 * place : 64 * place + 64]}\tok\t\t\t{twin}\n"
            long = f"{length} residues, but positions for 1022"
            outcome = f"{index}\tok\t\n" if length <= 1022 else f"{index}\tskipped\t{long}\n"
        yield bundle, row.encode(), outcome.encode()


def write_tables(sample: Path, records: int, bundles: int) -> None:
    """The tables of all bundles, and the lists of their digests."""
    names, tables, statuses = bundle_names(bundles), sample / "bundles", sample / "embed"
    for folder in (tables, statuses):
        folder.mkdir(parents=True)
    with ExitStack() as stack:
        files = [
            [
                stack.enter_context(open(tables / f"{name}.records.tsv", "wb")),
                stack.enter_context(open(statuses / f"{name}.status.tsv", "wb")),
            ]
            for name in names
        ]
        for table, status in files:
            table.write(header_line().encode())
            status.write(format_row(status_columns("embed")).encode())
        for first in range(0, records, RECORDS_PER_BUNDLE):
            for bundle, row, outcome in rows(
                first, min(RECORDS_PER_BUNDLE, records - first), bundles
            ):
                files[bundle][0].write(row)
                files[bundle][1].write(outcome)
    write_digests(tables / "digests.sha256", {path.name: path for path in tables.glob("*.tsv")})


def write_results(sample: Path, records: int, bundles: int) -> None:
    """Embeddings of all bundles, the numbers of records in each about the same."""
    rng = np.random.default_rng(0)
    (sample / "embeddings").mkdir()
    for number, name in enumerate(of_bundles("embeddings.h5", bundles)):
        count = len(range(number, records, bundles))
        lengths = np.sort(rng.integers(20, 1022, count))[::-1]
        entries = (RecordRow(f"P{row}", number + row * bundles, row) for row in range(count))
        told = {"format": "esm-pipeline/embeddings", **FACTS}
        arrays = [Array("mean/33", "sequence", (WIDTH,), "<f4")]
        with RaggedWriter(sample / name, arrays, lengths, count, entries, told) as writer:
            for first in range(0, count, 10_000):
                chosen = np.arange(first, min(count, first + 10_000))
                values = rng.normal(size=(len(chosen), WIDTH)).astype(np.float32)
                writer.write("mean/33", chosen, values)
        status = sample / "embed" / f"{bundle_names(bundles)[number]}.status.tsv"
        listed = {status.name: status, f"../{name}": sample / name}
        write_digests(status.with_name(f"{status.name[:5]}.sha256"), listed)


def run_of(folder: Path, records: int) -> dict[str, Cost]:
    """What the commands took at the end of a run of so many records."""
    bundles = max(FEWEST, records // RECORDS_PER_BUNDLE)
    out, fasta = folder / "results", folder / "in.fasta"
    sample = out / "in"
    write_tables(sample, records, bundles)
    write_results(sample, records, bundles)
    fasta.write_text(">a\nMKV\n")
    write_inputs(sample / "inputs.sha256", [str(fasta)], [sha256(fasta)], states([str(fasta)]))
    model = {"format": "esm-pipeline/model", "format_version": 1, "name": "demo", "revision": None}
    write_model_file(out / "model.json", {**model, "weights_sha256": "ab" * 32})
    settings = json.dumps({"fasta": str(fasta), "outdir": str(out), "shards": 200 * bundles})
    merged = (f"--out={sample / 'records.tsv'}", f"--counts={sample / 'counts/records.json'}")
    given = (
        f"--bundles={sample / 'bundles'}",
        f"--count={bundles}",
        f"--status=embed={sample}/embed",
    )
    own = f"--settings={settings}"
    return {
        "records": measure("aggregate", "records", *given, *merged),
        "verdict": measure("verdict", own, f"--out={out / 'verdict.txt'}"),
        "report": measure("report", own, f"--out={out / 'report.html'}"),
        "provenance": measure("provenance", own, f"--out={out / 'provenance.json'}"),
    }


def main() -> None:
    """Print seconds, memory and exponents of each command."""
    sizes = [int(float(text)) for text in sys.argv[1:]] or [*SIZES]
    found: dict[str, list[Cost]] = {}
    for records in sizes:
        with tempfile.TemporaryDirectory() as folder:
            for name, cost in run_of(Path(folder), records).items():
                found.setdefault(name, []).append(cost)
                print(
                    f"{name}: {records:,} records in {cost.cpu:.2f} s of CPU ({cost.seconds:.1f} s "
                    f"on the clock; {1e6 * cost.cpu / records:.2f} µs a record), "
                    f"{cost.memory / 1e6:.0f} MB of memory at most",
                    flush=True,
                )
    if len(sizes) > 1:
        for name, costs in found.items():
            power = exponent(sizes, [cost.cpu for cost in costs])
            memory = exponent(sizes, [cost.memory for cost in costs])
            print(f"{name}: exponent {power:.2f} of CPU, {memory:.2f} of memory")


if __name__ == "__main__":
    main()
