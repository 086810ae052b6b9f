"""Only one writer for each output: a lock file next to it while a command runs.

The lock of the output `out.h5` is `.out.h5.lock`; that of a folder that files are added to is
`.lock` in it. A second command for the same output stops before it computes anything. Locks are
created with O_EXCL, which every file system has, including NFS; flock is not needed.

A lock names its process. On the same machine it is known at once whether the process still runs; if
not, its lock is replaced. A process elsewhere (on another host, in another container, before a
restart) can only be recognised by the time of its lock, which it updates every `BEAT` seconds: a
command that finds such a lock watches it for `WATCH` seconds. If the time changes, the output is in
use; if not, the process was killed, and the lock is replaced. So a job that the workflow retries on
another node waits half a minute, and a command started by hand is refused while the workflow
writes the same output. The clocks of different hosts are not compared.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from esm_pipeline.errors import InputError
from esm_pipeline.files import require_regular, require_replaceable

BEAT, WATCH = 5.0, 30.0
"""Seconds between two updates of a lock, and seconds for which a lock from elsewhere is watched."""

POLL = 0.5
MOST_LOCK_BYTES = 4096  # of a lock file

_held: dict[Path, str] = {}
"""Lock files of this process, with their text."""

_created: list[Path] = []
"""Folders that this process created for its outputs."""


class Outputs(NamedTuple):
    """What a command writes: files, folders that it replaces, and folders that it adds files to."""

    files: Iterable[Path | None] = ()
    replaced: Iterable[Path] = ()
    added_to: Iterable[Path] = ()


class LockState(NamedTuple):
    """A lock file at one time."""

    text: str
    updated: int  # ns, by the clock of the file system


@contextmanager
def claim(outputs: Outputs) -> Iterator[None]:
    """Lock `outputs` for this process, after checking that they can be written.

    Missing folders are created, and removed again if they stay empty. Raises InputError for an
    output that another process is writing or that is of the wrong kind, OSError for one that cannot
    be written.
    """
    locks: dict[Path, Path] = {}
    for file in filter(None, outputs.files):
        require_regular(file)
        locks[_lock_of(file)] = file
    for folder in outputs.replaced:
        require_replaceable(folder)
        locks[_lock_of(folder)] = folder
    for folder in outputs.added_to:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: not a folder; choose another one for the output")
        locks[folder / ".lock"] = folder
    with ExitStack() as stack:
        for lock, target in locks.items():
            _make_folder(lock.parent, stack)
            _require_removable(target)
            _take(lock, target)
            stack.callback(_release, lock)
        ended = threading.Event()
        thread = threading.Thread(target=_renew, args=(list(locks), ended), daemon=True)
        thread.start()
        stack.callback(ended.set)
        yield
        _created.clear()


def release_all() -> None:
    """Remove all locks of this process, which is about to end, and the folders it left empty."""
    for lock in list(_held):
        _release(lock)
    for folder in reversed(_created):
        _remove_empty(folder)


def _lock_of(target: Path) -> Path:
    """The lock of a file or folder, or of the target of a link."""
    place = Path(os.path.realpath(target)) if target.is_symlink() else target
    stem = os.fsdecode(os.fsencode(place.name)[:200])  # a name has at most 255 bytes
    return place.with_name(f".{stem}.lock")


def _make_folder(folder: Path, stack: ExitStack) -> None:
    """Create a folder and its parents, to be removed again if they stay empty."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{folder}: not a folder; choose another one for the output") from None
    for one in reversed(missing):
        _created.append(one)
        stack.callback(_remove_empty, one)


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _require_removable(target: Path) -> None:
    """Raise PermissionError for another user's file in a sticky folder such as /tmp."""
    user = os.geteuid() if hasattr(os, "geteuid") else 0
    folder = target.parent.stat()
    sticky = user and folder.st_mode & stat.S_ISVTX and target.exists()
    if sticky and user not in (folder.st_uid, target.stat().st_uid):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(target))


def _take(lock: Path, target: Path) -> None:
    """Create the lock of `target`. Raises InputError if another process holds it."""
    text = json.dumps({**_machine(), **_process(os.getpid()), "since": int(time.time())})
    while True:
        if lock not in _held:
            _held[lock] = text
            try:
                with open(lock, "x", encoding="utf-8") as handle:
                    handle.write(text)
                return
            except FileExistsError:
                del _held[lock]
            except OSError as error:
                _release(lock, text="")
                error.filename = os.fspath(target)
                raise
        seen = _read(lock)
        if seen is not None:
            _require_stale(lock, target, seen)
            _remove_stale(lock, target, seen)


def _read(lock: Path) -> LockState | None:
    """The state of a lock, or None if it is gone. It is opened, so that NFS asks the server."""
    try:
        with open(lock, "rb") as handle:
            text = handle.read(MOST_LOCK_BYTES).decode("utf-8", "replace")
            return LockState(text, os.fstat(handle.fileno()).st_mtime_ns)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ESTALE:  # removed on another host of an NFS
            return None
        raise


def _require_stale(lock: Path, target: Path, seen: LockState) -> None:
    """Raise InputError unless the process of a lock has ended; see the module."""
    holder = _holder(seen.text)
    alive = _is_running(holder)
    if alive is None:
        print(
            f"{target}: may be in use by {_described(holder)}; watching it for {WATCH:g} s",
            file=sys.stderr,
        )
        end = time.monotonic() + WATCH
        while time.monotonic() < end and not alive:
            time.sleep(POLL)
            now = _read(lock)
            if now is None:
                return
            alive = now != seen
    if alive:
        raise _in_use(target, holder)


def _in_use(target: Path, holder: dict[str, object]) -> InputError:
    """The error that another process is writing `target`."""
    return InputError(
        f"{target}: is being written by {_described(holder)}; wait until it ends, or choose "
        "another place for the output"
    )


def _remove_stale(lock: Path, target: Path, seen: LockState) -> None:
    """Remove a lock, unless another process has just replaced it with its own."""
    away = lock.with_name(f".lock-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        os.rename(lock, away)
    except FileNotFoundError:
        return
    found = _read(away)
    if found and found.text != seen.text:  # put it back
        with suppress(OSError):
            os.link(away, lock)
        away.unlink(missing_ok=True)
        raise _in_use(target, _holder(found.text))
    away.unlink(missing_ok=True)


def _release(lock: Path, text: str | None = None) -> None:
    """Remove a lock of this process: one with its `text`."""
    mine = _held.pop(lock, None)
    with suppress(OSError):
        seen = _read(lock) if mine is not None else None
        if seen and seen.text == (mine if text is None else text):
            lock.unlink()


def _renew(locks: list[Path], ended: threading.Event) -> None:
    """Update the time of the locks until `ended` is set."""
    while not ended.wait(BEAT):
        for lock in locks:
            with suppress(OSError):
                os.utime(lock)


def _holder(text: str) -> dict[str, object]:
    """The description of the process in a lock; empty if the lock is incomplete."""
    try:
        holder = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _described(holder: dict[str, object]) -> str:
    """The process of a lock, for a message."""
    number, host = holder.get("process"), str(holder.get("host"))
    if not isinstance(number, int) or not re.fullmatch(r"[\w.-]+", host):
        return "another process"
    return f"process {number} on {host}"


def _is_running(holder: dict[str, object]) -> bool | None:
    """Whether the process of a lock is running; None if this cannot be known here."""
    here = _machine()
    number = holder.get("process")
    if not here["boot"] or any(holder.get(name) != value for name, value in here.items()):
        return None
    if not isinstance(number, int):
        return None
    started = _process(number)["started"]
    if not started and _is_hidden(number):
        return None
    return started == holder.get("started") != ""


@cache
def _machine() -> dict[str, str]:
    """Host, its last boot, and the namespace of processes; empty text where unknown."""
    boot = space = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
    return {"host": socket.gethostname(), "boot": boot, "space": space}


def _process(number: int) -> dict[str, object]:
    """A process and its start time in ticks; empty if there is no such process, or it is dead."""
    try:
        words = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        words = []
    started = words[19] if len(words) > 19 and words[0] not in "ZX" else ""
    return {"process": number, "started": started}


def _is_hidden(number: int) -> bool:
    """Whether a process of another user is running."""
    try:
        os.kill(number, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        pass
    return False
