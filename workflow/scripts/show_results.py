"""Print an overview of the results in an output folder: `show_results.py results`."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from esm_pipeline import open_results
from esm_pipeline.errors import number_of

ROWS = 6
NUMBERS = 5
FILES = {
    "*/embeddings.h5": "the embeddings, one file for each sample",
    "*/records.tsv": "the outcome of every record, with the reason",
    "report.html": "counts and pictures, for a browser",
    "verdict.txt": "counts and the most common reasons",
    "provenance.json": "versions, settings, models and digests of the inputs",
    "*/structures.tsv": "the structure of every protein: its file and its confidence",
}


def show_embeddings(path: Path) -> None:
    """Print the size of one file, or of those of all bundles, and the first records."""
    with open_results(path) as results:
        layer = results.layers[-1]
        _, width = results.matrix("mean", layer).shape
        print(
            f"\n{path}: {number_of(len(results), 'protein')}, "
            f"{number_of(len(results.length), 'different sequence')}, "
            f"{width} numbers for each (the mean of layer {layer} over its residues)\n"
        )
        print(f"  {'id':<26} {'residues':>8}   embedding")
        for item, _ in zip(results, range(ROWS), strict=False):
            numbers = " ".join(f"{value:7.3f}" for value in item.mean[layer][:NUMBERS])
            print(f"  {item.id[:26]:<26} {item.length:>8}   {numbers} …")


def show_structures(path: Path) -> None:
    """Print the first rows of one table; of a model with random weights only how many there are."""
    with open(path, encoding="utf-8", newline="") as handle:
        rows = [row for row in csv.DictReader(handle, delimiter="\t") if row["file"]]
    if any("random_weights" in row["flags"] for row in rows):
        print(
            f"\n{path}: {number_of(len(rows), 'protein')} folded, to show the files.\n"
            "The folding model of the demo has random weights: its structures are meaningless.\n"
            "For real ones: --config 'tasks=[fold]' model=facebook/esmfold_v1"
        )
        return
    print(f"\n{path}: structures of {number_of(len(rows), 'protein')}\n")
    print(f"  {'id':<26} {'pLDDT':>6} {'pTM':>6}   file")
    for row in rows[:ROWS]:
        print(f"  {row['id'][:26]:<26} {row['plddt']:>6} {row['ptm']:>6}   {row['file']}")


def main(folder: Path) -> None:
    """Print the results of every sample, then the names of all files."""
    for path in sorted([*folder.glob("*/embeddings.h5"), *folder.glob("*/embeddings")]):
        show_embeddings(path)
    for path in sorted(folder.glob("*/structures.tsv")):
        show_structures(path)
    print()
    for pattern, content in FILES.items():
        for path in sorted(folder.glob(pattern)):
            print(f"  {path!s:<32} {content}")
    snakemake = Path(sys.executable).with_name("snakemake")
    if snakemake.is_relative_to(Path.cwd()):
        snakemake = snakemake.relative_to(Path.cwd())
    print(f"\nYour own proteins: {snakemake} --cores all --config fasta=my.fasta")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
