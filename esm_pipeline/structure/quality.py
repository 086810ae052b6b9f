"""What is wrong with a predicted structure, told from its coordinates and confidences alone.

Published weights fold most sequences to sound geometry, but not all: long ones have come out with
atoms on top of each other at a pTM of 0.999 (facebookresearch/esm issues 560 and 641). Needs numpy
alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esm_pipeline.structure import residues

CIS_CA_CA = 2.95
"""Å between the alpha carbons of neighbours with a cis peptide bond, common before proline."""

N, CA, C = (residues.BACKBONE.index(name) for name in ("N", "CA", "C"))
SG = residues.ATOM37_INDEX["SG"]
EXTENT = 1e4
"""Å from the origin beyond which no protein reaches and no PDB file can say."""

PAIRS_AT_ONCE = 2**18
"""Pairs of atoms that `close_pairs` yields at once: 30 MB in `count_clashes`."""

Floats = NDArray[np.floating]
Integers = NDArray[np.integer]


@dataclass(frozen=True)
class Limits:
    """Where a flag begins.

    overlap: Å by which spheres of van der Waals radius may overlap (AlphaFold's violations: 1.5).
    spacing: Å by which neighbours' alpha carbons may be off 3.80, or 2.95 of a cis bond.
    low, very_low: mean pLDDT. low_ptm: pTM. sure_ptm: pTM that a very low pLDDT contradicts.
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
    """clashes: pairs of atoms. breaks: residues, from 0, whose next one in the chain is not next.

    flags: words for a table, in the order of `FLAGS`.
    """

    clashes: int
    breaks: tuple[int, ...]
    flags: tuple[str, ...]


FLAGS = {
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
    """Judge one structure.

    positions: (R, 14, 3) Å in atom14 order, padding and linker left out. aatype: (R,) 0–20.
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
    return Quality(clashes, breaks, tuple(flag for flag in FLAGS if raised[flag]))


def chain_breaks(
    positions: Floats, aatype: Integers, chains: Integers, tolerance: float
) -> tuple[int, ...]:
    """Residues, from 0, whose alpha carbon is not a peptide bond's span from the next one's.

    positions: (R, 14, 3) Å. Unknown residues have no atoms, and no say.
    """
    alpha = positions[:, CA].astype(np.float64)
    apart = np.linalg.norm(alpha[1:] - alpha[:-1], axis=-1)
    off = np.minimum(abs(apart - residues.CA_CA), abs(apart - CIS_CA_CA))
    there = residues.ATOM14_MASK[aatype, CA]
    bonded = there[1:] & there[:-1] & (chains[1:] == chains[:-1])
    return tuple(np.flatnonzero(bonded & (off > tolerance)).tolist())


def count_clashes(positions: Floats, aatype: Integers, chains: Integers, overlap: float) -> int:
    """Pairs of heavy atoms of different residues that are closer than their radii less `overlap`.

    positions: (R, 14, 3) Å, finite. Peptide bonds and disulphides do not count.
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
    """Pairs of points (N, 3) in the same or neighbouring cubes of side `reach`, each once.

    Every pair closer than `reach` is among them. Memory does not grow with the number of pairs:
    they come as batches of about `PAIRS_AT_ONCE` indices.
    """
    if not len(points):
        return
    cube = np.floor((points - points.min(axis=0)) / reach).astype(np.int64)
    size = cube.max(axis=0) + 2  # an empty layer, so that no cube has one across as a neighbour
    key = (cube[:, 0] * size[1] + cube[:, 1]) * size[2] + cube[:, 2]
    order = np.argsort(key, kind="stable")
    key = key[order]
    # cubes along z are neighbours in the order; of the columns around, half, so that each pair
    # comes once
    for x, y in [(0, 0), (0, 1), (1, -1), (1, 0), (1, 1)]:
        column = key + (x * size[1] + y) * size[2]
        own = (x, y) == (0, 0)
        first = np.arange(1, len(key) + 1) if own else np.searchsorted(key, column - 1)
        last = np.searchsorted(key, column + 1, side="right")
        for one, other in spans(first, last - first):
            yield order[one], order[other]


def spans(first: Integers, count: Integers) -> Iterator[tuple[Integers, Integers]]:
    """Every i with each of first[i], first[i] + 1, … (count[i] of them), in batches."""
    total = np.cumsum(count)
    begin = 0
    while begin < len(count):
        before = total[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(total, before + PAIRS_AT_ONCE, side="right")))
        some = count[begin:end]
        one = np.repeat(np.arange(begin, end), some)
        within = np.arange(len(one)) - np.repeat(np.cumsum(some) - some, some)
        yield one, first[one] + within
        begin = end
