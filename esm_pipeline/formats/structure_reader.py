"""Reading files of structures by id or index, however they are kept.

with open_results("OUTDIR") as files:      # what `structures` wrote, or a Foldcomp database
    files["P12345"].text                   # PDB or mmCIF
    files[17].kind                         # "pdb" or "cif"

They may lie in folders, in archives, of which one member is read, or in a Foldcomp database, of
which one entry is decompressed.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from esm_pipeline.errors import AmbiguousIdError, DamagedError, InputError, brief
from esm_pipeline.formats.foldcomp_database import INDEX_ENDING, FoldcompDatabase
from esm_pipeline.formats.structure_archives import GZIP, TAR, read_archived
from esm_pipeline.structure.foldcomp_codec import decompressed, require_foldcomp

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow

TABLE_NAME, FOLDER_NAME = "structures.tsv", "structures"
ZIP = ".zip"
READ_COLUMNS = {"index": "int64", "id": "string", "file": "string"}
"""Columns that are read of a table, and their types in Arrow."""

FOLDCOMP_KIND = "pdb"
"""What an entry of a Foldcomp database is decompressed to."""


def is_structure_files(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a table of structures, a folder with one, or a Foldcomp database."""
    place = Path(path)
    if place.is_dir():
        return table_in(place) is not None
    return is_database(place) or (place.is_file() and place.name.endswith(TABLE_NAME))


def is_database(path: Path) -> bool:
    """Whether `path` is the data file of a Foldcomp database."""
    return path.is_file() and path.with_name(f"{path.name}{INDEX_ENDING}").is_file()


def table_in(folder: Path) -> Path | None:
    """The table of a folder with structures, or of the folder `structures` next to it."""
    places = [folder, *([folder.absolute().parent] if folder.name == FOLDER_NAME else [])]
    return next((one / TABLE_NAME for one in places if (one / TABLE_NAME).is_file()), None)


class StructureFile:
    """The file of one record: its `id`, `index`, `kind` (pdb or cif) and contents (`data`)."""

    def __init__(self, own: str, index: int, kind: str, data: bytes) -> None:
        self.id, self.index, self.kind, self.data = own, index, kind, data

    @property
    def text(self) -> str:
        """The contents as text."""
        return self.data.decode("utf-8")

    def __repr__(self) -> str:
        return f"StructureFile(id={self.id!r}, index={self.index}, kind={self.kind!r})"


class StructureFiles:
    """The files of all records that have a structure; see `open_results`.

    `files[id]` and `files[index]` read one file, `in` tests whether there is one, and iteration
    reads all in input order. Raises InputError for a missing or damaged table.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        place = Path(path)
        table = place if place.is_file() else table_in(place)
        if table is None:
            raise InputError(f"{place}: has no {TABLE_NAME}; give a folder that `structures` wrote")
        self.folder = table.parent
        self._databases: dict[Path, FoldcompDatabase] = {}
        self._table = rows_of_database(table) if is_database(table) else rows_of_table(table)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Nothing stays open: here for symmetry with the other results."""

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __iter__(self) -> Iterator[StructureFile]:
        return (self._read(place) for place in range(len(self)))

    def __contains__(self, key: object) -> bool:
        return isinstance(key, (str, int)) and bool(self._places(key))

    @cached_property
    def ids(self) -> list[str]:
        """The id of each record."""
        ids: list[str] = self._table["id"].to_pylist()
        return ids

    @cached_property
    def index(self) -> list[int]:
        """The index of each record: its place in the input."""
        index: list[int] = self._table["index"].to_pylist()
        return index

    def __getitem__(self, key: str | int) -> StructureFile:
        """Read the file of the record with an id, or with an index.

        Raises InputError if there is none, AmbiguousIdError if an id has several structures.
        """
        return self.read(key)

    def read(self, key: str | int, kind: str = "") -> StructureFile:
        """The same, of a `kind`, pdb or cif, if files of several were written."""
        if not isinstance(key, str | int | np.integer):
            raise InputError(
                f"{self.path}: {brief(key)} is neither an id nor an index; give one record at a "
                "time, or iterate over all"
            )
        places = self._places(key)
        what = f"id '{key}'" if isinstance(key, str) else f"index {key}"
        if not places:
            remedy = "if it was in the input, its row in structures.tsv says why it has none"
            if not isinstance(key, str) and key < 0:
                remedy = "an index is a position in the input, from 0"
            raise InputError(f"{self.path}: no structure with {what}; {remedy}")
        if len({self._table["file"][place].as_py() for place in places}) > 1:
            first = self._table["index"][places[0]].as_py()
            raise AmbiguousIdError(
                f"{self.path}: {what} names records with different sequences; use the index of the "
                f"one you mean, such as {first}"
            )
        return self._read(places[0], kind)

    def to_pandas(self) -> pd.DataFrame:
        """A table of index, id and file."""
        frame: pd.DataFrame = self._table.to_pandas()
        return frame

    def _places(self, key: str | int) -> list[int]:
        import pyarrow.compute

        column = "id" if isinstance(key, str) else "index"
        found = pyarrow.compute.equal(self._table[column], key)
        places: list[int] = pyarrow.compute.indices_nonzero(found).to_pylist()
        return places

    def _read(self, place: int, kind: str = "") -> StructureFile:
        row: dict[str, Any] = {name: self._table[name][place].as_py() for name in READ_COLUMNS}
        own, data = self._contents(row["file"], kind)
        return StructureFile(row["id"], row["index"], own, data)

    def _contents(self, file: str, kind: str) -> tuple[str, bytes]:
        """Kind and bytes of a file that the table names, or of the one next to it of a `kind`."""
        container, rest = self._container(PurePosixPath(file))
        if container is not None and container.suffix not in (TAR, ZIP):
            if kind not in ("", FOLDCOMP_KIND):
                raise InputError(f"{container}: holds PDB, not {kind}; ask for pdb")
            return FOLDCOMP_KIND, self._entry(container, rest)
        plain = rest.removesuffix(GZIP)
        own = PurePosixPath(plain).suffix.removeprefix(".")
        kind = kind or own
        name = plain.removesuffix(own) + kind + rest.removeprefix(plain)
        try:
            return kind, self._member(container, name)
        except (KeyError, FileNotFoundError):
            place = container or self.folder
            remedy = "make the files again" if kind == own else f"ask for {own}"
            raise InputError(f"{place}: has no {name}; {remedy}") from None

    def _container(self, file: PurePosixPath) -> tuple[Path | None, str]:
        """The archive or database that has a file, if one has, and the rest of the path."""
        for parent in reversed(file.parents[:-1]):
            if parent.suffix in (TAR, ZIP) or (self.folder / parent).is_file():
                return self.folder / parent, str(file.relative_to(parent))
        return None, str(file)

    def _member(self, container: Path | None, name: str) -> bytes:
        if container is None:
            return (self.folder / name).read_bytes()
        if container.suffix == TAR:
            return read_archived(container, name)
        try:
            with zipfile.ZipFile(container) as archive:  # as versions before 0.2 wrote
                return archive.read(name)
        except zipfile.BadZipFile as error:
            raise InputError(f"{container}: damaged ({error}); make it again") from None

    def _entry(self, container: Path, key: str) -> bytes:
        require_foldcomp()
        database = self._databases.setdefault(container, FoldcompDatabase(container))
        try:
            return decompressed(database.entry(int(key))).encode("ascii")
        except KeyError:
            raise InputError(f"{container}: has no entry {key}; make the files again") from None
        except ValueError as error:
            raise DamagedError(str(container), f"entry {key}: {error}") from None


def arrow_type(column: str) -> pyarrow.DataType:
    """The type of one of `READ_COLUMNS`."""
    import pyarrow

    return pyarrow.type_for_alias(READ_COLUMNS[column])


def rows_of_table(path: Path) -> pyarrow.Table:
    """Index, id and file of the records in a `structures.tsv` that have a file."""
    import pyarrow.compute
    import pyarrow.csv

    try:
        table = pyarrow.csv.read_csv(
            path,
            parse_options=pyarrow.csv.ParseOptions(delimiter="\t", newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=list(READ_COLUMNS),
                column_types={name: arrow_type(name) for name in READ_COLUMNS},
                strings_can_be_null=False,
            ),
        )
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        why = " ".join(str(error).split())
        raise InputError(f"{path}: not a {TABLE_NAME} ({why}); check the path") from None
    return table.filter(pyarrow.compute.not_equal(table["file"], ""))


def rows_of_database(path: Path) -> pyarrow.Table:
    """The same for a Foldcomp database, whose keys are the indices."""
    import pyarrow

    entries = list(FoldcompDatabase(path).names())
    keys, names = ([entry[place] for entry in entries] for place in (0, 1))
    files = [f"{path.name}/{key}" for key in keys]
    columns = zip((keys, names, files), READ_COLUMNS, strict=True)
    arrays = [pyarrow.array(values, arrow_type(name)) for values, name in columns]
    return pyarrow.table(arrays, names=list(READ_COLUMNS))
