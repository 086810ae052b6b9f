"""The arguments of `forward` that describe the tokens, checked and brought into one form.

Peer: transformers 4.37.2 `EsmModel.forward` and `EsmEmbeddings`. decoder_inputs.py has those of
decoders.
"""

from __future__ import annotations

import torch
from torch import Tensor

from esm_pipeline.errors import InputError
from esm_pipeline.model.config import EsmConfig
from esm_pipeline.model.decoder_inputs import Past


def batch_shape(
    config: EsmConfig, input_ids: Tensor | None, inputs_embeds: Tensor | None
) -> tuple[int, int]:
    """(B, L) of the input: one of the two has to be given. Raises InputError."""
    if (input_ids is None) == (inputs_embeds is None):
        raise InputError("give one of input_ids and inputs_embeds")
    if inputs_embeds is not None:
        if inputs_embeds.ndim != 3 or inputs_embeds.shape[2] != config.hidden_size:
            raise InputError(
                f"inputs_embeds have shape {tuple(inputs_embeds.shape)}; give "
                f"(B, L, {config.hidden_size})"
            )
        return inputs_embeds.shape[0], inputs_embeds.shape[1]
    if not isinstance(input_ids, Tensor) or input_ids.ndim != 2:
        raise InputError("input_ids should be a tensor (B, L); for one sequence, (1, L)")
    if not input_ids.numel():
        raise InputError(f"input_ids have shape {tuple(input_ids.shape)}; give at least one token")
    return input_ids.shape[0], input_ids.shape[1]


def token_mask(
    config: EsmConfig,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    attention_mask: Tensor | None,
) -> Tensor:
    """(B, L): the mask as given, otherwise from the padding; all true for embeddings.

    Raises InputError.
    """
    shape = batch_shape(config, input_ids, inputs_embeds)
    if attention_mask is not None:
        if not isinstance(attention_mask, Tensor):
            raise InputError("attention_mask should be a tensor (B, L)")
        if attention_mask.shape != shape:
            raise InputError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, the input {shape}; give "
                "one number for each token"
            )
        return attention_mask
    if input_ids is not None:
        assert config.pad_token_id is not None, "require_supported() was called"
        return torch.ne(input_ids, config.pad_token_id)
    assert inputs_embeds is not None, "batch_shape() requires it"
    return torch.ones(shape, dtype=torch.bool, device=inputs_embeds.device)


def table_rows(
    config: EsmConfig,
    input_ids: Tensor | None,
    mask: Tensor,
    position_ids: Tensor | None = None,
    past: Past | None = None,
) -> Tensor | None:
    """(B, L) rows of the position table, as given or counted; None for models without a table.

    Tokens count from the padding id + 1, without padding; embeddings count by columns. Both
    continue after the past. Raises InputError for `position_ids` of another shape.
    """
    if config.position_embedding_type != "absolute":
        return None
    assert config.pad_token_id is not None, "require_supported() was called"
    if position_ids is not None:
        if position_ids.shape not in (mask.shape, (1, mask.shape[1]), mask.shape[1:]):
            raise InputError(
                f"position_ids have shape {tuple(position_ids.shape)}, the input "
                f"{tuple(mask.shape)}; give one number for each token"
            )
        return position_ids.expand(mask.shape)
    if input_ids is None:
        first = config.pad_token_id + 1 + (0 if past is None else past.length)
        return torch.arange(first, first + mask.shape[1], device=mask.device).expand(mask.shape)
    real = (input_ids != config.pad_token_id).long()
    counted = real.cumsum(1)
    if past is not None:
        counted = counted + past.visible.sum(1, keepdim=True)
    return counted * real + config.pad_token_id


def head_masks(config: EsmConfig, head_mask: Tensor | None) -> list[Tensor] | None:
    """One (H,) for each layer, from (H,) or (n, H). Raises InputError."""
    if head_mask is None:
        return None
    shape = (config.num_hidden_layers, config.num_attention_heads)
    if head_mask.shape not in (shape, shape[1:]):
        raise InputError(
            f"head_mask has shape {tuple(head_mask.shape)}; give {shape[1:]} or {shape}"
        )
    return list(head_mask.expand(shape).unbind(0))


def wants_gradient(*given: Tensor | None) -> bool:
    """Whether gradients with respect to any of these are needed."""
    return torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in given)
