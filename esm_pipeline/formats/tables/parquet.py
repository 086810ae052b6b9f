"""Parquet tables, read and written by pyarrow: columns keep their types."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from esm_pipeline.errors import InputError
from esm_pipeline.formats.fasta import shown
from esm_pipeline.formats.tables.base import (
    ROWS_AT_ONCE,
    Block,
    Column,
    ColumnValues,
    Table,
    Writer,
)

ARROW_TYPES = {
    "text": pyarrow.string(),
    "whole": pyarrow.int64(),
    "number": pyarrow.float64(),
    "exact": pyarrow.float32(),
}
"""Arrow type of each kind of new column."""


class ParquetBlock(Block):
    """A batch of Arrow, whose `columns` are kept as they are."""

    def __init__(self, batch: pyarrow.RecordBatch, wanted: list[int]) -> None:
        self.columns: list[pyarrow.Array] = batch.columns
        self.count = int(batch.num_rows)
        columns = [cell_texts(self.columns[place]) for place in wanted]
        self.cells = [list(row) for row in zip(*columns, strict=True)]

    def rows(self) -> Iterator[tuple[str, ...]]:
        """The text of all cells of each row."""
        return zip(*map(cell_texts, self.columns), strict=True)


class ParquetTable(Table):
    """A Parquet file with its `schema`."""

    def __init__(self, path: str) -> None:
        with open_parquet(path) as file:
            self.schema: pyarrow.Schema = file.schema_arrow
        super().__init__(path, list(self.schema.names))

    def blocks(self, wanted: Sequence[str]) -> Iterator[ParquetBlock]:
        """All rows, a batch at a time."""
        places = self.places(wanted)
        with open_parquet(self.path) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE):
                if batch.num_rows:
                    yield ParquetBlock(batch, places)


class ParquetWriter(Writer):
    """Writes Parquet. The columns of a text table become strings, in valid UTF-8."""

    def __init__(self, path: Path, like: Table | None, added: Sequence[Column]) -> None:
        names = [] if like is None else like.columns
        old = [pyarrow.field(as_unicode(name), ARROW_TYPES["text"]) for name in names]
        if isinstance(like, ParquetTable):
            old = list(like.schema)
        new = [pyarrow.field(column.name, ARROW_TYPES[column.kind]) for column in added]
        self._types = [field.type for field in new]
        self._schema = pyarrow.schema([*old, *new])
        self._writer = pyarrow.parquet.ParquetWriter(path, self._schema)

    def write(self, block: Block | None, added: Sequence[ColumnValues]) -> None:
        """Write one row group."""
        if isinstance(block, ParquetBlock):
            arrays = block.columns
        else:
            rows = [] if block is None else block.rows()
            columns = zip(*rows, strict=True)
            arrays = [
                pyarrow.array(map(as_unicode, column), ARROW_TYPES["text"]) for column in columns
            ]
        pairs = zip(added, self._types, strict=True)
        new = [pyarrow.array(column, kind, from_pandas=True) for column, kind in pairs]
        self._writer.write_batch(pyarrow.record_batch([*arrays, *new], schema=self._schema))

    def close(self) -> None:
        """Write the footer."""
        self._writer.close()


def cell_texts(column: pyarrow.Array) -> list[str]:
    """The cells of a column as text; missing ones are empty."""
    try:
        cells = column.cast(ARROW_TYPES["text"]).to_pylist()
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError):
        cells = [None if cell is None else cell_text(cell) for cell in column.to_pylist()]
    return ["" if cell is None else cell for cell in cells]


def cell_text(cell: Any) -> str:
    """A cell that Arrow cannot cast to text; bytes that are not UTF-8 are replaced."""
    return cell.decode("utf-8", "replace") if isinstance(cell, bytes) else str(cell)


def as_unicode(text: str) -> str:
    """`text` with bytes that are not UTF-8 (surrogate escapes) replaced."""
    if text.isascii():
        return text
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


@contextmanager
def open_parquet(path: str) -> Iterator[pyarrow.parquet.ParquetFile]:
    """Open a Parquet file for reading. Raises InputError if it is damaged."""
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        why = str(error).splitlines()[0]
        raise InputError(
            f"{shown(path)}: not a whole Parquet file ({why}); make it again"
        ) from None
