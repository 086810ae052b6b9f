"""Logits of some tokens alone: the same numbers, and nothing computed for the other tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from esm_pipeline import EsmConfig, EsmForMaskedLM, PackedLayout
from tests.oracles.peers import ESM1B, ESM2, SMALL, enliven, max_abs

LENGTHS = [9, 9, 4, 30]
ROWS = torch.tensor([3, 9, 17, 18, 51, 20])


def model_of(kind: dict[str, Any], **more: Any) -> EsmForMaskedLM:
    torch.manual_seed(0)
    model = EsmForMaskedLM(EsmConfig(**{**SMALL, **kind, **more})).double().eval()
    enliven(model)
    return model


def tokens() -> torch.Tensor:
    return torch.randint(4, 24, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))


@pytest.mark.filterwarnings("ignore:Initializing zero-element")  # of a model without layers
@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("kind", [ESM1B, ESM2], ids=["ESM-1b", "ESM-2"])
@torch.no_grad()
def test_the_same_logits(kind: dict[str, Any], layers: int) -> None:
    model = model_of(kind, num_hidden_layers=layers)
    layout = PackedLayout.from_lengths(LENGTHS)
    every = model.packed_logits(tokens(), layout)
    some = model.packed_logits(tokens(), layout, ROWS)
    assert max_abs(some, every[ROWS]) <= 1e-12
    assert max_abs(some, every[ROWS + 1 - 2 * (ROWS == 51)]) > 1e-3, "the next tokens' are others"


def shapes_of(model: EsmForMaskedLM) -> list[tuple[int, int]]:
    """Tokens that each layer's attention and feed-forward are given in a pass for `ROWS`."""
    seen: list[tuple[int, int]] = []
    for layer in model.esm.encoder.layers:
        layer.attention.self.register_forward_hook(
            lambda _, given, __: seen.append((len(given[0]), 0))
        )
        layer.intermediate.register_forward_hook(
            lambda _, given, __: seen.append((seen.pop()[0], len(given[0])))
        )
    with torch.no_grad():
        model.packed_logits(tokens(), PackedLayout.from_lengths(LENGTHS), ROWS)
    return seen


def test_the_last_layer_computes_no_more_than_is_wanted() -> None:
    total = sum(LENGTHS)
    assert shapes_of(model_of(ESM2, num_hidden_layers=3)) == [
        *[(total, total)] * 2,
        (total, len(ROWS)),
    ]


class Mixing(nn.Module):
    """A head that looks at whole sequences."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.seen: list[torch.Size] = []

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        self.seen.append(states.shape)
        found: torch.Tensor = self.head(states - states.mean(1, keepdim=True))
        return found


@torch.no_grad()
def test_another_head_sees_whole_sequences() -> None:
    model = model_of(ESM2)
    model.lm_head = Mixing(model.lm_head)  # type: ignore[assignment]
    layout = PackedLayout.from_lengths(LENGTHS)
    every = model.packed_logits(tokens(), layout)
    assert max_abs(model.packed_logits(tokens(), layout, ROWS), every[ROWS]) == 0
    assert model.lm_head.seen == [(4, 30, SMALL["hidden_size"])] * 2
