"""Dropout made visible, to compare where two models have it. Needs torch alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor


def shade(x: Tensor, p: float) -> Tensor:
    """What dropout with probability `p` is replaced by: each column scaled in its own way.

    It depends on the column and on `p` alone, so that packed and padded rows get the same.
    """
    columns = torch.arange(x.shape[-1], dtype=x.dtype, device=x.device)
    return x * (1 + p * torch.cos(columns + 1))


@contextmanager
def visible_dropout() -> Iterator[list[float]]:
    """Replace dropout, that of attention too, by `shade`; yields the probabilities as they come.

    Two models then agree only if they have the same dropout in the same places.
    """
    seen: list[float] = []

    def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0:
            return x
        seen.append(p)
        return shade(x, p)

    def attention(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0) -> Tensor:
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        return dropout(scores.softmax(-1), dropout_p) @ v

    with (
        patch.object(F, "dropout", dropout),
        patch.object(F, "scaled_dot_product_attention", attention),
    ):
        yield seen
