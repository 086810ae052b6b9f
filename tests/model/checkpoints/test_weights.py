"""Checkpoints read and written: every layout, strictly, compared with transformers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers

from esm_pipeline import EsmConfig, EsmForMaskedLM, EsmModel
from esm_pipeline.errors import InputError, WeightsError
from esm_pipeline.model.checkpoints.weights import reference_state
from tests.oracles.peers import (
    ESM1B,
    ESM2,
    KINDS,
    SMALL,
    batch,
    enliven,
    max_abs,
    transformers_peer,
)


@pytest.fixture
def model() -> EsmForMaskedLM:
    model = EsmForMaskedLM(EsmConfig(**SMALL, **ESM2))
    enliven(model)
    return model


@pytest.fixture
def folder(model: EsmForMaskedLM, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path)
    return tmp_path


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def rewrite(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    """Save the checkpoint again with tensors added, replaced or (None) removed."""
    state = safetensors.torch.load_file(folder / "model.safetensors")
    for key, tensor in change.items():
        if tensor is None:
            del state[key]
        else:
            state[key] = tensor
    safetensors.torch.save_file(state, folder / "model.safetensors", {"format": "pt"})


def rename(folder: Path, pattern: str, replacement: str) -> int:
    """Rename the keys that match; returns how many."""
    state = safetensors.torch.load_file(folder / "model.safetensors")
    renamed = {re.sub(pattern, replacement, key): tensor for key, tensor in state.items()}
    safetensors.torch.save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    return len(renamed.keys() - state.keys())


def test_round_trip(model: EsmForMaskedLM, folder: Path) -> None:
    again = EsmForMaskedLM.from_pretrained(folder)
    assert same_weights(model, again)
    assert again.config == model.config
    assert not again.training
    assert again.name_or_path == str(folder)


def test_sharded_safetensors(model: EsmForMaskedLM, tmp_path: Path) -> None:
    state = reference_state(model)
    keys = sorted(state)
    shards = {"model-1.safetensors": keys[::2], "model-2.safetensors": keys[1::2]}
    for name, own in shards.items():
        safetensors.torch.save_file({key: state[key] for key in own}, tmp_path / name)
    places = {key: name for name, own in shards.items() for key in own}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    model.config.save_pretrained(tmp_path)
    assert same_weights(model, EsmForMaskedLM.from_pretrained(tmp_path))


@pytest.mark.parametrize("sharded", [False, True], ids=["single", "sharded"])
def test_legacy_bin(model: EsmForMaskedLM, tmp_path: Path, sharded: bool) -> None:
    state = reference_state(model)
    if sharded:
        keys = sorted(state)
        torch.save({key: state[key] for key in keys[:9]}, tmp_path / "one.bin")
        torch.save({key: state[key] for key in keys[9:]}, tmp_path / "two.bin")
        places = {key: "one.bin" if key in keys[:9] else "two.bin" for key in keys}
        index = tmp_path / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"weight_map": places}))
    else:
        torch.save(state, tmp_path / "pytorch_model.bin")
    model.config.save_pretrained(tmp_path)
    assert same_weights(model, EsmForMaskedLM.from_pretrained(tmp_path))


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_what_we_save(kind: str, tmp_path: Path) -> None:
    ours = EsmForMaskedLM(EsmConfig(**SMALL, **KINDS[kind], architectures=["EsmForMaskedLM"]))
    enliven(ours)
    ours.save_pretrained(tmp_path)
    theirs, info = transformers.EsmForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokens, mask = batch([5, 40], masked=0.1)
    found, expected = ours(tokens).logits, theirs(tokens, attention_mask=mask).logits
    assert max_abs(found, expected, mask) <= 1e-5


def test_bare_model_and_head_read_each_others_checkpoints(tmp_path: Path) -> None:
    peer = transformers_peer(torch.float32, **ESM1B)
    peer.save_pretrained(tmp_path / "head")
    peer.esm.save_pretrained(tmp_path / "bare")
    with_head = EsmModel.from_pretrained(tmp_path / "head", add_pooling_layer=False)
    bare = EsmModel.from_pretrained(tmp_path / "bare", add_pooling_layer=False)
    assert same_weights(with_head, bare)
    with pytest.raises(WeightsError, match=r"has no lm_head .*; load it with EsmModel"):
        EsmForMaskedLM.from_pretrained(tmp_path / "bare")


def test_missing_pooler_is_initialised_with_a_warning(folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"pooler\.dense\.weight.*random"):
        model, info = EsmModel.from_pretrained(folder, output_loading_info=True)
    assert sorted(info["missing_keys"]) == ["pooler.dense.bias", "pooler.dense.weight"]
    assert {key.split(".")[0] for key in info["unexpected_keys"]} == {"lm_head"}
    assert 0 < float(model.pooler.dense.weight.detach().std()) < 0.05
    assert not any(parameter.is_meta for parameter in model.parameters())
    tokens, _ = batch([5, 3])
    assert model(tokens).pooler_output.shape == (2, SMALL["hidden_size"])


def test_old_spellings_and_tables_are_read(model: EsmForMaskedLM, folder: Path) -> None:
    assert rename(folder, r"(LayerNorm|layer_norm\w*)\.weight$", r"\1.gamma") > 5
    assert rename(folder, r"(LayerNorm|layer_norm\w*)\.bias$", r"\1.beta") > 5
    extra = {
        "esm.embeddings.position_ids": torch.arange(4),
        "esm.embeddings.position_embeddings.weight": torch.ones(5, 48),
        "lm_head.decoder.weight": torch.ones(33, 48),
    }
    rewrite(folder, extra)
    assert same_weights(model, EsmForMaskedLM.from_pretrained(folder))


def test_untied_head(tmp_path: Path) -> None:
    model = EsmForMaskedLM(EsmConfig(**SMALL, **ESM2, tie_word_embeddings=False))
    enliven(model)
    model.save_pretrained(tmp_path)
    again = EsmForMaskedLM.from_pretrained(tmp_path)
    assert same_weights(model, again)
    assert not torch.equal(again.lm_head.decoder.weight, again.esm.get_input_embeddings().weight)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, torch.float32),
        ({"dtype": torch.bfloat16}, torch.bfloat16),
        ({"torch_dtype": "float64"}, torch.float64),
        ({"dtype": "auto"}, torch.float16),
    ],
    ids=str,
)
def test_dtype(
    model: EsmForMaskedLM, tmp_path: Path, asked: dict[str, object], expected: torch.dtype
) -> None:
    model.half().save_pretrained(tmp_path)
    loaded = EsmForMaskedLM.from_pretrained(tmp_path, **asked)
    assert {parameter.dtype for parameter in loaded.parameters()} == {expected}


def test_config_overrides_and_unknown_keys(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "of_the_future": [1]}))
    loaded = EsmForMaskedLM.from_pretrained(folder, token_dropout=False)
    assert loaded.config.of_the_future == [1]
    assert loaded.config.token_dropout is False
    assert loaded.config.to_dict()["of_the_future"] == [1]


QUERY = "esm.encoder.layer.1.attention.self.query.weight"
BAD = {
    "missing": ("esm.encoder.layer.1.output.dense.bias", None, "no 'esm.encoder.layer.1.output"),
    "unexpected": ("esm.encoder.layer.9.output.dense.bias", torch.ones(48), "layer.9.output"),
    "contacts": ("esm.contact_head.regression.bias", None, "no 'esm.contact_head.regression.bias'"),
    "own head": ("lm_head.extra", torch.ones(1), "'lm_head.extra' among its weights is not part"),
    "shape": ("lm_head.bias", torch.ones(7), r"shape \(7,\), the config requires \(33,\)"),
    "one of three": (
        QUERY,
        torch.ones(24, 48),
        r"query.*shape \(24, 48\), the config .*\(48, 48\)",
    ),
    "narrow": (QUERY, torch.ones(48, 1), r"query.*shape \(48, 1\)"),
    "scalar": ("lm_head.bias", torch.tensor(1.0), r"shape \(\)"),
    "whole numbers": ("lm_head.bias", torch.ones(33, dtype=torch.int8), "is torch.int8"),
}


@pytest.mark.parametrize("case", BAD)
def test_keys_that_do_not_fit(folder: Path, case: str) -> None:
    key, tensor, message = BAD[case]
    rewrite(folder, {key: tensor})
    with pytest.raises(WeightsError, match=message):
        EsmForMaskedLM.from_pretrained(folder)


def test_damaged_safetensors(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:5], b"", b"\0" * 100):
        (folder / "model.safetensors").write_bytes(damaged)
        with pytest.raises(WeightsError, match="not a whole safetensors file"):
            EsmForMaskedLM.from_pretrained(folder)


SIZES = {
    "8M": (6, 320, 20),
    "35M": (12, 480, 20),
    "150M": (30, 640, 20),
    "650M": (33, 1280, 20),
    "3B": (36, 2560, 40),
    "15B": (48, 5120, 40),
}
"""Layers, width and heads of the published ESM-2; ESM-1b and ESM-1v are as its 650M."""


@pytest.mark.parametrize(
    ("kind", "size"), [*(("ESM-2", size) for size in SIZES), ("ESM-1b", "650M"), ("ESM-1v", "650M")]
)
def test_keys_and_shapes_of_every_published_model(kind: str, size: str) -> None:
    layers, width, heads = SIZES[size]
    settings = {**SMALL, **KINDS[kind], "hidden_size": width, "intermediate_size": 4 * width}
    settings |= {"num_hidden_layers": layers, "num_attention_heads": heads}
    with torch.device("meta"):
        ours = reference_state(EsmForMaskedLM(EsmConfig(**settings)))
        theirs = transformers.EsmForMaskedLM(transformers.EsmConfig(**settings)).state_dict()
    apart = re.compile(
        r".*inv_freq|esm\.embeddings\.position_embeddings\.weight|lm_head\.decoder\..*"
    )
    shapes = [
        {key: tuple(tensor.shape) for key, tensor in state.items() if not apart.fullmatch(key)}
        for state in (ours, theirs)
    ]
    assert len(shapes[0]) > 16 * layers
    assert shapes[0] == shapes[1]


class Pickled:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("1 / 0",)


def test_bin_files_that_are_refused(model: EsmForMaskedLM, tmp_path: Path) -> None:
    model.config.save_pretrained(tmp_path)
    path = tmp_path / "pytorch_model.bin"
    torch.save({"esm": Pickled()}, path)
    with pytest.raises(WeightsError, match="holds pickled code"):
        EsmForMaskedLM.from_pretrained(tmp_path)
    torch.save([1, 2], path)
    with pytest.raises(WeightsError, match="more than named tensors"):
        EsmForMaskedLM.from_pretrained(tmp_path)
    torch.save(reference_state(model), path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(WeightsError, match="not a whole weight file"):
        EsmForMaskedLM.from_pretrained(tmp_path)


def copy_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone()


def test_a_key_in_two_shards(model: EsmForMaskedLM, folder: Path) -> None:
    """Files that contradict each other: from two saves, for example, or edited by hand."""
    extra = {"lm_head.bias": copy_of(model.lm_head.bias) + 1}
    safetensors.torch.save_file(extra, folder / "extra.safetensors", {"format": "pt"})
    (folder / "model.safetensors").rename(folder / "first.safetensors")
    places = {"lm_head.bias": "extra.safetensors", "all the rest": "first.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(WeightsError, match=r"'lm_head\.bias' is also in extra\.safetensors"):
        EsmForMaskedLM.from_pretrained(folder)


def test_a_key_in_two_spellings(model: EsmForMaskedLM, folder: Path) -> None:
    rewrite(folder, {"lm_head.layer_norm.gamma": copy_of(model.lm_head.layer_norm.weight)})
    with pytest.raises(WeightsError, match=r"also in model\.safetensors as 'lm_head\.layer_norm\."):
        EsmForMaskedLM.from_pretrained(folder)


CONFIGS = {
    "not json": ("{", "not a readable config"),
    "a list": ("[]", "should hold a JSON object"),
    "another family": ('{"model_type": "bert"}', "model_type is 'bert', not 'esm'"),
    "no vocabulary": ('{"model_type": "esm"}', "vocab_size is not set"),
    "heads": ('{"vocab_size": 33, "pad_token_id": 1, "hidden_size": 50}', "not a multiple"),
    "positions": (
        '{"vocab_size": 33, "pad_token_id": 1, "position_embedding_type": "relative"}',
        "is not one of absolute, rotary",
    ),
    "no heads": (
        '{"vocab_size": 33, "pad_token_id": 1, "num_attention_heads": 0}',
        "num_attention_heads is 0; it should be a whole number",
    ),
    "text for a number": (
        '{"vocab_size": 33, "pad_token_id": 1, "hidden_size": "48"}',
        "hidden_size is '48'",
    ),
    "epsilon": ('{"vocab_size": 33, "pad_token_id": 1, "layer_norm_eps": null}', "layer_norm_eps"),
    "padding": ('{"vocab_size": 33, "pad_token_id": 99}', "pad_token_id is 99, not the id"),
    "a key of Python": ('{"self": 1}', "an invalid key"),
    "cross attention": (
        '{"vocab_size": 33, "pad_token_id": 1, "add_cross_attention": true}',
        "set is_decoder as well",
    ),
}


def test_files_of_an_old_pytorch(model: EsmForMaskedLM, tmp_path: Path) -> None:
    model.config.save_pretrained(tmp_path)
    path = tmp_path / "pytorch_model.bin"
    torch.save(reference_state(model), path, _use_new_zipfile_serialization=False)
    assert same_weights(model, EsmForMaskedLM.from_pretrained(tmp_path))


def test_arguments_that_cannot_be(folder: Path) -> None:
    with pytest.raises(InputError, match="'local_file_only'; did you mean 'local_files_only'"):
        EsmForMaskedLM.from_pretrained(folder, local_file_only=True)
    for dtype in (torch.int8, "int8", "float33"):
        with pytest.raises(WeightsError, match="is not known; use float32"):
            EsmForMaskedLM.from_pretrained(folder, dtype=dtype)


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_that_are_refused(folder: Path, case: str) -> None:
    text, message = CONFIGS[case]
    (folder / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=message):
        EsmForMaskedLM.from_pretrained(folder)
