"""Peptides built atom by atom from textbook geometry, for checks that need no peer."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from esm_pipeline.model.folding.rigid import Frames
from esm_pipeline.model.folding.torsions import atom14_positions, group_frames
from esm_pipeline.structure import residues

N_CA, CA_C, C_N = 1.459, 1.525, 1.336  # Å, Engh and Huber 2001
N_CA_C, CA_C_N, C_N_CA = 111.0, 117.2, 121.7  # degrees
HELIX = (-57.0, -47.0)
STRAND = (-119.0, 113.0)
CHIS = (-65.0, 180.0, 180.0, 180.0)
"""Degrees: the commonest rotamer of most residues."""
PROLINE_CHIS = (-25.0, 20.0, 0.0, 0.0)
"""Degrees at which its ring closes."""


def place(a: Tensor, b: Tensor, c: Tensor, length: float, angle: float, dihedral: float) -> Tensor:
    """The atom d bonded to c, with the angle b-c-d and the dihedral a-b-c-d in degrees."""
    bend, turn = math.radians(angle), math.radians(dihedral)
    frame = from_three_points(b, c, a, epsilon=0.0)
    # x points on from b to c, y to a's side
    along, up, side = -math.cos(bend), math.sin(bend) * math.cos(turn), math.sin(bend)
    return frame.apply(length * torch.tensor([along, up, side * math.sin(turn)], dtype=c.dtype))


def backbone(count: int, phi: float, psi: float, omega: float = 180.0) -> Tensor:
    """(count, 3, 3) N, CA and C in Å."""
    start = torch.tensor(
        [[-0.525, 1.363, 0.0], [0.0, 0.0, 0.0], [1.525, 0.0, 0.0]], dtype=torch.float64
    )
    atoms = list(start)
    for _ in range(count - 1):
        atoms.append(place(*atoms[-3:], C_N, CA_C_N, psi))
        atoms.append(place(*atoms[-3:], N_CA, C_N_CA, omega))
        atoms.append(place(*atoms[-3:], CA_C, N_CA_C, phi))
    return torch.stack(atoms).unflatten(0, (count, 3))


def backbone_frames(atoms: Tensor) -> Frames:
    """Frames (R,) of N, CA and C (R, 3, 3): x to C, N in the plane of x and y."""
    n, ca, c = atoms.unbind(-2)
    return from_three_points(2 * ca - c, ca, n, epsilon=0.0)


def from_three_points(
    behind: Tensor, origin: Tensor, plane: Tensor, epsilon: float = 1e-8
) -> Frames:
    """Frames at `origin`, x away from `behind`, `plane` in the plane of x and y; each (*, 3).

    Algorithm 21 (Jumper et al. 2021) with the peer's order of points: (C, CA, N) of a backbone give
    −x along the bond to C; `epsilon` prevents a division by zero for points that coincide.
    """
    x = unit(origin - behind, epsilon)
    aside = plane - origin
    y = unit(aside - (x * aside).sum(-1, keepdim=True) * x, epsilon)
    return Frames(torch.stack([x, y, torch.linalg.cross(x, y)], dim=-1), origin)


def unit(vectors: Tensor, epsilon: float) -> Tensor:
    """(*, 3) at length 1, except for those near 0."""
    return vectors / torch.sqrt((vectors * vectors).sum(-1, keepdim=True) + epsilon)


def sines_and_cosines(degrees: Tensor) -> Tensor:
    """(*) → (*, 2)."""
    turns = torch.deg2rad(degrees)
    return torch.stack([turns.sin(), turns.cos()], dim=-1)


def peptide(sequence: str, phi: float, psi: float, omega: float = 180.0) -> tuple[Tensor, Tensor]:
    """Positions (R, 14, 3) in Å and aatype (R,)."""
    aatype = torch.from_numpy(residues.encode(sequence))
    frames = backbone_frames(backbone(len(sequence), phi, psi, omega))
    chis = [PROLINE_CHIS if letter == "P" else CHIS for letter in sequence]
    degrees = torch.tensor([[omega, phi, psi, *own] for own in chis], dtype=torch.float64)
    groups = group_frames(frames, sines_and_cosines(degrees), aatype)
    return atom14_positions(groups, aatype), aatype


def dihedral(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Dihedral angles in degrees, −180 to 180, of points (*, 3) (IUPAC 1970)."""
    axis = torch.nn.functional.normalize(c - b, dim=-1)
    left, right = a - b, d - c
    left = left - (left * axis).sum(-1, keepdim=True) * axis
    right = right - (right * axis).sum(-1, keepdim=True) * axis
    sine = (torch.linalg.cross(axis, left) * right).sum(-1)
    return torch.rad2deg(torch.atan2(sine, (left * right).sum(-1)))
