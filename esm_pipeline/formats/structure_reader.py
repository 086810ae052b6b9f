"""Reading files of structures by id or index, however they are kept.

with open_results("OUTDIR") as files:      # what `structures` wrote, or a Foldcomp database
    files["P12345"].text                   # PDB or mmCIF
    files[17].kind                         # "pdb" or "cif"

They may lie in folders, in archives, of which one member is read, or in a Foldcomp database, of
which one entry is decompressed. What is read is compared with what the tables say of it: a damaged
index is an error, not another structure.
"""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, SupportsIndex

import numpy as np

from esm_pipeline.arrays import Int64
from esm_pipeline.errors import AmbiguousIdError, DamagedError, InputError, brief
from esm_pipeline.files import unreadable_file
from esm_pipeline.formats.foldcomp_database import INDEX_ENDING, FoldcompDatabase, lookup_name
from esm_pipeline.formats.sequence_checksums import crc64
from esm_pipeline.formats.structure_archives import (
    GZIP,
    TAR,
    ArchiveIndex,
    member_name,
    read_archived,
    reason,
)
from esm_pipeline.formats.structure_files import DATABASE, file_stem, folder_name
from esm_pipeline.structure.foldcomp_codec import (
    decompressed,
    entry_title,
    require_foldcomp,
    sequence_of,
)
from esm_pipeline.structure.pdb import B_FACTORS, with_heading
from esm_pipeline.structure.quality import OMITTED, REPLACED
from esm_pipeline.structure.structure import MEANINGLESS, PLACED_OXYGEN, RANDOM, TERMINAL_OXYGEN

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow

TABLE_NAME, FOLDER_NAME = "structures.tsv", "structures"
ZIP = ".zip"
READ_COLUMNS = {"index": "int64", "id": "string", "file": "string"}
"""Columns that are read of a table, and their types in Arrow."""

FACTS = {"flags": "string", "crc64": "string"}
"""The same for those that a table may lack."""

ROW_COLUMNS = (*READ_COLUMNS, *FACTS)

ATOM_LINE = re.compile(rb"^ATOM\s", re.MULTILINE)
LEAST_INDEX, MOST_INDEX = -(1 << 63), (1 << 63) - 1

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
        self._indices: dict[Path, ArchiveIndex] = {}
        self._beside_table: StructureFiles | None = None  # of a database
        self._own = table  # the table, or the database
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
        return is_key(key) and bool(self._places(key))

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

    def __getitem__(self, key: str | SupportsIndex) -> StructureFile:
        """Read the file of the record with an id, or with an index.

        Raises InputError if there is none, AmbiguousIdError if an id has several structures.
        """
        return self.read(key)

    def read(self, key: str | SupportsIndex, kind: str = "") -> StructureFile:
        """The same, of a `kind`, pdb or cif, if files of several were written."""
        if not is_key(key):
            raise InputError(
                f"{self.path}: {brief(key)} is neither an id nor an index; give one record at a "
                "time, or iterate over all"
            )
        places = self._places(key)
        what = f"id '{key}'" if isinstance(key, str) else f"index {brief(int(key))}"
        if not places:
            remedy = "if it was in the input, its row in structures.tsv says why it has none"
            if not isinstance(key, str) and int(key) < 0:
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
        frame: pd.DataFrame = self._table.select(list(READ_COLUMNS)).to_pandas()
        return frame

    def _places(self, key: Any) -> list[int]:
        import pyarrow.compute

        if isinstance(key, str):
            try:
                key.encode()
            except UnicodeEncodeError:  # no table has it
                return []
            found = pyarrow.compute.equal(self._table["id"], key)
        elif LEAST_INDEX <= int(key) <= MOST_INDEX:
            indices, order = self._by_index
            first, last = (np.searchsorted(indices, int(key), side) for side in ("left", "right"))
            return [int(place) for place in order[first:last]]
        else:
            return []
        places: list[int] = pyarrow.compute.indices_nonzero(found).to_pylist()
        return places

    @cached_property
    def _by_index(self) -> tuple[Int64, Int64]:
        """(N,) the indices of all records, sorted, and their places in the table."""
        indices = self._table["index"].to_numpy()
        order = np.argsort(indices, kind="stable")
        return indices[order], order

    def _row(self, place: int) -> TableRow:
        return TableRow(*(self._table[name][place].as_py() for name in ROW_COLUMNS))

    def _read(self, place: int, kind: str = "") -> StructureFile:
        row = self._row(place)
        own, where, data = self._contents(row, kind)
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DamagedError(where, f"not text in UTF-8 (byte {error.start})") from None
        if not ATOM_LINE.search(data):
            raise DamagedError(where, "has no ATOM records" if data else "is empty")
        return StructureFile(row.id, row.index, own, data)

    def _contents(self, row: TableRow, kind: str) -> tuple[str, str, bytes]:
        """Kind, place and bytes of the file of a record, or of one next to it of a `kind`."""
        file = PurePosixPath(row.file)
        if file.is_absolute() or ".." in file.parts or not file.parts or "\0" in row.file:
            raise DamagedError(
                str(self._own), f"record {row.index} has a file outside of the folder"
            )
        try:
            container, rest = self._container(file)
        except OSError as error:
            raise unreadable_file(brief(row.file), error) from None
        if container is not None and container.suffix not in (TAR, ZIP):
            return self._of_database(container, rest, row, kind)
        plain = rest.removesuffix(GZIP)
        own = PurePosixPath(plain).suffix.removeprefix(".")
        kind = kind or own
        name = plain.removesuffix(own) + kind + rest.removeprefix(plain)
        place = container or self.folder
        try:
            return kind, f"{place}: {name}", self._member(container, name)
        except (KeyError, FileNotFoundError):
            database = self.folder / file.parts[0] / DATABASE
            first = re.match(r"\d+", PurePosixPath(rest).name)
            if kind == FOLDCOMP_KIND != own and first and is_database(database):
                return self._of_database(database, first[0], row, kind)
            remedy = "make the files again" if kind == own else f"ask for {own}"
            raise InputError(f"{place}: has no {name}; {remedy}") from None
        except OSError as error:
            raise unreadable_file(f"{place}: {name}", error) from None

    def _of_database(
        self, database: Path, key: str, row: TableRow, kind: str
    ) -> tuple[str, str, bytes]:
        """The entry of a database, or the file next to it of another `kind`."""
        if kind in ("", FOLDCOMP_KIND):
            return FOLDCOMP_KIND, f"{database}: entry {key}", self._entry(database, key, row)
        found = next(self._beside(database, key, kind), None)
        if found is None:
            raise InputError(f"{database}: holds PDB, not {kind}; ask for {FOLDCOMP_KIND}")
        return kind, *found

    def _beside(self, database: Path, key: str, kind: str) -> Iterator[tuple[str, bytes]]:
        """Place and bytes of the file of a `kind` of an entry: in a folder, or in an archive."""
        first = self._first(key)
        if first is None:
            return
        parent = database.parent
        name = f"{folder_name(first.index)}/{file_stem(first.index, first.id)}.{kind}"
        try:
            if (parent / name).is_file():
                yield str(parent / name), (parent / name).read_bytes()
        except OSError as error:
            raise unreadable_file(parent / name, error) from None
        for archive in sorted(parent.glob(f"*{TAR}")):
            try:
                yield f"{archive}: {name}", self._member(archive, member_name(name))
            except KeyError:
                continue

    def _first(self, key: str) -> TableRow | None:
        """The row of the record whose index is the key of an entry."""
        places = self._places(int(key)) if key.isdecimal() else []
        return self._row(places[0]) if places else None

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
            folder = container.parent
            if folder not in self._indices:
                self._indices[folder] = ArchiveIndex(folder)
            return read_archived(container, name, self._indices[folder])
        try:
            with zipfile.ZipFile(container) as archive:  # as versions before 0.2 wrote
                return archive.read(name)
        except (zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            raise InputError(f"{container}: damaged ({error}); make it again") from None

    def _entry(self, container: Path, key: str, row: TableRow) -> bytes:
        """An entry as PDB, once it is the one that the tables mean."""
        require_foldcomp()
        if container not in self._databases:
            self._databases[container] = FoldcompDatabase(container)
        database, place = self._databases[container], str(container)
        if not key.isdecimal() or int(key) > MOST_INDEX:
            raise DamagedError(str(self._own), f"record {row.index} has '{key}' for an entry")
        first = self._first(key)
        try:
            name = first.id if first else None
            if name is None and database.is_ours:
                name = dict(database.names()).get(int(key), "")
            data = database.entry(int(key), name)
            title, text = decompressed(data)
            shared = database.first_key(int(key))
        except KeyError:
            raise InputError(f"{container}: has no entry {key}; make the files again") from None
        except ValueError as error:
            raise DamagedError(place, f"entry {key}: {error}") from None
        ours = database.is_ours or self._own != container
        origin = self._first(str(shared)) or first
        if origin and not self._is_title(title, origin.id, ours):
            raise DamagedError(place, f"entry {key} is that of '{title}', not of '{origin.id}'")
        facts = self._facts_of(container, row)
        changed = {REPLACED, OMITTED} & set(facts.flags.split(";"))
        if facts.crc64 and not changed and crc64(sequence_of(text)) != facts.crc64:
            raise DamagedError(
                place, f"entry {key} has another sequence than record {row.index} in {TABLE_NAME}"
            )
        if not ours:
            return with_heading(text, title, None).encode("ascii", "replace")
        warning = [MEANINGLESS] if RANDOM in facts.flags.split(";") else []
        placed = [PLACED_OXYGEN] if f" {TERMINAL_OXYGEN} " in text else []
        told = origin.id if origin else row.id
        heading = f"Predicted structure of {told}"
        return with_heading(text, heading, [*warning, B_FACTORS, *placed]).encode(
            "ascii", "replace"
        )

    def _is_title(self, title: str, name: str, ours: bool) -> bool:
        """Whether an entry has the title of a record.

        The programs of others give titles that are not the names of their databases; then only
        that of another entry is wrong.
        """
        if same_title(title, name):
            return True
        return not ours and not self._places(title)

    def _facts_of(self, container: Path, row: TableRow) -> TableRow:
        """The row of a record with its flags, which a table next to a database has."""
        if self._own != container:
            return row
        places = [container.parent / TABLE_NAME, container.parent.parent / TABLE_NAME]
        table = next((one for one in places if one.is_file()), None)
        if table is None or container.name != DATABASE:
            return row
        if self._beside_table is None:
            self._beside_table = StructureFiles(table)
        found = self._beside_table._places(row.index)
        same = map(self._beside_table._row, found)
        return next((one for one in same if lookup_name(one.id) == row.id), row)


@dataclass(frozen=True)
class TableRow:
    """What is read of a record's row; "" for flags and crc64 if the table has none."""

    index: int
    id: str
    file: str
    flags: str
    crc64: str


def is_key(key: object) -> bool:
    """Whether `key` is an id or an index."""
    return isinstance(key, (str, int, np.integer)) and not isinstance(key, bool)


def same_title(title: str, name: str) -> bool:
    """Whether an entry's title is that of a record; white space is underscores in both."""
    one, other = (re.sub("_+", "_", text) for text in (title, entry_title(name)))
    return one == other


def arrow_type(column: str) -> pyarrow.DataType:
    """The type of a column of `READ_COLUMNS` or `FACTS`."""
    import pyarrow

    return pyarrow.type_for_alias((READ_COLUMNS | FACTS)[column])


def rows_of_table(path: Path) -> pyarrow.Table:
    """The columns of `TableRow`, of the records in a `structures.tsv` that have a file."""
    import pyarrow.compute
    import pyarrow.csv

    try:
        with open(path, "rb") as lines:
            there = lines.readline().decode("utf-8", "replace").split()
        columns = [*READ_COLUMNS, *(name for name in FACTS if name in there)]
        table = pyarrow.csv.read_csv(
            path,
            parse_options=pyarrow.csv.ParseOptions(delimiter="\t", newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=columns,
                column_types={name: arrow_type(name) for name in columns},
                strings_can_be_null=False,
            ),
        )
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        why = " ".join(reason(error).split())
        raise InputError(f"{path}: not a {TABLE_NAME} ({why}); check the path") from None
    for name in FACTS:
        if name not in columns:
            table = table.append_column(name, pyarrow.array([""] * len(table), arrow_type(name)))
    return table.filter(pyarrow.compute.not_equal(table["file"], ""))


def rows_of_database(path: Path) -> pyarrow.Table:
    """The same for a Foldcomp database, whose keys are the indices."""
    import pyarrow

    entries = list(FoldcompDatabase(path).names())
    keys, names = ([entry[place] for entry in entries] for place in (0, 1))
    files = [f"{path.name}/{key}" for key in keys]
    none = [""] * len(keys)
    columns = zip((keys, names, files, none, none), ROW_COLUMNS, strict=True)
    arrays = [pyarrow.array(values, arrow_type(name)) for values, name in columns]
    return pyarrow.table(arrays, names=list(ROW_COLUMNS))
