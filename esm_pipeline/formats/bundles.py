"""Bundles: the unique sequences of a sample, in files from which many jobs compute a range each.

A bundle is a FASTA sorted by length, the longest first, with an index next to it. Every bundle of a
sample has sequences of all lengths, so that all cost about the same in every task. A job computes
the range `k` of `n`: its bounds follow from the index alone.

    00000.fasta          the sequences, each under the index of the first record that has it
    00000.index.npz      the arrays of `Bundle`, which place and identify each sequence
    00000.records.tsv    the records with these sequences, and a share of the skipped ones
    digests.sha256       digests of all files of all bundles

No torch: the workflow imports this module at every parse.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from esm_pipeline.arrays import Bool, Float64, Int32, Int64
from esm_pipeline.errors import InputError
from esm_pipeline.formats.checksums import require_listed

RANGE = re.compile(r"([0-9]{1,6})-of-([0-9]{1,6})")
"""The name of a range: `03-of-40`, from `01-of-40` on."""

FASTA, INDEX_FILE, RECORD_TABLE = ".fasta", ".index.npz", ".records.tsv"
"""What the names of a bundle's files end in, after its number."""

BUNDLE_ARRAYS = {"first": "<i8", "length": "<i4", "offset": "<i8", "digest": "<u8"}
"""The arrays of the index of a bundle, and their types."""

OPENING, CLOSING = len(">\n"), len("\n")
"""Bytes before and after the letters of a record of the FASTA, besides the digits of its name."""

REMOVE_FOLDER = "remove the folder and run the workflow again"


class Range(NamedTuple):
    """Range `number` (from 1) of `count`."""

    number: int
    count: int  # type: ignore[assignment]  # hides tuple.count

    @classmethod
    def parse(cls, name: str) -> Self:
        """The range called `name`. Raises ValueError for another text."""
        match = RANGE.fullmatch(name)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise ValueError(f"{name!r} is not a range such as 3-of-40")
        return cls(int(match[1]), int(match[2]))

    @property
    def name(self) -> str:
        """`03-of-40`: names of one cut sort by number."""
        return f"{self.number:0{len(str(self.count))}d}-of-{self.count}"


def range_names(count: int) -> list[str]:
    """The names of all ranges of a bundle that is cut into `count`."""
    return [Range(number, count).name for number in range(1, count + 1)]


class Work(NamedTuple):
    """How the work of a task grows with the sequences."""

    cost: Callable[[Int64], NDArray[np.number]]
    """Relative cost (U,) of sequences of some lengths (U,) in residues."""
    least: float = 1.0
    """The smallest job, as a part of the `least` residues of the bundle."""


@dataclass(frozen=True)
class Bundle:
    """The index of a bundle of U sequences: arrays in the order of its FASTA.

    Takes 28 bytes of memory for each sequence.
    """

    fasta: Path
    first: Int64
    """(U,) index in the sample of the first record with each sequence: its name in the FASTA."""
    length: Int32
    """(U,) residues; in a complex without the `:` between chains."""
    offset: Int64
    """(U + 1,) where each sequence's record begins in the FASTA, and its end, in bytes."""
    digest: NDArray[np.uint64]
    """(U,) the first 64 bits of the SHA-256 of each sequence, as it stands in the FASTA."""
    least: int
    """Residues that a job has at least, if the bundle has as many: shorter ranges are joined."""
    sha256: str
    """Digest of the index, in hexadecimal: it identifies the bundle and all its sequences."""

    @classmethod
    def open(cls, fasta: Path) -> Self:
        """Read the index next to a bundle's FASTA.

        Raises InputError if it is not one, or has changed since the list of its folder was written.
        """
        found = read_arrays(index_path(fasta), [*BUNDLE_ARRAYS], "a bundle", "shard")
        return cls(fasta, **found)

    def __len__(self) -> int:
        return len(self.first)

    @cached_property
    def residues(self) -> int:
        """Residues of all sequences."""
        return int(self.length.sum(dtype="i8"))

    @cached_property
    def is_complex(self) -> Bool:
        """(U,) whether a sequence has several chains, separated by `:`."""
        letters = np.diff(self.offset) - digit_counts(self.first) - (OPENING + CLOSING)
        found: Bool = letters > self.length
        return found

    def bounds(self, work: Work, count: int) -> Int64:
        """(count + 1,) where each of `count` ranges begins, and the last ends.

        The ranges cost about the same: they differ by no more than the cost of one sequence. Where
        they would be too short to be worth a start of a job, the last ones are empty.
        """
        most = int(self.residues / max(1.0, self.least * work.least))
        return range_bounds(work.cost(self.length.astype("i8")), count, most)

    def span(self, work: Work, part: Range) -> slice:
        """The sequences of a range."""
        bounds = self.bounds(work, part.count)
        return slice(int(bounds[part.number - 1]), int(bounds[part.number]))


def range_bounds(cost: NDArray[np.number], count: int, most: int) -> Int64:
    """(count + 1,) where each range begins, from the `cost` (U,) of what they consist of.

    Only the first `most` ranges, at least one, are not empty.
    """
    filled = min(count, max(1, most))
    cumulative: Float64 = np.cumsum(cost, dtype=np.float64)
    middle = cumulative - np.asarray(cost, np.float64) / 2
    total = cumulative[-1] if len(cumulative) else 0.0
    bounds = np.full(count + 1, len(middle), np.int64)
    bounds[:filled] = np.searchsorted(middle, np.arange(filled) * (total / filled))
    return bounds


def digit_counts(numbers: Int64) -> Int64:
    """(U,) how many digits each of some `numbers` (U,) has; they are not negative."""
    return np.searchsorted(10 ** np.arange(1, 19), numbers, side="right") + 1


def record_offsets(first: Int64, sizes: Int32) -> Int64:
    """(U + 1,) where each record of a bundle's FASTA begins, and the last ends, in bytes.

    `first` (U,) are their names, `sizes` (U,) the letters of each, chain breaks included.
    """
    offset = np.zeros(len(first) + 1, np.int64)
    np.cumsum(digit_counts(first) + (OPENING + CLOSING) + sizes, out=offset[1:])
    return offset


def write_index(
    path: Path,
    *,
    first: Int64,
    length: Int32,
    offset: Int64,
    digest: NDArray[np.uint64],
    least: int,
) -> None:
    """Write the index of a bundle; see `Bundle`."""
    arrays: dict[str, NDArray[Any]] = {
        "first": first,
        "length": length,
        "offset": offset,
        "digest": digest,
    }
    write_arrays(path, arrays, BUNDLE_ARRAYS, least)


def read_arrays(path: Path, names: Sequence[str], what: str, command: str) -> dict[str, Any]:
    """The arrays `names` of an index, its `least`, and `sha256`, the digest of the file.

    `what` has the index, and which `command` wrote it, is for messages. Raises InputError if the
    file is not one, or has changed since the list of its folder was written.
    """
    try:
        content = path.read_bytes()
        require_listed(path, digest := sha256(content).hexdigest())
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            found = {name: stored[name] for name in names}
            return {**found, "least": int(stored["least"]), "sha256": digest}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give {what} of `{command}`") from None
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); {REMOVE_FOLDER}"
        ) from None
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not the index of {what} ({error}); {REMOVE_FOLDER}") from None


def write_arrays(
    path: Path, arrays: Mapping[str, NDArray[Any]], types: Mapping[str, str], least: int
) -> None:
    """Write the index that `read_arrays` reads. The same arrays give the same bytes."""
    stored: dict[str, Any] = {name: arrays[name].astype(kind) for name, kind in types.items()}
    with open(path, "wb") as file:  # NumPy would append its own suffix to a path
        np.savez(file, **stored, least=np.int64(least))


def index_path(fasta: Path) -> Path:
    """The path of the index next to a bundle's FASTA."""
    return fasta.with_name(fasta.name.removesuffix(FASTA) + INDEX_FILE)


def record_table_of(fasta: Path) -> Path:
    """The path of the table of records next to a bundle's FASTA."""
    return fasta.with_name(fasta.name.removesuffix(FASTA) + RECORD_TABLE)
