"""Lists of SHA-256 digests in the format of `sha256sum`, next to the files they describe.

The result of a bundle has its own list, `{bundle}.sha256`. Other files that one command writes and
another reads are in the list of their folder, `digests.sha256`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

from esm_pipeline.errors import InputError
from esm_pipeline.files import naming_errors

LISTING = "digests.sha256"
"""Name of the list of a folder."""

CHECKSUM_REMEDY = "remove it and run the workflow again"
LINES = 1024
"""Lines that are written at a time."""


def sha256(path: Path) -> str:
    """Digest of the file's bytes, in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_digests(path: Path, files: Mapping[str, Path]) -> None:
    """Write the digests of `files`, by name: the path relative to the folder of the list.

    `sha256sum --check`, run there, accepts the list.
    """
    lines = [line(sha256(file), name) for name, file in files.items()]
    with naming_errors(path):
        path.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")


def write_lines(path: Path, lines: Iterable[bytes]) -> str:
    """Write a new file; returns its digest."""
    digest, rest = hashlib.sha256(), iter(lines)
    with naming_errors(path), open(path, "wb") as file:
        while block := b"".join(islice(rest, LINES)):
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def line(digest: str, name: str) -> str:
    """A line of a list."""
    return f"{digest}  {name}\n"


def read_list(digests: Path) -> Iterator[tuple[str, str]]:
    """Digest and name of each file in a list. Raises InputError, with the line, if malformed."""
    try:
        with open(digests, encoding="utf-8", errors="surrogateescape", newline="\n") as handle:
            for number, text in enumerate(handle, 1):
                digest, _, name = text.removesuffix("\n").partition("  ")
                if len(digest) != 64 or not name:
                    raise InputError(
                        f"{digests}:{number}: not a digest and a file name; {CHECKSUM_REMEDY}"
                    )
                yield digest, name
    except FileNotFoundError:
        raise InputError(f"{digests}: no such file; run the workflow again to make it") from None
    except OSError as error:
        raise InputError(
            f"{digests}: cannot be read ({error.strerror}); {CHECKSUM_REMEDY}"
        ) from None


def listed_digest(path: Path, digests: Path | None = None) -> str | None:
    """The digest of `path` in the list `digests`, by default that of its folder.

    None if there is no such list, or `path` is not in it. Raises InputError for a malformed list.
    """
    digests = digests or path.parent / LISTING
    if not digests.exists() or not path.exists():
        return None
    wanted = os.path.relpath(path, digests.parent)
    return next((digest for digest, name in read_list(digests) if name == wanted), None)


def check_listed(path: Path, digests: Path | None = None) -> None:
    """Raise InputError unless `path` has its digest in the list `digests`, or that of its folder.

    Without a list nothing is checked. Reading the file once takes little time compared with parsing
    it.
    """
    digest, digests = listed_digest(path, digests), digests or path.parent / LISTING
    if digest is None and path.exists() and digests.exists():
        raise InputError(f"{digests}: does not list {path.name}; {CHECKSUM_REMEDY}")
    if digest is not None and sha256(path) != digest:
        raise wrong_digest(path, digests.name)


def check_if_listed(path: Path, digest: str | None = None) -> None:
    """The same for a file that may be one of `shard`, or a user's own, which is in no list.

    `digest` is that of the file, if it is known already.
    """
    listed = listed_digest(path)
    if listed is not None and listed != (digest or sha256(path)):
        raise wrong_digest(path, LISTING)


def require_listed(path: Path, digest: str) -> None:
    """Raise InputError unless the list of the folder of `path` has this `digest` for it."""
    digests = path.parent / LISTING
    listed = next((found for found, name in read_list(digests) if name == path.name), None)
    if listed is None:
        raise InputError(f"{digests}: does not list {path.name}; {CHECKSUM_REMEDY}")
    if listed != digest:
        raise wrong_digest(path, LISTING)


def wrong_digest(path: Path, listing: str) -> InputError:
    """The error that a file differs from its digest in a list."""
    return InputError(f"{path}: damaged, its digest is not that in {listing}; {CHECKSUM_REMEDY}")
