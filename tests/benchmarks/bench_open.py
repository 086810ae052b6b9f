"""Time and memory of opening a result of made-up records, and of what is read from it.

`python -m tests.benchmarks.bench_open [RECORDS ...]`: 1e5, 1e6 and 1e7 unless told, in one file and
in one for each of 20 bundles. Each way of reading has a process of its own.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from esm_pipeline.formats.results.layout import Array, RecordRow
from esm_pipeline.formats.results.lookup import sequence_digest
from esm_pipeline.formats.results.open import Results, open_results
from esm_pipeline.formats.results.writer import RaggedWriter
from esm_pipeline.settings.result_names import bundle_names
from tests.benchmarks.costs import exponent

RECORDS = (100_000, 1_000_000, 10_000_000)
BUNDLES = 20
WIDTH = 8
SEED = 1
ATTRIBUTES = {"format": "esm-pipeline/embeddings", "model": "made up", "software": "{}"}


class Reading(NamedTuple):
    """What a process took: seconds on the clock and of CPU, and bytes of memory at most."""

    seconds: float
    cpu: float
    memory: int


def name_of(index: int) -> str:
    """The id of a record."""
    return f"sp|P{index:08d}|MADE_UP"


def sequence_of(index: int) -> str:
    """The sequence of a record, as far as its digest is concerned."""
    return f"M{index}"


def write_part(path: Path, index: range) -> None:
    """Write records with some indices, each with a sequence; rows are in another order."""
    rng, count = np.random.default_rng(SEED), len(index)
    rows = rng.permutation(count)
    digests = np.empty(count, np.uint64)
    digests[rows] = [sequence_digest(sequence_of(one).encode()) for one in index]
    entries = (
        RecordRow(name_of(one), one, row) for one, row in zip(index, rows.tolist(), strict=True)
    )
    lengths = np.full(count, 200, np.int32)
    array = Array("mean/33", "sequence", (WIDTH,), "<f4")
    with RaggedWriter(
        path, [array], lengths, count, entries, ATTRIBUTES, digests=digests
    ) as writer:
        values = rng.standard_normal((count, WIDTH), np.float32)
        writer.write(array.name, np.arange(count), values)


def write_results(folder: Path, records: int, bundles: int) -> None:
    """Write a result of `records` records, dealt to the bundles."""
    if bundles == 1:
        write_part(folder / "embeddings.h5", range(records))
        return
    (folder / "embeddings").mkdir()
    for number, name in enumerate(bundle_names(bundles)):
        write_part(folder / "embeddings" / f"{name}.h5", range(number, records, bundles))


def chosen(results: Results) -> Iterator[int]:
    """The indices of some records, anywhere in the input."""
    yield from np.random.default_rng(SEED).integers(0, len(results), 1000).tolist()


def by_id(results: Results) -> None:
    """Read the vectors of one record, found by its id."""
    index = next(chosen(results))
    assert results[name_of(index)].mean[33].shape == (WIDTH,)


def by_many_ids(results: Results) -> None:
    """The same of a thousand records."""
    for index in chosen(results):
        assert results[name_of(index)].mean[33].shape == (WIDTH,)


def by_sequence(results: Results) -> None:
    """Find one record by its sequence."""
    index = next(chosen(results))
    assert [item.index for item in results.by_sequence(sequence_of(index))] == [index]


def matrix(results: Results) -> None:
    """Read all vectors, block by block."""
    assert sum(map(len, results.matrix().blocks())) == len(results)


def everything(results: Results) -> None:
    """Look at the id, index and length of all records."""
    assert sum(item.length for item in results) == 200 * len(results)


WAYS: dict[str, Callable[[Results], None]] = {
    "open": lambda results: None,
    "one id": by_id,
    "1,000 ids": by_many_ids,
    "one sequence": by_sequence,
    "matrix by blocks": matrix,
    "iteration": everything,
}


def measure(work: Callable[[], None]) -> Reading:
    """Do something in a process of its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            began = time.perf_counter()
            work()
            os.write(writing, repr(time.perf_counter() - began).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with open(reading, "rb") as file:
        told = file.read()
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"a process ended with {os.waitstatus_to_exitcode(status)}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Reading(float(told), usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit)


def read(path: Path, way: str) -> None:
    """Open the results and read them in one way."""
    with open_results(path) as results:
        WAYS[way](results)


def main() -> None:
    """Print seconds and memory of each way, and how the seconds of CPU grow."""
    counts = [int(float(text)) for text in sys.argv[1:]] or [*RECORDS]
    for bundles in (1, BUNDLES):
        seconds: dict[str, list[float]] = {}
        for records in counts:
            print(f"{records:,} records, {bundles} files", flush=True)
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                path = folder / ("embeddings.h5" if bundles == 1 else "embeddings")
                jobs = {"writing": partial(write_results, folder, records, bundles)}
                jobs |= {way: partial(read, path, way) for way in WAYS}
                for way, job in jobs.items():
                    one = measure(job)
                    seconds.setdefault(way, []).append(one.cpu)
                    told = f"{one.seconds:8.3f} s {one.cpu:8.3f} s of CPU"
                    print(f"  {way:<17} {told} {one.memory / 1e6:6.0f} MB", flush=True)
        if len(counts) > 1:
            for way, values in seconds.items():
                print(f"  {way:<17} grows with N^{exponent(counts, values):.2f}")


if __name__ == "__main__":
    main()
