"""Digests of the inputs as they were when they were read, in the format of `sha256sum`.

The file system shows whether an input may have changed since: by the time of its last change
(ctime), which users cannot set back. Only a file that may have changed is read again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from esm_pipeline.errors import InputError
from esm_pipeline.files import atomic_path
from esm_pipeline.formats.checksums import line, read_list, sha256
from esm_pipeline.formats.fasta import STANDARD_INPUT, shown

FileState = tuple[int, ...]
"""Device, inode, bytes and times of a file: they differ when it is changed or replaced."""

MARGIN = 60 * 10**9
"""Nanoseconds before the time of a list in which a change may go unnoticed.

Snakemake updates that time when the job that wrote the list has ended."""


def states(files: Iterable[str]) -> list[FileState]:
    """The state of each file that exists, for `write_inputs`."""
    return [state(file) for file in files if file != STANDARD_INPUT and os.path.exists(file)]


def state(file: str) -> FileState:
    """The state of one file."""
    facts = os.stat(file)
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, last_change(file)


def last_change(file: str) -> int:
    """Time (ns) of the last change of a file, or of the link to it."""
    return max(os.stat(file).st_ctime_ns, os.lstat(file).st_ctime_ns)


def write_inputs(
    target: Path, files: Sequence[str], digests: Sequence[str], before: Sequence[FileState]
) -> None:
    """Write the digests of input `files`, by their paths from the working folder.

    Raises InputError if a file was changed while it was read: its state differs from `before`.
    """
    with atomic_path(target) as path:
        with open(path, "wb") as handle:
            names = map(listed_name, files)
            handle.writelines(os.fsencode(line(*pair)) for pair in zip(digests, names, strict=True))
        if states(files) != [*before]:
            some = ", ".join(map(shown, files[:3])) + (", …" if len(files) > 3 else "")
            raise InputError(f"{some}: was changed while it was read; run again")


def listed_name(file: str) -> str:
    """The name of an input in a list: a path from the working folder, never an absolute one."""
    return os.path.relpath(file) if os.path.isabs(file) else file


def require_unchanged(listings: Iterable[Path]) -> None:
    """Raise InputError if an input in the lists has changed since, or cannot be read."""
    for listing in listings:
        written = listing.stat().st_mtime_ns if listing.exists() else 0
        for digest, name in read_list(listing):
            try:
                same = last_change(name) < written - MARGIN or sha256(Path(name)) == digest
            except OSError as error:
                raise gone(name, error) from None
            if not same:
                raise changed(name, listing)


def gone(file: str, error: OSError) -> InputError:
    """The error that an input cannot be read any more."""
    return InputError(
        f"{shown(file)}: cannot be read any more ({error.strerror}); put the input back"
    )


def changed(file: str, listing: Path) -> InputError:
    """The error that an input has changed."""
    return InputError(
        f"{shown(file)}: has changed since the workflow read it; remove {listing} and run the "
        "workflow again"
    )
