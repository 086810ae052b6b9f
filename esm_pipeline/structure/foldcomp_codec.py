"""Structures compressed by the `foldcomp` package, each decompressed again and compared.

Foldcomp stores torsions and bond angles of a chain and, every `ANCHOR` residues, places of atoms
(Kim et al. 2023): about 16 bytes a residue, with atoms within 0.1 Å of the originals where bond
lengths are those of proteins. Where they are not, atoms come back elsewhere, without an error;
chains with gaps come back with other residues, and a chain of one residue ends the process. So
nothing is stored that was not read back. A residue's B-factor is that of its alpha carbon, within
about 0.2.
"""

from __future__ import annotations

import ctypes
import sys
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from esm_pipeline.arrays import Float64
from esm_pipeline.errors import InputError
from esm_pipeline.structure.residues import LETTERS, RESIDUE_NAMES, UNKNOWN
from esm_pipeline.structure.structure import Structure, ascii_text

ANCHOR = 25
"""Residues between stored positions: what the `foldcomp` tool has by default."""

MOST_DIFFERENT = 0.2
"""Å: the largest root mean square difference of all atoms that is accepted."""

LEAST_RESIDUES = 2
PDB_LINE = 80
"""Characters of a line of a PDB file."""


def require_foldcomp() -> None:
    """Raise InputError if the `foldcomp` package is missing."""
    try:
        import foldcomp  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"the Foldcomp format needs the package foldcomp ({error}); install it with "
            "pip install 'esm-pipeline[foldcomp]', or choose the formats pdb or cif"
        ) from None


def foldcomp_problem(structure: Structure) -> str | None:
    """Why a structure cannot be given to Foldcomp, or None if it can."""
    if len(structure.ends) > 1:
        return f"{len(structure.ends):,} chains, Foldcomp has entries of one"
    placed = np.flatnonzero(structure.aatype != UNKNOWN)
    if len(placed) < LEAST_RESIDUES:
        return f"{len(placed)} residues with atoms, Foldcomp needs {LEAST_RESIDUES}"
    gap = next((one for one, other in pairwise(placed.tolist()) if other != one + 1), None)
    if gap is not None:
        return f"a gap after residue {gap + 1}, Foldcomp has entries of chains without"
    return None


def foldcomp_entry(structure: Structure, name: str, text: str) -> tuple[bytes, str]:
    """The compressed `text`, the structure as PDB, and "": or nothing, and why it is refused.

    `name` is the title in the entry.
    """
    import foldcomp

    if problem := foldcomp_problem(structure):
        return b"", problem
    try:
        data: bytes = foldcomp.compress(entry_title(name), text, anchor_residue_threshold=ANCHOR)
        problem = difference(text, decompressed(data)[1])
    except foldcomp.error as error:
        problem = f"Foldcomp refuses it: {' '.join(str(error).split())}"
    return (b"", problem) if problem else (data, "")


def entry_title(name: str) -> str:
    """The title of the entry of a record with an id."""
    return ascii_text(name).replace(" ", "_")


def decompressed(data: bytes) -> tuple[str, str]:
    """Title and PDB text of an entry. Raises ValueError if it is damaged."""
    import foldcomp

    try:
        title, text = foldcomp.decompress(data)
    except foldcomp.error as error:
        raise ValueError(str(error)) from None
    if "\nATOM " not in text:
        raise ValueError("no atoms")
    own = text[:-1]
    if sys.getrefcount(text) == sys.getrefcount(own) + 1:
        # foldcomp 1.0.0 holds each text forever: 200 kB for 300 residues
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(text))
    return str(title), str(text)


def sequence_of(text: str) -> str:
    """The letters of the residues with an alpha carbon in a PDB text."""
    letters = dict(zip(RESIDUE_NAMES, LETTERS, strict=True))
    lines = (line for line in text.splitlines() if line.startswith("ATOM "))
    return "".join(letters.get(line[17:20], "X") for line in lines if line[12:16] == " CA ")


def difference(text: str, other: str) -> str:
    """How the atoms of two PDB texts differ, or "" if they are the same within `MOST_DIFFERENT`."""
    atoms, residues, places = atoms_of(text)
    try:
        found, names, moved = atoms_of(other)
    except ValueError:  # no numbers where coordinates should be
        found, names, moved = atoms[:0], residues[:0], places[:0]
    if len(atoms) != len(found) or not (atoms == found).all() or not (residues == names).all():
        return "its atoms or residues are others after decompression"
    rmsd = float(np.sqrt(((places - moved) ** 2).sum(1).mean()))
    if not rmsd < MOST_DIFFERENT:
        return f"its atoms differ by {rmsd:.2f} Å (RMSD) after decompression"
    return ""


def atoms_of(text: str) -> tuple[NDArray[np.bytes_], NDArray[np.bytes_], Float64]:
    """Residue number and atom name, residue name (N,) and place (N, 3) of each atom, sorted.

    Raises ValueError for a text with anything but numbers for coordinates.
    """
    lines = [line for line in text.encode("ascii").split(b"\n") if line.startswith(b"ATOM  ")]
    cells = np.array(lines, f"S{PDB_LINE}").view("S1").reshape(len(lines), PDB_LINE)

    def columns(*places: int) -> NDArray[np.bytes_]:
        return cells[:, places].copy().view(f"S{len(places)}").ravel()

    keys = columns(*range(22, 27), *range(12, 16))
    order = np.argsort(keys, kind="stable")
    places = np.stack([columns(*range(start, start + 8)) for start in (30, 38, 46)], 1)
    return keys[order], columns(17, 18, 19)[order], places[order].astype(float)
