"""Embeddings as a table with a row for each record, or as one array with the ids beside it.

Made from an `embeddings.h5`, block by block, with the same records in the same order. A number
keeps every digit: read as float32, it is the one in the HDF5 file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from esm_pipeline.arrays import Float32
from esm_pipeline.errors import InputError
from esm_pipeline.formats.results.open import Embeddings
from esm_pipeline.formats.tables.base import BLOCK, PARQUET, Column, create_table

FIXED = ("mean", "bos")
"""What has as many numbers for every record."""

RECORD = [Column("index", "whole"), Column("id", "text"), Column("length", "whole")]
"""Columns before the numbers: place in the input, id, and the residues that were embedded."""

CELLS = 1 << 18
"""Numbers that are text at the same time."""


def write_table(target: Path, suffix: str, source: Path) -> None:
    """Write the embeddings at `source` as the kind of table that `suffix` names.

    Columns are `RECORD` and `{kind}_{layer}_{place}`: mean_33_0, mean_33_1, …
    """
    with Embeddings.open(source) as results:
        arrays = fixed_arrays(results)
        columns = [
            Column(f"{name.replace('/', '_')}_{place}", "exact")
            for name, values in arrays.items()
            for place in range(values.shape[1])
        ]
        rows = BLOCK if suffix == PARQUET else max(1, CELLS // max(1, len(columns)))
        with create_table(target, suffix, None, [*RECORD, *columns]) as writer:
            for block in blocks(len(results), rows):
                place = results.row[block]
                before: list[Any] = [
                    results.index[block],
                    results.ids[block],
                    results.length[place],
                ]
                numbers = [column for values in arrays.values() for column in values[place].T]
                writer.write(None, [*before, *numbers])


def write_array(target: Path, ids: Path, source: Path) -> None:
    """Write the one array at `source` as NumPy's (N, D) float32, and `RECORD` of each row to `ids`.

    `ids` is a TSV with as many lines below its first, in the order of the rows. Raises InputError
    if there are several arrays.
    """
    with Embeddings.open(source) as results:
        arrays = [*fixed_arrays(results).values()]
        if len(arrays) != 1:
            raise InputError(f"{source}: {len(arrays)} arrays; a .npy file holds one")
        (values,) = arrays
        shape = {"descr": "<f4", "fortran_order": False, "shape": (len(results), values.shape[1])}
        with open(target, "wb") as handle, create_table(ids, ".tsv", None, RECORD) as writer:
            np.lib.format.write_array_header_1_0(handle, shape)
            for block in blocks(len(results), BLOCK):
                place = results.row[block]
                handle.write(values[place].tobytes())
                told: list[Any] = [results.index[block], results.ids[block], results.length[place]]
                writer.write(None, told)


def fixed_arrays(results: Embeddings) -> dict[str, Float32]:
    """Name of an array, as mean/33, → (U, D) float32, mapped: those with a row for each sequence.

    Raises InputError if anything else is stored.
    """
    others = [kind for kind in results.kinds if kind not in FIXED]
    if others:
        raise InputError(f"{results.path}: '{others[0]}' is of no fixed size; leave it out")
    names = [f"{kind}/{layer}" for layer in results.layers for kind in results.kinds]
    return {name: mapped(results, name) for name in names}


def mapped(results: Embeddings, name: str) -> Float32:
    """A dataset, not yet read."""
    dataset = results.file[name]
    offset = dataset.id.get_offset()
    if offset is None:  # nothing in it
        return np.empty(dataset.shape, np.float32)
    return np.memmap(results.path, np.float32, "r", offset, dataset.shape)


def blocks(count: int, rows: int) -> Iterator[slice]:
    """Parts of `count` records, `rows` at a time."""
    return (slice(start, start + rows) for start in range(0, count, rows))
