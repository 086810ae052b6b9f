"""What needs a graphics card: the kernels themselves, beside the CPU."""

from __future__ import annotations

import pytest
import torch

from esm_pipeline import EsmConfig, EsmForMaskedLM, optimize_for_inference
from esm_pipeline.model import attention
from tests.oracles.peers import KINDS, SMALL, batch, enliven, max_abs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no graphics card")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.5)])
def test_logits_are_those_of_the_cpu(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    model = EsmForMaskedLM(EsmConfig(**SMALL, **KINDS[kind]))
    enliven(model)
    tokens, mask = batch([1, 30, 30, 200], masked=0.1)
    with torch.inference_mode():
        expected = model(tokens).logits
        fast = optimize_for_inference(model.cuda(), dtype)
        found = fast(tokens.cuda()).logits.cpu()
    assert max_abs(found, expected, mask) <= tolerance


def test_half_precision_takes_the_kernel_for_packed_sequences() -> None:
    q = torch.zeros(4, 2, 16, dtype=torch.bfloat16, device="cuda")
    assert attention.choose_backend(q, 0.0) is attention.attend_variable_length
