"""Inference copies compute the same, with and without oneDNN's packed layers."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch

from esm_pipeline import EsmConfig, EsmForMaskedLM, optimize_for_inference
from esm_pipeline.errors import InputError
from esm_pipeline.model import linears, optimize
from esm_pipeline.model.quantize import can_quantize
from tests.oracles.peers import ESM1B, ESM2, SMALL, batch, enliven, max_abs


@pytest.fixture(params=[ESM2, ESM1B], ids=["ESM-2", "ESM-1b"])
def model(request: pytest.FixtureRequest) -> EsmForMaskedLM:
    model = EsmForMaskedLM(EsmConfig(**SMALL, **request.param))
    enliven(model)
    return model


@pytest.mark.parametrize("packs", [True, False], ids=["packed", "fallback"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 0.5)])
def test_same_numbers(
    model: EsmForMaskedLM,
    packs: bool,
    dtype: torch.dtype,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(optimize, "can_pack", lambda dtype: packs)
    tokens, mask = batch([1, 30, 30, 100], masked=0.1)
    with torch.inference_mode():
        expected = model(tokens).logits
        fast = optimize_for_inference(model, dtype)
        found = fast(tokens).logits
    packed = [type(m) for m in fast.modules() if isinstance(m, linears.PackedLinear)]
    assert len(packed) == (4 * SMALL["num_hidden_layers"] if packs else 0)
    assert type(fast) is EsmForMaskedLM
    assert found.dtype == dtype
    assert max_abs(found, expected, mask) <= tolerance
    drift = float((found.double() - expected.double())[mask.bool()].abs().mean())
    assert drift <= tolerance / 10


def test_original_is_untouched(model: EsmForMaskedLM) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimize_for_inference(model, torch.bfloat16)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_unchanged_weights_are_shared(model: EsmForMaskedLM) -> None:
    fast = optimize_for_inference(model)
    ours, theirs = model.esm.get_input_embeddings(), fast.esm.get_input_embeddings()
    assert ours.weight.data_ptr() == theirs.weight.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_copies_and_pickles_are_the_same_model(model: EsmForMaskedLM, dtype: torch.dtype) -> None:
    if dtype == torch.int8 and not can_quantize():
        pytest.skip("no exact 8-bit product here")
    fast = optimize_for_inference(model, dtype)
    tokens, _ = batch([1, 30, 30, 100], masked=0.1)
    with torch.inference_mode():
        expected = fast(tokens).logits
        for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):  # noqa: S301
            assert torch.equal(other(tokens).logits, expected)
            assert other.optimized
            first = next(one for one in other.modules() if isinstance(one, linears.Packed))
            first.packed = first.pack(first.unpack(first.packed) // 2)
            assert not torch.equal(other(tokens).logits, expected)
        assert torch.equal(fast(tokens).logits, expected)  # nothing is shared


def test_probe_notices_missing_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object) -> None:
        raise AttributeError("no such operator")

    linears.can_pack.cache_clear()
    monkeypatch.setattr(linears.PackedLinear, "__init__", missing)
    assert not linears.can_pack(torch.float32)
    linears.can_pack.cache_clear()


def test_probe_notices_wrong_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    linears.can_pack.cache_clear()
    monkeypatch.setattr(linears.PackedLinear, "forward", lambda self, x: x)
    assert not linears.can_pack(torch.float32)
    linears.can_pack.cache_clear()


def test_an_optimized_model_is_neither_saved_nor_optimized(
    model: EsmForMaskedLM, tmp_path: Path
) -> None:
    fast = optimize_for_inference(model)
    with pytest.raises(InputError, match="cannot be saved; save the original"):
        fast.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="give the original"):
        optimize_for_inference(fast)
    assert not model.optimized


def test_other_dtypes_are_refused(model: EsmForMaskedLM) -> None:
    with pytest.raises(InputError, match="is not float32, bfloat16 or int8"):
        optimize_for_inference(model, torch.float16)
