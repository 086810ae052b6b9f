"""The encoder in 8 bits: how far from float32, alone and in batches, and where there is none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from esm_pipeline import (
    EsmConfig,
    EsmForMaskedLM,
    EsmForSequenceClassification,
    EsmTokenizer,
    demo_model,
    optimize_for_inference,
)
from esm_pipeline.errors import InputError
from esm_pipeline.model.inference import int8 as quantize
from esm_pipeline.model.inference.int8 import Int8Linear, LevelNorm, ToLevels, can_quantize
from tests.oracles.peers import ESM1B, ESM2, SMALL, batch, enliven

pytestmark = pytest.mark.skipif(not can_quantize(), reason="no exact 8-bit product here")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def model() -> EsmForMaskedLM:
    return EsmForMaskedLM.from_pretrained(demo_model()).eval()


@pytest.fixture(scope="module")
def unseen() -> list[str]:
    """Real proteins that no range was found on."""
    known = set(quantize.packaged_proteins())
    text = (demo_model().parent / "demo.fasta").read_text()
    records = ["".join(one.splitlines()[1:]) for one in text.split(">")[1:]]
    found = [
        one for one in records if one not in known and 40 <= len(one) <= 300 and "*" not in one
    ]
    assert len(found) >= 10
    return found[:10]


def logits(model: EsmForMaskedLM, sequences: list[str]) -> list[Tensor]:
    tokenizer = EsmTokenizer.standard()
    with torch.inference_mode():
        return [
            model(**tokenizer([one], return_tensors="pt")).logits[0].float() for one in sequences
        ]


def drift(found: list[Tensor], expected: list[Tensor]) -> float:
    """Root of the mean square of the differences, divided by that of the expected."""
    one, other = torch.cat(found), torch.cat(expected)
    return float((one - other).square().mean().sqrt() / other.square().mean().sqrt())


def test_as_near_to_float32_as_bfloat16(model: EsmForMaskedLM, unseen: list[str]) -> None:
    """Found: 0.0031 of the logits' size in 8 bits, 0.0030 in bfloat16."""
    expected = logits(model, unseen)
    found = logits(optimize_for_inference(model, torch.int8), unseen)
    half = logits(optimize_for_inference(model, torch.bfloat16), unseen)
    assert found[0].dtype == torch.float32
    assert drift(found, expected) < 0.01
    assert drift(found, expected) < 2 * drift(half, expected)
    alike = torch.cat(found).argmax(-1) == torch.cat(expected).argmax(-1)
    assert alike.float().mean() > 0.99


@pytest.mark.parametrize("mistake", ["narrow", "unsmoothed", "zero"])
def test_mistakes_are_seen(
    model: EsmForMaskedLM, unseen: list[str], mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps too small, weights not scaled up, a shifted zero: each is many times farther away."""
    if mistake == "narrow":
        whole = quantize.step_of
        monkeypatch.setattr(quantize, "step_of", lambda found: whole(found) / 3)
    elif mistake == "zero":
        monkeypatch.setattr(quantize, "MIDDLE", 127)
    else:
        forgets = Int8Linear.__init__

        def init(self, *arguments, smooth=None, **options):
            forgets(self, *arguments, **options)

        monkeypatch.setattr(Int8Linear, "__init__", init)
    found = logits(optimize_for_inference(model, torch.int8), unseen)
    assert drift(found, logits(model, unseen)) > 0.02


@pytest.mark.parametrize("kind", [ESM2, ESM1B], ids=["ESM-2", "ESM-1b"])
def test_random_models(kind: dict[str, object]) -> None:
    model = EsmForMaskedLM(EsmConfig(**SMALL, **kind)).eval()
    enliven(model)
    tokens, mask = batch([1, 30, 30, 100], masked=0.1)
    fast = optimize_for_inference(model, torch.int8)
    layers = [module for module in fast.modules() if isinstance(module, Int8Linear)]
    assert len(layers) == 4 * SMALL["num_hidden_layers"]
    with torch.inference_mode():
        expected, found = model(tokens).logits, fast(tokens).logits
    assert drift([found[mask.bool()]], [expected[mask.bool()]]) < 0.05


@pytest.mark.parametrize("kind", ["absolute", "relative_key", "relative_key_query"])
def test_tables_that_are_shorter_than_the_packaged_proteins(kind: str) -> None:
    """As relative positions, which are added to scores in the precision of these."""
    settings = {"position_embedding_type": kind, "max_position_embeddings": 80}
    model = EsmForMaskedLM(EsmConfig(**SMALL, **settings)).eval()
    enliven(model)
    tokens, mask = batch([1, 30, 70], masked=0.1)
    fast = optimize_for_inference(model, torch.int8)
    with torch.inference_mode():
        expected, found = model(tokens).logits, fast(tokens).logits
    assert drift([found[mask.bool()]], [expected[mask.bool()]]) < 0.1


def test_a_sequence_has_the_same_numbers_in_any_batch(
    model: EsmForMaskedLM, unseen: list[str]
) -> None:
    fast = optimize_for_inference(model, torch.int8)
    encoded = EsmTokenizer.standard()(unseen[:4], padding=True, return_tensors="pt")
    with torch.inference_mode():
        together = fast(**encoded).logits
    for row, alone in zip(together, logits(fast, unseen[:4]), strict=True):
        torch.testing.assert_close(row[: len(alone)], alone, rtol=0, atol=0.05)


def test_dropout_has_no_say_and_the_original_is_untouched(
    model: EsmForMaskedLM, unseen: list[str]
) -> None:
    expected = logits(optimize_for_inference(model, torch.int8), unseen[:2])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = EsmForMaskedLM.from_pretrained(
        demo_model(), hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5
    ).train()
    found = logits(optimize_for_inference(trained, torch.int8), unseen[:2])
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert trained.training
    assert not any(module._forward_pre_hooks for module in trained.modules())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_maps_pruned_heads_and_classifiers(unseen: list[str]) -> None:
    config = EsmConfig(**SMALL, **ESM2, num_labels=3)
    model = EsmForSequenceClassification(config).eval()
    enliven(model)
    model.prune_heads({0: list(range(config.num_attention_heads)), 1: [0]})
    encoded = EsmTokenizer.standard()(unseen[:3], padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = model(**encoded, output_attentions=True)
        fast = optimize_for_inference(model, torch.int8)
        found = fast(**encoded, output_attentions=True)
    assert (found.logits - expected.logits).abs().max() < 0.05 * expected.logits.abs().max()
    assert (found.attentions[1] - expected.attentions[1]).abs().max() < 0.02


def test_contacts(unseen: list[str]) -> None:
    """From maps in bfloat16, by a regression in float32."""
    model = EsmForMaskedLM(EsmConfig(**SMALL, **ESM2)).eval()
    enliven(model)
    torch.nn.init.normal_(model.esm.contact_head.regression.weight, std=10)
    tokens = EsmTokenizer.standard()(unseen[:1], return_tensors="pt").input_ids
    with torch.inference_mode():
        expected = model.predict_contacts(tokens)
        found = optimize_for_inference(model, torch.int8).predict_contacts(tokens)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 0.05
    assert expected.std() > 0.05


@pytest.mark.parametrize("where", ["attention.self.query", "intermediate.dense", "output.dense"])
def test_what_is_no_number_is_not_hidden(where: str) -> None:
    """Weights are numbers, what they make of proteins is not."""
    model = EsmForMaskedLM(EsmConfig(**SMALL, **ESM2)).eval()
    with torch.no_grad():
        model.get_submodule(f"esm.encoder.layer.0.{where}").weight.fill_(3e38)
    with pytest.raises(InputError, match="int8: this model computes NaN or infinity"):
        optimize_for_inference(model, torch.int8)


def test_values_to_levels() -> None:
    values = torch.tensor([[-9.0, -0.26, -0.24, 0.0, 0.24, 0.26, 9.0]])
    assert ToLevels(0.5)(values).tolist() == [[110, 127, 128, 128, 128, 129, 146]]
    assert ToLevels(0.01)(values).tolist() == [[0, 102, 104, 128, 152, 154, 255]]
    norm = torch.nn.LayerNorm(64)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    steps, x = torch.rand(64) * 0.1 + 0.1, torch.randn(5, 64)
    with torch.inference_mode():
        levels = LevelNorm(norm, steps)(x)
        assert levels.dtype == torch.uint8
        assert (((levels.float() - 128) * steps - norm(x)).abs() <= 0.501 * steps).all()


def test_ranges_are_of_all_proteins(model: EsmForMaskedLM) -> None:
    layer, seen = model.esm.encoder.layer[1], []
    hook = layer.output.dense.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    found = quantize.find_ranges(model)[1]["wide"]
    hook.remove()
    together = torch.cat(seen)
    assert len(seen) > 3
    assert torch.equal(found, torch.stack((together.amin(0), together.amax(0))))


def test_channels_without_values() -> None:
    """A weight of zeros, a norm that gives nothing."""
    model = EsmForMaskedLM(EsmConfig(**SMALL, **ESM2)).eval()
    enliven(model)
    layer = model.esm.encoder.layer[0]
    torch.nn.init.zeros_(layer.intermediate.dense.weight)
    torch.nn.init.zeros_(layer.attention.LayerNorm.weight)
    torch.nn.init.zeros_(layer.attention.LayerNorm.bias)
    mute = model.esm.encoder.layer[1].attention.self.value
    torch.nn.init.zeros_(mute.weight)
    torch.nn.init.zeros_(mute.bias)
    tokens, _ = batch([20])
    with torch.inference_mode():
        found, expected = optimize_for_inference(model, torch.int8)(tokens), model(tokens)
    assert (found.logits - expected.logits).abs().max() < 0.05 * expected.logits.abs().max()
    empty = Int8Linear(layer.intermediate.dense, 0.1)
    assert (empty.steps > 0).all()


@pytest.mark.parametrize("how", ["missing", "overflow"])
def test_without_an_exact_product_there_is_none(
    model: EsmForMaskedLM, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: Int8Linear, x: Tensor) -> Tensor:
        if how == "missing":
            raise AttributeError("no such operator")
        return torch.full((len(x), self.out_features), 32767 * 0.5)

    monkeypatch.setattr(Int8Linear, "forward", forward)
    can_quantize.cache_clear()
    with pytest.raises(InputError, match="no exact 8-bit product; use bfloat16"):
        optimize_for_inference(model, torch.int8)
    can_quantize.cache_clear()


def test_models_that_have_none() -> None:
    tiny = {**SMALL, **ESM2}
    decoder = EsmForMaskedLM(EsmConfig(**tiny, is_decoder=True))
    with pytest.raises(InputError, match="int8 is only for encoders"):
        optimize_for_inference(decoder, torch.int8)
    other = EsmForMaskedLM(EsmConfig(**{**tiny, "vocab_size": 40}))
    with pytest.raises(InputError, match="the standard vocabulary of 33 tokens"):
        optimize_for_inference(other, torch.int8)
    elsewhere = EsmForMaskedLM(EsmConfig(**tiny)).to("meta")
    with pytest.raises(InputError, match="for the CPU; use dtype bfloat16"):
        optimize_for_inference(elsewhere, torch.int8)
