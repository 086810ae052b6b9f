"""Rotary position embedding, half-split order (Su et al. 2021). Peer: fair-esm rotary_embedding.py.

As in the peers, angles are computed in float32 whatever the model's precision: in bfloat16,
neighbours at position 1,000 would have the same angle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor, nn

ROTARY_BASE = 10_000.0


@dataclass(frozen=True)
class RotaryTables:
    """Cosine and sine of each token's angles, and the frequencies that they were computed from."""

    cos: Tensor  # (T, 1, K / 2)
    sin: Tensor  # (T, 1, K / 2)
    frequencies: Tensor  # (K / 2,)

    @cached_property
    def rotations(self) -> Tensor:
        """(T, 1, K / 2): complex numbers of length 1 with each token's angles."""
        return torch.complex(self.cos, self.sin)


def rotary_frequencies(width: int) -> Tensor:
    """(K / 2,) radians per position; float32 even for a float64 model, to round as the peers do.

    A checkpoint may have others: ESM-2's were rounded to float16 in training.
    """
    exponents = torch.arange(0, width, 2, device="cpu").float() / width
    return 1.0 / ROTARY_BASE**exponents


class RotaryEmbedding(nn.Module):
    """Holder of the frequencies, in each attention as in the reference; all have the same values.

    They stay in float32 when the model changes its precision.
    """

    inv_freq: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", rotary_frequencies(width))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow to another device, but not to another precision."""
        device = fn(self.inv_freq).device
        if self.inv_freq.is_meta and device.type != "meta":
            self.inv_freq = rotary_frequencies(2 * len(self.inv_freq))
        self.inv_freq = self.inv_freq.to(device)
        return self


def rotary_tables(positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> RotaryTables:
    """Cosine and sine for `positions` (T,) and `frequencies` (K / 2,).

    In float64 for a float64 model, otherwise in float32.
    """
    frequencies = frequencies.to(positions.device)
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    angles = torch.outer(positions.to(precise), frequencies.to(precise))
    return RotaryTables(angles.cos().unsqueeze(1), angles.sin().unsqueeze(1), frequencies)


def rotate(x: Tensor, tables: RotaryTables) -> Tensor:
    """Rotate each pair (i, i + K/2) of `x` (…, T, H, K) by its token's angles."""
    cos, sin = tables.cos, tables.sin
    first, second = x.to(cos.dtype).chunk(2, dim=-1)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return rotated.to(x.dtype)


def rotate_pairs(x: Tensor, rotations: Tensor) -> Tensor:
    """Rotate each pair (2 i, 2 i + 1) of `x` (…, K) by complex `rotations` (…, K / 2)."""
    pairs = torch.view_as_complex(x.to(rotations.real.dtype).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotations).flatten(-2).to(x.dtype)
