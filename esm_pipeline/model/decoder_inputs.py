"""What a decoder attends to besides the tokens of a pass: its own past, and encoder states.

The arguments of `forward` for these are checked here and brought into one form. Peer: transformers
4.37.2, with its layout of `past_key_values`; decoder.py lists the differences.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from esm_pipeline.errors import InputError
from esm_pipeline.model.config import EsmConfig
from esm_pipeline.model.layout import PackedLayout

Cache = tuple[tuple[Tensor, ...], ...]
"""For each layer keys and values (B, H, P, K), then those of encoder states (B, H, S, K) if any.

Keys are not rotated; zeros at masked tokens.
"""


@dataclass(frozen=True)
class Past:
    """The KV cache of earlier passes, P tokens long. visible: (B, P) bool, those to attend to."""

    cache: Cache
    visible: Tensor

    @property
    def length(self) -> int:
        """P, padding included."""
        return self.visible.shape[1]

    @property
    def states_length(self) -> int | None:
        """S of the encoder states, None if the cache does not hold them."""
        return self.cache[0][2].shape[2] if len(self.cache[0]) == 4 else None

    def positions(self, layout: PackedLayout) -> Tensor:
        """(T,) positions of the tokens of this pass, which follow the past."""
        return layout.positions + self.length


@dataclass(frozen=True)
class DecoderInputs:
    """What all layers of a decoder share in one pass over a padded batch of `width` tokens.

    visible (T, P + width): where each token may attend; set if there is a past. states (B, S, D)
    and states_visible (T, S): those of an encoder, for cross attention.
    """

    width: int
    with_cache: bool
    past: Past | None = None
    visible: Tensor | None = None
    states: Tensor | None = None
    states_visible: Tensor | None = None

    def positions(self, layout: PackedLayout) -> Tensor:
        """(T,) positions of the tokens of this pass, which follow the past if there is one."""
        return layout.positions if self.past is None else self.past.positions(layout)

    def extend_cache(
        self, cache: Sequence[Tensor], k: Tensor, v: Tensor, layout: PackedLayout
    ) -> tuple[Tensor, ...]:
        """Append k and v (T, H, K) to a layer's cached keys and values → (B, H, P + width, K)."""
        fresh = (layout.unpack(x, self.width).transpose(1, 2) for x in (k, v))
        if not cache:
            return tuple(fresh)
        return tuple(torch.cat(pair, dim=2) for pair in zip(cache[:2], fresh, strict=True))


def read_past(config: EsmConfig, cache: Sequence[Sequence[Tensor]], batch: int) -> Past:
    """Check `past_key_values`. Raises InputError unless a model of this config can return them.

    All tokens that were not masked are visible, until a mask says otherwise: masked tokens have
    zeros in all keys and values.
    """
    if not config.is_decoder:
        raise InputError("past_key_values are for decoders; set is_decoder in the config")
    if len(cache) != config.num_hidden_layers:
        raise InputError(
            f"past_key_values have {len(cache)} layers, the model {config.num_hidden_layers}; give "
            "what this model returned"
        )
    counts = (2, 4) if config.add_cross_attention else (2,)
    lengths = [x.shape[2] if x.ndim == 4 else 0 for x in cache[0][:4:2]]  # P, and S
    whole, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    for number, tensors in enumerate(cache):
        heads = (whole - len(config.pruned_heads.get(number, ())), whole)
        expected = [
            (batch, heads[place], length, width)
            for place, length in enumerate(lengths)
            for _ in ("keys", "values")
        ]
        shapes = [tuple(x.shape) for x in tensors]
        if shapes != expected or len(shapes) not in counts:
            raise InputError(
                f"past_key_values of layer {number} have the shapes {list_shapes(shapes)}; give "
                f"what this model returned, {list_shapes(expected[:2])}"
            )
    computed = torch.cat([x.any(-1) for tensors in cache for x in tensors[:2]], dim=1).any(1)
    return Past(tuple(map(tuple, cache)), computed)


def list_shapes(shapes: Iterable[tuple[int, ...]]) -> str:
    """Shapes as text, for an error."""
    return ", ".join(map(str, shapes))


def split_mask(past: Past, attention_mask: Tensor | None, width: int) -> tuple[Past, Tensor | None]:
    """Split a mask (B, P + width) or (B, width) into the past with its part, and this pass's part.

    Raises InputError for another shape.
    """
    if attention_mask is None:
        return past, None
    batch, length = past.visible.shape
    if attention_mask.shape == (batch, length + width):
        before, own = attention_mask.split([length, width], dim=1)
        return Past(past.cache, before.bool()), own
    if attention_mask.shape == (batch, width):
        return past, attention_mask
    raise InputError(
        f"attention_mask has shape {tuple(attention_mask.shape)}, the input {(batch, width)} after "
        f"a past of {length} tokens; give {(batch, length + width)}"
    )


def build_decoder_inputs(
    config: EsmConfig,
    layout: PackedLayout,
    width: int,
    *,
    past: Past | None,
    with_cache: bool,
    states: Tensor | None,
    states_mask: Tensor | None,
) -> DecoderInputs | None:
    """The inputs of a decoder, None for an encoder. Raises InputError for what does not fit."""
    if not config.add_cross_attention and (states is not None or states_mask is not None):
        raise InputError(
            "encoder_hidden_states and their mask are for decoders with cross attention; set "
            "is_decoder and add_cross_attention in the config"
        )
    if not config.is_decoder:
        return None
    states_visible = None
    if config.add_cross_attention:
        states_visible = visible_states(config, layout, width, past, states, states_mask)
    if past is None:
        return DecoderInputs(width, with_cache, states=states, states_visible=states_visible)
    own = torch.ones_like(layout.positions, dtype=torch.bool)
    keys = torch.cat([past.visible, layout.unpack(own, width)], dim=1)  # (B, P + width)
    columns = torch.arange(keys.shape[1], device=keys.device)
    visible = keys[layout.sequence] & (columns <= past.positions(layout).unsqueeze(1))
    return DecoderInputs(width, with_cache, past, visible, states, states_visible)


def visible_states(
    config: EsmConfig,
    layout: PackedLayout,
    width: int,
    past: Past | None,
    states: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    """(T, S) bool: the encoder states that each token may attend to. Raises InputError."""
    batch = len(layout.lengths)
    count = None if past is None else past.states_length
    if states is not None:
        fits = states.ndim == 3 and states.shape == (batch, states.shape[1], config.hidden_size)
        if not fits or states.shape[1] != (count or states.shape[1]):
            raise InputError(
                f"encoder_hidden_states have shape {tuple(states.shape)}; give "
                f"({batch}, {count or 'S'}, {config.hidden_size})"
            )
        count = states.shape[1]
    if count is None:
        raise InputError(
            "this decoder attends to encoder states: give encoder_hidden_states, or "
            "past_key_values that hold their keys and values"
        )
    if mask is None:
        return torch.ones(layout.tokens, count, dtype=torch.bool, device=layout.positions.device)
    if mask.shape == (batch, count):
        visible = mask.bool()[layout.sequence]
    elif mask.shape == (batch, width, count):
        visible = layout.pack(mask.bool())
    else:
        raise InputError(
            f"encoder_attention_mask has shape {tuple(mask.shape)}; give {(batch, count)}, or "
            f"{(batch, width, count)} for each token"
        )
    if not bool(visible.any(1).all()):
        raise InputError(
            "encoder_attention_mask is zero for a whole sequence; give it at least one token"
        )
    return visible
