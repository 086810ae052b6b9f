"""A table that is in memory, and new columns that stay there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

from esm_pipeline.formats.tables.base import (
    ROWS_AT_ONCE,
    Block,
    Column,
    ColumnValues,
    Table,
    Writer,
)


class CellBlock(Block):
    """Rows of a table in memory: the cells of the requested columns, and no others."""

    def __init__(self, columns: list[Sequence[str]], count: int) -> None:
        self.count = count
        self.cells = [list(row) for row in zip(*columns, strict=True)]

    def rows(self) -> Iterator[Sequence[str]]:
        """The requested cells of each row: the others stay where they are."""
        return iter(self.cells)


class MemoryTable(Table):
    """A table of `count` rows; `read` gives the text of all cells of a column by its place.

    `name` stands for the path in messages.
    """

    def __init__(
        self, name: str, columns: list[str], count: int, read: Callable[[int], Sequence[str]]
    ) -> None:
        super().__init__(name, columns)
        self._count, self._column = count, cache(read)

    def blocks(self, wanted: Sequence[str]) -> Iterator[CellBlock]:
        """All rows, with the cells of the columns `wanted`."""
        columns = [self._column(place) for place in self.places(wanted)]
        for first in range(0, self._count, ROWS_AT_ONCE):
            stop = min(first + ROWS_AT_ONCE, self._count)
            yield CellBlock([column[first:stop] for column in columns], stop - first)


class MemoryWriter(Writer):
    """Keeps the added columns: `values` has those of each, in the order of the rows."""

    def __init__(self, added: Sequence[Column]) -> None:
        self.values: dict[str, list[Any]] = {column.name: [] for column in added}

    def write(self, block: Block | None, added: Sequence[ColumnValues]) -> None:
        """Append the `added` columns; the rows of `block` stay where they are."""
        for values, more in zip(self.values.values(), added, strict=True):
            values.extend(more)

    def close(self) -> None:
        """Nothing is buffered."""
