"""Speed and memory of `split` and `join` on generated tables of variants, with made-up scores.

`python -m tests.benchmarks.bench_variants [--shuffled] [ROWS ...]`, 100,000 and a million unless
told. `--shuffled`: the rows of a protein are all over the table.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from esm_pipeline.formats.bundles import Range
from esm_pipeline.formats.records import OK, Outcome
from esm_pipeline.formats.results.job_files import StoredOutcomes
from esm_pipeline.tasks.score.score_files import RangeScores, write_range_scores
from esm_pipeline.tasks.score.variant_range import VariantPart
from tests.benchmarks.costs import Cost, exponent, measure

ROWS = (100_000, 1_000_000)
ROWS_OF_PROTEIN, RESIDUES = 100, 300
ROWS_OF_RANGE = 40_000
WORST_EXPONENT = 1.1
LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def generate(folder: Path, rows: int, *, shuffled: bool) -> int:
    """Write proteins and a table of their substitutions; returns the number of ranges."""
    rng = np.random.default_rng(1)
    proteins = max(1, rows // ROWS_OF_PROTEIN)
    order = np.arange(rows) % proteins if shuffled else np.arange(rows) * proteins // rows
    sequences = []
    with open(folder / "wt.fasta", "w") as file:
        for number in range(proteins):
            sequences.append("".join(np.array(list(LETTERS))[rng.integers(0, 20, RESIDUES)]))
            file.write(f">p{number}\n{sequences[-1]}\n")
    places, letters = rng.integers(0, RESIDUES, rows), rng.integers(0, 20, rows)
    with open(folder / "in.tsv", "w") as file:
        file.write("protein\tmutant\tnote\n")
        for number, place, letter in zip(
            order.tolist(), places.tolist(), letters.tolist(), strict=True
        ):
            text = f"{sequences[number][place]}{place + 1}{LETTERS[letter]}"
            file.write(f"p{number}\t{text}\ta note\n")
    return -(-rows // ROWS_OF_RANGE)


def make_up_scores(folder: Path, count: int) -> None:
    """Write the files that `score` would write for each of `count` ranges."""
    (folder / "scores").mkdir()
    paths = folder / "split" / "variants.tsv", folder / "split" / "wild_types.fasta"
    for number in range(1, count + 1):
        part = VariantPart.open(*paths, Range(number, count))
        rows = part.table().numbers
        proteins = part.bundle.first[part.bundle.proteins(part.span)]
        found = RangeScores(
            rows=rows,
            proteins=proteins,
            scores=np.random.default_rng(number).normal(size=(len(rows), 1)),
            outcomes=StoredOutcomes.of([Outcome(OK)] * (len(rows) + len(proteins))),
            columns=["masked_marginal"],
            provenance={"strategy": "masked_marginal"},
        )
        write_range_scores(folder / "scores" / f"{part.part.name}.h5", found, part.attributes)


def measure_both(folder: Path, rows: int, *, shuffled: bool) -> dict[str, Cost]:
    """Split a table, make scores up, and join them."""
    count = generate(folder, rows, shuffled=shuffled)
    split = ("--quiet", "--variants", folder / "in.tsv", "--out", folder / "split")
    costs = {"split": measure("split", *split, folder / "wt.fasta")}
    make_up_scores(folder, count)
    joined = ("--out", folder / "out.tsv", "--status", folder / "status.tsv")
    more = ("--provenance", folder / "out.json", "--counts", folder / "counts.json")
    inputs = ("--split", folder / "split", "--scores", folder / "scores", "--count", count)
    table = ("--quiet", "--variants", folder / "in.tsv")
    costs["join"] = measure("join", *table, *inputs, *joined, *more)
    return costs


def main() -> None:
    """Print seconds and bytes a row, and the exponents."""
    words = sys.argv[1:]
    shuffled = "--shuffled" in words
    counts = [int(word) for word in words if word != "--shuffled"] or [*ROWS]
    runs: list[dict[str, Cost]] = []
    for rows in (1, *counts):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(measure_both(Path(folder), rows, shuffled=shuffled))
        for name, cost in runs[-1].items() if rows > 1 else ():
            beyond = (cost.memory - runs[0][name].memory) / rows
            print(
                f"{name}: {rows:,} rows in {cost.cpu:.1f} s of CPU "
                f"({cost.cpu / rows * 1e6:.1f} µs a row), {cost.memory / 1e6:.0f} MB of memory "
                f"at most, {beyond:.0f} bytes a row",
                flush=True,
            )
    for name in runs[0] if len(counts) > 1 else ():
        power = exponent(counts, [run[name].cpu for run in runs[1:]])
        verdict = "" if power <= WORST_EXPONENT else f", more than {WORST_EXPONENT}"
        print(f"{name}: seconds of CPU grow with rows^{power:.2f}{verdict}")


if __name__ == "__main__":
    main()
