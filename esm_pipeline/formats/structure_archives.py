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
from pathlib import Path
from typing import IO, NamedTuple

from esm_pipeline.errors import InputError
from esm_pipeline.files import naming_errors
from esm_pipeline.formats.records import format_row

ARCHIVE_INDEX = "index.tsv"
ARCHIVE_COLUMNS = ("index", "id", "file", "archive", "offset", "size")
"""Columns of the index: the record, the member, its archive, and the place of its bytes there."""

TAR, GZIP = ".tar", ".gz"
COMPRESSED_ALREADY = ".npz"
MEMBER_TIME = 315_532_800
"""Time of all members, 1980, so that the same structures give the same archive."""

GZIP_LEVEL, GZIP_BITS = 6, 31
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


def read_archived(archive: Path, file: str) -> bytes:
    """The contents of the member with the path `file`, which the index has.

    Raises KeyError if there is none, InputError if archive or index is missing or damaged.
    """
    index = archive.with_name(ARCHIVE_INDEX)
    wanted = f"\t{file}\t{archive.name}\t".encode()
    try:
        with open(index, "rb") as lines:
            line = next((line for line in lines if wanted in line), None)
        if line is None:
            raise KeyError(file)
        offset, size = map(int, line.split(b"\t")[-2:])
    except (OSError, ValueError) as error:
        raise InputError(
            f"{index}: not the index of archives of structures ({error}); check the path"
        ) from None
    return read_bytes(archive, offset, size, compressed=file.endswith(GZIP))


def read_bytes(archive: Path, offset: int, size: int, *, compressed: bool) -> bytes:
    """The bytes of a member. Raises InputError if they are not in the archive."""
    try:
        with open(archive, "rb") as file:
            found = os.pread(file.fileno(), size, offset)
        if len(found) != size:
            raise ValueError("cut short")
        return zlib.decompress(found, GZIP_BITS) if compressed else found
    except (OSError, ValueError, zlib.error) as error:
        raise InputError(
            f"{archive}: damaged ({error}), or not of its {ARCHIVE_INDEX}; make both again"
        ) from None
