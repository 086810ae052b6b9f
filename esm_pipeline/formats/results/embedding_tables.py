"""Embeddings as a table with a row for each record, or as one array and a table of its ids.

Made from an `embeddings.h5`, block by block, with the same records in the same order. Numbers are
exact: read as float32, they equal those of the HDF5 file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from esm_pipeline.errors import InputError
from esm_pipeline.formats.results.embeddings import FIXED_SIZE, Embeddings
from esm_pipeline.formats.results.matrix import RecordMatrix
from esm_pipeline.formats.results.record_order import RecordBlock
from esm_pipeline.formats.tables.base import PARQUET, ROWS_AT_ONCE, Column
from esm_pipeline.formats.tables.open import create_table

TABLE_COLUMNS = [Column("index", "whole"), Column("id", "text"), Column("length", "whole")]
"""Columns before the numbers: position in the input, id, and number of embedded residues."""

CELLS = 1 << 18
"""Most numbers that are held as text at a time."""


def write_embedding_table(target: Path, suffix: str, source: Path) -> None:
    """Write the embeddings at `source` as a table in the format of `suffix`.

    Its columns are `TABLE_COLUMNS` and `{kind}_{layer}_{place}`: mean_33_0, mean_33_1, …
    """
    with Embeddings.open(source) as results:
        arrays = fixed_arrays(results)
        columns = [
            Column(f"{name.replace('/', '_')}_{place}", "exact")
            for name, values in arrays.items()
            for place in range(values.shape[1])
        ]
        size = ROWS_AT_ONCE if suffix == PARQUET else max(1, CELLS // max(1, len(columns)))
        with create_table(target, suffix, None, [*TABLE_COLUMNS, *columns]) as writer:
            for block in results.blocks(size):
                numbers = [column for name in arrays for column in block.values(name).T]
                writer.write(None, [*record_cells(block), *numbers])


def write_array(target: Path, ids: Path, source: Path) -> None:
    """Write the only array at `source` as a .npy file of (N, D) float32.

    `ids` becomes a TSV with the `TABLE_COLUMNS` of each row. Raises InputError unless there is
    exactly one array.
    """
    with Embeddings.open(source) as results:
        arrays = fixed_arrays(results)
        if len(arrays) != 1:
            raise InputError(f"{source}: {len(arrays)} arrays; a .npy file holds one")
        ((name, values),) = arrays.items()
        shape = {"descr": "<f4", "fortran_order": False, "shape": values.shape}
        with (
            open(target, "wb") as handle,
            create_table(ids, ".tsv", None, TABLE_COLUMNS) as writer,
        ):
            np.lib.format.write_array_header_1_0(handle, shape)
            for block in results.blocks(ROWS_AT_ONCE):
                handle.write(block.values(name).data)
                writer.write(None, record_cells(block))


def record_cells(block: RecordBlock) -> list[Any]:
    """The `TABLE_COLUMNS` of a block of records."""
    return [block.index, block.ids(), block.lengths()]


def fixed_arrays(results: Embeddings) -> dict[str, RecordMatrix]:
    """Name of each array, such as mean/33 → (N, D) float32.

    Raises InputError if anything without a fixed size is stored.
    """
    others = [kind for kind in results.kinds if kind not in FIXED_SIZE]
    if others:
        raise InputError(f"{results.path}: '{others[0]}' has no fixed size; leave it out")
    names = [f"{kind}/{layer}" for layer in results.layers for kind in results.kinds]
    return {name: RecordMatrix(results, name) for name in names}
