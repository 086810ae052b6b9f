"""Opening a table in its format, and creating one.

Parquet is recognised by its first bytes; everything else is text. pyarrow loads only for Parquet.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from esm_pipeline.errors import InputError
from esm_pipeline.formats.fasta import shown
from esm_pipeline.formats.tables.base import PARQUET, Column, Table, Writer
from esm_pipeline.formats.tables.text import TextTable, TextWriter

PARQUET_MAGIC = b"PAR1"
NOT_TABLES = {
    b"PK\x03\x04": "a spreadsheet or zip file; save it as CSV",
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
}
"""First bytes of files that are not tables: what they are, and the remedy."""


def open_table(path: str | os.PathLike[str]) -> Table:
    """The table at `path`: Parquet, or text with a header line of column names.

    Raises InputError for a file that is missing, unreadable, or not a table.
    """
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
    for magic, what in NOT_TABLES.items():
        if begin.startswith(magic):
            raise InputError(f"{shown(path)}: not a table, looks like {what}")
    if begin == PARQUET_MAGIC:
        from esm_pipeline.formats.tables.parquet import ParquetTable

        return ParquetTable(path)
    return TextTable(path)


@contextmanager
def create_table(
    path: Path, suffix: str, like: Table | None, added: Sequence[Column]
) -> Iterator[Writer]:
    """A writer of a new table at `path`, in the format of `suffix`.

    Its columns are those of `like`, if any, followed by `added`. Call `like.require_room_for`
    first.
    """
    writer = _writer(path, suffix, like, added)
    try:
        yield writer
    finally:
        writer.close()


def _writer(path: Path, suffix: str, like: Table | None, added: Sequence[Column]) -> Writer:
    if suffix == PARQUET:
        from esm_pipeline.formats.tables.parquet import ParquetWriter

        return ParquetWriter(path, like, added)
    return TextWriter(path, suffix, like, added)
