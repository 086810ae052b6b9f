"""Self-attention for inference on the CPU, from queries, keys and values of one product.

Two things make it faster than the general one. Rotary pairs lie side by side, where the reference
has them half a head apart, so that turning them is one product of complex numbers; queries and keys
are permuted alike, which no score notices. And in bfloat16, a few heads are computed at a time,
whose scores stay in the processor's cache from their product to that with the values. Only weights,
from 0 to 1 but for a factor, are rounded to bfloat16: scores are float32, as in PyTorch's own
kernel, since an exponential makes a relative error of what is an absolute one in them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esm_pipeline.model.attention import split
from esm_pipeline.model.inference.linears import FusedLinear
from esm_pipeline.model.layer import Ask, EsmSelfAttention, Seen
from esm_pipeline.model.layout import PackedLayout
from esm_pipeline.model.rotary import Tables, turn_pairs

SCORES = 2**19
"""Scores that are computed at a time: 2 MB in float32, which caches hold."""

COLUMNS = 32
"""Columns that a product is fastest with, however few are needed: those of a processor's vector."""

BOUND = 100
"""Powers of two that sums of exponentials may be from 1 for no score to be lost."""


class CpuSelfAttention(EsmSelfAttention):
    """What `EsmSelfAttention` computes in inference, without dropout or relative positions.

    Queries and keys are by pairs if `tables` are given, which those of rotary models are.
    """

    def __init__(self, plain: EsmSelfAttention, *, rotary: bool) -> None:
        nn.Module.__init__(self)
        self.heads, self.head_width = plain.heads, plain.head_width
        self.distance_embedding, self.dropout = None, nn.Dropout(0.0)
        if rotary:
            self.rotary_embeddings = plain.rotary_embeddings
        self.fused = FusedLinear([plain.query, plain.key, plain.value])
        if rotary:
            self.fused.reorder(by_pairs(len(self.heads), self.head_width))

    def forward(
        self, x: Tensor, layout: PackedLayout, tables: Tables | None, ask: Ask
    ) -> tuple[Tensor, Seen]:
        """Normed states (T, D) → what the heads see (T, H * K), and the maps if asked for."""
        if ask.maps or ask.head_mask is not None:
            return super().forward(x, layout, tables, ask)
        assert self.fused is not None
        turns = None if tables is None else tables.turns
        return attend_joined(self.fused(x), turns, layout, len(self.heads)), Seen()

    def turn(self, x: Tensor, tables: Tables) -> Tensor:
        """Rotate queries or keys (T, H, K), by pairs."""
        return turn_pairs(x, tables.turns)


def by_pairs(heads: int, width: int) -> Tensor:
    """(3 * H * K,) rows of queries, keys and values, (i, i + K/2) of the first two side by side."""
    rows = torch.arange(3 * heads * width, device="cpu").view(3, heads, width)
    paired = rows[:2].unflatten(-1, (2, width // 2)).transpose(-1, -2).flatten(-2)
    return torch.cat((paired, rows[2:])).flatten()


def attend_joined(qkv: Tensor, turns: Tensor | None, layout: PackedLayout, heads: int) -> Tensor:
    """Queries, keys and values side by side (T, 3 * H * K) → (T, H * K).

    `turns` (T, 1, K / 2), complex, are what queries and keys are turned by.
    """
    own = [None] * len(layout.groups) if turns is None else split(turns, layout)
    out = qkv.new_empty(len(qkv), qkv.shape[1] // 3)
    whole = qkv.dtype == torch.float32
    for (_, count, length), group, turn, mixed in zip(
        layout.groups, split(qkv, layout), own, split(out, layout), strict=True
    ):
        # (3, count, H, length, K)
        joined = group.view(count, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        looks = joined[:2].to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        scale = 1.0 if whole else half_scale(looks.shape[-1])
        if turn is not None:
            pairs = torch.view_as_complex(looks.unflatten(-1, (-1, 2)))
            pairs *= (turn * scale).view(count, 1, length, -1)
        elif not whole:
            looks *= scale
        place = mixed.view(count, length, heads, -1).transpose(1, 2)
        if whole:
            place.copy_(F.scaled_dot_product_attention(looks[0], looks[1], joined[2]))
        else:
            attend_in_tiles(looks, joined[2], place)
    return out


def half_scale(width: int) -> float:
    """What queries and keys are multiplied by for the powers of 2 of their products to be those of
    e that attention weighs by."""
    return math.sqrt(width**-0.5 * math.log2(math.e))


def attend_in_tiles(looks: Tensor, values: Tensor, out: Tensor) -> None:
    """Softmax attention with scores in float32 and weights in the dtype of the values.

    Queries and keys (2, N, H, L, K) float32, multiplied by `half_scale`, and values (N, H, L, K);
    `out` (N, H, L, K) is filled.
    """
    *_, length, width = values.shape
    queries, keys = looks.view(2, -1, length, width)
    # ones beside the values: with them, one product sums the weights as well
    summed = values.new_ones(*values.shape[:-1], max(width + 1, COLUMNS))
    summed[..., :width] = values
    rows = summed.view(-1, length, summed.shape[-1])
    mixed = mix_tiles(queries, keys.transpose(1, 2), rows, shift=False)
    least, most = torch.aminmax(mixed[..., width])
    if not (least >= 2.0**-BOUND and most <= 2.0**BOUND):
        mixed = mix_tiles(queries, keys.transpose(1, 2), rows, shift=True)
    mixed = mixed.view(summed.shape)
    sums = mixed[..., width : width + 1]
    if width < COLUMNS:  # by one number a row, narrow rows would be divided one by one
        sums = sums.expand(*sums.shape[:-1], width).contiguous()
    torch.div(mixed[..., :width], sums, out=out)


def mix_tiles(queries: Tensor, keys: Tensor, values: Tensor, *, shift: bool) -> Tensor:
    """(N, L, K), (N, K, L), (N, L, V) → (N, L, V), sums of values weighted by powers of 2.

    With `shift`, the power of the largest score of each query is 1.
    """
    count, length, _ = queries.shape
    heads, rows = part_of(count, SCORES // length**2), min(max(1, SCORES // length), length)
    tile, rounded = (x.new_empty(heads * rows * length) for x in (queries, values))
    mixed = torch.empty_like(values)
    for head in range(0, count, heads):
        own_keys, own_values = keys[head : head + heads], values[head : head + heads]
        for row in range(0, length, rows):
            place = slice(head, head + heads), slice(row, row + rows)
            some = queries[place]
            shape = (*some.shape[:2], length)
            scores, weights = (x[: math.prod(shape)].view(shape) for x in (tile, rounded))
            torch.bmm(some, own_keys, out=scores)
            if shift:
                scores -= scores.amax(-1, keepdim=True)
            weights.copy_(scores.exp2_())
            torch.bmm(weights, own_values, out=mixed[place])
    return mixed


def part_of(count: int, most: int) -> int:
    """The largest divisor of `count` up to `most`, at least 1: each shape costs a kernel."""
    return next(part for part in range(min(max(most, 1), count), 0, -1) if count % part == 0)
