"""The layout of a result: one flat HDF5 file of ragged arrays.

U unique sequences are rows, and N records point to them. Every array has one value for each
sequence, residue or pair of residues. The values of all sequences are joined in one contiguous
dataset: never a group or dataset for each record.

    id (N,), index (N,), row (N,)    the records, and the row of each record's sequence
    length (U,), offset (U + 1,)     residues of each sequence, and where they begin
    {name} (units, …)                what a task computed; its attribute `per` names the unit
    {name}_offset (U + 1,)           where the pairs of each sequence begin, if the unit is a pair
    lookup/… (N,)                    records sorted by id and by sequence; see `lookup`

Files of earlier versions have no lookup; one of sequences is left out where digests are not known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from esm_pipeline.arrays import Int64

FORMAT_VERSION = 1

Per = Literal["sequence", "residue", "pair"]
"""The unit of an array: it has one value for each."""

STORED_DTYPES = ("<f2", "<f4", "<i4", "|u1", "|S1")
"""Types of the values: numbers and letters."""

BY_ID = ("lookup/id_hash", "lookup/id_position")
BY_SEQUENCE = ("lookup/sequence_digest", "lookup/sequence_position")
"""Datasets of sorted keys, and of the records of these keys."""

KEY_TYPE, POSITION_TYPE = "<u8", "<i4"
"""Their types."""


@dataclass(frozen=True)
class Array:
    """One dataset: a value of `shape` and `dtype` for each unit `per`."""

    name: str
    per: Per
    shape: tuple[int, ...]
    dtype: str

    @property
    def item_bytes(self) -> int:
        """Size of the value of one unit in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


class RecordRow(NamedTuple):
    """A record: its id, its index (position in the input), and the row of its sequence."""

    id: str
    index: int  # type: ignore[assignment]  # hides tuple.index
    row: int


def unit_starts(lengths: NDArray[Any], per: Per) -> Int64:
    """Where the units of each row begin, and the last row ends: (U + 1,), from `lengths` (U,)."""
    exponent = get_args(Per).index(per)  # a sequence has length⁰ units, and so on
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(np.asarray(lengths, np.int64) ** exponent, out=starts[1:])
    return starts
