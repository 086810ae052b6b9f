"""Inputs as they were when they were read: a list of their digests, in the format of `sha256sum`.

Whether one has changed since is told by the file system: by the time of the last change of the file
itself (ctime), which nobody sets back. Only a file that may have changed is read again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from esm_pipeline.errors import InputError
from esm_pipeline.files import atomic_path
from esm_pipeline.formats.checksums import line, read_list, sha256
from esm_pipeline.formats.fasta import STANDARD_INPUT, shown

State = tuple[int, ...]

MARGIN = 60 * 10**9
"""Nanoseconds before the time of a list in which a file may have changed unseen.

Snakemake sets that time anew when the job has ended that wrote the list."""


def states(files: Iterable[str]) -> list[State]:
    """What the file system says of each file that is there, for `write_inputs`."""
    return [state(file) for file in files if file != STANDARD_INPUT and os.path.exists(file)]


def state(file: str) -> State:
    """Place, bytes and times of a file, which differ when it is changed or replaced."""
    facts = os.stat(file)
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, last_change(file)


def last_change(file: str) -> int:
    """Time (ns) of the last change of a file or of the link that it may be."""
    return max(os.stat(file).st_ctime_ns, os.lstat(file).st_ctime_ns)


def write_inputs(
    target: Path, files: Sequence[str], digests: Sequence[str], before: Sequence[State]
) -> None:
    """Write the digests of inputs, under their paths as given.

    Raises InputError if one was changed while it was read: its state is not that `before`.
    """
    with atomic_path(target) as path:
        with open(path, "wb") as handle:
            handle.writelines(os.fsencode(line(*pair)) for pair in zip(digests, files, strict=True))
        if states(files) != [*before]:
            names = ", ".join(map(shown, files[:3])) + (", …" if len(files) > 3 else "")
            raise InputError(f"{names}: was changed while it was read; run again")


def require_unchanged(listings: Iterable[Path]) -> None:
    """Raise InputError if one of the inputs in the lists has changed since, or cannot be read."""
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
    """The error that an input is not there any more."""
    return InputError(
        f"{shown(file)}: cannot be read any more ({error.strerror}); put the input back"
    )


def changed(file: str, listing: Path) -> InputError:
    """The error that an input is not what it was."""
    return InputError(
        f"{shown(file)}: has changed since the workflow read it; remove {listing} and run the "
        "workflow again"
    )
