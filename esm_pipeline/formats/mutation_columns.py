"""Mutations in several columns (position, wild-type and mutant residues), as one notation.

Reads `Protein_position` and `Amino_acids` of VEP (Ensembl): `20` and `A/V`, `20-21` and `AL/V`,
`20/147`. Numbers may be as a spreadsheet writes them: `20.0`.
"""

from __future__ import annotations

import re

from esm_pipeline.errors import InputError, setting
from esm_pipeline.formats.mutations import THREE_LETTERS
from esm_pipeline.formats.unsupported_notations import is_missing

POSITION = re.compile(r"(?P<start>-?\d{1,9})(?:\.0+)?(?:-(?P<stop>\d{1,9}))?(?:/\d+)?", re.ASCII)
RESIDUE_PAIR = re.compile(r"(?P<wild_type>[A-Za-z*-]+)\s*/\s*(?P<mutant>[A-Za-z*-]+)", re.ASCII)
RESIDUE_CELL = re.compile(r"[A-Za-z*]+", re.ASCII)
DELETED = frozenset(("-", "del"))
EFFECTS = ("fs", "frame", "ext", "dup")
STOPS = frozenset(("stop", "ter"))


def notation(position: str, mutant: str, wild_type: str | None = None) -> str:
    """The mutation that the cells of a row describe, in a notation that `mutations.parse` reads.

    Without `wild_type`, the cell `mutant` has both residues, `A/V`, or one that is not changed,
    `A`. Raises InputError.
    """
    position, mutant = position.strip(), mutant.strip()
    if is_missing(position):
        raise InputError("no position; the variant changes no residue, leave it out")
    match = POSITION.fullmatch(position)
    if match is None:
        uncertain = "?" in position
        what = "is not known exactly; leave it out" if uncertain else "cannot be read; write 42"
        raise InputError(f"position {position[:30]!a} {what}")
    if wild_type is None:
        wild_type, mutant = _split_pair(mutant)
    return _joined(match["start"], match["stop"], wild_type.strip(), mutant)


def _split_pair(cell: str) -> tuple[str, str]:
    """Wild-type and mutant residues of one cell."""
    if match := RESIDUE_PAIR.fullmatch(cell):
        return match["wild_type"], match["mutant"]
    if RESIDUE_CELL.fullmatch(cell):
        return cell, "="
    if is_missing(cell):
        raise InputError("no amino acids; the variant changes no residue, leave it out")
    raise InputError(f"amino acids {cell[:30]!a} cannot be read; write A/V")


def _joined(start: str, stop: str | None, wild_type: str, mutant: str) -> str:
    """One notation of its parts. Raises InputError."""
    if is_missing(wild_type):
        where = setting("score.mutation_col")
        raise InputError(
            "no residue of the wild type to compare; write an insertion as K23_L24insQS, in one "
            f"column, {where}"
        )
    if mutant.lower() in STOPS:
        mutant = "*"
    if is_missing(mutant) and mutant not in DELETED:
        raise InputError("no mutant residue; leave the row out, or write its residue")
    first, single = f"{wild_type}{start}", stop in (None, start)
    if single and _is_residue(wild_type):
        if mutant.lower() in DELETED:
            return f"{first}del"
        several = RESIDUE_CELL.fullmatch(mutant) and not _is_residue(mutant)
        several = several and not mutant.lower().startswith(EFFECTS)
        return f"{first}delins{mutant}" if several else f"{first}{mutant}"
    if single or not RESIDUE_CELL.fullmatch(wild_type):
        raise InputError(
            f"position {start} is of one residue, but {wild_type[:30]!a} is not; write 20-21 and AL"
        )
    if mutant == "=":
        mutant = wild_type
    change = "" if mutant.lower() in DELETED else f"ins{mutant}"
    return f"{wild_type[0]}{start}_{wild_type[-1]}{stop}del{wild_type}{change}"


def _is_residue(text: str) -> bool:
    return len(text) == 1 or text.lower() in THREE_LETTERS
