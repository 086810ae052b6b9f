"""Updates of the pair representation z (B, R, R, Z) along the triangles of residues.

Algorithms 11 to 14 (Jumper et al. 2021). Peer: transformers modeling_esmfold.py, whose names of
parameters these are.

Without gradients z is changed in place, a few rows at a time. In addition to z, the product needs
two tensors of its size (the projections; the product overwrites the first), and attention needs the
bias, H numbers for each pair. With gradients every step is a new tensor.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esm_pipeline.footprint import PRODUCTS
from esm_pipeline.model.folding.config import TrunkConfig
from esm_pipeline.model.folding.linear import FINAL, Gate, Linear
from esm_pipeline.model.linears import weight_and_bias

PRODUCTS_ELSEWHERE = 2**20
"""Elements of triangle products computed at a time on other devices than a CPU: 4 MiB in float32.
"""

OFFSET = 16
"""Unused numbers between the channels of a projection: matrices at distances of a power of two
would compete for the same cache lines (5 times slower to read by columns at R = 256)."""

HIDDEN = -1e9
"""Added to the scores of padding."""


def add_rows(
    z: Tensor,
    update: Callable[[Tensor], Tensor],
    rows: int,
    dropped: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """z (B, R, R, Z) plus `update` of its rows, `rows` at a time and in place without gradients.

    dropped: applied to the update in training; `rows` then has to be all rows.
    """
    if torch.is_grad_enabled():
        whole = update(z)
        return z + (whole if dropped is None else dropped(whole))
    for some in z.split(rows, dim=1):
        added = update(some)
        some += added if dropped is None else dropped(added)
    return z


class TriangleMultiplication(nn.Module):
    """For each pair, the sum of products of the two edges that form a triangle with it.

    Outgoing: Σ over k of a[i, k] · b[j, k]. Incoming: Σ over k of a[k, i] · b[k, j].
    `fused_p` and `fused_g` compute a and b together; `optimize_for_inference` replaces the separate
    layers by them.
    """

    def __init__(self, config: TrunkConfig, *, outgoing: bool) -> None:
        super().__init__()
        width = config.pairwise_state_dim
        self.outgoing = outgoing
        self.precision: torch.dtype | None = None  # of the products; None: that of z
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
        buffer: Tensor | None = None,
    ) -> Tensor:
        """z (B, R, R, Z) and mask (B, R), None without padding → z, updated.

        buffer: from `work_buffer`, with 2 * Z channels.
        """
        pairs = None if mask is None else pair_mask(mask)
        product = self.product(z, pairs, rows, buffer)
        start = 0

        def update(some: Tensor) -> Tensor:
            nonlocal start
            rows_of_product = channels_last(product[:, :, start : start + some.shape[1]])
            start += some.shape[1]
            gates = self.linear_g(self.layer_norm_in(some))
            added: Tensor = self.linear_z(self.layer_norm_out(rows_of_product)).mul_(gates)
            return added

        return add_rows(z, update, rows, dropped)

    def product(
        self, z: Tensor, pairs: Tensor | None, rows: int, buffer: Tensor | None = None
    ) -> Tensor:
        """(B, Z, R, R), channels first."""
        if torch.is_grad_enabled():
            a, b = self.edges(z, pairs).permute(0, 3, 1, 2).chunk(2, dim=1)
            left, right = self.factors(a, b)
            whole: Tensor = left @ right
            return whole
        length, width = z.shape[1], z.shape[-1]
        if buffer is None:
            buffer = work_buffer(z, 2 * width, self.precision)
        buffer = buffer[:, : 2 * width]
        for start in range(0, length, rows):
            part = slice(start, start + rows)
            edges = self.edges(z[:, part], None if pairs is None else pairs[:, part])
            for own, some in zip(buffer[:, :, part], edges, strict=True):
                own.flatten(1).copy_(some.flatten(0, 1).T)  # faster in two dimensions
        channels = max(1, products_at_once(z.device) // length**2)
        for own in buffer:
            a, b = own.chunk(2)
            for place, left, right in zip(
                *(x.split(channels) for x in (a, *self.factors(a, b))), strict=True
            ):
                place.copy_(left @ right)  # overwrite a projection that is no longer needed
        product: Tensor = buffer[:, :width]
        return product

    def factors(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """a and b (B, Z, R, R) → the two matrices to multiply."""
        return (a, b.transpose(-1, -2)) if self.outgoing else (a.transpose(-1, -2), b)

    def edges(self, z: Tensor, pairs: Tensor | None) -> Tensor:
        """Rows of z (B, rows, R, Z) → a and b concatenated, (B, rows, R, 2 * Z)."""
        normed = self.layer_norm_in(z)
        if self.fused_p is not None and self.fused_g is not None:
            edges: Tensor = self.fused_p(normed).mul_(self.fused_g(normed))
        else:
            a = self.linear_a_p(normed) * self.linear_a_g(normed)
            b = self.linear_b_p(normed) * self.linear_b_g(normed)
            edges = torch.cat([a, b], dim=-1)
        return edges if pairs is None else edges * pairs.unsqueeze(-1)


def products_at_once(device: torch.device) -> int:
    """Elements of products to compute at a time: on a CPU, as many as fit into its caches."""
    return torch.get_num_threads() * PRODUCTS if device.type == "cpu" else PRODUCTS_ELSEWHERE


def work_buffer(z: Tensor, channels: int, dtype: torch.dtype | None = None) -> Tensor:
    """Memory for intermediate results of z (B, R, R, Z), channels first: (B, channels, R, R).

    dtype: None for that of z.
    """
    batch, length = z.shape[:2]
    buffer = z.new_empty(batch, channels, length**2 + OFFSET, dtype=dtype)
    first: Tensor = buffer[..., : length**2].unflatten(-1, (length, length))
    return first


def channels_last(x: Tensor) -> Tensor:
    """(B, Z, rows, R) → (B, rows, R, Z)."""
    if torch.is_grad_enabled():
        return x.permute(0, 2, 3, 1)
    last = x.new_empty(len(x), *x.shape[2:], x.shape[1])
    for own, some in zip(last, x, strict=True):
        # copied in its own order, then transposed in the cache: faster, above all in two dimensions
        own.flatten(0, 1).copy_(some.flatten(1).contiguous().T)
    return last


def bias_of(
    z: Tensor,
    norm: Callable[[Tensor], Tensor],
    weight: Tensor,
    rows: int,
    buffer: Tensor | None = None,
) -> Tensor:
    """The norm of z (B, R, R, Z) times weights (H, Z) → a bias (B, H, R, R).

    The bias has the dtype of the weights; it is written to the buffer if that has the same dtype.
    """
    if torch.is_grad_enabled():
        biases: Tensor = (weight @ norm(z).transpose(-1, -2)).transpose(1, 2)
        return biases
    heads = len(weight)
    if buffer is None or buffer.dtype != weight.dtype:
        buffer = work_buffer(z, heads, weight.dtype)
    bias = buffer[:, :heads]
    for start in range(0, z.shape[1], rows):
        part = slice(start, start + rows)
        normed = norm(z[:, part]).to(weight.dtype).flatten(1, 2)
        bias[:, :, part] = (weight @ normed.transpose(-1, -2)).unflatten(-1, (-1, z.shape[2]))
    return bias


class GatedAttention(nn.Module):
    """Attention within each row, with a bias shared by all rows, and gates on its output.

    `fused` computes queries, keys and values in one product; `optimize_for_inference` replaces the
    three layers by it.
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
        # (B, rows, H, R, K) each, in the dtype of the bias, so that scores have it too; one
        # sequence at a time, so that the bias is not copied for each row
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
    """Attention between the pairs of one residue, around its starting or ending node."""

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
        buffer: Tensor | None = None,
    ) -> Tensor:
        """z (B, R, R, Z) and mask (B, R), None without padding → z, updated.

        buffer: from `work_buffer`, with H channels.
        """
        if not self.starting:
            z = z.transpose(1, 2)
        bias = bias_of(z, self.layer_norm, weight_and_bias(self.linear)[0], rows, buffer)
        if mask is not None:
            bias = bias.masked_fill(~mask.bool()[:, None, None], HIDDEN)

        def update(some: Tensor) -> Tensor:
            attended: Tensor = self.mha(self.layer_norm(some), bias)
            return attended

        z = add_rows(z, update, rows, dropped)
        return z if self.starting else z.transpose(1, 2)


def pair_mask(mask: Tensor) -> Tensor:
    """(B, R) → (B, R, R): 1 where both residues are 1."""
    return mask.unsqueeze(2) * mask.unsqueeze(1)
