"""Token embeddings in and out: access, ties, more and fewer tokens. Peer: transformers."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

import esm_pipeline
from esm_pipeline import EsmConfig, EsmForMaskedLM, EsmForTokenClassification, EsmModel
from esm_pipeline.errors import InputError
from tests.oracles.classifiers import HEADS, twins_of
from tests.oracles.peers import ESM1B, ESM2, SMALL, batch, enliven, max_abs

TIED = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


def language_model(**settings: object) -> EsmForMaskedLM:
    model = EsmForMaskedLM(EsmConfig(**{**SMALL, **ESM2, **settings}))
    enliven(model)
    return model


@pytest.mark.parametrize("name", ["EsmModel", *HEADS])
def test_access_as_in_the_reference(name: str) -> None:
    config = EsmConfig(**SMALL, **ESM2)
    peer = getattr(transformers, name)(transformers.EsmConfig(**SMALL, **ESM2))
    ours = getattr(esm_pipeline, name)(config)
    embedding = ours.get_input_embeddings()
    assert embedding is ours.base_model.embeddings.word_embeddings
    assert embedding.weight.shape == peer.get_input_embeddings().weight.shape
    output = ours.get_output_embeddings()
    assert (output is None) == (peer.get_output_embeddings() is None)
    assert ours.base_model_prefix == peer.base_model_prefix
    other = nn.Embedding(33, 48, padding_idx=1)
    ours.set_input_embeddings(other)
    assert ours.get_input_embeddings() is other
    if output is not None:
        assert ours.get_output_embeddings().weight is other.weight, "the head follows"


@TIED
def test_the_head_is_tied_if_the_config_says_so(tied: bool, tmp_path: Path) -> None:
    model = language_model(tie_word_embeddings=tied)
    count = model.num_parameters()
    assert count == sum(p.numel() for p in model.esm.parameters()) + 48 * 48 + 3 * 48 + 33 + (
        0 if tied else 33 * 48
    )
    model.save_pretrained(tmp_path)
    loaded = EsmForMaskedLM.from_pretrained(tmp_path)
    for one in (model, loaded, copy.deepcopy(model), model.double()):
        same = one.get_output_embeddings().weight is one.get_input_embeddings().weight
        assert same == tied
        assert one.num_parameters() == count


def test_output_embeddings_of_ones_own(tmp_path: Path) -> None:
    model = language_model()
    tokens, mask = batch([9, 4])
    before = model(tokens).logits
    own = nn.Linear(48, 33, bias=False)
    model.set_output_embeddings(own)
    assert model.get_output_embeddings() is own
    assert model.config.tie_word_embeddings is False
    found = model(tokens).logits
    assert max_abs(found, before, mask) > 0.1
    model.save_pretrained(tmp_path)
    assert max_abs(EsmForMaskedLM.from_pretrained(tmp_path)(tokens).logits, found) == 0
    model.config.tie_word_embeddings = True
    model.tie_weights()
    assert max_abs(model(tokens).logits, before) == 0
    for wrong in (nn.Linear(48, 33), nn.Linear(33, 48, bias=False)):
        with pytest.raises(InputError, match="a layer from 48, with bias=False"):
            model.set_output_embeddings(wrong)


@TIED
@pytest.mark.parametrize("kind", [ESM2, ESM1B], ids=["ESM-2", "ESM-1b"])
def test_more_tokens(kind: dict[str, object], tied: bool, tmp_path: Path) -> None:
    """The reference leaves the head's bias as it is, and then cannot run."""
    model = language_model(**{**kind, "tie_word_embeddings": tied})
    tokens, mask = batch([9, 4])
    before = model(tokens).logits
    returned = model.resize_token_embeddings(40)
    assert returned is model.get_input_embeddings()
    assert (returned.num_embeddings, returned.padding_idx) == (40, 1)
    assert model.config.vocab_size == 40
    found = model(tokens).logits
    assert found.shape[-1] == 40
    assert max_abs(found[..., :33], before) <= 1e-6
    assert not model.lm_head.bias[33:].any()
    new = returned.weight[33:].detach()
    assert 0.5 < float(new.std()) / 0.02 < 1.5
    assert (model.get_output_embeddings().weight is returned.weight) == tied
    tokens[0, 3] = 39
    found = model(tokens, labels=tokens)
    found.loss.backward()
    assert returned.weight.grad[39].any()
    model.save_pretrained(tmp_path)
    again = EsmForMaskedLM.from_pretrained(tmp_path)
    assert max_abs(again(tokens).logits, found.logits, mask) <= 1e-6
    theirs = transformers.EsmForMaskedLM.from_pretrained(tmp_path)
    assert max_abs(found.logits, theirs(tokens, attention_mask=mask).logits, mask) <= 1e-4


def test_the_classes_without_such_a_head() -> None:
    peer, ours = twins_of("EsmForTokenClassification", **ESM2)
    for model in (peer, ours):
        model.resize_token_embeddings(40)
    tokens, mask = batch([9, 4])
    found, expected = ours(tokens).logits, peer(tokens, attention_mask=mask).logits
    assert max_abs(found, expected, mask) <= 1e-5
    assert ours.config.vocab_size == peer.config.vocab_size == 40
    assert ours.get_input_embeddings().weight.dtype == torch.float64


def test_fewer_tokens_and_none() -> None:
    model = language_model(vocab_size=40)
    assert model.resize_token_embeddings().num_embeddings == 40
    weight = model.get_input_embeddings().weight
    assert model.resize_token_embeddings(40).weight is weight
    assert model.resize_token_embeddings(33, pad_to_multiple_of=1).num_embeddings == 33
    assert torch.equal(model.get_input_embeddings().weight, weight[:33])
    tokens, _ = batch([9])
    assert model(tokens).logits.shape[-1] == 33
    assert model.resize_token_embeddings(pad_to_multiple_of=16).num_embeddings == 48
    assert model.resize_token_embeddings(48, pad_to_multiple_of=16).num_embeddings == 48


def test_frozen_embeddings_stay_frozen() -> None:
    model = EsmForTokenClassification(EsmConfig(**SMALL, **ESM2))
    model.base_model.requires_grad_(False)
    assert not model.resize_token_embeddings(40).weight.requires_grad
    assert model.num_parameters(only_trainable=True) == 48 * 2 + 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((32,), "32 tokens leave out mask_token_id 32; keep at least 33"),
        ((1,), "1 tokens leave out pad_token_id 1"),
        ((0,), "new_num_tokens is 0; give a whole number"),
        (("40",), "new_num_tokens is '40'; give a whole number"),
        ((None, 0), "pad_to_multiple_of is 0; give a whole number"),
        ((None, 1.5), "pad_to_multiple_of is 1.5; give a whole number"),
        ((None, -8), "pad_to_multiple_of is -8; give a whole number"),
    ],
)
def test_numbers_that_cannot_be(arguments: tuple[object, ...], message: str) -> None:
    model = EsmModel(EsmConfig(**SMALL, **ESM2))
    with pytest.raises(InputError, match=message):
        model.resize_token_embeddings(*arguments)
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == 33
