"""Errors whose cause lies outside this code: input, settings, weights, capacity.

The command line prints one line for these and exits 2; anything else is a bug and keeps its
traceback. A message tells the place, what is wrong there, and the remedy.
"""

from __future__ import annotations


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
