"""Blocks of the folding trunk for inference: fewer and faster layers, the same results."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from esm_pipeline.model.folding.triangle import (
    GatedAttention,
    TriangleAttention,
    TriangleMultiplication,
)
from esm_pipeline.model.folding.trunk import ResidueMLP, SequenceAttention, TrunkBlock
from esm_pipeline.model.linears import FusedGate, FusedLinear, frozen, pack_linear

PACKED: dict[type[nn.Module], dict[str, str]] = {
    TriangleMultiplication: {
        "fused_p": "none",
        "fused_g": "sigmoid",
        "linear_g": "sigmoid",
        "linear_z": "none",
    },
    GatedAttention: {"fused": "none", "linear_g": "sigmoid", "linear_o": "none"},
    SequenceAttention: {"proj": "none", "g_proj": "sigmoid", "o_proj": "none"},
}
"""Layers of the folding trunk to pack, and the activations to fuse into them."""

NORMS: dict[type[nn.Module], tuple[str, ...]] = {
    TriangleMultiplication: ("layer_norm_in", "layer_norm_out"),
    TriangleAttention: ("layer_norm",),
}
"""Norms before layers that may compute in 16 bits."""


class RoundedNorm(nn.Module):
    """A norm computed in full precision, with its result in another dtype."""

    def __init__(self, norm: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm, self.dtype = norm, dtype

    def forward(self, x: Tensor) -> Tensor:
        """(*, width) → (*, width)."""
        y: Tensor = self.norm(x)  # its statistics are in float32 even for input in 16 bits
        return y.to(self.dtype)


def optimize_block(block: TrunkBlock, packs: bool, dtype: torch.dtype = torch.float32) -> None:
    """Fuse layers of a block of the folding trunk, and pack them if `packs`.

    dtype: that of the updates of z: their linear layers and the triangle products. z itself, norms,
    biases, scores, softmax and the updates of s keep theirs.
    """
    for part in [*block.modules()]:
        if isinstance(part, TriangleMultiplication):
            part.fused_p = FusedLinear([part.linear_a_p, part.linear_b_p])
            part.fused_g = FusedGate([part.linear_a_g, part.linear_b_g])
            del part.linear_a_p, part.linear_b_p, part.linear_a_g, part.linear_b_g
        elif isinstance(part, GatedAttention):
            part.fused = FusedLinear([part.linear_q, part.linear_k, part.linear_v])
            del part.linear_q, part.linear_k, part.linear_v
    if dtype != torch.float32:
        narrow(block, dtype)
    if not packs:
        return
    for part in [*block.modules()]:
        for name, activation in PACKED.get(type(part), {}).items():
            pack_linear(part, name, activation)
        if isinstance(part, ResidueMLP):
            pack_linear(part.mlp, "1", "relu")
            part.mlp[2] = nn.Identity()
            pack_linear(part.mlp, "3")


def narrow(block: TrunkBlock, dtype: torch.dtype) -> None:
    """Compute the updates of z in `dtype`, of 16 bits."""
    for part in [*block.modules()]:
        for name in NORMS.get(type(part), ()):
            setattr(part, name, RoundedNorm(getattr(part, name), dtype))
        for name in PACKED.get(type(part), {}):
            if not isinstance(part, SequenceAttention):
                convert_weights(getattr(part, name), dtype)
        if isinstance(part, TriangleMultiplication):
            part.precision = dtype
    mlp = block.mlp_pair.mlp
    mlp[0] = RoundedNorm(mlp[0], dtype)
    for layer in (mlp[1], mlp[3]):
        convert_weights(layer, dtype)


def convert_weights(layer: nn.Module, dtype: torch.dtype) -> None:
    """Convert the weights of a layer, which are not shared, to another dtype."""
    for name, weight in layer._parameters.items():
        if weight is not None:
            setattr(layer, name, frozen(weight.to(dtype)))
