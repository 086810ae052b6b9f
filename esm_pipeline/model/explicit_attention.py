"""Attention over packed sequences with its weights written out: right, not fast.

For what `attention.attend` cannot do: attention maps, contacts, head masks, relative positions and
decoders. With `attend_explicitly` sequences attend to themselves, with `attend_to_padded` to padded
keys: a cache, an encoder's states. Peer: transformers modeling_esm.py `EsmSelfAttention`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from esm_pipeline.model.attention import by_group, split_groups
from esm_pipeline.model.layout import PackedLayout
from esm_pipeline.model.relative_positions import DistanceEmbedding


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
    """As `attend`; `with_maps` also returns one map (sequences, H, L, L) for each group.

    With `causal`, no token attends to later ones; `distances` adds relative positions. `head_mask`
    (H,) scales the heads. As in the reference, maps are taken after dropout and head mask.
    """
    parts, maps = [], []
    for (_, count, length), group, at in zip(
        layout.groups,
        by_group(q, k, v, layout),
        split_groups(layout.positions, layout),
        strict=True,
    ):
        qg, kg, vg = (x.unflatten(0, (count, length)).transpose(1, 2) for x in group)
        own = at.view(count, length)
        scores = attention_scores(qg, kg, own, own, distances)  # (count, H, length, length)
        hidden = own.unsqueeze(-2) > own.unsqueeze(-1) if causal else None
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
    positions: Tensor | None = None,
    distances: DistanceEmbedding | None = None,
    with_maps: bool = False,
) -> tuple[Tensor, list[Tensor] | None]:
    """Queries (T, H, K) over padded keys and values (B, H, S, K) → (T, H, K), and maps.

    `visible` (T, S) is true where a token may attend, in one place at least. For `distances`, keys
    have the positions 0 … S − 1 and queries `positions` (T,), by default those of the layout.
    `with_maps` also returns one map (sequences, H, L, S) for each group.
    """
    own = layout.positions if positions is None else positions
    key_positions = torch.arange(keys.shape[2], device=keys.device).unsqueeze(0)  # (1, S)
    parts, maps = [], []
    for (_, count, length), rows, qg, at, seen in zip(
        layout.groups,
        layout.group_sequences,
        split_groups(q, layout),
        split_groups(own, layout),
        split_groups(visible, layout),
        strict=True,
    ):
        qg = qg.unflatten(0, (count, length)).transpose(1, 2)
        scores = attention_scores(qg, keys[rows], at.view(count, length), key_positions, distances)
        hidden = ~seen.view(count, length, -1)
        mixed, weights = mix(scores, values[rows], hidden, dropout, head_mask)
        parts.append(mixed)
        if with_maps:
            maps.append(weights)
    return torch.cat(parts), maps if with_maps else None


def attention_scores(
    q: Tensor,
    k: Tensor,
    query_positions: Tensor,
    key_positions: Tensor,
    distances: DistanceEmbedding | None,
) -> Tensor:
    """(N, H, L, K) and (N, H, S, K) → (N, H, L, S), before the softmax."""
    q = q * q.shape[-1] ** -0.5
    scores = q @ k.transpose(-1, -2)
    if distances is None:
        return scores
    return scores + distances.scores(q, k, query_positions, key_positions)


def mix(
    scores: Tensor, v: Tensor, hidden: Tensor | None, dropout: float, head_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Scores (N, H, L, S) and values (N, H, S, K) → (N * L, H, K) and the weights (N, H, L, S).

    `hidden` (N, L, S) is true where a token may not attend; `head_mask` (H,) scales the heads.
    """
    if hidden is not None:
        scores = scores.masked_fill(hidden.unsqueeze(1), -torch.inf)
    weights = F.dropout(scores.softmax(-1), dropout, training=dropout > 0)
    if head_mask is not None:
        weights = weights * head_mask.to(weights.dtype)[:, None, None]
    return (weights @ v).transpose(1, 2).flatten(0, 1), weights


def unpack_maps(maps: list[Tensor], layout: PackedLayout, width: int) -> Tensor:
    """Maps of one or more groups → (B, H, width, width), zeros where a token was masked.

    Without padding, the map of the only group itself.
    """
    if maps[0].shape[0] == len(layout.lengths) and maps[0].shape[2] == width:
        return maps[0]
    padded = maps[0].new_zeros(len(layout.lengths), maps[0].shape[1], width, width)
    for place, columns, single in by_sequence(maps, layout):
        padded[place, :, columns[:, None], columns] = single
    return padded


def unpack_rows(maps: list[Tensor], layout: PackedLayout, width: int) -> Tensor:
    """Maps of groups over padded keys → (B, H, width, S), zeros where a token was masked."""
    heads, keys = maps[0].shape[1], maps[0].shape[3]
    padded = maps[0].new_zeros(len(layout.lengths), heads, width, keys)
    for place, columns, single in by_sequence(maps, layout):
        padded[place][:, columns] = single
    return padded


def by_sequence(maps: list[Tensor], layout: PackedLayout) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Place in the batch, columns (L,) and map (H, L, S) of each sequence with tokens."""
    single = iter([one for group in maps for one in group])
    for place, (start, length) in enumerate(zip(layout.offsets, layout.lengths, strict=False)):
        if length:
            yield place, layout.positions[start : start + length], next(single)
