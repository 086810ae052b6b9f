"""Settings that would read a table of variants, for errors: columns, proteins and the offset.

Nothing is guessed silently: a column that is not set is never read. But a table that names other
proteins than the only wild type is refused until the user says which rows belong to it.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from esm_pipeline.arrays import Int32, Int64, UInt8
from esm_pipeline.errors import InputError, setting
from esm_pipeline.formats.fasta import shown
from esm_pipeline.formats.mutation_columns import POSITION, RESIDUE_PAIR
from esm_pipeline.formats.mutations import THREE_LETTERS, is_mutation
from esm_pipeline.formats.protein_names import UNIPROT, is_accession, names_in
from esm_pipeline.formats.tables.base import Table
from esm_pipeline.formats.unsupported_notations import is_missing, looks_like_a_sequence
from esm_pipeline.tasks.score.wild_types import DEFAULT_COLUMN, WildTypes

GENE_COLUMNS = re.compile(r"(hgnc_)?symbol|gene(_?(names?|symbol))?")
PROTEIN_COLUMNS = re.compile(
    r"prot(ein(_?(id|name|acc\w*))?)?|uniprot\w*|swiss_?prot\w*|ensp|refseq(_protein)?|dms_id|"
    rf"entry_?name|gene_?id|{GENE_COLUMNS.pattern}"
)
"""Names, as `plain_name` gives them, of columns that name a protein in the tables of the field."""

OTHER_COLUMNS = re.compile(
    r"acc|accession|entry|id|name|isoform|target\w*|seq\w*id|feature|transcript|transcriptid|"
    r".*_(id|acc\w*)"
)
"""Names of columns that name a protein if they hold accessions of a database."""

OF_NUCLEOTIDES = re.compile("cdna|cds|codon|genom|nucl")
"""In names of columns with positions in something other than a protein."""

SEPARATORS = re.compile(r"[;,/\s]+"), re.compile(r"\|")
"""Between several names in a cell."""

SYMBOL = re.compile(r"(?!ENS[A-Z]*\d)[A-Za-z][\w.-]*", re.ASCII)
"""What may be the symbol of a gene, and is no accession of Ensembl's."""

MOSTLY = 0.5
EXAMPLES = 2
DIGIT = re.compile(r"\d")
SHORTEST_NAME = 4
"""Letters, one of them a digit, of a protein's name in a column with any other name."""

CellsByColumn = dict[str, list[str]]


def check_columns(table: Table, wild_types: WildTypes, columns: Sequence[str]) -> None:
    """Raise InputError if one of `columns` is missing, or if rows seem to be of other proteins.

    The message suggests columns that would do.
    """
    missing = [name for name in columns if not table.has(name)]
    first = [name for name in table.columns if DIGIT.search(name) and is_mutation(name)]
    if missing and first:
        raise InputError(
            f"{shown(table.path)}: its first line has {first[0][:30]!a}, so it has no line of "
            f"column names; add one, in which {missing[0]!a} names the column to read"
        )
    if missing and (found := suggest_settings(table, wild_types, missing)):
        raise InputError(
            f"{shown(table.path)}: no column {missing[0]!a}; it has {table.listed()}; {found}"
        )
    if (
        wild_types.sequence_set.count == 1
        and wild_types.column is None
        and wild_types.protein is None
    ):
        refuse_other_proteins(table, wild_types, columns)


def refuse_other_proteins(table: Table, wild_types: WildTypes, used: Sequence[str]) -> None:
    """Raise InputError if a column that is not `used` names proteins other than the only wild type.

    That is: if it names this one in some rows only, or several proteins, or if it has the accession
    of another. Then the user must say which rows belong to the wild type.
    """
    columns = [name for name in unique_columns(table) if name not in used]
    found = {column: NamedProteins(column, wild_types) for column in columns}
    for block in table.blocks(columns) if columns else ():
        for column, cells in zip(columns, zip(*block.cells, strict=True), strict=True):
            found[column].add(cells)
    for column, named in found.items():
        if named.more_than_one():
            only = next(wild_types.sequence_set.records()).id
            by_column = f"{setting('score.protein_col')} to {column!a}, or " if named.own else ""
            raise InputError(
                f"{shown(table.path)}: column {column!a} names {named.examples()}, but the only "
                f"wild type is {only!a}; set {by_column}{setting('score.protein')} to {only!a} if "
                "all rows belong to it"
            )


class NamedProteins:
    """The proteins that a column names: the only wild type, as `own`, and some `others`."""

    def __init__(self, column: str, wild_types: WildTypes) -> None:
        name = plain_name(column)
        self._by_name = PROTEIN_COLUMNS.fullmatch(name) is not None
        self._likely = self._by_name or OTHER_COLUMNS.fullmatch(name) is not None
        self._genes = GENE_COLUMNS.fullmatch(name) is not None
        self._wild_types = wild_types
        self.own: str | None = None
        self.others: list[str] = []
        self.unlike: str | None = None
        """A cell that does not look like a protein's name."""

    def add(self, cells: Sequence[str]) -> None:
        """Take up the names in some cells."""
        for cell in dict.fromkeys(map(str.strip, cells)):
            if not is_missing(cell):
                for name in names_in_cell(cell):
                    self._add(name)

    def _add(self, name: str) -> None:
        if self._wild_types.knows(name, genes=self._by_name):
            if self._by_name or (len(name) >= SHORTEST_NAME and DIGIT.search(name)):
                self.own = self.own or name
        elif not (self._by_name or (has_accession(name) if self._likely else is_uniprot(name))):
            self.unlike = self.unlike or name
        elif len(self.others) < EXAMPLES and name not in self.others:
            self.others.append(name)

    def more_than_one(self) -> bool:
        """Whether the rows cannot all be of the only wild type.

        Accessions count in a column of any name, if nothing else is in it.
        """
        if self.own:
            return bool(self.others or self.unlike)
        others = self.others if self._likely or not self.unlike else []
        return len(others) == EXAMPLES or any(map(self._is_another, others))

    def _is_another(self, name: str) -> bool:
        """Whether a name is certainly not the only wild type's."""
        symbols = name.split(";")
        return self._wild_types.lack(name) or (
            self._genes
            and not has_accession(name)
            and all(map(SYMBOL.fullmatch, symbols))
            and self._wild_types.lack_genes(symbols)
        )

    def examples(self) -> str:
        """Some names, for a message."""
        examples = [*filter(None, [self.own]), *self.others, *filter(None, [self.unlike])]
        return " and ".join(f"{name[:30]!a}" for name in examples[:EXAMPLES])


def plain_name(column: str) -> str:
    """A column's name in lower case, with `_` for everything that is not a letter or digit."""
    return re.sub(r"[\W_]+", "_", column).strip("_").lower()


def names_in_cell(cell: str) -> list[str]:
    """The names in a cell: several if each has an accession, as in `P69905;P68871`."""
    for separator in SEPARATORS:
        names = [name for name in separator.split(cell) if name]
        if len(names) > 1 and all(map(has_accession, names)):
            return names
    return [cell]


def has_accession(name: str) -> bool:
    """Whether `name` is an accession, or has one as in `sp|P69905|HBA_HUMAN`."""
    return any(map(is_accession, names_in(name)))


def is_uniprot(name: str) -> bool:
    """Whether `name` is or has an accession of UniProt, in capital letters."""
    return any(one.isupper() and is_accession(one, UNIPROT) for one in names_in(name))


def require_match(table: Table, wild_types: WildTypes) -> None:
    """Raise InputError if the table has rows, and none of them is of one of the wild types."""
    first, column = wild_types.first_unmatched, wild_types.column
    count = wild_types.sequence_set.count
    if wild_types.matched or first is None or not count:
        return
    by_column, by_name = setting("score.protein_col"), setting("score.protein")
    near = wild_types.near(first)
    says = f"the first row {first[:60]!a}" if first else "its first cell is empty"
    says += f" (near to {near!a})" if near else ""
    only = f"{by_name} to the one that all rows belong to"
    if column is not None and wild_types.protein is not None:
        what = f"no row of column {column!a} is of {wild_types.protein!a}, {says}"
        remedy = f"leave out {by_column} if all rows belong to it"
    elif column is not None:
        what = f"column {column!a} names none of the wild types, {says}"
        remedy = f"set {by_column} to the column with their ids, or {only}"
    elif first:
        what, remedy = f"the mutations name none of the wild types, {says}", f"set {only}"
    else:
        what = f"no column '{DEFAULT_COLUMN}', but there are {count:,} proteins"
        named = protein_column(first_cells(table), wild_types)
        remedy = f"set {by_column} to {f'{named!a}' if named else f'one of {table.listed()}'}"
    raise InputError(f"{shown(table.path)}: {what}; {remedy}")


def unique_columns(table: Table) -> list[str]:
    """The columns whose names appear once."""
    return [name for name in table.columns if name and table.columns.count(name) == 1]


def first_cells(table: Table) -> CellsByColumn:
    """The cells of each column in the first rows, without missing values."""
    names = unique_columns(table)
    for block in table.blocks(names):
        columns = zip(*block.cells, strict=True)
        return {
            name: [cell for cell in map(str.strip, column) if not is_missing(cell)]
            for name, column in zip(names, columns, strict=True)
        }
    return {}


def suggest_settings(table: Table, wild_types: WildTypes, missing: Sequence[str]) -> str:
    """Which settings would read the table, going by the cells of its columns; '' if none fits."""
    cells = first_cells(table)
    found = [] if [*missing] == [wild_types.column] else list(notation_settings(cells))
    if wild_types.protein is None and (wild_types.column is None or wild_types.column in missing):
        named = protein_column(cells, wild_types)
        found += [("score.protein_col", named)] if named else []
    if not found:
        return ""
    return "set " + " and ".join(f"{setting(key)} to {name!a}" for key, name in found)


def notation_settings(cells: CellsByColumn) -> Iterator[tuple[str, str]]:
    """Settings and the columns for them that say what each row's variant is."""
    if mutations := columns_of(cells, is_mutation):
        yield "score.mutation_col", mutations[0]
        return
    positions = [
        name
        for name in columns_of(cells, lambda cell: bool(POSITION.fullmatch(cell)))
        if not OF_NUCLEOTIDES.search(name.lower())
    ]
    positions.sort(key=position_words, reverse=True)
    pairs = columns_of(cells, lambda cell: bool(RESIDUE_PAIR.fullmatch(cell)))
    residues = columns_of(cells, is_residue)
    if positions and pairs:
        yield "score.position_col", positions[0]
        yield "score.mutant_aa_col", pairs[0]
    elif positions and len(residues) == 2:
        wild_type, mutant = sorted(
            residues, key=lambda name: re.search("mut|mt|alt", name.lower()) is not None
        )
        yield "score.position_col", positions[0]
        yield "score.wild_type_aa_col", wild_type
        yield "score.mutant_aa_col", mutant
    elif sequences := [
        name for name in columns_of(cells, looks_like_a_sequence) if len(set(cells[name])) > 1
    ]:
        yield "score.mutated_sequence_col", sequences[0]


def columns_of(cells: CellsByColumn, holds: Callable[[str], bool]) -> list[str]:
    """The columns in which more than half of the cells, and at least one, are such."""
    return [
        name for name, column in cells.items() if sum(map(holds, column)) > MOSTLY * len(column)
    ]


def position_words(column: str) -> list[bool]:
    """Whether a column's name has a word for positions, and one for proteins."""
    return [re.search(part, column.lower()) is not None for part in ("pos|site|res", "prot|aa|res")]


def protein_column(cells: CellsByColumn, wild_types: WildTypes) -> str | None:
    """The first column that names wild types."""
    return next((name for name in cells if any(map(wild_types.knows, set(cells[name])))), None)


def is_residue(cell: str) -> bool:
    """Whether a cell is an amino acid, in one letter or three."""
    return (len(cell) == 1 and (cell.isalpha() or cell == "*")) or cell.lower() in THREE_LETTERS


class ExpectedResidues:
    """The residues that the rows of one protein expect in it: their numbers, as in the table."""

    def __init__(self) -> None:
        self._numbers, self._letters, self._rows = array("q"), bytearray(), array("i")

    def add(self, row: int, number: int, letter: str) -> None:
        """Append a residue of a row; the rows come in ascending order."""
        self._rows.append(row)
        self._numbers.append(number)
        self._letters.append(ord(letter))

    @property
    def arrays(self) -> tuple[Int64, UInt8, Int32]:
        """Numbers, letters (in ASCII) and rows, one each for every residue."""
        return (
            np.frombuffer(self._numbers, np.int64),
            np.frombuffer(self._letters, np.uint8),
            np.frombuffer(self._rows, np.int32),
        )


def suggest_offset(expected: ExpectedResidues, wild_type: str, offset: int) -> str:
    """The end of a message, with the offset that fits most rows; '' if `offset` does as well.

    It must fit at least half of the rows.
    """
    numbers, letters, rows = expected.arrays
    sequence = np.frombuffer(wild_type.encode(), np.uint8)
    best = best_offset(numbers, letters, sequence)
    if best is None:
        return ""
    present = count_fitting(numbers - offset, letters, rows, sequence)
    count, fit = len(np.unique(rows)), count_fitting(numbers - best, letters, rows, sequence)
    if fit <= present or 2 * fit < count:
        return ""
    fits = f"an offset of {best} fits {fit:,} of {count:,} rows of this protein"
    return f"; {fits}, set {setting('score.offset')}"


def best_offset(numbers: Int64, letters: UInt8, sequence: UInt8) -> int | None:
    """The offset at which most residues have the expected letters; None for a draw."""
    pairs, counts = np.unique(np.stack([numbers, letters]), axis=1, return_counts=True)
    shifts, votes = [], []
    for letter in np.unique(pairs[1]):
        has_letter = pairs[1] == letter
        positions = np.flatnonzero(sequence == letter)
        shifts.append((pairs[0, has_letter, None] - positions).ravel())
        votes.append(np.repeat(counts[has_letter], len(positions)))
    offsets, which = np.unique(np.concatenate(shifts), return_inverse=True)
    if not len(offsets):
        return None
    totals = np.bincount(which, np.concatenate(votes))
    best = totals.argmax()
    return None if (totals == totals[best]).sum() > 1 else int(offsets[best])


def count_fitting(positions: Int64, letters: UInt8, rows: Int32, sequence: UInt8) -> int:
    """How many rows find every residue that they expect; the residues of a row are adjacent."""
    inside = (positions >= 0) & (positions < len(sequence))
    fit = inside & (sequence[np.where(inside, positions, 0)] == letters)
    firsts = np.flatnonzero(np.diff(rows, prepend=-1))
    return int(np.logical_and.reduceat(fit, firsts).sum())
