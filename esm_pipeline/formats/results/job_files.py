"""What the file of one job holds besides its results: an outcome of each sequence, and a digest.

    outcome/status (S,)      `ok`, `skipped` or `failed` as a byte of STATUS_CODES
    outcome/reason (S,)      place in `outcome/reasons`; -1 for none
    outcome/reasons (M,)     the different reasons, as text
    digest (1,)              SHA-256 of all other datasets and of the attributes, in hexadecimal

The digest covers names, types, shapes and values, not the bytes of the file: how HDF5 arranges them
does not matter. Whoever gathers the files checks it, since Snakemake does not notice a file that
was damaged.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

import h5py
import numpy as np

from esm_pipeline.arrays import Int32, UInt8
from esm_pipeline.formats.records import FAILED, OK, SKIPPED, Outcome
from esm_pipeline.formats.results.attributes import read_attributes
from esm_pipeline.formats.results.hdf5_file import write_at
from esm_pipeline.formats.results.validation import (
    datasets,
    open_hdf5,
    read_texts,
    require,
    require_contiguous,
)

STATUS_CODES = {OK: 1, SKIPPED: 2, FAILED: 3}
STATUS_OF_CODE = {code: status for status, code in STATUS_CODES.items()}
OUTCOME_STATUS, OUTCOME_REASON = "outcome/status", "outcome/reason"
OUTCOME_REASONS = "outcome/reasons"
DIGEST = "digest"
DIGEST_TYPE = "|S64"
HASHED_BYTES = 8 << 20
"""Bytes of values that are read at a time for the digest."""


class StoredOutcomes:
    """The outcomes of S sequences, as arrays. A sequence of `Outcome`."""

    def __init__(self, codes: UInt8, reason: Int32, reasons: list[str]) -> None:
        self.codes, self.reason, self.reasons = codes, reason, reasons

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> StoredOutcomes:
        """Those of some `outcomes`."""
        places: dict[str, int] = {"": -1}
        codes, reason = bytearray(), []
        for outcome in outcomes:
            codes.append(STATUS_CODES[outcome.status])
            reason.append(places.setdefault(outcome.reason, len(places) - 1))
        del places[""]
        return cls(np.frombuffer(codes, np.uint8), np.array(reason, np.int32), [*places])

    @classmethod
    def read(cls, file: h5py.File) -> StoredOutcomes:
        """Those in a file. Raises ValueError or KeyError if they are malformed."""
        codes, reason = file[OUTCOME_STATUS][...], file[OUTCOME_REASON][...]
        reasons = read_texts(file, OUTCOME_REASONS)
        require(
            codes.dtype == np.uint8 and np.isin(codes, (*STATUS_OF_CODE,)).all(), OUTCOME_STATUS
        )
        require(reason.dtype == np.int32 and reason.shape == codes.shape, OUTCOME_REASON)
        require(((reason >= -1) & (reason < len(reasons))).all(), OUTCOME_REASON)
        return cls(codes, reason, reasons)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, place: int) -> Outcome:
        number = int(self.reason[place])
        return Outcome(
            STATUS_OF_CODE[int(self.codes[place])], self.reasons[number] if number >= 0 else ""
        )

    def __iter__(self) -> Iterator[Outcome]:
        return (self[place] for place in range(len(self)))


def lay_out_job(file: h5py.File, outcomes: StoredOutcomes) -> None:
    """Add the outcomes, and the place of the digest, to a new file; `seal` fills it in."""
    from esm_pipeline.formats.results.writer import create_flat

    create_flat(file, OUTCOME_STATUS, "|u1", outcomes.codes.shape)[...] = outcomes.codes
    create_flat(file, OUTCOME_REASON, "<i4", outcomes.reason.shape)[...] = outcomes.reason
    texts = file.create_dataset(
        OUTCOME_REASONS, (len(outcomes.reasons),), h5py.string_dtype(), track_times=False
    )
    texts[...] = outcomes.reasons
    create_flat(file, DIGEST, DIGEST_TYPE, (1,))[...] = b""


def seal(path: str | os.PathLike[str]) -> None:
    """Write the digest into a complete file. Raises OSError."""
    with open_hdf5(path) as file:
        digest, place = contents_digest(file), file[DIGEST].id.get_offset()
    number = os.open(path, os.O_WRONLY)
    try:
        write_at(number, place, memoryview(digest.encode()))
    finally:
        os.close(number)


def check_seal(file: h5py.File) -> None:
    """Raise ValueError or KeyError unless the file has the digest of its contents."""
    found = contents_digest(file)  # which also checks where the data are
    if bytes(file[DIGEST][0]).decode("ascii") != found:
        raise ValueError("its digest is not that of its contents")


def contents_digest(file: h5py.File) -> str:
    """SHA-256 of all datasets but the digest, and of all attributes, in hexadecimal.

    Raises ValueError, KeyError or TypeError for data that are not in the file, or of no known type.
    """
    digest = hashlib.sha256(json.dumps(facts(read_attributes(file)), sort_keys=True).encode())
    file_bytes = os.fstat(file.id.get_vfd_handle()).st_size
    found = dict(datasets(file))
    require(DIGEST in found, DIGEST)
    for name, item in sorted(found.items()):
        require_contiguous(name, item, file_bytes)
        if name == DIGEST:
            require(item.dtype == DIGEST_TYPE and item.shape == (1,), DIGEST)
            continue
        own = facts(read_attributes(item))
        digest.update(json.dumps([name, item.dtype.str, item.shape, own], sort_keys=True).encode())
        string = h5py.check_string_dtype(item.dtype)
        if string and string.length is None:
            digest.update(json.dumps(read_texts(file, name)).encode())
            continue
        require(item.ndim and item.dtype.kind in "fiuS", name)
        rows = max(1, HASHED_BYTES // max(1, item.dtype.itemsize * int(np.prod(item.shape[1:]))))
        for first in range(0, len(item), rows):
            digest.update(np.ascontiguousarray(item[first : first + rows]).data)
    return digest.hexdigest()


def facts(attributes: dict[str, Any]) -> dict[str, Any]:
    """Attributes as values for JSON."""
    return {
        name: value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value
        for name, value in attributes.items()
    }
