"""What a model's state has beside its parameters, whose names are the reference's.

Tables that only the reference has are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from esm_pipeline.model.base import EsmPreTrainedModel

BASE_PREFIX = "esm."
CROSS_DISTANCES = "crossattention.self.distance_embedding.weight"
FREQUENCIES = re.compile(r".*rotary_embeddings\.inv_freq")
"""Keys of the rotary frequencies: of each layer, of `*` for all, or of the model."""

RESIDUE_TABLES = (
    r"af2_to_esm|trunk\.structure_module\.(default_frames|group_idx|atom_mask|lit_positions)"
)
IGNORED = re.compile(
    rf".*position_ids|.*{re.escape(CROSS_DISTANCES)}|{FREQUENCIES.pattern}|{RESIDUE_TABLES}"
)
"""Tables that checkpoints carry, and a model makes itself, has no use for, or keeps elsewhere."""

POSITIONS = "embeddings.position_embeddings.weight"
TIED, EMBEDDING = "lm_head.decoder.weight", "esm.embeddings.word_embeddings.weight"
"""The weight of a head that predicts tokens, and the one it shares unless the config says no."""


def modern_key(key: str) -> str:
    """`key` with the LayerNorm spellings of old checkpoints (gamma, beta) renewed."""
    return re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", key))


def complete_state(
    model: EsmPreTrainedModel, state: dict[str, Tensor], prefix: str, _: Any
) -> None:
    """After `state_dict`: let no two entries share memory.

    So that whoever writes a bare state, as a Trainer does, can write it.
    """
    shared, own = f"{prefix}{TIED}", state.get(f"{prefix}{EMBEDDING}")
    if shared in state and own is not None:
        same = state[shared].data_ptr() == own.data_ptr()
        state[shared] = own.clone() if same and not own.requires_grad else state[shared]


def accept_reference_state(
    model: EsmPreTrainedModel, state: dict[str, Tensor], prefix: str, *_: object
) -> None:
    """Before `load_state_dict`: rename what has old names, and drop tables that are not needed.

    Rotary frequencies may be missing, or stand once for all. A tied head that the state lacks is
    its token embedding.
    """
    own = {f"{prefix}{name}" for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = {f"{prefix}{name}": held for name, held in model.named_buffers()}
    tables = {key: held for key, held in buffers.items() if FREQUENCIES.fullmatch(key)}
    shapes = {held.shape for held in tables.values()}
    for key in [key for key in state if key.startswith(prefix) and key not in own | tables.keys()]:
        table = state[key]
        if modern_key(key) in own:
            state[modern_key(key)] = state.pop(key)
        elif FREQUENCIES.fullmatch(key) and table.shape in shapes:
            tables = dict.fromkeys(tables, table)
        if IGNORED.fullmatch(key) or key.endswith(POSITIONS):
            state.pop(key, None)
    told = next((state[key] for key in tables if key in state), None)
    for key, table in tables.items():
        own_table = table if told is None else told
        state[key] = state.get(key, own_table).detach().float().clone()
    shared, embedding = f"{prefix}{TIED}", f"{prefix}{EMBEDDING}"
    tied = shared in own and model.config.tie_word_embeddings
    if tied and shared not in state and embedding in state:
        state[shared] = state[embedding]


def reference_state(
    model: EsmPreTrainedModel, state: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """A model's weights with the tables that the reference's loaders look for, each once.

    `state` may stand for the model's own.
    """
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    tied -= {name for name, _ in model.named_parameters()}
    own = model.state_dict() if state is None else state
    kept = {key: tensor.contiguous() for key, tensor in own.items() if key not in tied}
    return {**reference_tables(model), **kept}


def reference_tables(model: EsmPreTrainedModel) -> dict[str, Tensor]:
    """What the reference keeps in a checkpoint, and neither learns nor uses.

    Position tables of models that have other positions, distances in cross attention. Without
    these, transformers 4 and 5 report missing keys.
    """
    config = model.config
    tables: dict[str, Tensor] = {}
    if hasattr(model, "af2_to_esm"):
        tables["af2_to_esm"] = model.af2_to_esm  # type: ignore[assignment]
    if config.position_embedding_type == "absolute":
        return tables
    prefix = BASE_PREFIX if hasattr(model, "esm") else ""
    most = config.max_position_embeddings
    head_width = config.hidden_size // config.num_attention_heads
    zeros = partial(torch.zeros, dtype=model.dtype)
    tables[f"{prefix}{POSITIONS}"] = zeros(most, config.hidden_size)
    if config.position_embedding_type != "rotary" and config.add_cross_attention:
        for number in range(config.num_hidden_layers):
            key = f"{prefix}encoder.layer.{number}.{CROSS_DISTANCES}"
            tables[key] = zeros(2 * most - 1, head_width)
    return tables
