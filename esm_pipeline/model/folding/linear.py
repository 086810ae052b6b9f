"""Linear layers that start as AlphaFold's do. Peer: transformers modeling_esmfold.py."""

from __future__ import annotations

import math

from torch import Tensor, nn

RELU = math.sqrt(2.0)
"""Gain of a layer before a ReLU."""

FINAL = 0.0
"""Gain of a layer whose output is added to a residual: it starts without effect."""


class Linear(nn.Linear):
    """A linear layer that starts normal with deviation `gain` / √inputs, its bias at `start`."""

    def __init__(
        self, inputs: int, outputs: int, gain: float = 1.0, *, bias: bool = True, start: float = 0.0
    ) -> None:
        self.gain, self.start = gain, start
        super().__init__(inputs, outputs, bias=bias)

    def reset_parameters(self) -> None:
        """Random weights as at first."""
        nn.init.normal_(self.weight, std=self.gain / math.sqrt(self.in_features))
        if self.bias is not None:
            nn.init.constant_(self.bias, self.start)


class Gate(Linear):
    """A linear layer and a sigmoid: gates, that start equally open for all inputs."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, FINAL, start=1.0)

    def forward(self, x: Tensor) -> Tensor:
        """(*, inputs) → (*, outputs), 0–1."""
        return super().forward(x).sigmoid_()
