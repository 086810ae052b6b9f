"""Problems of a predicted structure, found from its coordinates and confidences alone.

Published weights give most sequences a sound geometry, but not all: long ones have come out with
atoms on top of each other at a pTM of 0.999 (facebookresearch/esm issues 560 and 641).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from esm_pipeline.arrays import Bool
from esm_pipeline.structure import residues
from esm_pipeline.structure.structure import RANDOM, Structure

CIS_CA_CA = 2.95
"""Å between the alpha carbons of a cis peptide bond, which is common before proline."""

N, CA, C = (residues.BACKBONE.index(name) for name in ("N", "CA", "C"))
SG = residues.ATOM37_INDEX["SG"]
EXTENT = 1e4
"""Å from the origin: no protein reaches farther, and a PDB file cannot express it."""

POINTS_AT_ONCE = 64
"""Points whose neighbours `close_pairs` finds at a time, to bound the memory of dense points."""

MOST_CELLS = 100
"""Cells along each axis: memory stays small where atoms are far apart."""

ROUNDING = 2e-3
"""Å: the coordinates of atoms up to `EXTENT` from the origin in float32 are as exact as this."""

Floats = NDArray[np.floating]
Integers = NDArray[np.integer]


@dataclass(frozen=True)
class Limits:
    """Thresholds of the flags.

    overlap: Å by which van der Waals spheres may overlap (AlphaFold's violations: 1.5).
    spacing: Å by which neighbouring alpha carbons may be off 3.80, or 2.95 for a cis bond.
    low, very_low: mean pLDDT. low_ptm: pTM. sure_ptm: pTM that contradicts a very low pLDDT.
    trained: residues of the longest sequences that the language model was trained on.
    """

    overlap: float = 1.5
    spacing: float = 0.4
    low: float = 70.0
    very_low: float = 50.0
    low_ptm: float = 0.5
    sure_ptm: float = 0.9
    trained: int = 1022


@dataclass(frozen=True)
class Quality:
    """clashes: number of atom pairs. breaks: residues (from 0) before a break of the chain.

    clashing: (R,) residues with atoms in a clash. flags: in the order of `FLAGS`.
    """

    clashes: int
    clashing: Bool
    breaks: tuple[int, ...]
    flags: tuple[str, ...]


class Flag(NamedTuple):
    """What a flag means. `flags.tsv` has a row for each, with residues and a value."""

    meaning: str
    residues: str = ""
    """Which residues the row names; none if the flag concerns the whole structure."""
    value: str = ""
    """What the value of the row is, if it has one."""


REPLACED, OMITTED, TRUNCATED, NOT_PDB = "replaced", "omitted", "truncated", "not_pdb"
NOT_FOLDCOMP = "not_foldcomp"

FLAGS = {
    "bad_coordinates": Flag(
        "coordinates are not numbers, or more than 10,000 Å from the origin; nothing else was "
        "checked",
        "those with such an atom",
        "number of such atoms",
    ),
    "clashes": Flag(
        "atoms of different residues overlap",
        "those with such an atom",
        "number of pairs of atoms",
    ),
    "broken_chain": Flag(
        "C-alpha atoms of neighbours are too far apart or too close",
        "both neighbours",
        "number of breaks",
    ),
    "contradictory_confidence": Flag(
        "a pTM near 1 with a very low pLDDT, as in meaningless structures", "", "pTM"
    ),
    "very_low_plddt": Flag("mean pLDDT below 50", "those below 50", "mean pLDDT"),
    "low_plddt": Flag("mean pLDDT below 70", "those below 70", "mean pLDDT"),
    "low_ptm": Flag("pTM below 0.5: how the parts lie to each other is uncertain", "", "pTM"),
    "long": Flag(
        "longer than the sequences that the language model was trained on",
        "",
        "number of residues",
    ),
    REPLACED: Flag(
        "residues were folded as another amino acid: U as C and O as K, and by `fold.ambiguous` B "
        "as D and Z as E",
        "those residues, a row for each letter",
        "both letters, such as `U as C`",
    ),
    OMITTED: Flag(
        "residues have no atoms and are gaps in the chain: X, and B and Z unless `fold.ambiguous` "
        "is `approximate`",
        "those residues, a row for each letter",
        "the letter",
    ),
    RANDOM: Flag("made with random weights, as those of the demo model: meaningless"),
    TRUNCATED: Flag(
        "longer than `fold.max_residues` or the positions of the model: the end was not folded",
        "those that were not folded",
        "residues of the whole sequence",
    ),
    NOT_PDB: Flag("does not fit into a PDB file and was written as mmCIF", "", "why"),
    NOT_FOLDCOMP: Flag("not in the Foldcomp database, but in a file of its own", "", "why"),
}
"""Every flag, and what it means."""

FLAGS_OF_FILES = (TRUNCATED, NOT_PDB, NOT_FOLDCOMP)
"""Flags of a record or of its file; all others are stored with the structure."""

STORED_FLAGS = tuple(name for name in FLAGS if name not in FLAGS_OF_FILES)


class FlagDetail(NamedTuple):
    """A flag of a structure, with the residues concerned, such as `A3,A7-9`, and its value."""

    flag: str
    residues: str = ""
    value: str = ""


def details(structure: Structure, raised: Collection[str]) -> Iterator[FlagDetail]:
    """What stands behind the flags `raised` of a structure: at least one row for each."""
    limits, quality = Limits(), None
    if not {"clashes", "broken_chain"}.isdisjoint(raised):
        quality = examine_structure(structure)
    alpha = structure.plddt[:, CA]
    numbers = {
        "contradictory_confidence": f"{structure.ptm:.4f}",
        "low_ptm": f"{structure.ptm:.4f}",
        "long": str(len(structure.aatype)),
    }
    below = {"very_low_plddt": limits.very_low, "low_plddt": limits.low}
    for flag in raised:
        if flag == "bad_coordinates":
            far = ~(abs(structure.positions) < EXTENT).all(-1)
            far &= residues.ATOM14_MASK[structure.aatype]
            yield FlagDetail(flag, structure.places(np.flatnonzero(far.any(-1))), str(far.sum()))
        elif flag == "clashes" and quality:
            places = structure.places(np.flatnonzero(quality.clashing))
            yield FlagDetail(flag, places, str(quality.clashes))
        elif flag == "broken_chain" and quality:
            both = sorted({place + step for place in quality.breaks for step in (0, 1)})
            yield FlagDetail(flag, structure.places(both), str(len(quality.breaks)))
        elif flag in below:
            low = np.flatnonzero((alpha < below[flag]) & structure.present)
            yield FlagDetail(flag, structure.places(low), f"{structure.mean_plddt:.2f}")
        elif flag == REPLACED:
            for letter, found in structure.replaced.items():
                own = residues.LETTERS[structure.aatype[found[0]]]
                yield FlagDetail(flag, structure.places(found), f"{letter} as {own}")
        elif flag == OMITTED:
            for letter, found in structure.omitted.items():
                yield FlagDetail(flag, structure.places(found), letter)
        else:
            yield FlagDetail(flag, value=numbers.get(flag, ""))


def examine_structure(structure: Structure) -> Quality:
    """`examine`, and the flags of residues that were folded as another amino acid or left out."""
    found = examine(
        structure.positions,
        structure.aatype,
        structure.chains,
        structure.mean_plddt,
        structure.ptm,
    )
    more = [*([REPLACED] if structure.replaced else []), *([OMITTED] if structure.omitted else [])]
    return replace(found, flags=(*found.flags, *more))


def examine(
    positions: Floats,
    aatype: Integers,
    chains: Integers,
    plddt: float,
    ptm: float,
    limits: Limits | None = None,
) -> Quality:
    """Check one structure.

    positions: (R, 14, 3) Å in atom14 order, without padding and linkers. aatype: (R,) 0–20.
    chains: (R,) a number for each chain. plddt: mean over alpha carbons, 0–100. ptm: 0–1.
    """
    limits = limits or Limits()
    usable = bool((abs(positions[residues.ATOM14_MASK[aatype]]) < EXTENT).all())
    clashes, clashing = 0, np.zeros(len(aatype), bool)
    if usable:
        clashes, clashing = find_clashes(positions, aatype, chains, limits.overlap)
    breaks = chain_breaks(positions, aatype, chains, limits.spacing) if usable else ()
    raised = {
        "bad_coordinates": not usable,
        "clashes": clashes > 0,
        "broken_chain": len(breaks) > 0,
        "contradictory_confidence": ptm >= limits.sure_ptm and plddt < limits.very_low,
        "very_low_plddt": plddt < limits.very_low,
        "low_plddt": limits.very_low <= plddt < limits.low,
        "low_ptm": ptm < limits.low_ptm,
        "long": len(aatype) > limits.trained,
    }
    flags = tuple(flag for flag, found in raised.items() if found)
    return Quality(clashes, clashing, breaks, flags)


def chain_breaks(
    positions: Floats, aatype: Integers, chains: Integers, tolerance: float
) -> tuple[int, ...]:
    """Residues (from 0) whose alpha carbon is too far from, or too close to, that of the next one.

    positions: (R, 14, 3) Å. Unknown residues have no atoms and are not checked.
    """
    alpha = positions[:, CA].astype(np.float64)
    apart = np.linalg.norm(alpha[1:] - alpha[:-1], axis=-1)
    off = np.minimum(abs(apart - residues.CA_CA), abs(apart - CIS_CA_CA))
    there = residues.ATOM14_MASK[aatype, CA]
    bonded = there[1:] & there[:-1] & (chains[1:] == chains[:-1])
    return tuple(np.flatnonzero(bonded & (off > tolerance)).tolist())


def find_clashes(
    positions: Floats, aatype: Integers, chains: Integers, overlap: float
) -> tuple[int, Bool]:
    """Pairs of heavy atoms of different residues closer than their radii minus `overlap`.

    positions: (R, 14, 3) Å, finite. Peptide bonds and disulphides are not clashes. Returns the
    number of pairs, and (R,) the residues with such an atom.
    """
    residue, place = np.nonzero(residues.ATOM14_MASK[aatype])
    atoms = positions[residue, place].astype(np.float64)  # (N, 3)
    kind = aatype[residue]
    radius = residues.ATOM14_RADIUS[kind, place].astype(np.float64)
    sulphur = residues.ATOM14_TO_ATOM37[kind, place] == SG
    reach = 2 * max(residues.VAN_DER_WAALS.values()) - overlap
    count, clashing = 0, np.zeros(len(aatype), bool)
    for one, other in close_pairs(atoms, reach):
        apart = np.linalg.norm(atoms[one] - atoms[other], axis=-1)
        clash = apart < radius[one] + radius[other] - overlap
        one, other = one[clash], other[clash]
        swap = residue[one] > residue[other]
        one, other = np.where(swap, other, one), np.where(swap, one, other)
        bonded = (place[one] == C) & (place[other] == N) & (residue[other] == residue[one] + 1)
        bonded &= chains[residue[one]] == chains[residue[other]]
        bonded |= sulphur[one] & sulphur[other]
        found = (residue[one] != residue[other]) & ~bonded
        count += int(found.sum())
        clashing[residue[one[found]]] = clashing[residue[other[found]]] = True
    return count, clashing


def close_pairs(points: Floats, reach: float) -> Iterator[tuple[Integers, Integers]]:
    """Indices of the pairs of points (N, 3) closer than `reach`, each pair once, in batches.

    Pairs a little farther apart may be among them: coordinates are compared in float32.
    """
    if not len(points):
        return
    from biotite.structure import CellList

    reach += ROUNDING
    extent = float(np.ptp(points, axis=0).max())
    cells = CellList(points, cell_size=max(reach, extent / MOST_CELLS))
    for start in range(0, len(points), POINTS_AT_ONCE):
        some = np.arange(start, min(start + POINTS_AT_ONCE, len(points)))
        near = cells.get_atoms(points[some], reach)  # (n, most neighbours), -1: none
        one, column = np.nonzero(near > some[:, None])
        yield some[one], near[one, column]
