"""One writer for each output: a marker beside it, from a command's start to its end.

Output `out.h5` is marked by `.out.h5.lock`, a folder that files are added to by a `.lock` in it. A
second command that would write there stops before it computes anything. Markers are made with
O_EXCL, which every file system has, NFS included; no flock is needed.

A marker names its process. On the same machine a process that is gone is known at once, whatever
ended it, and its marker is replaced. Of a process elsewhere (on another host, in another container,
before a restart) nothing is known but that it renews the time of its marker every `BEAT` seconds:
who finds such a marker watches it for `WATCH` seconds. If it is renewed, the output is taken; if
not, its process was killed, and the marker is replaced. So a job of the workflow that is tried
again on another node waits half a minute and needs no rule of its own, and a command line beside
the workflow is refused like one beside another. Clocks of different hosts are not compared.
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
"""Seconds between two renewals of a marker, and for which a marker from elsewhere is watched."""

POLL = 0.5
MOST_BYTES = 4096  # of a marker

_held: dict[Path, str] = {}
"""Markers of this process, and what stands in them."""

_made: list[Path] = []
"""Folders that this process made for its outputs."""


class Outputs(NamedTuple):
    """What a command writes: files, folders that it replaces whole, folders that it adds to."""

    files: Iterable[Path | None] = ()
    replaced: Iterable[Path] = ()
    added_to: Iterable[Path] = ()


class Seen(NamedTuple):
    """A marker at some time."""

    text: str
    renewed: int  # in nanoseconds, by the clock of its file system


@contextmanager
def claim(outputs: Outputs) -> Iterator[None]:
    """Keep `outputs` for this process, having made sure that they can be written.

    Folders that are not there are made, and removed again if they stay empty. Raises InputError for
    an output that another process is writing, or that is of the wrong kind, OSError for one that
    cannot be written.
    """
    markers: dict[Path, Path] = {}
    for file in filter(None, outputs.files):
        require_regular(file)
        markers[_beside(file)] = file
    for folder in outputs.replaced:
        require_replaceable(folder)
        markers[_beside(folder)] = folder
    for folder in outputs.added_to:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: not a folder; choose another one for the output")
        markers[folder / ".lock"] = folder
    with ExitStack() as stack:
        for marker, target in markers.items():
            _make_folder(marker.parent, stack)
            _require_removable(target)
            _take(marker, target)
            stack.callback(_release, marker)
        ended = threading.Event()
        thread = threading.Thread(target=_renew, args=(list(markers), ended), daemon=True)
        thread.start()
        stack.callback(ended.set)
        yield
        _made.clear()


def release_all() -> None:
    """Remove all markers of this process, which is about to end, and folders that it left empty."""
    for marker in list(_held):
        _release(marker)
    for folder in reversed(_made):
        _remove_empty(folder)


def _beside(target: Path) -> Path:
    """The marker of a file or folder, or of what a link leads to."""
    place = Path(os.path.realpath(target)) if target.is_symlink() else target
    stem = os.fsdecode(os.fsencode(place.name)[:200])  # a name has at most 255 bytes
    return place.with_name(f".{stem}.lock")


def _make_folder(folder: Path, stack: ExitStack) -> None:
    """Make a folder and those above it, to be removed again if they stay empty."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{folder}: not a folder; choose another one for the output") from None
    for one in reversed(missing):
        _made.append(one)
        stack.callback(_remove_empty, one)


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _require_removable(target: Path) -> None:
    """Raise PermissionError for another user's file in a folder like /tmp (sticky)."""
    user = os.geteuid() if hasattr(os, "geteuid") else 0
    folder = target.parent.stat()
    sticky = user and folder.st_mode & stat.S_ISVTX and target.exists()
    if sticky and user not in (folder.st_uid, target.stat().st_uid):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(target))


def _take(marker: Path, target: Path) -> None:
    """Make the marker of `target`. Raises InputError if another process has it."""
    text = json.dumps({**_machine(), **_process(os.getpid()), "since": int(time.time())})
    while True:
        if marker not in _held:
            _held[marker] = text
            try:
                with open(marker, "x", encoding="utf-8") as handle:
                    handle.write(text)
                return
            except FileExistsError:
                del _held[marker]
            except OSError as error:
                _release(marker, text="")
                error.filename = os.fspath(target)
                raise
        seen = _look(marker)
        if seen is not None:
            _require_left_behind(marker, target, seen)
            _remove_left_behind(marker, target, seen)


def _look(marker: Path) -> Seen | None:
    """What stands in a marker, None if it is there no more; opened, so that NFS asks its server."""
    try:
        with open(marker, "rb") as handle:
            text = handle.read(MOST_BYTES).decode("utf-8", "replace")
            return Seen(text, os.fstat(handle.fileno()).st_mtime_ns)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ESTALE:  # removed on another host of an NFS
            return None
        raise


def _require_left_behind(marker: Path, target: Path, seen: Seen) -> None:
    """Raise InputError unless the process of a marker is gone; see the module."""
    holder = _holder(seen.text)
    alive = _is_alive(holder)
    if alive is None:
        print(
            f"{target}: may be in use by {_told(holder)}; watching it for {WATCH:g} s",
            file=sys.stderr,
        )
        end = time.monotonic() + WATCH
        while time.monotonic() < end and not alive:
            time.sleep(POLL)
            now = _look(marker)
            if now is None:
                return
            alive = now != seen
    if alive:
        raise InputError(
            f"{target}: is being written by {_told(holder)}; wait until it ends, or choose "
            "another place for the output"
        )


def _remove_left_behind(marker: Path, target: Path, seen: Seen) -> None:
    """Remove a marker, unless another process just did so and made its own."""
    away = marker.with_name(f".lock-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        os.rename(marker, away)
    except FileNotFoundError:
        return
    found = _look(away)
    if found and found.text != seen.text:  # put it back
        with suppress(OSError):
            os.link(away, marker)
        away.unlink(missing_ok=True)
        raise InputError(
            f"{target}: is being written by {_told(_holder(found.text))}; wait until it ends, or "
            "choose another place for the output"
        )
    away.unlink(missing_ok=True)


def _release(marker: Path, text: str | None = None) -> None:
    """Remove a marker of this process, that is, one with its `text`."""
    mine = _held.pop(marker, None)
    with suppress(OSError):
        seen = _look(marker) if mine is not None else None
        if seen and seen.text == (mine if text is None else text):
            marker.unlink()


def _renew(markers: list[Path], ended: threading.Event) -> None:
    """Set the time of `markers` anew until all has `ended`."""
    while not ended.wait(BEAT):
        for marker in markers:
            with suppress(OSError):
                os.utime(marker)


def _holder(text: str) -> dict[str, object]:
    """What a marker says of its process; nothing, if it is not whole."""
    try:
        holder = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _told(holder: dict[str, object]) -> str:
    """A process in words."""
    number, host = holder.get("process"), str(holder.get("host"))
    if not isinstance(number, int) or not re.fullmatch(r"[\w.-]+", host):
        return "another process"
    return f"process {number} on {host}"


def _is_alive(holder: dict[str, object]) -> bool | None:
    """Whether the process of a marker runs; None if that cannot be known here."""
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
    """Host, its last start, and which processes are seen; of empty text where it is not known."""
    boot = space = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
    return {"host": socket.gethostname(), "boot": boot, "space": space}


def _process(number: int) -> dict[str, object]:
    """A process and when it started, in ticks; of empty text if there is none, or a dead one."""
    try:
        words = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        words = []
    started = words[19] if len(words) > 19 and words[0] not in "ZX" else ""
    return {"process": number, "started": started}


def _is_hidden(number: int) -> bool:
    """Whether a process runs of which this user may know nothing more."""
    try:
        os.kill(number, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        pass
    return False
