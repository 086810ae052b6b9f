"""The Auto classes, for scripts that import them on the line with the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

import esm_pipeline
from esm_pipeline import EsmConfig, EsmModel, EsmTokenizer, demo_model
from esm_pipeline.errors import InputError, WeightsError
from tests.oracles.peers import ESM2, SMALL

MODELS = {
    "AutoModel": "EsmModel",
    "AutoModelForMaskedLM": "EsmForMaskedLM",
    "AutoModelForSequenceClassification": "EsmForSequenceClassification",
    "AutoModelForTokenClassification": "EsmForTokenClassification",
}


@pytest.mark.filterwarnings("ignore:.*initialised at random")
@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_that_of_the_reference(name: str) -> None:
    auto = getattr(esm_pipeline, name)
    model = auto.from_pretrained("demo", dtype=torch.bfloat16)
    peer = getattr(transformers, name).from_pretrained(str(demo_model()))
    assert type(model).__name__ == type(peer).__name__ == MODELS[name]
    assert model.dtype == torch.bfloat16
    fresh = auto.from_config(EsmConfig(**SMALL, **ESM2), torch_dtype="float16")
    assert type(fresh) is type(model)
    assert fresh.dtype == torch.float16
    assert auto.from_config(EsmConfig(**SMALL, **ESM2), attn_implementation="eager").training


def test_positional_arguments_go_to_the_class() -> None:
    auto = esm_pipeline.AutoModel
    assert auto.from_pretrained("demo", False).pooler is None
    assert EsmModel.from_pretrained("demo", False).pooler is None
    assert auto.from_config(EsmConfig(**SMALL), add_pooling_layer=False).pooler is None


def test_tokenizer_and_config() -> None:
    tokenizer = esm_pipeline.AutoTokenizer.from_pretrained("demo", use_fast=False)
    assert type(tokenizer) is EsmTokenizer
    config = esm_pipeline.AutoConfig.from_pretrained("demo", num_labels=3)
    assert type(config) is EsmConfig
    assert config.num_labels == 3
    assert esm_pipeline.AutoConfig.for_model("esm", hidden_size=8).hidden_size == 8
    with pytest.raises(InputError, match="no models of type 'bert', only 'esm'"):
        esm_pipeline.AutoConfig.for_model("bert")
    model = esm_pipeline.AutoModelForMaskedLM.from_pretrained("demo", config=config)
    assert model.config.num_labels == 3


def test_what_is_refused(tmp_path: Path) -> None:
    EsmModel.from_pretrained("demo", False).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(WeightsError, match="model_type is 'bert', not 'esm'"):
        esm_pipeline.AutoModel.from_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"AutoModel: make it by AutoModel\.from_pretrained"):
        esm_pipeline.AutoModel()
    with pytest.raises(InputError, match="AutoModel: give an EsmConfig, not a BertConfig"):
        esm_pipeline.AutoModel.from_config(transformers.BertConfig())
