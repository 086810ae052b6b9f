"""Inference copies compute the same, with and without oneDNN's packed layers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from esm_pipeline import EsmConfig, EsmForMaskedLM, optimize_for_inference
from esm_pipeline.errors import InputError
from esm_pipeline.model import linears
from esm_pipeline.model.inference import optimize
from esm_pipeline.model.inference.int8 import can_quantize
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
    monkeypatch.setattr(optimize, "can_pack", lambda dtype: packs and linears.can_pack(dtype))
    tokens, mask = batch([1, 30, 30, 100], masked=0.1)
    with torch.inference_mode():
        expected = model(tokens).logits
        fast = optimize_for_inference(model, dtype)
        found = fast(tokens).logits
    packed = [type(m) for m in fast.modules() if isinstance(m, linears.PackedLinear)]
    assert len(packed) == (
        4 * SMALL["num_hidden_layers"] if packs and linears.can_pack(dtype) else 0
    )
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


def packed_layers(model: EsmForMaskedLM) -> Iterator[linears.Packed]:
    return (one for one in model.modules() if isinstance(one, linears.Packed))


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
            if first := next(packed_layers(other), None):  # not on every processor in bfloat16
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


# What is the copy's own.

DTYPES = [torch.float32, torch.bfloat16, torch.int8]


def fast_or_skip(model: EsmForMaskedLM, dtype: torch.dtype | str) -> EsmForMaskedLM:
    if dtype in (torch.int8, "int8") and not can_quantize():
        pytest.skip("no exact 8-bit product here")
    return optimize_for_inference(model, dtype)


@pytest.mark.parametrize("place", ["lm_head", "esm.embeddings.word_embeddings", "esm.encoder"])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_is_of_one_copy(model: EsmForMaskedLM, kind: str, place: str) -> None:
    one, other = optimize_for_inference(model), optimize_for_inference(model)
    called = []
    getattr(one.get_submodule(place), kind)(lambda *_: called.append(place))
    tokens, _ = batch([5])
    with torch.inference_mode():
        model(tokens)
        other(tokens)
        assert called == []
        if place != "esm.encoder":  # walked through, not called
            one(tokens)
            assert called == [place]


def test_settings_and_buffers_are_of_one_copy(model: EsmForMaskedLM, tmp_path: Path) -> None:
    model.esm.register_buffer("own", torch.zeros(2))
    fast, other = optimize_for_inference(model), optimize_for_inference(model)
    assert fast.config is fast.esm.config
    assert fast.config == model.config
    fast.resize_token_embeddings(40)
    fast.esm.own += 1
    assert (model.config.vocab_size, other.config.vocab_size) == (33, 33)
    assert not model.esm.own.any()
    del model.esm.own
    model.save_pretrained(tmp_path)
    assert EsmForMaskedLM.from_pretrained(tmp_path).config.vocab_size == 33
    tokens, mask = batch([9, 4])
    with torch.inference_mode():
        assert max_abs(fast(tokens).logits[..., :33], model(tokens).logits, mask) <= 1e-4


@pytest.mark.parametrize("dtype", ["float32", "torch.bfloat16", "int8"])
def test_precisions_as_text(model: EsmForMaskedLM, dtype: str) -> None:
    fast, same = fast_or_skip(model, dtype), getattr(torch, dtype.removeprefix("torch."))
    tokens, _ = batch([9])
    with torch.inference_mode():
        assert torch.equal(fast(tokens).logits, optimize_for_inference(model, same)(tokens).logits)
    with pytest.raises(InputError, match="dtype bf16 is not float32, bfloat16 or int8"):
        optimize_for_inference(model, "bf16")
    with pytest.raises(InputError, match="trunk_dtype int8 is not float32 or bfloat16"):
        optimize_for_inference(model, trunk_dtype="int8")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_size_of_a_copy(model: EsmForMaskedLM, dtype: torch.dtype) -> None:
    fast = fast_or_skip(model, dtype)
    for excluded in (True, False):
        expected = model.num_parameters(exclude_embeddings=excluded)
        assert fast.num_parameters(exclude_embeddings=excluded) == expected > 1000
    assert fast.num_parameters(only_trainable=True) == 0
    shares = {torch.float32: (0.99, 1.01), torch.bfloat16: (0.5, 0.52), torch.int8: (0.25, 0.7)}
    least, most = shares[dtype]
    assert least <= fast.get_memory_footprint() / model.get_memory_footprint() <= most


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tied_weight_stays_one(model: EsmForMaskedLM, dtype: torch.dtype) -> None:
    fast = fast_or_skip(model, dtype)
    assert fast.lm_head.decoder.weight is fast.get_input_embeddings().weight


REFUSED = {
    "to": (lambda m: m.to(torch.float16), "keeps its precision; for torch.float16, optimize the o"),
    "half": (lambda m: m.half(), "keeps its precision"),
    "double": (lambda m: m.double(), "keeps its precision"),
    "within": (lambda m: torch.nn.ModuleList([m]).half(), "keeps its precision"),
    "the encoder": (lambda m: m.esm.half(), "keeps its precision"),
    "meta": (lambda m: m.to("meta"), "is optimized for the CPU; for meta, move the original"),
    "state_dict": (lambda m: m.state_dict(), "state_dict: a model optimized for inference has no"),
    "a state within": (lambda m: torch.nn.ModuleList([m]).state_dict(), "state_dict: a model"),
    "load": (lambda m: m.load_state_dict({}), "load_state_dict: a model optimized"),
    "train": (lambda m: m.train(), "train: a model optimized for inference has no gradients"),
    "grad": (lambda m: m.requires_grad_(), "requires_grad_: a model optimized"),
    "inputs": (lambda m: m.enable_input_require_grads(), "enable_input_require_grads: a model"),
    "layers": (lambda m: m.gradient_checkpointing_enable(), "gradient_checkpointing_enable: a"),
    "prune": (lambda m: m.prune_heads({0: [0]}), "prune_heads: a model optimized"),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_a_copy_cannot_do(model: EsmForMaskedLM, dtype: torch.dtype, what: str) -> None:
    fast = fast_or_skip(model, dtype)
    tokens, _ = batch([9])
    with torch.inference_mode():
        expected = fast(tokens).logits
    act, message = REFUSED[what]
    if what == "meta" and not any(packed_layers(fast)):
        assert act(copy.deepcopy(fast)).device.type == "meta"  # nothing ties it to the CPU
    else:
        with pytest.raises(InputError, match=message):
            act(fast)
    with torch.inference_mode():
        assert torch.equal(fast(tokens).logits, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_a_copy_can_do(model: EsmForMaskedLM, dtype: torch.dtype) -> None:
    fast = fast_or_skip(model, dtype)
    tokens, _ = batch([9])
    expected = fast(tokens).logits
    same = fast.eval().train(False).to("cpu").to(fast.dtype).requires_grad_(False)
    assert same is fast
    assert torch.equal(fast(tokens).logits, expected)
    assert not expected.requires_grad


@pytest.mark.parametrize("packs", [True, False], ids=["packed", "fallback"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_of_inputs_are_refused(
    model: EsmForMaskedLM, dtype: torch.dtype, packs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimize, "can_pack", lambda dtype: packs and linears.can_pack(dtype))
    fast = fast_or_skip(model, dtype)
    embeds = torch.randn(1, 9, SMALL["hidden_size"], dtype=fast.dtype)
    with torch.no_grad():
        expected = fast(inputs_embeds=embeds).logits
    embeds.requires_grad_()
    with pytest.raises(InputError, match="a gradient of the inputs: a model optimized"):
        fast(inputs_embeds=embeds)
    with torch.no_grad():
        assert torch.equal(fast(inputs_embeds=embeds).logits, expected)
