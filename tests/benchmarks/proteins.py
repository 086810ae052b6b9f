"""The sequences that are measured: real proteins of natural lengths.

`proteins.fasta.gz` holds 64 proteins, drawn at random (the seed stands below) from those with 30 to
1,022 residues, all of the 20, of `DB.fasta.gz` in Debian's package `mmseqs2-examples`
14-7e284+ds-1: every residue is a protein's own, and so is every length. Made by

    python -m tests.benchmarks.proteins DB.fasta.gz

Sequences and headers are UniProt's (The UniProt Consortium, www.uniprot.org), under the Creative
Commons Attribution 4.0 International licence (CC BY 4.0); a mark of MMseqs2 at the end of the
headers was left out.
"""

from __future__ import annotations

import gzip
import random
import sys
from pathlib import Path

from esm_pipeline import demo_model
from esm_pipeline.formats.fasta import read_fasta

FILE = Path(__file__).with_name("proteins.fasta.gz")
DATA = FILE.parents[1] / "data"
COUNT, SHORTEST, LONGEST = 64, 30, 1022
AMINO_ACIDS = frozenset("ACDEFGHIKLMNPQRSTVWY")


def read(path: Path) -> list[tuple[str, str]]:
    """Headers and sequences."""
    return [(header.decode(), sequence.decode()) for _, header, sequence in read_fasta(str(path))]


def proteins(count: int = COUNT) -> list[str]:
    """`count` of the 64, spread evenly over their lengths, the shortest first."""
    found = sorted((sequence for _, sequence in read(FILE)), key=len)
    return [found[place * (COUNT - 1) // max(count - 1, 1)] for place in range(count)]


def text() -> str:
    """All real proteins of this repository, laid end to end; 120,000 residues."""
    demo = demo_model().parent / "demo.fasta"
    others = [*DATA.glob("membrane/*.fasta.gz"), DATA / "short_proteins.fasta.gz"]
    found = {sequence for path in [FILE, demo, *sorted(others)] for _, sequence in read(path)}
    return "".join(sorted(one for one in found if AMINO_ACIDS.issuperset(one)))


def records(count: int) -> list[str]:
    """`count` different sequences like real ones: slices of `text`, as long as the 64 are."""
    choose, whole = random.Random(1), text()
    lengths = [len(sequence) for sequence in proteins()]
    found: dict[str, None] = {}
    while len(found) < count:
        length = lengths[len(found) % len(lengths)]
        begin = choose.randrange(len(whole) - length)
        found[whole[begin : begin + length]] = None
    return list(found)


def write_fasta(path: Path, sequences: list[str]) -> Path:
    """A FASTA file of them."""
    path.write_text("".join(f">p{i}\n{one}\n" for i, one in enumerate(sequences)))
    return path


def main(database: Path) -> None:
    """Draw the 64."""
    usable = {
        sequence: header
        for header, sequence in read(database)
        if SHORTEST <= len(sequence) <= LONGEST and AMINO_ACIDS.issuperset(sequence)
    }
    chosen = random.Random(1).sample(sorted(usable), COUNT)
    lines = (f">{usable[one].strip().removesuffix(' Split=0')}\n{one}\n" for one in chosen)
    FILE.write_bytes(gzip.compress("".join(lines).encode(), mtime=0))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
