"""One layer of the encoder: self-attention and feed-forward, each behind its norm.

Modules have the reference's names and order, in which checkpoints, adapters, lists of what takes no
weight decay, and states of optimizers speak.

Peers: fair-esm modules.py `TransformerLayer`, transformers modeling_esm.py `EsmLayer`.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from esm_pipeline.model.attention import attend, attend_explicitly
from esm_pipeline.model.config import EsmConfig
from esm_pipeline.model.decoder_inputs import Memory
from esm_pipeline.model.layout import PackedLayout
from esm_pipeline.model.relative_positions import distance_embedding
from esm_pipeline.model.rotary import RotaryEmbedding, Tables, rotate


class Ask(NamedTuple):
    """What a layer is asked for beside the states, and given beside the tokens."""

    maps: bool = False
    head_mask: Tensor | None = None  # (H,)
    memory: Memory | None = None  # of a decoder
    past: tuple[Tensor, ...] = ()  # of a decoder: this layer's cache, from earlier passes
    rows: Tensor | None = None  # (M,), the tokens wanted behind the attention; all by default


class Seen(NamedTuple):
    """What a layer tells beside the states: maps for each group of the layout, and its cache."""

    maps: list[Tensor] | None = None  # (sequences, H, L, L); L, S over a cache
    cross_maps: list[Tensor] | None = None  # (sequences, H, L, S)
    cache: tuple[Tensor, ...] | None = None  # (B, H, S, K) each


class EsmSelfAttention(nn.Module):
    """Attention of each sequence over itself.

    `heads` are the numbers of the heads that it has, all unless some were pruned. `fused` computes
    queries, keys and values at once; `optimize_for_inference` puts it in place of the three.
    """

    causal = False

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = list(range(config.num_attention_heads))
        self.head_width = width // config.num_attention_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.fused: nn.Module | None = None
        self.distance_embedding = distance_embedding(config)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)
        if config.position_embedding_type == "rotary":
            self.rotary_embeddings = RotaryEmbedding(self.head_width)

    def forward(
        self, x: Tensor, layout: PackedLayout, tables: Tables | None, ask: Ask
    ) -> tuple[Tensor, Seen]:
        """Normed states (T, D) → what the heads see (T, H * K), and the maps if asked for."""
        q, k, v = self.project(x)
        mixed, maps = self.attend(q, k, v, layout, tables, ask)
        return mixed.flatten(1), Seen(maps)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """(T, D) → queries, keys and values, (T, H, K) each."""
        if self.fused is None:
            parts = (self.query(x), self.key(x), self.value(x))
        else:
            parts = self.fused(x).chunk(3, -1)
        return tuple(part.unflatten(-1, (len(self.heads), self.head_width)) for part in parts)

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
            q, k = self.turn(q, tables), self.turn(k, tables)
        distances = self.distance_embedding
        if ask.maps or ask.head_mask is not None or self.causal or distances is not None:
            return attend_explicitly(
                q,
                k,
                v,
                layout,
                active(self.dropout),
                self.own(ask.head_mask),
                causal=self.causal,
                distances=distances,
                with_maps=ask.maps,
            )
        return attend(q, k, v, layout, active(self.dropout)), None

    def turn(self, x: Tensor, tables: Tables) -> Tensor:
        """Rotate queries or keys (T, H, K)."""
        return rotate(x, tables)

    def own(self, head_mask: Tensor | None) -> Tensor | None:
        """Of a mask of all heads (H,), what concerns those that the layer has."""
        return None if head_mask is None else head_mask[self.heads]


class EsmAttention(nn.Module):
    """The attention half of a layer: norm, `self`, and what is added to the states that came in."""

    def __init__(self, config: EsmConfig, inner: EsmSelfAttention) -> None:
        super().__init__()
        self.self = inner
        self.output = EsmOutput(config, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self, x: Tensor, layout: PackedLayout, tables: Tables | None, ask: Ask
    ) -> tuple[Tensor, Seen]:
        """(T, D) → (T, D), or (M, D) of the wanted tokens, and what `self` tells."""
        mixed, seen = self.self(self.LayerNorm(x), layout, tables, ask)
        if ask.rows is not None:
            x, mixed = x.index_select(0, ask.rows), mixed.index_select(0, ask.rows)
        return self.output(mixed, x), seen


class EsmIntermediate(nn.Module):
    """The widening half of the feed-forward."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation: nn.Module = nn.GELU()  # by erf, not tanh

    def forward(self, x: Tensor) -> Tensor:
        """(T, D) → (T, F)."""
        wide: Tensor = self.activation(self.dense(x))
        return wide


class EsmOutput(nn.Module):
    """A branch back to the width of the states, after dropout added to them."""

    def __init__(self, config: EsmConfig, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, branch: Tensor, x: Tensor) -> Tensor:
        """A branch (T, width), and the states (T, D) → (T, D)."""
        added: Tensor = self.dropout(self.dense(branch))
        return x + added


class EsmLayer(nn.Module):
    """Self-attention and feed-forward, each behind its norm and added to what came in."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        self.attention = EsmAttention(config, EsmSelfAttention(config))
        self.intermediate = EsmIntermediate(config)
        self.output = EsmOutput(config, config.intermediate_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self, x: Tensor, layout: PackedLayout, tables: Tables | None, ask: Ask
    ) -> tuple[Tensor, Seen]:
        """(T, D) → (T, D), or (M, D) of the wanted tokens, and the attention maps if asked for."""
        x, seen = self.attention(x, layout, tables, ask)
        return self.feed(x), seen

    def feed(self, x: Tensor) -> Tensor:
        """The feed-forward half, (T, D) → (T, D)."""
        fed: Tensor = self.output(self.intermediate(self.LayerNorm(x)), x)
        return fed


def active(dropout: nn.Dropout) -> float:
    """Probability with which a weight is dropped; zero outside of training."""
    return dropout.p if dropout.training else 0.0
