"""Whole files or none: everything is written beside its target and moved into place.

A temporary file is named after its target, the host and the process. One that a killed process left
behind is thereby known, and removed when its target is written again on the same host. A process
that a signal ends removes its own, with `remove_temporary`.
"""

from __future__ import annotations

import atexit
import errno
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from esm_pipeline.errors import InputError

STEM_BYTES = 100
"""As much of the target's name goes into a temporary file's; a name has at most 255 bytes."""


UNNAMED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What a write or a flush may end in; such an error names no file."""

_temporary_paths: set[Path] = set()
"""Files and folders of this process that are not in their places yet."""

_scratch_folders: set[Path] = set()


@contextmanager
def atomic_path(target: str | os.PathLike[str], *, sweep: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the target's folder; on success it replaces the target.

    The folder is made if need be; a target that is a link stays one, and the file it leads to is
    replaced. On an error the temporary file is removed and the target is left as it was; an OSError
    names the target. The contents reach the disk before the name does. `sweep` removes what killed
    processes left of the same target; whoever writes many files into one folder calls
    `remove_leftovers` once instead. Raises InputError if the target is there and no regular file.
    """
    with atomic_paths(target, sweep=sweep) as (path,):
        yield path


@contextmanager
def atomic_paths(*targets: str | os.PathLike[str], sweep: bool = True) -> Iterator[list[Path]]:
    """The same for files that belong together, of which each vouches for those before it.

    They are moved once all are written. Before that the old ones but the first are removed, from
    the last on: whenever a process is killed, a file stands beside its own or beside none.
    """
    places = [_place(Path(target)) for target in targets]
    paths: list[Path] = []
    try:
        for place in places:
            paths.append(_new_file(place, sweep))
        yield paths
        for path in paths:
            with blaming(path), open(path, "rb+") as written:
                os.fsync(written.fileno())
            path.chmod(0o666 & ~_umask())
        for place in reversed(places[1:]):
            place.unlink(missing_ok=True)
        for path, place in zip(paths, places, strict=True):
            os.replace(path, place)
            _temporary_paths.discard(path)
    except BaseException as error:
        for path in paths:
            with suppress(OSError):  # a disk gone bad; the first error tells more
                path.unlink(missing_ok=True)
                _temporary_paths.discard(path)
        if isinstance(error, OSError):
            _name_targets(error, paths, places)
        raise


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """The same for a folder: yield an empty one beside the target, which it replaces when done.

    What the target held is removed: the caller sees to it that this is its own. Raises InputError
    if the target is there and no folder, or one that cannot be replaced.
    """
    require_replaceable(target)
    target = _resolved(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target.parent, target.name)
    made = [_temporary_path(target) for _ in range(2)]
    folder, old = made
    try:
        for path in made:
            path.mkdir(0o700)
        yield folder
        if hasattr(os, "sync"):
            os.sync()  # one call for all files
        folder.chmod(0o777 & ~_umask())
        if target.exists():
            os.replace(target, old)
        os.replace(folder, target)
    finally:
        for path in made:
            shutil.rmtree(path, ignore_errors=True)
            _temporary_paths.discard(path)


@contextmanager
def scratch_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `target` for something on the way to it, removed in the end."""
    path = _new_file(_place(Path(target)), sweep=False)
    try:
        with blaming(Path(target)):
            yield path
    finally:
        path.unlink(missing_ok=True)
        _temporary_paths.discard(path)


def scratch_folder() -> Path:
    """A new folder among the system's temporary ones, removed when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="esm-pipeline-"))
    _scratch_folders.add(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def remove_temporary(*, ending: bool = False) -> None:
    """Remove what this process has not moved into place, because a signal ended its work.

    When the process is `ending` without the interpreter's own clean-up, its scratch folders too.
    """
    for path in [*_temporary_paths, *(_scratch_folders if ending else ())]:
        for _ in range(3 if ending else 1):  # other threads may still be writing
            with suppress(OSError):
                _remove(path)
    _temporary_paths.clear()


@contextmanager
def blaming(place: Path) -> Iterator[None]:
    """Have an OSError of a write, which names no file, name `place`."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in UNNAMED:
            error.filename = os.fspath(place)
        raise


def _resolved(target: Path) -> Path:
    """The target, or what a link leads to."""
    return Path(os.path.realpath(target)) if target.is_symlink() else target


def _place(target: Path) -> Path:
    """Where a file is to be put: what a link leads to, in a folder that is there."""
    require_regular(target)
    target = _resolved(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _new_file(place: Path, sweep: bool) -> Path:
    """A temporary file beside `place`."""
    if sweep:
        remove_leftovers(place.parent, place.name)
    path = _temporary_path(place)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except OSError as error:
        error.filename = os.fspath(place)
        raise
    return path


def _temporary_path(place: Path) -> Path:
    """A new name for a temporary file or folder beside `place`.

    It is noted before anything is made, so that no signal can come between the two.
    """
    stem, unique = _stem(place.name), secrets.token_hex(4)
    path = place.with_name(f".{stem}.{_host()}-{os.getpid()}.{unique}")
    _temporary_paths.add(path)
    return path


def _name_targets(error: OSError, paths: list[Path], places: list[Path]) -> None:
    """Have an error name targets in place of temporary files; the first, if it names none."""
    names = dict(zip(map(os.fspath, paths), map(os.fspath, places), strict=False))
    if error.filename in names:
        error.filename = names[error.filename]
    elif error.filename is None and error.errno in UNNAMED:
        error.filename = os.fspath(places[0])


def require_regular(target: Path) -> None:
    """Raise InputError if `target`, or what it links to, is there and no regular file."""
    try:
        mode = os.stat(target).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISREG(mode):
        raise InputError(f"{target}: not a regular file; choose another place for the output")


def require_replaceable(target: Path) -> None:
    """Raise InputError if `target`, or what it links to, is there and no folder to replace."""
    if target.exists() and not target.is_dir():
        raise InputError(f"{target}: not a folder; choose another place for the output")
    if os.path.ismount(_resolved(target)):
        raise InputError(
            f"{target}: a mounted file system, which cannot be replaced; choose another place for "
            "the output"
        )


def is_same(path: Path, other: Path) -> bool:
    """Whether two paths, of files that need not exist, lead to the same place."""
    if path.exists() and other.exists():
        return path.samefile(other)
    return os.path.realpath(path) == os.path.realpath(other)


def require_apart(outputs: Sequence[Path], inputs: Iterable[Path]) -> None:
    """Raise InputError if an output would replace an input, or another output."""
    for place, output in enumerate(outputs):
        for other in (*inputs, *outputs[:place]):
            if is_same(output, other):
                raise InputError(f"{output}: stands for two files here; name another file for one")


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files and folders in `folder` of this host's processes that are no more.

    Those of the target `name` only, if it is given. Others' files are left where they are.
    """
    stem = None if name is None else _stem(name)
    with suppress(PermissionError):  # of listing, or of removing what belongs to someone else
        for entry in (name for name in os.listdir(folder) if name.startswith(".")):
            found = _temporary(entry)
            if found and stem in (None, _stem(entry)) and not _is_alive(int(found["pid"])):
                _remove(folder / entry)


def _remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _temporary(name: str) -> re.Match[str] | None:
    """The stem and pid in `name` if it is a temporary file's of this host."""
    pattern = rf"\.(?P<stem>.+)\.{re.escape(_host())}-(?P<pid>[0-9]{{1,10}})\.[a-z0-9_]{{8}}"
    return re.fullmatch(pattern, name)


def _stem(name: str) -> str:
    """What of a target's name stands in a temporary file's, one of a temporary file's included."""
    while found := _temporary(name):
        name = found["stem"]
    return os.fsdecode(os.fsencode(name)[:STEM_BYTES])


def _host() -> str:
    return socket.gethostname()[:64]


def _is_alive(pid: int) -> bool:
    """Whether this host has a process `pid`, another user's included."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def require_folder(path: str | os.PathLike[str]) -> None:
    """Raise InputError for a folder to write into that is something else."""
    if os.path.exists(path) and not os.path.isdir(path):
        raise InputError(f"{os.fspath(path)}: not a folder; give one to write into")
