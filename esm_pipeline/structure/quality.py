"""Problems of a predicted structure, found from its coordinates and confidences alone.

Published weights give most sequences a sound geometry, but not all: long ones have come out with
atoms on top of each other at a pTM of 0.999 (facebookresearch/esm issues 560 and 641).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esm_pipeline.structure import residues

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

    flags: names of problems, in the order of `QUALITY_FLAGS`.
    """

    clashes: int
    breaks: tuple[int, ...]
    flags: tuple[str, ...]


QUALITY_FLAGS = {
    "bad_coordinates": "coordinates that are no numbers, or 10,000 Å away: nothing else is judged",
    "clashes": "atoms of different residues closer than their radii allow",
    "broken_chain": "neighbours' alpha carbons too far apart or too close",
    "contradictory_confidence": "a high pTM with a very low pLDDT, as meaningless structures have",
    "very_low_plddt": "mean pLDDT under 50: likely disordered or wrong",
    "low_plddt": "mean pLDDT under 70",
    "low_ptm": "pTM under 0.5: the fold as a whole is uncertain",
    "long": "longer than what the language model was trained on",
}
"""Every flag and what it means."""


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
    clashes = count_clashes(positions, aatype, chains, limits.overlap) if usable else 0
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
    return Quality(clashes, breaks, tuple(flag for flag in QUALITY_FLAGS if raised[flag]))


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


def count_clashes(positions: Floats, aatype: Integers, chains: Integers, overlap: float) -> int:
    """Pairs of heavy atoms of different residues closer than their radii minus `overlap`.

    positions: (R, 14, 3) Å, finite. Peptide bonds and disulphides are not clashes.
    """
    residue, place = np.nonzero(residues.ATOM14_MASK[aatype])
    atoms = positions[residue, place].astype(np.float64)  # (N, 3)
    kind = aatype[residue]
    radius = residues.ATOM14_RADIUS[kind, place].astype(np.float64)
    sulphur = residues.ATOM14_TO_ATOM37[kind, place] == SG
    reach = 2 * max(residues.VAN_DER_WAALS.values()) - overlap
    count = 0
    for one, other in close_pairs(atoms, reach):
        apart = np.linalg.norm(atoms[one] - atoms[other], axis=-1)
        clash = apart < radius[one] + radius[other] - overlap
        one, other = one[clash], other[clash]
        swap = residue[one] > residue[other]
        one, other = np.where(swap, other, one), np.where(swap, one, other)
        bonded = (place[one] == C) & (place[other] == N) & (residue[other] == residue[one] + 1)
        bonded &= chains[residue[one]] == chains[residue[other]]
        bonded |= sulphur[one] & sulphur[other]
        count += int(((residue[one] != residue[other]) & ~bonded).sum())
    return count


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
