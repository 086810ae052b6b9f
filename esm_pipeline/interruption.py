"""Signals that end a command: it stops as after an error, removes temporary files, and exits.

SIGTERM is what a scheduler sends first, SIGINT is Ctrl-C, SIGHUP a closed terminal. Python handles
a signal only between two of its own instructions, so that a kernel that runs for a minute, or a
pool that waits for its batch, would continue. Therefore a thread waits in the background, and ends
the process `GRACE` seconds after the signal if it is still running: schedulers kill it after 30 s.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from esm_pipeline.files import remove_temporary
from esm_pipeline.locks import release_all

GRACE = 3.0
"""Seconds in which a command can stop on its own."""

REPEAT_SECONDS = 0.5
"""Seconds after which a signal is repeated: Python ignores exceptions while it frees objects."""

INTERRUPTED = 128 + signal.SIGINT
"""Exit code after Ctrl-C."""

SIGNAL_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


@contextmanager
def obeying_signals(*, ends: bool) -> Iterator[None]:
    """Let signals end the code within: SIGINT raises KeyboardInterrupt, others SystemExit(128 + n).

    The first signal counts; it is repeated if its exception was dropped. `ends`: whether the
    process ends afterwards; one that calls a command from Python continues, so that only the code
    within has to stop in time. SIGINT and SIGHUP stay ignored if they are, as in the background and
    under nohup. Does nothing outside of the main thread, which receives no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def obey(number: int, frame: FrameType | None) -> None:
        if received and isinstance(sys.exc_info()[1], (KeyboardInterrupt, SystemExit)):
            return  # already stopping
        received.append(number)
        if received[0] == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + received[0])

    def report(dropped: Any) -> None:
        if not issubclass(dropped.exc_type, (KeyboardInterrupt, SystemExit)):
            hook(dropped)

    hook, sys.unraisablehook = sys.unraisablehook, report
    before: dict[int, Any] = {}
    watching, waking = os.pipe()
    os.set_blocking(waking, False)
    woken = signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
    try:
        for name in SIGNAL_NAMES:
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number and (number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN):
                before[number] = signal.signal(number, obey)
        threading.Thread(target=_end_in_time, args=(watching, {*before}), daemon=True).start()
        yield
    finally:
        if received:
            remove_temporary()
            release_all()
        sys.unraisablehook = hook
        if not (received and ends):  # threads that Python joins at its end must end too
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(woken)
            os.close(waking)


def leave_to_parent() -> None:
    """In a process of a pool: end at once on SIGTERM or when the parent has ended, not on Ctrl-C.

    The parent receives Ctrl-C too, and ends its pool itself.
    """
    for name in SIGNAL_NAMES:
        if hasattr(signal, name):
            kind = signal.SIG_DFL if name == "SIGTERM" else signal.SIG_IGN
            signal.signal(getattr(signal, name), kind)
    signal.set_wakeup_fd(-1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _end_in_time(watching: int, numbers: set[int]) -> None:
    """End the process some time after one of the signals, unless it finishes before."""
    with os.fdopen(watching, "rb", buffering=0) as pipe:
        while received := pipe.read(1):  # empty when the other end is closed
            if received[0] in numbers:
                break
        else:
            return
        end = time.monotonic() + GRACE
        again = time.monotonic() + REPEAT_SECONDS
        while (now := time.monotonic()) < end:
            if select.select([pipe], [], [], min(again, end) - now)[0]:
                if not pipe.read(1):
                    return
            elif time.monotonic() < end:
                again += REPEAT_SECONDS
                signal.pthread_kill(threading.main_thread().ident or 0, received[0])
    remove_temporary(ending=True)
    release_all()
    with suppress(OSError):
        os.write(2, f"esm-pipeline: ended by {signal.Signals(received[0]).name}\n".encode())
    os._exit(128 + received[0])
