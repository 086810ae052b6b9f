"""Linear layers initialised as in AlphaFold. Peer: transformers modeling_esmfold.py."""

from __future__ import annotations

import math

from torch import Tensor, nn

RELU = math.sqrt(2.0)
"""Gain of a layer before a ReLU."""

FINAL = 0.0
"""Gain of a layer at the end of a residual branch: it starts at zero."""


class Linear(nn.Linear):
    """A linear layer with normal weights of deviation `gain` / √inputs, its bias at `start`."""

    def __init__(
        self, inputs: int, outputs: int, gain: float = 1.0, *, bias: bool = True, start: float = 0.0
    ) -> None:
        self.gain, self.start = gain, start
        super().__init__(inputs, outputs, bias=bias)

    def reset_parameters(self) -> None:
        """Random initial weights."""
        nn.init.normal_(self.weight, std=self.gain / math.sqrt(self.in_features))
        if self.bias is not None:
            nn.init.constant_(self.bias, self.start)


class Gate(Linear):
    """A linear layer and a sigmoid: gates, at first the same for all inputs."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, FINAL, start=1.0)

    def forward(self, x: Tensor) -> Tensor:
        """(*, inputs) → (*, outputs), from 0 to 1."""
        return super().forward(x).sigmoid_()
