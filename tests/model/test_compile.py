"""`torch.compile`: several graphs, the same numbers and gradients, for batches of any lengths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest
import torch

from esm_pipeline import EsmConfig, EsmForMaskedLM, optimize_for_inference
from tests.oracles.peers import ESM2, SMALL, batch, enliven, max_abs

BATCHES = ([1, 30, 30], [40, 7, 3, 3])


@pytest.fixture
def model() -> EsmForMaskedLM:
    model = EsmForMaskedLM(EsmConfig(**SMALL, **ESM2))
    enliven(model)
    return model.eval()


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """What was compiled goes afterwards."""
    yield
    torch._dynamo.reset()


def compiled(model: EsmForMaskedLM) -> EsmForMaskedLM:
    """All of the compiler but its last step, the C++ or Triton code."""
    return cast(EsmForMaskedLM, torch.compile(model, backend="aot_eager", dynamic=True))


def gradients(model: EsmForMaskedLM, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss = model(tokens, labels=tokens).loss
    loss.backward()
    own = model.named_parameters()
    return {name.removeprefix("_orig_mod."): p.grad for name, p in own if p.grad is not None}


def test_compiled_training_has_the_same_gradients(model: EsmForMaskedLM) -> None:
    fast = compiled(model)
    for lengths in BATCHES:
        tokens, _ = batch(lengths, masked=0.1)
        expected = {name: grad.clone() for name, grad in gradients(model, tokens).items()}
        found = gradients(fast, tokens)
        assert found.keys() == expected.keys()
        assert max(float((found[k] - expected[k]).abs().max()) for k in expected) <= 1e-5


@pytest.mark.parametrize(
    "dtype",
    [
        None,
        pytest.param(torch.float32, marks=pytest.mark.long),
        pytest.param(torch.bfloat16, marks=pytest.mark.long),
    ],
)
def test_compiled_inference_has_the_same_logits(
    model: EsmForMaskedLM, dtype: torch.dtype | None
) -> None:
    plain = model if dtype is None else optimize_for_inference(model, dtype)
    fast = compiled(plain)
    with torch.inference_mode():
        for lengths in BATCHES:
            tokens, mask = batch(lengths, masked=0.1)
            expected, found = plain(tokens).logits, fast(tokens).logits
            assert max_abs(found, expected, mask) <= (0.1 if dtype == torch.bfloat16 else 1e-5)
        other = batch(BATCHES[-1], masked=0.5)[0]
        assert max_abs(fast(other).logits, expected, mask) > 0.1, "it is of the tokens given"
