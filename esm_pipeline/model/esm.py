"""`EsmModel`: the encoder with its two doors, padded (`forward`) and packed (`represent`).

Peer: transformers 4.37.2 `EsmModel`. Where that computes states for masked tokens, here they are
zeros: a masked token is never computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from esm_pipeline.errors import InputError
from esm_pipeline.model.attention import unpack_maps
from esm_pipeline.model.base import EsmPreTrainedModel
from esm_pipeline.model.config import EsmConfig
from esm_pipeline.model.contacts import EsmContactPredictionHead
from esm_pipeline.model.encoder import EsmEmbeddings, EsmEncoder
from esm_pipeline.model.layout import PackedLayout
from esm_pipeline.model.outputs import EncoderOutput


@dataclass
class Represented:
    """Of `EsmModel.represent`. hidden: layer → (T, D); contacts: (R, R) of each sequence."""

    hidden: dict[int, Tensor]
    contacts: list[Tensor] | None = None


@dataclass
class Encoded:
    """Of `EsmModel.encode`: the last states (T, D), still packed, and what else was asked for.

    `width` is L of the padded batch; hidden and attentions are padded, as in `EncoderOutput`.
    """

    x: Tensor
    layout: PackedLayout
    width: int
    hidden: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


class EsmPooler(nn.Module):
    """Dense layer and tanh over the first token."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, D) → (B, D)."""
        return torch.tanh(self.dense(hidden[:, 0]))


class EsmModel(EsmPreTrainedModel):
    """The bare encoder. `add_pooling_layer` adds the dense layer behind `pooler_output`."""

    def __init__(self, config: EsmConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = EsmEmbeddings(config)
        self.encoder = EsmEncoder(config)
        self.pooler = EsmPooler(config) if add_pooling_layer else None
        self.contact_head = EsmContactPredictionHead(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding, (V, D)."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Put another token embedding in its place."""
        self.embeddings.word_embeddings = value

    @property
    def max_residues(self) -> int | None:
        """Most residues a sequence may have; None for rotary models, which have no table."""
        return self.config.max_residues

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> EncoderOutput | tuple[Any, ...]:
        """The padded door: token ids (B, L), or embeddings (B, L, D), to an `EncoderOutput`.

        `attention_mask` (B, L) is 1 at tokens to attend to; left out, it is derived from the
        padding. `position_ids` (B, L) are for position tables; rotary models take the column.
        `head_mask` is (H,) or (n, H). Raises InputError for shapes that do not fit, CapacityError
        for sequences longer than the position table.
        """
        encoded = self.encode(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        last = encoded.layout.unpack(encoded.x, encoded.width)
        output = EncoderOutput(
            last_hidden_state=last,
            pooler_output=None if self.pooler is None else self.pooler(last),
            hidden_states=encoded.hidden,
            attentions=encoded.attentions,
        )
        return output if self.chosen(return_dict, "return_dict") else output.to_tuple()

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
    ) -> Encoded:
        """What `forward` does, up to the packed states, on which a head can go on."""
        given = input_ids if inputs_embeds is None else inputs_embeds
        if given is None or (input_ids is not None and inputs_embeds is not None):
            raise InputError("give one of input_ids and inputs_embeds")
        mask = self.resolve_mask(given, input_ids, attention_mask)
        layout = PackedLayout.from_mask(mask)
        if position_ids is None and input_ids is not None:
            position_ids = self.table_positions(input_ids)
        x = self.embeddings(
            None if input_ids is None else layout.pack(input_ids),
            layout,
            None if position_ids is None else layout.pack(position_ids.expand(mask.shape)),
            None if inputs_embeds is None else layout.pack(inputs_embeds),
        )
        with_hidden = self.chosen(output_hidden_states, "output_hidden_states")
        with_maps = self.chosen(output_attentions, "output_attentions")
        hidden: list[Tensor] = []
        attentions: list[Tensor] = []
        steps = self.encoder.steps(
            x, layout, with_maps=with_maps, head_masks=self.resolve_head_mask(head_mask)
        )
        width = mask.shape[1]
        for step in steps:
            x = step.x
            if with_hidden:
                hidden.append(layout.unpack(x, width))
            if with_maps and step.maps is not None:
                attentions.append(unpack_maps(step.maps, layout, width))
        return Encoded(
            x,
            layout,
            width,
            hidden=tuple(hidden) if with_hidden else None,
            attentions=tuple(attentions) if with_maps else None,
        )

    def represent(
        self,
        tokens: Tensor,
        layout: PackedLayout,
        layers: Sequence[int] = (-1,),
        *,
        contacts: bool = False,
        rows: Tensor | None = None,
    ) -> Represented:
        """The packed door: token ids (T,) to the states of the chosen layers.

        Layers are 0 (embedding) to n (after the final norm); −1 means n, and is the key under which
        it comes back. With `contacts`, also the contact probabilities of each sequence. Layers
        beyond the deepest wanted one are not computed, and of the last layer only the tokens `rows`
        (M,), if they are given. Raises InputError for other layers.
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
        x = self.embeddings(tokens, layout)
        for step in self.encoder.steps(x, layout, with_maps=contacts, rows=rows):
            hidden.update({name: step.x for name in layers if name % (count + 1) == step.layer})
            if contacts and step.maps is not None:
                added = [self.contact_head.layer_logits(maps, step.layer) for maps in step.maps]
                logits = [a + b for a, b in zip(logits, added, strict=True)] if logits else added
            if step.layer == deepest:
                break
        if not contacts:
            return Represented(hidden)
        return Represented(hidden, [one for group in logits for one in self.contact_head(group)])

    def predict_contacts(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Contact probabilities (B, R, R) of token ids (B, L), where R = L − 2.

        Pairs beyond a shorter sequence get the regression's bias alone, as in the reference.
        """
        mask = self.resolve_mask(tokens, tokens, attention_mask)
        layout = PackedLayout.from_mask(mask)
        represented = self.represent(layout.pack(tokens), layout, (), contacts=True)
        residues = max(0, tokens.shape[1] - 2)
        background = torch.sigmoid(self.contact_head.regression.bias)
        padded = background.repeat(len(layout.lengths), residues, residues)
        for place, single in enumerate(represented.contacts or ()):
            padded[place, : single.shape[0], : single.shape[1]] = single
        return padded

    def resolve_mask(
        self, given: Tensor, input_ids: Tensor | None, attention_mask: Tensor | None
    ) -> Tensor:
        """The mask as given, or from the padding; (B, L)."""
        if input_ids is not None and (not isinstance(input_ids, Tensor) or input_ids.ndim != 2):
            raise InputError("input_ids should be a tensor (B, L); for one sequence, (1, L)")
        if attention_mask is not None:
            if attention_mask.shape != given.shape[:2]:
                raise InputError(
                    f"attention_mask has shape {tuple(attention_mask.shape)}, the input "
                    f"{tuple(given.shape[:2])}; give one number for each token"
                )
            return attention_mask
        if input_ids is None:
            return torch.ones(given.shape[:2], dtype=torch.bool, device=given.device)
        return input_ids != self.embeddings.padding_idx

    def table_positions(self, input_ids: Tensor) -> Tensor | None:
        """(B, L) rows of the position table: tokens counted from padding + 1, padding left out."""
        if self.embeddings.position_embeddings is None:
            return None
        real = (input_ids != self.embeddings.padding_idx).long()
        return real.cumsum(1) * real + self.embeddings.padding_idx

    def resolve_head_mask(self, head_mask: Tensor | None) -> list[Tensor] | None:
        """One (H,) for each layer, from (H,) or (n, H)."""
        if head_mask is None:
            return None
        shape = (self.config.num_hidden_layers, self.config.num_attention_heads)
        if head_mask.shape not in (shape, shape[1:]):
            raise InputError(
                f"head_mask has shape {tuple(head_mask.shape)}; give {shape[1:]} or {shape}"
            )
        return list(head_mask.expand(shape).unbind(0))

    def chosen(self, given: bool | None, name: str) -> bool:
        """An option of `forward`, or the config's choice."""
        return bool(getattr(self.config, name) if given is None else given)
