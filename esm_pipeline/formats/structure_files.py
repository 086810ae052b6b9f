"""Files of many structures: safe names, folders of bounded size or archives, and their table.

A folder holds the files of 1,000 records of the input; an archive holds many such folders.
`structures.tsv` has the path of each record's file, such as `structures/00012/12345_P1.pdb`; in an
archive it is `structures/00000.tar/00012/12345_P1.pdb.gz`, in a Foldcomp database
`structures/foldcomp/12345`.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from esm_pipeline.errors import InputError
from esm_pipeline.formats.structure_archives import ARCHIVE_INDEX, TAR, ArchiveMember, write_member

RECORDS_PER_FOLDER = 1_000
"""Records of the input in one folder."""

NAME_LENGTH = 80
"""Most characters of an id in a file name."""

STRUCTURE_COLUMNS = (
    *("index", "id", "status", "reason", "length", "chains", "plddt", "ptm", "iptm"),
    *("num_recycles", "chunk_size", "file", "flags", "num_conf", "crc64"),
)
"""Columns of `structures.tsv`."""

FLAG_COLUMNS = ("index", "id", "flag", "residues", "value")
"""Columns of `flags.tsv`: a row for each flag of each record."""

PAIR_COLUMNS = ("index", "id", "chain_1", "chain_2", "iptm", "mean_pae", "min_pae")
"""Columns of `chain_pairs.tsv`: a row for each two chains of each complex."""

DATABASE = "foldcomp"
"""Name of a Foldcomp database among the files of structures."""

OURS = re.compile(
    rf"\d{{5,}}(\.tar|\.zip)?|{ARCHIVE_INDEX}|{DATABASE}(\.[a-z]+)?|\.snakemake_timestamp"
)
"""Names that may lie in the output folder of structures."""


def file_stem(index: int, name: str) -> str:
    """The file name of a record, without suffix: safe on every system, whatever the id is."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:NAME_LENGTH].rstrip(".")
    return f"{index}_{cleaned}" if cleaned else str(index)


def folder_name(index: int) -> str:
    """The name of a record's folder."""
    return f"{index // RECORDS_PER_FOLDER:05d}"


def require_ours(folder: Path) -> None:
    """Raise InputError if `folder` exists and holds anything that `fold` does not write."""
    try:
        others = [name for name in os.listdir(folder) if not OURS.fullmatch(name)]
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise InputError(f"{folder}: not a folder; choose another place for the output") from None
    if others:
        raise InputError(
            f"{folder}: holds '{others[0]}', which `fold` did not write; choose another place for "
            "the output"
        )


class FileBundle:
    """A context manager: a folder, or a part of an archive, that files are added to.

    It is created with the first file. `digests` has the digest of each file in a folder by its path
    within `parent`. `members` are those of an archive, with index and id of the record of each; the
    part of the archive is the file `part`.
    """

    def __init__(self, parent: Path, name: str, *, archive: bool) -> None:
        self.name = name
        self.digests: dict[str, str] = {}
        self.members: list[tuple[int, str, ArchiveMember]] = []
        self.part = parent / f".{name}{TAR}"
        self._folder, self._archive = parent / name, archive
        self._file: IO[bytes] | None = None

    def add(self, name: str, data: bytes, index: int = 0, own: str = "") -> None:
        """Add one file, of the record with an `index` and its `own` id.

        Raises OSError, for example on a full disk.
        """
        if not self._archive:
            self._folder.mkdir(exist_ok=True)
            (self._folder / name).write_bytes(data)
            self.digests[f"{self.name}/{name}"] = sha256(data).hexdigest()
            return
        if self._file is None:
            self._file = open(self.part, "wb")  # noqa: SIM115 - closed by __exit__
        member = write_member(self._file, f"{self.name}/{name}", data)
        self.members.append((index, own, member))

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


def structure_rows(path: Path) -> Iterator[dict[str, str]]:
    """Stream the rows of a `structures.tsv`. Raises InputError for a malformed table."""
    try:
        with open(path, encoding="utf-8", newline="") as handle:
            rows = csv.DictReader(handle, delimiter="\t", strict=True)
            if tuple(rows.fieldnames or ()) != STRUCTURE_COLUMNS:
                raise ValueError("unexpected columns")
            for row in rows:
                if None in row or None in row.values():
                    raise ValueError(f"line {rows.line_num} has too few or too many cells")
                yield row
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: not a structures.tsv ({error}); check the path") from None
