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
    """A linear layer whose weight oneDNN has reordered, with GELU fused in if asked for."""

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
    """Linear layers over the same input as one, their outputs side by side."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = frozen(torch.cat([linear.weight for linear in linears]))
        self.bias = frozen(torch.cat([linear.bias for linear in linears]))
        self.out_features, self.in_features = self.weight.shape

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return F.linear(x, self.weight, self.bias)


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
    fast = twin(model, dtype).eval()
    fast.optimized = True
    packs = fast.device.type == "cpu" and can_pack(dtype)
    for module in fast.modules():
        if isinstance(module, EsmLayer):
            optimize_layer(module, packs)
    return fast


def twin(module: T, dtype: torch.dtype) -> T:
    """The same modules with frozen parameters in `dtype`; storage is shared where it fits."""
    other = copy.copy(module)
    other._parameters = {
        name: None if own is None else frozen(own.detach().to(dtype))
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


def frozen(weight: Tensor) -> nn.Parameter:
    """A parameter without gradient."""
    return nn.Parameter(weight, requires_grad=False)
