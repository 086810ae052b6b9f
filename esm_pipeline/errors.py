"""Errors whose cause lies outside this code: input, settings, weights, capacity.

The command line prints one line for these and exits 2; anything else is a bug and keeps its
traceback. A message tells the place, what is wrong there, and the remedy.
"""

import os

IN_WORKFLOW = "ESM_PIPELINE_IN_WORKFLOW"
"""The environment variable that the workflow sets for its jobs."""


class EsmPipelineError(Exception):
    """Base of every error a user can mend."""


class InputError(EsmPipelineError):
    """A file, record, option or setting that cannot be used as it is."""


class AmbiguousIdError(InputError):
    """An id that names several records with different sequences."""


class WeightsError(EsmPipelineError):
    """A checkpoint that is missing, damaged, or does not fit the model class."""


class CapacityError(EsmPipelineError):
    """More memory, disk or table positions asked for than there are."""


def to_set(key: str, value: str | None = None) -> str:
    """How a reader sets `key`, to `value`: in the config file, or by a flag of the command line.

    Jobs of the workflow tell keys, since that is where the user is.
    """
    name = key if os.environ.get(IN_WORKFLOW) else flag_of(key)
    return f"set {name}" if value is None else f"set {name} to '{value}'"


def flag_of(key: str) -> str:
    """`shard.gaps` -> `--gaps`."""
    return "--" + key.rpartition(".")[2].replace("_", "-")
