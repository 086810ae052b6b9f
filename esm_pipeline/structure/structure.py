"""A predicted structure as arrays, with the atoms and chain names of PDB and mmCIF files."""

from __future__ import annotations

import string
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from esm_pipeline.arrays import Bool, Float32, Float64, Int64, UInt8
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

TERMINAL_OXYGEN = "OXT"
C_OXT = 1.25
CA_C_OXT = 117.5
"""Å and degrees of the second oxygen at the end of a chain, which the model does not predict."""

PLACED_OXYGEN = (
    "OXT, the second oxygen at the end of each chain, is not predicted: it is placed by ideal "
    "geometry, with the B-factor of its C"
)
"""Remark in every file with one."""

LEAST_LENGTH = 1e-3
"""Å: shorter vectors have no direction."""


@dataclass(frozen=True)
class Structure:
    """A predicted structure: the R residues of all chains, one chain after the other.

    aatype: (R,) 0–20, indices in `residues.LETTERS`. chains: (R,) 0, 1, … ascending. positions:
    (R, 14, 3) Å and plddt: (R, 14) 0–100, in atom14 order. pae: (R, R) predicted aligned error in
    eighths of Å. mean_plddt: over C-alphas, 0–100. ptm: 0–1. iptm: 0–1, None for a single chain.
    letters: R letters of the sequence that was given, in which U or B may stand where a C or D was
    folded; by default those of `aatype`. chain_iptm: (C, C), ipTM of each pair of chains, 0–1; nan
    where it is not known, None for a single chain.
    """

    aatype: Int64
    chains: Int64
    positions: Float32
    plddt: Float32
    pae: UInt8
    mean_plddt: float
    ptm: float
    iptm: float | None = None
    letters: str = ""
    chain_iptm: Float32 | None = None

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
    def present(self) -> Bool:
        """(R,) whether each residue has atoms: any of the 20 amino acids has."""
        return np.asarray(self.aatype != residues.UNKNOWN)

    @cached_property
    def sequences(self) -> list[str]:
        """The letters of each chain: of residues with atoms as they were folded, else as given."""
        folded = residues.decode(self.aatype)
        letters = "".join(
            own if there or given not in residues.NAMES_WITHOUT_ATOMS else given
            for own, given, there in zip(
                folded, self.letters or folded, self.present.tolist(), strict=True
            )
        )
        return [letters[start:end] for start, end in pairwise([0, *self.ends])]

    @cached_property
    def given(self) -> list[str]:
        """The letters of each chain as they were given."""
        letters = self.letters or residues.decode(self.aatype)
        return [letters[start:end] for start, end in pairwise([0, *self.ends])]

    @cached_property
    def names(self) -> list[str]:
        """The three-letter code of each residue."""
        return [residues.residue_name(letter) for one in self.sequences for letter in one]

    @cached_property
    def replaced(self) -> dict[str, list[int]]:
        """Letter, such as U → the residues (from 0) that were folded as another amino acid."""
        return self._residues_where(True)

    @cached_property
    def omitted(self) -> dict[str, list[int]]:
        """Letter, such as X → the residues (from 0) without atoms."""
        return self._residues_where(False)

    def _residues_where(self, with_atoms: bool) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        folded = residues.decode(self.aatype)
        letters = zip(self.letters or folded, folded, self.present.tolist(), strict=True)
        for place, (given, own, there) in enumerate(letters):
            if there == with_atoms and (not there or given != own):
                found.setdefault(given, []).append(place)
        return dict(sorted(found.items()))

    def places(self, chosen: Iterable[int]) -> str:
        """Residues (from 0, ascending) by chain and number: `A3,A7-9,B1`."""
        ranges: list[list[int]] = []
        for place in chosen:
            last = ranges[-1][-1] if ranges else -2
            if place == last + 1 and self.chains[place] == self.chains[last]:
                ranges[-1] = [ranges[-1][0], place]
            else:
                ranges.append([place])
        return ",".join(
            chain_name(int(self.chains[first]))
            + "-".join(str(self.numbers[place]) for place in dict.fromkeys((first, last)))
            for first, last in ((one[0], one[-1]) for one in ranges)
        )

    @property
    def facts(self) -> dict[str, str]:
        """The confidences of the prediction, and residues that were folded as another amino acid
        or left out, as text for the remarks of a file.
        """
        facts = {"mean_plddt": f"{self.mean_plddt:.2f}", "ptm": f"{self.ptm:.4f}"}
        if self.iptm is not None:
            facts["iptm"] = f"{self.iptm:.4f}"
        for letter, found in self.replaced.items():
            own = residues.LETTERS[self.aatype[found[0]]]
            facts[f"folded {letter} as {own}"] = self.places(found)
        for letter, found in self.omitted.items():
            facts[f"no atoms for {letter}"] = self.places(found)
        return facts

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


def terminal_oxygens(structure: Structure) -> tuple[Int64, Float32]:
    """Residues (T,) at the ends of chains, and the places (T, 3) in Å of their second oxygens.

    A chain whose last residue has no atoms has none, nor one whose C, CA and O are in line.
    """
    last = np.array(structure.ends, np.int64) - 1
    last = last[structure.present[last]]
    alpha, carbon, oxygen = (
        structure.positions[last, residues.BACKBONE.index(name)].astype(np.float64)
        for name in ("CA", "C", "O")
    )
    along = unit_vectors(alpha - carbon)
    aside = oxygen - carbon
    aside -= (aside * along).sum(-1, keepdims=True) * along
    usable = (np.linalg.norm(aside, axis=-1) > LEAST_LENGTH) & along.any(-1)
    bend = np.radians(CA_C_OXT)
    placed = carbon + C_OXT * (np.cos(bend) * along - np.sin(bend) * unit_vectors(aside))
    return last[usable], placed[usable].astype(np.float32)


def unit_vectors(vectors: Float64) -> Float64:
    """Vectors (N, 3) at length 1; those too short to have a direction become 0."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: Float64 = np.where(length > LEAST_LENGTH, vectors / np.maximum(length, LEAST_LENGTH), 0)
    return scaled


def atom_array(structure: Structure) -> AtomArray:
    """The atoms of a file, with B-factors and the second oxygens at the ends of chains.

    Raises InputError if there are none.
    """
    from biotite.structure import AtomArray

    residue, place = structure.atoms
    if not len(residue):
        raise InputError(
            "a structure without atoms; only the 20 amino acids have them, correct the sequence"
        )
    last, oxygens = terminal_oxygens(structure)
    after = np.searchsorted(residue, last, side="right")
    carbon = residues.BACKBONE.index("C")
    names = np.array([chain_name(chain) for chain in range(len(structure.ends))])
    array = AtomArray(len(residue) + len(last))
    array.coord = np.insert(structure.positions[residue, place], after, oxygens, axis=0)
    atoms = np.insert(ATOM_NAMES[structure.aatype[residue], place], after, TERMINAL_OXYGEN)
    plddt = np.insert(structure.plddt[residue, place], after, structure.plddt[last, carbon])
    residue = np.insert(residue, after, last)
    array.chain_id = names[np.searchsorted(structure.ends, residue, side="right")]
    array.res_id = structure.numbers[residue]
    array.res_name = np.array(residues.RESIDUE_NAMES)[structure.aatype[residue]]
    array.atom_name = atoms
    array.element = array.atom_name.astype("U1")
    array.set_annotation("b_factor", plddt.astype(np.float64))
    array.set_annotation("residue", residue)
    return array


def ascii_text(text: str) -> str:
    """`text` in printable ASCII: spaces for white space and ? for any other character."""
    return "".join(
        letter if " " <= letter <= "~" else " " if letter.isspace() else "?" for letter in text
    )
