"""Where a task's results go, and in which format: checked before anything is computed."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from esm_pipeline.errors import InputError
from esm_pipeline.files import is_same, require_regular
from esm_pipeline.formats.checksums import write_digests
from esm_pipeline.formats.fasta import STANDARD_INPUT

HDF5 = (".h5", ".hdf5")
OF_FILES = {
    *(".pdb", ".ent", ".cif", ".mmcif", ".bcif", ".fasta", ".fa", ".faa", ".fna", ".a3m", ".aln"),
    *(*HDF5, ".hdf", ".npy", ".npz", ".pt", ".pkl", ".parquet", ".csv", ".tsv", ".txt", ".xlsx"),
    *(".json", ".yaml", ".xml", ".html", ".md", ".log", ".png", ".svg", ".pdf"),
    *(".zip", ".gz", ".tar", ".tgz", ".bz2", ".xz", ".zst"),
}
"""Endings of files, which a folder should not have."""


def check_output(
    output: Path, inputs: Iterable[str], others: Iterable[Path | None], suffixes: Sequence[str]
) -> Path:
    """The table of records that goes next to `output`, whose suffix is one of `suffixes`.

    Raises InputError if the table, `output` or one of the `others` cannot be written, or would
    replace another or one of the `inputs`.
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


def ending_of(path: Path, endings: Collection[str]) -> str:
    """The ending of a file's name, in lower case. Raises InputError if not one of `endings`."""
    ending = path.suffix.lower()
    if ending not in endings:
        raise InputError(f"{path}: cannot be written; let its name end in {', '.join(endings)}")
    return ending


def require_folder_name(path: Path, what: str) -> None:
    """Raise InputError for a new folder whose name looks like that of a file.

    what: what goes into it, for the message.
    """
    ending = path.suffix.lower()
    if ending in OF_FILES and not path.exists():
        raise InputError(
            f"{path}: {what} go into a folder, and {ending} is the ending of a file; name a folder"
        )


def write_checksums(path: Path, digests: Path, files: Mapping[Path, Path]) -> None:
    """Write the checksums of `files` (final place → where it is now) to `path`.

    `digests` is the final place of the list; names in it are relative to its folder.
    """
    folder = digests.parent
    write_digests(path, {os.path.relpath(to, folder): file for to, file in files.items()})
