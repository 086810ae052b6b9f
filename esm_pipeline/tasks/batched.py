"""What comes out of a model for a batch, on its way into a file."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esm_pipeline.tasks.planning import NOT_FINITE

Values = NDArray[np.float16] | NDArray[np.float32]

TOO_LARGE = (
    f"a value beyond ±{torch.finfo(torch.float16).max:.0f} does not fit into float16; set "
    "embed.residue_dtype to float32"
)


class Computed:
    """What came out of a batch, in host memory.

    `values`: array name → (units of all sequences, *shape). `problems`: place of a sequence in the
    batch → why its values cannot be stored.
    """

    def __init__(self) -> None:
        self.values: dict[str, Values] = {}
        self.problems: dict[int, str] = {}

    def add(
        self, name: str, values: Tensor, units: list[int], dtype: torch.dtype = torch.float32
    ) -> None:
        """Take up an array, `units` of it for each sequence, to be stored as `dtype`."""
        limit = torch.finfo(dtype).max
        if not largest(values) <= limit:
            for place, part in enumerate(torch.split(values, units)):
                size = largest(part)
                if not size <= limit:
                    self.problems[place] = TOO_LARGE if math.isfinite(size) else NOT_FINITE
        self.values[name] = values.to(dtype).cpu().numpy()


def largest(values: Tensor) -> float:
    """The largest absolute value, or NaN if one is NaN."""
    low, high = torch.aminmax(values)
    return float(torch.maximum(-low, high))
