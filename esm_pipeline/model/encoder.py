"""The ESM encoder on packed tokens: embeddings, pre-norm layers, final norm.

Peers: fair-esm esm2.py and esm1.py (ESM-1b), transformers modeling_esm.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from esm_pipeline.errors import CapacityError, InputError
from esm_pipeline.model.config import EsmConfig
from esm_pipeline.model.decoder import EsmDecoderLayer
from esm_pipeline.model.decoder_inputs import Memory
from esm_pipeline.model.layer import Ask, EsmLayer, Seen
from esm_pipeline.model.layout import PackedLayout
from esm_pipeline.model.rotary import RotaryEmbedding, rotary_frequencies, rotary_tables

MASKED_IN_TRAINING = 0.15 * 0.8
"""Share of tokens shown as <mask> when the published models were trained."""


class Checkpointing(NamedTuple):
    """How layers are computed again for gradients: see `gradient_checkpointing_enable`."""

    keywords: dict[str, Any]
    every: int = 1
    offload: bool = False

    def wrapped(self, layer: nn.Module, number: int) -> Callable[..., Any]:
        """Layer `number`, from 1, to be called as it is, or so that it keeps its inputs alone."""
        if (number - 1) % self.every:
            return layer
        again = partial(checkpoint, layer, **self.keywords)
        return on_cpu(again) if self.offload else again


def on_cpu(layer: Callable[..., Any]) -> Callable[..., Any]:
    """A layer of which all that is kept for gradients waits in the CPU's memory."""

    def call(*inputs: Any) -> Any:
        with save_on_cpu(pin_memory=torch.cuda.is_available()):
            return layer(*inputs)

    return call


class Step(NamedTuple):
    """The state after `layer` layers; layer 0 is the embedding."""

    layer: int
    x: Tensor  # (T, D); after the final norm for the last layer, and there only the wanted rows
    seen: Seen = Seen()


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
        self.layer_norm = (
            nn.LayerNorm(width, eps=config.layer_norm_eps) if config.emb_layer_norm_before else None
        )
        self.position_embeddings = (
            nn.Embedding(config.max_position_embeddings, width, padding_idx=pad)
            if config.position_embedding_type == "absolute"
            else None
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

        The factor is 0.88 even with nothing masked. Of masks alone, zeros are left (the peers
        divide by zero). Peer: esm2.py.
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
        return (x * kept / seen.clamp_min(torch.finfo(seen.dtype).tiny)).to(x.dtype)

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


class EsmEncoder(nn.Module):
    """The layers and the final norm."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        self.rotary = config.position_embedding_type == "rotary"
        self.needs_states = config.add_cross_attention
        self.head_width = config.hidden_size // config.num_attention_heads
        kind = EsmDecoderLayer if config.is_decoder else EsmLayer
        self.layer = nn.ModuleList(kind(config) for _ in range(config.num_hidden_layers))
        self.emb_layer_norm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.checkpointing: Checkpointing | None = None  # see gradient_checkpointing_enable

    @property
    def frequencies(self) -> Tensor:
        """(K / 2,) float32, those of the first layer: all have the same, a checkpoint's own."""
        held = next(self.rotary_embeddings(), None)
        return rotary_frequencies(self.head_width) if held is None else held.inv_freq

    @frequencies.setter
    def frequencies(self, table: Tensor) -> None:
        for one in self.rotary_embeddings():
            one.inv_freq = table.detach().float().clone()

    def rotary_embeddings(self) -> Iterator[RotaryEmbedding]:
        """Where the frequencies are held."""
        return (one for one in self.modules() if isinstance(one, RotaryEmbedding))

    @property
    def layers(self) -> list[EsmLayer]:
        """The layers, in order."""
        return [one for one in self.layer if isinstance(one, EsmLayer)]

    def steps(
        self,
        x: Tensor,
        layout: PackedLayout,
        *,
        with_maps: bool = False,
        head_masks: Sequence[Tensor] | None = None,
        rows: Tensor | None = None,
        memory: Memory | None = None,
        through: Callable[[Tensor], Tensor] | None = None,
    ) -> Iterator[Step]:
        """Walk through the layers: n + 1 steps, of which a caller keeps what it needs.

        `x` (T, D) is the embedding; `head_masks` has one (H,) for each layer; `rows` (M,) are the
        tokens wanted of the last layer, all by default; `memory` is a decoder's; each state goes
        `through` a function, and the walk goes on from what it returns. Nothing but the current
        layer's state is held here. Raises InputError for a decoder that needs an encoder's states
        and is not given any.
        """
        through = through or nn.Identity()
        if self.needs_states and memory is None:
            raise InputError("this decoder looks at an encoder: call it with encoder_hidden_states")
        past = None if memory is None else memory.past
        places = layout.positions if past is None else past.places(layout)
        tables = rotary_tables(places, self.frequencies, x.dtype) if self.rotary else None
        last = len(self.layer)
        if not last:
            x = self.emb_layer_norm_after(x if rows is None else x.index_select(0, rows))
        x = through(x)
        yield Step(0, x)
        for number, layer in enumerate(self.layer, start=1):
            ask = Ask(
                with_maps,
                None if head_masks is None else head_masks[number - 1],
                memory,
                () if past is None else past.cache[number - 1],
                rows if number == last else None,
            )
            run: Callable[..., Any] = layer
            if self.checkpointing is not None and self.training:
                run = self.checkpointing.wrapped(layer, number)
            x, seen = run(x, layout, tables, ask)
            x = through(self.emb_layer_norm_after(x) if number == last else x)
            yield Step(number, x, seen)
