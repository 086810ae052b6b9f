"""Finding the records with an id or a sequence without reading all: sorted keys in each result.

The datasets `BY_ID` have the `id_hash` of each record's id in ascending order, and the record of
each; `BY_SEQUENCE` the same for the `sequence_digest` of its sequence. Equal keys are in input
order.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from hashlib import blake2b, sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esm_pipeline.arrays import Int64
from esm_pipeline.formats.results.layout import (
    BY_ID,
    BY_SEQUENCE,
    KEY_TYPE,
    POSITION_TYPE,
)
from esm_pipeline.formats.results.stored import StoredNumbers, first_place

KEY_BYTES = 8


def id_hash(name: str) -> int:
    """The key of an id: BLAKE2b of its UTF-8, 64 bits."""
    return int.from_bytes(_hash_bytes(name), "little")


def sequence_digest(sequence: bytes) -> int:
    """The key of a cleaned sequence: the first 64 bits of its SHA-256, the first one the highest.

    They are the first 16 digits of the column `sha256` of `records.tsv`.
    """
    return int.from_bytes(sha256(sequence).digest()[:KEY_BYTES], "big")


def hashes_of(names: Iterable[str]) -> NDArray[np.uint64]:
    """The `id_hash` of each of some ids."""
    return np.frombuffer(b"".join(map(_hash_bytes, names)), KEY_TYPE)


def _hash_bytes(name: str) -> bytes:
    return blake2b(name.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()


class LookupKeys:
    """The keys of the records of a new file, collected while their entries are written.

    `digests` (U,) are the `sequence_digest`s of the rows. Takes 12 bytes for each record, and
    about 30 while they are sorted.
    """

    def __init__(self, digests: NDArray[np.uint64] | None = None) -> None:
        self._digests = digests
        self._hashes, self._rows = bytearray(), array("i")

    def noting(self, entries: Iterable[tuple[str, int, int]]) -> Iterator[tuple[str, int, int]]:
        """The same `entries`, of id, index and row; each is noted when it passes."""
        for entry in entries:
            self._hashes += _hash_bytes(entry[0])
            self._rows.append(entry[2])
            yield entry

    def arrays(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Names and values of the datasets, once all entries have passed."""
        yield from zip(BY_ID, sorted_keys(np.frombuffer(self._hashes, KEY_TYPE)), strict=True)
        if self._digests is not None:
            keys = np.asarray(self._digests, KEY_TYPE)[np.frombuffer(self._rows, np.intc)]
            yield from zip(BY_SEQUENCE, sorted_keys(keys), strict=True)


def sorted_keys(keys: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    """The keys (N,) of all records in ascending order, and the record of each."""
    order = np.argsort(keys, kind="stable")
    return keys[order], order.astype(POSITION_TYPE)


class Lookup:
    """The records with a key: `keys` (N,) are ascending, `positions` (N,) their records."""

    def __init__(self, keys: StoredNumbers, positions: StoredNumbers) -> None:
        self._keys, self._positions = keys, positions

    def positions(self, key: int) -> Int64:
        """The positions of the records with a key, in input order; empty if there are none."""
        count, wanted = len(self._keys), np.uint64(key)
        first = stop = first_place(self._keys, wanted, guess=key * count >> 8 * KEY_BYTES)
        if first < count and self._keys[first] == wanted:
            stop = bisect_right(self._keys, wanted, first)
        return np.asarray(self._positions[first:stop], np.int64)
