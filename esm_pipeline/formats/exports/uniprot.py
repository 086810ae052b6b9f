"""One HDF5 dataset for each protein, as UniProt distributes embeddings of its proteins.

    per-protein.h5    accession → (D,)
    per-residue.h5    accession → (L, D)

Readers of UniProt's own files read these too. A protein whose id is not one of UniProt's has its id
as its name. HDF5 does not take every text for a name, and no name twice: the table of names has a
row for each record, with its name in the file, or the reason why it has none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from esm_pipeline.errors import InputError, brief
from esm_pipeline.formats.protein_names import uniprot_accession
from esm_pipeline.formats.results.chosen import ChosenBlock, ChosenRecords
from esm_pipeline.formats.results.embedding_tables import TABLE_COLUMNS, record_cells
from esm_pipeline.formats.results.hdf5_file import create_hdf5
from esm_pipeline.formats.tables.base import Column
from esm_pipeline.formats.tables.open import create_table

NAME_COLUMNS = [*TABLE_COLUMNS, Column("name", "text"), Column("reason", "text")]
"""Columns of the table of names."""

PROTEINS_AT_ONCE = 1024

RENAMED = "renamed: HDF5 does not allow this name"
TAKEN = "left out: an earlier record has this name"
"""Reasons in the table of names."""


def write_named(
    target: Path,
    names: Path,
    records: ChosenRecords,
    dataset: str,
    dtype: str,
    attributes: Mapping[str, Any],
) -> Counter[str]:
    """Write one dataset for each of `records`, and the table of names; returns the reasons.

    `dataset` is mean/33, bos/33 or residue/33, `dtype` float16 or float32, `attributes` are those
    of the file. Raises InputError for a number that is too large for float16.
    """
    reasons: Counter[str] = Counter()
    with (
        create_hdf5(target, paged=False) as (file, disk),
        create_table(names, ".tsv", None, NAME_COLUMNS) as writer,
    ):
        file.attrs.update(sorted(attributes.items()))
        for block in records.blocks(PROTEINS_AT_ONCE):
            rows = []
            for name, value in zip(block.ids, values_of(block, dataset), strict=True):
                own, reason = name_in(file, name)
                if own:
                    write_dataset(file, own, value, dtype, records.results.path)
                rows.append((own, reason))
                reasons[reason] += 1
            disk.check()
            writer.write(None, [*record_cells(block), *zip(*rows, strict=True)])
    return reasons


def values_of(block: ChosenBlock, dataset: str) -> Iterator[NDArray[Any]]:
    """The vector of each record, or the vectors of its residues."""
    if dataset.startswith("residue/"):
        return (one.part.values(dataset, "residue", one.row) for one in block.records())
    return iter(block.values(dataset))


def name_in(file: h5py.File, identifier: str) -> tuple[str, str]:
    """The name of the next dataset, empty if there is none, and the reason if it is not the usual.

    `/` separates groups in HDF5 and `.` is the group itself, so they are replaced.
    """
    usual = uniprot_accession(identifier)
    name = usual.replace("/", "_").replace("\0", "_")
    if not name.strip("."):
        name = "_" * max(1, len(name))
    if name.encode() in file.id:
        return "", TAKEN
    return name, "" if name == usual else RENAMED


def write_dataset(file: h5py.File, name: str, value: NDArray[Any], dtype: str, source: str) -> None:
    """Write one dataset. Raises InputError if float16 cannot hold its numbers."""
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(value, dtype)
    if not np.array_equal(np.isinf(stored), np.isinf(value)):
        raise InputError(
            f"{source}: a number of {brief(name)} is too large for float16; set --dtype to float32"
        )
    kind = h5py.h5t.py_create(stored.dtype)  # less work than `create_dataset`: half the time
    space = h5py.h5s.create_simple(stored.shape)
    made = h5py.h5d.create(file.id, name.encode(), kind, space, without_times())
    made.write(h5py.h5s.ALL, h5py.h5s.ALL, stored)


@cache
def without_times() -> h5py.h5p.PropDCID:
    """Properties of datasets that have no time in them: the same input gives the same bytes."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_obj_track_times(False)
    return properties
