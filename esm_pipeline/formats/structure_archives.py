"""Tar archives of many files of structures, and the index that finds one of them.

A member is a file compressed by gzip, in the folder that it would have without archives; an npz,
which is compressed already, is kept as it is. `index.tsv`, next to the archives, has a row for each
member: where its bytes begin in the archive, and how many they are, so that one is read without
unpacking:

    tail -c +$((OFFSET + 1)) 00000.tar | head -c SIZE | gunzip
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import zlib
from array import array
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from esm_pipeline.errors import InputError
from esm_pipeline.files import naming_errors, unreadable_file
from esm_pipeline.formats.records import format_row

ARCHIVE_INDEX = "index.tsv"
ARCHIVE_COLUMNS = ("index", "id", "file", "archive", "offset", "size")
"""Columns of the index: the record, the member, its archive, and the place of its bytes there."""

TAR, GZIP = ".tar", ".gz"
COMPRESSED_ALREADY = ".npz"
MEMBER_TIME = 315_532_800
"""Time of all members, 1980, so that the same structures give the same archive."""

GZIP_LEVEL, GZIP_BITS = 6, 31
LARGEST_PLACE = (1 << 63) - 1
"""The largest offset or size; no file is as large."""

LONGEST_NUMBER = 1_000

JOINED = 1 << 20
"""Bytes that are copied at a time."""


class ArchiveMember(NamedTuple):
    """A member: its path in the archive, and the place of its bytes."""

    file: str
    offset: int
    size: int


def gzipped(data: bytes) -> bytes:
    """`data` compressed, the same bytes every time."""
    packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, GZIP_BITS)
    return packer.compress(data) + packer.flush()


def archive_name(index: int, records: int) -> str:
    """The archive of a record, one of so many records each."""
    return f"{index // records:05d}{TAR}"


def member_name(name: str) -> str:
    """The name of a file as a member."""
    return name if name.endswith(COMPRESSED_ALREADY) else f"{name}{GZIP}"


def write_member(file: IO[bytes], name: str, data: bytes) -> ArchiveMember:
    """Append one file at the end of an archive without an end mark."""
    if member_name(name) != name:
        name, data = member_name(name), gzipped(data)
    header = tarfile.TarInfo(name)
    header.size, header.mtime, header.mode = len(data), MEMBER_TIME, 0o644
    file.write(header.tobuf(tarfile.USTAR_FORMAT))
    offset = file.tell()
    file.write(data)
    file.write(bytes(-len(data) % tarfile.BLOCKSIZE))
    return ArchiveMember(name, offset, len(data))


class ArchiveWriter:
    """Joins parts of archives, each of `write_member`, to archives of so many records, with index.

    `digests` has the digest of each file once it is complete.
    """

    def __init__(self, folder: Path, records: int) -> None:
        self.folder, self.records, self.digests = folder, records, dict[str, str]()
        self._archive: IO[bytes] | None = None
        self._index: IO[str] | None = None
        self._name, self._digest = "", hashlib.sha256()

    def append(self, part: Path, members: list[tuple[int, str, ArchiveMember]]) -> None:
        """Move a part to the archive of its first record.

        `members` are index and id of a record, and its member, in the order of the part.
        """
        name = archive_name(members[0][0], self.records)
        if name != self._name:
            self._end_archive()
            self._name, self._digest = name, hashlib.sha256()
            self._archive = open(self.folder / name, "wb")  # noqa: SIM115 - closed by _end_archive
        assert self._archive is not None
        start = self._archive.tell()
        with naming_errors(self.folder / name), open(part, "rb") as file:
            while block := file.read(JOINED):
                self._write(block)
        part.unlink()
        for index, own, (path, offset, size) in members:
            cells = (str(index), own, path, name, str(start + offset), str(size))
            self._index_file().write(format_row(cells))

    def close(self) -> None:
        """End the last archive and the index."""
        self._end_archive()
        if self._index:
            self._index.close()
            with open(self.folder / ARCHIVE_INDEX, "rb") as file:
                self.digests[ARCHIVE_INDEX] = hashlib.file_digest(file, "sha256").hexdigest()

    def _index_file(self) -> IO[str]:
        if self._index is None:
            path = self.folder / ARCHIVE_INDEX
            self._index = open(path, "w", encoding="utf-8", newline="")  # noqa: SIM115 - see close
            self._index.write(format_row(ARCHIVE_COLUMNS))
        return self._index

    def _write(self, block: bytes) -> None:
        assert self._archive is not None
        self._archive.write(block)
        self._digest.update(block)

    def _end_archive(self) -> None:
        if self._archive is not None:
            used = self._archive.tell() + 2 * tarfile.BLOCKSIZE
            self._write(bytes(2 * tarfile.BLOCKSIZE + -used % tarfile.RECORDSIZE))
            self._archive.close()
            self.digests[self._name] = self._digest.hexdigest()
            self._archive = None


class ArchiveIndex:
    """The index of the archives in a folder, read once: 24 bytes of memory for each member.

    Raises InputError if it is missing or cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / ARCHIVE_INDEX
        found = array("q")
        try:
            with open(path, "rb") as lines:
                for line in lines:
                    *_, file, archive, offset, size = [b""] * 3 + line.rstrip(b"\r\n").split(b"\t")
                    if is_digits(offset) and is_digits(size):
                        place = min(int(offset), LARGEST_PLACE), min(int(size), LARGEST_PLACE)
                        found.extend((member_digest(archive, file), *place))
        except FileNotFoundError as error:
            raise InputError(
                f"{path}: not the index of archives of structures ({reason(error)}); check the path"
            ) from None
        except OSError as error:
            raise unreadable_file(path, error) from None
        rows = np.frombuffer(found, np.int64).reshape(-1, 3)
        self._rows = rows[np.argsort(rows[:, 0], kind="stable")]

    def __len__(self) -> int:
        return len(self._rows)

    def place(self, archive: str, file: str) -> tuple[int, int]:
        """Offset and size of the member `file` of an archive. Raises KeyError."""
        wanted = member_digest(archive.encode(), file.encode("utf-8", "surrogateescape"))
        row = int(np.searchsorted(self._rows[:, 0], wanted))
        if row == len(self._rows) or self._rows[row, 0] != wanted:
            raise KeyError(file)
        offset, size = self._rows[row, 1:].tolist()
        return offset, size


def read_archived(archive: Path, file: str, index: ArchiveIndex | None = None) -> bytes:
    """The contents of the member with the path `file`, by the `index` of the archive's folder.

    Raises KeyError if there is none, InputError if archive or index is missing or damaged.
    """
    place = (index or ArchiveIndex(archive.parent)).place(archive.name, file)
    return read_member(archive, file, *place)


def read_member(archive: Path, file: str, offset: int, size: int) -> bytes:
    """The contents of the member whose bytes are there.

    Raises InputError if the header before them is not that of this member.
    """
    try:
        with open(archive, "rb") as data:
            start, end = offset - tarfile.BLOCKSIZE, os.fstat(data.fileno()).st_size
            if start < 0 or offset + size > end:
                raise ValueError(f"cut short: {file} lies outside of it")
            header = tarfile.TarInfo.frombuf(
                os.pread(data.fileno(), tarfile.BLOCKSIZE, start), "utf-8", "surrogateescape"
            )
            if (header.name, header.size) != (file, size):
                raise ValueError(f"{file} is not where the index has it")
            found = os.pread(data.fileno(), size, offset)
        return zlib.decompress(found, GZIP_BITS) if file.endswith(GZIP) else found
    except (FileNotFoundError, ValueError, tarfile.TarError, zlib.error) as error:
        raise InputError(
            f"{archive}: damaged ({reason(error)}), or not of its {ARCHIVE_INDEX}; make both again"
        ) from None
    except OSError as error:
        raise unreadable_file(archive, error) from None


def member_digest(archive: bytes, file: bytes) -> int:
    """64 bits for a member of an archive; its header tells whether it is the one."""
    digest = hashlib.blake2b(archive + b"\t" + file, digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def is_digits(cell: bytes) -> bool:
    """Whether a cell has digits that Python converts."""
    return cell.isdigit() and len(cell) < LONGEST_NUMBER


def reason(error: Exception) -> str:
    """Why something cannot be read, without its path."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
