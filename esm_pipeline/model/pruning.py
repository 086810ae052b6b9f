"""Pruning of attention heads: their rows and columns are cut out of a layer's weights for good.

A head keeps its number when others go: numbers are those of the whole model, in arguments, in
`config.pruned_heads` and in head masks. Peer: transformers 4.37.2 `prune_heads`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from esm_pipeline.errors import WeightsError

if TYPE_CHECKING:
    from esm_pipeline.model.config import EsmConfig
    from esm_pipeline.model.layer import EsmLayer

Pruned = dict[int, list[int]]
"""Layer, from 0, to the numbers of its heads."""


def read_pruned(given: Any, layers: Any = None) -> Pruned:
    """`pruned_heads` with numbers as keys, which JSON has as text.

    Of a model with that many `layers`, negative ones are counted from its end, as scripts of the
    reference write them. Raises WeightsError.
    """
    pruned: dict[int, set[Any]] = {}
    count = layers if type(layers) is int else 0
    try:
        for key, heads in dict(given or {}).items():
            layer = int(key)
            layer += count if -count <= layer < 0 else 0
            pruned.setdefault(layer, set()).update(heads)
        return {layer: sorted(heads) for layer, heads in pruned.items()}
    except (TypeError, ValueError):
        raise WeightsError(
            f"config: pruned_heads should map layers to lists of heads, it is {given!r}"
        ) from None


def union(pruned: Pruned, more: Pruned) -> Pruned:
    """Both together."""
    joined = {layer: [*heads, *pruned.get(layer, ())] for layer, heads in more.items()}
    return {**pruned, **read_pruned(joined)}


def impossible(pruned: Pruned, config: EsmConfig) -> str | None:
    """What of `pruned` the model lacks, in words; None if it has all."""
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    for layer, numbers in pruned.items():
        if layer not in range(layers):
            return f"there is no layer {layer}; they are 0 to {layers - 1}"
        for head in numbers:
            if type(head) is not int or head not in range(heads):
                return f"layer {layer} has no head {head!r}; they are 0 to {heads - 1}"
    return None


def prune_layer(layer: EsmLayer, heads: Collection[int]) -> None:
    """Cut `heads` out of `layer`, by their numbers in the whole model; those gone already are gone.

    The weights are new parameters: an optimizer should be made afterwards.
    """
    attention = layer.attention.self
    kept = [place for place, head in enumerate(attention.heads) if head not in heads]
    device, width = attention.query.weight.device, attention.head_width
    rows = torch.tensor(kept, dtype=torch.int64, device=device).unsqueeze(1) * width
    rows = (rows + torch.arange(width, device=device)).flatten()
    for linear in (attention.query, attention.key, attention.value):
        cut(linear, rows, dim=0)
    cut(layer.attention.output.dense, rows, dim=1)
    attention.heads = [attention.heads[place] for place in kept]


def cut(linear: nn.Linear, kept: Tensor, dim: int) -> None:
    """Keep of a linear layer the outputs (`dim` 0) or inputs (`dim` 1) that `kept` numbers."""
    trains = linear.weight.requires_grad
    linear.weight = nn.Parameter(linear.weight.detach().index_select(dim, kept), trains)
    if dim == 0:
        linear.bias = nn.Parameter(linear.bias.detach().index_select(0, kept), trains)
    linear.out_features, linear.in_features = linear.weight.shape
