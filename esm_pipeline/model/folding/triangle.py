"""Updates of the pair representation z (B, R, R, Z) along the triangles of residues.

Algorithms 11 to 14 (Jumper et al. 2021). Peer: transformers modeling_esmfold.py, whose names of
parameters these are.

Without gradients z is changed in place, some rows at a time: what exists beside it is, in the
product, two more of its size (the projections; the product takes the place of the first), and in
attention the bias, H numbers for each pair. With gradients every step is a new tensor.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esm_pipeline.model.folding.config import TrunkConfig
from esm_pipeline.model.folding.linear import FINAL, Linear, gate

CHANNELS_AT_ONCE = 16
"""Channels of which products of triangles are made at once."""

HIDDEN = -1e9
"""What is added to the score of a pair that is not there."""


def add_rows(
    z: Tensor,
    update: Callable[[Tensor], Tensor],
    rows: int,
    dropped: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """z (B, R, R, Z) with `update` of each row added, `rows` at a time and in place if it may be.

    dropped: what happens to the update in training; with it, `rows` has to be all of them.
    """
    if torch.is_grad_enabled():
        whole = update(z)
        return z + (whole if dropped is None else dropped(whole))
    for some in z.split(rows, dim=1):
        added = update(some)
        some += added if dropped is None else dropped(added)
    return z


class TriangleMultiplication(nn.Module):
    """For each pair, the products of the edges that close a triangle with it, summed.

    Outgoing: Σ over k of a[i, k] · b[j, k]. Incoming: Σ over k of a[k, i] · b[k, j].
    """

    def __init__(self, config: TrunkConfig, *, outgoing: bool) -> None:
        super().__init__()
        width = config.pairwise_state_dim
        self.outgoing = outgoing
        self.linear_a_p = Linear(width, width)
        self.linear_a_g = gate(width, width)
        self.linear_b_p = Linear(width, width)
        self.linear_b_g = gate(width, width)
        self.linear_g = gate(width, width)
        self.linear_z = Linear(width, width, FINAL)
        self.layer_norm_in = nn.LayerNorm(width)
        self.layer_norm_out = nn.LayerNorm(width)

    def forward(
        self,
        z: Tensor,
        mask: Tensor | None,
        rows: int,
        dropped: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """z (B, R, R, Z) and the mask (B, R) of its residues, None for all → z, updated."""
        pairs = None if mask is None else pair_mask(mask)
        product = self.product(z, pairs, rows)
        start = 0

        def update(some: Tensor) -> Tensor:
            nonlocal start
            rows_of_product = product[:, :, start : start + some.shape[1]].permute(0, 2, 3, 1)
            start += some.shape[1]
            opened = torch.sigmoid(self.linear_g(self.layer_norm_in(some)))
            added: Tensor = self.linear_z(self.layer_norm_out(rows_of_product)) * opened
            return added

        return add_rows(z, update, rows, dropped)

    def product(self, z: Tensor, pairs: Tensor | None, rows: int) -> Tensor:
        """(B, Z, R, R), channels first."""
        if torch.is_grad_enabled():
            a, b = self.projections(z, pairs)
        else:
            size = (z.shape[0], z.shape[3], z.shape[1], z.shape[2])
            a, b = z.new_empty(size), z.new_empty(size)
            for start in range(0, z.shape[1], rows):
                part = slice(start, start + rows)
                some = None if pairs is None else pairs[:, part]
                a[:, :, part], b[:, :, part] = self.projections(z[:, part], some)
        if self.outgoing:
            left, right = a, b.transpose(-1, -2)
        else:
            left, right = a.transpose(-1, -2), b
        if torch.is_grad_enabled():
            return left @ right
        parts = (x.flatten(0, 1).split(CHANNELS_AT_ONCE) for x in (a, left, right))
        for place, first, second in zip(*parts, strict=True):
            place.copy_(first @ second)  # of a projection that is not needed any more
        return a

    def projections(self, z: Tensor, pairs: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rows of z (B, rows, R, Z) → a and b, (B, Z, rows, R) each."""
        normed = self.layer_norm_in(z)
        a = torch.sigmoid(self.linear_a_g(normed)) * self.linear_a_p(normed)
        b = torch.sigmoid(self.linear_b_g(normed)) * self.linear_b_p(normed)
        if pairs is not None:
            a, b = a * pairs.unsqueeze(-1), b * pairs.unsqueeze(-1)
        return a.permute(0, 3, 1, 2), b.permute(0, 3, 1, 2)


class GatedAttention(nn.Module):
    """Attention within each row, with a bias shared by all rows, and gates on what it gives."""

    def __init__(self, width: int, head_width: int, heads: int) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.linear_q = Linear(width, inner, bias=False)
        self.linear_k = Linear(width, inner, bias=False)
        self.linear_v = Linear(width, inner, bias=False)
        self.linear_o = Linear(inner, width, FINAL)
        self.linear_g = gate(width, inner)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x (B, rows, R, Z) and bias (B, 1 or rows, H, R, R) → (B, rows, R, Z)."""
        q, k, v = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(-2, -3)
            for linear in (self.linear_q, self.linear_k, self.linear_v)
        )  # (B, rows, H, R, K)
        bias = bias.expand(*q.shape[:-1], bias.shape[-1])
        mixed = F.scaled_dot_product_attention(
            q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), bias.flatten(0, 1)
        )
        mixed = mixed.transpose(1, 2).flatten(2).unflatten(0, x.shape[:2])
        return self.linear_o(mixed * torch.sigmoid(self.linear_g(x)))  # type: ignore[no-any-return]


class TriangleAttention(nn.Module):
    """Attention of a residue's pairs to each other, around its starting or its ending node."""

    def __init__(self, config: TrunkConfig, *, starting: bool) -> None:
        super().__init__()
        width, head_width = config.pairwise_state_dim, config.pairwise_head_width
        self.starting = starting
        self.layer_norm = nn.LayerNorm(width)
        self.linear = Linear(width, width // head_width, bias=False)
        self.mha = GatedAttention(width, head_width, width // head_width)

    def forward(
        self,
        z: Tensor,
        mask: Tensor | None,
        rows: int,
        dropped: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """z (B, R, R, Z) and the mask (B, R) of its residues, None for all → z, updated."""
        if not self.starting:
            z = z.transpose(1, 2)
        bias = torch.cat([self.linear(self.layer_norm(some)) for some in z.split(rows, dim=1)], 1)
        bias = bias.permute(0, 3, 1, 2).unsqueeze(1)  # (B, 1, H, R, R)
        if mask is not None:
            bias = bias.masked_fill(~mask.bool()[:, None, None, None], HIDDEN)

        def update(some: Tensor) -> Tensor:
            attended: Tensor = self.mha(self.layer_norm(some), bias)
            return attended

        z = add_rows(z, update, rows, dropped)
        return z if self.starting else z.transpose(1, 2)


def pair_mask(mask: Tensor) -> Tensor:
    """(B, R) → (B, R, R), where both residues are."""
    return mask.unsqueeze(2) * mask.unsqueeze(1)
