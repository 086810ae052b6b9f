"""Linear layers for inference: several over one input as one, and weights packed by oneDNN.

On the CPU, oneDNN multiplies by weights that were reordered once; PyTorch's own path would take
another library or reorder at each call. The operators are private to PyTorch, so their presence and
their result are probed, and without them the layers stay as they are.
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
"""Rows (tokens) the packed weights are laid out for; other numbers work as well."""


def is_plain(layer: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a layer is one of PyTorch's `kinds` (linear) or ours, and no more than its weight.

    With adapters, hooks, parametrizations and offloaded weights it is.
    """
    kinds = kinds or (nn.Linear,)
    own = type(layer) in kinds or type(layer).__module__.split(".")[0] == PACKAGE
    hooks = layer._forward_hooks or layer._forward_pre_hooks
    return own and isinstance(layer, kinds) and "forward" not in vars(layer) and not hooks


def weight_and_bias(layer: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Weight (out, in) and bias (out,) of what a linear layer computes, whatever stands around it.

    For sums that are not written as `layer(x)`: of a layer that is not plain, unit vectors tell it.
    """
    if is_plain(layer):
        return layer.weight, layer.bias
    held = [one for one in layer.parameters() if one.is_floating_point() and not one.is_meta]
    like = held[0] if held else torch.empty(0)  # in 8 bits, or somewhere else for now
    units = torch.eye(layer.in_features, dtype=like.dtype, device=like.device)
    bias: Tensor = layer(torch.zeros_like(units[:1]))
    return (layer(units) - bias).T, bias[0]


class Packed(nn.Module):
    """What has a weight that oneDNN has reordered, which only oneDNN can read.

    Copies and pickles hold it plain, and reorder it when they are made or read.
    """

    packed: Tensor

    @staticmethod
    def pack(weight: Tensor) -> Tensor:
        """A weight (out, in) → itself, reordered."""
        raise NotImplementedError

    @staticmethod
    def unpack(packed: Tensor) -> Tensor:
        """A reordered weight → itself, (out, in)."""
        return packed.to_dense()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"packed": self.unpack(self.packed)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        plain = state["packed"]
        super().__setstate__(state | {"packed": self.pack(plain)})  # type: ignore[no-untyped-call]


class PackedLinear(Packed):
    """A linear layer with a packed weight, with an activation fused in if asked for:
    "gelu", "relu" or "sigmoid"."""

    def __init__(self, linear: nn.Linear | FusedLinear, activation: str = "none") -> None:
        super().__init__()
        self.activation = activation
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.packed = self.pack(linear.weight)

    @staticmethod
    def pack(weight: Tensor) -> Tensor:
        """(out, in), reordered."""
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS_EXPECTED)
        return packed

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.packed, self.bias, self.activation, [], "none"
        )
        return y


class PackedBranch(PackedLinear):
    """A packed layer whose result is added to something of its shape, before it is rounded."""

    def forward(self, branch: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        """A branch (…, in), and what it is added to (…, out) → (…, out)."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            branch, x, self.packed, self.bias, "add"
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

    def reorder(self, rows: Tensor) -> None:
        """Put the outputs in the order of `rows` (out,)."""
        self.weight = frozen(self.weight[rows])
        self.bias = None if self.bias is None else frozen(self.bias[rows])

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return F.linear(x, self.weight, self.bias)


class FusedGate(FusedLinear):
    """The same of gates, which have a sigmoid behind them."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out), 0–1."""
        return super().forward(x).sigmoid_()


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


def pack(module: nn.Module, name: str, activation: str = "none") -> None:
    """Put a packed layer in place of the linear one that `module` has under `name`."""
    setattr(module, name, PackedLinear(getattr(module, name), activation))


def pack_branch(module: nn.Module) -> None:
    """The same in place of `output` of `module`, a linear layer and what adds its result."""
    module.output = PackedBranch(module.output.dense)  # type: ignore[union-attr, arg-type]


def frozen(weight: Tensor) -> nn.Parameter:
    """A parameter without gradient."""
    return nn.Parameter(weight, requires_grad=False)
