"""What the ending of an output's name says: the kind of file that is written, or that none is."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from esm_pipeline.errors import InputError

HDF5 = (".h5", ".hdf5")
OF_FILES = {
    *(".pdb", ".ent", ".cif", ".mmcif", ".bcif", ".fasta", ".fa", ".faa", ".fna", ".a3m", ".aln"),
    *(*HDF5, ".hdf", ".npy", ".npz", ".pt", ".pkl", ".parquet", ".csv", ".tsv", ".txt", ".xlsx"),
    *(".json", ".yaml", ".xml", ".html", ".md", ".log", ".png", ".svg", ".pdf"),
    *(".zip", ".gz", ".tar", ".tgz", ".bz2", ".xz", ".zst"),
}
"""Endings that no folder should have."""


def ending_of(path: Path, endings: Collection[str]) -> str:
    """The ending of a file's name, in lower case. Raises InputError for one not among `endings`."""
    ending = path.suffix.lower()
    if ending not in endings:
        raise InputError(f"{path}: cannot be written; let its name end in {', '.join(endings)}")
    return ending


def require_folder_name(path: Path, what: str) -> None:
    """Raise InputError for a new folder whose name says that it is a file.

    what: is written into it, in words.
    """
    ending = path.suffix.lower()
    if ending in OF_FILES and not path.exists():
        raise InputError(
            f"{path}: {what} go into a folder, and {ending} is the ending of a file; name a folder"
        )
