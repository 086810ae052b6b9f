"""What a task computes: unique sequences, of whole files or of a range of a bundle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from esm_pipeline.arrays import Int32, Int64
from esm_pipeline.formats.records import Record


class BundlePart(NamedTuple):
    """Which part of a bundle some sequences are."""

    attributes: dict[str, str]
    """Task, digest of the bundle, name of the range, and its bounds: attributes of a job's file."""
    bundle_lengths: Int32
    """Residues of all sequences of the bundle that the task can compute."""


class UniqueSequences(Protocol):
    """N validated records and their U unique sequences: what a task computes."""

    count: int
    """N, the number of records."""
    lengths: Int32
    """(U,) residues of each unique sequence."""
    first: Int64
    """(U,) index of the first record with each unique sequence."""
    digest: NDArray[np.uint64]
    """(U,) the first 64 bits of the SHA-256 of each unique sequence."""
    unique: Int32
    """(N,) unique sequence of each record; -1 if it is skipped, or a complex."""

    @property
    def part(self) -> BundlePart | None:
        """The range of a bundle that this is, if it is one."""

    def sequence(self, number: int) -> bytes:
        """Unique sequence `number`."""

    def sequences(self, numbers: NDArray[np.integer[Any]]) -> Iterator[bytes]:
        """Unique sequences in the order of `numbers`."""

    def records(self) -> Iterator[Record]:
        """All records in index order."""
