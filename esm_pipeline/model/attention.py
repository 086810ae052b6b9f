"""Attention over packed sequences: one function, several backends.

`attend` never holds attention maps. The explicit path does, for what `attend` cannot do: attention
outputs, contacts, head masks, relative positions, and decoders. With `attend_explicitly` sequences
look at themselves, with `attend_to_padded` at keys that lie padded: a cache, an encoder's states.
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
from esm_pipeline.model.relative_positions import DistanceEmbedding

VARLEN = "torch.nn.attention.varlen"
"""PyTorch's attention over packed sequences, from 2.10 on; its import takes over a second.

Its kernels know heads of widths that are multiples of 8, up to 256.
"""
AMPERE = (8, 0)
"""Compute capability from which on cards can run them: PyTorch's kernels refuse older ones."""

Backend = Callable[[Tensor, Tensor, Tensor, PackedLayout, float], Tensor]


def attend(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, dropout: float = 0.0) -> Tensor:
    """Softmax attention of each sequence over itself: (T, H, K) ×3 → (T, H, K)."""
    return choose_backend(q, dropout)(q, k, v, layout, dropout)


def choose_backend(q: Tensor, dropout: float) -> Backend:
    """The fastest backend that can do it where `q` lies."""
    if q.device.type == "cpu":
        return attend_by_length
    half = q.dtype in (torch.float16, torch.bfloat16)
    fits = half and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256
    if q.device.type == "cuda" and fits and dropout == 0.0 and has_varlen(q.device):
        return attend_variable_length
    return attend_padded


@cache
def has_varlen(device: torch.device) -> bool:
    """Whether this PyTorch has `VARLEN`, and the card can run it."""
    built = torch.backends.cuda.is_flash_attention_available() and find_spec(VARLEN) is not None
    return built and torch.cuda.get_device_capability(device) >= AMPERE


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
    return zip(split(q, layout), split(k, layout), split(v, layout), strict=True)


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


def attend_explicitly(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: PackedLayout,
    dropout: float = 0.0,
    head_mask: Tensor | None = None,
    *,
    causal: bool = False,
    distances: DistanceEmbedding | None = None,
    with_maps: bool = False,
) -> tuple[Tensor, list[Tensor] | None]:
    """As `attend`, and, if asked for, the maps: one (sequences, H, L, L) a group of the layout.

    With `causal`, no token attends to those after it; `distances` adds relative positions.
    `head_mask` (H,) scales the heads; the maps returned are after dropout and head mask, as the
    reference's.
    """
    parts, maps = [], []
    for (_, count, length), group, at in zip(
        layout.groups, by_group(q, k, v, layout), split(layout.positions, layout), strict=True
    ):
        qg, kg, vg = (x.unflatten(0, (count, length)).transpose(1, 2) for x in group)
        places = at.view(count, length)
        scores = attention_scores(qg, kg, places, places, distances)  # (count, H, length, length)
        hidden = places.unsqueeze(-2) > places.unsqueeze(-1) if causal else None
        mixed, weights = mix(scores, vg, hidden, dropout, head_mask)
        parts.append(mixed)
        if with_maps:
            maps.append(weights)
    return torch.cat(parts), maps if with_maps else None


def attend_to_padded(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    visible: Tensor,
    layout: PackedLayout,
    dropout: float = 0.0,
    head_mask: Tensor | None = None,
    *,
    places: Tensor | None = None,
    distances: DistanceEmbedding | None = None,
    with_maps: bool = False,
) -> tuple[Tensor, list[Tensor] | None]:
    """Queries (T, H, K) over padded keys and values (B, H, S, K) → (T, H, K), and maps.

    `visible` (T, S) is true where a token may look, at one place at least. With `distances`, keys
    stand at 0 … S − 1 and queries at `places` (T,). Maps are one (sequences, H, L, S) for each
    group of the layout, if asked for.
    """
    own = layout.positions if places is None else places
    key_places = torch.arange(keys.shape[2], device=keys.device).unsqueeze(0)  # (1, S)
    parts, maps = [], []
    for (_, count, length), rows, qg, at, seen in zip(
        layout.groups,
        layout.group_sequences,
        split(q, layout),
        split(own, layout),
        split(visible, layout),
        strict=True,
    ):
        qg = qg.unflatten(0, (count, length)).transpose(1, 2)
        scores = attention_scores(qg, keys[rows], at.view(count, length), key_places, distances)
        hidden = ~seen.view(count, length, -1)
        mixed, weights = mix(scores, values[rows], hidden, dropout, head_mask)
        parts.append(mixed)
        if with_maps:
            maps.append(weights)
    return torch.cat(parts), maps if with_maps else None


def split(packed: Tensor, layout: PackedLayout) -> tuple[Tensor, ...]:
    """(T, …) by the groups of the layout."""
    sizes = [count * length for _, count, length in layout.groups]
    return torch.split(packed, sizes)


def attention_scores(
    q: Tensor,
    k: Tensor,
    query_places: Tensor,
    key_places: Tensor,
    distances: DistanceEmbedding | None,
) -> Tensor:
    """(N, H, L, K) and (N, H, S, K) → (N, H, L, S), before the softmax."""
    q = q * q.shape[-1] ** -0.5
    scores = q @ k.transpose(-1, -2)
    if distances is None:
        return scores
    return scores + distances.scores(q, k, query_places, key_places)


def mix(
    scores: Tensor, v: Tensor, hidden: Tensor | None, dropout: float, head_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Scores (N, H, L, S) and values (N, H, S, K) → (N * L, H, K), and the weights.

    `hidden` (N, L, S) is true where nothing may be seen; `head_mask` (H,) scales the heads.
    """
    if hidden is not None:
        scores = scores.masked_fill(hidden.unsqueeze(1), -torch.inf)
    weights = F.dropout(scores.softmax(-1), dropout, training=dropout > 0)
    if head_mask is not None:
        weights = weights * head_mask.to(weights.dtype)[:, None, None]
    return (weights @ v).transpose(1, 2).flatten(0, 1), weights


def unpack_maps(maps: list[Tensor], layout: PackedLayout, width: int) -> Tensor:
    """Maps by group, at least one → (B, H, width, width), zeros where a token was masked.

    Without any padding they are the maps themselves.
    """
    if maps[0].shape[0] == len(layout.lengths) and maps[0].shape[2] == width:
        return maps[0]
    padded = maps[0].new_zeros(len(layout.lengths), maps[0].shape[1], width, width)
    for place, columns, single in by_sequence(maps, layout):
        padded[place, :, columns[:, None], columns] = single
    return padded


def unpack_rows(maps: list[Tensor], layout: PackedLayout, width: int) -> Tensor:
    """Maps over padded keys by group → (B, H, width, S), zeros where a token was masked."""
    heads, keys = maps[0].shape[1], maps[0].shape[3]
    padded = maps[0].new_zeros(len(layout.lengths), heads, width, keys)
    for place, columns, single in by_sequence(maps, layout):
        padded[place][:, columns] = single
    return padded


def by_sequence(maps: list[Tensor], layout: PackedLayout) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Place in the batch, columns (L,), and map (H, L, S) of each sequence that has tokens."""
    single = iter([one for group in maps for one in group])
    for place, (start, length) in enumerate(zip(layout.offsets, layout.lengths, strict=False)):
        if length:
            yield place, layout.positions[start : start + length], next(single)
