"""New HDF5 files on disks that may be full: every failure of the disk ends in an OSError."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h5py

PAGE_BYTES = 4096
"""Bytes; a dataset of this size or more begins at a multiple of it, for memory maps."""

NO_RESERVATION = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
"""Errors of a file system that cannot reserve space."""


class ForgivingFile(io.FileIO):
    """The file that HDF5 writes to. It never raises, because HDF5 crashes on a full disk.

    The first error is kept. Data written after it is kept in memory, so that HDF5 can read it back.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path, "w+")
        self._error: OSError | None = None
        self._kept: list[tuple[int, bytes]] = []

    def check(self) -> None:
        """Raise the kept error, if there is one."""
        if self._error is not None:
            raise self._error

    def write(self, data: Any) -> int:
        """Write all of `data`."""
        place, view = self.tell(), memoryview(data)
        if self._error is None:
            try:
                write_at(self.fileno(), place, view)
                return len(view)
            except OSError as error:
                self._error = error
        self._kept.append((place, bytes(view)))
        return len(view)

    def readinto(self, data: Any) -> int:
        """Fill `data`, with zeros where nothing was written."""
        place, view = self.tell(), memoryview(data)
        read = os.pread(self.fileno(), len(view), place)
        view[:] = read.ljust(len(view), b"\0")
        for start, kept in self._kept:
            first, stop = max(start, place), min(start + len(kept), place + len(view))
            if first < stop:
                view[first - place : stop - place] = kept[first - start : stop - start]
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Set the size of the file."""
        try:
            return super().truncate(size)
        except OSError as error:
            self._error = self._error or error
            return size or 0


@contextmanager
def create_hdf5(
    path: str | os.PathLike[str], *, paged: bool = True
) -> Iterator[tuple[h5py.File, ForgivingFile]]:
    """A new HDF5 file and its `ForgivingFile`, to be checked between long writes.

    Without `paged`, datasets begin anywhere: for a file of many small ones. Raises OSError, at the
    end at the latest.
    """
    places = {"alignment_threshold": PAGE_BYTES, "alignment_interval": PAGE_BYTES}
    with ForgivingFile(path) as disk:
        try:
            with h5py.File(disk, "w", **(places if paged else {})) as file:
                yield file, disk
        finally:
            disk.check()


def reserve(file: int) -> None:
    """Reserve the disk space of an open file. Raises OSError if there is not enough."""
    size = os.fstat(file).st_size
    if not size or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno not in NO_RESERVATION:
            raise


def write_at(file: int, place: int, data: memoryview) -> None:
    """Write all bytes of `data` at byte `place`. Raises OSError, for example on a full disk."""
    while data:
        written = os.pwrite(file, data, place)
        place, data = place + written, data[written:]
