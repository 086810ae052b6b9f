"""Files of structures: structures a second, bytes a residue and memory of each format.

`python -m tests.benchmarks.bench_structure_files [--structures 20000] [--residues 300]
[--processes 2] [--only foldcomp …]`. Chains of ideal geometry, a few different ones in many places,
are written by `structures` as the workflow runs it. Memory is that of the largest process, at 2,000
structures and at all: it should not grow with their number.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from esm_pipeline.formats.records import Record, write_records
from esm_pipeline.formats.results.layout import RecordRow
from esm_pipeline.formats.results.structures import ARRAYS, Structures, write_structures
from esm_pipeline.formats.results.writer import RaggedWriter
from esm_pipeline.structure.structure import Structure
from tests.benchmarks.costs import Cost, measure
from tests.folded import write_arrays
from tests.ideal_chains import ideal_chain

FEW, MANY = 2_000, 20_000
DIFFERENT = 20
LEAST_RATE = 7
"""Structures a second: a tenth of what folding reaches on a card."""

SHAPES = ("helix", "strand", "loop")
FORMATS = {
    "pdb": ("--formats=pdb", "--pae="),
    "cif": ("--formats=cif", "--pae="),
    "foldcomp": ("--formats=foldcomp", "--pae="),
    "pdb in archives": ("--formats=pdb", "--pae=", "--archive=true"),
    "pdb, pae json": ("--formats=pdb", "--pae=json"),
    "pdb, pae npz": ("--formats=pdb", "--pae=npz"),
    "pdb, pae json in archives": ("--formats=pdb", "--pae=json", "--archive=true"),
    "foldcomp, pae npz in archives": ("--formats=foldcomp", "--pae=npz", "--archive=true"),
}


def chains(count: int, residues: int) -> Iterator[Structure]:
    """Chains about so long, in all shapes, each in a place of its own."""
    kinds = [
        ideal_chain(SHAPES[number % 3], residues * (80 + 2 * number) // 100, seed=number)
        for number in range(DIFFERENT)
    ]
    random = np.random.default_rng(0)
    for number in range(count):
        one = kinds[number % DIFFERENT]
        turn, _ = np.linalg.qr(random.normal(size=(3, 3)))
        turn[:, 0] *= np.sign(np.linalg.det(turn))
        positions = one.positions @ turn
        yield replace(one, positions=(positions - positions.min((0, 1))).astype(np.float32))


def make(folder: Path, count: int, residues: int) -> int:
    """Write arrays and records of so many structures; returns the number of all residues."""
    names = [f"MGYP{number:012d}" for number in range(count)]
    entries = [RecordRow(name, number, number) for number, name in enumerate(names)]
    lengths = np.array(
        [residues * (80 + 2 * (number % DIFFERENT)) // 100 for number in range(count)]
    )
    write_arrays(folder / "one.h5", [ideal_chain("helix", 2)], entries[:1])
    with Structures.open(folder / "one.h5") as example:
        told = {name: str(value) for name, value in example.file.attrs.items()}
    told = {name: value for name, value in told.items() if name not in ("format_version",)}
    with RaggedWriter(folder / "in.h5", ARRAYS, lengths, count, entries, told) as writer:
        for row, one in enumerate(chains(count, residues)):
            write_structures(writer, np.array([row]), [one], [0], [0])
    records = (
        Record(number, name, "", int(lengths[number]), "", "ok").with_outcome("fold", "ok")
        for number, name in enumerate(names)
    )
    write_records(folder / "records.tsv", records, ["fold"])
    return int(lengths.sum())


def size_of(folder: Path) -> int:
    """Bytes of all files of structures, without their tables."""
    found = (path for name in ("structures", "pae") for path in (folder / name).rglob("*"))
    return sum(path.stat().st_size for path in found if path.is_file())


def written(folder: Path, flags: tuple[str, ...], processes: int) -> tuple[Cost, int]:
    """What one run of `structures` took, and the bytes that it wrote."""
    given = (f"--records={folder / 'records.tsv'}", f"--threads={processes}", "--quiet", *flags)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        cost = measure("structures", *given, folder / "in.h5", Path(out, "out"))
        return cost, size_of(Path(out, "out"))


def main() -> int:
    """Print a line for each format; 1 if one is slower than folding."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--structures", type=int, default=MANY)
    parser.add_argument("--residues", type=int, default=300)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=FORMATS, default=[*FORMATS])
    args = parser.parse_args()
    sizes = sorted({min(FEW, args.structures), args.structures})
    found: dict[str, list[Cost]] = {name: [] for name in args.only}
    slowest = math.inf
    for count in sizes:
        with tempfile.TemporaryDirectory() as name:
            residues = make(Path(name), count, args.residues)
            for kind in args.only:
                cost, size = written(Path(name), FORMATS[kind], args.processes)
                found[kind].append(cost)
                rate = count / cost.seconds
                slowest = min(slowest, rate)
                print(
                    f"{count:>7,} structures, {kind}: {rate:.1f} a second with "
                    f"{args.processes} processes ({1e3 * cost.cpu / count:.1f} ms of CPU each), "
                    f"{size / residues:.1f} bytes a residue, {cost.memory / 1e6:,.0f} MB",
                    flush=True,
                )
    print(f"slowest: {slowest:.1f} structures a second, {LEAST_RATE} are needed")
    return int(slowest < LEAST_RATE)


if __name__ == "__main__":
    sys.exit(main())
