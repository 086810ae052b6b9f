"""Which attention heads of a model are pruned: `pruned_heads`, in a config or as an argument.

A head keeps its number when others are pruned: numbers are those of the whole model, in arguments,
in `config.pruned_heads` and in head masks. See pruning.py for the pruning itself.
"""

from __future__ import annotations

from typing import Any

from esm_pipeline.errors import WeightsError, brief

PrunedHeads = dict[int, list[int]]
"""Layer, from 0 → the numbers of its pruned heads."""


def read_pruned_heads(given: Any, layers: Any = None) -> PrunedHeads:
    """`pruned_heads` with whole numbers as keys, which JSON holds as text.

    In a model of `layers` layers, negative keys count from the last one, as users of the reference
    write them. Raises WeightsError.
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
            f"config: pruned_heads should map layers to lists of heads, it is {brief(given)}"
        ) from None


def merge_pruned_heads(pruned: PrunedHeads, more: PrunedHeads) -> PrunedHeads:
    """The heads that are in either of the two."""
    joined = {layer: [*heads, *pruned.get(layer, ())] for layer, heads in more.items()}
    return {**pruned, **read_pruned_heads(joined)}


def missing_heads(pruned: PrunedHeads, layers: int, heads: int) -> str | None:
    """Which of these a model of so many layers and heads lacks, as text; None if none."""
    for layer, numbers in pruned.items():
        if layer not in range(layers):
            return f"there is no layer {brief(layer)}; they are 0 to {layers - 1}"
        for head in numbers:
            if type(head) is not int or head not in range(heads):
                return f"layer {layer} has no head {brief(head)}; they are 0 to {heads - 1}"
    return None
