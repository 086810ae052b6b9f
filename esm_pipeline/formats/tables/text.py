"""CSV and TSV whose rows are copied unchanged. Peer: Python's csv module, which parses them.

Bytes that are not UTF-8 are kept. A row with too few or too many cells is an error, because its
meaning is not known. Lines that begin with `#` above the column names, as in the files of
AlphaMissense and VEP, are comments; a text table written from this one keeps them at its top.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

from esm_pipeline.errors import InputError
from esm_pipeline.formats.fasta import GZIP_MAGIC, shown
from esm_pipeline.formats.tables.base import (
    ROWS_AT_ONCE,
    Block,
    Column,
    ColumnValues,
    Table,
    Writer,
)

MOST_LINES = 10_000
"""Most lines of one row, or of comments: a longer row has a quote that is never closed."""

DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t", ".tab": "\t"}
"""The usual delimiter of each suffix."""

OTHER_DELIMITERS = ",\t;"
DECODED_MARK = "\ufeff"
LINE_END = "\r\n"  # csv.writer quotes cells that contain these characters
NAMES_AFTER_HASH = re.compile(r"#[^\s#]")

csv.field_size_limit(2**31 - 1)


class TextBlock(Block):
    """Rows as lines of the file and as lists of cells."""

    def __init__(self, rows: list[tuple[str, list[str]]], wanted: list[int]) -> None:
        self._rows, self.count = rows, len(rows)
        self.cells = [[row[place] for place in wanted] for _, row in rows]

    def rows(self) -> Iterator[list[str]]:
        """All cells of each row."""
        return (row for _, row in self._rows)

    def lines(self) -> Iterator[str]:
        """Each row as in the file, without its line end."""
        return (line for line, _ in self._rows)


class TextTable(Table):
    """A text table, plain or gzip.

    `comments` are the lines above the column names, `header` the line of names as in the file,
    `end` its line end, and `delimiter` the usual one of the file's suffix if the header has it.
    """

    def __init__(self, path: str) -> None:
        self.path, self.comments = path, list[str]()
        with self._lines() as lines:
            self.comments = comments_above(path, lines)
        with self._lines() as lines:
            first = next(lines, "")
            self.delimiter = delimiter_of(path, first)
            columns = next(csv.reader(chain([first], lines), delimiter=self.delimiter), [])
            self.header, self.end = without_end(lines.take())
        if not any(columns):
            place = f"{shown(path)}:{len(self.comments) + 1}"
            raise InputError(f"{place}: no column names; begin with a line of them")
        super().__init__(path, columns)

    def blocks(self, wanted: Sequence[str]) -> Iterator[TextBlock]:
        """All rows; empty lines are left out."""
        places = self.places(wanted)
        with self._lines() as lines:
            rows = self._rows(lines)
            while block := list(islice(rows, ROWS_AT_ONCE)):
                yield TextBlock(block, places)

    def _rows(self, lines: Lines) -> Iterator[tuple[str, list[str]]]:
        """Line and cells of each row after the header."""
        reader = csv.reader(lines, delimiter=self.delimiter)
        next(reader, None)
        lines.take()
        for row in reader:
            line, _ = without_end(lines.take())
            if row and len(row) != len(self.columns):
                remedy = f"quote a cell with {self.delimiter!a} in it"
                if line.startswith("#"):
                    remedy = "comments can stand above the column names only: move or remove it"
                raise InputError(
                    f"{shown(self.path)}:{lines.count}: "
                    f"{counted(row, 'cell')} under {counted(self.columns, 'column')}; {remedy}"
                )
            if row:
                yield line, row

    @contextmanager
    def _lines(self) -> Iterator[Lines]:
        """The lines below the comments. Raises InputError, with the line, for damaged ones."""
        with open(self.path, "rb") as file:
            packed = file.read(2) == GZIP_MAGIC
            file.seek(0)
            raw: Any = gzip.GzipFile(fileobj=file) if packed else file
            with io.TextIOWrapper(raw, "utf-8", errors="surrogateescape", newline="") as text:
                lines = Lines(text)
                try:
                    for _ in self.comments:
                        next(lines, "")
                        lines.take()
                    yield lines
                except csv.Error as error:
                    place = f"{shown(self.path)}:{lines.began + 1}"
                    raise InputError(f"{place}: not a row ({error}); correct it") from None
                except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                    place = f"{shown(self.path)}:{lines.count + 1}"
                    raise InputError(
                        f"{place}: the gzip file is damaged ({error}); fetch it again"
                    ) from None


class Lines:
    """An iterator of lines that counts them and keeps those of the current row.

    `count` lines were read so far, `began` of them before the current row.
    """

    def __init__(self, handle: TextIO) -> None:
        self._handle, self._taken = handle, list[str]()
        self.count = self.began = 0

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        line = next(self._handle, None)
        if line is None:
            if self._taken:  # the file ends within a row
                raise csv.Error("a quote that is not closed")
            raise StopIteration
        if self.count == 0:
            line = line.removeprefix(DECODED_MARK)
        self.count += 1
        self._taken.append(line)
        if len(self._taken) > MOST_LINES:
            raise csv.Error(f"a quote that is not closed within {MOST_LINES:,} lines")
        return line

    def take(self) -> str:
        """The text of the current row, as far as it was read; a new row begins."""
        text = "".join(self._taken)
        self._taken.clear()
        self.began = self.count
        return text


class TextWriter(Writer):
    """Writes CSV or TSV. Rows of a text table with the same delimiter are copied unchanged."""

    def __init__(
        self, path: Path, suffix: str, like: Table | None, added: Sequence[Column]
    ) -> None:
        self._kinds = [column.kind for column in added]
        self._delimiter, self._end, self._as_is = DELIMITERS[suffix], "\n", False
        names = [] if like is None else like.columns
        if isinstance(like, TextTable):
            self._end = like.end
            if self._delimiter == "," and like.delimiter == ";":
                self._delimiter = ";"
            self._as_is = like.delimiter == self._delimiter
        header = [like.header] if self._as_is and isinstance(like, TextTable) else []
        header += [
            join([*([] if header else names), *(column.name for column in added)], self._delimiter)
        ]
        self._handle = path.open("w", encoding="utf-8", errors="surrogateescape", newline="")
        self._handle.writelines(like.comments if isinstance(like, TextTable) else [])
        self._handle.write(self._delimiter.join(header) + self._end)

    def write(self, block: Block | None, added: Sequence[ColumnValues]) -> None:
        """Write one line for each row."""
        pairs = zip(added, self._kinds, strict=True)
        columns = [column_texts(column, kind) for column, kind in pairs]
        new_cells = zip(*columns, strict=True)
        delimiter, end = self._delimiter, self._end
        if self._as_is and isinstance(block, TextBlock):
            lines = (
                f"{line}{delimiter}{join(new, delimiter)}{end}"
                for line, new in zip(block.lines(), new_cells, strict=True)
            )
        elif block is None:
            lines = (join(new, delimiter) + end for new in new_cells)
        else:
            lines = (
                join([*row, *new], delimiter) + end
                for row, new in zip(block.rows(), new_cells, strict=True)
            )
        self._handle.writelines(lines)

    def close(self) -> None:
        """Write what is buffered."""
        self._handle.close()


def comments_above(path: str, lines: Lines) -> list[str]:
    """The lines above the column names: those that begin with `#`, and empty ones below them.

    The line of names may itself begin with `#`, as VEP's `#Uploaded_variation`: then no blank
    follows it, and the line has as many cells as the next one. A single name is recognised only on
    the first line.
    """
    found: list[str] = []
    below = ""
    for line in lines:
        lines.take()
        if not (line.startswith("#") or (found and not line.strip())):
            below = line
            break
        found.append(line)
        if len(found) > MOST_LINES:
            raise InputError(f"{shown(path)}: more than {MOST_LINES:,} lines of comments; cut them")
    if found and NAMES_AFTER_HASH.match(found[-1]):
        delimiter = delimiter_of(path, found[-1])
        names, cells = (
            next(csv.reader([line], delimiter=delimiter))
            for line in (found[-1], below or found[-1])
        )
        if (
            len(names) == len(cells)
            and (len(cells) > 1 or len(found) == 1)
            and all(name == name.strip() for name in names)
        ):
            found.pop()
    return found


def delimiter_of(path: str, header: str) -> str:
    """The usual delimiter of the suffix if `header` has it, else the most frequent one in it."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes if suffix.lower() != ".gz"]
    usual = DELIMITERS.get(suffixes[-1] if suffixes else "", ",")
    return usual if usual in header else max(usual + OTHER_DELIMITERS, key=header.count)


def counted(several: Sequence[str], noun: str) -> str:
    """`1 cell`, `2 cells`."""
    return f"{len(several)} {noun}{'' if len(several) == 1 else 's'}"


def without_end(text: str) -> tuple[str, str]:
    """A line without its end, and the end for new lines: `\\r\\n` if it has that, else `\\n`."""
    if text.endswith("\r\n"):
        return text[:-2], "\r\n"
    return text.removesuffix("\n").removesuffix("\r"), "\n"


def join(cells: Sequence[str], delimiter: str) -> str:
    """A line of cells, quoted where necessary, as by `csv.writer`."""
    line = delimiter.join(cells)
    special = '"' in line or "\n" in line or "\r" in line or line.count(delimiter) >= len(cells)
    if not special and line:
        return line
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator=LINE_END).writerow(cells)
    return text.getvalue().removesuffix(LINE_END)


def column_texts(values: ColumnValues, kind: str) -> list[str]:
    """The cells of a new column of `kind`; see `Column`."""
    if kind == "text":
        return list(values)
    if kind == "whole":
        return list(map(str, values))
    if kind == "exact":
        return ["" if math.isnan(value) else str(value) for value in values]
    texts = ["" if math.isnan(value) else f"{value:.6f}" for value in values]
    return ["0.000000" if text == "-0.000000" else text for text in texts]
