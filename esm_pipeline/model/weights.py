"""The one table between our names and the reference's, and a model's weights by it.

`loading` reads checkpoints by the same table, `saving` writes them.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from esm_pipeline.model.base import EsmPreTrainedModel

BASE_PREFIX = "esm."
LAYER = re.compile(r"(.*encoder\.layer\.\d+)\.([\w.]+)\.(weight|bias)")
LAYER_NAMES = {
    "attention_norm": ("attention.LayerNorm",),
    "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "distances": ("attention.self.distance_embedding",),
    "attention_out": ("attention.output.dense",),
    "cross.norm": ("crossattention.LayerNorm",),
    "cross.query": ("crossattention.self.query",),
    "cross.kv": ("crossattention.self.key", "crossattention.self.value"),
    "cross.out": ("crossattention.output.dense",),
    "feed_norm": ("LayerNorm",),
    "up": ("intermediate.dense",),
    "down": ("output.dense",),
}
"""Modules of a layer here, and in the reference; several are stacked. All other names agree."""

CROSS_DISTANCES = "crossattention.self.distance_embedding.weight"
FREQUENCIES = re.compile(r".*rotary_embeddings\.inv_freq")
"""Keys of the rotary frequencies: of each layer, of `*` for all, or of the model."""

IGNORED = re.compile(rf".*position_ids|.*{re.escape(CROSS_DISTANCES)}|{FREQUENCIES.pattern}")
"""Tables that checkpoints carry, and a model makes itself, has no use for, or keeps elsewhere."""

POSITIONS = "embeddings.position_embeddings.weight"


def reference_keys(name: str) -> tuple[str, ...]:
    """Keys of the reference that make up our parameter `name`, in stacking order."""
    match = LAYER.fullmatch(name)
    if match is None:
        return (name,)
    layer, module, kind = match.groups()
    return tuple(f"{layer}.{part}.{kind}" for part in LAYER_NAMES[module])


def modern_key(key: str) -> str:
    """`key` with the LayerNorm spellings of old checkpoints (gamma, beta) renewed."""
    return re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", key))


def accept_reference_keys(
    model: nn.Module, state: dict[str, Tensor], prefix: str, *_: object
) -> None:
    """Before `load_state_dict`: give a state with the reference's keys our names, in place.

    Without it, `strict=False` would leave the layers as they were and say nothing.
    """
    own = {f"{prefix}{name}" for name, _ in model.named_parameters(remove_duplicate=False)}
    for name in own - state.keys():
        keys = [f"{prefix}{key}" for key in reference_keys(name.removeprefix(prefix))]
        if all(key in state for key in keys):
            parts = [state.pop(key) for key in keys]
            state[name] = torch.cat(parts) if len(parts) > 1 else parts[0]
    for key in state.keys() - own:
        table = IGNORED.fullmatch(key) or key.endswith(POSITIONS)
        if key.startswith(prefix) and table:
            del state[key]


def reference_state(model: EsmPreTrainedModel) -> dict[str, Tensor]:
    """The model's weights under the reference's keys, with the tables its loaders look for."""
    state = reference_tables(model)
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    tied -= {name for name, _ in model.named_parameters()}
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        keys = reference_keys(name)
        for key, part in zip(keys, tensor.chunk(len(keys)), strict=True):
            state[key] = part.contiguous()
    return state


def reference_tables(model: EsmPreTrainedModel) -> dict[str, Tensor]:
    """What the reference keeps in a checkpoint without learning it.

    Position tables of models that have other positions, the frequencies of rotary ones, distances
    in cross attention. Without these, transformers 4 and 5 report missing keys.
    """
    config = model.config
    if config.position_embedding_type == "absolute":
        return {}
    prefix = BASE_PREFIX if hasattr(model, "esm") else ""
    most = config.max_position_embeddings
    head_width = config.hidden_size // config.num_attention_heads
    zeros = partial(torch.zeros, dtype=model.dtype)
    tables = {f"{prefix}{POSITIONS}": zeros(most, config.hidden_size)}
    for number in range(config.num_hidden_layers):
        layer = f"{prefix}encoder.layer.{number}"
        attentions = ["attention", *["crossattention"] * config.add_cross_attention]
        if config.position_embedding_type == "rotary":
            for name in attentions:
                key = f"{layer}.{name}.self.rotary_embeddings.inv_freq"
                tables[key] = model.base_model.encoder.frequencies.clone()
        elif config.add_cross_attention:
            tables[f"{layer}.{CROSS_DISTANCES}"] = zeros(2 * most - 1, head_width)
    return tables
