"""Memory that runs out: it counts what all threads hold at a time, as that of a machine does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

PATIENCE = 20.0
"""Seconds that a thread waits for others to want memory beside it."""


class Allocator:
    """`room` for all threads together; whoever wants more than is left gets an error.

    tried: the sizes asked for, in turn. crowded: how often there was too little left that would
    have done had others held nothing. With `waits`, what a thread other than the main one holds is
    held until that has happened once, so that it does.
    """

    def __init__(self, room: float, error: Exception | None = None, *, waits: bool = False) -> None:
        self.room, self.error = room, error or torch.OutOfMemoryError("CUDA out of memory")
        self.held, self.most = 0.0, 0.0
        self.tried: list[float] = []
        self.crowded = 0
        self._lock, self._refused = threading.Lock(), threading.Event()
        if not waits:
            self._refused.set()

    @contextmanager
    def hold(self, size: float) -> Iterator[None]:
        """Hold `size` within. Raises the error if that is more than what is left."""
        with self._lock:
            self.tried.append(size)
            if self.held + size > self.room:
                if size <= self.room:
                    self.crowded += 1
                    self._refused.set()
                raise self.error.with_traceback(None)
            self.held += size
            self.most = max(self.most, self.held)
        try:
            if threading.current_thread() is not threading.main_thread():
                self._refused.wait(PATIENCE)
            yield
        finally:
            with self._lock:
                self.held -= size

    def limit(
        self,
        monkeypatch: pytest.MonkeyPatch,
        owner: Any,
        name: str,
        size: Callable[..., float],
    ) -> Allocator:
        """Have `owner.name` hold `size(*arguments)` of this memory while it runs; returns self."""
        whole = getattr(owner, name)

        def limited(*arguments: Any, **options: Any) -> Any:
            with self.hold(size(*arguments)):
                return whole(*arguments, **options)

        monkeypatch.setattr(owner, name, limited)
        return self


def tokens(heavy: dict[int, float] | None = None) -> Callable[..., float]:
    """The size of a batch of a model, (self, ids, layout, …): its tokens.

    heavy: what a sequence takes instead, by its tokens.
    """
    own = heavy or {}
    return lambda model, ids, layout, *rest: sum(own.get(one, one) for one in layout.lengths)
