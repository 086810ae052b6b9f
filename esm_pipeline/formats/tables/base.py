"""What tables of every format have in common: columns, blocks of rows, a reader and a writer.

Only the requested columns are interpreted: a row of text keeps its bytes, a column of Parquet its
type. New columns are appended. Converting between formats keeps the text of every cell.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from esm_pipeline.errors import InputError
from esm_pipeline.formats.fasta import shown

ROWS_AT_ONCE = 4096
"""Rows that are read and written at a time."""

PARQUET = ".parquet"
SUFFIXES = (".tsv", ".csv", PARQUET)
"""Suffixes of the files that a table can be written to."""

MOST_LISTED = 12
"""Columns that a message lists."""

ColumnValues = Sequence[Any]
"""The values of one column in a block: text or numbers, one for each row."""


class Column(NamedTuple):
    """A new column. NaN is a missing number.

    In text, a "number" has six decimals; an "exact" one (float32) has as many digits as identify
    it.
    """

    name: str
    kind: Literal["text", "whole", "number", "exact"] = "number"


class Block(ABC):
    """`count` consecutive rows; `cells` holds the text of the requested columns, row by row."""

    count: int
    cells: list[list[str]]

    @abstractmethod
    def rows(self) -> Iterator[Sequence[str]]:
        """The text of all cells of each row."""


class Table(ABC):
    """A table on disk; `columns` are the names of its columns, in order."""

    def __init__(self, path: str, columns: list[str]) -> None:
        self.path, self.columns = path, columns

    @abstractmethod
    def blocks(self, wanted: Sequence[str]) -> Iterator[Block]:
        """All rows, with the cells of the columns `wanted`.

        Raises InputError, with the line, for a malformed row.
        """

    def places(self, wanted: Sequence[str]) -> list[int]:
        """Positions of the columns. Raises InputError for a missing or duplicate one."""
        for name in wanted:
            if self.columns.count(name) > 1:
                raise InputError(f"{shown(self.path)}: has two columns {name!a}; rename one")
            if not self.has(name):
                near = difflib.get_close_matches(name, self.columns, n=1)
                remedy = f"did you mean {near[0]!a}?" if near else f"it has {self.listed()}"
                raise InputError(f"{shown(self.path)}: no column {name!a}; {remedy}")
        return [
            self.columns.index(name) if name in self.columns else 0  # the first, after its `#`
            for name in wanted
        ]

    def has(self, name: str) -> bool:
        """Whether there is a column `name`; a `#` before the first name may be left out."""
        return name in self.columns or self.columns[:1] == [f"#{name}"]

    def listed(self) -> str:
        """The names of the columns, for a message."""
        more = len(self.columns) - MOST_LISTED
        names = ", ".join(f"{name!a}" for name in self.columns[:MOST_LISTED])
        return f"{names} and {more} more" if more > 0 else names

    def require_room_for(self, added: Iterable[Column], suffix: str) -> None:
        """Raise InputError if `create_table` cannot append `added` to the table's columns."""
        for column in added:
            if column.name in self.columns:
                raise InputError(
                    f"{shown(self.path)}: has a column '{column.name}', which is to be added; "
                    "rename it, or leave it out"
                )
        for name in self.columns if suffix == PARQUET else []:
            if self.columns.count(name) > 1:
                raise InputError(
                    f"{shown(self.path)}: has two columns {name!a}, which Parquet does not allow; "
                    "rename one, or write .tsv"
                )


class Writer(ABC):
    """A new table: the unchanged rows of another table, if any, followed by the added columns."""

    @abstractmethod
    def write(self, block: Block | None, added: Sequence[ColumnValues]) -> None:
        """Write the rows of `block` (None without another table) and the `added` columns."""

    @abstractmethod
    def close(self) -> None:
        """Write what is buffered. Raises OSError, as on a full disk."""


def suffix_of(path: Path) -> str:
    """The suffix of a table's file name, in lower case. Raises InputError for any other."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: not a table format; let its name end in {', '.join(SUFFIXES)}")
    return suffix
