"""Pruning of attention heads: their rows and columns are cut out of a layer's weights for good.

Peer: transformers 4.37.2 `prune_heads`.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from esm_pipeline.model.layer import EsmLayer


def prune_layer(layer: EsmLayer, heads: Collection[int]) -> None:
    """Cut `heads` out of `layer`, by their numbers in the whole model; pruned ones are ignored.

    The weights are new parameters: create the optimizer afterwards.
    """
    attention = layer.attention.self
    kept = [place for place, head in enumerate(attention.heads) if head not in heads]
    device, width = attention.query.weight.device, attention.head_width
    rows = torch.tensor(kept, dtype=torch.int64, device=device).unsqueeze(1) * width
    rows = (rows + torch.arange(width, device=device)).flatten()
    for linear in (attention.query, attention.key, attention.value):
        select_features(linear, rows, dim=0)
    select_features(layer.attention.output.dense, rows, dim=1)
    attention.heads = [attention.heads[place] for place in kept]


def select_features(linear: nn.Linear, kept: Tensor, dim: int) -> None:
    """Keep only the outputs (`dim` 0) or inputs (`dim` 1) of a linear layer numbered by `kept`."""
    trains = linear.weight.requires_grad
    linear.weight = nn.Parameter(linear.weight.detach().index_select(dim, kept), trains)
    if dim == 0:
        linear.bias = nn.Parameter(linear.bias.detach().index_select(0, kept), trains)
    linear.out_features, linear.in_features = linear.weight.shape
