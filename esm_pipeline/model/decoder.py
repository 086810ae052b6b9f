"""Decoder layers: causal self-attention with a KV cache, and cross attention to encoder states.

Right, not fast: all of it takes the explicit path. Peer: transformers 4.37.2 `EsmLayer`. Where that
fails, or disagrees with its own pass without a cache, the rules here are:

- **Only self-attention has positions.** No distance is defined between a token of the decoder and
  one of the encoder: cross attention rotates nothing and adds no relative term. (The reference
  rotates both by the encoder's length, or adds the decoder's distances; most shapes then fail.)
- **A token keeps its position.** After a past of P tokens the next one has the position P, so that
  decoding in steps equals one pass, with every type of positions and any number of tokens in a
  step. (The reference takes one token a step, with a mask (B, 1), and counts rotary and relative
  positions from 0 again.) The cache holds keys before rotation, as in the reference.
- **Masked tokens of the past** are given by `attention_mask` (B, P + L). If the mask covers only
  this pass, those that were masked when they were computed. As padding, they do not count in
  learned positions.
- **With token dropout**, decoding in steps equals one pass only without <mask> tokens: the factor
  depends on the whole sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from esm_pipeline.model.config import EsmConfig
from esm_pipeline.model.decoder_inputs import DecoderInputs
from esm_pipeline.model.explicit_attention import attend_to_padded
from esm_pipeline.model.layer import (
    EsmAttention,
    EsmLayer,
    EsmOutput,
    EsmSelfAttention,
    LayerInputs,
    LayerOutputs,
    active,
)
from esm_pipeline.model.layout import PackedLayout
from esm_pipeline.model.rotary import RotaryEmbedding, RotaryTables, rotary_tables, rotate


class EsmDecoderLayer(EsmLayer):
    """A layer whose tokens attend to earlier ones and, if the config says so, to encoder states."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__(config)
        self.attention = EsmAttention(config, EsmCausalAttention(config))
        self.crossattention = EsmCrossAttention(config) if config.add_cross_attention else None

    def forward(
        self,
        x: Tensor,
        layout: PackedLayout,
        rotary: RotaryTables | None = None,
        rows: Tensor | None = None,
        inputs: LayerInputs | None = None,
    ) -> tuple[Tensor, LayerOutputs]:
        """(T, D) → (T, D), attention maps and KV cache."""
        inputs = inputs or LayerInputs()
        x, outputs = self.attention(x, layout, rotary, rows, inputs)
        if self.crossattention is not None:
            x, cross = self.crossattention(x, layout, inputs)
            cache = None if outputs.cache is None else outputs.cache + cross.cache
            outputs = LayerOutputs(outputs.maps, cross.cross_maps, cache)
        return self.feed_forward(x), outputs


class EsmCausalAttention(EsmSelfAttention):
    """Attention of each token to itself and earlier ones, those of earlier passes included."""

    def forward(
        self,
        x: Tensor,
        layout: PackedLayout,
        rotary: RotaryTables | None = None,
        inputs: LayerInputs | None = None,
    ) -> tuple[Tensor, LayerOutputs]:
        """Normed states (T, D) → attended values (T, H * K), attention maps and KV cache."""
        inputs = inputs or LayerInputs()
        q, k, v = self.project(x)
        decoder = inputs.decoder
        cache: tuple[Tensor, ...] = ()
        if decoder is not None and (decoder.with_cache or inputs.cache):
            cache = decoder.extend_cache(inputs.cache, k, v, layout)
        if decoder is not None and inputs.cache:
            mixed, maps = self.attend_to_past(q, cache, layout, rotary, inputs, decoder)
        else:
            mixed, maps = self.explicit(q, k, v, layout, rotary, inputs, causal=True)
        kept = cache if decoder is not None and decoder.with_cache else None
        return mixed.flatten(1), LayerOutputs(maps, cache=kept)

    def attend_to_past(
        self,
        q: Tensor,
        cache: tuple[Tensor, ...],
        layout: PackedLayout,
        rotary: RotaryTables | None,
        inputs: LayerInputs,
        decoder: DecoderInputs,
    ) -> tuple[Tensor, list[Tensor] | None]:
        """Queries (T, H, K) over the keys of all passes so far → (T, H, K), and maps."""
        keys, values = cache
        if rotary is not None:
            positions = torch.arange(keys.shape[2], device=keys.device)
            key_tables = rotary_tables(positions, rotary.frequencies, keys.dtype)
            q = rotate(q, rotary)
            keys = rotate(keys.transpose(1, 2), key_tables).transpose(1, 2)
        assert decoder.visible is not None, "set with the past"
        return attend_to_padded(
            q,
            keys,
            values,
            decoder.visible,
            layout,
            active(self.dropout),
            self.own_heads(inputs.head_mask),
            positions=decoder.positions(layout),
            distances=self.distance_embedding,
            with_maps=inputs.with_maps,
        )


class EsmCrossAttention(nn.Module):
    """Attention to encoder states, after a norm and with a residual connection."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        self.self = EsmEncoderAttention(config)
        self.output = EsmOutput(config, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self, x: Tensor, layout: PackedLayout, inputs: LayerInputs
    ) -> tuple[Tensor, LayerOutputs]:
        """(T, D) → (T, D), attention maps, and the encoder's keys and values as a cache."""
        mixed, outputs = self.self(self.LayerNorm(x), layout, inputs)
        return self.output(mixed, x), outputs


class EsmEncoderAttention(nn.Module):
    """Attention to encoder states, without positions; its heads are never pruned."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)
        if config.position_embedding_type == "rotary":  # unused: checkpoints hold it
            self.rotary_embeddings = RotaryEmbedding(width // self.heads)

    def forward(
        self, x: Tensor, layout: PackedLayout, inputs: LayerInputs
    ) -> tuple[Tensor, LayerOutputs]:
        """Normed states (T, D) → attended values (T, H * K), maps, and keys and values."""
        assert inputs.decoder is not None, "EsmEncoder.steps requires it"
        assert inputs.decoder.states_visible is not None, "build_decoder_inputs makes it"
        keys_values = self.keys_values(inputs.decoder, inputs.cache)
        mixed, maps = attend_to_padded(
            self.query(x).unflatten(-1, (self.heads, -1)),  # (T, H, K)
            *keys_values,
            inputs.decoder.states_visible,
            layout,
            active(self.dropout),
            inputs.head_mask,
            with_maps=inputs.with_maps,
        )
        return mixed.flatten(1), LayerOutputs(cross_maps=maps, cache=keys_values)

    def keys_values(
        self, decoder: DecoderInputs, cache: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, S, K) of the encoder states, from the cache if it has them."""
        if len(cache) == 4:
            return cache[2], cache[3]
        assert decoder.states is not None, "build_decoder_inputs requires them"
        dtype = getattr(self.query.weight, "dtype", decoder.states.dtype)  # no dtype in 8 bits
        states = decoder.states.to(dtype)
        k, v = (
            project(states).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.key, self.value)
        )
        return k, v
