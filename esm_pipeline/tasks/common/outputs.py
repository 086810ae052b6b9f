"""Where a task's results go, checked before anything is computed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from esm_pipeline.errors import InputError
from esm_pipeline.files import is_same, require_regular
from esm_pipeline.formats.checksums import write_digests
from esm_pipeline.formats.fasta import STANDARD_INPUT


def check_output(
    output: Path, inputs: Iterable[str], others: Iterable[Path | None], suffixes: Sequence[str]
) -> Path:
    """Where the table of records goes, beside `output`, whose suffix is one of `suffixes`.

    Raises InputError if it, `output` or one of the `others` cannot be written, or would replace
    another or one of the `inputs`.
    """
    if not output.name:
        raise InputError(f"{output}: a folder; name a file for the output")
    stem = output.stem if output.suffix.lower() in suffixes else output.name
    table = output.with_name(f"{stem}.records.tsv")
    places = {"the output itself": output, "the table of records": table}
    taken = [
        ("the input itself", Path("/dev/stdin" if path == STANDARD_INPUT else path))
        for path in inputs
    ]
    more = [("another output", path) for path in others if path is not None]
    for what, path in (*places.items(), *more):
        if path.is_dir():
            raise InputError(f"{path}: a folder; name a file for the output")
        require_regular(path)
        parent = next(parent for parent in path.parents if parent.exists())
        if not parent.is_dir():
            raise InputError(f"{parent}: not a folder; choose another one for the output")
        for other, file in taken:
            if is_same(path, file):
                raise InputError(f"{path}: {other}; name another file for the output")
        taken.append((what, path))
    return table


def vouch(path: Path, digests: Path, files: Mapping[Path, Path]) -> None:
    """Write to `path` what will be the list `digests`: those of `files`, by where they will be."""
    folder = digests.parent
    write_digests(path, {os.path.relpath(to, folder): file for to, file in files.items()})
