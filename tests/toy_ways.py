"""Ways that take no time to load, for the tests of the benchmarks' rounds."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NoReturn

from tests.benchmarks.rounds import UnavailableError


def adder() -> Callable[[list[int]], Callable[[], int]]:
    """Adds numbers."""
    return lambda numbers: lambda: sum(numbers)


def speller() -> Callable[[list[int]], Callable[[], list[str]]]:
    """Gives what is no figure."""
    return lambda numbers: lambda: [str(one) for one in numbers]


def threads() -> Callable[[list[int]], Callable[[], int]]:
    """Tells how many threads its libraries are held to."""
    return lambda _: lambda: int(os.environ["OMP_NUM_THREADS"])


def missing() -> NoReturn:
    """Cannot run."""
    raise UnavailableError("no such peer")


def dying() -> NoReturn:
    """Ends with an out-of-memory error."""
    os._exit(9)


def dying_later() -> Callable[[list[int]], Callable[[], int]]:
    """Answers once, then ends."""
    left = [1]

    def run() -> int:
        if not left:
            os._exit(9)
        return left.pop()

    return lambda _: run
