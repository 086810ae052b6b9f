"""Attention over packed sequences: one function, several backends.

`attend` never holds attention maps; explicit_attention.py is for what needs them.
Peer: transformers modeling_esm.py `EsmSelfAttention`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from esm_pipeline.model.layout import PackedLayout

VARLEN = "torch.nn.attention.varlen"
"""PyTorch's attention over packed sequences, in 2.10 and later; importing it takes over a second.

Its kernels support head widths that are multiples of 8, up to 256.
"""
AMPERE = (8, 0)
"""Lowest compute capability on which PyTorch's kernels run."""

Backend = Callable[[Tensor, Tensor, Tensor, PackedLayout, float], Tensor]


def attend(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, dropout: float = 0.0) -> Tensor:
    """Softmax attention of each sequence over itself: (T, H, K) ×3 → (T, H, K)."""
    return choose_backend(q, dropout)(q, k, v, layout, dropout)


def choose_backend(q: Tensor, dropout: float) -> Backend:
    """The fastest backend for the device, precision and head width of `q`."""
    if q.device.type == "cpu":
        return attend_by_length
    half = q.dtype in (torch.float16, torch.bfloat16)
    fits = half and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256
    if q.device.type == "cuda" and fits and dropout == 0.0 and has_varlen(q.device):
        return attend_variable_length
    return attend_padded


@cache
def has_varlen(device: torch.device) -> bool:
    """Whether this PyTorch has `VARLEN` and the GPU can run it."""
    built = torch.backends.cuda.is_flash_attention_available() and find_spec(VARLEN) is not None
    return built and torch.cuda.get_device_capability(device) >= AMPERE


def attend_by_length(
    q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, dropout: float
) -> Tensor:
    """One call for each run of neighbours of equal length, without padding. For the CPU."""
    parts = []
    for (_, count, length), group in zip(layout.groups, by_group(q, k, v, layout), strict=True):
        qg, kg, vg = (x.unflatten(0, (count, length)).transpose(1, 2) for x in group)
        out = F.scaled_dot_product_attention(qg, kg, vg, dropout_p=dropout)  # (count, H, length, K)
        parts.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts) if len(parts) != 1 else parts[0]  # (T, H, K)


def by_group(
    q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Queries, keys and values of each group of the layout."""
    return zip(
        split_groups(q, layout), split_groups(k, layout), split_groups(v, layout), strict=True
    )


def attend_variable_length(
    q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, dropout: float
) -> Tensor:
    """One kernel for all lengths, without padding. For CUDA in 16 bits, without dropout."""
    from torch.nn.attention.varlen import varlen_attn

    ends, longest = layout.cumulative, layout.longest
    out = varlen_attn(q, k, v, ends, ends, longest, longest)
    assert isinstance(out, Tensor), "a second result is returned only on request"
    return out


def attend_padded(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, dropout: float) -> Tensor:
    """Padded to the longest sequence, in attention only. For devices without a better kernel."""
    shape = (len(layout.lengths), layout.longest)
    lengths = torch.tensor(layout.lengths, device=q.device)
    mask = torch.arange(layout.longest, device=q.device) < lengths.unsqueeze(1)  # (B, longest)
    places = mask.flatten().nonzero().squeeze(1)  # (T,)

    def pad(x: Tensor) -> Tensor:
        flat = x.new_zeros(shape[0] * shape[1], *x.shape[1:]).index_copy(0, places, x)
        return flat.view(*shape, *x.shape[1:]).transpose(1, 2)  # (B, H, longest, K)

    # one visible place in a sequence without tokens, so that no softmax is empty
    visible = mask | (lengths == 0).unsqueeze(1)
    out = F.scaled_dot_product_attention(
        pad(q), pad(k), pad(v), attn_mask=visible[:, None, None, :], dropout_p=dropout
    )
    return out.transpose(1, 2).flatten(0, 1).index_select(0, places)


def split_groups(packed: Tensor, layout: PackedLayout) -> tuple[Tensor, ...]:
    """(T, …) → a part for each group of the layout.

    The gradient of a split is one concatenation; that of a slice is as large as the whole.
    """
    sizes = [count * length for _, count, length in layout.groups]
    return torch.split(packed, sizes)
