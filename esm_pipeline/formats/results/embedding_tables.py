"""Embeddings as a table with a row for each record, or as one array and a table of its ids.

Made from an `embeddings.h5`, block by block, with the same records in the same order. Numbers are
exact: read as float32, they equal those of the HDF5 file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from esm_pipeline.errors import InputError
from esm_pipeline.formats.results.chosen import ChosenBlock, ChosenRecords
from esm_pipeline.formats.results.embeddings import FIXED_SIZE, Embeddings
from esm_pipeline.formats.tables.base import PARQUET, ROWS_AT_ONCE, Column
from esm_pipeline.formats.tables.open import create_table

TABLE_COLUMNS = [Column("index", "whole"), Column("id", "text"), Column("length", "whole")]
"""Columns before the numbers: position in the input, id, and number of embedded residues."""

CELLS = 1 << 18
"""Most numbers that are held as text at a time."""


def write_embedding_table(target: Path, suffix: str, source: Path) -> None:
    """Write the embeddings at `source` as a table in the format of `suffix`; see `write_wide`."""
    with Embeddings.open(source) as results:
        write_wide(target, suffix, ChosenRecords(results), fixed_arrays(results))


def write_wide(target: Path, suffix: str, records: ChosenRecords, names: Sequence[str]) -> None:
    """Write the arrays `names` of some records as a table in the format of `suffix`.

    Its columns are `TABLE_COLUMNS` and `{kind}_{layer}_{place}`: mean_33_0, mean_33_1, …
    """
    columns = [
        Column(f"{name.replace('/', '_')}_{place}", "exact")
        for name in names
        for place in range(width_of(records, name))
    ]
    size = ROWS_AT_ONCE if suffix == PARQUET else max(1, CELLS // max(1, len(columns)))
    with create_table(target, suffix, None, [*TABLE_COLUMNS, *columns]) as writer:
        for block in records.blocks(size):
            numbers = [column for name in names for column in block.values(name).T]
            writer.write(None, [*record_cells(block), *numbers])


def write_array(target: Path, ids: Path, source: Path) -> None:
    """Write the only array at `source` as a .npy file; see `write_npy`.

    Raises InputError unless there is exactly one array.
    """
    with Embeddings.open(source) as results:
        names = fixed_arrays(results)
        if len(names) != 1:
            raise InputError(f"{source}: {len(names)} arrays; a .npy file holds one")
        write_npy(target, ids, ChosenRecords(results), names[0])


def write_npy(target: Path, ids: Path, records: ChosenRecords, name: str) -> None:
    """Write the array `name` of some records as a .npy file of (N, D) float32.

    `ids` becomes a TSV with the `TABLE_COLUMNS` of each row.
    """
    size = (records.count, width_of(records, name))
    shape = {"descr": "<f4", "fortran_order": False, "shape": size}
    with (
        open(target, "wb") as handle,
        create_table(ids, ".tsv", None, TABLE_COLUMNS) as writer,
    ):
        np.lib.format.write_array_header_1_0(handle, shape)
        for block in records.blocks(ROWS_AT_ONCE):
            handle.write(np.ascontiguousarray(block.values(name)).data)
            writer.write(None, record_cells(block))


def record_cells(block: ChosenBlock) -> list[Any]:
    """The `TABLE_COLUMNS` of a block of records."""
    return [block.index, block.ids, block.lengths]


def width_of(records: ChosenRecords, name: str) -> int:
    """D, the numbers in a row of the array `name`."""
    return records.results.parts[0].array(name).shape[1]


def fixed_arrays(results: Embeddings) -> list[str]:
    """Names of the arrays with a row for each record, such as mean/33.

    Raises InputError if anything without a fixed size is stored.
    """
    others = [kind for kind in results.kinds if kind not in FIXED_SIZE]
    if others:
        raise InputError(f"{results.path}: '{others[0]}' has no fixed size; leave it out")
    return [f"{kind}/{layer}" for layer in results.layers for kind in results.kinds]
