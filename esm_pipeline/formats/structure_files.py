"""Files of many structures: safe names, folders of bounded size or archives, and their table.

A folder, or a zip archive instead, holds the files of 1,000 records of the input.
`structures.tsv` has the path of each record's file; in an archive it is written as
`structures/00012.zip/12345_P12345.pdb`.
"""

from __future__ import annotations

import csv
import os
import re
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Self

from esm_pipeline.errors import InputError
from esm_pipeline.formats.checksums import sha256 as digest_of

RECORDS_PER_FOLDER = 1_000
"""Records of the input in one folder."""

NAME_LENGTH = 80
"""Most characters of an id in a file name."""

LONG_AGO = (1980, 1, 1, 0, 0, 0)
"""Time of all members, so that the same structures give the same archive."""

STRUCTURE_COLUMNS = (
    *("index", "id", "status", "reason", "length", "chains", "plddt", "ptm", "iptm"),
    *("num_recycles", "chunk_size", "file", "flags"),
)
"""Columns of `structures.tsv`."""

FLAG_COLUMNS = ("index", "id", "flag", "residues", "value")
"""Columns of `flags.tsv`: a row for each flag of each record."""

PAIR_COLUMNS = ("index", "id", "chain_1", "chain_2", "iptm", "mean_pae", "min_pae")
"""Columns of `chain_pairs.tsv`: a row for each two chains of each complex."""

OURS = re.compile(r"\d{5,}(\.zip)?|\.snakemake_timestamp")
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
    """A context manager: a folder or an archive that files are added to, created with the first.

    On exit, `digests` has the digest of each file, or of the archive, by path within `parent`.
    """

    def __init__(self, parent: Path, name: str, *, archive: bool) -> None:
        self.name = f"{name}.zip" if archive else name
        self.digests: dict[str, str] = {}
        self._path, self._archive = parent / self.name, archive
        self._zip: zipfile.ZipFile | None = None

    def add(self, name: str, data: bytes) -> None:
        """Add one file. Raises OSError, for example on a full disk."""
        if not self._archive:
            self._path.mkdir(exist_ok=True)
            (self._path / name).write_bytes(data)
            self.digests[f"{self.name}/{name}"] = sha256(data).hexdigest()
            return
        if self._zip is None:
            self._zip = zipfile.ZipFile(self._path, "w")
        member = zipfile.ZipInfo(name, LONG_AGO)
        member.create_system = 3  # the same on all systems
        member.external_attr = 0o644 << 16
        self._zip.writestr(member, data, zipfile.ZIP_DEFLATED, 6)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._zip is not None:
            self._zip.close()
            self.digests[self.name] = digest_of(self._path)


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
