"""`structures.parquet`: the table of structures with the columns of the ESM Metagenomic Atlas.

A row for every record of `structures.tsv`, in its order. The Atlas's columns come first, with its
names and scale, so that its filters work here: pLDDT is 0 to 1, and missing for what was not
folded. The Atlas's columns on its own versions and sources are left out; our other columns follow.
Peer: github.com/facebookresearch/esm, scripts/atlas/README.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from esm_pipeline.errors import InputError
from esm_pipeline.formats.structure_files import structure_rows
from esm_pipeline.formats.tables.base import ROWS_AT_ONCE

STRINGS, INTEGERS, DOUBLES = pyarrow.string(), pyarrow.int64(), pyarrow.float64()

Cell = Callable[[str], Any]
COLUMNS: tuple[tuple[str, str, pyarrow.DataType, Cell], ...] = (
    ("id", "id", STRINGS, str),
    ("ptm", "ptm", DOUBLES, float),
    ("plddt", "plddt", DOUBLES, lambda text: round(float(text) / 100, 4)),
    ("num_conf", "num_conf", INTEGERS, int),
    ("len", "length", INTEGERS, int),
    ("sequenceChecksum", "crc64", STRINGS, str),
    ("index", "index", INTEGERS, int),
    ("status", "status", STRINGS, str),
    ("reason", "reason", STRINGS, str),
    ("chains", "chains", INTEGERS, int),
    ("iptm", "iptm", DOUBLES, float),
    ("num_recycles", "num_recycles", INTEGERS, int),
    ("chunk_size", "chunk_size", INTEGERS, int),
    ("file", "file", STRINGS, str),
    ("flags", "flags", STRINGS, str),
)
"""Name, column of `structures.tsv`, type, and how its cells are read."""

NEVER_MISSING = ("id", "reason", "flags")
"""Columns in which nothing is an empty text."""

SCHEMA = pyarrow.schema([(name, kind) for name, _, kind, _ in COLUMNS])


def write_atlas_table(table: Path, target: Path) -> None:
    """Write the Parquet `target` from a `structures.tsv`, block by block.

    Raises InputError for another table.
    """
    with pyarrow.parquet.ParquetWriter(target, SCHEMA) as writer:
        for block in table_blocks(structure_rows(table)):
            try:
                arrays = [
                    pyarrow.array(
                        [
                            read(row[source]) if row[source] or name in NEVER_MISSING else None
                            for row in block
                        ],
                        kind,
                    )
                    for name, source, kind, read in COLUMNS
                ]
            except (ValueError, pyarrow.ArrowException) as error:
                raise InputError(
                    f"{table}: not a structures.tsv ({error}); check the path"
                ) from None
            writer.write_batch(pyarrow.record_batch(arrays, schema=SCHEMA))


def table_blocks(rows: Iterable[dict[str, str]]) -> Iterator[list[dict[str, str]]]:
    """The rows in blocks of bounded size."""
    rest = iter(rows)
    while block := list(islice(rest, ROWS_AT_ONCE)):
        yield block
