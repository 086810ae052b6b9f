"""Whole files or none: everything is written beside its target and moved into place."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the target's folder; on success it replaces the target.

    The folder is made if need be. On an error the temporary file is removed and the target is left
    as it was. The contents reach the disk before the name does.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name[:100]}.", dir=target.parent)
    os.close(handle)
    path = Path(name)
    try:
        yield path
        with open(path, "rb+") as written:
            os.fsync(written.fileno())
        path.chmod(0o666 & ~_umask())
        os.replace(path, target)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
