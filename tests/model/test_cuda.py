"""What needs a graphics card: the kernels themselves, compared with the CPU."""

from __future__ import annotations

import pytest
import torch

from esm_pipeline import EsmConfig, EsmForMaskedLM, optimize_for_inference
from esm_pipeline.errors import InputError
from esm_pipeline.model import attention
from tests.oracles.classifiers import HEADS, gradients, labelled, twins_of
from tests.oracles.peers import ESM2, KINDS, SMALL, batch, enliven, max_abs

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


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize(("half", "tolerance"), [(False, 1e-3), (True, 0.2)])
def test_gradients_are_those_of_the_cpu(name: str, half: bool, tolerance: float) -> None:
    """In mixed precision through the backward pass of the kernel for packed sequences."""
    without = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    _, model = twins_of(name, **{**ESM2, **without, "hidden_size": 64})
    model.float().train()
    inputs = labelled(name, [12, 5, 12, 30])
    expected = gradients(model, **inputs)
    model.to("cuda").zero_grad()
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=half):
        loss = model(**{key: value.to("cuda") for key, value in inputs.items()}).loss
    loss.backward()
    for key, gradient in expected.items():
        found = model.get_parameter(key).grad.cpu()
        assert float((found - gradient).norm()) <= tolerance * float(gradient.norm()) + 1e-4, key


def test_labels_that_cannot_be_leave_the_device_usable() -> None:
    _, model = twins_of("EsmForTokenClassification", **ESM2)
    model.to("cuda")
    inputs = {
        key: value.to("cuda") for key, value in labelled("EsmForTokenClassification", [5]).items()
    }
    inputs["labels"][0, 1] = 99
    with pytest.raises(InputError, match=r"labels\[0, 1\] is 99"):
        model(**inputs)
    inputs["labels"][0, 1] = 0
    assert model(**inputs).loss.isfinite()


def test_half_precision_takes_the_kernel_for_packed_sequences() -> None:
    q = torch.zeros(4, 2, 16, dtype=torch.bfloat16, device="cuda")
    assert attention.choose_backend(q, 0.0) is attention.attend_variable_length
