"""`EsmModel`: the encoder, with padded input (`forward`) and packed input (`represent`).

Peer: transformers 4.37.2 `EsmModel`. Where that computes states of masked tokens, here they are
zeros: masked tokens are never computed. Decoders take the same inputs; see decoder.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn

from esm_pipeline.errors import InputError
from esm_pipeline.model.arguments import (
    batch_shape,
    head_masks,
    table_rows,
    token_mask,
    wants_gradient,
)
from esm_pipeline.model.base import EsmPreTrainedModel
from esm_pipeline.model.config import EsmConfig
from esm_pipeline.model.contacts import EsmContactPredictionHead
from esm_pipeline.model.decoder_inputs import (
    Cache,
    Past,
    build_decoder_inputs,
    read_past,
    split_mask,
)
from esm_pipeline.model.encoder import EncoderInputs, EsmEmbeddings, EsmEncoder, Step
from esm_pipeline.model.explicit_attention import unpack_maps, unpack_rows
from esm_pipeline.model.layout import PackedLayout
from esm_pipeline.model.outputs import EncoderOutput, ModelInput
from esm_pipeline.model.pruning import prune_layer


@dataclass
class Represented:
    """Result of `EsmModel.represent`. hidden: layer → (T, D); contacts: (R, R) of each sequence."""

    hidden: dict[int, Tensor]
    contacts: list[Tensor] | None = None


@dataclass
class EncodedBatch:
    """Result of `EsmModel.encode`: the last states (T, D), still packed, and optional outputs.

    `width` is L of the padded batch. The optional outputs are padded, as in `EncoderOutput`.
    """

    x: Tensor
    layout: PackedLayout
    width: int
    hidden: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    past_key_values: Cache | None = None
    cross_attentions: tuple[Tensor, ...] | None = None

    @property
    def last(self) -> Tensor:
        """The last states, padded (B, L, D)."""
        if self.hidden is not None:
            return self.hidden[-1]
        return self.layout.unpack(self.x, self.width)

    def as_tuple(self, *first: Tensor | None) -> tuple[Any, ...]:
        """The reference's tuple: `first`, then the optional outputs; None is left out."""
        optional = (self.past_key_values, self.hidden, self.attentions, self.cross_attentions)
        return tuple(one for one in (*first, *optional) if one is not None)


class EsmPooler(nn.Module):
    """Dense layer and tanh of the first token."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """States of first tokens (B, D), or padded states (B, L, D) → (B, D)."""
        return torch.tanh(self.dense(hidden if hidden.ndim == 2 else hidden[:, 0]))


class EsmModel(EsmPreTrainedModel):
    """The encoder without a head. `add_pooling_layer` adds the layer for `pooler_output`."""

    def __init__(self, config: EsmConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = EsmEmbeddings(config)
        self.encoder = EsmEncoder(config)
        self.pooler = EsmPooler(config) if add_pooling_layer else None
        self.contact_head = EsmContactPredictionHead(config)
        self.post_init()
        for number, heads in config.pruned_heads.items():
            prune_layer(self.encoder.layers[number], heads)

    if TYPE_CHECKING:  # the types of `forward`, which `nn.Module` does not keep

        @overload
        def __call__(  # type: ignore[overload-overlap]
            self, *args: Tensor | None, return_dict: Literal[False], **inputs: ModelInput
        ) -> tuple[Tensor, ...]: ...
        @overload
        def __call__(
            self,
            input_ids: Tensor | None = None,
            attention_mask: Tensor | None = None,
            **inputs: ModelInput,
        ) -> EncoderOutput: ...
        def __call__(self, *args: ModelInput, **inputs: ModelInput) -> Any:
            """As `forward`."""

    @property
    def max_residues(self) -> int | None:
        """Most residues of a sequence; None for rotary models, which have no position table."""
        return self.config.max_residues

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Sequence[Sequence[Tensor]] | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> EncoderOutput | tuple[Any, ...]:
        """Padded input: token ids (B, L) or embeddings (B, L, D) → `EncoderOutput`.

        `attention_mask` (B, L) is 1 at tokens to attend to; by default it is derived from the
        padding. `position_ids` (B, L) are for position tables; rotary models use the columns.
        `head_mask` is (H,) or (n, H), pruned heads counted. For decoders: `encoder_hidden_states`
        (B, S, D) with `encoder_attention_mask` (B, S) or (B, L, S), and `past_key_values` as a pass
        with `use_cache` returned them; the mask is then (B, P + L). With `return_dict=False`, a
        tuple: states, pooled states or None, then the optional outputs. Raises InputError for
        shapes that do not fit, CapacityError for sequences longer than the position table.
        """
        encoded = self.encode(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        last = encoded.last
        first = encoded.layout.first(encoded.x)
        pooled = None if self.pooler is None else self.pooler(first)
        if not self.option(return_dict, "return_dict"):
            return (last, pooled, *encoded.as_tuple())
        return EncoderOutput(
            last_hidden_state=last,
            pooler_output=pooled,
            hidden_states=encoded.hidden,
            past_key_values=encoded.past_key_values,
            attentions=encoded.attentions,
            cross_attentions=encoded.cross_attentions,
        )

    def encode(
        self,
        input_ids: Tensor | None,
        *,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        head_mask: Tensor | None,
        inputs_embeds: Tensor | None,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Sequence[Sequence[Tensor]] | None = None,
        use_cache: bool | None = None,
    ) -> EncodedBatch:
        """`forward` up to the packed states, from which a head continues."""
        batch, width = batch_shape(self.config, input_ids, inputs_embeds)
        if self.optimized and wants_gradient(inputs_embeds, encoder_hidden_states):
            self.refuse("a gradient of the inputs")
        past = None
        if past_key_values:
            past = read_past(self.config, past_key_values, batch)
            past, attention_mask = split_mask(past, attention_mask, width)
        mask = token_mask(self.config, input_ids, inputs_embeds, attention_mask)
        layout = PackedLayout.from_mask(mask)
        decoder = build_decoder_inputs(
            self.config,
            layout,
            width,
            past=past,
            with_cache=self.option(use_cache, "use_cache"),
            states=encoder_hidden_states,
            states_mask=encoder_attention_mask,
        )
        rows = table_rows(self.config, input_ids, mask, position_ids, past)
        x = self.embeddings(
            None if input_ids is None else layout.pack(input_ids),
            layout,
            None if rows is None else layout.pack(rows),
            None if inputs_embeds is None else layout.pack(inputs_embeds),
        )
        hidden: list[Tensor] = []

        def keep(x: Tensor) -> Tensor:
            """Keep a state padded, as it is returned; what follows depends on it for gradients."""
            hidden.append(layout.unpack(x, width))
            return layout.pack(hidden[-1]) if hidden[-1].requires_grad else x

        with_maps = self.option(output_attentions, "output_attentions")
        with_hidden = self.option(output_hidden_states, "output_hidden_states")
        inputs = EncoderInputs(with_maps, head_masks(self.config, head_mask), decoder)
        steps = self.encoder.steps(x, layout, inputs, through=keep if with_hidden else None)
        encoded = self.collect(steps, layout, width, past, with_maps)
        return replace(encoded, hidden=tuple(hidden) if with_hidden else None)

    def collect(
        self,
        steps: Iterable[Step],
        layout: PackedLayout,
        width: int,
        past: Past | None,
        with_maps: bool,
    ) -> EncodedBatch:
        """Walk through the layers and keep the optional outputs, padded."""
        maps: list[Tensor] = []
        cross: list[Tensor] = []
        caches: list[tuple[Tensor, ...]] = []
        for step in steps:
            x, outputs = step.x, step.outputs
            if outputs.maps is not None:
                unpack = unpack_maps if past is None else unpack_rows
                maps.append(unpack(outputs.maps, layout, width))
            if outputs.cross_maps is not None:
                cross.append(unpack_rows(outputs.cross_maps, layout, width))
            if outputs.cache is not None:
                caches.append(outputs.cache)
        return EncodedBatch(
            x,
            layout,
            width,
            attentions=tuple(maps) if with_maps else None,
            past_key_values=tuple(caches) or None,
            cross_attentions=tuple(cross) if with_maps and self.encoder.needs_states else None,
        )

    def represent(
        self,
        tokens: Tensor,
        layout: PackedLayout,
        layers: Sequence[int] = (-1,),
        *,
        contacts: bool = False,
        rows: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Represented:
        """Packed input: token ids (T,) → states of the chosen layers.

        Layers are 0 (embedding) to n (after the final norm); −1 means n, and is then the key in the
        result. With `contacts`, also the contact probabilities of each sequence. Layers above the
        deepest one needed are not computed. `rows` (M,) limits the last layer to these tokens.
        `position_ids` (T,) are for position tables. Raises InputError for other layers.
        """
        count = self.config.num_hidden_layers
        for layer in layers:
            if not -1 <= layer <= count:
                raise InputError(
                    f"layer {layer} does not exist; the model has layers 0 (embedding) to {count}"
                )
        deepest = count if contacts else max((layer % (count + 1) for layer in layers), default=0)
        hidden: dict[int, Tensor] = {}
        logits: list[Tensor] = []  # one (sequences, R, R) for each group
        x = self.embeddings(tokens, layout, position_ids)
        for step in self.encoder.steps(x, layout, EncoderInputs(contacts), rows=rows):
            hidden.update({name: step.x for name in layers if name % (count + 1) == step.layer})
            if step.outputs.maps is not None:
                heads = self.encoder.layers[step.layer - 1].attention.self.heads
                head = self.contact_head
                added = [head.layer_logits(maps, step.layer, heads) for maps in step.outputs.maps]
                logits = [a + b for a, b in zip(logits, added, strict=True)] if logits else added
            if step.layer == deepest:
                break
        if not contacts:
            return Represented(hidden)
        return Represented(hidden, [one for group in logits for one in self.contact_head(group)])

    def predict_contacts(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Contact probabilities (B, R, R) of token ids (B, L), where R = L − 2.

        As in the reference, pairs beyond the end of a sequence get the regression's bias only.
        """
        mask = token_mask(self.config, tokens, None, attention_mask)
        layout = PackedLayout.from_mask(mask)
        rows = table_rows(self.config, tokens, mask)
        represented = self.represent(
            layout.pack(tokens),
            layout,
            (),
            contacts=True,
            position_ids=None if rows is None else layout.pack(rows),
        )
        residues = max(0, tokens.shape[1] - 2)
        background = torch.sigmoid(self.contact_head.bias)
        padded = background.repeat(len(layout.lengths), residues, residues)
        for place, single in enumerate(represented.contacts or ()):
            padded[place, : single.shape[0], : single.shape[1]] = single
        return padded

    def option(self, given: bool | None, name: str) -> bool:
        """An option of `forward`, by default that of the config."""
        return bool(getattr(self.config, name) if given is None else given)
