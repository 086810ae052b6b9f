"""Self-attention for inference on the CPU, with queries, keys and values from one product.

Two things make it faster than the general one. Rotary pairs are neighbours, not half a head apart
as in the reference, so that rotating them is one product of complex numbers; queries and keys are
permuted in the same way, which does not change the scores. And in bfloat16, a few heads are
computed at a time, whose scores stay in the processor's cache until they are multiplied by the
values. Only the weights, from 0 to 1 up to a factor, are rounded to bfloat16. Scores are float32,
as in PyTorch's own kernel, since the exponential turns their absolute error into a relative one.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esm_pipeline.model.attention import split_groups
from esm_pipeline.model.layer import EsmSelfAttention, LayerInputs, LayerOutputs
from esm_pipeline.model.layout import PackedLayout
from esm_pipeline.model.linears import FusedLinear
from esm_pipeline.model.rotary import RotaryTables, rotate_pairs

SCORES_AT_ONCE = 2**19
"""Scores computed at a time: 2 MB in float32, which fit into caches."""

SCORE_COLUMNS = 32
"""Columns up to which a product takes no longer: those of a vector register."""

BOUND = 100
"""Sums of exponentials from 2^−BOUND to 2^BOUND lose no score; otherwise scores are shifted."""


class CpuSelfAttention(EsmSelfAttention):
    """`EsmSelfAttention` in inference, without dropout or relative positions.

    In rotary models, the two numbers of each rotary pair of queries and keys are neighbours.
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
        self,
        x: Tensor,
        layout: PackedLayout,
        rotary: RotaryTables | None = None,
        inputs: LayerInputs | None = None,
    ) -> tuple[Tensor, LayerOutputs]:
        """Normed states (T, D) → attended values (T, H * K) and optional outputs."""
        if inputs is not None:
            return super().forward(x, layout, rotary, inputs)
        assert self.fused is not None
        rotations = None if rotary is None else rotary.rotations
        return attend_joined(self.fused(x), rotations, layout, len(self.heads)), LayerOutputs()

    def rotated(self, x: Tensor, rotary: RotaryTables | None) -> Tensor:
        """Queries or keys (T, H, K), rotated by pairs."""
        return x if rotary is None else rotate_pairs(x, rotary.rotations)


def by_pairs(heads: int, width: int) -> Tensor:
    """(3 * H * K,) order of rows in which i and i + K/2 of queries and keys are neighbours."""
    rows = torch.arange(3 * heads * width, device="cpu").view(3, heads, width)
    paired = rows[:2].unflatten(-1, (2, width // 2)).transpose(-1, -2).flatten(-2)
    return torch.cat((paired, rows[2:])).flatten()


def attend_joined(
    qkv: Tensor, rotations: Tensor | None, layout: PackedLayout, heads: int
) -> Tensor:
    """Concatenated queries, keys and values (T, 3 * H * K) → (T, H * K).

    `rotations` (T, 1, K / 2), complex, are those of queries and keys in a rotary model.
    """
    parts = [None] * len(layout.groups) if rotations is None else split_groups(rotations, layout)
    out = qkv.new_empty(len(qkv), qkv.shape[1] // 3)
    whole = qkv.dtype == torch.float32
    for (_, count, length), group, rotation, mixed in zip(
        layout.groups, split_groups(qkv, layout), parts, split_groups(out, layout), strict=True
    ):
        # (3, count, H, length, K)
        joined = group.view(count, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        qk = joined[:2].to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        scale = 1.0 if whole else half_scale(qk.shape[-1])
        if rotation is not None:
            pairs = torch.view_as_complex(qk.unflatten(-1, (-1, 2)))
            pairs *= (rotation * scale).view(count, 1, length, -1)
        elif not whole:
            qk *= scale
        place = mixed.view(count, length, heads, -1).transpose(1, 2)
        if whole:
            place.copy_(F.scaled_dot_product_attention(qk[0], qk[1], joined[2]))
        else:
            attend_in_tiles(qk, joined[2], place)
    return out


def half_scale(width: int) -> float:
    """Factor of queries and of keys with which 2 to the power of their products is e to the power
    of the scaled scores."""
    return math.sqrt(width**-0.5 * math.log2(math.e))


def attend_in_tiles(qk: Tensor, values: Tensor, out: Tensor) -> None:
    """Softmax attention with scores in float32 and weights in the dtype of the values.

    qk: queries and keys (2, N, H, L, K), float32, multiplied by `half_scale`; values: (N, H, L, K);
    out: (N, H, L, K), which is filled.
    """
    *_, length, width = values.shape
    queries, keys = qk.view(2, -1, length, width)
    # columns of ones after the values: the product then also sums the weights
    summed = values.new_ones(*values.shape[:-1], max(width + 1, SCORE_COLUMNS))
    summed[..., :width] = values
    rows = summed.view(-1, length, summed.shape[-1])
    mixed = mix_tiles(queries, keys.transpose(1, 2), rows, shift=False)
    least, most = torch.aminmax(mixed[..., width])
    if not (least >= 2.0**-BOUND and most <= 2.0**BOUND):
        mixed = mix_tiles(queries, keys.transpose(1, 2), rows, shift=True)
    mixed = mixed.view(summed.shape)
    sums = mixed[..., width : width + 1]
    if width < SCORE_COLUMNS:  # dividing narrow rows by one number each is slow
        sums = sums.expand(*sums.shape[:-1], width).contiguous()
    torch.div(mixed[..., :width], sums, out=out)


def mix_tiles(queries: Tensor, keys: Tensor, values: Tensor, *, shift: bool) -> Tensor:
    """(N, L, K), (N, K, L), (N, L, V) → (N, L, V): sums of values weighted by 2 ** score.

    With `shift`, the largest score of each query becomes 0. Here V is the width of the values.
    """
    count, length, _ = queries.shape
    heads, rows = (
        part_of(count, SCORES_AT_ONCE // length**2),
        min(max(1, SCORES_AT_ONCE // length), length),
    )
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
    """The largest divisor of `count` up to `most`, at least 1: each new shape needs a kernel."""
    return next(part for part in range(min(max(most, 1), count), 0, -1) if count % part == 0)
