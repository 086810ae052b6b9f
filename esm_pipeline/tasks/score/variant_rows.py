"""Rows of a table of variants, validated against the wild types, in a few bytes each.

A row that cannot be used keeps its place; its reason is worked out again when the table is written,
so that a table full of mistakes costs no more memory than one without.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from esm_pipeline.arrays import Int32, Int64, UInt8
from esm_pipeline.errors import InputError, setting
from esm_pipeline.formats.fasta import Entry
from esm_pipeline.formats.mutation_columns import notation
from esm_pipeline.formats.mutations import (
    MisfitError,
    Variant,
    compare,
    is_mutation,
    mutate,
    parse,
    place,
    require_residues,
    split_reference,
    substitutions,
)
from esm_pipeline.formats.tables.base import Table
from esm_pipeline.settings.sections import CleaningSettings, VariantSettings
from esm_pipeline.tasks.common.cleaning import read_sequence
from esm_pipeline.tasks.score.wild_types import WildTypes, residues

LIKELIHOOD = "pseudo_log_likelihood"
SET_BYTES = 16
MUTANT = b"mutant"

Cells = Sequence[str]


class Mutant(NamedTuple):
    """What a row says: the number of its wild type, that sequence, and the placed variant of it."""

    protein: int
    wild_type: str
    variant: Variant


class Reader:
    """Reads the cells of `columns` of a row. `marginal` tells whether lengths must stay."""

    def __init__(
        self,
        settings: VariantSettings,
        cleaning: CleaningSettings,
        wild_types: WildTypes,
        *,
        marginal: bool,
    ) -> None:
        self.wild_types, self.cleaning, self.offset = wild_types, cleaning, settings.offset
        self.marginal = marginal
        self.whole = settings.mutated_sequence_col is not None
        self.split = settings.position_col is not None
        wanted = [settings.position_col, settings.mutant_aa_col, settings.wild_type_aa_col]
        if not self.split:
            wanted = [settings.mutated_sequence_col or settings.mutation_col]
        self.columns = [name for name in [*wanted, wild_types.column] if name is not None]
        self._residues = slice(0, len(self.columns) - (wild_types.column is not None))
        self.hints: dict[int, str] = {}

    def protein(self, cells: Cells) -> int:
        """The number of the row's wild type. Raises InputError."""
        reference = "" if self.whole or self.split else split_reference(cells[0].strip())[0]
        return self.wild_types.find(cells[-1], reference)

    def edits(self, cells: Cells) -> Variant:
        """What the row's notation, in one cell or several, says. Raises InputError."""
        text = notation(*cells[self._residues]) if self.split else cells[0]
        return parse(text, self.offset)

    def mutant(self, cells: Cells) -> Mutant:
        """What the row says. Raises InputError, whose text is the reason not to score it."""
        protein = self.protein(cells)
        wild_type = self.wild_types.sequence(protein)
        if self.whole:
            variant = compare(wild_type, self._sequence(cells[0]))
            require_residues(variant)
        else:
            try:
                variant = place(self.edits(cells), wild_type, self.offset)
            except MisfitError as error:
                raise MisfitError(f"{error}{self.hints.get(protein, '')}") from None
            grown = sum(len(edit.inserted) - (edit.stop - edit.start) for edit in variant)
            if len(wild_type) + grown == 0:
                raise InputError("the variant leaves no residues; leave it out")
        return Mutant(protein, wild_type, variant)

    def substitutions(self, mutant: Mutant) -> list[tuple[int, str]]:
        """Places and new residues. Raises InputError for a mutant of another length."""
        found = substitutions(mutant.variant, mutant.wild_type)
        if found is None:
            raise InputError(
                "the variant changes the length of the protein, for which no marginal is defined; "
                f"set {setting('score.strategy')} to {LIKELIHOOD}"
            )
        return found

    def reason(self, cells: Cells) -> str:
        """Why a row cannot be used."""
        try:
            mutant = self.mutant(cells)
            if self.marginal:
                self.substitutions(mutant)
        except InputError as error:
            return str(error)
        raise AssertionError("a row that cannot be used has a reason")

    def _sequence(self, text: str) -> str:
        cleaned = read_sequence(residues(text), self.cleaning)
        if not cleaned.sequence:
            if is_mutation(text):
                where = setting("score.mutation_col")
                raise InputError(f"a mutation, not a sequence; name its column by {where}")
            raise InputError(f"the mutated sequence cannot be used: {cleaned.reason}")
        if b":" in cleaned.sequence:
            raise InputError("the mutated sequence has several chains; split it at ':'")
        return cleaned.sequence.decode()


class Rows:
    """N rows of a table, E substitutions in them. In memory, 12 bytes a row and 5 a substitution.

    With `sets`, 16 bytes more tell which rows mutate the same places. `misfits`: proteins with rows
    that name residues they do not have.
    """

    def __init__(self, *, sets: bool = False) -> None:
        self._protein, self._counts, self._last = array("i"), array("i"), array("i")
        self._position, self._letter = array("i"), bytearray()
        self._sets = bytearray() if sets else None
        self.misfits: set[int] = set()

    def read(self, table: Table, reader: Reader) -> None:
        """Take up the substitutions of all rows."""
        for cells in cells_of(table, reader):
            self._add(cells, reader)

    def read_sequences(self, table: Table, reader: Reader) -> Iterator[list[Entry]]:
        """Take up all rows, and yield the mutated sequences of those that can be used.

        Behind them come their wild types, in the order of their numbers.
        """
        for block in table.blocks(reader.columns):
            entries = []
            for cells in block.cells:
                mutant = self._mutant(cells, reader)
                self._put(mutant, [])
                if mutant is not None:
                    sequence = mutate(mutant.variant, mutant.wild_type)
                    entries.append((0, MUTANT, sequence.encode()))
            yield entries
        used = np.unique(self.protein)
        for number in used[used >= 0].tolist():
            yield [(0, MUTANT, reader.wild_types.sequence(number).encode())]

    def _mutant(self, cells: Cells, reader: Reader) -> Mutant | None:
        try:
            return reader.mutant(cells)
        except MisfitError:
            self.misfits.add(reader.protein(cells))
        except InputError:
            pass
        return None

    def _add(self, cells: Cells, reader: Reader) -> None:
        mutant = self._mutant(cells, reader)
        try:
            found = [] if mutant is None else reader.substitutions(mutant)
        except InputError:
            mutant, found = None, []
        self._put(mutant, found)

    def _put(self, mutant: Mutant | None, found: list[tuple[int, str]]) -> None:
        protein = -1 if mutant is None else mutant.protein
        self._protein.append(protein)
        self._last.append(mutant.variant[-1].stop if mutant and mutant.variant else 0)
        self._counts.append(len(found))
        for at, letter in found:
            self._position.append(at)
            self._letter.append(ord(letter))
        if self._sets is not None:
            key = array("i", [protein, *(at for at, _ in found)])
            self._sets += blake2b(key, digest_size=SET_BYTES).digest()

    def __len__(self) -> int:
        return len(self._protein)

    @property
    def protein(self) -> Int32:
        """(N,) number of each row's wild type, -1 if the row cannot be used."""
        return np.frombuffer(self._protein, np.int32)

    @property
    def last(self) -> Int32:
        """(N,) residues up to the last one that is mutated."""
        return np.frombuffer(self._last, np.int32)

    @property
    def ends(self) -> Int64:
        """(N + 1,) first substitution of each row."""
        return np.concatenate(
            [[0], np.cumsum(np.frombuffer(self._counts, np.int32), dtype=np.int64)]
        )

    @property
    def position(self) -> Int32:
        """(E,) mutated residues, from 0, ascending in each row."""
        return np.frombuffer(self._position, np.int32)

    @property
    def letter(self) -> UInt8:
        """(E,) what they become, in ASCII."""
        return np.frombuffer(self._letter, np.uint8)

    @property
    def sets(self) -> NDArray[np.void]:
        """(N,) the same bytes for rows of one protein that mutate the same places."""
        assert self._sets is not None
        return np.frombuffer(self._sets, f"V{SET_BYTES}")


def cells_of(table: Table, reader: Reader) -> Iterator[Cells]:
    """What the reader needs of each row."""
    for block in table.blocks(reader.columns):
        yield from block.cells
