"""Rounds in turn: each way in a process of its own, that is timed while all others wait.

A process of its own, since libraries with thread pools and allocators of their own disturb each
other in one. All are loaded and warm before the first round, and one round runs each of them once,
so that what disturbs a machine for a while disturbs all alike.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from typing import Any

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ESM_NUM_THREADS")
Load = Callable[[], Callable[[Any], Callable[[], Any]]]
"""Loads, and returns what prepares an input and returns what is timed. Has to be picklable."""


class UnavailableError(Exception):
    """Why a way cannot be measured here."""


def serve(connection: Connection, load: Load) -> None:
    """In the worker: load, then prepare each input that comes, and run it at each None."""
    try:
        engine = load()
    except UnavailableError as error:
        connection.send(str(error))
        return
    connection.send(None)
    run: Callable[[], Any] | None = None
    while True:
        try:
            told = connection.recv()
        except EOFError:
            return
        if told is not None:
            run = engine(*told)
            connection.send(run())  # the warm-up, and its result
        elif run is not None:
            start = time.perf_counter()
            result = run()
            connection.send((time.perf_counter() - start, result if cheap(result) else None))


def cheap(result: object) -> bool:
    """Whether a result is a figure, sent at each run."""
    return isinstance(result, (int, float))


class Worker:
    """A process that has loaded a way; `problem` says why if it could not."""

    def __init__(self, load: Load) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, load), daemon=True)
        self.process.start()
        other.close()
        self.problem: str | None = self.receive()

    def receive(self) -> Any:
        """What it sends; if it ends instead, that is the problem."""
        try:
            return self.connection.recv()
        except EOFError:
            self.process.join()
            self.problem = f"its process ended with exit code {self.process.exitcode}"
            return self.problem

    def prepare(self, given: Any) -> Any:
        """Give it an input; the result of a first run."""
        self.connection.send((given,))
        return self.receive()

    def time(self) -> tuple[float, Any]:
        """Seconds of a run, and its result if that is a figure."""
        self.connection.send(None)
        found: tuple[float, Any] = self.receive()
        return found

    def close(self) -> None:
        """End it."""
        self.connection.close()
        self.process.join(5)
        self.process.kill()


@contextmanager
def workers(loads: Mapping[str, Load], threads: int) -> Iterator[dict[str, Worker]]:
    """A worker for each, in this order, every library in it held to `threads`."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, str(threads)))
    try:
        with ExitStack() as stack:
            found = {}
            for name, load in loads.items():
                found[name] = Worker(load)
                stack.callback(found[name].close)
            yield found
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def interleave(ready: Mapping[str, Worker], rounds: int) -> dict[str, list[tuple[float, Any]]]:
    """Seconds and figures of each, of `rounds` rounds in turn."""
    found: dict[str, list[tuple[float, Any]]] = {name: [] for name in ready}
    for _ in range(rounds):
        for name, worker in ready.items():
            if not worker.problem:
                told = worker.time()
                if not worker.problem:
                    found[name].append(told)
    return found
