"""Decoder layers: a causal self-attention with a cache, and cross attention to an encoder's states.

Right, not fast: all of it takes the explicit path. Peer: transformers 4.37.2 `EsmLayer`. Where that
fails, or contradicts its own pass without a cache, this is the reading here:

- **Positions belong to self-attention.** Between a decoder's token and an encoder's there is no
  distance: cross attention rotates nothing and adds no relative term. (The reference turns both by
  the encoder's length, or adds the decoder's distances; most shapes then fail.)
- **A token stands where it stands.** After a past of P tokens the next one has the position P, so
  that decoding in steps equals one pass, with every type of positions and any number of tokens a
  step. (The reference takes one token a step, with a mask (B, 1), and counts rotary and relative
  positions from 0 again.) The cache has keys before rotation, as there.
- **Masked tokens of the past** are those of `attention_mask` (B, P + L); where it says nothing of
  the past, those that were masked when they were computed. Learned positions leave them out when
  they count, as they do padding.
- **With token dropout**, steps equal one pass where no token is <mask>: its factor is a sequence's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from esm_pipeline.model.attention import attend_to_padded
from esm_pipeline.model.config import EsmConfig
from esm_pipeline.model.decoder_inputs import Memory
from esm_pipeline.model.layer import (
    Ask,
    EsmAttention,
    EsmLayer,
    EsmOutput,
    EsmSelfAttention,
    Seen,
    active,
)
from esm_pipeline.model.layout import PackedLayout
from esm_pipeline.model.rotary import RotaryEmbedding, Tables, rotary_tables, rotate


class EsmDecoderLayer(EsmLayer):
    """A layer whose tokens see none after them, and an encoder's if the config says so."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__(config)
        self.attention = EsmAttention(config, EsmCausalAttention(config))
        self.crossattention = EsmCrossAttention(config) if config.add_cross_attention else None

    def forward(
        self, x: Tensor, layout: PackedLayout, tables: Tables | None, ask: Ask
    ) -> tuple[Tensor, Seen]:
        """(T, D) → (T, D), the maps if asked for, and the cache."""
        x, seen = self.attention(x, layout, tables, ask)
        if self.crossattention is not None:
            x, other = self.crossattention(x, layout, ask)
            cache = None if seen.cache is None else seen.cache + other.cache
            seen = Seen(seen.maps, other.cross_maps, cache)
        return self.feed(x), seen


class EsmCausalAttention(EsmSelfAttention):
    """Attention to the tokens up to each, those of earlier passes among them."""

    causal = True

    def forward(
        self, x: Tensor, layout: PackedLayout, tables: Tables | None, ask: Ask
    ) -> tuple[Tensor, Seen]:
        """Normed states (T, D) → (T, H * K), the maps if asked for, and the cache."""
        q, k, v = self.project(x)
        memory = ask.memory
        cache: tuple[Tensor, ...] = ()
        if memory is not None and (memory.with_cache or ask.past):
            cache = memory.extended(ask.past, k, v, layout)
        if memory is not None and ask.past:
            mixed, maps = self.look_back(q, cache, layout, tables, ask, memory)
        else:
            mixed, maps = self.attend(q, k, v, layout, tables, ask)
        kept = cache if memory is not None and memory.with_cache else None
        return mixed.flatten(1), Seen(maps, cache=kept)

    def look_back(
        self,
        q: Tensor,
        cache: tuple[Tensor, ...],
        layout: PackedLayout,
        tables: Tables | None,
        ask: Ask,
        memory: Memory,
    ) -> tuple[Tensor, list[Tensor] | None]:
        """Queries (T, H, K) over the keys of earlier passes and of this one → (T, H, K)."""
        keys, values = cache
        if tables is not None:
            places = torch.arange(keys.shape[2], device=keys.device)
            key_tables = rotary_tables(places, tables.frequencies, keys.dtype)
            q = rotate(q, tables)
            keys = rotate(keys.transpose(1, 2), key_tables).transpose(1, 2)
        assert memory.past is not None, "what ask.past is of"
        assert memory.visible is not None, "a past comes with its mask"
        return attend_to_padded(
            q,
            keys,
            values,
            memory.visible,
            layout,
            active(self.dropout),
            self.own(ask.head_mask),
            places=memory.past.places(layout),
            distances=self.distance_embedding,
            with_maps=ask.maps,
        )


class EsmCrossAttention(nn.Module):
    """Attention to an encoder's states behind a norm, added to the decoder's."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        self.self = EsmEncoderAttention(config)
        self.output = EsmOutput(config, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, layout: PackedLayout, ask: Ask) -> tuple[Tensor, Seen]:
        """(T, D) → (T, D), the maps if asked for, and the encoder's keys and values."""
        mixed, seen = self.self(self.LayerNorm(x), layout, ask)
        return self.output(mixed, x), seen


class EsmEncoderAttention(nn.Module):
    """Attention to an encoder's states, without positions; its heads are never pruned."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)
        if config.position_embedding_type == "rotary":  # without use, as checkpoints have it
            self.rotary_embeddings = RotaryEmbedding(width // self.heads)

    def forward(self, x: Tensor, layout: PackedLayout, ask: Ask) -> tuple[Tensor, Seen]:
        """Normed states (T, D) → (T, H * K), the maps if asked for, and keys and values."""
        assert ask.memory is not None, "EsmEncoder.steps asks for it"
        assert ask.memory.states_visible is not None, "build_memory makes it"
        states = self.look(ask.memory, ask.past)
        mixed, maps = attend_to_padded(
            self.query(x).unflatten(-1, (self.heads, -1)),  # (T, H, K)
            *states,
            ask.memory.states_visible,
            layout,
            active(self.dropout),
            ask.head_mask,
            with_maps=ask.maps,
        )
        return mixed.flatten(1), Seen(cross_maps=maps, cache=states)

    def look(self, memory: Memory, past: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, S, K) of the encoder's states, cached ones if there are."""
        if len(past) == 4:
            return past[2], past[3]
        assert memory.states is not None, "build_memory asks for it"
        dtype = getattr(self.query.weight, "dtype", memory.states.dtype)  # none in 8 bits
        states = memory.states.to(dtype)
        k, v = (
            project(states).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.key, self.value)
        )
        return k, v
