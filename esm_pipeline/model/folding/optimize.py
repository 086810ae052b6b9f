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
from esm_pipeline.model.inference.linears import FusedGate, FusedLinear, frozen, pack

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
"""Layers of the folding trunk that are packed, and the activations that go into them."""


NORMS: dict[type[nn.Module], tuple[str, ...]] = {
    TriangleMultiplication: ("layer_norm_in", "layer_norm_out"),
    TriangleAttention: ("layer_norm",),
}
"""Norms in front of layers that may work in 16 bits."""


class RoundedNorm(nn.Module):
    """A norm whose statistics are as precise as ever, and whose result is in another precision."""

    def __init__(self, norm: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm, self.dtype = norm, dtype

    def forward(self, x: Tensor) -> Tensor:
        """(*, width) → (*, width)."""
        y: Tensor = self.norm(x)  # of what is in 16 bits already, counted in 32 all the same
        return y.to(self.dtype)


def optimize_block(block: TrunkBlock, packs: bool, dtype: torch.dtype = torch.float32) -> None:
    """Fuse what a block of the folding trunk can fuse, and pack it if `packs`.

    dtype: of the updates of z: their linear layers and the products of triangles. z itself, norms,
    biases, scores and softmax stay as they are, and so does what updates s.
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
            pack(part, name, activation)
        if isinstance(part, ResidueMLP):
            pack(part.mlp, "1", "relu")
            part.mlp[2] = nn.Identity()
            pack(part.mlp, "3")


def narrow(block: TrunkBlock, dtype: torch.dtype) -> None:
    """Let the updates of z be computed in 16 bits."""
    for part in [*block.modules()]:
        for name in NORMS.get(type(part), ()):
            setattr(part, name, RoundedNorm(getattr(part, name), dtype))
        for name in PACKED.get(type(part), {}):
            if not isinstance(part, SequenceAttention):
                converted(getattr(part, name), dtype)
        if isinstance(part, TriangleMultiplication):
            part.precision = dtype
    mlp = block.mlp_pair.mlp
    mlp[0] = RoundedNorm(mlp[0], dtype)
    for layer in (mlp[1], mlp[3]):
        converted(layer, dtype)


def converted(layer: nn.Module, dtype: torch.dtype) -> None:
    """Have a layer's weights, which are nobody else's now, in another precision."""
    for name, weight in layer._parameters.items():
        if weight is not None:
            setattr(layer, name, frozen(weight.to(dtype)))
