"""Some or all records of an `embeddings.h5`, in blocks: what is exported.

Memory is that of a block, and of the ids that were asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esm_pipeline.arrays import Int32, Int64
from esm_pipeline.errors import InputError, brief
from esm_pipeline.formats.protein_names import names_of
from esm_pipeline.formats.results.embeddings import Embeddings, layer_missing
from esm_pipeline.formats.results.part import FoundRecord
from esm_pipeline.formats.results.reader import RECORDS_READ
from esm_pipeline.formats.results.record_order import RecordBlock


@dataclass(frozen=True)
class ChosenBlock:
    """The records at some `places` of a block of records that follow each other in the input."""

    block: RecordBlock
    places: Int64

    def __len__(self) -> int:
        return len(self.places)

    @cached_property
    def ids(self) -> list[str]:
        """The id of each record."""
        names = self.block.ids()
        return [names[place] for place in self.places.tolist()]

    @property
    def index(self) -> Int64:
        """(n,) position of each record in the input."""
        return self.block.index[self.places]

    @property
    def lengths(self) -> Int32:
        """(n,) residues of each record."""
        return self.block.lengths()[self.places]

    def values(self, name: str) -> NDArray[Any]:
        """(n, D) those of a dataset with one row for each sequence."""
        return self.block.values(name, self.places)

    def records(self) -> Iterator[FoundRecord]:
        """Each record."""
        wanted = set(self.places.tolist())
        return (one for place, one in enumerate(self.block.records()) if place in wanted)


class ChosenRecords:
    """The records of `results` with a name, such as id or accession, in `wanted`; None is all.

    `wanted` says of each name where it is asked for, such as `ids.txt:3`, for messages. `advance`
    is called with the number of records after each block. Raises InputError for an id that no
    record has.
    """

    def __init__(self, results: Embeddings, wanted: Mapping[str, str] | None = None) -> None:
        self.results = results
        self.advance: Callable[[int], None] = lambda _: None
        self._wanted = None if wanted is None else frozenset(wanted)
        self.count = len(results) if wanted is None else self._count(wanted)

    def _count(self, wanted: Mapping[str, str]) -> int:
        found: set[str] = set()
        count = 0
        for block in self.results.blocks(RECORDS_READ):
            for name in block.ids():
                hits = wanted.keys() & names_of(name)
                found |= hits
                count += bool(hits)
        missing = [name for name in wanted if name not in found]
        if missing:
            more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
            raise InputError(
                f"{wanted[missing[0]]}: no record with the id or accession {brief(missing[0])}"
                f"{more} in {self.results.path}; take it out, or see the table of records "
                "(records.tsv), which has all ids of the input with their outcomes"
            )
        return count

    def blocks(self, size: int) -> Iterator[ChosenBlock]:
        """The records in input order, chosen from `size` records at a time."""
        for block in self.results.blocks(size):
            if self._wanted is None:
                places = np.arange(len(block))
            else:
                names = block.ids()
                chosen = [not self._wanted.isdisjoint(names_of(one)) for one in names]
                places = np.flatnonzero(chosen)
            if len(places):
                yield ChosenBlock(block, places)
                self.advance(len(places))


def dataset_of(results: Embeddings, kind: str, layer: int = -1) -> str:
    """The name of the dataset of a kind and layer, such as mean/33; -1 is the last stored layer.

    Raises InputError if it is not stored.
    """
    results.require_stored(kind)
    if layer not in (-1, *results.layers):
        raise layer_missing(results.path, layer, results.layers)
    return f"{kind}/{results.layers[-1] if layer == -1 else layer}"
