"""Parquet tables, by pyarrow: columns keep their types, and have texts for who asks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from esm_pipeline.errors import InputError
from esm_pipeline.formats.fasta import shown
from esm_pipeline.formats.tables.base import BLOCK, Block, Column, Table, Values, Writer

TYPES = {
    "text": pyarrow.string(),
    "whole": pyarrow.int64(),
    "number": pyarrow.float64(),
    "exact": pyarrow.float32(),
}


class ParquetBlock(Block):
    """Rows as Arrow has them."""

    def __init__(self, batch: pyarrow.RecordBatch, wanted: list[int]) -> None:
        self.columns: list[pyarrow.Array] = batch.columns
        self.count = int(batch.num_rows)
        columns = [texts(self.columns[place]) for place in wanted]
        self.cells = [list(row) for row in zip(*columns, strict=True)]

    def rows(self) -> Iterator[tuple[str, ...]]:
        """The texts of all cells of each row."""
        return zip(*map(texts, self.columns), strict=True)


class ParquetTable(Table):
    """A Parquet file with its `schema`."""

    def __init__(self, path: str) -> None:
        with opened(path) as file:
            self.schema: pyarrow.Schema = file.schema_arrow
        super().__init__(path, list(self.schema.names))

    def blocks(self, wanted: Sequence[str]) -> Iterator[ParquetBlock]:
        """The rows."""
        places = self.places(wanted)
        with opened(self.path) as file:
            for batch in file.iter_batches(BLOCK):
                if batch.num_rows:
                    yield ParquetBlock(batch, places)


class ParquetWriter(Writer):
    """Writes Parquet: columns of a text as strings, bytes that are not UTF-8 replaced."""

    def __init__(self, path: Path, suffix: str, like: Table | None, added: Sequence[Column]):
        names = [] if like is None else like.columns
        old = [pyarrow.field(unicode(name), TYPES["text"]) for name in names]
        if isinstance(like, ParquetTable):
            old = list(like.schema)
        self._types = [TYPES[column.kind] for column in added]
        new = [pyarrow.field(column.name, TYPES[column.kind]) for column in added]
        self._schema = pyarrow.schema([*old, *new])
        self._writer = pyarrow.parquet.ParquetWriter(path, self._schema)

    def write(self, block: Block | None, values: Sequence[Values]) -> None:
        """A row group a block."""
        if isinstance(block, ParquetBlock):
            arrays = block.columns
        else:
            rows = [] if block is None else block.rows()
            columns = zip(*rows, strict=True)
            arrays = [pyarrow.array(map(unicode, column), TYPES["text"]) for column in columns]
        pairs = zip(values, self._types, strict=True)
        new = [pyarrow.array(column, kind, from_pandas=True) for column, kind in pairs]
        self._writer.write_batch(pyarrow.record_batch([*arrays, *new], schema=self._schema))

    def close(self) -> None:
        """Write the footer."""
        self._writer.close()


def texts(column: pyarrow.Array) -> list[str]:
    """The cells of a column as text, missing ones empty."""
    try:
        cells = column.cast(TYPES["text"]).to_pylist()
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError):
        cells = [None if cell is None else as_text(cell) for cell in column.to_pylist()]
    return ["" if cell is None else cell for cell in cells]


def as_text(cell: Any) -> str:
    """A cell that Arrow has no text for; bytes that are not UTF-8 are replaced."""
    return cell.decode("utf-8", "replace") if isinstance(cell, bytes) else str(cell)


def unicode(text: str) -> str:
    """`text` without the stand-ins of bytes that are not UTF-8."""
    if text.isascii():
        return text
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


@contextmanager
def opened(path: str) -> Iterator[pyarrow.parquet.ParquetFile]:
    """A Parquet file for reading. Raises InputError if it is damaged."""
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        why = str(error).splitlines()[0]
        raise InputError(
            f"{shown(path)}: not a whole Parquet file ({why}); make it again"
        ) from None
