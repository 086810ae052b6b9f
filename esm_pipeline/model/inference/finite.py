"""Whether the weights of a model are numbers.

Not every kernel passes NaN on: fused attention gives finite results for short proteins where a
query or a key is none. So the weights are looked at, once, when they are made ready for inference.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from esm_pipeline.errors import WeightsError

if TYPE_CHECKING:
    from esm_pipeline.model.base import EsmPreTrainedModel


def require_finite(model: EsmPreTrainedModel) -> None:
    """Raise WeightsError that names the first tensor of a model with NaN or infinity in it.

    Each is summed, which takes a tenth of a second a gigabyte; no sum is finite that has one in it.
    Those whose sum is not, since it may be too large itself, are looked at number by number.
    """
    tensors = dict(floating(model))
    if not tensors:
        return
    sums = torch.stack([tensor.sum().float() for tensor in tensors.values()])
    for (name, tensor), finite in zip(tensors.items(), sums.isfinite().tolist(), strict=True):
        if not finite and not tensor.isfinite().all():
            raise WeightsError(
                f"{model.name_or_path or type(model).__name__}: '{name}' has NaN or infinity among "
                "its weights; copy or download the checkpoint again, or train it anew"
            )


def floating(model: EsmPreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Names and values of the numbers that a model computes with."""
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_floating_point():
            yield name, tensor.detach()
