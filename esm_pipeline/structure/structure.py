"""Predicted structures as PDB files; what they share with mmCIF. Written by biotite.

Chains are A, B, …, residues are numbered from 1 in each, and B-factors are pLDDT, 0–100. Residues
that are not of the 20 amino acids have no atoms: their numbers are left out, and SEQRES has UNK.
"""

from __future__ import annotations

import string
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from esm_pipeline.arrays import Float32, Int64, UInt8
from esm_pipeline.errors import InputError
from esm_pipeline.structure import residues

if TYPE_CHECKING:
    from biotite.structure import AtomArray

CHAIN_LETTERS = string.ascii_uppercase + string.ascii_lowercase + string.digits
"""Chain names of one letter, as many as a PDB file can tell apart."""

PDB_RESIDUES = 9_999
PDB_ATOMS = 99_999
PDB_LEAST, PDB_MOST = -999.999, 9999.999  # Å
REMARK = 220
"""The PDB's remark for how a theoretical model was made."""

RANDOM = "random_weights"
"""In a model's config, and flag of a structure: the weights are random, structures meaningless."""

MEANINGLESS = "RANDOM WEIGHTS: this structure is meaningless, made to try the software"


ATOM_NAMES = np.array(residues.ATOM37)[residues.ATOM14_TO_ATOM37]  # (21, 14)


@dataclass(frozen=True)
class Structure:
    """A prediction: R residues of all chains, end to end.

    aatype: (R,) 0–20, places in `residues.LETTERS`. chains: (R,) 0, 1, … ascending. positions:
    (R, 14, 3) Å and plddt: (R, 14) 0–100, in atom14 order. pae: (R, R) predicted aligned error in
    eighths of Å. mean_plddt: over C-alphas, 0–100. ptm: 0–1. iptm: 0–1, None for a single chain.
    """

    aatype: Int64
    chains: Int64
    positions: Float32
    plddt: Float32
    pae: UInt8
    mean_plddt: float
    ptm: float
    iptm: float | None = None

    @cached_property
    def ends(self) -> list[int]:
        """Where each chain ends, in residues of all."""
        return [*(np.flatnonzero(np.diff(self.chains)) + 1).tolist(), len(self.chains)]

    @cached_property
    def numbers(self) -> Int64:
        """(R,) number of each residue, from 1 in each chain."""
        starts = np.array([0, *self.ends[:-1]])
        numbers: Int64 = np.arange(1, len(self.chains) + 1)
        numbers -= np.repeat(starts, np.diff([0, *self.ends]))
        return numbers

    @cached_property
    def sequences(self) -> list[str]:
        """The letters of each chain."""
        letters, starts = residues.decode(self.aatype), [0, *self.ends]
        return [letters[start:end] for start, end in pairwise(starts)]

    @property
    def facts(self) -> dict[str, str]:
        """How good the prediction is held to be, as files tell it."""
        facts = {"mean_plddt": f"{self.mean_plddt:.2f}", "ptm": f"{self.ptm:.4f}"}
        return facts if self.iptm is None else {**facts, "iptm": f"{self.iptm:.4f}"}

    @cached_property
    def atoms(self) -> tuple[Int64, Int64]:
        """Residue, from 0, and place in atom14 of each atom that is there."""
        residue, place = np.nonzero(residues.ATOM14_MASK[self.aatype])
        return residue, place


def chain_name(number: int) -> str:
    """A, …, Z, a, …, z, 0, …, 9 of chains 0 to 61; then AA, AB, …"""
    if number < len(CHAIN_LETTERS):
        return CHAIN_LETTERS[number]
    first, last = divmod(number - len(CHAIN_LETTERS), 26)
    return (chain_name(first) if first < 26 else upper_name(first)) + string.ascii_uppercase[last]


def upper_name(number: int) -> str:
    """A, …, Z, AA, AB, … of 0, 1, …"""
    first, last = divmod(number, 26)
    return (upper_name(first - 1) if first else "") + string.ascii_uppercase[last]


def pdb_problem(structure: Structure) -> str | None:
    """Why a structure does not fit into a PDB file, None if it does."""
    longest, count = max(map(len, structure.sequences)), len(structure.ends)
    atoms = len(structure.atoms[0]) + count  # each chain's end has a number too
    if count > len(CHAIN_LETTERS):
        return f"{count:,} chains, a PDB file has names for {len(CHAIN_LETTERS)}"
    if longest > PDB_RESIDUES:
        return f"{longest:,} residues in a chain, a PDB file has numbers for {PDB_RESIDUES:,}"
    if atoms > PDB_ATOMS:
        return f"{atoms:,} atoms, a PDB file has numbers for {PDB_ATOMS:,}"
    placed = structure.positions[structure.atoms]
    if not ((placed > PDB_LEAST) & (placed < PDB_MOST)).all():
        return f"coordinates outside of the {PDB_LEAST} to {PDB_MOST} Å that a PDB file can tell"
    return None


def atom_array(structure: Structure) -> AtomArray:
    """The atoms that are there, with B-factors. Raises InputError if there is none."""
    from biotite.structure import AtomArray

    residue, place = structure.atoms
    if not len(residue):
        raise InputError(
            "a structure without atoms; only the 20 amino acids have them, correct the sequence"
        )
    kind = structure.aatype[residue]
    names = np.array([chain_name(chain) for chain in range(len(structure.ends))])
    array = AtomArray(len(residue))
    array.coord = structure.positions[residue, place]
    array.chain_id = names[np.searchsorted(structure.ends, residue, side="right")]
    array.res_id = structure.numbers[residue]
    array.res_name = np.array(residues.NAMES)[kind]
    array.atom_name = ATOM_NAMES[kind, place]
    array.element = array.atom_name.astype("U1")
    array.set_annotation("b_factor", structure.plddt[residue, place].astype(np.float64))
    return array


def pdb_text(structure: Structure, title: str, facts: Mapping[str, str]) -> str:
    """A PDB file. `facts` tell how it was made, and stand in remarks.

    Raises InputError for a structure that does not fit.
    """
    from biotite.structure.io.pdb import PDBFile

    problem = pdb_problem(structure)
    if problem:
        raise InputError(f"{title}: {problem}; write it as mmCIF")
    file = PDBFile()
    file.set_structure(atom_array(structure))
    lines = [*heading(title, facts), *sequence_lines(structure), *with_ends(file.lines), "END"]
    return "".join(f"{line:<80}\n" for line in lines)


def heading(title: str, facts: Mapping[str, str]) -> Iterator[str]:
    """Title and remarks."""
    titles = wrapped(title, 68)
    for number, part in enumerate(titles, 1):
        yield f"TITLE   {number if number > 1 else '':>2}{' ' * (number > 1)}{part}"
    yield "EXPDTA    THEORETICAL MODEL"
    yield f"REMARK {REMARK}"
    for name, value in facts.items():
        for part in wrapped(f"{name}: {value}" if name else value, 68):
            yield f"REMARK {REMARK} {part}"


def wrapped(text: str, width: int) -> list[str]:
    """`text` as plain ASCII in lines of at most `width`."""
    return textwrap.wrap(plain(text), width, drop_whitespace=True) or [""]


def plain(text: str) -> str:
    """`text` with spaces for white space and ? for what is not printable ASCII."""
    return "".join(
        letter if " " <= letter <= "~" else " " if letter.isspace() else "?" for letter in text
    )


def sequence_lines(structure: Structure) -> Iterator[str]:
    """SEQRES records: all residues, those without atoms too."""
    for chain, sequence in enumerate(structure.sequences):
        names = [residues.NAMES[number] for number in residues.encode(sequence)]
        for line, start in enumerate(range(0, len(names), 13), 1):
            some = " ".join(names[start : start + 13])
            yield f"SEQRES {line:>3} {chain_name(chain)} {len(names):>4}  {some}"


def with_ends(lines: list[str]) -> Iterator[str]:
    """ATOM records numbered anew, with a TER behind each chain, which has a number too."""
    added = 0
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        number = int(line[6:11]) + added
        yield f"{line[:6]}{number:>5}{line[11:]}"
        if following[21:22] != line[21]:
            added += 1
            yield f"TER   {number + 1:>5}      {line[17:26]}"
