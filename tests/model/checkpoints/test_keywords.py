"""What scripts use apart from `forward`: keywords, files of settings, outputs as dicts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from esm_pipeline import (
    EsmConfig,
    EsmForMaskedLM,
    EsmForSequenceClassification,
    EsmForTokenClassification,
    EsmModel,
    EsmTokenizer,
)
from esm_pipeline.errors import InputError
from tests.model.test_drop_in import twins
from tests.oracles.peers import ESM2, SMALL, batch


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _, ours = twins("EsmForMaskedLM")
    ours.save_pretrained(tmp_path)
    EsmTokenizer.from_pretrained("demo").save_pretrained(tmp_path)
    return tmp_path


def test_keywords_that_say_how(folder: Path) -> None:
    plain = EsmForMaskedLM.from_pretrained(folder)
    for more in (
        {"low_cpu_mem_usage": True, "use_safetensors": True, "attn_implementation": "eager"},
        {"device_map": None, "force_download": False, "subfolder": "", "trust_remote_code": False},
        {"use_auth_token": None, "_fast_init": False, "variant": None, "load_in_8bit": False},
    ):
        model = EsmForMaskedLM.from_pretrained(pretrained_model_name_or_path=folder, **more)
        assert vars(model.config).keys() == vars(plain.config).keys()
        EsmConfig.from_pretrained(pretrained_model_name_or_path=folder, **more)
        EsmTokenizer.from_pretrained(pretrained_model_name_or_path=folder, **more)


@pytest.mark.parametrize(
    "more",
    [{"device_map": "auto"}, {"load_in_8bit": True}, {"from_tf": True}, {"subfolder": "sub"},
     {"variant": "fp16"}, {"force_download": True}],
    ids=str,
)  # fmt: skip
def test_keywords_that_cannot_be_followed(folder: Path, more: dict[str, Any]) -> None:
    (name,) = more
    for cls in (EsmForMaskedLM, EsmConfig, EsmTokenizer):
        with pytest.raises(InputError, match=f"from_pretrained: '{name}' is not here; "):
            cls.from_pretrained(folder, **more)
    with pytest.raises(InputError, match="save_pretrained: 'push_to_hub' is not here"):
        EsmForMaskedLM.from_pretrained(folder).save_pretrained(folder, push_to_hub=True)


def test_unknown_keywords(folder: Path) -> None:
    with pytest.raises(InputError, match="no argument and no setting 'foo_bar'; set it on the"):
        EsmForMaskedLM.from_pretrained(folder, foo_bar=1)
    with pytest.raises(InputError, match="'tokn_dropout'; did you mean 'token_dropout'"):
        EsmConfig.from_pretrained(folder, tokn_dropout=False)
    config, unused = EsmConfig.from_pretrained(
        folder, return_unused_kwargs=True, foo=1, token_dropout=False
    )
    assert (config.token_dropout, unused) == (False, {"foo": 1})
    with pytest.raises(InputError, match="give a folder, a hub id, or 'demo'"):
        EsmModel.from_pretrained()


def test_configs_of_files(folder: Path, tmp_path: Path) -> None:
    file = folder / "config.json"
    config = EsmConfig.from_pretrained(folder)
    for same in (EsmConfig.from_pretrained(str(file)), EsmConfig.from_json_file(file)):
        assert same == config
    values, left = EsmConfig.get_config_dict(folder, mine=1)
    assert EsmConfig.from_dict(values) == config
    assert left == {"mine": 1}
    assert EsmForMaskedLM.from_pretrained(folder, config=str(file)).config == config
    config.update({"hidden_dropout_prob": 0.5, "mine": 1})
    config.to_json_file(tmp_path / "other.json")
    again = EsmConfig.from_json_file(tmp_path / "other.json")
    assert (again.hidden_dropout_prob, again.mine) == (0.5, 1)
    assert "mine" in config.to_diff_dict()
    assert "use_cache" not in config.to_diff_dict()
    assert EsmConfig().architectures is EsmConfig()._commit_hash is None
    assert EsmConfig(return_dict=False).use_return_dict is False


def test_a_file_is_no_folder(folder: Path) -> None:
    file = folder / "config.json"
    model = EsmForMaskedLM.from_pretrained(folder)
    for save in (model, model.config, EsmTokenizer.from_pretrained("demo")):
        with pytest.raises(InputError, match=r"config\.json: not a folder; give one to write"):
            save.save_pretrained(file)


def test_counts_and_sizes() -> None:
    peer, ours = twins("EsmForMaskedLM", "ESM-1b")
    assert ours.num_parameters() == peer.num_parameters()
    tables = (SMALL["vocab_size"] + ours.config.max_position_embeddings) * 48
    assert ours.num_parameters(exclude_embeddings=True) == ours.num_parameters() - tables
    ours.lm_head.requires_grad_(False)
    assert ours.num_parameters(only_trainable=True) < ours.num_parameters()
    assert ours.get_memory_footprint() == 8 * ours.num_parameters()
    assert (ours.main_input_name, ours.can_generate()) == ("input_ids", False)


def test_outputs_as_mappings() -> None:
    _, ours = twins("EsmForMaskedLM")
    out = ours(batch([5])[0])
    assert out.get("logits") is out.logits
    assert out.get("loss") is None
    assert out.get("loss", 7) == 7
    out["logits"] = out.logits * 2
    assert torch.equal(out[0], out.logits)
    out["loss"] = out.logits.sum()
    assert list(out) == ["loss", "logits"]
    out["input_ids"] = 1
    assert list(out.to_tuple()) == [out.loss, out.logits, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention_mask": [[1, 1, 1]]}, "attention_mask should be a tensor"),
        ({"input_ids": torch.zeros(0, 5, dtype=torch.long)}, "input_ids have shape .0, 5.; give"),
        ({"input_ids": torch.zeros(2, 0, dtype=torch.long)}, "input_ids have shape .2, 0.; give"),
        ({"labels": [1.0]}, "labels are .*; give"),
    ],
)
def test_arguments_of_other_types(arguments: dict[str, Any], message: str) -> None:
    given = {"input_ids": torch.tensor([[0, 5, 2]]), **arguments}
    for cls in (EsmForSequenceClassification, EsmForTokenClassification):
        model = cls(EsmConfig(**SMALL, **ESM2))
        with pytest.raises(InputError, match=message):
            model(**given)


def test_outputs_are_dicts_that_tools_take_apart() -> None:
    _, ours = twins("EsmForMaskedLM")
    tokens, _ = batch([5])
    out = ours(tokens, labels=tokens, output_hidden_states=True)
    assert isinstance(out, dict)
    again = type(out)(dict(out.items()))
    assert list(again) == list(out) == ["loss", "logits", "hidden_states"]
    assert again.logits is out.logits
    leaves = torch.utils._pytree.tree_leaves(out)
    assert len(leaves) == 2 + len(out.hidden_states)
    halved = torch.utils._pytree.tree_map(lambda x: x / 2, out)
    assert type(halved) is type(out)
    assert torch.equal(halved.logits, out.logits / 2)
    with torch.no_grad():
        kept = copy.deepcopy(ours(tokens))
    assert torch.equal(kept.logits, out.logits)
    assert list({**out}) == list(out)
    out.loss = None
    assert list(out) == ["logits", "hidden_states"]
