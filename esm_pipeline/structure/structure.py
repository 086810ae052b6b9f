"""A predicted structure as arrays, with the atoms and chain names of PDB and mmCIF files."""

from __future__ import annotations

import string
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
"""The chain names of one character: all that a PDB file has."""

RANDOM = "random_weights"
"""Key in a model's config, and flag of a structure: the weights are random."""

MEANINGLESS = "RANDOM WEIGHTS: this structure is meaningless, made to try the software"
"""Remark in the file of a structure predicted with random weights."""

ATOM_NAMES = np.array(residues.ATOM37)[residues.ATOM14_TO_ATOM37]  # (21, 14)


@dataclass(frozen=True)
class Structure:
    """A predicted structure: the R residues of all chains, one chain after the other.

    aatype: (R,) 0–20, indices in `residues.LETTERS`. chains: (R,) 0, 1, … ascending. positions:
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
        """The end of each chain, as an index into all residues (exclusive)."""
        return [*(np.flatnonzero(np.diff(self.chains)) + 1).tolist(), len(self.chains)]

    @cached_property
    def numbers(self) -> Int64:
        """(R,) residue numbers, from 1 in each chain."""
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
        """The confidences of the prediction, as text for the remarks of a file."""
        facts = {"mean_plddt": f"{self.mean_plddt:.2f}", "ptm": f"{self.ptm:.4f}"}
        return facts if self.iptm is None else {**facts, "iptm": f"{self.iptm:.4f}"}

    @cached_property
    def atoms(self) -> tuple[Int64, Int64]:
        """Residue (from 0) and atom14 index of each atom that exists, (N,) each."""
        residue, place = np.nonzero(residues.ATOM14_MASK[self.aatype])
        return residue, place


def chain_name(number: int) -> str:
    """A, …, Z, a, …, z, 0, …, 9 for chains 0 to 61; then AA, AB, …"""
    if number < len(CHAIN_LETTERS):
        return CHAIN_LETTERS[number]
    first, last = divmod(number - len(CHAIN_LETTERS), 26)
    return (chain_name(first) if first < 26 else upper_name(first)) + string.ascii_uppercase[last]


def upper_name(number: int) -> str:
    """A, …, Z, AA, AB, … for 0, 1, …"""
    first, last = divmod(number, 26)
    return (upper_name(first - 1) if first else "") + string.ascii_uppercase[last]


def atom_array(structure: Structure) -> AtomArray:
    """The atoms that exist, with B-factors. Raises InputError if there are none."""
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
    array.res_name = np.array(residues.RESIDUE_NAMES)[kind]
    array.atom_name = ATOM_NAMES[kind, place]
    array.element = array.atom_name.astype("U1")
    array.set_annotation("b_factor", structure.plddt[residue, place].astype(np.float64))
    return array


def ascii_text(text: str) -> str:
    """`text` in printable ASCII: spaces for white space and ? for any other character."""
    return "".join(
        letter if " " <= letter <= "~" else " " if letter.isspace() else "?" for letter in text
    )
