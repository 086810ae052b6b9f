"""One layer of the encoder: self-attention and feed-forward, each after a norm.

Modules have the names and the order of the reference, on which checkpoints, adapters, parameter
groups without weight decay and saved optimizer states rely.

Peers: fair-esm modules.py `TransformerLayer`, transformers modeling_esm.py `EsmLayer`.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from esm_pipeline.model.attention import attend
from esm_pipeline.model.config import EsmConfig
from esm_pipeline.model.decoder_inputs import DecoderInputs
from esm_pipeline.model.explicit_attention import attend_explicitly
from esm_pipeline.model.layout import PackedLayout
from esm_pipeline.model.relative_positions import distance_embedding
from esm_pipeline.model.rotary import RotaryEmbedding, RotaryTables, rotate


class LayerInputs(NamedTuple):
    """Optional inputs of a layer. With them, attention takes the explicit path."""

    with_maps: bool = False
    head_mask: Tensor | None = None  # (H,)
    decoder: DecoderInputs | None = None  # the same for all layers of a decoder
    cache: tuple[Tensor, ...] = ()  # this decoder layer's, from earlier passes


class LayerOutputs(NamedTuple):
    """Optional outputs of a layer: attention maps for each group of the layout, and KV cache."""

    maps: list[Tensor] | None = None  # (sequences, H, L, L); L, S with a cache
    cross_maps: list[Tensor] | None = None  # (sequences, H, L, S)
    cache: tuple[Tensor, ...] | None = None  # (B, H, S, K) each


class EsmSelfAttention(nn.Module):
    """Attention of each sequence to itself.

    `heads`: numbers of the heads it has, which are all unless some were pruned. `fused` computes
    queries, keys and values in one product; `optimize_for_inference` replaces the three by it.
    """

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
        self,
        x: Tensor,
        layout: PackedLayout,
        rotary: RotaryTables | None = None,
        inputs: LayerInputs | None = None,
    ) -> tuple[Tensor, LayerOutputs]:
        """Normed states (T, D) → attended values (T, H * K) and optional outputs."""
        q, k, v = self.project(x)
        if inputs is not None or self.distance_embedding is not None:
            mixed, maps = self.explicit(q, k, v, layout, rotary, inputs or LayerInputs())
            return mixed.flatten(1), LayerOutputs(maps)
        q, k = self.rotated(q, rotary), self.rotated(k, rotary)
        return attend(q, k, v, layout, active(self.dropout)).flatten(1), LayerOutputs()

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """(T, D) → queries, keys and values, (T, H, K) each."""
        if self.fused is None:
            parts = (self.query(x), self.key(x), self.value(x))
        else:
            parts = self.fused(x).chunk(3, -1)
        return tuple(part.unflatten(-1, (len(self.heads), self.head_width)) for part in parts)

    def rotated(self, x: Tensor, rotary: RotaryTables | None) -> Tensor:
        """Queries or keys (T, H, K), rotated by their positions in a rotary model."""
        return x if rotary is None else rotate(x, rotary)

    def explicit(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: PackedLayout,
        rotary: RotaryTables | None,
        inputs: LayerInputs,
        *,
        causal: bool = False,
    ) -> tuple[Tensor, list[Tensor] | None]:
        """The explicit path: (T, H, K) ×3 → (T, H, K), and maps if `inputs` ask for them."""
        return attend_explicitly(
            self.rotated(q, rotary),
            self.rotated(k, rotary),
            v,
            layout,
            active(self.dropout),
            self.own_heads(inputs.head_mask),
            causal=causal,
            distances=self.distance_embedding,
            with_maps=inputs.with_maps,
        )

    def own_heads(self, head_mask: Tensor | None) -> Tensor | None:
        """The part of a mask of all heads (H,) for the heads that this layer has."""
        return None if head_mask is None else head_mask[self.heads]


class EsmAttention(nn.Module):
    """The attention half of a layer: norm, `self`, and the residual connection."""

    def __init__(self, config: EsmConfig, inner: EsmSelfAttention) -> None:
        super().__init__()
        self.self = inner
        self.output = EsmOutput(config, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self,
        x: Tensor,
        layout: PackedLayout,
        rotary: RotaryTables | None = None,
        rows: Tensor | None = None,
        inputs: LayerInputs | None = None,
    ) -> tuple[Tensor, LayerOutputs]:
        """(T, D) → (T, D), or (M, D) of the tokens `rows` (M,), and optional outputs."""
        mixed, outputs = self.self(self.LayerNorm(x), layout, rotary, inputs)
        if rows is not None:
            x, mixed = x.index_select(0, rows), mixed.index_select(0, rows)
        return self.output(mixed, x), outputs


class EsmIntermediate(nn.Module):
    """The widening half of the feed-forward."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation: nn.Module = nn.GELU()  # with erf, not tanh

    def forward(self, x: Tensor) -> Tensor:
        """(T, D) → (T, F)."""
        wide: Tensor = self.activation(self.dense(x))
        return wide


class EsmOutput(nn.Module):
    """The end of a residual branch: back to the width of the states, dropout, and the sum."""

    def __init__(self, config: EsmConfig, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, branch: Tensor, x: Tensor) -> Tensor:
        """A branch (T, width) and the states (T, D) → (T, D)."""
        added: Tensor = self.dropout(self.dense(branch))
        return x + added


class EsmLayer(nn.Module):
    """Self-attention and feed-forward, each after a norm and with a residual connection."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        self.attention = EsmAttention(config, EsmSelfAttention(config))
        self.intermediate = EsmIntermediate(config)
        self.output = EsmOutput(config, config.intermediate_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self,
        x: Tensor,
        layout: PackedLayout,
        rotary: RotaryTables | None = None,
        rows: Tensor | None = None,
        inputs: LayerInputs | None = None,
    ) -> tuple[Tensor, LayerOutputs]:
        """(T, D) → (T, D), or (M, D) of the tokens `rows` (M,), and optional outputs."""
        x, outputs = self.attention(x, layout, rotary, rows, inputs)
        return self.feed_forward(x), outputs

    def feed_forward(self, x: Tensor) -> Tensor:
        """The feed-forward half, (T, D) → (T, D)."""
        fed: Tensor = self.output(self.intermediate(self.LayerNorm(x)), x)
        return fed


def active(dropout: nn.Dropout) -> float:
    """Probability of dropping a weight: zero outside of training."""
    return dropout.p if dropout.training else 0.0
