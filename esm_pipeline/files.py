"""Complete files or none: everything is written next to its target, then moved into place.

The name of a temporary file contains its target, the host and the process. So the leftovers of a
killed process are recognised, and removed when their target is written again on the same host. A
process that a signal ends removes its own files with `remove_temporary`.
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
"""Most bytes of the target's name in that of a temporary file; a name has at most 255 bytes."""

UNNAMED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Errors of writing and flushing, which do not name the file."""

_temporary_paths: set[Path] = set()
"""Files and folders of this process that are not moved into place yet."""

_scratch_folders: set[Path] = set()


@contextmanager
def atomic_path(target: str | os.PathLike[str], *, sweep: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the target's folder; on success the file replaces the target.

    The folder is created if necessary. A target that is a link stays a link: the linked file is
    replaced. On an error the temporary file is removed and the target stays unchanged; an OSError
    names the target. The contents reach the disk before the name does. `sweep` removes the
    leftovers of killed processes for this target; a caller that writes many files into one folder
    calls `remove_leftovers` once instead. Raises InputError if the target exists and is not a
    regular file.
    """
    with atomic_paths(target, sweep=sweep) as (path,):
        yield path


@contextmanager
def atomic_paths(*targets: str | os.PathLike[str], sweep: bool = True) -> Iterator[list[Path]]:
    """The same for files that belong together, each with the checksums of those before it.

    They are moved when all are written. Before that, the old ones except the first are removed, the
    last one first: whenever the process is killed, no old file is next to a new one.
    """
    places = [_place(Path(target)) for target in targets]
    paths: list[Path] = []
    try:
        for place in places:
            paths.append(_new_file(place, sweep))
        yield paths
        for path in paths:
            with naming_errors(path), open(path, "rb+") as written:
                os.fsync(written.fileno())
            path.chmod(0o666 & ~_umask())
        for place in reversed(places[1:]):
            place.unlink(missing_ok=True)
        for path, place in zip(paths, places, strict=True):
            os.replace(path, place)
            _temporary_paths.discard(path)
    except BaseException as error:
        for path in paths:
            with suppress(OSError):  # of a failing disk; the first error says more
                path.unlink(missing_ok=True)
                _temporary_paths.discard(path)
        if isinstance(error, OSError):
            _name_targets(error, paths, places)
        raise


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """The same for a folder: yield an empty one next to the target, which it replaces at the end.

    The contents of the target are removed: the caller makes sure that they are its own. Raises
    InputError if the target exists and is not a folder, or a folder that cannot be replaced.
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
    """Yield a temporary path next to `target` for intermediate data; it is removed at the end."""
    path = _new_file(_place(Path(target)), sweep=False)
    try:
        with naming_errors(Path(target)):
            yield path
    finally:
        path.unlink(missing_ok=True)
        _temporary_paths.discard(path)


def scratch_folder() -> Path:
    """A new folder in the system's temporary folder, removed when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="esm-pipeline-"))
    _scratch_folders.add(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def remove_temporary(*, ending: bool = False) -> None:
    """Remove the temporary files of this process, whose work a signal ended.

    If the process is `ending` without Python's own clean-up, remove its scratch folders as well.
    """
    for path in [*_temporary_paths, *(_scratch_folders if ending else ())]:
        for _ in range(3 if ending else 1):  # other threads may still be writing
            with suppress(OSError):
                _remove(path)
    _temporary_paths.clear()


@contextmanager
def naming_errors(place: Path) -> Iterator[None]:
    """Add the file name `place` to an OSError of writing, which has none."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in UNNAMED:
            error.filename = os.fspath(place)
        raise


def unreadable_file(place: str | os.PathLike[str], error: OSError) -> InputError:
    """The error that a file cannot be read, which does not say that it is damaged."""
    return InputError(
        f"{os.fspath(place)}: cannot be read ({error.strerror}); check its permissions and disk"
    )


def _resolved(target: Path) -> Path:
    """The target, or the path that it links to."""
    return Path(os.path.realpath(target)) if target.is_symlink() else target


def _place(target: Path) -> Path:
    """The path to write, links resolved; its folder is created."""
    require_regular(target)
    target = _resolved(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _new_file(place: Path, sweep: bool) -> Path:
    """Create a temporary file next to `place`."""
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
    """A new name for a temporary file or folder next to `place`.

    It is registered before the file is created, so that no signal can come in between.
    """
    stem, unique = _stem(place.name), secrets.token_hex(4)
    path = place.with_name(f".{stem}.{_host()}-{os.getpid()}.{unique}")
    _temporary_paths.add(path)
    return path


def _name_targets(error: OSError, paths: list[Path], places: list[Path]) -> None:
    """Replace a temporary file in an error by its target; if it names no file, by the first one."""
    names = dict(zip(map(os.fspath, paths), map(os.fspath, places), strict=False))
    if error.filename in names:
        error.filename = names[error.filename]
    elif error.filename is None and error.errno in UNNAMED:
        error.filename = os.fspath(places[0])


def require_regular(target: Path) -> None:
    """Raise InputError if `target`, or its link's target, exists and is not a regular file."""
    try:
        mode = os.stat(target).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISREG(mode):
        raise InputError(f"{target}: not a regular file; choose another place for the output")


def require_replaceable(target: Path) -> None:
    """Raise InputError if `target` exists and is not a folder that can be replaced."""
    if target.exists() and not target.is_dir():
        raise InputError(f"{target}: not a folder; choose another place for the output")
    if os.path.ismount(_resolved(target)):
        raise InputError(
            f"{target}: a mounted file system, which cannot be replaced; choose another place for "
            "the output"
        )


def is_same(path: Path, other: Path) -> bool:
    """Whether two paths lead to the same file, which need not exist."""
    if path.exists() and other.exists():
        return path.samefile(other)
    return os.path.realpath(path) == os.path.realpath(other)


def shared_path(path: str) -> str:
    """How a path is written into results, which others may read.

    An absolute path in the working folder becomes relative to it; of any other absolute path only
    the last name stays, since the rest names folders and users of this machine.
    """
    if not os.path.isabs(path):
        return path
    inside = os.path.relpath(path)
    is_outside = inside.split(os.sep)[0] == os.pardir
    return os.path.basename(os.path.normpath(path)) if is_outside else inside


def require_apart(outputs: Sequence[Path], inputs: Iterable[Path]) -> None:
    """Raise InputError if an output would replace an input, or another output."""
    inputs = list(inputs)
    for place, output in enumerate(outputs):
        for other in (*inputs, *outputs[:place]):
            if is_same(output, other):
                raise InputError(
                    f"{output}: is given for two files; give another name for one of them"
                )


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files and folders in `folder` whose process on this host has ended.

    With `name`, only those of that target. Files of other users are left in place.
    """
    stem = None if name is None else _stem(name)
    with suppress(PermissionError):  # to list the folder, or to remove another user's file
        for entry in (name for name in os.listdir(folder) if name.startswith(".")):
            found = _temporary(entry)
            if found and stem in (None, _stem(entry)) and not _is_alive(int(found["pid"])):
                _remove(folder / entry)


def _remove(path: Path) -> None:
    """Remove a file, or a folder with its contents, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _temporary(name: str) -> re.Match[str] | None:
    """The stem and pid in `name`, if it is that of a temporary file of this host."""
    pattern = rf"\.(?P<stem>.+)\.{re.escape(_host())}-(?P<pid>[0-9]{{1,10}})\.[a-z0-9_]{{8}}"
    return re.fullmatch(pattern, name)


def _stem(name: str) -> str:
    """The part of a target's name in that of its temporary file, also for a temporary file."""
    while found := _temporary(name):
        name = found["stem"]
    return os.fsdecode(os.fsencode(name)[:STEM_BYTES])


def _host() -> str:
    return socket.gethostname()[:64]


def _is_alive(pid: int) -> bool:
    """Whether this host has a process `pid`, of any user."""
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
    """Raise InputError if `path` exists and is not a folder."""
    if os.path.exists(path) and not os.path.isdir(path):
        raise InputError(f"{os.fspath(path)}: not a folder; give one to write into")
