"""The 20 amino acids as numbers: names and order of their atoms, and their ideal geometry.

Everything follows from one table of each residue's heavy atoms, in the frame of the rigid group
they move with (Jumper et al. 2021, supplement 1.8.4, tables 2 and 23). Only numpy is needed: file
formats and models both use it. Peer: transformers openfold_utils/residue_constants.py.

A residue is a number 0–20, its index in `LETTERS`; 20 is the unknown residue, which has no atoms.
Atoms have one of two orders: atom37, the same 37 positions for every residue, which files and
confidences use, and atom14, each residue's own atoms without gaps, which the model computes.
Lengths are in Å.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esm_pipeline.arrays import Float64, Int64

LETTERS = "ARNDCQEGHILKMFPSTWYVX"
"""One-letter codes; a residue's number is its index here."""

UNKNOWN = LETTERS.index("X")

NAMES37 = """
N CA C CB O CG CG1 CG2 OG OG1 SG CD CD1 CD2 ND1 ND2 OD1 OD2 SD CE CE1 CE2 CE3 NE NE1 NE2 OE1 OE2
CH2 NH1 NH2 OH CZ CZ2 CZ3 NZ OXT
"""
ATOM37 = tuple(NAMES37.split())
"""Atom names in atom37 order; the first letter is the element."""

ATOM37_INDEX = {name: place for place, name in enumerate(ATOM37)}
BACKBONE = ("N", "CA", "C", "O")
"""The first atoms of every residue, in atom14 order."""

GROUPS = 8
"""Rigid groups: 0 backbone, 1 omega and 2 phi (no heavy atoms), 3 psi, 4–7 chi 1–4."""

VAN_DER_WAALS = {"C": 1.70, "N": 1.55, "O": 1.52, "S": 1.80}
"""Radii in Å (Bondi 1964)."""

CA_CA = 3.80
"""Å between the alpha carbons of a trans peptide bond."""

FOLDED_AS = {"U": "C", "O": "K"}
"""Amino acids without a number here, and the most similar one: they are folded as that one."""

APPROXIMATED_AS = {"B": "D", "Z": "E"}
"""Letters for one of two amino acids, B for D or N and Z for E or Q, and the one to fold."""

PI_PERIODIC = {"D": 1, "E": 2, "F": 1, "Y": 1}
"""Letter → the chi angle (from 0) whose rotation by half a turn gives the same structure."""

RESIDUE_TABLE = """
A ALA
  0 N -0.525 1.363 0, CA 0 0 0, C 1.526 0 0, CB -0.529 -0.774 -1.205
  3 O 0.627 1.062 0
R ARG
  0 N -0.524 1.362 0, CA 0 0 0, C 1.525 0 0, CB -0.524 -0.778 -1.209
  3 O 0.626 1.062 0
  4 CG 0.616 1.390 0
  5 CD 0.564 1.414 0
  6 NE 0.539 1.357 0
  7 CZ 0.758 1.093 0, NH1 0.206 2.301 0, NH2 2.078 0.978 0
N ASN
  0 N -0.536 1.357 0, CA 0 0 0, C 1.526 0 0, CB -0.531 -0.787 -1.200
  3 O 0.625 1.062 0
  4 CG 0.584 1.399 0
  5 OD1 0.633 1.059 0, ND2 0.593 -1.188 0.001
D ASP
  0 N -0.525 1.362 0, CA 0 0 0, C 1.527 0 0, CB -0.526 -0.778 -1.208
  3 O 0.626 1.062 0
  4 CG 0.593 1.398 0
  5 OD1 0.610 1.091 0, OD2 0.592 -1.101 -0.003
C CYS
  0 N -0.522 1.362 0, CA 0 0 0, C 1.524 0 0, CB -0.519 -0.773 -1.212
  3 O 0.625 1.062 0
  4 SG 0.728 1.653 0
Q GLN
  0 N -0.526 1.361 0, CA 0 0 0, C 1.526 0 0, CB -0.525 -0.779 -1.207
  3 O 0.626 1.062 0
  4 CG 0.615 1.393 0
  5 CD 0.587 1.399 0
  6 OE1 0.634 1.060 0, NE2 0.593 -1.189 -0.001
E GLU
  0 N -0.528 1.361 0, CA 0 0 0, C 1.526 0 0, CB -0.526 -0.781 -1.207
  3 O 0.626 1.062 0
  4 CG 0.615 1.392 0
  5 CD 0.600 1.397 0
  6 OE1 0.607 1.095 0, OE2 0.589 -1.104 -0.001
G GLY
  0 N -0.572 1.337 0, CA 0 0 0, C 1.517 0 0
  3 O 0.626 1.062 0
H HIS
  0 N -0.527 1.360 0, CA 0 0 0, C 1.525 0 0, CB -0.525 -0.778 -1.208
  3 O 0.625 1.063 0
  4 CG 0.600 1.370 0
  5 ND1 0.744 1.160 0, CD2 0.889 -1.021 0.003, CE1 2.030 0.851 0.002
  5 NE2 2.145 -0.466 0.004
I ILE
  0 N -0.493 1.373 0, CA 0 0 0, C 1.527 0 0, CB -0.536 -0.793 -1.213
  3 O 0.627 1.062 0
  4 CG1 0.534 1.437 0, CG2 0.540 -0.785 -1.199
  5 CD1 0.619 1.391 0
L LEU
  0 N -0.520 1.363 0, CA 0 0 0, C 1.525 0 0, CB -0.522 -0.773 -1.214
  3 O 0.625 1.063 0
  4 CG 0.678 1.371 0
  5 CD1 0.530 1.430 0, CD2 0.535 -0.774 1.200
K LYS
  0 N -0.526 1.362 0, CA 0 0 0, C 1.526 0 0, CB -0.524 -0.778 -1.208
  3 O 0.626 1.062 0
  4 CG 0.619 1.390 0
  5 CD 0.559 1.417 0
  6 CE 0.560 1.416 0
  7 NZ 0.554 1.387 0
M MET
  0 N -0.521 1.364 0, CA 0 0 0, C 1.525 0 0, CB -0.523 -0.776 -1.210
  3 O 0.625 1.062 0
  4 CG 0.613 1.391 0
  5 SD 0.703 1.695 0
  6 CE 0.320 1.786 0
F PHE
  0 N -0.518 1.363 0, CA 0 0 0, C 1.524 0 0, CB -0.525 -0.776 -1.212
  3 O 0.626 1.062 0
  4 CG 0.607 1.377 0
  5 CD1 0.709 1.195 0, CD2 0.706 -1.196 0, CE1 2.102 1.198 0
  5 CE2 2.098 -1.201 0, CZ 2.794 -0.003 -0.001
P PRO
  0 N -0.566 1.351 0, CA 0 0 0, C 1.527 0 0, CB -0.546 -0.611 -1.293
  3 O 0.621 1.066 0
  4 CG 0.382 1.445 0
  5 CD 0.477 1.424 0
S SER
  0 N -0.529 1.360 0, CA 0 0 0, C 1.525 0 0, CB -0.518 -0.777 -1.211
  3 O 0.626 1.062 0
  4 OG 0.503 1.325 0
T THR
  0 N -0.517 1.364 0, CA 0 0 0, C 1.526 0 0, CB -0.516 -0.793 -1.215
  3 O 0.626 1.062 0
  4 OG1 0.472 1.353 0, CG2 0.550 -0.718 -1.228
W TRP
  0 N -0.521 1.363 0, CA 0 0 0, C 1.525 0 0, CB -0.523 -0.776 -1.212
  3 O 0.627 1.062 0
  4 CG 0.609 1.370 0
  5 CD1 0.824 1.091 0, CD2 0.854 -1.148 -0.005
  5 NE1 2.140 0.690 -0.004, CE2 2.186 -0.678 -0.007
  5 CE3 0.622 -2.530 -0.007, CZ2 3.283 -1.543 -0.011
  5 CZ3 1.715 -3.389 -0.011, CH2 3.028 -2.890 -0.013
Y TYR
  0 N -0.522 1.362 0, CA 0 0 0, C 1.524 0 0, CB -0.522 -0.776 -1.213
  3 O 0.627 1.062 0
  4 CG 0.607 1.382 0
  5 CD1 0.716 1.195 0, CD2 0.713 -1.194 -0.001
  5 CE1 2.107 1.200 -0.002, CE2 2.104 -1.201 -0.003
  5 CZ 2.791 -0.001 -0.003, OH 4.168 -0.002 -0.005
V VAL
  0 N -0.494 1.373 0, CA 0 0 0, C 1.527 0 0, CB -0.533 -0.795 -1.213
  3 O 0.627 1.062 0
  4 CG1 0.540 1.429 0, CG2 0.533 -0.776 1.203
"""
"""Residues, with the atoms of each rigid group and their x, y, z in Å.

The x axis points from the atom at the group's origin along the bond that the group turns about;
the first atom of the group defines the angle and has y > 0, z = 0. The origin of the backbone is
the alpha carbon, and C lies on the x axis.
"""


@dataclass(frozen=True)
class Residue:
    """One residue of `RESIDUE_TABLE`; atoms, groups and positions are in atom14 order.

    name: three letters. groups: 0–7 for each atom. positions: (atoms, 3) Å, in the group's frame.
    chain: the atoms that define the chi angles, chi k (from 0) by chain[k:k + 4].
    """

    letter: str
    name: str
    atoms: tuple[str, ...]
    groups: tuple[int, ...]
    positions: Float64
    chain: tuple[str, ...]

    @property
    def chi_angles(self) -> int:
        """Number of chi angles, 0–4."""
        return max(len(self.chain) - 3, 0)

    def position(self, atom: str) -> Float64:
        """(3,) Å: position of an atom in its group's frame."""
        at: Float64 = self.positions[self.atoms.index(atom)]
        return at


def parse_residue(title: str, rows: list[str]) -> Residue:
    """A residue of the table, from its first line (such as `A ALA`) and those of its groups."""
    letter, name = title.split()
    found: dict[str, tuple[int, list[float]]] = {}
    for row in rows:
        group, _, atoms = row.strip().partition(" ")
        for atom in atoms.split(", "):
            label, *position = atom.split()
            found[label] = int(group), [float(x) for x in position]
    order = [*BACKBONE, *(label for label in found if label not in BACKBONE)]
    firsts = {group: label for label, (group, _) in reversed(found.items())}
    chain = [*("N", "CA", "CB"), *(firsts[group] for group in range(4, GROUPS) if group in firsts)]
    return Residue(
        letter,
        name,
        tuple(order),
        tuple(found[label][0] for label in order),
        np.array([found[label][1] for label in order]),
        tuple(chain),
    )


def parse_residues(table: str) -> tuple[Residue, ...]:
    """The residues of `RESIDUE_TABLE` in the order of `LETTERS`, without the unknown residue."""
    blocks = [block.splitlines() for block in re.split(r"\n(?=\S)", table.strip())]
    residues = {title[0]: parse_residue(title, rows) for title, *rows in blocks}
    return tuple(residues[letter] for letter in LETTERS[:UNKNOWN])


RESIDUES = parse_residues(RESIDUE_TABLE)
RESIDUE_NAMES = (*(residue.name for residue in RESIDUES), "UNK")
"""Three-letter codes by residue number."""


NAMES_WITHOUT_ATOMS = {"B": "ASX", "Z": "GLX"}
"""Three-letter codes of residues that are left out; those of all other letters are UNK."""


def residue_name(letter: str) -> str:
    """The three-letter code of a residue: of the 20 amino acids, ASX, GLX or UNK."""
    if letter in LETTERS:
        return RESIDUE_NAMES[LETTERS.index(letter)]
    return NAMES_WITHOUT_ATOMS.get(letter, RESIDUE_NAMES[UNKNOWN])


def folded_sequence(sequence: str, *, approximate: bool = False) -> str:
    """`sequence` as it is folded: U as C and O as K; with `approximate`, B as D and Z as E."""
    for letter, other in (FOLDED_AS | (APPROXIMATED_AS if approximate else {})).items():
        sequence = sequence.replace(letter, other)
    return sequence


def encode(sequence: str) -> Int64:
    """(R,) residue numbers; letters other than the 20 amino acids are the unknown residue."""
    numbers = {letter: number for number, letter in enumerate(LETTERS)}
    return np.array([numbers.get(letter, UNKNOWN) for letter in sequence], dtype=np.int64)


def decode(aatype: NDArray[np.integer]) -> str:
    """The letters of (R,) residue numbers."""
    return "".join(LETTERS[number] for number in aatype)


def frame(x_axis: Float64, towards: Float64, origin: Float64) -> Float64:
    """(4, 4) frame at `origin`: x along `x_axis`, and `towards` in the xy plane with y > 0."""
    x = x_axis / np.linalg.norm(x_axis)
    y = towards - (towards @ x) * x
    y /= np.linalg.norm(y)
    matrix = np.eye(4)
    matrix[:3] = np.stack([x, y, np.cross(x, y), origin], axis=1)
    return matrix


def default_frames(residue: Residue) -> Float64:
    """(8, 4, 4) frames of the groups when all angles are 0.

    Frames up to chi 1 are relative to the backbone, those of chi 2–4 to the previous chi angle.
    The frame of a missing group is zero.
    """
    n, ca, c = (residue.position(atom) for atom in ("N", "CA", "C"))
    frames = np.zeros((GROUPS, 4, 4))
    frames[0] = frames[1] = np.eye(4)
    frames[2] = frame(n - ca, np.array([1.0, 0, 0]), n)
    frames[3] = frame(c - ca, ca - n, c)
    if residue.chi_angles:
        cb = residue.position("CB")
        frames[4] = frame(cb - ca, n - ca, cb)
    for chi in range(1, residue.chi_angles):
        end = residue.position(residue.chain[chi + 2])
        frames[4 + chi] = frame(end, np.array([-1.0, 0, 0]), end)
    return frames


COUNT = len(LETTERS)
ATOM14_MASK = np.zeros((COUNT, 14), dtype=bool)
"""Which positions of atom14 a residue has atoms at."""

ATOM37_MASK = np.zeros((COUNT, 37), dtype=bool)
"""Which of the 37 atoms a residue has."""

ATOM14_TO_ATOM37 = np.zeros((COUNT, 14), dtype=np.int64)
"""Index in atom37 of each atom of atom14; 0 where there is no atom."""

ATOM37_TO_ATOM14 = np.zeros((COUNT, 37), dtype=np.int64)
"""Index in atom14 of each atom of atom37; 0 where there is no atom."""

ATOM14_GROUP = np.zeros((COUNT, 14), dtype=np.int64)
"""The rigid group of each atom, 0–7."""

ATOM14_POSITION = np.zeros((COUNT, 14, 3), dtype=np.float32)
"""Ideal positions in the group's frame, Å."""

ATOM14_RADIUS = np.zeros((COUNT, 14), dtype=np.float32)
"""Van der Waals radii, Å; 0 where there is no atom."""

DEFAULT_FRAMES = np.zeros((COUNT, GROUPS, 4, 4), dtype=np.float32)
"""Frames of the groups when all angles are 0: see `default_frames`."""

CHI_ATOMS = np.zeros((COUNT, 4, 4), dtype=np.int64)
"""Indices in atom37 of the four atoms of each chi angle; 0 where there is none."""

CHI_MASK = np.zeros((COUNT, 4), dtype=bool)
"""Which chi angles a residue has."""

CHI_PI_PERIODIC = np.zeros((COUNT, 4), dtype=bool)
"""Which chi angles give the same structure when rotated by half a turn."""


def fill(number: int, residue: Residue) -> None:
    """Write a residue to the arrays above."""
    size, places = len(residue.atoms), [ATOM37_INDEX[atom] for atom in residue.atoms]
    ATOM14_MASK[number, :size] = True
    ATOM37_MASK[number, places] = True
    ATOM14_TO_ATOM37[number, :size] = places
    ATOM37_TO_ATOM14[number, places] = range(size)
    ATOM14_GROUP[number, :size] = residue.groups
    ATOM14_POSITION[number, :size] = residue.positions
    ATOM14_RADIUS[number, :size] = [VAN_DER_WAALS[atom[0]] for atom in residue.atoms]
    DEFAULT_FRAMES[number] = default_frames(residue)
    for chi in range(residue.chi_angles):
        CHI_ATOMS[number, chi] = [ATOM37_INDEX[atom] for atom in residue.chain[chi : chi + 4]]
        CHI_MASK[number, chi] = True
        CHI_PI_PERIODIC[number, chi] = PI_PERIODIC.get(residue.letter) == chi


for _number, _residue in enumerate(RESIDUES):
    fill(_number, _residue)
