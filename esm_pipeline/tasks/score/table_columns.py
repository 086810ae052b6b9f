"""What the columns of a table of variants seem to hold, for errors that say which setting reads it.

Nothing is guessed in silence: a column that is not set is never read, but a table that names other
proteins than the only wild type is refused until it is said which rows are of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from esm_pipeline.errors import InputError, setting
from esm_pipeline.formats.fasta import shown
from esm_pipeline.formats.mutation_columns import PAIR, PLACE
from esm_pipeline.formats.mutations import THREE_LETTERS, is_mutation
from esm_pipeline.formats.tables.base import Table
from esm_pipeline.formats.unsupported_notations import is_missing, looks_like_a_sequence
from esm_pipeline.tasks.score.variant_rows import Reader
from esm_pipeline.tasks.score.wild_types import PROTEIN, UNIPROT, WildTypes, is_accession, names_in

GENE_COLUMNS = re.compile(r"(hgnc_)?symbol|gene(_?(names?|symbol))?")
PROTEIN_COLUMNS = re.compile(
    r"prot(ein(_?(id|name|acc\w*))?)?|uniprot\w*|swiss_?prot\w*|ensp|refseq(_protein)?|dms_id|"
    rf"entry_?name|gene_?id|{GENE_COLUMNS.pattern}"
)
"""What columns that name a protein are called in the tables of the field, as `plain` has it."""

OTHER_COLUMNS = re.compile(
    r"acc|accession|entry|id|name|isoform|target\w*|seq\w*id|feature|transcript|transcriptid|"
    r".*_(id|acc\w*)"
)
"""What columns are called that name a protein if accessions of a database stand in them."""

NO_PROTEINS_PLACE = re.compile("cdna|cds|codon|genom|nucl")
"""In names of columns with positions in something else."""

SEPARATORS = re.compile(r"[;,/\s]+"), re.compile(r"\|")
"""What stands between several names in a cell."""

SYMBOL = re.compile(r"(?!ENS[A-Z]*\d)[A-Za-z][\w.-]*", re.ASCII)
"""What may be the symbol of a gene, and no accession of Ensembl's."""

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
    first = [name for name in table.columns if DIGIT.search(name) and is_mutation(name)]
    if missing and first:
        raise InputError(
            f"{shown(table.path)}: its first line has {first[0][:30]!a}, so it has no line of "
            f"column names; add one, with {missing[0]!a} for the column that is asked for"
        )
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
    found = {column: Named(column, wild_types) for column in columns}
    for block in table.blocks(columns) if columns else ():
        for column, cells in zip(columns, zip(*block.cells, strict=True), strict=True):
            found[column].take(cells)
    for column, named in found.items():
        if named.of_several():
            only = next(wild_types.intake.records()).id
            by_column = f"{setting('score.protein_col')} to {column!a}, or " if named.own else ""
            raise InputError(
                f"{shown(table.path)}: column {column!a} names {named.told()}, but the only wild "
                f"type is {only!a}; set {by_column}{setting('score.protein')} to {only!a} if all "
                "rows are of it"
            )


class Named:
    """The proteins that a column names: the only wild type, by `own`, and some `others`."""

    def __init__(self, column: str, wild_types: WildTypes) -> None:
        name = plain(column)
        self._by_name = PROTEIN_COLUMNS.fullmatch(name) is not None
        self._likely = self._by_name or OTHER_COLUMNS.fullmatch(name) is not None
        self._genes = GENE_COLUMNS.fullmatch(name) is not None
        self._wild_types = wild_types
        self.own: str | None = None
        self.others: list[str] = []
        self.unlike: str | None = None
        """A cell that is no name as far as the column's name and the cell tell."""

    def take(self, cells: Sequence[str]) -> None:
        """See what some cells name."""
        for cell in dict.fromkeys(map(str.strip, cells)):
            if not is_missing(cell):
                for name in several(cell):
                    self._take(name)

    def _take(self, name: str) -> None:
        if self._wild_types.knows(name, genes=self._by_name):
            if self._by_name or (len(name) >= SHORTEST_NAME and DIGIT.search(name)):
                self.own = self.own or name
        elif not (self._by_name or (has_accession(name) if self._likely else is_uniprot(name))):
            self.unlike = self.unlike or name
        elif len(self.others) < EXAMPLES and name not in self.others:
            self.others.append(name)

    def of_several(self) -> bool:
        """Whether not all rows can be of the only wild type.

        Accessions tell in a column of any name, if nothing else stands in it.
        """
        if self.own:
            return bool(self.others or self.unlike)
        others = self.others if self._likely or not self.unlike else []
        return len(others) == EXAMPLES or any(map(self._contradicts, others))

    def _contradicts(self, name: str) -> bool:
        """Whether a name is certainly not the only wild type's."""
        symbols = name.split(";")
        return self._wild_types.contradict(name) or (
            self._genes
            and not has_accession(name)
            and all(map(SYMBOL.fullmatch, symbols))
            and self._wild_types.of_other_genes(symbols)
        )

    def told(self) -> str:
        """Examples, for a message."""
        examples = [*filter(None, [self.own]), *self.others, *filter(None, [self.unlike])]
        return " and ".join(f"{name[:30]!a}" for name in examples[:EXAMPLES])


def plain(column: str) -> str:
    """A column's name in lower case, with `_` for all that is no letter or digit."""
    return re.sub(r"[\W_]+", "_", column).strip("_").lower()


def several(cell: str) -> list[str]:
    """The names in a cell, which are several if each has an accession: `P69905;P68871`."""
    for separator in SEPARATORS:
        names = [name for name in separator.split(cell) if name]
        if len(names) > 1 and all(map(has_accession, names)):
            return names
    return [cell]


def has_accession(name: str) -> bool:
    """Whether `name` is an accession, or has one as `sp|P69905|HBA_HUMAN`."""
    return any(map(is_accession, names_in(name)))


def is_uniprot(name: str) -> bool:
    """Whether `name` is or has an accession of UniProt, in capital letters."""
    return any(one.isupper() and is_accession(one, UNIPROT) for one in names_in(name))


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
        name
        for name in cells
        if not NO_PROTEINS_PLACE.search(name.lower())
        and mostly(cells[name], lambda cell: bool(PLACE.fullmatch(cell)))
    ]
    pairs = [name for name in cells if mostly(cells[name], lambda cell: bool(PAIR.fullmatch(cell)))]
    residues = [name for name in cells if mostly(cells[name], is_residue)]
    places.sort(key=likeness, reverse=True)
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


def likeness(name: str) -> list[bool]:
    """How much the name of a column is like that of positions, and in a protein."""
    parts = ("pos|site|res", "prot|aa|res")
    return [re.search(part, name.lower()) is not None for part in parts]


def protein_column(cells: Columns, wild_types: WildTypes) -> str | None:
    """The first column that names wild types."""
    return next((name for name in cells if any(map(wild_types.knows, set(cells[name])))), None)


def mostly(cells: Sequence[str], holds: Callable[[str], bool]) -> bool:
    """Whether more than half of some cells, and at least one, are such."""
    return sum(map(holds, cells)) > MOSTLY * len(cells)


def is_residue(cell: str) -> bool:
    """Whether a cell is an amino acid, in one letter or three."""
    return (len(cell) == 1 and (cell.isalpha() or cell == "*")) or cell.lower() in THREE_LETTERS
