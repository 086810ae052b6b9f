"""Errors whose cause lies outside this code: input, settings, weights, capacity.

The command line prints one line for these and exits 2; anything else is a bug and keeps its
traceback. A message tells the place, what is wrong there, and the remedy, with the settings called
as they are where the user is.
"""

from __future__ import annotations

import os

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


class AmbiguousIdError(InputError):
    """An id that names several records with different sequences."""


class WeightsError(EsmPipelineError):
    """A checkpoint that is missing, damaged, or does not fit the model class."""


class CapacityError(EsmPipelineError):
    """More memory, disk or table positions asked for than there are."""
