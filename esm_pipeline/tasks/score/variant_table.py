"""A table of variants: each row read and checked against its wild type, then written with scores.

A row that cannot be scored keeps its place. Its reason is worked out again when the table is
written, so that a table full of mistakes takes no more memory than one without any.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from esm_pipeline.arrays import Bool, Float64, Int32, Int64, UInt8
from esm_pipeline.errors import InputError, setting
from esm_pipeline.formats.fasta import FastaRecord, shown
from esm_pipeline.formats.mutation_columns import notation
from esm_pipeline.formats.mutations import (
    MisfitError,
    Variant,
    compare,
    is_mutation,
    mutate,
    parse,
    require_residues,
    resolve,
    split_reference,
    substitutions,
)
from esm_pipeline.formats.records import SKIPPED, Outcome
from esm_pipeline.formats.tables.base import ROWS_AT_ONCE, Block, Column, Table, Writer
from esm_pipeline.settings.sections import CleaningSettings, VariantSettings
from esm_pipeline.tasks.common.cleaning import read_sequence, residues
from esm_pipeline.tasks.score.suggestions import (
    ExpectedResidues,
    check_columns,
    require_match,
    suggest_offset,
)
from esm_pipeline.tasks.score.wild_types import WildTypes

SCORE = "score"
LIKELIHOOD = "pseudo_log_likelihood"
JOINT = "masked_marginal_joint"
SET_BYTES = 16
MUTANT_ID = b"mutant"
"""The FASTA header of every mutated sequence: none is looked at."""

Cells = Sequence[str]


class VariantRow(NamedTuple):
    """What a row says, if it can be scored."""

    protein: int
    """Number of its wild type among the unique sequences."""
    wild_type: str
    variant: Variant
    """The edits, checked against the wild type."""
    substitutions: list[tuple[int, str]]
    """Positions from 0 and new residues; left empty where a variant may change the length."""

    @property
    def sequence(self) -> str:
        """The mutated sequence."""
        return mutate(self.variant, self.wild_type)


class VariantTable:
    """The rows of `table` and the `wild_types` that they are checked against.

    `columns` are those that say what the variants are. With `substitutions_only`, a variant that
    changes the length of its protein cannot be scored.
    """

    def __init__(
        self,
        table: Table,
        wild_types: WildTypes,
        settings: VariantSettings,
        cleaning: CleaningSettings,
        *,
        substitutions_only: bool,
    ) -> None:
        self.table, self.wild_types = table, wild_types
        self._cleaning, self._offset = cleaning, settings.offset
        self._substitutions_only = substitutions_only
        self._whole_sequences = settings.mutated_sequence_col is not None
        self._in_parts = settings.position_col is not None
        wanted = [settings.position_col, settings.mutant_aa_col, settings.wild_type_aa_col]
        if not self._in_parts:
            wanted = [settings.mutated_sequence_col or settings.mutation_col]
        self.columns = [name for name in [*wanted, wild_types.column] if name is not None]
        self._parts = slice(0, len(self.columns) - (wild_types.column is not None))
        self._offset_hints: dict[int, str] = {}

    def rows(self) -> Iterator[VariantRow | None]:
        """Every row in turn; None for one that cannot be scored.

        Raises InputError, before the first row, for columns that cannot be meant, and after the
        last one if no row belongs to any of the wild types.
        """
        check_columns(self.table, self.wild_types, self.columns)
        misfits: set[int] = set()
        for cells in self._cells():
            row = None
            try:
                row = self._read(cells)
            except MisfitError:
                misfits.add(self._protein(cells))
            except InputError:
                pass
            yield row
        require_match(self.table, self.wild_types)
        self._suggest_offsets(misfits)

    def blocks_with_reasons(self, usable: Bool) -> Iterator[tuple[int, Block, list[str | None]]]:
        """All rows again: number of a block's first row, the block, why each row is not `usable`.

        usable: (N,) whether `rows` gave the row. The reason is None if it did. Raises InputError
        if the table is not what it was then.
        """
        first = 0
        for block in self.table.blocks(self.columns):
            flags = usable[first : first + block.count].tolist()
            if len(flags) < block.count:
                raise self._changed()
            pairs = zip(flags, block.cells, strict=True)
            yield first, block, [None if flag else self._reason(cells) for flag, cells in pairs]
            first += block.count
        if first != len(usable):
            raise self._changed()

    def _cells(self) -> Iterator[Cells]:
        for block in self.table.blocks(self.columns):
            yield from block.cells

    def _protein(self, cells: Cells) -> int:
        """The number of the row's wild type. Raises InputError."""
        has_reference = not (self._whole_sequences or self._in_parts)
        reference = split_reference(cells[0].strip())[0] if has_reference else ""
        return self.wild_types.find(cells[-1], reference)

    def _read(self, cells: Cells) -> VariantRow:
        """What a row says. Raises InputError, whose text is the reason not to score it."""
        protein = self._protein(cells)
        wild_type = self.wild_types.sequence(protein)
        if self._whole_sequences:
            variant = compare(wild_type, self._mutated_sequence(cells[0]))
            require_residues(variant)
        else:
            variant = self._mutations(cells, wild_type, protein)
        return VariantRow(protein, wild_type, variant, self._substitutions(variant, wild_type))

    def _mutated_sequence(self, text: str) -> str:
        """The sequence of a cell, cleaned. Raises InputError."""
        cleaned = read_sequence(residues(text), self._cleaning)
        if not cleaned.sequence:
            if is_mutation(text):
                where = setting("score.mutation_col")
                raise InputError(f"a mutation, not a sequence; name its column by {where}")
            raise InputError(f"the mutated sequence cannot be used: {cleaned.reason}")
        if b":" in cleaned.sequence:
            raise InputError("the mutated sequence has several chains; split it at ':'")
        return cleaned.sequence.decode()

    def _mutations(self, cells: Cells, wild_type: str, protein: int) -> Variant:
        """The edits that a row's notation describes, checked. Raises InputError."""
        try:
            variant = resolve(self._edits(cells), wild_type, self._offset)
        except MisfitError as error:
            raise MisfitError(f"{error}{self._offset_hints.get(protein, '')}") from None
        growth = sum(len(edit.inserted) - (edit.stop - edit.start) for edit in variant)
        if len(wild_type) + growth == 0:
            raise InputError("the variant leaves no residues; leave it out")
        return variant

    def _edits(self, cells: Cells) -> Variant:
        """The edits of a row's notation, which is in one cell or several. Raises InputError."""
        text = notation(*cells[self._parts]) if self._in_parts else cells[0]
        return parse(text, self._offset)

    def _substitutions(self, variant: Variant, wild_type: str) -> list[tuple[int, str]]:
        """Those of the variant, if only they can be scored. Raises InputError for other edits."""
        if not self._substitutions_only:
            return []
        found = substitutions(variant, wild_type)
        if found is None:
            raise InputError(
                "the variant changes the length of the protein, for which no marginal is defined; "
                f"set {setting('score.strategy')} to {LIKELIHOOD}"
            )
        return found

    def _reason(self, cells: Cells) -> str:
        """Why a row cannot be scored."""
        try:
            self._read(cells)
        except InputError as error:
            return str(error)
        raise self._changed()

    def _changed(self) -> InputError:
        return InputError(f"{shown(self.table.path)}: was changed while it was read; run again")

    def _suggest_offsets(self, proteins: set[int]) -> None:
        """Find for each of `proteins` the offset that fits most of its rows, for the reasons.

        Reads the table again; holds some 15 bytes for each residue that is named.
        """
        if self._whole_sequences or not proteins:
            return
        expected: dict[int, ExpectedResidues] = defaultdict(ExpectedResidues)
        for row, cells in enumerate(self._cells()):
            try:
                protein, variant = self._protein(cells), self._edits(cells)
            except InputError:
                continue
            if protein in proteins:
                for position, letter in (one for edit in variant for one in edit.expected):
                    expected[protein].add(row, position + self._offset, letter)
        for protein, found in expected.items():
            wild_type = self.wild_types.sequence(protein)
            self._offset_hints[protein] = suggest_offset(found, wild_type, self._offset)


class VariantArrays:
    """N rows, E substitutions in them. In memory, 12 bytes a row and 5 a substitution.

    With `joint`, 16 bytes a row more show which rows mutate the same positions.
    """

    def __init__(self, *, joint: bool = False) -> None:
        self._protein, self._counts, self._last = array("i"), array("i"), array("i")
        self._position, self._letter = array("i"), bytearray()
        self._sets = bytearray() if joint else None

    def add(self, row: VariantRow | None) -> None:
        """Append a row; None for one that cannot be scored."""
        protein, found = (row.protein, row.substitutions) if row else (-1, [])
        self._protein.append(protein)
        self._last.append(row.variant[-1].stop if row and row.variant else 0)
        self._counts.append(len(found))
        for position, letter in found:
            self._position.append(position)
            self._letter.append(ord(letter))
        if self._sets is not None:
            key = array("i", [protein, *(position for position, _ in found)])
            self._sets += blake2b(key, digest_size=SET_BYTES).digest()

    def __len__(self) -> int:
        return len(self._protein)

    @property
    def protein(self) -> Int32:
        """(N,) number of each row's wild type, -1 if the row cannot be scored."""
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
        """(N,) the same bytes for rows of one protein that mutate the same positions."""
        assert self._sets is not None
        return np.frombuffer(self._sets, f"V{SET_BYTES}")


def mutated_sequences(variants: VariantTable, arrays: VariantArrays) -> Iterator[list[FastaRecord]]:
    """Add all rows to `arrays`, and yield the mutated sequences of those that can be scored.

    Their wild types follow at the end, in the order of their numbers.
    """
    rows = variants.rows()
    while block := list(islice(rows, ROWS_AT_ONCE)):
        for row in block:
            arrays.add(row)
        yield [(0, MUTANT_ID, row.sequence.encode()) for row in block if row is not None]
    used = np.unique(arrays.protein)
    for number in used[used >= 0].tolist():
        yield [(0, MUTANT_ID, variants.wild_types.sequence(number).encode())]


def score_columns(strategy: str, labels: Sequence[str]) -> list[Column]:
    """The columns that are appended to the table: status, reason and the values of a strategy.

    Of several models (their `labels`), the values are means, and those of each model follow.
    """
    names = [strategy, f"{strategy}_ratio"] if strategy == LIKELIHOOD else [strategy]
    each = [f"{name}.{label}" for name in names for label in labels] if len(labels) > 1 else []
    return [Column("status", "text"), Column("reason", "text"), *map(Column, [*names, *each])]


def write_scores(
    writer: Writer,
    variants: VariantTable,
    usable: Bool,
    outcome: Callable[[int], Outcome],
    values: Sequence[Float64],
) -> Counter[str]:
    """Write every row with its outcome and `values`; returns how many rows have each status.

    usable: (N,) whether the row could be scored; `outcome` gives that of such a row by its number.
    values: (N,) for each column of numbers.
    """
    counts: Counter[str] = Counter()
    for first, block, reasons in variants.blocks_with_reasons(usable):
        outcomes = [
            outcome(row) if reason is None else Outcome(SKIPPED, reason)
            for row, reason in enumerate(reasons, first)
        ]
        counts.update(status for status, _ in outcomes)
        part = slice(first, first + len(outcomes))
        columns: list[Any] = [*zip(*outcomes, strict=True), *(value[part] for value in values)]
        writer.write(block, columns)
    return counts
