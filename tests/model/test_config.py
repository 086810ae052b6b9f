"""The config: the reference's defaults, strict reading, nothing lost on the way through a file."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import transformers

from esm_pipeline import EsmConfig
from esm_pipeline.errors import WeightsError
from tests.oracles.peers import ESM1B, ESM2, SMALL

DEFAULTS = {
    "vocab_size": None,
    "mask_token_id": None,
    "pad_token_id": None,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 1026,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "position_embedding_type": "absolute",
    "use_cache": True,
    "emb_layer_norm_before": None,
    "token_dropout": False,
    "is_folding_model": False,
    "esmfold_config": None,
    "vocab_list": None,
}
"""Arguments of EsmConfig in transformers 4.37.2, in their order."""


def test_arguments_and_defaults_are_the_reference_s() -> None:
    parameters = list(inspect.signature(EsmConfig.__init__).parameters.values())[1:-1]
    assert [(one.name, one.default) for one in parameters] == list(DEFAULTS.items())


def test_round_trip_keeps_unknown_keys(tmp_path: Path) -> None:
    config = EsmConfig(**SMALL, **ESM2, id2label={"0": "no"}, of_the_future={"a": [1]})
    config.save_pretrained(tmp_path)
    again = EsmConfig.from_pretrained(tmp_path)
    assert again == config
    assert again.of_the_future == {"a": [1]}
    assert again != EsmConfig.from_pretrained(tmp_path, hidden_size=96)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "esm"


def test_transformers_reads_ours_and_we_read_theirs(tmp_path: Path) -> None:
    EsmConfig(**SMALL, **ESM1B).save_pretrained(tmp_path / "ours")
    theirs = transformers.EsmConfig.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    again = EsmConfig.from_pretrained(tmp_path / "theirs")
    for name, value in {**SMALL, **ESM1B}.items():
        assert getattr(theirs, name) == getattr(again, name) == value


@pytest.mark.parametrize(("settings", "residues"), [(ESM1B, 1022), (ESM2, None)])
def test_most_residues(settings: dict[str, object], residues: int | None) -> None:
    assert EsmConfig(**SMALL, **settings).max_residues == residues


def test_changing_a_copy_leaves_the_original() -> None:
    config = EsmConfig(**SMALL, id2label={0: "no"})
    config.to_dict()["id2label"][0] = "yes"
    assert config.id2label == {0: "no"}


def test_unreadable_config_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(WeightsError, match=r"config\.json: not a readable config"):
        EsmConfig.from_pretrained(tmp_path)
