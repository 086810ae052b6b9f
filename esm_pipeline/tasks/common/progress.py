"""Progress for people: a bar on a terminal, nothing in log files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]


@contextmanager
def progress(title: str, total: int, unit: str, *, quiet: bool = False) -> Iterator[Advance]:
    """Yield a function to call with the number of units that were just done, of `total`.

    Shows a bar with the rate and the time left on standard error, if that is a terminal and unless
    `quiet`.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        """Units done, out of all, and per second."""

        def render(self, task: Task) -> Text:
            done, all_of_them = int(task.completed), int(task.total or 0)
            speed = task.finished_speed or task.speed or 0
            return Text(f"{done:,} of {all_of_them:,} {unit}, {speed:,.0f}/s")

    columns = (TextColumn("{task.description}"), BarColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda units: bar.advance(task, units)
