"""What a command costs, measured in a process of its own, and how that grows."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

COMMAND = """\
import resource, sys
from esm_pipeline.cli import main
code = main(sys.argv[2:])
with open("/proc/self/status") as status:
    own = [int(line.split()[1]) for line in status if line.startswith("VmHWM")]
with open(sys.argv[1], "w") as peak:
    peak.write(str(max(*own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)))
sys.exit(code)
"""


class Cost(NamedTuple):
    """What a command took: seconds of CPU and on the clock, bytes of its largest process."""

    cpu: float
    seconds: float
    memory: int


def measure(*arguments: object) -> Cost:
    """Run a command in a process of its own.

    Its memory is that of `/proc`: the peak of `wait4` includes the process that started it.
    """
    with tempfile.NamedTemporaryFile("r") as peak:
        command = [sys.executable, "-c", COMMAND, peak.name, *map(str, arguments)]
        began = time.perf_counter()
        child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(f"{arguments[0]} ended with {child.returncode}")
        return Cost(usage.ru_utime + usage.ru_stime, seconds, int(peak.read()) * 1024)


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The power of the size with which the values grow, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])
