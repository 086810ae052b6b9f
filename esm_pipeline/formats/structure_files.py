"""Many structures as files: safe names, folders of bounded size, archives, one read by its id.

A folder, or a zip archive in its place, holds what belongs to 1,000 records of the input; the list
of members that ends an archive is its index. `structures.tsv` tells the path of each record's file,
in an archive as `structures/00012.zip/12345_P12345.pdb`.
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

from esm_pipeline.errors import AmbiguousIdError, InputError
from esm_pipeline.formats.checksums import sha256 as digest_of

RECORDS = 1_000
"""Records of the input whose files share a folder."""

NAME_LENGTH = 80
"""Characters of an id that go into a file name."""

LONG_AGO = (1980, 1, 1, 0, 0, 0)
"""Time of all members: the same structures give the same archive."""

COLUMNS = (
    *("index", "id", "status", "reason", "length", "chains", "plddt", "ptm", "iptm"),
    *("num_recycles", "chunk_size", "file", "flags"),
)
"""Of `structures.tsv`."""

OURS = re.compile(r"\d{5,}(\.zip)?|\.snakemake_timestamp")
"""Names of what may lie in a folder of such folders."""


def file_stem(index: int, name: str) -> str:
    """A file name for a record, without its suffix: safe everywhere, whatever the id is."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:NAME_LENGTH].rstrip(".")
    return f"{index}_{cleaned}" if cleaned else str(index)


def folder_name(index: int) -> str:
    """The folder of a record."""
    return f"{index // RECORDS:05d}"


def require_ours(folder: Path) -> None:
    """Raise InputError if `folder` is there and holds anything but what is made here."""
    try:
        others = [name for name in os.listdir(folder) if not OURS.fullmatch(name)]
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise InputError(f"{folder}: not a folder; choose another place for the output") from None
    if others:
        raise InputError(
            f"{folder}: holds '{others[0]}', which is not of `fold`; choose another place for the "
            "output"
        )


class Bundle:
    """A folder or an archive to add files to, made with the first. A context manager.

    `digests` has those of the files in the end, or that of the archive, by their paths in `parent`.
    """

    def __init__(self, parent: Path, name: str, *, archive: bool) -> None:
        self.name = f"{name}.zip" if archive else name
        self.digests: dict[str, str] = {}
        self._path, self._archive = parent / self.name, archive
        self._zip: zipfile.ZipFile | None = None

    def add(self, name: str, data: bytes) -> None:
        """Add one file. Raises OSError, as on a full disk."""
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


def read_file(place: Path) -> bytes:
    """A file that `structures.tsv` tells of, also one in an archive.

    Raises InputError if it is not there.
    """
    try:
        if place.parent.suffix == ".zip":
            with zipfile.ZipFile(place.parent) as archive:
                return archive.read(place.name)
        return place.read_bytes()
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{place}: cannot be read ({error}); check the path") from None


def read_structure(table: str | os.PathLike[str], key: str | int) -> bytes:
    """The file of the structure of a record, named by id or index in a `structures.tsv`.

    Raises InputError for a record that has none, AmbiguousIdError for an id that names several
    structures.
    """
    column = "id" if isinstance(key, str) else "index"
    found = [row for row in read_table(Path(table)) if row[column] == str(key)]
    files = {row["file"] for row in found if row["file"]}
    if not files:
        why = found[0]["reason"] if found else "no such record"
        raise InputError(f"{table}: no structure of {key!r} ({why}); choose another record")
    if len(files) > 1:
        raise AmbiguousIdError(
            f"{table}: id {key!r} names {len(files)} structures; use the index of the one you "
            f"mean, such as {found[0]['index']}"
        )
    return read_file(Path(table).parent / files.pop())


def read_table(path: Path) -> Iterator[dict[str, str]]:
    """Stream the rows of a `structures.tsv`. Raises InputError if it is none."""
    try:
        with open(path, encoding="utf-8", newline="") as handle:
            rows = csv.DictReader(handle, delimiter="\t", strict=True)
            if tuple(rows.fieldnames or ()) != COLUMNS:
                raise ValueError("its columns are others")
            for row in rows:
                if None in row or None in row.values():
                    raise ValueError(f"line {rows.line_num} has another number of cells")
                yield row
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: not a structures.tsv ({error}); check the path") from None
