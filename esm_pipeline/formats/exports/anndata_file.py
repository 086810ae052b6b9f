"""Embeddings as AnnData (`.h5ad`), which scanpy and its relatives read.

    X       (N, D) float32, one array of the result
    obs     a row for each record: index, id, length, and columns of records.tsv; names are the ids
    var     a row for each of the D numbers
    obsm    the other arrays with a row for each record, `mean_33` or `bos_33`
    uns     how the result was made

Numbers are written block by block; the columns of `obs` are held in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from esm_pipeline.errors import InputError
from esm_pipeline.formats.records import Record, read_records
from esm_pipeline.formats.results.chosen import ChosenRecords
from esm_pipeline.formats.results.embedding_tables import width_of
from esm_pipeline.formats.results.hdf5_file import create_hdf5
from esm_pipeline.formats.results.writer import create_flat

BLOCK_NUMBERS = 1 << 22
"""Numbers that are held in memory at a time."""

ARRAY_ENCODING = {"encoding-type": "array", "encoding-version": "0.2.0"}
FRAME_ENCODING = {"encoding-type": "dataframe", "encoding-version": "0.2.0"}
ANNDATA_ENCODING = {"encoding-type": "anndata", "encoding-version": "0.1.0"}
"""Attributes by which anndata knows what it reads."""

EMPTY_GROUPS = ("layers", "obsp", "varm", "varp")
RECORD_FACTS = ("header", "sha256", "notes")
"""Columns of records.tsv that `obs` has too."""

WriteElement = Callable[[h5py.Group, str, Any], None]


def anndata_writer() -> WriteElement:
    """The function of anndata that writes an element. Raises InputError without the package."""
    try:
        from anndata.io import write_elem
    except ImportError:
        raise InputError(
            "the package anndata is missing; install it: pip install 'esm-pipeline[anndata]'"
        ) from None

    def write(group: h5py.Group, name: str, value: Any) -> None:
        write_elem(group, name, value)

    return write


def write_h5ad(
    target: Path,
    records: ChosenRecords,
    datasets: Sequence[str],
    table: Path | None,
    attributes: Mapping[str, Any],
) -> None:
    """Write an `.h5ad`: the first of `datasets` as X, the others in obsm.

    `table` is the records.tsv of the input, if there is one; `attributes` become `uns`. Raises
    InputError if anndata is missing, or the table is that of another input.
    """
    write = anndata_writer()
    with create_hdf5(target, paged=False) as (file, disk):
        file.attrs.update(ANNDATA_ENCODING)
        first, *others = datasets
        places = {"X": first, **{f"obsm/{one.replace('/', '_')}": one for one in others}}
        for name in ("obsm", *EMPTY_GROUPS):
            write(file, name, {})
        write(file, "uns", {**attributes})
        kind = first.partition("/")[0]
        width = width_of(records, first)
        names = np.array([f"{kind}_{place}" for place in range(width)], object)
        write_frame(write, file, "var", names, {})
        for place, dataset in places.items():
            shape = (records.count, width_of(records, dataset))
            create_flat(file, place, "<f4", shape).attrs.update(ARRAY_ENCODING)
        done, columns = 0, ObsColumns(table)
        widest = sum(width_of(records, one) for one in datasets)
        for block in records.blocks(max(1, BLOCK_NUMBERS // widest)):
            stop = done + len(block)
            for place, dataset in places.items():
                file[place][done:stop] = block.values(dataset)
            columns.add(block.index.tolist(), block.ids, block.lengths.tolist())
            disk.check()
            done = stop
        write_frame(write, file, "obs", *columns.frame())


class ObsColumns:
    """The columns of `obs`, with those of the records.tsv at `table`, if there is one."""

    def __init__(self, table: Path | None) -> None:
        self._table = table
        self._rows: Iterator[Record] = iter(()) if table is None else read_records(table)
        names = ("index", "id", "length", *(RECORD_FACTS if table else ()))
        self._columns: dict[str, list[Any]] = {name: [] for name in names}

    def add(self, index: Sequence[int], ids: Sequence[str], lengths: Sequence[int]) -> None:
        """Add some records, in input order. Raises InputError if the table has others."""
        self._columns["index"] += index
        self._columns["id"] += ids
        self._columns["length"] += lengths
        for number, name in zip(index, ids, strict=True) if self._table else ():
            row = next((row for row in self._rows if row.index == number), None)
            if row is None or row.id != name:
                raise InputError(
                    f"{self._table}: not the records of these results; name their table by "
                    "--records"
                )
            for fact in RECORD_FACTS:
                self._columns[fact].append(getattr(row, fact))

    def frame(self) -> tuple[Any, dict[str, Any]]:
        """The names of the rows, and the columns."""
        numbers = ("index", "length")
        columns = {
            name: np.array(values, np.int64 if name in numbers else object)
            for name, values in self._columns.items()
        }
        return np.array(unique_names(self._columns["id"]), object), columns


def unique_names(ids: Sequence[str]) -> list[str]:
    """The ids; one that has been used before has `-1`, `-2`, … added, as anndata does."""
    taken, counts, names = set(ids), dict.fromkeys(ids, 0), []
    seen: set[str] = set()
    for one in ids:
        name = one
        while name in seen or (name != one and name in taken):
            counts[one] += 1
            name = f"{one}-{counts[one]}"
        seen.add(name)
        names.append(name)
    return names


def write_frame(
    write: WriteElement, file: h5py.File, name: str, rows: Any, columns: Mapping[str, Any]
) -> None:
    """Write a data frame as anndata stores it: `rows` are its names, `columns` its arrays."""
    group = file.create_group(name)
    order = np.array([*columns], h5py.string_dtype())
    group.attrs.update({**FRAME_ENCODING, "_index": "_index", "column-order": order})
    for column, values in {"_index": rows, **columns}.items():
        write(group, column, values)
