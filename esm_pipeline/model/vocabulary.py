"""Resizing the vocabulary of a model. Peer: transformers 4.37.2 `resize_token_embeddings`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from esm_pipeline.errors import InputError
from esm_pipeline.model.config import EsmConfig


def resized_rows(old: Tensor, count: int, spread: float) -> nn.Parameter:
    """(V, …) → (count, …): last rows removed, or random normal ones of deviation `spread` added."""
    if old.shape[0] == count and isinstance(old, nn.Parameter):
        return old
    new = torch.empty(count, *old.shape[1:], dtype=old.dtype, device=old.device)
    nn.init.normal_(new, std=spread)
    kept = min(count, old.shape[0])
    new[:kept] = old.detach()[:kept]
    return nn.Parameter(new, requires_grad=old.requires_grad)


def target_count(count: int | None, multiple: int | None, config: EsmConfig) -> int:
    """The new number of tokens. Raises InputError if special tokens would be lost."""
    wanted = config.vocab_size if count is None else count
    step = 1 if multiple is None else multiple
    for name, value in (("new_num_tokens", wanted), ("pad_to_multiple_of", step)):
        if type(value) is not int or value < 1:
            raise InputError(f"{name} is {value!r}; give a whole number")
    assert wanted is not None, "require_supported() was called"
    wanted += -wanted % step
    for name in ("pad_token_id", "mask_token_id"):
        place = getattr(config, name)
        if place is not None and place >= wanted:
            raise InputError(f"{wanted} tokens leave out {name} {place}; keep at least {place + 1}")
    return wanted
