"""Predicted structures as PDB files, written by biotite.

Chains are A, B, …, residues are numbered from 1 in each chain, and B-factors are pLDDT, 0–100.
Residues without atoms are gaps: their numbers are skipped, and SEQRES has UNK, ASX or GLX. HEADER
is for DSSP, CRYST1 (no crystal) for those that expect one, OXT for molecular dynamics.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

import numpy as np

from esm_pipeline.errors import InputError
from esm_pipeline.structure.structure import (
    CHAIN_LETTERS,
    PLACED_OXYGEN,
    Structure,
    ascii_text,
    atom_array,
    chain_name,
    terminal_oxygens,
)

HEADER = f"HEADER    {'PREDICTED STRUCTURE':<40}{'':<9}   XXXX"
"""Classification, no date, so that the same structure gives the same file, and no PDB code."""

UNKNOWN_HEADER = f"HEADER    {'PROTEIN':<40}{'':<9}   XXXX"
"""The same for a structure of which nothing is known."""

CRYST1 = f"CRYST1{1:9.3f}{1:9.3f}{1:9.3f}{90:7.2f}{90:7.2f}{90:7.2f} {'P 1':<11}{1:>4}"
"""The cell of a structure that is no crystal's."""

B_FACTORS = "B-factors are pLDDT, the confidence of each atom: 0 (none) to 100 (certain)"

MOST_RESIDUES = 9_999
"""In one chain."""

MOST_ATOMS = 99_999
LEAST_COORDINATE, MOST_COORDINATE = -999.999, 9999.999  # Å
REMARK = 220
"""Number of the PDB's remark on how a theoretical model was made."""


def pdb_problem(structure: Structure) -> str | None:
    """Why a structure does not fit into a PDB file, or None if it does."""
    longest, count = max(map(len, structure.sequences)), len(structure.ends)
    oxygens = terminal_oxygens(structure)[1]
    atoms = len(structure.atoms[0]) + len(oxygens) + count  # the TER of each chain has a number too
    if count > len(CHAIN_LETTERS):
        return f"{count:,} chains, a PDB file has names for {len(CHAIN_LETTERS)}"
    if longest > MOST_RESIDUES:
        return f"{longest:,} residues in a chain, a PDB file has numbers for {MOST_RESIDUES:,}"
    if atoms > MOST_ATOMS:
        return f"{atoms:,} atoms, a PDB file has numbers for {MOST_ATOMS:,}"
    placed = np.concatenate([structure.positions[structure.atoms], oxygens])
    if not ((placed > LEAST_COORDINATE) & (placed < MOST_COORDINATE)).all():
        return (
            f"coordinates outside of {LEAST_COORDINATE} to {MOST_COORDINATE} Å, a PDB file's range"
        )
    return None


def pdb_text(structure: Structure, title: str, facts: Mapping[str, str]) -> str:
    """The text of a PDB file; its remarks are `facts`, such as the model and its settings.

    Raises InputError for a structure that does not fit.
    """
    from biotite.structure.io.pdb import PDBFile

    problem = pdb_problem(structure)
    if problem:
        raise InputError(f"{title}: {problem}; write it as mmCIF")
    file = PDBFile()
    file.set_structure(atom_array(structure))
    remarks = [f"{name}: {value}" if name else value for name, value in facts.items()]
    remarks += [B_FACTORS, *([PLACED_OXYGEN] if len(terminal_oxygens(structure)[0]) else [])]
    heads = [*heading(title, remarks), *sequence_lines(structure), CRYST1]
    return "".join(f"{line:<80}\n" for line in [*heads, *with_ends(file.lines), "END"])


def heading(title: str, remarks: Iterable[str]) -> Iterator[str]:
    """Lines before those of the sequence: the header, the title and the remarks."""
    yield HEADER
    yield from title_lines(title)
    yield "EXPDTA    THEORETICAL MODEL"
    yield f"REMARK {REMARK}"
    for remark in remarks:
        for part in wrapped_lines(remark, 68):
            yield f"REMARK {REMARK} {part}"


def title_lines(title: str) -> Iterator[str]:
    """TITLE records."""
    for number, part in enumerate(wrapped_lines(title, 68), 1):
        yield f"TITLE   {number if number > 1 else '':>2}{' ' * (number > 1)}{part}"


def with_heading(atoms: str, title: str, remarks: Iterable[str] | None) -> str:
    """The ATOM and TER records in a PDB text, with a heading, which programs such as DSSP need.

    `remarks` are those of a prediction, None for a structure of which nothing is known.
    """
    own = ("ATOM  ", "TER   ")
    heads = [UNKNOWN_HEADER, *title_lines(title)]
    if remarks is not None:
        heads = [*heading(title, remarks)]
    lines = [line for line in atoms.splitlines() if line.startswith(own)]
    return "".join(f"{line:<80}\n" for line in [*heads, CRYST1, *lines, "END"])


def wrapped_lines(text: str, width: int) -> list[str]:
    """`text` in printable ASCII, in lines of at most `width` characters."""
    return textwrap.wrap(ascii_text(text), width, drop_whitespace=True) or [""]


def sequence_lines(structure: Structure) -> Iterator[str]:
    """SEQRES records of all residues, including those without atoms."""
    for chain, (start, end) in enumerate(pairwise([0, *structure.ends])):
        names = structure.names[start:end]
        for line, first in enumerate(range(0, len(names), 13), 1):
            some = " ".join(names[first : first + 13])
            yield f"SEQRES {line:>3} {chain_name(chain)} {len(names):>4}  {some}"


def with_ends(lines: list[str]) -> Iterator[str]:
    """Renumbered ATOM records, with a TER record after each chain, which has a number too."""
    added = 0
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        number = int(line[6:11]) + added
        yield f"{line[:6]}{number:>5}{line[11:]}"
        if following[21:22] != line[21]:
            added += 1
            yield f"TER   {number + 1:>5}      {line[17:26]}"
