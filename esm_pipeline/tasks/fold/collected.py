"""What the processes that write structures leave, joined: archives, and the Foldcomp database."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from esm_pipeline.formats.checksums import line, sha256
from esm_pipeline.formats.foldcomp_database import DatabaseEntry, FoldcompWriter
from esm_pipeline.formats.records import format_row
from esm_pipeline.formats.structure_archives import (
    ARCHIVE_COLUMNS,
    ARCHIVE_INDEX,
    ArchiveMember,
    ArchiveWriter,
)
from esm_pipeline.formats.structure_files import DATABASE


class WrittenArchive(NamedTuple):
    """A part of an archive, and its members with index and id of the record of each."""

    part: Path
    members: list[tuple[int, str, ArchiveMember]]


class WrittenGroup(NamedTuple):
    """What one process has written for a folder of records.

    digests: lines of the list, of files that lie in folders. facts: a line for each structure, see
    `StructureFacts`. archives: part of an archive by the folder it is for. entries: those of the
    Foldcomp database, if there are any.
    """

    digests: str
    facts: str
    archives: Mapping[str, WrittenArchive]
    entries: Path | None


class Collector:
    """Joins the files of all groups, in their order. `folders` by the names that digests have.

    The folders named in `indexed` get an index even if there is nothing to archive.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        database: Path | None,
        records: int,
        indexed: Iterable[str] = (),
    ) -> None:
        self.indexed = set(indexed)
        self.archives = {name: ArchiveWriter(path, records) for name, path in folders.items()}
        self.database = FoldcompWriter(database) if database else None

    def add(self, group: WrittenGroup) -> None:
        """Add the files of a group."""
        for name, (part, members) in group.archives.items():
            self.archives[name].append(part, members)
        if self.database and group.entries:
            self.database.append(group.entries)

    def finish(self, top: str, entries: Iterable[DatabaseEntry]) -> Iterator[str]:
        """Complete the files; yields the lines of the list of digests.

        `entries` are those of the Foldcomp database, which is in the folder `top`.
        """
        for name, archive in self.archives.items():
            archive.close()
            if name in self.indexed and ARCHIVE_INDEX not in archive.digests:
                index = archive.folder / ARCHIVE_INDEX
                index.write_text(format_row(ARCHIVE_COLUMNS), encoding="utf-8", newline="")
                yield line(sha256(index), f"{name}/{ARCHIVE_INDEX}")
            for file, digest in archive.digests.items():
                yield line(digest, f"{name}/{file}")
        if self.database:
            for file, digest in self.database.finish(entries).items():
                yield line(digest, f"{top}/{file}")
        else:
            unexpected = list(entries)  # reading them writes the tables
            assert not unexpected, f"entries without a file {DATABASE}"
