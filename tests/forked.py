"""The command line in processes forked from one that has imported everything, a tenth of a second
each; with accidents: killed at a point of choice, as another user, with limits.

Run as a program this file is that process: it reads requests as JSON lines, and answers each when
the process that it forked, or the command that it ran, has ended.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from esm_pipeline.tasks import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
CHANGES = ("open", "pwrite", "posix_fallocate", "fsync", "chmod", "unlink", "replace", "mkdir")
"""Functions of `os` that change something on the disk, or are about to."""
MODULES = (
    "anndata",
    "anndata.io",
    "encodings.cp437",  # of names in a zip file
    "h5py",
    "pyarrow.parquet",
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    *(f"esm_pipeline.tasks.{command.module}" for command in COMMANDS.values()),
    "esm_pipeline.tasks.embed.representations",
    *(f"esm_pipeline.model.inference.{name}" for name in ("device", "batching")),
)
"""Modules that the commands import, at the start or later."""


@dataclass
class Ended:
    """How a process ended: its exit code, a signal below 0, and what it said."""

    code: int
    said: str

    @property
    def lines(self) -> list[str]:
        return self.said.splitlines()


class Forked:
    """A process to fork from; `within` is a command that starts it, such as unshare."""

    def __init__(self, *within: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [*within, sys.executable, __file__],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    @property
    def root(self) -> Path:
        """The root folder as the process sees it, with disks that it alone has."""
        return Path(f"/proc/{self._process.pid}/root")

    def main(self, *arguments: object, **accident: object) -> Ended:
        """Run `esm-pipeline` with `arguments`.

        Accidents: `change=k` kills it before its k-th change of the disk, `line=k` before the k-th
        line that it has not run before, counted from 1; `user=n` runs it as user n; `files=n` lets
        it open n files, `size=n` write n bytes into one; `flock=n` has flock fail with error n.
        """
        return self._ask(arguments=[*map(str, arguments)], accident=accident)

    def call(self, *command: object) -> Ended:
        """Run any command."""
        return self._ask(command=[*map(str, command)])

    def _ask(self, **request: object) -> Ended:
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return Ended(**json.loads(self._process.stdout.readline()))


def kill_at_change(number: int) -> None:
    """Have this process killed before change `number`; of many writes in a row the first counts."""
    made = [""]

    def killing(name, whole):
        def change(*arguments, **options):
            if name != "pwrite" or made[-1] != name:
                made.append(name)
            if len(made) > number:
                os.kill(os.getpid(), signal.SIGKILL)
            return whole(*arguments, **options)

        return change

    for name in CHANGES:
        setattr(os, name, killing(name, getattr(os, name)))


def kill_at_line(number: int) -> None:
    """Have this process killed before the `number`-th new line of what has to do with files."""
    folders = tuple(
        str(ROOT / "esm_pipeline" / name) for name in ("files", "formats", "structure", "tasks")
    )
    seen = set()

    def trace(frame, event, _):
        if not frame.f_code.co_filename.startswith(folders):
            return None
        if event == "line":
            seen.add((frame.f_code.co_filename, frame.f_lineno))
            if len(seen) >= number:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    threading.settrace(trace)
    sys.settrace(trace)


def limit_files(number: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))


def limit_size(number: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))


class Instruction(ctypes.Structure):
    """A step of a filter of system calls."""

    _fields_: ClassVar = [
        *(("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte)),
        ("value", ctypes.c_uint),
    ]


class Filter(ctypes.Structure):
    _fields_: ClassVar = [("size", ctypes.c_ushort), ("steps", ctypes.POINTER(Instruction))]


def fail_flock(number: int) -> None:
    """Make the kernel refuse flock (seccomp), as on a file system without it."""
    flock = {"x86_64": 73, "aarch64": 32}[os.uname().machine]
    steps = (Instruction * 4)(
        (0x20, 0, 0, 0),  # the number of the call
        (0x15, 0, 1, flock),
        (0x06, 0, 0, 0x00050000 | number),  # an error
        (0x06, 0, 0, 0x7FFF0000),  # as usual
    )
    call = ctypes.CDLL(None, use_errno=True).prctl
    for arguments in ((38, 1, 0, 0, 0), (22, 2, ctypes.byref(Filter(4, steps)))):
        if call(*arguments):
            raise OSError(ctypes.get_errno(), "no filter of system calls here")


def become(user: int) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


ACCIDENTS = {
    "change": kill_at_change,
    "line": kill_at_line,
    "files": limit_files,
    "size": limit_size,
    "user": become,
    "flock": fail_flock,
}


def fork(arguments: list[str], accident: dict[str, int], said: int) -> int:
    """Run the command line in a process of its own; gives its exit code.

    It ends as Python does, but for taking a thousand modules apart.
    """
    for module in MODULES:
        importlib.import_module(module)
    from esm_pipeline.cli import main

    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(said, 1)
    os.dup2(said, 2)
    for name, value in accident.items():
        ACCIDENTS[name](value)
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve() -> None:
    """Answer requests until there are no more."""
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile() as said:
            if "command" in request:
                done = subprocess.run(request["command"], stdout=said, stderr=said, check=False)
                code = done.returncode
            else:
                code = fork(request["arguments"], request["accident"], said.fileno())
            said.seek(0)
            print(json.dumps({"code": code, "said": said.read().decode()}), flush=True)


if __name__ == "__main__":
    serve()
