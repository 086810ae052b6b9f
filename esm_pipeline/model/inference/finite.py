"""Check that all weights of a model are finite.

Not every kernel propagates NaN: fused attention gives finite results for short proteins although a
query or key is NaN. So the weights themselves are checked once, before inference.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor

from esm_pipeline.errors import WeightsError
from esm_pipeline.model.base import EsmPreTrainedModel


def require_finite(model: EsmPreTrainedModel) -> None:
    """Raise WeightsError that names the first tensor of a model with NaN or infinity.

    Each tensor is summed, which takes 0.1 s per gigabyte: with NaN or infinity, no sum is finite.
    As a sum may also overflow, tensors with an infinite sum are checked number by number.
    """
    tensors = dict(float_tensors(model))
    if not tensors:
        return
    sums = torch.stack([tensor.sum().float() for tensor in tensors.values()])
    for (name, tensor), finite in zip(tensors.items(), sums.isfinite().tolist(), strict=True):
        if not finite and not tensor.isfinite().all():
            raise WeightsError(
                f"{model.name_or_path or type(model).__name__}: '{name}' has NaN or infinity among "
                "its weights; copy or download the checkpoint again, or repeat the training"
            )


def float_tensors(model: EsmPreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Names and values of the floating-point parameters and buffers."""
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_floating_point():
            yield name, tensor.detach()
