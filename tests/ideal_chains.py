"""Chains of ideal bond lengths and angles, from torsions: the geometry of a good prediction."""

from __future__ import annotations

import numpy as np

from esm_pipeline.structure import residues
from esm_pipeline.structure.structure import Structure
from tests.folded import EVERY

BONDS = {"N": 1.329, "CA": 1.458, "C": 1.525}
"""Å from the atom before, along the backbone."""

ANGLES = {"N": 117.2, "CA": 121.7, "C": 111.0}
"""Degrees at the atom before."""

SHAPES = {"helix": (-60.0, -45.0), "strand": (-120.0, 130.0)}
"""Phi and psi in degrees; those of a loop are drawn by chance."""


def next_atom(before: np.ndarray, length: float, angle: float, torsion: float) -> np.ndarray:
    """(3,) the atom after three others (3, 3); Å and degrees. Parsons et al. 2005."""
    bend, turn = np.radians(180 - angle), np.radians(torsion)
    a, b, c = before
    x = (c - b) / np.linalg.norm(c - b)
    z = np.cross(b - a, x)
    z /= np.linalg.norm(z)
    y = np.cross(z, x)
    along = np.array([np.cos(bend), np.sin(bend) * np.cos(turn), np.sin(bend) * np.sin(turn)])
    return c + length * (along @ np.stack([x, y, z]))


def backbone(phi: np.ndarray, psi: np.ndarray) -> np.ndarray:
    """(R, 3, 3) N, CA and C of a chain with these torsions (R,), in degrees; omega is 180."""
    first = np.array([[-1.458, 0, 0], [0, 0, 0]])
    bend = np.radians(180 - ANGLES["C"])
    atoms = [*first, BONDS["C"] * np.array([np.cos(bend), np.sin(bend), 0])]
    for place in range(1, len(phi)):
        for name, torsion in (("N", psi[place - 1]), ("CA", 180.0), ("C", phi[place])):
            atoms.append(next_atom(np.array(atoms[-3:]), BONDS[name], ANGLES[name], torsion))
    return np.array(atoms).reshape(-1, 3, 3)


def turned(degrees: float) -> np.ndarray:
    """(4, 4) rotation about x."""
    matrix, angle = np.eye(4), np.radians(degrees)
    matrix[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return matrix


def residue_atoms(number: int, own: np.ndarray, psi: float, chis: np.ndarray) -> np.ndarray:
    """(14, 3) all atoms of a residue, from its N, CA and C (3, 3), psi and chis (4,) in degrees."""
    residue, found = residues.RESIDUES[number], np.zeros((14, 3))
    n, ca, c = own
    frames = {0: residues.frame(c - ca, n - ca, ca)}
    defaults = residues.DEFAULT_FRAMES[number].astype(float)
    frames[3] = frames[0] @ defaults[3] @ turned(psi + 180)
    for chi in range(residue.chi_angles):
        parent = frames[0] if chi == 0 else frames[3 + chi]
        frames[4 + chi] = parent @ defaults[4 + chi] @ turned(chis[chi])
    for place, (group, position) in enumerate(zip(residue.groups, residue.positions, strict=True)):
        found[place] = (frames[group] @ [*position, 1.0])[:3]
    found[:3] = own
    return found


def ideal_chain(shape: str, size: int, *, seed: int = 0, sequence: str = "") -> Structure:
    """A chain of `size` residues in a `shape`: helix, strand or loop."""
    random = np.random.default_rng(seed)
    letters = sequence or "".join(random.choice([*EVERY], size))
    if shape == "loop":
        phi = random.choice([-60.0, -120.0, -75.0, -90.0], size) + random.normal(size=size) * 10
        psi = random.choice([-45.0, 130.0, 150.0, 10.0], size) + random.normal(size=size) * 10
    else:
        phi, psi = (np.full(size, angle) for angle in SHAPES[shape])
    chis = random.choice([-60.0, 60.0, 180.0], (size, 4)) + random.normal(size=(size, 4)) * 10
    aatype = residues.encode(letters)
    atoms = map(residue_atoms, aatype.tolist(), backbone(phi, psi), psi, chis)
    positions = np.array([*atoms], np.float32)
    positions -= positions.min((0, 1))  # PDB files have room for more above 0 than below
    plddt = np.repeat(random.uniform(40, 100, (size, 1)), 14, 1).astype(np.float32)
    return Structure(
        aatype=aatype,
        chains=np.zeros(size, np.int64),
        positions=positions,
        plddt=plddt,
        pae=random.integers(2, 255, size=(size, size), dtype=np.uint8),
        mean_plddt=float(plddt[:, 1].mean()),
        ptm=float(random.uniform()),
    )
