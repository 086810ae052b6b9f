"""The files of a result in a folder: of a sample, or of a result with a file for each bundle."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from esm_pipeline.errors import InputError
from esm_pipeline.formats.bundles import FASTA
from esm_pipeline.settings.result_names import BY_BUNDLE, bundle_names

BUNDLE_NAME = "[0-9]{5,}"
"""The name of a bundle, as a regular expression."""

BUNDLES_FOLDER = "bundles"
"""The folder of a sample with its bundles."""


def files_of_result(folder: str | os.PathLike[str], names: Sequence[str]) -> list[str]:
    """The files in a folder of the result that has one of the usual `names`.

    `folder` is that of a sample, or has the files of a result, one for each bundle. Raises
    InputError if there is no result, more than one, or a bundle is missing.
    """
    place = Path(folder)
    if bundles_in(place, ".h5"):
        return files_of_bundles(place)
    found = [path for name in names for path in places_of_result(place, name)]
    if not found:
        raise InputError(f"{folder}: has no results; give the path of {alternatives(names)}")
    if len(found) > 1:
        raise InputError(
            f"{folder}: has several results; give one: {alternatives(map(str, found))}"
        )
    return files_of_bundles(found[0]) if found[0].is_dir() else [os.fspath(found[0])]


def has_results(folder: str | os.PathLike[str], names: Sequence[str]) -> bool:
    """Whether a folder has a result with one of the usual `names`, or files of bundles."""
    place = Path(folder)
    return bool(bundles_in(place, ".h5")) or any(places_of_result(place, name) for name in names)


def places_of_result(sample: Path, name: str) -> list[Path]:
    """Where a sample has the result with the usual `name`: a file, or a folder of files."""
    folder = (sample / BY_BUNDLE[name]).parent
    file = sample / name
    return [*([file] if file.is_file() else []), *([folder] if bundles_in(folder, ".h5") else [])]


def files_of_bundles(folder: Path) -> list[str]:
    """The files of all bundles in a folder, in order.

    Raises InputError if one is missing, or if the sample has fewer bundles than there are files.
    """
    found, bundles = bundles_in(folder, ".h5"), bundles_in(folder.parent / BUNDLES_FOLDER, FASTA)
    expected = bundle_names(len(bundles or found))
    if missing := next((name for name in expected if name not in found), None):
        raise InputError(
            f"{folder}: {missing}.h5 is missing; run the workflow again, or give a whole folder"
        )
    if other := next((name for name in found if name not in expected), None):
        raise InputError(
            f"{folder / other}.h5: not of the last run, which has {len(expected):,} bundles; "
            "remove it"
        )
    return [os.fspath(folder / f"{name}.h5") for name in found]


def bundles_in(folder: Path, suffix: str) -> list[str]:
    """The bundles that have a file with `suffix` in a folder, in order."""
    if not folder.is_dir():
        return []
    pattern = re.compile(f"({BUNDLE_NAME}){re.escape(suffix)}")
    return sorted(match[1] for name in os.listdir(folder) if (match := pattern.fullmatch(name)))


def alternatives(names: Iterable[str]) -> str:
    """Names for a message: `a, b or c`."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
