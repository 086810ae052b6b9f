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
from esm_pipeline.model.decoder_inputs import DecoderInputs
from esm_pipeline.model.layer import EsmLayer, LayerInputs, LayerOutputs
from esm_pipeline.model.layout import PackedLayout
from esm_pipeline.model.rotary import RotaryEmbedding, rotary_frequencies, rotary_tables

MASKED_IN_TRAINING = 0.15 * 0.8
"""Share of tokens replaced by <mask> when the published models were trained."""


class Checkpointing(NamedTuple):
    """How layers are recomputed for gradients: see `gradient_checkpointing_enable`."""

    keywords: dict[str, Any]
    every: int = 1
    offload: bool = False

    def wrapped(self, layer: nn.Module, number: int) -> Callable[..., Any]:
        """What to call in place of layer `number`, from 1: it may keep only its inputs."""
        if (number - 1) % self.every:
            return layer
        recomputed = partial(checkpoint, layer, **self.keywords)
        return on_cpu(recomputed) if self.offload else recomputed


def on_cpu(layer: Callable[..., Any]) -> Callable[..., Any]:
    """A layer that keeps what gradients need in CPU memory."""

    def call(*inputs: Any) -> Any:
        with save_on_cpu(pin_memory=torch.cuda.is_available()):
            return layer(*inputs)

    return call


class Step(NamedTuple):
    """The state after `layer` layers; layer 0 is the embedding."""

    layer: int
    x: Tensor  # (T, D); of the last layer after the final norm, and only the wanted rows
    outputs: LayerOutputs = LayerOutputs()


class EncoderInputs(NamedTuple):
    """Optional inputs of a pass. With them, attention takes the explicit path."""

    with_maps: bool = False
    head_masks: Sequence[Tensor] | None = None  # (H,) for each layer
    decoder: DecoderInputs | None = None

    def of_layer(self, number: int) -> LayerInputs | None:
        """Those of layer `number`, from 1; None if there are none."""
        if not self.with_maps and self.head_masks is None and self.decoder is None:
            return None
        past = None if self.decoder is None else self.decoder.past
        return LayerInputs(
            self.with_maps,
            None if self.head_masks is None else self.head_masks[number - 1],
            self.decoder,
            () if past is None else past.cache[number - 1],
        )


NO_INPUTS = EncoderInputs()


class EsmEmbeddings(nn.Module):
    """Token embeddings, scaled by token dropout, plus learned positions if they are absolute."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        assert config.vocab_size is not None, "require_supported() was called"
        assert config.pad_token_id is not None, "require_supported() was called"
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
        """Token ids (T,), or embeddings (T, D) instead of them → (T, D).

        `position_ids` (T,) are rows of the position table; by default they count from the padding
        id + 1.
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
        """Zero the masked tokens and scale the others as in training.

        The factor is 0.88 even with nothing masked. A sequence with only masks is all zeros (the
        peers divide by zero). Peer: esm2.py.
        """
        masked: Tensor = torch.eq(tokens, self.mask_token_id)  # (T,)
        x = x.masked_fill(masked.unsqueeze(1), 0.0)
        kept = 1 - MASKED_IN_TRAINING
        if not bool(masked.any()):
            return x * kept
        counts = masked.new_zeros(len(layout.lengths), dtype=torch.float32)
        counts = counts.index_add(0, layout.sequence, masked.float())
        lengths = torch.tensor(layout.lengths, device=x.device, dtype=torch.float32)
        shown = (1 - counts / lengths).index_select(0, layout.sequence).unsqueeze(1)  # (T, 1)
        return (x * kept / shown.clamp_min(torch.finfo(shown.dtype).tiny)).to(x.dtype)

    @staticmethod
    def look_up(position_ids: Tensor, table: nn.Embedding) -> Tensor:
        """Rows of the position table. Raises CapacityError beyond its end."""
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
        """(K / 2,) float32, those of the checkpoint; all layers have the same."""
        held = next(self.rotary_embeddings(), None)
        return rotary_frequencies(self.head_width) if held is None else held.inv_freq

    @frequencies.setter
    def frequencies(self, table: Tensor) -> None:
        for one in self.rotary_embeddings():
            one.inv_freq = table.detach().float().clone()

    def rotary_embeddings(self) -> Iterator[RotaryEmbedding]:
        """The modules that hold the frequencies."""
        return (one for one in self.modules() if isinstance(one, RotaryEmbedding))

    @property
    def layers(self) -> list[EsmLayer]:
        """The layers, in order."""
        return [one for one in self.layer if isinstance(one, EsmLayer)]

    def steps(
        self,
        x: Tensor,
        layout: PackedLayout,
        inputs: EncoderInputs = NO_INPUTS,
        *,
        rows: Tensor | None = None,
        through: Callable[[Tensor], Tensor] | None = None,
    ) -> Iterator[Step]:
        """Walk through the n layers: n + 1 steps, of which a caller keeps what it needs.

        `x` (T, D) is the embedding. `rows` (M,) are the tokens wanted of the last layer, all by
        default. Each state passes `through` a function, and the next layer gets what it returns.
        Only the state of the current layer is held here. Raises InputError for a decoder that
        attends to encoder states and has none.
        """
        through = through or nn.Identity()
        decoder = inputs.decoder
        if self.needs_states and decoder is None:
            raise InputError(
                "this decoder attends to encoder states: call it with encoder_hidden_states"
            )
        positions = layout.positions if decoder is None else decoder.positions(layout)
        rotary = rotary_tables(positions, self.frequencies, x.dtype) if self.rotary else None
        last = len(self.layer)
        if not last:
            x = self.emb_layer_norm_after(x if rows is None else x.index_select(0, rows))
        x = through(x)
        yield Step(0, x)
        for number, layer in enumerate(self.layer, start=1):
            run: Callable[..., Any] = layer
            if self.checkpointing is not None and self.training:
                run = self.checkpointing.wrapped(layer, number)
            wanted = rows if number == last else None
            x, outputs = run(x, layout, rotary, wanted, inputs.of_layer(number))
            x = through(self.emb_layer_norm_after(x) if number == last else x)
            yield Step(number, x, outputs)
