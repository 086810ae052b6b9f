"""The wild types: the proteins that the rows of a variant table are of, found by their names."""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from hashlib import blake2b
from pathlib import Path

from esm_pipeline.errors import InputError, setting
from esm_pipeline.formats.fasta import FastaRecord
from esm_pipeline.formats.protein_names import (
    ACCESSIONS,
    ENTRY_NAME,
    base_name,
    gene_in,
    is_accession,
    names_in,
    names_of,
)
from esm_pipeline.formats.records import OK, Record
from esm_pipeline.formats.tables.base import Table
from esm_pipeline.formats.tables.open import open_table
from esm_pipeline.settings.sections import CleaningSettings, VariantSettings
from esm_pipeline.tasks.common.cleaning import residues
from esm_pipeline.tasks.common.sequences import SequenceSet, open_sequences, read_entries

TABLES = (".csv", ".tsv", ".parquet")
AMBIGUOUS = -1
"""In place of a record: the name belongs to several with different sequences."""

SEQUENCES_HELD = 256
NAME_SHOWN = 60  # characters of a name in a message
MOST_NAMES_COMPARED = 100
"""Names among which a similar one is searched for; more would take too long."""

DEFAULT_COLUMN = "protein"
"""The column that names the protein of each row, unless another is set."""

GENE = re.compile(r"\sGN=(.+?)(?=\s[A-Z]{2}=|\s*$)")
"""The gene in a UniProt header."""

NameKey = str | bytes


class WildTypes:
    """Validated wild types, a context manager that owns their `sequence_set`.

    `column` is the column of the variant table that names the protein of each row. If it is None,
    rows are of the only protein, or of the one that their notation names. `protein` is the name of
    the one that all rows belong to. Holds some 200 bytes per protein, twice that with a gene.

    `matched` says whether any row so far was of a wild type, `first_unmatched` which protein was
    named by the first row that was not.
    """

    first_unmatched: str | None

    def __init__(
        self,
        sequence_set: SequenceSet,
        column: str | None,
        *,
        sequences: dict[NameKey, int] | None = None,
        protein: str | None = None,
    ) -> None:
        self.sequence_set, self.column = sequence_set, column
        self.matched = False
        self.first_unmatched = None
        self._by_sequence = sequences is not None
        self._names: dict[NameKey, int] = {} if sequences is None else sequences
        self._genes: dict[NameKey, int] = {}
        self._gene_of: dict[int, str] = {}
        self._refused: dict[int, str] = {}
        for record in sequence_set.records():
            self._add(record)
        self.sequence = lru_cache(SEQUENCES_HELD)(self._sequence)
        self.near = lru_cache(SEQUENCES_HELD)(self._near)
        self.protein = protein
        self._chosen: int | None = None
        if protein is not None:
            self._chosen = self._record_named(protein)
            self._usable(self._chosen)
            self.matched = column is None

    def _add(self, record: Record) -> None:
        """Take up the names of a record, and why it cannot be used, if so."""
        if record.status != OK:
            self._refused[record.index] = record.reason
        elif self.sequence_set.unique[record.index] < 0:
            self._refused[record.index] = "a complex of several chains"
        if self._by_sequence:
            return
        for name in names_of(record.id):
            self._add_name(self._names, name, record.index)
        if gene := GENE.search(record.header):
            self._gene_of[record.index] = gene[1]
            self._add_name(self._genes, gene[1], record.index)

    def _add_name(self, names: dict[NameKey, int], name: str, record: int) -> None:
        known = names.setdefault(name, record)
        if known >= 0 and not self._same(known, record):
            names[name] = AMBIGUOUS

    def _same(self, one: int, other: int) -> bool:
        """Whether two records have the same sequence."""
        unique = self.sequence_set.unique
        return one == other or (unique[one] >= 0 and unique[one] == unique[other])

    def find(self, name: str, reference: str = "") -> int:
        """Number of the unique sequence that a row belongs to. Raises InputError, with the reason.

        `name` is the cell of `column`: an id, an accession or entry name in it, or the gene in the
        header; or the sequence itself, if the column holds sequences. `reference` is the name that
        the notation begins with. It counts where no column names the protein; elsewhere it must not
        name another protein.
        """
        try:
            record = self._record_for(name, reference)
        except InputError:
            if self.first_unmatched is None:
                self.first_unmatched = name.strip() if self.column is not None else reference
            raise
        self.matched = True
        return self._usable(record)

    def _record_for(self, name: str, reference: str) -> int:
        """The record that a row belongs to. Raises InputError."""
        if self._by_sequence:
            return self._record_named(name)
        if self.column is not None:
            record = self._record_in_column(name.strip())
        elif self._chosen is not None:
            record = self._chosen
        elif reference:
            return self._record_named(reference)
        elif self.sequence_set.count == 1:
            return 0
        else:
            where = f"{setting('score.protein_col')} or {setting('score.protein')}"
            raise InputError(f"names none of the {self.sequence_set.count:,} proteins; set {where}")
        if reference and self._names_another(reference, record):
            raise InputError(
                f"the mutation is of {reference[:NAME_SHOWN]!a}, which the row's protein is not; "
                "correct one of the two"
            )
        return record

    def _record_in_column(self, name: str) -> int:
        """The record that the cell of `column` names. Raises InputError."""
        if not name:
            raise InputError(f"column {self.column!a} is empty; name the protein in it")
        if self._chosen is None:
            return self._record_named(name)
        try:
            same = self._same(self._record_named(name), self._chosen)
        except InputError:
            same = False
        if not same:
            raise InputError(
                f"the row is of {name[:NAME_SHOWN]!a}, not of {setting('score.protein')} "
                f"{self.protein!a}; leave out {setting('score.protein_col')} if all rows "
                "belong to it"
            )
        return self._chosen

    def _usable(self, record: int) -> int:
        """The number of a record's unique sequence. Raises InputError if it was skipped."""
        if record in self._refused:
            raise InputError(f"the wild type cannot be used: {self._refused[record]}")
        return int(self.sequence_set.unique[record])

    def _record_named(self, name: str) -> int:
        """The record with a name, as a whole or in one of its parts. Raises InputError."""
        key = digest(name) if self._by_sequence else name
        found = {self._names[key]} if key in self._names else set[int]()
        if not found and not self._by_sequence:
            found = self._by_parts(name)
        if not found:
            raise InputError(
                f"no protein {name[:NAME_SHOWN]!a} among the wild types; {self._remedy(name)}"
            )
        first = min(found)
        if first == AMBIGUOUS or not all(self._same(first, record) for record in found):
            raise InputError(f"{name!a} names several wild types; give each a name of its own")
        return first

    def _by_parts(self, name: str, *, genes: bool = True) -> set[int]:
        """The records that one of the names in a text, such as `sp|P62593|BLAT_ECOLX`, belongs to.

        With `genes`, if there are none: the records that have one of the names as their gene.
        """
        for names in (self._names, self._genes) if genes else (self._names,):
            found = {names[part] for part in names_in(name) if part in names}
            found = found - {AMBIGUOUS} or found
            if found := {one for one in found if one < 0 or not self._names_another(name, one)}:
                return found
        return set()

    def knows(self, name: str, *, genes: bool = True) -> bool:
        """Whether a record has that name or, with `genes`, that gene."""
        return name in self._names or bool(self._by_parts(name, genes=genes))

    def lack(self, name: str) -> bool:
        """Whether `name` is an accession or entry name that none of the wild types has."""
        return all(self._names_another(name, record) for record in self._names_of_record)

    def lack_genes(self, symbols: Iterable[str]) -> bool:
        """Whether the headers of all wild types name genes, but none of `symbols`."""
        own = {gene.lower() for gene in self._gene_of.values()}
        return len(self._gene_of) == self.sequence_set.count and own.isdisjoint(
            map(str.lower, symbols)
        )

    def _names_another(self, name: str, record: int) -> bool:
        """Whether `name` belongs to another protein or gene (`NM_000558.5(HBA1)`) than a record."""
        ours, gene = self._gene_of.get(record), gene_in(name)
        return conflicts(name, self._names_of_record[record]) or (
            ours is not None and gene is not None and ours.lower() != gene.lower()
        )

    @cached_property
    def _names_of_record(self) -> dict[int, set[str]]:
        """The names of each record."""
        names: dict[int, set[str]] = defaultdict(set)
        for name, record in self._names.items():
            if isinstance(name, str):
                names[record].add(name)
        return names

    def _near(self, name: str) -> str | None:
        """The name of a wild type that is most similar to an unknown one, if any is."""
        if known := self._bases.get(base_name(name)):
            return known
        names = [] if len(self._names) > MOST_NAMES_COMPARED else list(self._bases.values())
        return next(iter(difflib.get_close_matches(name, names, 1, 0.8)), None)

    def _remedy(self, name: str) -> str:
        """What to do about a name that none of the wild types has, for a message."""
        near = self.near(name)
        if near is None:
            return "check the name"
        if base_name(near) != base_name(name) or near.lower() == name.lower():
            return f"did you mean {near!a}?"
        return f"{near!a} is another isoform or version: add this one, or correct the name"

    @cached_property
    def _bases(self) -> dict[str, str]:
        """Names by their base names, as `base_name` gives them; accessions win over ids."""
        return {base_name(name): name for name in self._names if isinstance(name, str)}

    def _sequence(self, number: int) -> str:
        return self.sequence_set.sequence(number).decode()

    def __enter__(self) -> WildTypes:
        return self

    def __exit__(self, *error: object) -> None:
        self.sequence_set.close()


def open_wild_types(
    paths: Sequence[str],
    table: Table,
    settings: VariantSettings,
    cleaning: CleaningSettings,
    spool_dir: Path,
    *,
    allow_empty: bool = False,
) -> WildTypes:
    """The wild types of the rows of `table`: from FASTA files, another table or its own column.

    Several proteins need a column that names the protein of each row. Raises InputError.
    """
    if not paths:
        return wild_types_in_column(table, settings, cleaning, spool_dir)
    path = paths[0]
    if len(paths) == 1 and Path(path).suffix.lower() in TABLES:
        sequence_set = read_entries(entries_of_table(path, settings), cleaning, spool_dir)
        column = settings.protein_col
        if settings.protein is not None and not table.has(str(column)):
            column = None  # only the table of wild types has it
    elif settings.sequence_col is not None:
        raise InputError(
            f"{path}: wild types in a FASTA, and in a column by {setting('score.sequence_col')}; "
            "leave out one"
        )
    else:
        sequence_set = open_sequences(paths, cleaning, spool_dir, allow_empty=allow_empty)
        column = protein_column_of(table, settings)
    return WildTypes(sequence_set, column, protein=settings.protein)


def protein_column_of(table: Table, settings: VariantSettings) -> str | None:
    """The column of `table` that names the protein of each row, if it has one."""
    column = settings.protein_col
    if column is None and settings.protein is None and table.has(DEFAULT_COLUMN):
        return DEFAULT_COLUMN
    return column


def wild_types_in_column(
    table: Table, settings: VariantSettings, cleaning: CleaningSettings, spool_dir: Path
) -> WildTypes:
    """The different sequences in a column of the variant table itself. Raises InputError."""
    column = settings.sequence_col
    if column is None:
        raise InputError(
            f"{table.path}: where are the wild types? give a FASTA file, or set "
            f"{setting('score.sequence_col')} to a column that has them"
        )
    names: dict[NameKey, int] = {}

    def entries() -> Iterator[list[FastaRecord]]:
        for block in table.blocks([column]):
            batch = []
            for (text,) in block.cells:
                key = digest(text)
                if key not in names:
                    batch.append((0, b"wild_type_%d" % len(names), residues(text)))
                    names[key] = len(names)
            yield batch

    return WildTypes(read_entries(entries(), cleaning, spool_dir), column, sequences=names)


def entries_of_table(path: str, settings: VariantSettings) -> Iterator[list[FastaRecord]]:
    """The records of a table of wild types, such as ProteinGym's reference files.

    Raises InputError.
    """
    if settings.protein_col is None or settings.sequence_col is None:
        raise InputError(
            f"{path}: a table; set {setting('score.protein_col')} and "
            f"{setting('score.sequence_col')} to its columns with names and sequences"
        )
    for block in open_table(path).blocks([settings.protein_col, settings.sequence_col]):
        yield [
            (0, name.encode("utf-8", "surrogateescape"), residues(sequence))
            for name, sequence in block.cells
        ]


def conflicts(reference: str, names: set[str]) -> bool:
    """Whether `reference` and `names` have different accessions in the same database.

    Accessions of different databases cannot be compared. FastaRecord names are compared where no
    accessions can be.
    """
    given = names_in(reference)
    for database in (*ACCESSIONS, ENTRY_NAME):
        ours, theirs = (
            {one for one in some if is_accession(one, database)} for some in (given, names)
        )
        if ours and theirs:
            return not ours & theirs
    return False


def digest(text: str) -> bytes:
    """A short key for a long text."""
    return blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()
