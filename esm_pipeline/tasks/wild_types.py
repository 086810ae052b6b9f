"""The proteins that the rows of a table of variants are of, by the names that rows give them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

from esm_pipeline.errors import InputError
from esm_pipeline.formats.fasta import UPPER, WHITESPACE, Entry
from esm_pipeline.formats.records import OK
from esm_pipeline.formats.tables import Table, open_table
from esm_pipeline.sections import CleaningSettings, VariantSettings
from esm_pipeline.tasks.intake import Intake, open_intake, take_in

TABLES = (".csv", ".tsv", ".parquet")
SEVERAL = -1
"""In place of a record: the name is that of several with different sequences."""

SEQUENCES_HELD = 256

Name = str | bytes


class WildTypes:
    """Validated wild types, a context manager that owns their `intake`.

    `column` is that of the variants' table which names the protein of each row; None if there is
    but one. Holds some 200 bytes a protein.
    """

    def __init__(self, intake: Intake, column: str | None, names: dict[Name, int] | None) -> None:
        self.intake, self.column = intake, column
        self._by_sequence = names is not None
        self._names = names or {}
        self._refused: dict[int, str] = {}
        for record in intake.records():
            if record.status != OK:
                self._refused[record.index] = record.reason
            elif intake.unique[record.index] < 0:
                self._refused[record.index] = "a complex of several chains"
            if not self._by_sequence:
                for name in {record.id, *record.id.split("|")[1:]}:
                    self._add(name, record.index)
        self._only = 0 if column is None else None
        self.sequence = lru_cache(SEQUENCES_HELD)(self._sequence)

    def _add(self, name: str, record: int) -> None:
        known = self._names.setdefault(name, record)
        unique = self.intake.unique
        if (
            known >= 0
            and known != record
            and (unique[known] < 0 or unique[known] != unique[record])
        ):
            self._names[name] = SEVERAL

    def choose(self, name: str) -> None:
        """Have all rows be of the protein `name`. Raises InputError if it cannot be."""
        self._only = self._record(name)
        self.column = None
        self.find("")

    def find(self, name: str) -> int:
        """Number of the unique sequence of the protein `name`. Raises InputError, with the reason.

        The name is a record's id, or a part of it behind `|`; the sequence itself, if the column
        holds those.
        """
        record = self._record(name) if self._only is None else self._only
        if record in self._refused:
            raise InputError(f"the wild type cannot be used: {self._refused[record]}")
        return int(self.intake.unique[record])

    def _record(self, name: str) -> int:
        key = digest(name) if self._by_sequence else name
        if key not in self._names:
            raise InputError(f"no protein {name[:60]!a} among the wild types; check the name")
        if self._names[key] == SEVERAL:
            raise InputError(f"{name!a} names several wild types; give each a name of its own")
        return self._names[key]

    def _sequence(self, number: int) -> str:
        return self.intake.sequence(number).decode()

    def __enter__(self) -> WildTypes:
        return self

    def __exit__(self, *error: object) -> None:
        self.intake.close()


def open_wild_types(
    paths: Sequence[str],
    table: Table,
    settings: VariantSettings,
    cleaning: CleaningSettings,
    spool_dir: Path,
    *,
    allow_empty: bool = False,
) -> WildTypes:
    """The wild types of the rows of `table`, from FASTA files or one table, or its own column.

    Several proteins need a column that tells which one each row is of. Raises InputError.
    """
    if not paths:
        return from_column(table, settings, cleaning, spool_dir)
    path = paths[0]
    if len(paths) == 1 and Path(path).suffix.lower() in TABLES:
        intake = take_in(reference_entries(path, settings), cleaning, spool_dir)
    elif settings.sequence_col is not None:
        raise InputError(
            f"{path}: wild types in a FASTA, and in a column by score.sequence_col; leave out one"
        )
    else:
        intake = open_intake(paths, cleaning, spool_dir, allow_empty=allow_empty)
    if settings.protein is not None:
        wild_types = WildTypes(intake, "", None)
        wild_types.choose(settings.protein)
        return wild_types
    column = settings.protein_col
    if column is None and intake.count != 1:
        column = "protein"
        if column not in table.columns:
            raise InputError(
                f"{table.path}: no column 'protein', but there are {intake.count:,} proteins; "
                f"set score.protein_col to one of {table.listed()}"
            )
    return WildTypes(intake, column, None)


def from_column(
    table: Table, settings: VariantSettings, cleaning: CleaningSettings, spool_dir: Path
) -> WildTypes:
    """The different sequences in a column of the table itself."""
    column = settings.sequence_col
    if column is None:
        raise InputError(
            f"{table.path}: where are the wild types? give a FASTA file, or set score.sequence_col "
            "to a column that has them"
        )
    names: dict[Name, int] = {}

    def entries() -> Iterator[list[Entry]]:
        for block in table.blocks([column]):
            batch = []
            for (text,) in block.cells:
                key = digest(text)
                if key not in names:
                    batch.append((0, b"wild_type_%d" % len(names), residues(text)))
                    names[key] = len(names)
            yield batch

    return WildTypes(take_in(entries(), cleaning, spool_dir), column, names)


def reference_entries(path: str, settings: VariantSettings) -> Iterator[list[Entry]]:
    """The records of a table of wild types, such as ProteinGym's reference files."""
    if settings.protein_col is None or settings.sequence_col is None:
        raise InputError(
            f"{path}: a table; set score.protein_col and score.sequence_col to its columns with "
            "names and sequences"
        )
    for block in open_table(path).blocks([settings.protein_col, settings.sequence_col]):
        yield [
            (0, name.encode("utf-8", "surrogateescape"), residues(sequence))
            for name, sequence in block.cells
        ]


def residues(text: str) -> bytes:
    """A sequence in upper case without white space."""
    return text.encode("utf-8", "surrogateescape").translate(UPPER, WHITESPACE)


def digest(text: str) -> bytes:
    """What stands for a long text."""
    return blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()
