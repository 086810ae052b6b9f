"""What the columns of a table of variants seem to hold, for errors that say which setting reads it.

Nothing is guessed in silence: a column that is not set is never read, but a table that names other
proteins than the only wild type is refused until it is said which rows are of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from esm_pipeline.errors import InputError, setting
from esm_pipeline.formats.fasta import shown
from esm_pipeline.formats.residue_columns import PAIR, PLACE
from esm_pipeline.formats.tables import Table
from esm_pipeline.formats.unread_notations import is_missing, looks_like_a_sequence
from esm_pipeline.formats.variants import THREE_LETTERS, is_mutation
from esm_pipeline.tasks.variant_rows import Reader
from esm_pipeline.tasks.wild_types import PROTEIN, WildTypes, is_accession

PROTEIN_COLUMNS = re.compile(
    r"protein(_?(id|name|acc\w*))?|uniprot\w*|swiss-?prot\w*|ensp|refseq(_protein)?|dms_id|symbol|"
    r"gene(_?(name|symbol|id))?",
    re.IGNORECASE,
)
"""What columns that name a protein are called in the tables of the field."""

OTHER_COLUMNS = re.compile(
    r"acc|accession|entry|id|name|target\w*|seq\w*_?id|feature|transcript(_?id)?", re.IGNORECASE
)
"""What columns are called that name a protein if accessions of a database stand in them."""

MOSTLY = 0.5
EXAMPLES = 2
DIGIT = re.compile(r"\d")
SHORTEST_NAME = 4
"""Letters, one of them a digit, of a protein's name in a column that is called otherwise."""

Columns = dict[str, list[str]]


def check_columns(table: Table, reader: Reader) -> None:
    """Raise InputError for a column that is not there, and for rows that seem of other proteins.

    The first names the columns that would do.
    """
    wild_types = reader.wild_types
    missing = [name for name in reader.columns if not table.has(name)]
    if missing and (found := suggestions(table, wild_types, missing)):
        raise InputError(
            f"{shown(table.path)}: no column {missing[0]!a}; it has {table.listed()}; {found}"
        )
    if wild_types.intake.count == 1 and wild_types.column is None and wild_types.protein is None:
        refuse_other_proteins(table, reader)


def refuse_other_proteins(table: Table, reader: Reader) -> None:
    """Raise InputError if a column names proteins, and others than the only wild type.

    That is, if it names this one in some rows only, or several, or has the accession of another:
    then it is to be said which rows are of it.
    """
    wild_types = reader.wild_types
    columns = [name for name in once(table) if name not in reader.columns]
    found = {column: Named() for column in columns}
    for block in table.blocks(columns) if columns else ():
        for column, cells in zip(columns, zip(*block.cells, strict=True), strict=True):
            found[column].take(column.lstrip("#"), cells, wild_types)
    for column, named in found.items():
        if named.of_several(wild_types):
            only = next(wild_types.intake.records()).id
            raise InputError(
                f"{shown(table.path)}: column {column!a} names {named.told()}, but the only wild "
                f"type is {only!a}; set {setting('score.protein_col')} to {column!a}, or "
                f"{setting('score.protein')} to {only!a} if all rows are of it"
            )


class Named:
    """The proteins that a column names: the only wild type, by `own`, and some `others`."""

    def __init__(self) -> None:
        self.own: str | None = None
        self.others: list[str] = []
        self.unlike: str | None = None
        """A cell that is no name as far as the column's name and the cell tell."""

    def take(self, column: str, cells: Sequence[str], wild_types: WildTypes) -> None:
        """See what some cells name."""
        by_name, maybe = PROTEIN_COLUMNS.fullmatch(column), OTHER_COLUMNS.fullmatch(column)
        for cell in map(str.strip, dict.fromkeys(cells)):
            if is_missing(cell):
                continue
            if wild_types.knows(cell):
                if by_name or (len(cell) >= SHORTEST_NAME and DIGIT.search(cell)):
                    self.own = self.own or cell
            elif not (by_name or (maybe and is_accession(cell))):
                self.unlike = self.unlike or cell
            elif len(self.others) < EXAMPLES and cell not in self.others:
                self.others.append(cell)

    def of_several(self, wild_types: WildTypes) -> bool:
        """Whether not all rows can be of the only wild type."""
        strange = [*self.others, *([self.unlike] if self.own and self.unlike else [])]
        return bool(
            (self.own and strange)
            or len(self.others) == EXAMPLES
            or any(wild_types.contradict(other) for other in self.others)
        )

    def told(self) -> str:
        """Examples, for a message."""
        examples = [*filter(None, [self.own]), *self.others, *filter(None, [self.unlike])]
        return " and ".join(f"{name[:30]!a}" for name in examples[:EXAMPLES])


def require_match(table: Table, wild_types: WildTypes) -> None:
    """Raise InputError if there are rows, and none of them is of one of the wild types."""
    first, column = wild_types.first_unmatched, wild_types.column
    if wild_types.matched or first is None or not wild_types.intake.count:
        return
    by_column, by_name = setting("score.protein_col"), setting("score.protein")
    near = wild_types.near(first)
    says = f"the first row {first[:60]!a}" if first else "its first cell is empty"
    says += f" (near to {near!a})" if near else ""
    only = f"{by_name} to the one that all rows are of"
    if column is not None and wild_types.protein is not None:
        what = f"no row of column {column!a} is of {wild_types.protein!a}, {says}"
        remedy = f"leave out {by_column} if all rows are of it"
    elif column is not None:
        what = f"column {column!a} names none of the wild types, {says}"
        remedy = f"set {by_column} to the column with their ids, or {only}"
    elif first:
        what, remedy = f"the mutations name none of the wild types, {says}", f"set {only}"
    else:
        what = f"no column '{PROTEIN}', but there are {wild_types.intake.count:,} proteins"
        named = protein_column(first_cells(table), wild_types)
        remedy = f"set {by_column} to {f'{named!a}' if named else f'one of {table.listed()}'}"
    raise InputError(f"{shown(table.path)}: {what}; {remedy}")


def once(table: Table) -> list[str]:
    """The columns whose names stand there once."""
    return [name for name in table.columns if name and table.columns.count(name) == 1]


def first_cells(table: Table) -> Columns:
    """What some first rows have in each column, but for what is missing."""
    names = once(table)
    for block in table.blocks(names):
        columns = zip(*block.cells, strict=True)
        return {
            name: [cell for cell in map(str.strip, column) if not is_missing(cell)]
            for name, column in zip(names, columns, strict=True)
        }
    return {}


def suggestions(table: Table, wild_types: WildTypes, missing: Sequence[str]) -> str:
    """Which settings would read the table, by what its columns hold; '' if none is known."""
    cells = first_cells(table)
    found = [] if [*missing] == [wild_types.column] else list(notation_settings(cells))
    if wild_types.protein is None and (wild_types.column is None or wild_types.column in missing):
        named = protein_column(cells, wild_types)
        found += [("score.protein_col", named)] if named else []
    if not found:
        return ""
    return "set " + " and ".join(f"{setting(key)} to {name!a}" for key, name in found)


def notation_settings(cells: Columns) -> Iterator[tuple[str, str]]:
    """Keys of settings and columns that say what each row's variant is."""
    if mutations := [name for name in cells if mostly(cells[name], is_mutation)]:
        yield "score.mutation_col", mutations[0]
        return
    places = [
        name for name in cells if mostly(cells[name], lambda cell: bool(PLACE.fullmatch(cell)))
    ]
    pairs = [name for name in cells if mostly(cells[name], lambda cell: bool(PAIR.fullmatch(cell)))]
    residues = [name for name in cells if mostly(cells[name], is_residue)]
    places.sort(key=lambda name: re.search("pos|site|res", name.lower()) is None)
    if places and pairs:
        yield "score.position_col", places[0]
        yield "score.mutant_aa_col", pairs[0]
    elif places and len(residues) == 2:
        wild_type, mutant = sorted(
            residues, key=lambda n: re.search("mut|mt|alt", n.lower()) is not None
        )
        yield "score.position_col", places[0]
        yield "score.wild_type_aa_col", wild_type
        yield "score.mutant_aa_col", mutant
    elif sequences := [
        name
        for name in cells
        if mostly(cells[name], looks_like_a_sequence) and len(set(cells[name])) > 1
    ]:
        yield "score.mutated_sequence_col", sequences[0]


def protein_column(cells: Columns, wild_types: WildTypes) -> str | None:
    """The first column that names wild types."""
    return next((name for name in cells if any(map(wild_types.knows, set(cells[name])))), None)


def mostly(cells: Sequence[str], holds: Callable[[str], bool]) -> bool:
    """Whether more than half of some cells, and at least one, are such."""
    return sum(map(holds, cells)) > MOSTLY * len(cells)


def is_residue(cell: str) -> bool:
    """Whether a cell is an amino acid, in one letter or three."""
    return (len(cell) == 1 and (cell.isalpha() or cell == "*")) or cell.lower() in THREE_LETTERS
