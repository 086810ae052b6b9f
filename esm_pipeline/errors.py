"""Errors whose cause lies outside this code: input, settings, weights, capacity.

The command line prints one line for these and exits 2; anything else is a bug and keeps its
traceback. A message tells the place, what is wrong there, and the remedy, with the settings called
as they are where the user is.
"""

from __future__ import annotations

import os
from reprlib import Repr

SHORT = Repr()
SHORT.maxstring = SHORT.maxlong = SHORT.maxother = 60

IN_WORKFLOW = "ESM_PIPELINE_WORKFLOW"
"""The environment variable that the workflow sets for its jobs."""


def setting(key: str) -> str:
    """What a message calls the setting `key`: `score.offset` in the workflow, else `--offset`."""
    if os.environ.get(IN_WORKFLOW):
        return key
    return "--" + key.rpartition(".")[2].replace("_", "-")


class EsmPipelineError(Exception):
    """Base of every error a user can mend."""


class InputError(EsmPipelineError):
    """A file, record, option or setting that cannot be used as it is."""


class DamagedError(InputError):
    """A file whose contents are not as they were written; it has to be made again.

    A file that merely cannot be read, for its permissions or its file system, is not damaged.
    `why`: what is wrong with it.
    """

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}; give the file as it was written, or make it again")
        self.path, self.why = path, why

    def __reduce__(self) -> tuple[type[DamagedError], tuple[str, str]]:
        return type(self), (self.path, self.why)


class AmbiguousIdError(InputError):
    """An id that names several records with different sequences."""


class WeightsError(EsmPipelineError):
    """A checkpoint that is missing, damaged, or does not fit the model class."""


class CapacityError(EsmPipelineError):
    """More memory, disk or table positions asked for than there are."""


def brief(value: object) -> str:
    """A value for a message: its `repr`, cut to what fits on a line."""
    try:
        text = SHORT.repr(value)
    except (ValueError, RecursionError):  # a number of more digits than Python writes
        return f"a very large {type(value).__name__}"
    return text if text.isprintable() else ascii(text)[1:-1]
