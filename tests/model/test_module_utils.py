"""What scripts and tools ask models and configs for, as the reference has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from esm_pipeline import (
    EsmConfig,
    EsmForMaskedLM,
    EsmForProteinFolding,
    EsmModel,
    EsmTokenizer,
    demo_model,
)
from esm_pipeline.errors import InputError, WeightsError
from tests.oracles.folding_peers import settings as folding_settings
from tests.oracles.peers import ESM2, SMALL, batch, enliven, max_abs


def build(**more: Any) -> EsmModel:
    return EsmModel(EsmConfig(**SMALL, **ESM2, **more)).eval()


# Masks.


@pytest.mark.parametrize("decoder", [False, True])
def test_an_extended_mask(decoder: bool) -> None:
    """What is added to scores: zero where a token may look, else the least number."""
    model = build(is_decoder=decoder)
    _, mask = batch([3, 1])
    found = model.get_extended_attention_mask(mask, tuple(mask.shape))
    least = torch.finfo(torch.float32).min
    assert found.shape == ((2, 1, 5, 5) if decoder else (2, 1, 1, 5))
    for row in range(2):
        for query in range(found.shape[2]):
            for key in range(5):
                seen = bool(mask[row, key]) and (not decoder or key <= query)
                assert found[row, 0, query, key] == (0 if seen else least)
    whole = mask[:, None, :].expand(2, 5, 5)
    assert model.get_extended_attention_mask(whole, (2, 5), dtype=torch.float16).shape == (
        *(2, 1),
        *(5, 5),
    )
    with pytest.raises(InputError, match="attention_mask has shape"):
        model.get_extended_attention_mask(mask[0], (5,))


def test_an_extended_mask_is_the_peers() -> None:
    _, mask = batch([3, 1])
    ours = build().get_extended_attention_mask(mask, tuple(mask.shape))
    peer = transformers.EsmModel(transformers.EsmConfig(**SMALL, **ESM2))
    if hasattr(peer, "get_extended_attention_mask"):
        assert torch.equal(ours, peer.get_extended_attention_mask(mask, tuple(mask.shape)))


def test_a_head_mask() -> None:
    model = build()
    assert model.get_head_mask(None, 3) == [None] * 3
    one = torch.tensor([1, 0, 1, 1])
    found = model.get_head_mask(one, 3)
    assert found.shape == (3, 1, 4, 1, 1)
    assert found.dtype == torch.float32
    assert found[:, 0, :, 0, 0].tolist() == [[1, 0, 1, 1]] * 3
    each = torch.eye(4)[:3]
    assert torch.equal(model.get_head_mask(each, 3)[:, 0, :, 0, 0], each)
    assert model.get_head_mask(one, 3, is_attention_chunked=True).shape == (3, 1, 4, 1, 1, 1)


# Configs.


def test_a_precision_is_pytorchs_here_and_text_in_the_file(tmp_path: Path) -> None:
    for given in ("float16", "torch.float16", torch.float16):
        for name in ("torch_dtype", "dtype"):
            config = EsmConfig(**SMALL, **{name: given})
            assert config.torch_dtype is config.dtype is torch.float16
            config.save_pretrained(tmp_path)
            text = json.loads((tmp_path / "config.json").read_text())
            assert text["torch_dtype"] == "float16"
            assert "dtype" not in text
            assert EsmConfig.from_pretrained(tmp_path).torch_dtype is torch.float16
            assert transformers.EsmConfig.from_pretrained(tmp_path).dtype == torch.float16
    model = build().bfloat16()
    model.save_pretrained(tmp_path)
    assert model.config.torch_dtype is torch.bfloat16
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    config.torch_dtype = "float64"
    assert config.torch_dtype is torch.float64
    with pytest.raises(WeightsError, match="torch_dtype is 'float17', which is not a precision"):
        EsmConfig(torch_dtype="float17")


def test_a_config_of_transformers_5_tells_its_precision(tmp_path: Path) -> None:
    transformers.EsmConfig(**SMALL, dtype="bfloat16").save_pretrained(tmp_path)
    assert "torch_dtype" not in json.loads((tmp_path / "config.json").read_text())
    assert EsmConfig.from_pretrained(tmp_path).torch_dtype is torch.bfloat16


def test_where_a_config_is_from(tmp_path: Path) -> None:
    model = EsmForMaskedLM.from_pretrained("demo")
    assert model.config.name_or_path == model.config._name_or_path == "demo"
    assert EsmConfig.from_pretrained("demo")._name_or_path == "demo"
    assert model.config.get_text_config() is model.config
    assert model.config.get_text_config(decoder=True) is model.config
    model.save_pretrained(tmp_path)
    assert "_name_or_path" not in json.loads((tmp_path / "config.json").read_text())
    assert EsmForMaskedLM.from_pretrained(tmp_path).config == model.config


# Arguments by their places.


def test_positional_arguments(tmp_path: Path) -> None:
    EsmModel.from_pretrained("demo", False).save_pretrained(
        *(tmp_path, True, None, torch.save, False, "5GB", True)
    )
    assert (tmp_path / "model.safetensors").exists()
    config = EsmConfig.from_pretrained("demo", str(tmp_path), False, True, None, "main")
    config.save_pretrained(tmp_path, False)
    EsmTokenizer.from_pretrained("demo").save_pretrained(tmp_path, None, None, False)
    for save in (config.save_pretrained, build().save_pretrained):
        with pytest.raises(InputError, match="'push_to_hub' is not here"):
            save(tmp_path, push_to_hub=True)
    with pytest.raises(InputError, match="'variant' is not here"):
        build().save_pretrained(tmp_path, variant="fp16")


@pytest.mark.parametrize("kind", [EsmForMaskedLM, EsmConfig, EsmTokenizer])
def test_a_revision_beside_a_folder(kind: Any, recwarn: pytest.WarningsRecorder) -> None:
    """The reference passes over it; "main" is what it asks for unless told."""
    kind.from_pretrained(demo_model(), revision="main")
    kind.from_pretrained("demo", revision="main")
    assert not recwarn.list
    with pytest.warns(UserWarning, match="is on this disk, so that revision 'v1' is ignored"):
        kind.from_pretrained(demo_model(), revision="v1")


# Pruning from the end.


def test_heads_of_the_last_layer_by_minus_one(tmp_path: Path) -> None:
    tokens, _ = batch([9])
    models = []
    for pruned in ({-1: [0]}, {2: [0]}):
        model = enliven(EsmForMaskedLM(EsmConfig(**SMALL, **ESM2)))
        model.prune_heads(pruned)
        models.append(model)
        assert model.config.pruned_heads == {2: [0]}
    expected = models[1](tokens).logits
    assert torch.equal(models[0](tokens).logits, expected)
    models[0].prune_heads({2: [0], -1: [1]})
    assert models[0].config.pruned_heads == {2: [0, 1]}
    models[1].save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    text = json.loads(path.read_text())
    path.write_text(json.dumps({**text, "pruned_heads": {"-1": [0]}}))  # as the reference leaves it
    again = EsmForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(again(tokens).logits, expected)
    again.save_pretrained(tmp_path)
    assert json.loads(path.read_text())["pruned_heads"] == {"2": [0]}
    assert EsmConfig(**SMALL, pruned_heads={-1: [0], 2: [1]}).pruned_heads == {2: [0, 1]}


# The folding model.


@pytest.fixture(scope="module")
def folding() -> EsmForProteinFolding:
    return enliven(EsmForProteinFolding(EsmConfig(**folding_settings())))


def test_token_ids_of_residues(folding: EsmForProteinFolding) -> None:
    aa, mask = torch.tensor([[0, 5, 20], [3, 0, 0]]), torch.tensor([[1, 1, 1], [1, 0, 0]])
    found = folding.af2_idx_to_esm_idx(aa, mask)
    vocabulary = folding.config.vocab_list
    assert [[vocabulary[one] for one in row] for row in found.tolist()] == [
        ["A", "Q", "X"],
        ["D", "<pad>", "<pad>"],
    ]


def test_states_of_the_language_model(folding: EsmForProteinFolding) -> None:
    aa, mask = torch.tensor([[0, 5, 20], [3, 0, 0]]), torch.tensor([[1, 1, 1], [1, 0, 0]])
    ids = folding.af2_idx_to_esm_idx(aa, mask)
    found = folding.compute_language_model_representations(ids)
    config = folding.config
    assert found.shape == (2, 3, config.num_hidden_layers + 1, config.hidden_size)
    vocabulary = config.vocab_list
    framed = [[vocabulary.index("<cls>"), *ids[0].tolist(), vocabulary.index("<eos>")]]
    states = folding.esm(torch.tensor(framed), output_hidden_states=True).hidden_states
    for layer, expected in enumerate(states):
        assert max_abs(found[:1, :, layer], expected[:, 1:-1]) <= 1e-5
    shares = folding.esm_s_combine.softmax(0)
    summed = folding.language(ids)[0]
    shown = mask.unsqueeze(-1).expand_as(summed)
    assert max_abs((found * shares[:, None]).sum(2), summed, shown) <= 1e-5
    assert not found.requires_grad


def test_a_precision_of_the_language_model_as_text() -> None:
    model = EsmForProteinFolding(EsmConfig(**folding_settings()), stem_dtype="bfloat16")
    assert model.esm.dtype == torch.bfloat16
    with pytest.raises(WeightsError, match="dtype 'bf17' is not known"):
        EsmForProteinFolding(EsmConfig(**folding_settings()), stem_dtype="bf17")
