"""Attention over packed sequences: one function, several backends.

`attend` never holds attention maps; `attend_with_maps` is the explicit path, for attention outputs,
contacts and head masks. Peer: transformers modeling_esm.py `EsmSelfAttention`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from esm_pipeline.model.layout import PackedLayout

VARLEN = "torch.nn.attention.varlen"
"""PyTorch's attention over packed sequences, from 2.10 on; its import takes over a second."""

Backend = Callable[[Tensor, Tensor, Tensor, PackedLayout, float], Tensor]


def attend(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, dropout: float = 0.0) -> Tensor:
    """Softmax attention of each sequence over itself: (T, H, K) ×3 → (T, H, K)."""
    return choose_backend(q, dropout)(q, k, v, layout, dropout)


def choose_backend(q: Tensor, dropout: float) -> Backend:
    """The fastest backend that can do it where `q` lies."""
    if q.device.type == "cpu":
        return attend_by_length
    half = q.dtype in (torch.float16, torch.bfloat16)
    if q.device.type == "cuda" and half and dropout == 0.0 and find_spec(VARLEN):
        return attend_variable_length
    return attend_padded


def attend_by_length(
    q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, dropout: float
) -> Tensor:
    """Neighbours of equal length together, without padding. For the CPU."""
    parts = []
    for (_, count, length), group in zip(layout.groups, by_group(q, k, v, layout), strict=True):
        qg, kg, vg = (x.unflatten(0, (count, length)).transpose(1, 2) for x in group)
        out = F.scaled_dot_product_attention(qg, kg, vg, dropout_p=dropout)  # (count, H, length, K)
        parts.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts) if len(parts) != 1 else parts[0]  # (T, H, K)


def by_group(
    q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Queries, keys and values of each group of the layout.

    By `split`, whose gradient is one concatenation; slices would each fill a whole (T, H, K).
    """
    sizes = [count * length for _, count, length in layout.groups]
    return zip(q.split(sizes), k.split(sizes), v.split(sizes), strict=True)


def attend_variable_length(
    q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, dropout: float
) -> Tensor:
    """One kernel over all lengths, without padding. For CUDA in 16 bits, without dropout."""
    from torch.nn.attention.varlen import varlen_attn

    ends, longest = layout.cumulative, layout.longest
    out = varlen_attn(q, k, v, ends, ends, longest, longest)
    assert isinstance(out, Tensor), "a second result comes only when asked for"
    return out


def attend_padded(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, dropout: float) -> Tensor:
    """Padded to the longest for the attention alone. For devices without a better kernel."""
    shape = (len(layout.lengths), layout.longest)
    lengths = torch.tensor(layout.lengths, device=q.device)
    mask = torch.arange(layout.longest, device=q.device) < lengths.unsqueeze(1)  # (B, longest)
    places = mask.flatten().nonzero().squeeze(1)  # (T,)

    def spread(x: Tensor) -> Tensor:
        flat = x.new_zeros(shape[0] * shape[1], *x.shape[1:]).index_copy(0, places, x)
        return flat.view(*shape, *x.shape[1:]).transpose(1, 2)  # (B, H, longest, K)

    # a sequence without tokens keeps one, so that no softmax is empty
    visible = mask | (lengths == 0).unsqueeze(1)
    out = F.scaled_dot_product_attention(
        spread(q), spread(k), spread(v), attn_mask=visible[:, None, None, :], dropout_p=dropout
    )
    return out.transpose(1, 2).flatten(0, 1).index_select(0, places)


def attend_with_maps(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: PackedLayout,
    dropout: float = 0.0,
    head_mask: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """As `attend`, and the attention maps: one (sequences, H, L, L) for each group of the layout.

    `head_mask` (H,) scales the heads; the maps returned are after dropout and head mask, as the
    reference's.
    """
    parts, maps = [], []
    for (_, count, length), group in zip(layout.groups, by_group(q, k, v, layout), strict=True):
        qg, kg, vg = (x.unflatten(0, (count, length)).transpose(1, 2) for x in group)
        scores = (qg * q.shape[-1] ** -0.5) @ kg.transpose(-1, -2)  # (count, H, length, length)
        weights = F.dropout(scores.softmax(-1), dropout, training=dropout > 0)
        if head_mask is not None:
            weights = weights * head_mask.to(weights.dtype)[:, None, None]
        maps.append(weights)
        parts.append((weights @ vg).transpose(1, 2).flatten(0, 1))
    return torch.cat(parts), maps


def unpack_maps(maps: list[Tensor], layout: PackedLayout, width: int) -> Tensor:
    """Maps by group, at least one → (B, H, width, width), zeros where a token was masked."""
    padded = maps[0].new_zeros(len(layout.lengths), maps[0].shape[1], width, width)
    single = iter([one for group in maps for one in group])  # each (H, L, L)
    for place, (start, length) in enumerate(zip(layout.offsets, layout.lengths, strict=False)):
        if length:
            columns = layout.positions[start : start + length]
            padded[place, :, columns[:, None], columns] = next(single)
    return padded
