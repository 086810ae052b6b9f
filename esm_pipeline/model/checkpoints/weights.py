"""State dicts with the keys and the extra tables of transformers 4.37.2.

The model itself does without these tables: they are added when it is saved and dropped when it is
loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from esm_pipeline.model.checkpoints.keys import (
    BASE_PREFIX,
    CROSS_DISTANCES,
    EMBEDDING,
    FREQUENCIES,
    IGNORED,
    POSITIONS,
    TIED,
    modern_key,
)

if TYPE_CHECKING:
    from esm_pipeline.model.config import EsmConfig


class CheckpointModel(Protocol):
    """What this folder needs to know of a model: an `nn.Module` that can be saved and loaded."""

    config: EsmConfig

    @property
    def base_model(self) -> Any:
        """The `EsmModel` in a model with a head, or the model itself."""

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the parameters."""

    def precision_of(self, name: str) -> torch.dtype | None:
        """The fixed precision of a parameter; None if the caller of `from_pretrained` chooses."""

    def is_foreign(self) -> bool:
        """Whether a script defines the class, so that nothing is known of its weights."""

    def tie_weights(self) -> None:
        """Let the language model head share the token embedding, if the config says so."""

    def named_parameters(
        self, *, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """See `nn.Module`."""

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """See `nn.Module`."""

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """See `nn.Module`."""

    def get_submodule(self, target: str) -> nn.Module:
        """See `nn.Module`."""

    def state_dict(self) -> dict[str, Any]:
        """See `nn.Module`."""

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """See `nn.Module`."""

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """See `nn.Module`."""


def complete_state(model: CheckpointModel, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    """Hook after `state_dict`: no two tensors share memory.

    Whoever writes the bare state, as a Trainer does, could not write it otherwise.
    """
    shared, own = f"{prefix}{TIED}", state.get(f"{prefix}{EMBEDDING}")
    if shared in state and own is not None:
        same = state[shared].data_ptr() == own.data_ptr()
        state[shared] = own.clone() if same and not own.requires_grad else state[shared]


def accept_reference_state(
    model: CheckpointModel, state: dict[str, Tensor], prefix: str, *_: object
) -> None:
    """Hook before `load_state_dict`: replace old names, and drop tables that are not needed.

    Rotary frequencies may be absent, or given once for all layers. If the state has no tied head,
    its token embedding is used.
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
    given = next((state[key] for key in tables if key in state), None)
    for key, table in tables.items():
        own_table = table if given is None else given
        state[key] = state.get(key, own_table).detach().float().clone()
    shared, embedding = f"{prefix}{TIED}", f"{prefix}{EMBEDDING}"
    tied = shared in own and model.config.tie_word_embeddings
    if tied and shared not in state and embedding in state:
        state[shared] = state[embedding]


def reference_state(
    model: CheckpointModel, state: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The weights of a model, each once, with the tables that transformers looks for.

    If `state` is given, it replaces the model's own weights.
    """
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    tied -= {name for name, _ in model.named_parameters()}
    own = model.state_dict() if state is None else state
    kept = {key: tensor.contiguous() for key, tensor in own.items() if key not in tied}
    return {**reference_tables(model), **kept}


def reference_tables(model: CheckpointModel) -> dict[str, Tensor]:
    """What transformers keeps in a checkpoint, and neither learns nor uses.

    Position tables of models with another kind of position, distances in cross attention. Without
    these, transformers 4 and 5 report missing keys.
    """
    config = model.config
    tables: dict[str, Tensor] = {}
    if hasattr(model, "af2_to_esm"):
        tables["af2_to_esm"] = model.af2_to_esm
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
