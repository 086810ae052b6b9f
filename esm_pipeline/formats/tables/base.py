"""Tables with columns of anyone's: CSV, TSV and Parquet, a block of rows at a time.

What is not asked for is never read as anything: a row of text keeps its bytes, a column of Parquet
its type, and new columns are put behind. Between the formats a cell keeps its text.
"""

from __future__ import annotations

import difflib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from esm_pipeline.errors import InputError
from esm_pipeline.formats.fasta import shown

BLOCK = 4096  # rows
PARQUET = ".parquet"
SUFFIXES = (".tsv", ".csv", PARQUET)
"""What a table can be written as."""

PARQUET_MAGIC = b"PAR1"
LOOKS = {
    b"PK\x03\x04": "a spreadsheet or zip file; save it as CSV",
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
}
LISTED = 12

Values = Sequence[Any]


class Column(NamedTuple):
    """A column to be added. NaN stands for a missing number.

    In text, a number has six decimals, an exact one (float32) the digits that tell it from others.
    """

    name: str
    kind: Literal["text", "whole", "number", "exact"] = "number"


class Block(ABC):
    """`count` rows in turn. `cells` are the texts of the columns asked for, row by row."""

    count: int
    cells: list[list[str]]

    @abstractmethod
    def rows(self) -> Iterator[Sequence[str]]:
        """The texts of all cells of each row."""


class Table(ABC):
    """A table on disk: its `columns`, in their order."""

    def __init__(self, path: str, columns: list[str]) -> None:
        self.path, self.columns = path, columns

    @abstractmethod
    def blocks(self, wanted: Sequence[str]) -> Iterator[Block]:
        """All rows, with the cells of the columns `wanted`.

        Raises InputError, with the line, for what is no row.
        """

    def places(self, wanted: Sequence[str]) -> list[int]:
        """Where the columns are. Raises InputError for one that is not there, or twice."""
        for name in wanted:
            if self.columns.count(name) > 1:
                raise InputError(f"{shown(self.path)}: has two columns {name!a}; rename one")
            if not self.has(name):
                near = difflib.get_close_matches(name, self.columns, n=1)
                remedy = f"did you mean {near[0]!a}?" if near else f"it has {self.listed()}"
                raise InputError(f"{shown(self.path)}: no column {name!a}; {remedy}")
        return [
            self.columns.index(name) if name in self.columns else 0  # the first, behind its `#`
            for name in wanted
        ]

    def has(self, name: str) -> bool:
        """Whether there is a column `name`; a `#` that opens the line of names may be left out."""
        return name in self.columns or self.columns[:1] == [f"#{name}"]

    def listed(self) -> str:
        """The names of the columns, for a message."""
        more = len(self.columns) - LISTED
        names = ", ".join(f"{name!a}" for name in self.columns[:LISTED])
        return f"{names} and {more} more" if more > 0 else names

    def refuse(self, added: Iterable[Column], suffix: str) -> None:
        """Raise InputError if `create_table` cannot put `added` behind the table's own columns."""
        for column in added:
            if column.name in self.columns:
                raise InputError(
                    f"{shown(self.path)}: has a column '{column.name}', which is to be added; "
                    "rename it, or leave it out"
                )
        for name in self.columns if suffix == PARQUET else []:
            if self.columns.count(name) > 1:
                raise InputError(
                    f"{shown(self.path)}: has two columns {name!a}, which Parquet has no room for; "
                    "rename one, or write .tsv"
                )


class Writer(ABC):
    """A new table: the rows of another as they are, and the added columns behind."""

    @abstractmethod
    def write(self, block: Block | None, values: Sequence[Values]) -> None:
        """Write the rows of `block` (None if there is no other table) with all added `values`."""

    @abstractmethod
    def close(self) -> None:
        """Write what is left. Raises OSError, as on a full disk."""


def open_table(path: str | os.PathLike[str]) -> Table:
    """The table at `path`: Parquet by its first bytes, else text with a line of column names.

    Raises InputError for a file that is missing, unreadable, or something else.
    """
    from esm_pipeline.formats.tables import parquet as parquet_tables
    from esm_pipeline.formats.tables import text as text_tables

    path = os.fspath(path)
    try:
        with open(path, "rb") as handle:
            begin = handle.read(4)
    except FileNotFoundError:
        raise InputError(f"{shown(path)}: no such file; check the path") from None
    except IsADirectoryError:
        raise InputError(f"{shown(path)}: a folder, not a file; name the table in it") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{shown(path)}: cannot be read ({why}); check the path") from None
    for magic, what in LOOKS.items():
        if begin.startswith(magic):
            raise InputError(f"{shown(path)}: not a table, looks like {what}")
    if begin == PARQUET_MAGIC:
        return parquet_tables.ParquetTable(path)
    return text_tables.TextTable(path)


@contextmanager
def create_table(
    path: Path, suffix: str, like: Table | None, added: Sequence[Column]
) -> Iterator[Writer]:
    """A writer of a new table at `path`, of the kind that `suffix` names.

    It has the columns of `like`, and behind them `added`; `like.refuse` tells whether it can.
    """
    from esm_pipeline.formats.tables import parquet as parquet_tables
    from esm_pipeline.formats.tables import text as text_tables

    kind = parquet_tables.ParquetWriter if suffix == PARQUET else text_tables.TextWriter
    writer: Writer = kind(path, suffix, like, added)
    try:
        yield writer
    finally:
        writer.close()


def suffix_of(path: Path) -> str:
    """The kind of table that a file's name asks for. Raises InputError for any other."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: no kind of table; let its name end in {', '.join(SUFFIXES)}")
    return suffix
