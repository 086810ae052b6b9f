"""The folding trunk: blocks that update sequence and pair representation, and their recycling.

Peer: transformers modeling_esmfold.py `EsmFoldingTrunk`, whose names of parameters these are.

s is (B, R, S), z is (B, R, R, Z). `mask` (B, R) is 0 at padding; None means no padding. Without
gradients z is changed in place, a few rows at a time: `chunk_size`, or as many as fit the caches of
the processor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esm_pipeline.errors import InputError
from esm_pipeline.footprint import ELEMENTS
from esm_pipeline.model.folding.config import TrunkConfig
from esm_pipeline.model.folding.linear import FINAL, Gate, Linear
from esm_pipeline.model.folding.structure_module import StructureModule
from esm_pipeline.model.folding.triangle import (
    TriangleAttention,
    TriangleMultiplication,
    add_rows,
    bias_of,
    pair_mask,
    work_buffer,
)
from esm_pipeline.model.linears import weight_and_bias

RECYCLE_BINS = 15
FIRST_EDGE, LAST_EDGE = 3.375, 21.375
"""Å between pseudo beta carbons: first and last edge between the bins of recycling."""

BETA = (-0.58273431, 0.56802827, -0.54067466)
"""Beta carbon relative to the alpha carbon: factors of b × c, b = CA − N and c = C − CA."""

ELEMENTS_ELSEWHERE = 2**24
"""Elements of z processed at a time by default on other devices than a CPU: 64 MiB in float32."""


class SequenceAttention(nn.Module):
    """Gated attention between residues, with a bias from the pair representation."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.proj = Linear(width, width * 3, bias=False)
        self.o_proj = Linear(width, width, FINAL)
        self.g_proj = Gate(width, width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x (B, R, S) and bias (B, H, R, R) → (B, R, S)."""
        q, k, v = self.proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).flatten(2)
        return self.o_proj(self.g_proj(x) * mixed)  # type: ignore[no-any-return]


class SequenceToPair(nn.Module):
    """Update of pairs by products and differences of projections of two residues.

    A linear layer of [q_j · k_i, q_j − k_i] equals, for each row i, another linear layer of q_j:
    its wide input is never built for all pairs.
    """

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        width, pair = config.sequence_state_dim, config.pairwise_state_dim
        self.layernorm = nn.LayerNorm(width)
        self.proj = Linear(width, pair)
        self.o_proj = Linear(pair, pair, FINAL)

    def forward(self, s: Tensor, z: Tensor, rows: int) -> Tensor:
        """s (B, R, S) and z (B, R, R, Z) → z, updated."""
        q, k = self.proj(self.layernorm(s)).chunk(2, dim=-1)  # (B, R, Z / 2)
        both, bias = weight_and_bias(self.o_proj)
        assert bias is not None, "it has a bias"
        of_product, of_difference = both.chunk(2, dim=1)  # (Z, Z / 2)
        shift: Tensor = bias - k @ of_difference.T  # (B, R, Z)
        start = 0

        def update(some: Tensor) -> Tensor:
            nonlocal start
            own = slice(start, start + some.shape[1])
            start += some.shape[1]
            weight = k[:, own, None] * of_product + of_difference  # (B, rows, Z, Z / 2)
            added: Tensor = q.unsqueeze(1) @ weight.transpose(-1, -2)
            return added.add_(shift[:, own, None])

        return add_rows(z, update, rows)


class PairToSequence(nn.Module):
    """The bias of the sequence attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(width)
        self.linear = Linear(width, heads, FINAL, bias=False)

    def forward(self, z: Tensor, rows: int, buffer: Tensor | None = None) -> Tensor:
        """z (B, R, R, Z) → (B, H, R, R), written to the buffer if one is given."""
        return bias_of(z, self.layernorm, weight_and_bias(self.linear)[0], rows, buffer)


class ResidueMLP(nn.Module):
    """Norm and feed-forward of a residual branch; the caller adds the result."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            Linear(width, 4 * width),
            nn.ReLU(inplace=True),
            Linear(4 * width, width, FINAL),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(*, width) → (*, width)."""
        added: Tensor = self.mlp(x)
        return added


class TrunkBlock(nn.Module):
    """One update of sequence and pair representation."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        width, pair = config.sequence_state_dim, config.pairwise_state_dim
        heads = width // config.sequence_head_width
        self.dropout = config.dropout
        self.layernorm_1 = nn.LayerNorm(width)
        self.sequence_to_pair = SequenceToPair(config)
        self.pair_to_sequence = PairToSequence(pair, heads)
        self.seq_attention = SequenceAttention(width, heads)
        self.tri_mul_out = TriangleMultiplication(config, outgoing=True)
        self.tri_mul_in = TriangleMultiplication(config, outgoing=False)
        self.tri_att_start = TriangleAttention(config, starting=True)
        self.tri_att_end = TriangleAttention(config, starting=False)
        self.mlp_seq = ResidueMLP(width, config.dropout)
        self.mlp_pair = ResidueMLP(pair, config.dropout)

    def forward(
        self, s: Tensor, z: Tensor, mask: Tensor | None, rows: int, buffer: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """s (B, R, S), z (B, R, R, Z) and the mask (B, R) → s and z, updated.

        buffer: work space of all parts without gradients, with the channels that they need.
        """
        y = self.seq_attention(self.layernorm_1(s), self.bias(z, mask, rows, buffer))
        s = s + F.dropout(y, self.dropout, self.training)
        s = s + self.mlp_seq(s)
        z = self.sequence_to_pair(s, z, rows)
        z = self.tri_mul_out(z, mask, rows, self.shared(2), buffer)
        z = self.tri_mul_in(z, mask, rows, self.shared(1), buffer)
        z = self.tri_att_start(z, mask, rows, self.shared(2), buffer)
        z = self.tri_att_end(z, mask, rows, self.shared(2), buffer)  # of z transposed: dimension 1
        return s, add_rows(z, self.mlp_pair, rows)

    def bias(self, z: Tensor, mask: Tensor | None, rows: int, buffer: Tensor | None) -> Tensor:
        """(B, H, R, R): bias of the sequence attention, −∞ at padding."""
        bias: Tensor = self.pair_to_sequence(z, rows, buffer)
        return bias if mask is None else bias.masked_fill(~mask.bool()[:, None, None], -torch.inf)

    def shared(self, dimension: int) -> Callable[[Tensor], Tensor] | None:
        """Dropout of z, at twice the rate and shared along a dimension; None without dropout."""
        if not self.training or not self.dropout:
            return None
        return partial(drop_shared, rate=2 * self.dropout, dimension=dimension)


def drop_shared(x: Tensor, rate: float, dimension: int) -> Tensor:
    """Dropout with one random choice for all places along a dimension."""
    shape = [1 if place == dimension else size for place, size in enumerate(x.shape)]
    return x * F.dropout(x.new_ones(shape), rate)


class RelativePosition(nn.Module):
    """Embedding of the distance between two residues in the chain."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.bins = config.position_bins
        self.embedding = nn.Embedding(2 * self.bins + 2, config.pairwise_state_dim)

    def forward(self, position_ids: Tensor, mask: Tensor | None, rows: slice) -> Tensor:
        """Residue numbers (B, R) → `rows` of (B, R, R, Z); padding takes row 0 of the table."""
        apart = position_ids[:, None, :] - position_ids[:, rows, None]
        places = apart.clamp(-self.bins, self.bins) + self.bins + 1
        if mask is not None:
            places = places * pair_mask(mask.long())[:, rows]
        found: Tensor = self.embedding(places)
        return found


class FoldingTrunk(nn.Module):
    """The blocks and the structure module, run several times with recycling."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        width, pair = config.sequence_state_dim, config.pairwise_state_dim
        self.config = config
        self.chunk_size = config.chunk_size
        heads = width // config.sequence_head_width
        self.channels = max(2 * pair, heads)  # of the buffer that the blocks share
        self.pairwise_positional_embedding = RelativePosition(config)
        self.blocks = nn.ModuleList(TrunkBlock(config) for _ in range(config.num_blocks))
        self.recycle_s_norm = nn.LayerNorm(width)
        self.recycle_z_norm = nn.LayerNorm(pair)
        self.recycle_disto = nn.Embedding(RECYCLE_BINS, pair)
        self.structure_module = StructureModule(config.structure_module)
        self.trunk2sm_s = nn.Linear(width, config.structure_module.sequence_dim)
        self.trunk2sm_z = nn.Linear(pair, config.structure_module.pairwise_dim)

    def set_chunk_size(self, chunk_size: int | None) -> None:
        """Set the rows of the pair representation processed at a time; None for the fastest.

        Fewer rows need less memory. Raises InputError for anything but a whole number from 1 or
        None.
        """
        if chunk_size is not None and (type(chunk_size) is not int or chunk_size < 1):
            raise InputError(f"set_chunk_size: {chunk_size!r}; give a whole number from 1, or None")
        self.chunk_size = chunk_size

    def rows(self, z: Tensor) -> int:
        """Rows of z (B, R, R, Z) to process at a time; all of them in training, for dropout."""
        if self.training:
            return z.shape[1]
        return self.chunk_size or rows_at_once(z.shape, z.device)

    def forward(
        self,
        s_0: Tensor,
        z_0: Tensor | None,
        aatype: Tensor,
        position_ids: Tensor,
        mask: Tensor | None,
        num_recycles: int | None = None,
    ) -> dict[str, Tensor]:
        """The output of the structure module after the last pass, with `s_s` and `s_z`.

        s_0: (B, R, S). z_0: (B, R, R, Z), None for zeros. aatype, position_ids: (B, R).
        num_recycles: passes after the first; None means `max_recycles` passes in all. Only the last
        pass has gradients. Raises InputError for a negative number.
        """
        passes = self.config.max_recycles if num_recycles is None else num_recycles + 1
        if passes < 1:
            raise InputError(f"num_recycles is {num_recycles}; give 0 or more")
        batch, length = aatype.shape
        s = torch.zeros_like(s_0)
        z = s_0.new_zeros(batch, length, length, self.config.pairwise_state_dim)
        bins = torch.zeros(batch, length, length, dtype=torch.int64, device=s_0.device)
        for number in range(passes):
            with nullcontext() if number == passes - 1 else torch.no_grad():
                s = s_0 + self.recycle_s_norm(s)
                z = self.recycled(z, z_0, bins, position_ids, mask)
                s, z = self.run_blocks(s, z, mask)
                structure = self.structure_module(
                    {"single": self.trunk2sm_s(s), "pair": self.trunk2sm_z(z)},
                    aatype,
                    mask,
                    overwrite=not torch.is_grad_enabled(),
                )
                if number < passes - 1:
                    bins = distance_bins(structure.pop("positions")[-1, :, :, :3])
                    structure.clear()
        return {**structure, "s_s": s, "s_z": z}

    def recycled(
        self,
        z: Tensor,
        z_0: Tensor | None,
        bins: Tensor,
        position_ids: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        """z at the start of a pass: previous z and distances, positions in the chain, and z_0."""
        start = 0

        def update(some: Tensor) -> Tensor:
            nonlocal start
            own = slice(start, start + some.shape[1])
            start += some.shape[1]
            near: Tensor = self.pairwise_positional_embedding(position_ids, mask, own)
            added: Tensor = near + self.recycle_disto(bins[:, own])
            return added if z_0 is None else added + z_0[:, own]

        return add_rows(self.recycle_z_norm(z), update, self.rows(z))

    def shared_buffer(self, z: Tensor) -> Tensor | None:
        """Work space that all blocks use in turn; None if each block allocates its own.

        On a CPU, the system provides memory of this size page by page, which takes 5 % of a block's
        time. A shared buffer is held while attention processes its chunks; with a chunk size, which
        is set to save memory, there is none.
        """
        if torch.is_grad_enabled() or z.device.type != "cpu" or self.chunk_size is not None:
            return None
        precisions = {m.precision for m in self.modules() if isinstance(m, TriangleMultiplication)}
        return work_buffer(z, self.channels, next(iter(precisions), None))

    def run_blocks(self, s: Tensor, z: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """s (B, R, S) and z (B, R, R, Z) → s and z after all blocks."""
        rows = self.rows(z)
        buffer = self.shared_buffer(z)
        for block in self.blocks:
            s, z = block(s, z, mask, rows, buffer)
        return s, z


def rows_at_once(shape: Sequence[int], device: torch.device) -> int:
    """The fastest number of rows of z to process at a time, for its shape (B, R, R, Z)."""
    batch, length, _, width = shape
    numbers = torch.get_num_threads() * ELEMENTS if device.type == "cpu" else ELEMENTS_ELSEWHERE
    return max(1, numbers // (batch * length * width))


def distance_bins(backbone: Tensor) -> Tensor:
    """N, CA and C (B, R, 3, 3) in Å → (B, R, R): bins, 0 to 14, of distances of beta carbons."""
    n, alpha, c = backbone.unbind(-2)
    b, onward = alpha - n, c - alpha
    normal = torch.linalg.cross(b, onward)
    beta = BETA[0] * normal + BETA[1] * b + BETA[2] * onward + alpha
    squares = (beta[:, None] - beta[:, :, None]).square().sum(-1)
    edges = torch.linspace(
        FIRST_EDGE, LAST_EDGE, RECYCLE_BINS - 1, device=beta.device, dtype=beta.dtype
    )
    # a distance equal to an edge belongs to the bin below
    return torch.bucketize(squares, edges.square())
