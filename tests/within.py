"""What a call says of many hostile files, in a process of its own with a limit on memory and time.

Run as a script, it is that process.
"""

from __future__ import annotations

import importlib
import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple, NoReturn

MEMORY = 4 << 30  # bytes of addresses, of which importing PyTorch takes most
SECONDS = 20
GROWTH = 200  # MiB; the largest file here that is read whole has 32


class Outcome(NamedTuple):
    """What was said of one file, the seconds that took, and the MiB that the process grew by."""

    said: str
    seconds: float
    grown: int

    def require_small(self) -> None:
        """One line, soon, and without the memory that the file asks for."""
        assert "\n" not in self.said
        assert len(self.said) < 500
        assert self.seconds < SECONDS / 2
        assert self.grown < GROWTH


def judge(call: str, folder: Path) -> dict[str, Outcome]:
    """File or folder in `folder`, without its ending, → what `call`, a function's name, says."""
    command = [sys.executable, "-m", "tests.within", call, str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return {name: Outcome(*facts) for name, facts in json.loads(run.stdout).items()}


class LateError(BaseException):
    """Raised when time is up."""


def stop(*_: object) -> NoReturn:
    raise LateError(f"it takes longer than {SECONDS} s")


def main(call: str, folder: str) -> None:
    from esm_pipeline.errors import EsmPipelineError

    place, _, name = call.rpartition(".")
    try:
        function = getattr(importlib.import_module(place), name)
    except ModuleNotFoundError:  # a method of a class
        place, _, owner = place.rpartition(".")
        function = getattr(getattr(importlib.import_module(place), owner), name)
    signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    outcomes = {}
    for path in sorted(Path(folder).iterdir()):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        signal.alarm(SECONDS)
        try:
            function(path)
            said = "nothing"
        except EsmPipelineError as error:
            said = str(error)
        except BaseException as error:
            said = repr(error)[:300]
        signal.alarm(0)
        seconds = time.perf_counter() - started
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        outcomes[path.stem] = [said, seconds, grown >> 10]
        print(path.stem, *outcomes[path.stem], sep=" | ", file=sys.stderr, flush=True)
    json.dump(outcomes, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
