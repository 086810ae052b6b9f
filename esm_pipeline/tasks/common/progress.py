"""Progress for people: a bar on a terminal, a line from time to time in a log file.

    with progress("embed", Amounts(3, "sequences", rated=900, rate="residues")) as advance:
        for sequence in sequences:
            ...
            advance(1, rated=len(sequence))

Where standard error is no terminal, a line is written when the work begins, and then one every 30
seconds, by a thread that sleeps in between: also in the middle of a long batch. Percentage and time
left follow from the work that is done, not from the number of items: long sequences come first.
"""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

LINE_SECONDS = 30.0
"""Seconds between two lines about the same work."""

PATIENCE_SECONDS = 10.0
"""Seconds after which a step that is usually short says that it runs."""

SPEED_SECONDS = 300.0
"""Seconds of the past by which the time left is estimated, if the last batches were not longer."""

SAMPLE_SECONDS = 0.25
"""Seconds between two times that are kept for the speed."""

LEAST_BATCHES = 3
"""Batches by which the time left is estimated, if there were as many."""

SIZE_UNITS = ("bytes", "kB", "MB", "GB", "TB")

LEAST_DOWNLOAD = 10_000_000
"""Bytes of a download from which on it is reported."""


class Advance(Protocol):
    """Called with what was just done, from any thread."""

    def __call__(self, items: int, *, work: float | None = None, rated: int | None = None) -> None:
        """`work` and `rated` are as in `Amounts`; without them, as many as `items`."""


class Amounts(NamedTuple):
    """What there is to do."""

    items: int
    unit: str
    """What the items are: sequences, files, bytes, …"""
    work: float | None = None
    """The cost of all items, in any unit; by default as many as `items`."""
    rated: int | None = None
    """What the speed counts, in total; by default the items."""
    rate: str = ""
    """What the speed counts: residues, …"""

    @property
    def goal(self) -> float:
        """The work of all items."""
        return float(self.items if self.work is None else self.work)


class ProgressState:
    """What is done of some `amounts`, and how fast. Times are seconds of any clock."""

    def __init__(self, title: str, amounts: Amounts, now: float) -> None:
        self.title, self.amounts, self.started = title, amounts, now
        self.items = self.rated = 0
        self.work = 0.0
        self._samples: deque[tuple[float, float, float]] = deque([(now, 0.0, 0.0)])

    def advance(self, now: float, items: int, work: float | None, rated: int | None) -> None:
        """Note that some more is done."""
        self.items += items
        self.work += items if work is None else work
        self.rated += items if rated is None else rated
        if len(self._samples) > 1 and now - self._samples[-2][0] < SAMPLE_SECONDS:
            self._samples.pop()  # a later one stands for both
        self._samples.append((now, self.work, self.rated))
        while len(self._samples) > LEAST_BATCHES + 1 and self._samples[1][0] <= now - SPEED_SECONDS:
            self._samples.popleft()

    @property
    def share(self) -> float:
        """The share of the work that is done, from 0 to 1."""
        return min(1.0, self.work / self.amounts.goal) if self.amounts.goal > 0 else 1.0

    def speed(self) -> float:
        """What the rate counts, for each second of the last batches."""
        begin, end = self._samples[0], self._samples[-1]
        return (end[2] - begin[2]) / max(end[0] - begin[0], 1e-9) if end[2] > begin[2] else 0.0

    def seconds_left(self, now: float) -> float | None:
        """The time left, by the speed of the last batches; None as long as none is done.

        The batch that runs counts as done for as long as batches usually take.
        """
        begin, end = self._samples[0], self._samples[-1]
        done, seconds = end[1] - begin[1], end[0] - begin[0]
        if done <= 0 or seconds <= 0:
            return None
        usual = seconds / (len(self._samples) - 1)
        left = (self.amounts.goal - self.work) * seconds / done
        return max(0.0, left - min(now - end[0], usual))

    def first_line(self) -> str:
        """What there is to do."""
        amounts = self.amounts
        text = f"{self.title}: {format_amount(amounts.items, amounts.unit)}"
        if amounts.rated is not None:
            text += f", {amounts.rated:,} {amounts.rate}"
        return text

    def line(self, now: float) -> str:
        """What is done, how fast, and the time left."""
        amounts = self.amounts
        of_work = " of the work" if amounts.work is not None else ""
        text = f"{self.title}: {format_done(self.items, amounts.items, amounts.unit)}"
        text += f" ({int(100 * self.share)} %{of_work})"
        left = self.seconds_left(now)
        if left is None:
            return f"{text}, {duration(now - self.started)} so far"
        return f"{text}, {self.rate_text()}, {duration(left)} left"

    def rate_text(self) -> str:
        """The speed with its unit."""
        speed, unit = self.speed(), self.amounts.rate or self.amounts.unit
        if unit == "bytes":
            return f"{size_text(speed)}/s"
        return f"{speed:,.0f} {unit}/s" if speed >= 10 else f"{speed:.2g} {unit}/s"


def format_amount(count: int, unit: str) -> str:
    """`1,200 sequences`, or `1.2 GB` for bytes."""
    if unit == "bytes":
        return size_text(count)
    if count == 1:
        unit = unit.removesuffix("es" if unit.endswith("sses") else "s")
    return f"{count:,} {unit}"


def format_done(done: int, total: int, unit: str) -> str:
    """`1,200 of 40,000 sequences`, or `1.2 GB of 3.0 GB` for bytes."""
    if unit == "bytes":
        return f"{size_text(done)} of {size_text(total)}"
    return f"{done:,} of {format_amount(total, unit)}"


def size_text(count: float) -> str:
    """A number of bytes as a file manager shows it: `2.6 GB`."""
    if count < 1000:
        return f"{count:.0f} bytes"
    power = min(4, int(math.log10(count)) // 3)
    number = count / 1000**power
    return f"{number:,.{1 if number < 100 else 0}f} {SIZE_UNITS[power]}"


def duration(seconds: float) -> str:
    """A time as people say it: `45 s`, `12 min`, `2 h 14 min`, `3 d 4 h`."""
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole} s"
    minutes = int(seconds / 60 + 0.5)
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {rest} min"
    days, hours = divmod(int(seconds / 3600 + 0.5), 24)
    return f"{days} d {hours} h"


class Speaker(NamedTuple):
    """Prints lines that begin with `title` to standard error, unless `quiet`."""

    title: str
    quiet: bool = False
    short: bool = False
    """Whether its work is usually short: see `progress`."""

    def __call__(self, text: str) -> None:
        """Print a line."""
        if not self.quiet:
            write_line(f"{self.title}: {text}")


SILENT = Speaker("", quiet=True, short=True)
"""Prints nothing: for functions in Python, of which only long calls report their progress."""


def write_line(text: str) -> None:
    """Print a line to standard error at once; nothing if it is closed."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


@contextmanager
def repeated(text: Callable[[], str], first: float) -> Iterator[None]:
    """Print `text()` to standard error after `first` seconds, and then every `LINE_SECONDS`.

    An empty text is not printed. Nothing is printed once the code within has ended.
    """
    ended = threading.Event()

    def repeat() -> None:
        pause = first
        while not ended.wait(pause):
            line = text()
            if line and not ended.is_set():
                write_line(line)
            pause = LINE_SECONDS

    thread = threading.Thread(target=repeat, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(1.0)  # not forever, if nobody reads standard error


@contextmanager
def progress(
    title: str, amounts: Amounts, *, quiet: bool = False, short: bool = False
) -> Iterator[Advance]:
    """Yield a function to call with what was just done.

    Shows what is done, the rate and the time left on standard error, unless `quiet`: as a bar if
    that is a terminal, else as lines, the first at once. If the work is usually `short`, the first
    comes after some seconds.
    """
    if quiet or not amounts.items:
        yield report_nothing
    elif sys.stderr.isatty():
        with shown_as_bar(title, amounts) as advance:
            yield advance
    else:
        with shown_as_lines(title, amounts, PATIENCE_SECONDS if short else 0.0) as advance:
            yield advance


@contextmanager
def step(title: str, amounts: Amounts, *, quiet: bool = False) -> Iterator[Advance]:
    """`progress` of a step that is usually short: lines, the first after some seconds.

    Without `items`, such as the bytes of standard input, only the time so far is shown.
    """
    if amounts.items and not quiet:
        with shown_as_lines(title, amounts, PATIENCE_SECONDS) as advance:
            yield advance
    else:
        with waiting(title, quiet=quiet):
            yield report_nothing


def report_nothing(items: int, *, work: float | None = None, rated: int | None = None) -> None:
    """Show nothing of what is done."""


@contextmanager
def waiting(title: str, *, quiet: bool = False, first: float | None = None) -> Iterator[None]:
    """Lines about a step of which it is not known how much is done: for how long it has run.

    The first comes after `first` seconds, by default `PATIENCE_SECONDS`.
    """
    first = PATIENCE_SECONDS if first is None else first
    started = time.monotonic()

    def line() -> str:
        seconds = time.monotonic() - started
        return f"{title}, {duration(seconds)} so far" if seconds >= LINE_SECONDS else f"{title} …"

    with contextlib.nullcontext() if quiet else repeated(line, first):
        yield


@contextmanager
def shown_as_lines(title: str, amounts: Amounts, first: float) -> Iterator[Advance]:
    """Lines on standard error: the first at once, or after `first` seconds."""
    state, lock = ProgressState(title, amounts, time.monotonic()), threading.Lock()

    def advance(items: int, *, work: float | None = None, rated: int | None = None) -> None:
        with lock:
            state.advance(time.monotonic(), items, work, rated)

    def line() -> str:
        with lock:
            return state.line(time.monotonic())

    if not first:
        write_line(state.first_line())
    with repeated(line, first or LINE_SECONDS):
        yield advance


@contextmanager
def shown_as_bar(title: str, amounts: Amounts) -> Iterator[Advance]:
    """A bar on a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
    )
    from rich.text import Text

    state, lock = ProgressState(title, amounts, time.monotonic()), threading.Lock()

    class Done(ProgressColumn):
        """Items done, out of all, the rate, and the time left."""

        def render(self, task: Task) -> Text:
            with lock:
                left = state.seconds_left(time.monotonic())
                text = format_done(state.items, amounts.items, amounts.unit)
                if left is not None:
                    text += f", {state.rate_text()}, {duration(left)} left"
            return Text(text)

    def advance(items: int, *, work: float | None = None, rated: int | None = None) -> None:
        with lock:
            state.advance(time.monotonic(), items, work, rated)
        bar.update(task, completed=state.work)

    columns = (TextColumn("{task.description}"), BarColumn(14), Done())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=amounts.goal)
        yield advance


@contextmanager
def downloads_shown(say: Speaker, name: str) -> Iterator[None]:
    """Report in lines what is downloaded of the hub model `name` within, unless `say` is quiet.

    On a terminal the hub's library draws its own bars.
    """
    from esm_pipeline.model.checkpoints.hub_client import watched_downloads

    if say.quiet or sys.stderr.isatty():
        with watched_downloads(None, bars=not say.quiet):
            yield
        return
    lock = threading.Lock()
    title = f"{say.title}: downloading {name}"
    state = ProgressState(title, Amounts(0, "bytes"), time.monotonic())

    def report(done: int, total: int) -> None:
        """`done` of `total` bytes of some files; the total grows while they are found."""
        nonlocal state
        with lock:
            if done < state.items or not state.items:  # the first files, or the next
                state = ProgressState(title, Amounts(total, "bytes"), time.monotonic())
                if total >= LEAST_DOWNLOAD:
                    write_line(state.first_line())
            state.amounts = Amounts(total, "bytes")
            state.advance(time.monotonic(), done - state.items, None, None)

    def line() -> str:
        with lock:
            running = state.items < state.amounts.items
            return state.line(time.monotonic()) if running else ""

    with watched_downloads(report, bars=False), repeated(line, LINE_SECONDS):
        yield
