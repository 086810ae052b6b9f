"""The sequences of one range of a bundle, as `shard` wrote it: the input of a job.

Only the bytes of the range are read, and checked: each sequence against its digest in the index,
and the index against the list of its folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from esm_pipeline.errors import InputError
from esm_pipeline.formats.bundles import CLOSING, Bundle, Range, Work, index_path
from esm_pipeline.formats.checksums import CHECKSUM_REMEDY
from esm_pipeline.formats.records import OK, Record
from esm_pipeline.tasks.common.sequences import BATCH
from esm_pipeline.tasks.common.unique_sequences import BundlePart


class BundleSequences:
    """The sequences of a range of a bundle; see `UniqueSequences`. Each is one record.

    With `complexes`, sequences of several chains count as unique sequences too. A context manager
    that owns the open FASTA. Takes 40 bytes of memory for each sequence of the bundle. Raises
    InputError for a bundle that is missing or damaged.
    """

    is_idle: bool
    """Whether another range of the bundle says how its results were made: this one has none."""

    def __init__(
        self, fasta: Path, range_: Range, task: str, work: Work, *, complexes: bool = False
    ) -> None:
        bundle = Bundle.open(fasta)
        span = bundle.span(work, range_)
        known = np.ones(len(bundle), bool) if complexes else ~bundle.is_complex
        own = known[span]
        self.is_idle = not len(own) and (len(bundle) > 0 or range_.number > 1)
        self.count = len(own)
        self.lengths = bundle.length[span][own]
        self.first = bundle.first[span][own]
        self.digest = bundle.digest[span][own]
        self.unique = np.where(own, own.cumsum(dtype=np.int32) - 1, np.int32(-1))
        self.part = BundlePart(
            {
                "task": task,
                "bundle": bundle.sha256,
                "range": range_.name,
                "first": str(span.start),
                "stop": str(span.stop),
            },
            bundle.length[known],
        )
        self._names, self._residues = bundle.first[span], bundle.length[span]
        self._offsets = bundle.offset[span.start : span.stop + 1]
        self._places = np.flatnonzero(own)
        try:
            self._file = os.open(fasta, os.O_RDONLY)
        except OSError as error:
            raise InputError(
                f"{fasta}: cannot be read ({error.strerror}); {CHECKSUM_REMEDY}"
            ) from None
        try:
            self._verify(fasta, bundle.digest[span])
        except BaseException:
            self.close()
            raise

    def _verify(self, fasta: Path, digest: NDArray[np.uint64]) -> None:
        """Raise InputError unless all sequences of the range are those of the index."""
        offsets = self._offsets
        begin = 0
        while begin < self.count:
            stop = int(np.searchsorted(offsets, offsets[begin] + BATCH, side="right")) - 1
            stop = max(stop, begin + 1)
            text = os.pread(self._file, int(offsets[stop] - offsets[begin]), int(offsets[begin]))
            starts = (offsets[begin : stop + 1] - offsets[begin]).tolist()
            for place, name in enumerate(self._names[begin:stop].tolist()):
                record = text[starts[place] : starts[place + 1]]
                opening = b">%d\n" % name
                found = int.from_bytes(sha256(record[len(opening) : -CLOSING]).digest()[:8])
                if not (
                    record.startswith(opening)
                    and record.endswith(b"\n")
                    and found == int(digest[begin + place])
                ):
                    raise InputError(
                        f"{fasta}: damaged, its sequence {name} is not that in "
                        f"{index_path(fasta).name}; {CHECKSUM_REMEDY}"
                    )
            begin = stop

    def sequence(self, number: int) -> bytes:
        """Unique sequence `number`, read from the FASTA."""
        place = int(self._places[number])
        begin, end = self._offsets[place : place + 2].tolist()
        return os.pread(self._file, end - begin, begin).partition(b"\n")[2][:-CLOSING]

    def sequences(self, numbers: NDArray[np.integer[Any]]) -> Iterator[bytes]:
        """Unique sequences in the order of `numbers`, read from the FASTA."""
        return map(self.sequence, numbers.tolist())

    def records(self) -> Iterator[Record]:
        """A record for each sequence of the range: its index is its place there."""
        pairs = zip(self._names.tolist(), self._residues.tolist(), strict=True)
        for place, (name, length) in enumerate(pairs):
            yield Record(place, str(name), str(name), length, "", OK)

    def close(self) -> None:
        """Close the FASTA."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
