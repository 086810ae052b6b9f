"""Room on the disk for the results of a job, looked at before it computes anything."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from esm_pipeline.errors import CapacityError
from esm_pipeline.formats.results.layout import Array, unit_starts

MEGABYTE = 1e6


def array_bytes(arrays: Iterable[Array], lengths: NDArray[Any]) -> int:
    """Bytes of some arrays of sequences of `lengths` (U,) residues."""
    return sum(array.item_bytes * int(unit_starts(lengths, array.per)[-1]) for array in arrays)


def require_room(
    path: Path, arrays: Iterable[Array], lengths: NDArray[Any], bundle_lengths: NDArray[Any]
) -> None:
    """Raise CapacityError unless the disk of `path` has room for a job's file and its bundle's.

    Both have `arrays`, of sequences of `lengths` (U,) and `bundle_lengths` residues: the gathered
    result is written while the files of all jobs are still there.
    """
    arrays = list(arrays)
    own, gathered = array_bytes(arrays, lengths), array_bytes(arrays, bundle_lengths)
    free = shutil.disk_usage(path.parent).free
    if own + gathered > free:
        sizes = [f"{size / MEGABYTE:,.1f} MB" for size in (own, gathered, free)]
        raise CapacityError(
            f"{path.parent}: this job needs {sizes[0]} of disk space and the result of its bundle "
            f"{sizes[1]}, but {sizes[2]} are free; free some or choose another place"
        )
