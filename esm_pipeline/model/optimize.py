"""Inference copies of a model: the same class and call, its linear layers in a faster form.

On the CPU, oneDNN multiplies by weights that were reordered once; PyTorch's own path would take
another library or reorder at each call. The operators are private to PyTorch, so their presence and
their result are probed, and without them the layers stay as they are.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from functools import cache
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esm_pipeline.errors import InputError
from esm_pipeline.model.base import EsmPreTrainedModel
from esm_pipeline.model.folding.esmfold import EsmForProteinFolding
from esm_pipeline.model.folding.triangle import GatedAttention, TriangleMultiplication
from esm_pipeline.model.folding.trunk import ResidueMLP, SequenceAttention, TrunkBlock
from esm_pipeline.model.layer import EsmLayer, EsmSelfAttention

M = TypeVar("M", bound=EsmPreTrainedModel)
T = TypeVar("T", bound=nn.Module)

ROWS_EXPECTED = 4096
"""Rows (tokens) the packed weights are laid out for; other numbers work as well."""


KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""Sizes of the caches in which oneDNN, and PyTorch around it, keep kernels made for one shape.

Packed batches hardly ever have the same number of tokens twice: a kernel serves all layers of its
batch and never again, and the 1,024 that are kept otherwise come to half a gigabyte.
"""
KERNELS_KEPT = "16"


class PackedLinear(nn.Module):
    """A linear layer whose weight oneDNN has reordered, with an activation fused in if asked for:
    "gelu", "relu" or "sigmoid"."""

    def __init__(self, linear: nn.Linear | FusedLinear, activation: str = "none") -> None:
        super().__init__()
        self.activation = activation
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight, ROWS_EXPECTED)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.packed, self.bias, self.activation, [], "none"
        )
        return y


class FusedLinear(nn.Module):
    """Linear layers over the same input as one, their outputs side by side; all biased, or none."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = frozen(torch.cat([linear.weight for linear in linears]))
        biases: list[Tensor] = [linear.bias for linear in linears if linear.bias is not None]
        self.bias = frozen(torch.cat(biases)) if biases else None
        self.out_features, self.in_features = self.weight.shape

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return F.linear(x, self.weight, self.bias)


class FusedGate(FusedLinear):
    """The same of gates, which have a sigmoid behind them."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out), 0–1."""
        return super().forward(x).sigmoid_()


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


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this PyTorch and processor have the packed layers, and compute the same with them."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            linear = nn.Linear(64, 64, dtype=dtype).requires_grad_(False)
            x = torch.randn(5, 64).to(dtype)
        with torch.inference_mode():
            found, expected = PackedLinear(linear, "gelu")(x), F.gelu(linear(x))
    except (RuntimeError, AttributeError, TypeError):
        return False
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    return bool((found.float() - expected.float()).abs().max() <= tolerance)


def optimize_for_inference(model: M, dtype: torch.dtype = torch.float32) -> M:
    """A model of the same class and call for inference in `dtype` (float32 or bfloat16).

    Of a folding model, that is the language model; the trunk, in which 16 bits are too few, stays
    as it is.

    It has no gradients and cannot be saved. The original is untouched and not needed afterwards;
    weights that need no change are shared with it. Queries, keys and values come of one product,
    and on the CPU linear layers are packed by oneDNN where that works. Raises InputError for
    another dtype, and for a model that is optimized already.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise InputError(f"optimize_for_inference: dtype {dtype} is not float32 or bfloat16")
    if model.optimized:
        raise InputError("optimize_for_inference: this model is optimized; give the original")
    for name in KERNEL_CACHES:  # read when the first kernel is made
        os.environ.setdefault(name, KERNELS_KEPT)
    folds = isinstance(model, EsmForProteinFolding)
    fast = twin(model, None if folds else dtype)
    if folds:
        fast.esm = twin(fast.base_model, dtype)
    del model  # if the caller has let go of it too, each weight goes when it is packed
    fast.eval().optimized = True
    for module in fast.modules():
        if isinstance(module, EsmLayer):
            optimize_layer(module, packs_at(fast.base_model))
        elif isinstance(module, TrunkBlock):
            optimize_block(module, packs_at(module))
    return fast


def packs_at(module: nn.Module) -> bool:
    """Whether layers are packed where and as precise as a module's weights are."""
    weight = next(module.parameters())
    return weight.device.type == "cpu" and can_pack(weight.dtype)


def twin(module: T, dtype: torch.dtype | None) -> T:
    """The same modules with frozen parameters in `dtype`, None for theirs; storage is shared where
    it fits."""
    other = copy.copy(module)
    other._parameters = {
        name: None if own is None else frozen(own.detach().to(dtype or own.dtype))
        for name, own in module._parameters.items()
    }
    other._modules = {
        name: None if child is None else twin(child, dtype)
        for name, child in module._modules.items()
    }
    return other


def fuse(attention: EsmSelfAttention) -> None:
    """Let one layer compute queries, keys and values."""
    attention.fused = FusedLinear([attention.query, attention.key, attention.value])
    del attention.query, attention.key, attention.value


def pack(module: nn.Module, name: str, activation: str = "none") -> None:
    """Put a packed layer in place of the linear one that `module` has under `name`."""
    setattr(module, name, PackedLinear(getattr(module, name), activation))


def optimize_layer(layer: EsmLayer, packs: bool) -> None:
    """Fuse what one layer can fuse, and pack it if `packs`."""
    attention, wide = layer.attention, layer.intermediate
    if attention.self.heads:  # all may be pruned
        fuse(attention.self)
    if not packs:
        return
    if attention.self.heads:
        pack(attention.self, "fused")
        pack(attention.output, "dense")
    pack(wide, "dense", "gelu")
    wide.activation = nn.Identity()
    pack(layer.output, "dense")


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


def frozen(weight: Tensor) -> nn.Parameter:
    """A parameter without gradient."""
    return nn.Parameter(weight, requires_grad=False)
