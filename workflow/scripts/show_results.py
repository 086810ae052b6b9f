"""Print the results of a run of the workflow: `show_results.py results`."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from esm_pipeline import open_results

ROWS = 6
NUMBERS = 5
FILES = {
    "*/embeddings.h5": "embeddings of all proteins",
    "*/structures.tsv": "file and confidence of every structure",
    "*/records.tsv": "outcome of every record, and the reason",
    "report.html": "counts, a map of the embeddings, confidence of structures",
    "verdict.txt": "counts and the most common reasons",
    "provenance.json": "versions, settings, models and digests of the inputs",
}


def show_embeddings(path: Path) -> None:
    """Print the first records of one file, and the shape of the whole."""
    with open_results(path) as results:
        layer = results.layers[-1]
        width = results.stored("mean")[str(layer)].shape[1]
        print(
            f"\n{path}: {len(results)} proteins, {len(results.length)} different sequences, "
            f"{width} numbers for each (the mean of layer {layer} over its residues)\n"
        )
        print(f"  {'id':<26} {'residues':>8}   embedding")
        for item, _ in zip(results, range(ROWS), strict=False):
            numbers = " ".join(f"{value:7.3f}" for value in item.mean[layer][:NUMBERS])
            print(f"  {item.id[:26]:<26} {item.length:>8}   {numbers} …")


def show_structures(path: Path) -> None:
    """Print the first rows of one table, and whether its structures mean anything."""
    with open(path, encoding="utf-8", newline="") as handle:
        rows = [row for row in csv.DictReader(handle, delimiter="\t") if row["file"]]
    print(f"\n{path}: {len(rows)} proteins have a structure\n")
    print(f"  {'id':<26} {'pLDDT':>6} {'pTM':>6}   file")
    for row in rows[:ROWS]:
        print(f"  {row['id'][:26]:<26} {row['plddt']:>6} {row['ptm']:>6}   {row['file']}")
    if any("random_weights" in row["flags"] for row in rows):
        print(
            "\n  The folding model of the demo has random weights, made on the spot: its\n"
            "  structures are meaningless. For real ones: tasks='[fold]' model=facebook/esmfold_v1"
        )


def main(folder: Path) -> None:
    """Print the embeddings and structures of every sample, then the paths of all results."""
    for path in sorted(folder.glob("*/embeddings.h5")):
        show_embeddings(path)
    for path in sorted(folder.glob("*/structures.tsv")):
        show_structures(path)
    print()
    for pattern, what in FILES.items():
        for path in sorted(folder.glob(pattern)):
            print(f"  {path!s:<32} {what}")
    snakemake = Path(sys.executable).with_name("snakemake")
    if snakemake.is_relative_to(Path.cwd()):
        snakemake = snakemake.relative_to(Path.cwd())
    print(f"\nYour own proteins: {snakemake} --cores all --config fasta=my.fasta")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
