"""Errors whose cause lies outside this code: input, settings, weights, capacity.

The command line prints one line for each and exits with 2; anything else is a bug and keeps its
traceback. A message gives the place, what is wrong there, and the remedy. It names settings as the
user writes them: flags on the command line, keys in the workflow, arguments of a function.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from reprlib import Repr

SHORT = Repr()
SHORT.maxstring = SHORT.maxlong = SHORT.maxother = 60
"""Shortens values for a message."""

IN_WORKFLOW = "ESM_PIPELINE_WORKFLOW"
"""Environment variable that the workflow sets for its jobs."""


IN_FUNCTION = ContextVar("IN_FUNCTION", default=False)
"""Whether a function such as `embed` is called, whose arguments have the names of settings."""


def setting(key: str) -> str:
    """How a message names the setting `key`.

    `score.offset` in the workflow, `offset` where a function was called, else `--offset`.
    """
    name = key.rpartition(".")[2]
    if IN_FUNCTION.get():
        return name
    return key if os.environ.get(IN_WORKFLOW) else "--" + name.replace("_", "-")


@contextmanager
def naming_arguments() -> Iterator[None]:
    """Within, messages name settings as arguments of a function."""
    token = IN_FUNCTION.set(True)
    try:
        yield
    finally:
        IN_FUNCTION.reset(token)


class EsmPipelineError(Exception):
    """Base of every error that the user can fix."""


class InputError(EsmPipelineError):
    """A file, record, flag or setting that cannot be used as it is."""


class DamagedError(InputError):
    """A file whose contents are not as they were written; `why` says what is wrong, then `remedy`.

    A file that cannot be read because of its permissions or file system is not damaged.
    """

    def __init__(
        self, path: str, why: str, remedy: str = "give the file as it was written, or make it again"
    ) -> None:
        super().__init__(f"{path}: {why}; {remedy}")
        self.path, self.why, self.remedy = path, why, remedy

    def __reduce__(self) -> tuple[type[DamagedError], tuple[str, str, str]]:
        return type(self), (self.path, self.why, self.remedy)


class AmbiguousIdError(InputError):
    """An id of several records with different sequences."""


class WeightsError(EsmPipelineError):
    """A checkpoint that is missing, damaged, or does not fit the model class."""


class CapacityError(EsmPipelineError):
    """More memory, disk space or positions needed than available."""


def number_of(count: int, noun: str) -> str:
    """A number of things for people: `1 record`, `1,234 records`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def brief(value: object) -> str:
    """The `repr` of a value, shortened to fit into a message of one line."""
    try:
        text = SHORT.repr(value)
    except (ValueError, RecursionError):  # a number with more digits than Python converts to text
        return f"a very large {type(value).__name__}"
    return text if text.isprintable() else ascii(text)[1:-1]
