"""Blocks of the folding trunk for inference: fewer and faster layers, the same results."""

from __future__ import annotations

from torch import nn

from esm_pipeline.model.folding.triangle import GatedAttention, TriangleMultiplication
from esm_pipeline.model.folding.trunk import ResidueMLP, SequenceAttention, TrunkBlock
from esm_pipeline.model.linears import FusedGate, FusedLinear, pack

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


def optimize_block(block: TrunkBlock, packs: bool) -> None:
    """Fuse what a block of the folding trunk can fuse, and pack it if `packs`."""
    for part in block.modules():
        if isinstance(part, TriangleMultiplication):
            part.fused_p = FusedLinear([part.linear_a_p, part.linear_b_p])
            part.fused_g = FusedGate([part.linear_a_g, part.linear_b_g])
            del part.linear_a_p, part.linear_b_p, part.linear_a_g, part.linear_b_g
        elif isinstance(part, GatedAttention):
            part.fused = FusedLinear([part.linear_q, part.linear_k, part.linear_v])
            del part.linear_q, part.linear_k, part.linear_v
        if not packs:
            continue
        for name, activation in PACKED.get(type(part), {}).items():
            pack(part, name, activation)
        if isinstance(part, ResidueMLP):
            pack(part.mlp, "1", "relu")
            part.mlp[2] = nn.Identity()
            pack(part.mlp, "3")
