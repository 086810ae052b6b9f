"""The bundle of a variant table: its rows, of which many jobs score a range each.

Rows that share forward passes form groups, which are sorted by protein. A job scores the groups of
the range `k` of `n`: its bounds follow from the index alone.

    variants.tsv         the rows: `row` (number in the table), `protein`, `mutant`
    variants.index.npz   the arrays of `VariantBundle`, which place and identify each group
    wild_types.fasta     the proteins of these rows, each under the index of its first record
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from esm_pipeline.arrays import Int32, Int64
from esm_pipeline.errors import InputError
from esm_pipeline.formats.bundles import (
    INDEX_FILE,
    Range,
    Work,
    range_bounds,
    read_arrays,
    write_arrays,
)
from esm_pipeline.formats.checksums import CHECKSUM_REMEDY

VARIANT_ROWS, WILD_TYPE_FASTA = "variants.tsv", "wild_types.fasta"
VARIANT_COLUMNS = ("row", "protein", "mutant")
"""`protein` is the index of the first record with the row's wild type."""

VARIANT_ARRAYS = {
    **{"offset": "<i8", "rows": "<i4", "passes": "<i4", "protein": "<i4", "digest": "<u8"},
    **{"first": "<i8", "protein_length": "<i4", "fasta_offset": "<i8", "fasta_digest": "<u8"},
}
"""The arrays of an index, and their types."""


@dataclass(frozen=True)
class VariantBundle:
    """The index of a bundle of G groups of rows, of P proteins.

    Takes 28 bytes of memory for each group and for each protein.
    """

    table: Path
    fasta: Path
    offset: Int64
    """(G + 1,) where each group begins in the table, and the last one ends, in bytes."""
    rows: Int32
    """(G,) rows."""
    passes: Int32
    """(G,) forward passes that each group takes, about."""
    protein: Int32
    """(G,) place of its wild type among the proteins, ascending."""
    digest: NDArray[np.uint64]
    """(G,) the first 64 bits of the SHA-256 of its lines."""
    first: Int64
    """(P,) index of the first record with each wild type, ascending."""
    protein_length: Int32
    """(P,) residues."""
    fasta_offset: Int64
    """(P + 1,) where each protein begins in the FASTA, and the last one ends, in bytes."""
    fasta_digest: NDArray[np.uint64]
    """(P,) the first 64 bits of the SHA-256 of its record in the FASTA."""
    least: int
    """Residues that a job has at least, if the bundle has as many."""
    sha256: str
    """Digest of the index, in hexadecimal: it identifies the bundle and all its rows."""

    @classmethod
    def open(cls, table: Path, fasta: Path) -> Self:
        """Read the index next to `table`. Raises InputError if it is missing or damaged."""
        found = read_arrays(index_of_rows(table), [*VARIANT_ARRAYS], "a variant table", "split")
        return cls(table, fasta, **found)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def length(self) -> Int64:
        """(G,) residues of each group's wild type."""
        return self.protein_length[self.protein].astype(np.int64)

    def bounds(self, work: Work, count: int) -> Int64:
        """(count + 1,) the first group of each of `count` ranges, and the end of the last.

        `work.cost` is that of a pass. A row takes about as long as a residue in addition. Ranges
        differ by no more than one group. Where they would be too short to be worth a start of a
        job, the last ones are empty.
        """
        residues = int((self.passes * self.length + self.rows).sum())
        most = int(residues / max(1.0, self.least * work.least))
        row_cost = work.cost(np.ones(1, np.int64))
        cost = self.passes * work.cost(self.length) + self.rows * row_cost
        return range_bounds(cost, count, most)

    def span(self, work: Work, part: Range) -> slice:
        """The groups of a range."""
        bounds = self.bounds(work, part.count)
        return slice(int(bounds[part.number - 1]), int(bounds[part.number]))

    def proteins(self, span: slice) -> slice:
        """The places of the proteins of some groups."""
        found = self.protein[span]
        return slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0)

    def lines(self, span: slice) -> bytes:
        """The rows of some groups, as lines. Raises InputError if they are damaged."""
        return verified(self.table, self.offset[span.start : span.stop + 1], self.digest[span])

    def wild_types(self, span: slice) -> list[tuple[bytes, bytes]]:
        """Name and sequence of the proteins of some groups. Raises InputError for damaged ones."""
        places = self.proteins(span)
        offsets = self.fasta_offset[places.start : places.stop + 1]
        parts = verified(self.fasta, offsets, self.fasta_digest[places]).split(b"\n")
        return [(name[1:], text) for name, text in zip(parts[:-1:2], parts[1::2], strict=True)]


def verified(path: Path, offsets: Int64, digests: NDArray[np.uint64]) -> bytes:
    """The bytes of a file from the first of `offsets` (X + 1,) to the last.

    Raises InputError unless each part has its digest (X,).
    """
    start, stop = (int(offsets[0]), int(offsets[-1])) if len(offsets) else (0, 0)
    try:
        with open(path, "rb") as file:
            file.seek(start)
            text = file.read(stop - start)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run the workflow again to make it") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {CHECKSUM_REMEDY}") from None
    spans = pairwise((offsets - start).tolist())
    view = memoryview(text)
    for (begin, end), digest in zip(spans, digests.tolist(), strict=True):
        if first_bits(hashlib.sha256(view[begin:end])) != digest:
            raise InputError(
                f"{path}: damaged at byte {start + begin:,}, its digest is not that in the index; "
                f"{CHECKSUM_REMEDY}"
            )
    return text


def first_bits(digest: hashlib._Hash) -> int:
    """The first 64 bits of a digest, as a number."""
    return int.from_bytes(digest.digest()[:8], "big")


def write_variant_index(path: Path, arrays: dict[str, NDArray[np.number]], least: int) -> None:
    """Write the index of a bundle; see `VariantBundle`."""
    write_arrays(path, arrays, VARIANT_ARRAYS, least)


def index_of_rows(table: Path) -> Path:
    """The path of the index next to the rows."""
    return table.with_name(table.name.removesuffix(".tsv") + INDEX_FILE)
