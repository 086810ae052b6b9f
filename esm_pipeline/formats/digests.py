"""SHA-256 digests beside the files they belong to, in the format of `sha256sum`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from esm_pipeline.errors import InputError
from esm_pipeline.files import blaming

REMEDY = "remove it and run the workflow again"


def sha256(path: Path) -> str:
    """Digest of the file's bytes, in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_digests(path: Path, files: Mapping[str, Path]) -> None:
    """Write the digests of `files`, each under its name: a path from the list's folder.

    `sha256sum --check`, run there, accepts the list.
    """
    lines = [line(sha256(file), name) for name, file in files.items()]
    with blaming(path):
        path.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")


def line(digest: str, name: str) -> str:
    """A line of such a list."""
    return f"{digest}  {name}\n"


def check_digests(digests: Path, files: Sequence[Path]) -> None:
    """Check `files`, which `digests` lists, and no others.

    Raises InputError that names the file that is missing, damaged or not listed.
    """
    try:
        lines = digests.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InputError(f"{digests}: no such file; run the workflow again to make it") from None
    except UnicodeDecodeError:
        raise InputError(f"{digests}: no list of digests; {REMEDY}") from None
    listed = []
    for number, line in enumerate(lines, 1):
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not name:
            raise InputError(f"{digests}:{number}: not a digest and a file name; {REMEDY}")
        listed.append(file := digests.parent / name)
        if file not in files:
            raise InputError(f"{digests}:{number}: {name!a} is no file of this shard; {REMEDY}")
        if not file.is_file():
            raise InputError(
                f"{file}: no such file, but {digests.name} lists it; remove {digests} and run the "
                "workflow again"
            )
        if sha256(file) != digest:
            raise InputError(f"{file}: damaged, its digest is not that in {digests.name}; {REMEDY}")
    for file in files:
        if file not in listed:
            raise InputError(f"{digests}: does not list {file.name}; {REMEDY}")
