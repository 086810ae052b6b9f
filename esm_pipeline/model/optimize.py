"""Inference copies of a model: the same class and call, its linear layers in a faster form.

On the CPU, oneDNN multiplies by weights that were reordered once; PyTorch's own path would take
another library or reorder at each call. The operators are private to PyTorch, so their presence and
their result are probed, and without them the layers stay as they are.
"""

from __future__ import annotations

import copy
import os
from functools import cache
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esm_pipeline.errors import InputError
from esm_pipeline.model.base import EsmPreTrainedModel
from esm_pipeline.model.layer import EsmLayer

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

    def __init__(self, linear: nn.Linear, activation: str = "none") -> None:
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
    weights that need no change are shared with it. On the CPU its linear layers are packed by
    oneDNN where that works. Raises InputError for another dtype, and
    for a model that is optimized already.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise InputError(f"optimize_for_inference: dtype {dtype} is not float32 or bfloat16")
    if model.optimized:
        raise InputError("optimize_for_inference: this model is optimized; give the original")
    for name in KERNEL_CACHES:  # read when the first kernel is made
        os.environ.setdefault(name, KERNELS_KEPT)
    fast = twin(model, dtype).eval()
    fast.optimized = True
    if fast.device.type == "cpu" and can_pack(dtype):
        pack_layers(fast)
    return fast


def twin(module: T, dtype: torch.dtype) -> T:
    """The same modules with frozen parameters in `dtype`; storage is shared where it fits."""
    other = copy.copy(module)
    other._parameters = {
        name: None if own is None else nn.Parameter(own.detach().to(dtype), requires_grad=False)
        for name, own in module._parameters.items()
    }
    other._modules = {
        name: None if child is None else twin(child, dtype)
        for name, child in module._modules.items()
    }
    return other


def pack_layers(model: nn.Module) -> None:
    """Put packed layers in place of the encoder's linear ones."""
    for layer in model.modules():
        if isinstance(layer, EsmLayer):
            layer.up = PackedLinear(layer.up, "gelu")  # type: ignore[assignment]
            layer.activation = nn.Identity()
            attention = ("qkv", "attention_out") if layer.heads else ()  # all may be pruned
            for name in (*attention, "down"):
                setattr(layer, name, PackedLinear(getattr(layer, name)))
