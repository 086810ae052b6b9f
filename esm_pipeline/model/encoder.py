"""The ESM encoder on packed tokens: embeddings, pre-norm layers, final norm.

Peers: fair-esm esm2.py and esm1.py (ESM-1b), transformers modeling_esm.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esm_pipeline.errors import CapacityError
from esm_pipeline.model.attention import attend, attend_with_maps
from esm_pipeline.model.config import EsmConfig
from esm_pipeline.model.layout import PackedLayout
from esm_pipeline.model.rotary import rotary_tables, rotate

MASKED_IN_TRAINING = 0.15 * 0.8
"""Share of tokens shown as <mask> when the published models were trained."""


class Step(NamedTuple):
    """The state after `layer` layers; layer 0 is the embedding."""

    layer: int
    x: Tensor  # (T, D); after the final norm for the last layer, and there only the wanted rows
    maps: list[Tensor] | None  # one (sequences, H, L, L) for each group of the layout


class EsmEmbeddings(nn.Module):
    """Token embeddings, scaled by the token-dropout rule, with learned positions if absolute."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        assert config.vocab_size is not None, "require_supported() comes first"
        assert config.pad_token_id is not None, "require_supported() comes first"
        width, pad = config.hidden_size, config.pad_token_id
        self.padding_idx = pad
        self.mask_token_id = -1 if config.mask_token_id is None else config.mask_token_id
        self.token_dropout = config.token_dropout
        self.word_embeddings = nn.Embedding(config.vocab_size, width, padding_idx=pad)
        self.position_embeddings = (
            nn.Embedding(config.max_position_embeddings, width, padding_idx=pad)
            if config.position_embedding_type == "absolute"
            else None
        )
        self.layer_norm = (
            nn.LayerNorm(width, eps=config.layer_norm_eps) if config.emb_layer_norm_before else None
        )

    def forward(
        self,
        tokens: Tensor | None,
        layout: PackedLayout,
        position_ids: Tensor | None = None,
        embeds: Tensor | None = None,
    ) -> Tensor:
        """(T,) token ids, or (T, D) embeddings in their place → (T, D).

        `position_ids` (T,) are rows of the position table; by default they count from padding + 1.
        """
        x = self.word_embeddings(tokens) if embeds is None else embeds
        if self.token_dropout and tokens is not None:
            x = self.drop_masked(x, tokens, layout)
        if self.position_embeddings is not None:
            if position_ids is None:
                position_ids = layout.positions + self.padding_idx + 1
            x = x + self.look_up(position_ids, self.position_embeddings)
        return x if self.layer_norm is None else self.layer_norm(x)

    def drop_masked(self, x: Tensor, tokens: Tensor, layout: PackedLayout) -> Tensor:
        """Zero the masked tokens and scale the rest to the magnitude of training.

        The factor is 0.88 even with nothing masked. Peer: esm2.py.
        """
        masked: Tensor = torch.eq(tokens, self.mask_token_id)  # (T,)
        x = x.masked_fill(masked.unsqueeze(1), 0.0)
        kept = 1 - MASKED_IN_TRAINING
        if not bool(masked.any()):
            return x * kept
        counts = masked.new_zeros(len(layout.lengths), dtype=torch.float32)
        counts = counts.index_add(0, layout.sequence, masked.float())
        lengths = torch.tensor(layout.lengths, device=x.device, dtype=torch.float32)
        seen = (1 - counts / lengths).index_select(0, layout.sequence).unsqueeze(1)  # (T, 1)
        return (x * kept / seen).to(x.dtype)

    @staticmethod
    def look_up(position_ids: Tensor, table: nn.Embedding) -> Tensor:
        """Rows of the position table. Raises CapacityError past its end, before the device does."""
        last = int(position_ids.max()) if position_ids.numel() else 0
        if last >= table.num_embeddings:
            raise CapacityError(
                f"a sequence needs position {last}, but the model's position table ends at "
                f"{table.num_embeddings - 1}; shorten the sequence, or use a rotary model (ESM-2)"
            )
        found: Tensor = table(position_ids)
        return found


class EsmLayer(nn.Module):
    """Self-attention and feed-forward, each behind its norm and added to what came in."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.heads = config.num_attention_heads
        self.attention_dropout = config.attention_probs_dropout_prob
        self.hidden_dropout = config.hidden_dropout_prob
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.feed_norm = nn.LayerNorm(width, eps=eps)
        self.up = nn.Linear(width, config.intermediate_size)
        self.activation: nn.Module = nn.GELU()  # by erf, not tanh
        self.down = nn.Linear(config.intermediate_size, width)

    def forward(
        self,
        x: Tensor,
        layout: PackedLayout,
        tables: tuple[Tensor, Tensor] | None,
        with_maps: bool,
        head_mask: Tensor | None,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor] | None]:
        """(T, D) → (T, D), and the attention maps if asked for.

        With `rows` (M,) → (M, D): behind the attention, only these tokens are computed.
        """
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.unbind(1)  # (T, H, K) each
        if tables is not None:
            q, k = rotate(q, tables), rotate(k, tables)
        dropout = self.attention_dropout if self.training else 0.0
        maps = None
        if with_maps or head_mask is not None:
            mixed, maps = attend_with_maps(q, k, v, layout, dropout, head_mask)
        else:
            mixed = attend(q, k, v, layout, dropout)
        if rows is not None:
            x, mixed = x.index_select(0, rows), mixed.index_select(0, rows)
        x = x + self.drop(self.attention_out(mixed.flatten(1)))
        fed = self.down(self.activation(self.up(self.feed_norm(x))))
        return x + self.drop(fed), maps

    def drop(self, x: Tensor) -> Tensor:
        """Dropout of a branch, in training."""
        return F.dropout(x, self.hidden_dropout, training=self.training)


class EsmEncoder(nn.Module):
    """The layers and the final norm."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        self.rotary = config.position_embedding_type == "rotary"
        self.head_width = config.hidden_size // config.num_attention_heads
        self.layer = nn.ModuleList(EsmLayer(config) for _ in range(config.num_hidden_layers))
        self.emb_layer_norm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def steps(
        self,
        x: Tensor,
        layout: PackedLayout,
        *,
        with_maps: bool = False,
        head_masks: Sequence[Tensor] | None = None,
        rows: Tensor | None = None,
    ) -> Iterator[Step]:
        """Walk through the layers: n + 1 steps, of which a caller keeps what it needs.

        `x` (T, D) is the embedding; `head_masks` has one (H,) for each layer; `rows` (M,) are the
        tokens wanted of the last layer, all of them by default. Nothing but the current layer's
        state is held here.
        """
        tables = rotary_tables(layout.positions, self.head_width, x.dtype) if self.rotary else None
        last = len(self.layer)
        if not last:
            x = self.emb_layer_norm_after(x if rows is None else x.index_select(0, rows))
        yield Step(0, x, None)
        for number, layer in enumerate(self.layer, start=1):
            head_mask = None if head_masks is None else head_masks[number - 1]
            wanted = rows if number == last else None
            x, maps = layer(x, layout, tables, with_maps, head_mask, wanted)
            yield Step(number, self.emb_layer_norm_after(x) if number == last else x, maps)
