"""What scripts do around `forward`: their own heads and classes, adapters, gradients, keywords."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from torch import Tensor, nn

import esm_pipeline
from esm_pipeline import (
    EsmConfig,
    EsmForMaskedLM,
    EsmModel,
    EsmPreTrainedModel,
    PackedLayout,
)
from esm_pipeline.errors import WeightsError
from tests.oracles.peers import ESM1B, ESM2, SMALL, batch, enliven, max_abs

KINDS = {"ESM-2": ESM2, "ESM-1b": ESM1B}
HEADS = ("EsmForMaskedLM", "EsmForSequenceClassification", "EsmForTokenClassification")
TOLERANCE = 1e-6
"""In float64; the reference's rotary angles are in float32."""


def twins(name: str, kind: str = "ESM-2", **more: Any) -> tuple[nn.Module, nn.Module]:
    """The reference's model of a class, and ours with its weights; float64, in evaluation mode."""
    settings = {**SMALL, **KINDS[kind], **more}
    torch.manual_seed(0)
    peer = getattr(transformers, name)(
        transformers.EsmConfig(**settings, attn_implementation="eager")
    ).double()
    enliven(peer)
    ours = getattr(esm_pipeline, name)(EsmConfig(**settings)).double()
    ours.load_state_dict(peer.state_dict())
    return peer.eval(), ours.eval()


# States as others write them.


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_bare_state_is_a_checkpoint(name: str, kind: str, tmp_path: Path) -> None:
    _, ours = twins(name, kind)
    if kind == "ESM-2":
        ours.esm.encoder.frequencies = ours.esm.encoder.frequencies.half().float()
    safetensors.torch.save_file(ours.state_dict(), tmp_path / "model.safetensors")
    tokens, mask = batch([9, 30])
    expected = ours(tokens, attention_mask=mask).logits
    kept = {"dtype": torch.float64}
    again = type(ours).from_pretrained(tmp_path, config=ours.config, **kept)
    assert max_abs(again(tokens, attention_mask=mask).logits, expected) <= 1e-12
    given = type(ours).from_pretrained(
        None, config=ours.config, state_dict=ours.state_dict(), **kept
    )
    assert max_abs(given(tokens, attention_mask=mask).logits, expected) <= 1e-12
    fresh = type(ours)(ours.config).double().eval()
    read = safetensors.torch.load_file(tmp_path / "model.safetensors")
    info = fresh.load_state_dict(read)
    assert (info.missing_keys, info.unexpected_keys) == ([], [])
    assert max_abs(fresh(tokens, attention_mask=mask).logits, expected) <= 1e-12
    with pytest.raises(WeightsError, match=r"no config\.json"):
        type(ours).from_pretrained(tmp_path)


def test_given_weights_are_copied() -> None:
    _, ours = twins("EsmForMaskedLM")
    state = ours.state_dict()
    given = EsmForMaskedLM.from_pretrained(
        None, config=ours.config, state_dict=state, dtype=torch.float64
    )
    with torch.no_grad():
        given.esm.encoder.layer[0].LayerNorm.weight.fill_(7)
    assert not (ours.esm.encoder.layer[0].LayerNorm.weight == 7).any()


def test_a_tied_head_follows_the_embedding() -> None:
    _, ours = twins("EsmForMaskedLM")
    state = ours.state_dict()
    del state["lm_head.decoder.weight"]
    state["esm.embeddings.word_embeddings.weight"] = torch.full((33, 48), 0.5)
    info = ours.load_state_dict(state)
    assert info.missing_keys == []
    assert ours.lm_head.decoder.weight is ours.get_input_embeddings().weight
    assert bool((ours.lm_head.decoder.weight == 0.5).all())


def test_frequencies_belong_to_a_state() -> None:
    _, ours = twins("EsmModel")
    _, other = twins("EsmModel")
    rounded = ours.encoder.frequencies.half().float()
    assert not torch.equal(rounded, ours.encoder.frequencies)
    ours.encoder.frequencies = rounded
    other.load_state_dict(ours.state_dict())
    assert torch.equal(other.encoder.frequencies, rounded)


def test_weights_from_a_caller_are_saved(tmp_path: Path) -> None:
    _, ours = twins("EsmForMaskedLM")
    state = {key: tensor * 2 for key, tensor in ours.state_dict().items()}
    ours.save_pretrained(tmp_path, state_dict=state)
    again = EsmForMaskedLM.from_pretrained(tmp_path, dtype=torch.float64)
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, state[name]), name
    ours.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other").exists()


# Modules by their names.


class Adapter(nn.Module):
    """A linear layer with a low-rank branch added, as adapters of peft are."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner
        self.down = nn.Linear(inner.in_features, 2, bias=False, dtype=inner.weight.dtype)
        self.up = nn.Linear(2, inner.out_features, bias=False, dtype=inner.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """As the inner layer's."""
        added: Tensor = self.inner(x) + self.up(self.down(x))
        return added


def adapt(model: nn.Module, targets: tuple[str, ...]) -> int:
    """Put adapters in place of the linear layers with these names; how many there are."""
    found = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if name in targets and isinstance(child, nn.Linear)
    ]
    torch.manual_seed(1)
    for parent, name in found:
        setattr(parent, name, Adapter(getattr(parent, name)))
    return len(found)


@pytest.mark.parametrize("targets", [("query", "value"), ("query", "key", "value", "dense")])
@pytest.mark.parametrize("name", HEADS)
def test_adapters_find_layers_by_name(name: str, targets: tuple[str, ...]) -> None:
    peer, ours = twins(name)
    tokens, mask = batch([9, 30])
    before = ours(tokens, attention_mask=mask).logits
    assert adapt(ours, targets) == adapt(peer, targets) >= 6
    for model in (peer, ours):
        for own, parameter in model.named_parameters():
            parameter.requires_grad_("down" in own or "up" in own)
    found = ours(tokens, attention_mask=mask).logits
    theirs = peer(tokens, attention_mask=mask).logits
    seen = mask if found.ndim == 3 else None
    assert max_abs(found, before, seen) > 1e-3
    assert max_abs(found, theirs, seen) <= TOLERANCE
    for logits in (found, theirs):
        kept = logits if seen is None else logits[mask.bool()]
        kept.square().sum().backward()
    gradients = {key: p.grad for key, p in peer.named_parameters() if p.requires_grad}
    for key, parameter in ours.named_parameters():
        if parameter.requires_grad:
            assert max_abs(parameter.grad, gradients[key]) <= 100 * TOLERANCE, key


@pytest.mark.parametrize("kind", KINDS)
def test_lists_of_what_takes_no_weight_decay(kind: str) -> None:
    peer, ours = twins("EsmForSequenceClassification", kind)
    chosen = [
        {name for name, _ in model.named_parameters() if "bias" in name or "LayerNorm" in name}
        for model in (peer, ours)
    ]
    assert chosen[0] == chosen[1]
    assert len([name for name in chosen[1] if name.endswith("LayerNorm.weight")]) == 6


# Gradients of what is returned.


@pytest.mark.parametrize("lengths", [[12, 5, 30], [12], [7, 7]])
def test_gradients_by_hidden_states(lengths: list[int]) -> None:
    found = []
    tokens, mask = batch(lengths)
    for model in twins("EsmForMaskedLM"):
        out = model(
            tokens,
            attention_mask=mask,
            labels=tokens.where(mask == 1, -100),
            output_hidden_states=True,
        )
        found.append(torch.autograd.grad(out.loss, out.hidden_states))
    for theirs, ours in zip(*found, strict=True):
        assert bool(theirs.any())
        assert max_abs(ours, theirs, mask) <= TOLERANCE


@pytest.mark.parametrize("lengths", [[12], [7, 7]])
def test_gradients_by_attentions(lengths: list[int]) -> None:
    found = []
    tokens, mask = batch(lengths)
    for model in twins("EsmForMaskedLM"):
        out = model(tokens, attention_mask=mask, labels=tokens, output_attentions=True)
        found.append(torch.autograd.grad(out.loss, out.attentions))
    for theirs, ours in zip(*found, strict=True):
        assert bool(theirs.any())
        assert max_abs(ours, theirs) <= TOLERANCE


def test_input_gradients_for_adapters() -> None:
    _, ours = twins("EsmForMaskedLM")
    ours.requires_grad_(False)
    tokens, _ = batch([9])
    assert not ours(tokens).logits.requires_grad
    ours.enable_input_require_grads()
    ours.enable_input_require_grads()
    assert ours(tokens).logits.requires_grad
    ours.disable_input_require_grads()
    assert not ours(tokens).logits.requires_grad


# Heads and classes of a script's own.


class Pooled(nn.Module):
    """A head that looks at padded states: the first token and the mean of the others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.out = nn.Linear(96, 3, dtype=torch.float64)

    def forward(self, features: Tensor) -> Tensor:
        """(B, L, D) → (B, 3)."""
        both = torch.cat([features[:, 0, :], features[:, 1:4].mean(1)], dim=-1)
        logits: Tensor = self.out(both)
        return logits


class Recurrent(nn.Module):
    """A head for tokens that looks at their neighbours."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.across = nn.LSTM(48, 5, batch_first=True, dtype=torch.float64)

    def forward(self, features: Tensor) -> Tensor:
        """(B, L, D) → (B, L, 5)."""
        states: Tensor = self.across(features)[0]
        return states


@pytest.mark.parametrize(
    ("name", "place", "head"),
    [
        ("EsmForSequenceClassification", "classifier", Pooled),
        ("EsmForTokenClassification", "classifier", Recurrent),
        ("EsmForMaskedLM", "lm_head", Recurrent),
    ],
)
def test_heads_in_place_of_ours(name: str, place: str, head: type[nn.Module]) -> None:
    pair = twins(name)
    for model in pair:
        setattr(model, place, head())
    tokens, mask = batch([9, 30])
    theirs, found = (model(tokens, attention_mask=mask).logits for model in pair)
    assert max_abs(found, theirs, mask if found.ndim == 3 else None) <= TOLERANCE
    lengths = mask.sum(1).tolist()
    packed = pair[1].packed_logits(tokens[mask.bool()], PackedLayout.from_lengths(lengths))
    expected = found if found.ndim == 2 else found[mask.bool()]
    assert max_abs(packed, expected) <= TOLERANCE


class Contrast(EsmPreTrainedModel):
    """A class of a script's own, as tutorials write them."""

    def __init__(self, config: EsmConfig, spread: float = 1.0) -> None:
        super().__init__(config)
        self.esm = EsmModel(config, add_pooling_layer=False)
        self.scale = nn.Parameter(torch.full((1,), spread))
        self.across = nn.LSTM(48, 4, batch_first=True)
        self.register_buffer("seen", torch.ones(2))
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, L) → (B, 4)."""
        states = self.esm(input_ids, attention_mask=attention_mask).last_hidden_state
        pooled: Tensor = self.across(states)[0][:, 0] * self.scale
        return pooled


def test_a_class_of_a_scripts_own(tmp_path: Path) -> None:
    _, trunk = twins("EsmForMaskedLM")
    trunk.save_pretrained(tmp_path / "trunk")
    with pytest.warns(UserWarning, match=r"no weights for across\.bias_hh_l0.*scale, seen; ini"):
        model = Contrast.from_pretrained(tmp_path / "trunk", spread=3.0, dtype=torch.float64)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert model.scale.item() == 3.0
    assert model.seen.tolist() == [1.0, 1.0]
    assert all(bool(p.any()) for p in model.across.parameters())
    layer = "encoder.layer.1.attention.self.key.weight"
    assert torch.equal(model.esm.get_parameter(layer), trunk.esm.get_parameter(layer))
    model.save_pretrained(tmp_path / "own")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = Contrast.from_pretrained(tmp_path / "own", dtype=torch.float64)
    tokens, mask = batch([9, 4])
    assert max_abs(again(tokens, mask), model(tokens, mask)) <= 1e-12
    state = trunk.state_dict()
    del state["esm.encoder.layer.0.output.dense.bias"]
    with pytest.raises(WeightsError, match=r"no 'esm\.encoder\.layer\.0\.output\.dense\.bias'"):
        Contrast.from_pretrained(None, config=trunk.config, state_dict=state)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("kind", KINDS)
def test_parameters_come_in_the_references_order(name: str, kind: str) -> None:
    peer, ours = twins(name, kind)
    theirs = [key for key, _ in peer.named_parameters()]
    assert [key for key, _ in ours.named_parameters()] == theirs


class Shifted(nn.Linear):
    """A head that is a linear layer, and more."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) → (B, L, K)."""
        return super().forward(x) - x.mean(1, keepdim=True)[..., :3]


def test_heads_derived_from_ours_see_padded_states() -> None:
    pair = twins("EsmForTokenClassification")
    torch.manual_seed(4)
    state = Shifted(48, 3).double().state_dict()
    for model in pair:
        model.classifier = Shifted(48, 3).double()
        model.classifier.load_state_dict(state)
    tokens, _ = batch([9, 9])
    theirs, found = (model(tokens).logits for model in pair)
    assert max_abs(found, theirs) <= TOLERANCE


def test_replaced_forwards_of_heads_see_padded_states() -> None:
    pair = twins("EsmForSequenceClassification")
    for model in pair:
        head = model.classifier
        head.forward = lambda states, head=head: head.out_proj(torch.tanh(states[:, 1, :]))
    tokens, mask = batch([9, 30])
    theirs, found = (model(tokens, attention_mask=mask).logits for model in pair)
    assert max_abs(found, theirs) <= TOLERANCE


def test_precisions_and_frequencies_that_a_script_sets(tmp_path: Path) -> None:
    config = EsmConfig(**SMALL, **ESM2, torch_dtype=torch.float16)
    config.save_pretrained(tmp_path)
    assert EsmConfig.from_pretrained(tmp_path).torch_dtype == torch.float16
    _, ours = twins("EsmModel")
    state = ours.state_dict()
    key = "encoder.layer.0.attention.self.rotary_embeddings.inv_freq"
    state[key] = torch.ones(3)
    with pytest.raises(RuntimeError, match="size mismatch"):
        ours.load_state_dict(state)
