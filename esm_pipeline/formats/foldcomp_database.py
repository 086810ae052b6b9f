"""A Foldcomp database: many compressed structures in one file, as the `foldcomp` tool writes it.

The data file has one entry after the other, each with a zero byte at its end. Next to it lie
`.index` (key, offset and size of each, with the zero byte), `.lookup` (key, name, and 0, the number
of the source file) and `.dbtype`, four bytes. Foldcomp, Foldseek and MMseqs2 read it. A key is the
index of a record in the input; records with the same sequence share their bytes. Only our own
databases have `.checksums`: key, and CRC32 of entry and name, so that no damaged or exchanged entry
is decompressed, which can end the process.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple, Self

import numpy as np

from esm_pipeline.arrays import Int64
from esm_pipeline.errors import DamagedError, InputError
from esm_pipeline.files import naming_errors, unreadable_file
from esm_pipeline.formats.checksums import sha256, write_lines

INDEX_ENDING, LOOKUP_ENDING, TYPE_ENDING = ".index", ".lookup", ".dbtype"
CHECKSUMS_ENDING = ".checksums"
GENERIC = struct.pack("<i", 12)
"""The type of a database of entries that MMseqs2 does not know."""

END = b"\0"
COPIED = 1 << 20
"""Bytes that are copied at a time."""


class DatabaseEntry(NamedTuple):
    """An entry; `size` counts the zero byte at its end."""

    key: int
    name: str
    offset: int
    size: int


class EntriesFile:
    """A context manager: entries in a file of their own, which is there from the first one on."""

    def __init__(self, parent: Path, name: str) -> None:
        self.path = parent / f".{name}.entries"
        self._file: IO[bytes] | None = None

    @property
    def written(self) -> bool:
        """Whether there is any entry."""
        return self._file is not None

    def add(self, data: bytes) -> int:
        """Add an entry; returns its size. No data are no entry, of size 0."""
        if not data:
            return 0
        if self._file is None:
            self._file = open(self.path, "wb")  # noqa: SIM115 - closed by __exit__
        return self._file.write(data + END)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()


class FoldcompWriter:
    """Writes a database: the data, joined from files of many entries each, then the tables."""

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, 0
        self._digest = hashlib.sha256()
        path.touch()

    def append(self, part: Path) -> int:
        """Move the contents of `part` to the end of the data; returns their offset."""
        start = self.size
        with naming_errors(self.path), open(part, "rb") as file, open(self.path, "ab") as data:
            while block := file.read(COPIED):
                data.write(block)
                self._digest.update(block)
                self.size += len(block)
        part.unlink()
        return start

    def finish(self, entries: Iterable[DatabaseEntry]) -> dict[str, str]:
        """Write the tables; returns the digest of each file, by name.

        `entries` are in the order of their keys.
        """
        index, lookup, kind, sums = (
            self.path.with_name(f"{self.path.name}{ending}")
            for ending in (INDEX_ENDING, LOOKUP_ENDING, TYPE_ENDING, CHECKSUMS_ENDING)
        )
        with (
            naming_errors(lookup),
            open(lookup, "w", encoding="utf-8", newline="\n") as names,
            open(sums, "w", encoding="ascii", newline="\n") as checksums,
            open(self.path, "rb") as data,
        ):

            def lines() -> Iterator[bytes]:
                for key, name, offset, size in entries:
                    names.write(f"{key}\t{lookup_name(name)}\t0\n")
                    data.seek(offset)
                    found = entry_checksum(data.read(size).removesuffix(END), name)
                    checksums.write(f"{key}\t{found}\n")
                    yield b"%d\t%d\t%d\n" % (key, offset, size)

            write_lines(index, lines())
        kind.write_bytes(GENERIC)
        others = {path.name: sha256(path) for path in (index, lookup, kind, sums)}
        return {self.path.name: self._digest.hexdigest(), **others}


def lookup_name(name: str) -> str:
    """`name` without white space, which separates columns, and in valid UTF-8."""
    return re.sub(r"\s+", "_", name).encode("utf-8", "replace").decode()


def entry_checksum(entry: bytes, name: str) -> int:
    """CRC32 of an entry, without the zero byte, and the name that `.lookup` has for it."""
    return zlib.crc32(lookup_name(name).encode(), zlib.crc32(entry))


class FoldcompDatabase:
    """A database for reading. Raises InputError if it is missing or damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for part in (path, self._beside(INDEX_ENDING)):
            if not part.is_file():
                raise InputError(f"{part}: no such file; a Foldcomp database has it")

    def _beside(self, ending: str) -> Path:
        return self.path.with_name(f"{self.path.name}{ending}")

    @property
    def is_ours(self) -> bool:
        """Whether it has checksums, as the databases that `structures` writes."""
        return self._beside(CHECKSUMS_ENDING).is_file()

    @cached_property
    def _rows(self) -> Int64:
        """(N, 3) key, offset and size of each entry, by key."""
        return table_of_numbers(self._beside(INDEX_ENDING), 3, "the index")

    @cached_property
    def _checksums(self) -> Int64:
        """(N, 2) key and CRC32 of each entry, by key."""
        return table_of_numbers(self._beside(CHECKSUMS_ENDING), 2, "the checksums")

    def __len__(self) -> int:
        return len(self._rows)

    def names(self) -> Iterator[tuple[int, str]]:
        """Key and name of each entry."""
        path = self._beside(LOOKUP_ENDING)
        try:
            with open(path, encoding="utf-8", errors="replace", newline="\n") as lines:
                for line in lines:
                    key, name, *_ = line.split("\t")
                    yield int(key), name.rstrip("\n")
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path}: not the names of a Foldcomp database ({error}); check the path"
            ) from None

    def _place(self, key: int) -> tuple[int, int]:
        """Offset and size of an entry."""
        row = row_of(self._rows, key)
        if row is None:
            raise KeyError(key)
        offset, size = row[1:].tolist()
        return offset, size

    def first_key(self, key: int) -> int:
        """The smallest key of the entries that share the bytes of that of `key`."""
        self._place(key)
        return int(self._firsts[np.searchsorted(self._rows[:, 0], key)])

    @cached_property
    def _firsts(self) -> Int64:
        """(N,) the smallest key with the offset of each entry."""
        _, firsts, own = np.unique(self._rows[:, 1], return_index=True, return_inverse=True)
        keys: Int64 = self._rows[firsts[own], 0]
        return keys

    def entry(self, key: int, name: str | None = None) -> bytes:
        """The bytes of the entry with a key, without the zero byte.

        In a database with checksums they are compared if its `name` is given. Raises KeyError if
        there is none, InputError if the entry is damaged or cannot be read.
        """
        offset, size = self._place(key)
        try:
            with open(self.path, "rb") as data:
                if offset < 0 or size <= 0 or offset + size > data.seek(0, os.SEEK_END):
                    raise InputError(
                        f"{self.path}: cut short, or not of its index, which has entry {key} "
                        "outside of it; make both again"
                    )
                data.seek(offset)
                found = data.read(size)
        except OSError as error:
            raise unreadable_file(self.path, error) from None
        if len(found) != size or not found.endswith(END):
            raise DamagedError(
                str(self.path), f"entry {key} has no end where the {INDEX_ENDING} has it"
            )
        found = found.removesuffix(END)
        if name is not None and self.is_ours:
            row = row_of(self._checksums, key)
            if row is None or int(row[1]) != entry_checksum(found, name):
                raise DamagedError(
                    str(self.path),
                    f"entry {key} and its name '{lookup_name(name)}' do not have the checksum in "
                    f"{CHECKSUMS_ENDING}",
                )
        return found


def table_of_numbers(path: Path, columns: int, what: str) -> Int64:
    """(N, columns) the numbers in a table of a database, by the first. Raises InputError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # of text that is no number
            found = np.fromfile(path, np.int64, sep=" ")
        with open(path, "rb") as file:
            lines = sum(block.count(b"\n") for block in iter(lambda: file.read(COPIED), b""))
        if len(found) != columns * lines:
            raise ValueError(f"not {columns} columns of numbers")
    except OSError as error:
        raise unreadable_file(path, error) from None
    except (ValueError, DeprecationWarning) as error:
        raise InputError(
            f"{path}: not {what} of a Foldcomp database ({error}); check the path"
        ) from None
    rows = found.reshape(-1, columns)
    return rows[np.argsort(rows[:, 0], kind="stable")]


def row_of(rows: Int64, key: int) -> Int64 | None:
    """The row of a table with a key, or None."""
    place = int(np.searchsorted(rows[:, 0], key))
    return rows[place] if place < len(rows) and rows[place, 0] == key else None
