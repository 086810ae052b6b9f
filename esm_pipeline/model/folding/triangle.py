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
from esm_pipeline.model.folding.linear import FINAL, Gate, Linear
from esm_pipeline.model.inference.linears import weight_and_bias

PRODUCTS = 2**17
PRODUCTS_ELSEWHERE = 2**20
"""Numbers of products of triangles, which are made some channels at a time, at once: half a MiB in
float32 for each thread of a CPU, which its cache holds; 4 MiB elsewhere."""

OFFSET = 16
"""Numbers between the channels of a projection: matrices that lie a power of two apart would share
few places in the processor's caches (5 times slower to read across at R = 256)."""

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
    `fused_p` and `fused_g` compute a and b side by side; `optimize_for_inference` puts them in
    place of the layers that do one each.
    """

    def __init__(self, config: TrunkConfig, *, outgoing: bool) -> None:
        super().__init__()
        width = config.pairwise_state_dim
        self.outgoing = outgoing
        self.precision: torch.dtype | None = None  # of products; None for that of z
        self.linear_a_p = Linear(width, width)
        self.linear_a_g = Gate(width, width)
        self.linear_b_p = Linear(width, width)
        self.linear_b_g = Gate(width, width)
        self.fused_p: nn.Module | None = None
        self.fused_g: nn.Module | None = None
        self.linear_g = Gate(width, width)
        self.linear_z = Linear(width, width, FINAL)
        self.layer_norm_in = nn.LayerNorm(width)
        self.layer_norm_out = nn.LayerNorm(width)

    def forward(
        self,
        z: Tensor,
        mask: Tensor | None,
        rows: int,
        dropped: Callable[[Tensor], Tensor] | None = None,
        room: Tensor | None = None,
    ) -> Tensor:
        """z (B, R, R, Z) and the mask (B, R) of its residues, None for all → z, updated.

        room: of 2 * Z channels, as `working_room` makes it.
        """
        pairs = None if mask is None else pair_mask(mask)
        product = self.product(z, pairs, rows, room)
        start = 0

        def update(some: Tensor) -> Tensor:
            nonlocal start
            rows_of_product = channels_last(product[:, :, start : start + some.shape[1]])
            start += some.shape[1]
            opened = self.linear_g(self.layer_norm_in(some))
            added: Tensor = self.linear_z(self.layer_norm_out(rows_of_product)).mul_(opened)
            return added

        return add_rows(z, update, rows, dropped)

    def product(
        self, z: Tensor, pairs: Tensor | None, rows: int, room: Tensor | None = None
    ) -> Tensor:
        """(B, Z, R, R), channels first."""
        if torch.is_grad_enabled():
            a, b = self.edges(z, pairs).permute(0, 3, 1, 2).chunk(2, dim=1)
            left, right = self.factors(a, b)
            whole: Tensor = left @ right
            return whole
        length, width = z.shape[1], z.shape[-1]
        if room is None:
            room = working_room(z, 2 * width, self.precision)
        room = room[:, : 2 * width]
        for start in range(0, length, rows):
            part = slice(start, start + rows)
            edges = self.edges(z[:, part], None if pairs is None else pairs[:, part])
            for own, some in zip(room[:, :, part], edges, strict=True):
                own.flatten(1).copy_(some.flatten(0, 1).T)  # quicker in two dimensions
        channels = max(1, products_at_once(z.device) // length**2)
        for own in room:
            a, b = own.chunk(2)
            for place, left, right in zip(
                *(x.split(channels) for x in (a, *self.factors(a, b))), strict=True
            ):
                place.copy_(left @ right)  # of a projection that is not needed any more
        product: Tensor = room[:, :width]
        return product

    def factors(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Of a and b (B, Z, R, R), what is multiplied as matrices."""
        return (a, b.transpose(-1, -2)) if self.outgoing else (a.transpose(-1, -2), b)

    def edges(self, z: Tensor, pairs: Tensor | None) -> Tensor:
        """Rows of z (B, rows, R, Z) → a and b side by side, (B, rows, R, 2 * Z)."""
        normed = self.layer_norm_in(z)
        if self.fused_p is not None and self.fused_g is not None:
            edges: Tensor = self.fused_p(normed).mul_(self.fused_g(normed))
        else:
            a = self.linear_a_p(normed) * self.linear_a_g(normed)
            b = self.linear_b_p(normed) * self.linear_b_g(normed)
            edges = torch.cat([a, b], dim=-1)
        return edges if pairs is None else edges * pairs.unsqueeze(-1)


def products_at_once(device: torch.device) -> int:
    """Numbers of products that are made at once: on a CPU, what its caches hold."""
    return torch.get_num_threads() * PRODUCTS if device.type == "cpu" else PRODUCTS_ELSEWHERE


def working_room(z: Tensor, channels: int, dtype: torch.dtype | None = None) -> Tensor:
    """Room for what is made of z (B, R, R, Z), channels first: (B, channels, R, R).

    dtype: None for that of z.
    """
    batch, length = z.shape[:2]
    room = z.new_empty(batch, channels, length**2 + OFFSET, dtype=dtype)
    first: Tensor = room[..., : length**2].unflatten(-1, (length, length))
    return first


def channels_last(x: Tensor) -> Tensor:
    """(B, Z, rows, R) → (B, rows, R, Z)."""
    if torch.is_grad_enabled():
        return x.permute(0, 2, 3, 1)
    last = x.new_empty(len(x), *x.shape[2:], x.shape[1])
    for own, some in zip(last, x, strict=True):
        # copied as it lies, then turned round in the cache: quicker, above all in two dimensions
        own.flatten(0, 1).copy_(some.flatten(1).contiguous().T)
    return last


def bias_of(
    z: Tensor,
    norm: Callable[[Tensor], Tensor],
    weight: Tensor,
    rows: int,
    room: Tensor | None = None,
) -> Tensor:
    """A norm of z (B, R, R, Z) by weights (H, Z) → a bias (B, H, R, R).

    It is in the precision of the weights; in the room, if one as precise is given.
    """
    if torch.is_grad_enabled():
        biases: Tensor = (weight @ norm(z).transpose(-1, -2)).transpose(1, 2)
        return biases
    heads = len(weight)
    if room is None or room.dtype != weight.dtype:
        room = working_room(z, heads, weight.dtype)
    bias = room[:, :heads]
    for start in range(0, z.shape[1], rows):
        part = slice(start, start + rows)
        normed = norm(z[:, part]).to(weight.dtype).flatten(1, 2)
        bias[:, :, part] = (weight @ normed.transpose(-1, -2)).unflatten(-1, (-1, z.shape[2]))
    return bias


class GatedAttention(nn.Module):
    """Attention within each row, with a bias shared by all rows, and gates on what it gives.

    `fused` computes queries, keys and values at once; `optimize_for_inference` puts it in place of
    the three.
    """

    def __init__(self, width: int, head_width: int, heads: int) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.linear_q = Linear(width, inner, bias=False)
        self.linear_k = Linear(width, inner, bias=False)
        self.linear_v = Linear(width, inner, bias=False)
        self.fused: nn.Module | None = None
        self.linear_o = Linear(inner, width, FINAL)
        self.linear_g = Gate(width, inner)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x (B, rows, R, Z) and bias (B, H, R, R) → (B, rows, R, Z)."""
        if self.fused is None:
            parts = (self.linear_q(x), self.linear_k(x), self.linear_v(x))
        else:
            parts = self.fused(x).chunk(3, dim=-1)
        # (B, rows, H, R, K) each, as precise as the bias, which makes scores so too; sequence by
        # sequence, so that the bias is not written out by row
        heads = (
            part.to(bias.dtype).unflatten(-1, (self.heads, -1)).transpose(-2, -3) for part in parts
        )
        mixed = [
            F.scaled_dot_product_attention(q, k, v, own.expand(len(q), -1, -1, -1))
            for q, k, v, own in zip(*heads, bias, strict=True)
        ]
        whole = mixed[0].unsqueeze(0) if len(mixed) == 1 else torch.stack(mixed)
        gates: Tensor = self.linear_g(x)
        gated = gates * whole.transpose(-2, -3).flatten(-2).to(gates.dtype)
        return self.linear_o(gated)  # type: ignore[no-any-return]


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
        room: Tensor | None = None,
    ) -> Tensor:
        """z (B, R, R, Z) and the mask (B, R) of its residues, None for all → z, updated.

        room: of H channels, as `working_room` makes it.
        """
        if not self.starting:
            z = z.transpose(1, 2)
        bias = bias_of(z, self.layer_norm, weight_and_bias(self.linear)[0], rows, room)
        if mask is not None:
            bias = bias.masked_fill(~mask.bool()[:, None, None], HIDDEN)

        def update(some: Tensor) -> Tensor:
            attended: Tensor = self.mha(self.layer_norm(some), bias)
            return attended

        z = add_rows(z, update, rows, dropped)
        return z if self.starting else z.transpose(1, 2)


def pair_mask(mask: Tensor) -> Tensor:
    """(B, R) → (B, R, R), where both residues are."""
    return mask.unsqueeze(2) * mask.unsqueeze(1)
