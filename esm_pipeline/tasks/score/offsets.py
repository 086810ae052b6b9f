"""Which offset would fit the rows that name residues their protein does not have."""

from __future__ import annotations

from array import array
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from esm_pipeline.arrays import Int32, Int64, UInt8
from esm_pipeline.errors import InputError, setting
from esm_pipeline.formats.tables.base import Table
from esm_pipeline.tasks.score.variant_rows import Reader, cells_of


class Anchors(NamedTuple):
    """Residues that rows of one protein name: their numbers as written, their letters, the rows."""

    number: array[int]
    letter: bytearray
    row: array[int]


def add_hints(table: Table, reader: Reader, proteins: set[int]) -> None:
    """Work out for each of `proteins` the offset that would fit most of its rows, for the reasons.

    Reads the table again; holds some 15 bytes for each residue that is named.
    """
    if reader.whole or not proteins:
        return
    found: dict[int, Anchors] = defaultdict(lambda: Anchors(array("q"), bytearray(), array("i")))
    for row, cells in enumerate(cells_of(table, reader)):
        try:
            protein, variant = reader.protein(cells), reader.edits(cells)
        except InputError:
            continue
        if protein in proteins:
            anchors = found[protein]
            for number, letter in (one for edit in variant for one in edit.named):
                anchors.number.append(number + reader.offset)
                anchors.letter.append(ord(letter))
                anchors.row.append(row)
    for protein, anchors in found.items():
        reader.hints[protein] = hint(anchors, reader.wild_types.sequence(protein), reader.offset)


def hint(anchors: Anchors, wild_type: str, offset: int) -> str:
    """What to say of the offset that fits most rows, and more than the present one; or nothing."""
    numbers, letters = np.frombuffer(anchors.number, np.int64), np.frombuffer(anchors.letter, "u1")
    sequence = np.frombuffer(wild_type.encode(), np.uint8)
    best = best_offset(numbers, letters, sequence)
    if best is None:
        return ""
    rows = np.frombuffer(anchors.row, np.int32)
    present = fitting(numbers - offset, letters, rows, sequence)
    count, fit = len(np.unique(rows)), fitting(numbers - best, letters, rows, sequence)
    if fit <= present or 2 * fit < count:
        return ""
    fits = f"an offset of {best} fits {fit:,} of {count:,} rows of this protein"
    return f"; {fits}, set {setting('score.offset')}"


def best_offset(numbers: Int64, letters: UInt8, sequence: UInt8) -> int | None:
    """The offset under which most residues have the letters they are named by; None for a draw."""
    pairs, counts = np.unique(np.stack([numbers, letters]), axis=1, return_counts=True)
    shifts, votes = [], []
    for letter in np.unique(pairs[1]):
        of_letter = pairs[1] == letter
        places = np.flatnonzero(sequence == letter)
        shifts.append((pairs[0, of_letter, None] - places).ravel())
        votes.append(np.repeat(counts[of_letter], len(places)))
    candidates, which = np.unique(np.concatenate(shifts), return_inverse=True)
    if not len(candidates):
        return None
    totals = np.bincount(which, np.concatenate(votes))
    best = totals.argmax()
    return None if (totals == totals[best]).sum() > 1 else int(candidates[best])


def fitting(places: Int64, letters: UInt8, rows: Int32, sequence: UInt8) -> int:
    """How many rows have every residue they name; the residues of a row stand together."""
    inside = (places >= 0) & (places < len(sequence))
    fit = inside & (sequence[np.where(inside, places, 0)] == letters)
    firsts = np.flatnonzero(np.diff(rows, prepend=-1))
    return int(np.logical_and.reduceat(fit, firsts).sum())
