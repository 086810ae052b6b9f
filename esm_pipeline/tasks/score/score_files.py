"""The file of one job that scores a range of a variant table.

    row (n,)              number of each row in the table, ascending
    protein (P,)          index of the first record of each wild type
    scores (n, C)         NaN where there is none
    outcome/… (n + P,)    outcomes of the rows, and then of the proteins; see `job_files`
    digest (1,)           of all that

Attributes: `bundle`, `range`, `first`, `stop` (the groups of the bundle), `columns` (of the scores,
as JSON) and, if any model was opened, `provenance` (as JSON).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from esm_pipeline.arrays import Float64, Int64
from esm_pipeline.errors import DamagedError, InputError
from esm_pipeline.formats.bundles import Range, range_names
from esm_pipeline.formats.checksums import CHECKSUM_REMEDY
from esm_pipeline.formats.results.attributes import json_attribute, text_attribute
from esm_pipeline.formats.results.hdf5_file import create_hdf5
from esm_pipeline.formats.results.job_files import StoredOutcomes, check_seal, lay_out_job, seal
from esm_pipeline.formats.results.layout import FORMAT_VERSION
from esm_pipeline.formats.results.validation import open_hdf5, reading, require
from esm_pipeline.formats.results.writer import create_flat
from esm_pipeline.formats.variant_bundles import VariantBundle

SCORES_FORMAT = "esm-pipeline/variant-scores"


@dataclass(frozen=True)
class RangeScores:
    """What one job found out: the scores of n rows, and the outcomes of these and of P proteins."""

    rows: Int64
    """(n,) their numbers in the table."""
    proteins: Int64
    """(P,) index of the first record of each wild type."""
    scores: Float64
    """(n, C)."""
    outcomes: StoredOutcomes
    """(n + P,) of the rows, and then of the proteins."""
    columns: list[str]
    """(C,) names of the scores."""
    provenance: dict[str, Any] | None
    """Settings, models and versions; None if no model was opened."""

    @classmethod
    def none(cls, columns: list[str]) -> RangeScores:
        """Those of an empty range."""
        none = np.empty(0, np.int64)
        scores = np.empty((0, len(columns)))
        return cls(none, none, scores, StoredOutcomes.of(()), columns, None)


def write_range_scores(path: Path, found: RangeScores, attributes: Mapping[str, str]) -> None:
    """Write the file of a job; the `attributes` identify its range. Raises OSError."""

    def write() -> None:
        with create_hdf5(path) as (file, _):
            file.attrs.update(
                {
                    **attributes,
                    "format": SCORES_FORMAT,
                    "format_version": FORMAT_VERSION,
                    "columns": json.dumps(found.columns),
                }
            )
            if found.provenance is not None:
                file.attrs["provenance"] = json.dumps(found.provenance)
            create_flat(file, "row", "<i8", found.rows.shape)[...] = found.rows
            create_flat(file, "protein", "<i8", found.proteins.shape)[...] = found.proteins
            create_flat(file, "scores", "<f8", found.scores.shape)[...] = found.scores
            lay_out_job(file, found.outcomes)
        seal(path)

    # In a thread: a signal may interrupt the main thread anywhere, but must not interrupt HDF5.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(write).result()


def score_files(
    folder: Path, count: int, bundle: VariantBundle
) -> Iterator[tuple[Path, RangeScores]]:
    """The files of the `count` jobs that score the ranges of a bundle.

    Raises InputError for one that is missing, damaged or of another bundle, and unless each begins
    where the one before it ends.
    """
    ends = np.concatenate([[0], np.cumsum(bundle.rows, dtype=np.int64)])
    done, names = 0, range_names(count)
    for name in names:
        path = folder / f"{name}.h5"
        first, stop, found = read_range_scores(path, bundle.sha256)
        last = len(bundle) if name == names[-1] else stop
        if first != done or stop != last or not first <= stop <= len(bundle):
            raise InputError(
                f"{path}: has groups {first} to {stop} of {len(bundle)}, which does not fit to the "
                f"ranges before it, up to {done}; {CHECKSUM_REMEDY}"
            )
        if len(found.rows) != ends[stop] - ends[first]:
            raise InputError(f"{path}: does not have the rows of its range; {CHECKSUM_REMEDY}")
        done = stop
        yield path, found


def read_range_scores(path: Path, bundle: str) -> tuple[int, int, RangeScores]:
    """The first group of the range in a file, the end of the last one, and the scores.

    Raises InputError for a file that is missing, damaged, or does not belong to the bundle with
    this digest or to the range that it is named after.
    """
    try:
        with open_hdf5(path) as file, reading(path):
            check_seal(file)
            require(text_attribute(file, "format") == SCORES_FORMAT, "format")
            if text_attribute(file, "bundle") != bundle:
                raise InputError(f"{path}: is of another variant table; {CHECKSUM_REMEDY}")
            part = Range.parse(text_attribute(file, "range")).name
            if part != path.stem:
                raise InputError(f"{path}: is the range {part}; {CHECKSUM_REMEDY}")
            first, stop = (int(text_attribute(file, name)) for name in ("first", "stop"))
            return first, stop, scores_in(file)
    except DamagedError as error:
        raise InputError(f"{path}: damaged ({error.why}); {CHECKSUM_REMEDY}") from None


def scores_in(file: h5py.File) -> RangeScores:
    """The scores in the file of a job. Raises ValueError or KeyError if it is malformed."""
    rows, proteins, scores = (file[name][...] for name in ("row", "protein", "scores"))
    outcomes = StoredOutcomes.read(file)
    columns = json_attribute(file, "columns", list)
    shapes: dict[str, tuple[NDArray[Any], str, tuple[int, ...]]] = {
        "row": (rows, "<i8", (len(rows),)),
        "protein": (proteins, "<i8", (len(outcomes) - len(rows),)),
        "scores": (scores, "<f8", (len(rows), len(columns))),
    }
    for name, (values, kind, shape) in shapes.items():
        require(values.dtype == kind and values.shape == shape, name)
    require((np.diff(rows) > 0).all() and (rows[:1] >= 0).all(), "row")
    found = "provenance" in file.attrs
    provenance = json_attribute(file, "provenance", dict) if found else None
    return RangeScores(rows, proteins, scores, outcomes, columns, provenance)
