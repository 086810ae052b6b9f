"""One layer of the encoder: self-attention and feed-forward, each behind its norm.

Peers: fair-esm modules.py `TransformerLayer`, transformers modeling_esm.py `EsmLayer`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from esm_pipeline.model.attention import attend, attend_explicitly
from esm_pipeline.model.config import EsmConfig
from esm_pipeline.model.layout import PackedLayout
from esm_pipeline.model.memory import Memory
from esm_pipeline.model.positions import distance_embedding
from esm_pipeline.model.rotary import Tables, rotate


class Ask(NamedTuple):
    """What a layer is asked for beside the states, and given beside the tokens."""

    maps: bool = False
    head_mask: Tensor | None = None  # (H,)
    memory: Memory | None = None  # of a decoder
    past: tuple[Tensor, ...] = ()  # of a decoder: this layer's cache, from earlier passes


class Seen(NamedTuple):
    """What a layer tells beside the states: maps for each group of the layout, and its cache."""

    maps: list[Tensor] | None = None  # (sequences, H, L, L); L, S over a cache
    cross_maps: list[Tensor] | None = None  # (sequences, H, L, S)
    cache: tuple[Tensor, ...] | None = None  # (B, H, S, K) each


class EsmLayer(nn.Module):
    """Self-attention and feed-forward, each behind its norm and added to what came in.

    `heads` are the numbers of the heads that the layer has, all unless some were pruned.
    """

    causal = False

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.heads = list(range(config.num_attention_heads))
        self.head_width = width // config.num_attention_heads
        self.attention_dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.hidden_dropout = nn.Dropout(config.hidden_dropout_prob)
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.distances = distance_embedding(config)
        self.attention_out = nn.Linear(width, width)
        self.feed_norm = nn.LayerNorm(width, eps=eps)
        self.up = nn.Linear(width, config.intermediate_size)
        self.activation: nn.Module = nn.GELU()  # by erf, not tanh
        self.down = nn.Linear(config.intermediate_size, width)

    def forward(
        self, x: Tensor, layout: PackedLayout, tables: Tables | None, ask: Ask
    ) -> tuple[Tensor, Seen]:
        """(T, D) → (T, D), and the attention maps if asked for."""
        q, k, v = self.project(x)
        mixed, maps = self.attend(q, k, v, layout, tables, ask)
        return self.feed(self.add(x, self.attention_out(mixed.flatten(1)))), Seen(maps)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """(T, D) → queries, keys and values, (T, H, K) each."""
        qkv: Tensor = self.qkv(self.attention_norm(x))
        return torch.unbind(qkv.unflatten(-1, (3, len(self.heads), self.head_width)), 1)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: PackedLayout,
        tables: Tables | None,
        ask: Ask,
    ) -> tuple[Tensor, list[Tensor] | None]:
        """(T, H, K) ×3 → (T, H, K). The one place where the explicit path is chosen, or not."""
        if tables is not None:
            q, k = rotate(q, tables), rotate(k, tables)
        if ask.maps or ask.head_mask is not None or self.causal or self.distances is not None:
            return attend_explicitly(
                q,
                k,
                v,
                layout,
                self.dropout,
                self.own(ask.head_mask),
                causal=self.causal,
                distances=self.distances,
                with_maps=ask.maps,
            )
        return attend(q, k, v, layout, self.dropout), None

    def own(self, head_mask: Tensor | None) -> Tensor | None:
        """Of a mask of all heads (H,), what concerns those that the layer has."""
        return None if head_mask is None else head_mask[self.heads]

    def feed(self, x: Tensor) -> Tensor:
        """The feed-forward half, (T, D) → (T, D)."""
        return self.add(x, self.down(self.activation(self.up(self.feed_norm(x)))))

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        """`x` with a branch added, after dropout in training."""
        dropped: Tensor = self.hidden_dropout(branch)
        return x + dropped

    @property
    def dropout(self) -> float:
        """Probability with which attention drops a weight; zero outside of training."""
        return self.attention_dropout.p if self.attention_dropout.training else 0.0
