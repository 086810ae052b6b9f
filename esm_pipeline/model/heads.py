"""Models with a head on the encoder: masked language model, classifiers. Peer: transformers 4.37.2.

Heads get packed states, never padding; the sequence classifier gets one token of each sequence, the
first one that is not masked. A module that a script puts in place of a head gets what the reference
would give it: padded states (B, L, D).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esm_pipeline.errors import InputError
from esm_pipeline.model.base import EsmPreTrainedModel
from esm_pipeline.model.checkpoints.keys import TIED
from esm_pipeline.model.config import EsmConfig
from esm_pipeline.model.esm import EsmModel
from esm_pipeline.model.layout import PackedLayout
from esm_pipeline.model.linears import weight_and_bias
from esm_pipeline.model.losses import sequence_loss, token_loss
from esm_pipeline.model.outputs import (
    MaskedLMOutput,
    ModelInput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from esm_pipeline.model.vocabulary import resized_rows


class EsmLMHead(nn.Module):
    """Dense, GELU, norm, and `decoder`, which the model ties to the token embedding."""

    tied = False
    """Whether the weight of `decoder` is the token embedding's."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        assert config.vocab_size is not None, "require_supported() was called"
        width = config.hidden_size
        self.dense = nn.Linear(width, width)
        self.layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(width, config.vocab_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def __setattr__(self, name: str, value: Any) -> None:
        """Raises InputError for an adapter on a tied `decoder` that also changes the embedding."""
        if name == "decoder" and self.tied:
            require_same_embedding(self.decoder, value)
        super().__setattr__(name, value)

    def forward(self, x: Tensor) -> Tensor:
        """Last states (…, D) → logits (…, V); float32 under autocast, like the bias."""
        x = self.layer_norm(F.gelu(self.dense(x)))
        logits: Tensor = self.decoder(x) + self.bias
        return logits


def require_same_embedding(old: nn.Module, new: nn.Module) -> None:
    """Raise InputError if peft changed the weight when it replaced a tied `old` by `new`.

    It does so in merging, and for adapters that start from a part of the weight (PiSSA, OLoRA).
    """
    inner = getattr(new, "base_layer", None)
    merged = getattr(old, "base_layer", None) is new and getattr(old, "merged_adapters", False)
    if isinstance(inner, nn.Linear) and not inner.weight.is_meta:
        with torch.no_grad():
            whole, rest = (weight_and_bias(one)[0] for one in (new, inner))  # type: ignore[arg-type]
            merged = bool((whole - rest).abs().max() > 1e-3 * whole.abs().max())
    if merged:
        raise InputError(
            "lm_head.decoder: its weight is also the token embedding's, and this adapter changed "
            "both; load the model again, and leave the layer out (exclude_modules=['decoder']), or "
            "give it a weight of its own first (set_output_embeddings)"
        )


def takes_packed(head: nn.Module) -> bool:
    """Whether a head works on single tokens, as ours do; others get padded states."""
    return is_own(head, EsmLMHead, nn.Linear)


def is_own(head: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a head is exactly of one of these classes, its `forward` not replaced."""
    return type(head) in kinds and "forward" not in vars(head)


def apply_to_tokens(head: nn.Module, states: Tensor, layout: PackedLayout) -> Tensor:
    """(T, D) → (T, …), through padded states for a head that is not ours."""
    if takes_packed(head):
        logits: Tensor = head(states)
        return logits
    return layout.pack(head(layout.unpack(states, layout.width)))


class EsmForMaskedLM(EsmPreTrainedModel):
    """The encoder with the head that predicts residues."""

    _tied_weights_keys = (TIED,)

    def __init__(self, config: EsmConfig) -> None:
        super().__init__(config)
        self.esm = EsmModel(config, add_pooling_layer=False)
        self.lm_head = EsmLMHead(config)
        self.post_init()
        self.tie_weights()

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
        ) -> MaskedLMOutput: ...
        def __call__(self, *args: ModelInput, **inputs: ModelInput) -> Any:
            """As `forward`."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> MaskedLMOutput | tuple[Any, ...]:
        """As `EsmModel.forward`, with `logits` (B, L, V).

        `labels` (B, L) are token ids, −100 for tokens without a loss; `loss` is the mean cross
        entropy over the others, without masked tokens.
        """
        encoded = self.esm.encode(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        layout, width = encoded.layout, encoded.width
        logits = self.logits(encoded.x, layout)  # (T, V)
        loss = None if labels is None else token_loss(logits, labels, layout, width)
        padded = layout.unpack(logits, width)
        output = MaskedLMOutput(loss, padded, encoded.hidden, encoded.attentions)
        return (
            output
            if self.esm.option(return_dict, "return_dict")
            else encoded.as_tuple(loss, padded)
        )

    def logits(self, hidden: Tensor, layout: PackedLayout) -> Tensor:
        """(T, D) last states → (T, V)."""
        return apply_to_tokens(self.lm_head, hidden, layout)

    def packed_logits(
        self, tokens: Tensor, layout: PackedLayout, rows: Tensor | None = None
    ) -> Tensor:
        """Packed input: token ids (T,) → logits (T, V), or (M, V) of the tokens `rows` (M,)."""
        early = rows if takes_packed(self.lm_head) else None
        logits = self.logits(self.esm.represent(tokens, layout, rows=early).hidden[-1], layout)
        return logits if rows is early else logits[rows]

    def predict_contacts(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """As `EsmModel.predict_contacts`."""
        return self.esm.predict_contacts(tokens, attention_mask)

    def tie_weights(self) -> None:
        """Share the token embedding with the head, unless the config says otherwise."""
        if self.config.tie_word_embeddings:
            decoder = self.lm_head.decoder  # inside an adapter, `base_layer`
            getattr(decoder, "base_layer", decoder).weight = self.get_input_embeddings().weight
        self.lm_head.tied = self.config.tie_word_embeddings

    def get_output_embeddings(self) -> nn.Linear:
        """The last layer of the head, D to V; its weight is the token embedding if tied."""
        return self.lm_head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the last layer; if it has a weight of its own, it is no longer tied.

        The config then says so. Raises InputError for another width, and for a layer with a bias:
        the head has its own.
        """
        width = self.config.hidden_size
        if new_embeddings.weight.shape[1] != width or new_embeddings.bias is not None:
            raise InputError(f"output embeddings should be a layer from {width}, with bias=False")
        self.lm_head.decoder = new_embeddings
        tied = new_embeddings.weight is self.get_input_embeddings().weight
        self.lm_head.tied = self.lm_head.tied and tied
        self.config.tie_word_embeddings = self.config.tie_word_embeddings and tied
        self.resize_output(new_embeddings.weight.shape[0])

    def resize_output(self, count: int) -> None:
        """Resize the head to `count` tokens; biases of new tokens are zero."""
        spread = self.config.initializer_range
        decoder = self.lm_head.decoder
        decoder.weight = resized_rows(decoder.weight, count, spread)
        decoder.out_features = count
        self.lm_head.bias = resized_rows(self.lm_head.bias, count, 0.0)


class EsmClassificationHead(nn.Module):
    """Dense layer and tanh of the first token, then a layer to the labels; dropout before both."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.dense = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.out_proj = nn.Linear(width, config.num_labels)

    def forward(self, features: Tensor) -> Tensor:
        """States of first tokens (B, D), or padded states (B, L, D) → logits (B, num_labels)."""
        first = features if features.ndim == 2 else features[:, 0]
        x = torch.tanh(self.dense(self.dropout(first)))
        logits: Tensor = self.out_proj(self.dropout(x))
        return logits


class EsmForSequenceClassification(EsmPreTrainedModel):
    """The encoder with a head for classes, labels or values of whole sequences.

    The head gets the first token that is not masked, BOS. The reference takes column 0, which is a
    padding token if the padding is on the left, and the same token otherwise.
    """

    def __init__(self, config: EsmConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.esm = EsmModel(config, add_pooling_layer=False)
        self.classifier = EsmClassificationHead(config)
        self.post_init()

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
        ) -> SequenceClassifierOutput: ...
        def __call__(self, *args: ModelInput, **inputs: ModelInput) -> Any:
            """As `forward`."""

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
    ) -> SequenceClassifierOutput | tuple[Any, ...]:
        """As `EsmModel.forward`, with `logits` (B, num_labels).

        `config.problem_type` determines `labels` and `loss`: "regression" takes numbers, (B,) for
        one label or (B, num_labels), and gives the mean squared error;
        "single_label_classification" a class for each sequence (B,), and the cross entropy;
        "multi_label_classification" a number from 0 to 1 for each label (B, num_labels), and the
        binary cross entropy. If it is None, it is chosen and written to the config: regression for
        one label, single-label for whole numbers, otherwise multi-label. Raises InputError for
        labels that do not fit.
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
        logits = self.logits(encoded.x, encoded.layout)
        loss = None if labels is None else sequence_loss(logits, labels, self.config)
        output = SequenceClassifierOutput(loss, logits, encoded.hidden, encoded.attentions)
        return (
            output
            if self.esm.option(return_dict, "return_dict")
            else encoded.as_tuple(loss, logits)
        )

    def logits(self, hidden: Tensor, layout: PackedLayout) -> Tensor:
        """(T, D) last states → (B, num_labels)."""
        own = is_own(self.classifier, EsmClassificationHead)
        states = layout.first(hidden) if own else layout.unpack(hidden, layout.width)
        logits: Tensor = self.classifier(states)
        return logits

    def packed_logits(self, tokens: Tensor, layout: PackedLayout) -> Tensor:
        """Packed input: token ids (T,) → logits (B, num_labels)."""
        return self.logits(self.esm.represent(tokens, layout).hidden[-1], layout)


class EsmForTokenClassification(EsmPreTrainedModel):
    """The encoder with a linear layer for classes of tokens."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.esm = EsmModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

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
        ) -> TokenClassifierOutput: ...
        def __call__(self, *args: ModelInput, **inputs: ModelInput) -> Any:
            """As `forward`."""

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
    ) -> TokenClassifierOutput | tuple[Any, ...]:
        """As `EsmModel.forward`, with `logits` (B, L, num_labels), zeros at masked tokens.

        `labels` (B, L) are classes, −100 for tokens without a loss; `loss` is the mean cross
        entropy over the others, without masked tokens. Raises InputError for labels that do not
        fit.
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
        layout, width = encoded.layout, encoded.width
        logits = self.logits(encoded.x, layout)  # (T, num_labels)
        loss = None if labels is None else token_loss(logits, labels, layout, width)
        padded = layout.unpack(logits, width)
        output = TokenClassifierOutput(loss, padded, encoded.hidden, encoded.attentions)
        return (
            output
            if self.esm.option(return_dict, "return_dict")
            else encoded.as_tuple(loss, padded)
        )

    def logits(self, hidden: Tensor, layout: PackedLayout) -> Tensor:
        """(T, D) last states → (T, num_labels)."""
        return apply_to_tokens(self.classifier, self.dropout(hidden), layout)

    def packed_logits(self, tokens: Tensor, layout: PackedLayout) -> Tensor:
        """Packed input: token ids (T,) → logits (T, num_labels)."""
        return self.logits(self.esm.represent(tokens, layout).hidden[-1], layout)
