"""Linear layers for inference: several layers fused into one, and weights packed by oneDNN.

On the CPU, oneDNN multiplies by weights that are reordered once; PyTorch's own path would use
another library or reorder in each call. The operators are private to PyTorch: whether they exist
and compute the same is tested first, and without them the layers stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PACKAGE = __name__.split(".")[0]
ROWS_EXPECTED = 4096
"""Rows (tokens) for which packed weights are laid out; other numbers work as well."""


def is_plain_layer(layer: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a layer is just its weight: of one of PyTorch's `kinds` (default: linear) or ours.

    A layer with adapters, hooks, parametrizations or offloaded weights is not.
    """
    kinds = kinds or (nn.Linear,)
    own = type(layer) in kinds or type(layer).__module__.split(".")[0] == PACKAGE
    hooks = layer._forward_hooks or layer._forward_pre_hooks
    return own and isinstance(layer, kinds) and "forward" not in vars(layer) and not hooks


def weight_and_bias(layer: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Weight (out, in) and bias (out,) of what a linear layer computes, adapters included.

    For sums that are not written as `layer(x)`. Of a layer that is not plain, they are its outputs
    for zeros and unit vectors.
    """
    if is_plain_layer(layer):
        return layer.weight, layer.bias
    held = [one for one in layer.parameters() if one.is_floating_point() and not one.is_meta]
    like = held[0] if held else torch.empty(0)  # 8-bit or offloaded
    units = torch.eye(layer.in_features, dtype=like.dtype, device=like.device)
    bias: Tensor = layer(torch.zeros_like(units[:1]))
    return (layer(units) - bias).T, bias[0]


class Packed(nn.Module):
    """Base of modules with a weight in oneDNN's order, which only oneDNN can read.

    Copying and pickling write the weight in plain order; it is reordered in the copy.
    """

    packed: Tensor

    @staticmethod
    def pack(weight: Tensor) -> Tensor:
        """Reorder a weight (out, in)."""
        raise NotImplementedError

    @staticmethod
    def unpack(packed: Tensor) -> Tensor:
        """A reordered weight → (out, in)."""
        return packed.to_dense()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"packed": self.unpack(self.packed)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        plain = state["packed"]
        super().__setstate__(state | {"packed": self.pack(plain)})  # type: ignore[no-untyped-call]


class PackedLinear(Packed):
    """A linear layer with a packed weight; `activation` ("gelu", "relu", "sigmoid") is fused in."""

    def __init__(self, linear: nn.Linear | FusedLinear, activation: str = "none") -> None:
        super().__init__()
        self.activation = activation
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.packed = self.pack(linear.weight)

    @staticmethod
    def pack(weight: Tensor) -> Tensor:
        """Reorder a weight (out, in)."""
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS_EXPECTED)
        return packed

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.packed, self.bias, self.activation, [], "none"
        )
        return y


class PackedBranch(PackedLinear):
    """A packed layer at the end of a residual branch: the sum is computed before rounding."""

    def forward(self, branch: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        """A branch (…, in) and the states (…, out) → their sum (…, out)."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            branch, x, self.packed, self.bias, "add"
        )
        return y


class FusedLinear(nn.Module):
    """Several linear layers of one input as one, outputs concatenated; all have a bias or none."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = frozen(torch.cat([linear.weight for linear in linears]))
        biases: list[Tensor] = [linear.bias for linear in linears if linear.bias is not None]
        self.bias = frozen(torch.cat(biases)) if biases else None
        self.out_features, self.in_features = self.weight.shape

    def reorder(self, rows: Tensor) -> None:
        """Put the outputs in the order `rows` (out,)."""
        self.weight = frozen(self.weight[rows])
        self.bias = None if self.bias is None else frozen(self.bias[rows])

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return F.linear(x, self.weight, self.bias)


class FusedGate(FusedLinear):
    """Several gates of one input as one: a sigmoid follows the linear layers."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out), from 0 to 1."""
        return super().forward(x).sigmoid_()


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this PyTorch and processor have packed layers that compute the same."""
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


def pack_linear(module: nn.Module, name: str, activation: str = "none") -> None:
    """Replace the linear layer `name` of `module` by a packed one."""
    setattr(module, name, PackedLinear(getattr(module, name), activation))


def pack_branch(module: nn.Module) -> None:
    """Replace `output` of `module`, the end of a residual branch, by a packed one."""
    module.output = PackedBranch(module.output.dense)  # type: ignore[union-attr, arg-type]


def frozen(weight: Tensor) -> nn.Parameter:
    """A parameter without gradient."""
    return nn.Parameter(weight, requires_grad=False)
