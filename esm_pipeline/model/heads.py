"""Models with a head on the encoder. Peer: transformers 4.37.2 `EsmForMaskedLM`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esm_pipeline.model.base import EsmPreTrainedModel
from esm_pipeline.model.config import EsmConfig
from esm_pipeline.model.esm import EsmModel
from esm_pipeline.model.layout import PackedLayout
from esm_pipeline.model.outputs import MaskedLMOutput


class EsmLMHead(nn.Module):
    """Dense, GELU, norm, vocabulary; this tied to the token embedding unless the config says no."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        assert config.vocab_size is not None, "require_supported() comes first"
        width = config.hidden_size
        self.dense = nn.Linear(width, width)
        self.layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.decoder = (
            None if config.tie_word_embeddings else nn.Linear(width, config.vocab_size, bias=False)
        )
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(…, D) and the token embedding (V, D) → logits (…, V)."""
        x = self.layer_norm(F.gelu(self.dense(x)))
        weight = embedding if self.decoder is None else self.decoder.weight
        return F.linear(x, weight, self.bias)


class EsmForMaskedLM(EsmPreTrainedModel):
    """The encoder with the head that predicts residues."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__(config)
        self.esm = EsmModel(config, add_pooling_layer=False)
        self.lm_head = EsmLMHead(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> MaskedLMOutput | tuple[Any, ...]:
        """As `EsmModel.forward`, with `logits` (B, L, V).

        `labels` (B, L) are token ids, −100 where no loss is taken; `loss` is the mean
        cross entropy over the others, masked tokens left out.
        """
        encoded = self.esm.encode(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        logits = self.logits(encoded.x)  # (T, V): the head never sees padding
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits, encoded.layout.pack(labels.to(logits.device)))
        padded = encoded.layout.unpack(logits, encoded.width)
        output = MaskedLMOutput(loss, padded, encoded.hidden, encoded.attentions)
        return output if self.esm.chosen(return_dict, "return_dict") else output.to_tuple()

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, D) last states → (…, V)."""
        logits: Tensor = self.lm_head(hidden, self.esm.get_input_embeddings().weight)
        return logits

    def packed_logits(
        self, tokens: Tensor, layout: PackedLayout, rows: Tensor | None = None
    ) -> Tensor:
        """The packed door: token ids (T,) → logits (T, V), or (M, V) of the tokens `rows` (M,)."""
        return self.logits(self.esm.represent(tokens, layout, rows=rows).hidden[-1])

    def predict_contacts(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """As `EsmModel.predict_contacts`."""
        return self.esm.predict_contacts(tokens, attention_mask)
