"""The published checkpoints: their names, what mistyped ones mean, and their sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from esm_pipeline import EsmConfig, EsmForMaskedLM, EsmForProteinFolding
from esm_pipeline.known_models import (
    FOLDING_MODEL,
    KNOWN_MODELS,
    OWN_NAMES,
    KnownModel,
    hub_name,
    mistyped,
    similar_model,
)
from esm_pipeline.model.folding.demo import DEMO_FOLD

SHORT = "esm2_t12_35M_UR50D"
FULL = f"facebook/{SHORT}"


def settings_of(model: KnownModel) -> dict[str, Any]:
    """The settings that follow from its name and row."""
    rotary = model.name.split("/")[1].startswith(("esm2", "esmfold"))
    return {
        "vocab_size": 33,
        "mask_token_id": 32,
        "pad_token_id": 1,
        "num_hidden_layers": model.layers,
        "hidden_size": model.width,
        "num_attention_heads": 40 if model.width > 1280 else 20,
        "intermediate_size": 4 * model.width,
        "max_position_embeddings": 1026,
        "position_embedding_type": "rotary" if rotary else "absolute",
        "emb_layer_norm_before": "esm1b" in model.name,
        "is_folding_model": model.kind == FOLDING_MODEL,
        "esmfold_config": {} if model.kind == FOLDING_MODEL else None,
    }


@pytest.mark.parametrize("model", KNOWN_MODELS[1:], ids=lambda model: model.fair_esm_name)
def test_parameters_are_those_of_the_model(model):
    config = EsmConfig(**settings_of(model))
    kind = EsmForProteinFolding if model.kind == FOLDING_MODEL else EsmForMaskedLM
    with torch.device("meta"):
        built = kind(config)
    assert model.parameters == sum(one.numel() for one in built.parameters())
    assert model.longest == config.max_residues
    assert model.float32_gb == pytest.approx(model.parameters * 4e-9)


def test_the_packaged_model_is_as_listed():
    demo = EsmForMaskedLM.from_pretrained("demo")
    listed = KNOWN_MODELS[0]
    assert listed.parameters == sum(one.numel() for one in demo.parameters())
    shape = (demo.config.num_hidden_layers, demo.config.hidden_size, demo.config.max_residues)
    assert (listed.layers, listed.width, listed.longest) == shape
    assert (listed.name, DEMO_FOLD) == OWN_NAMES


def test_all_published_models_are_known():
    names = [model.fair_esm_name for model in KNOWN_MODELS[1:]]
    sizes = ("t6_8M", "t12_35M", "t30_150M", "t33_650M", "t36_3B", "t48_15B")
    expected = [f"esm2_{size}_UR50D" for size in sizes] + ["esm1b_t33_650M_UR50S"]
    expected += [f"esm1v_t33_650M_UR90S_{seed}" for seed in range(1, 6)] + ["esmfold_v1"]
    assert names == expected
    assert [hub_name(name) for name in names] == [f"facebook/{name}" for name in names]


def test_a_file_or_folder_of_that_name_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_name(SHORT) == FULL
    (tmp_path / SHORT).mkdir()
    assert hub_name(SHORT) == SHORT
    assert [hub_name(name) for name in (FULL, "demo", "lab/x")] == [FULL, "demo", "lab/x"]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("esm2_t12_35M_UR50", FULL),
        ("esm2_t33_650M", "facebook/esm2_t33_650M_UR50D"),
        ("esm2_650M", "facebook/esm2_t33_650M_UR50D"),
        ("ESM2-t12-35M-UR50D", FULL),
        (f"{SHORT}.pt", FULL),
        ("esm1v_t33_650M_UR90S", "facebook/esm1v_t33_650M_UR90S_1"),
        ("esmfold_v0", "facebook/esmfold_v1"),
        ("dem", "demo"),
        ("facebook/esm2_t12_35M_UR50", FULL),
        ("facebok/esm2_t12_35M_UR50D", FULL),
        ("esmc_300m", None),
        ("bert-base-uncased", None),
        ("lab/esm2_tiny", None),
        ("", None),
        *((name, None) for name in (SHORT, FULL, "demo", "demo-fold")),
    ],
)
def test_a_mistyped_name_means_the_nearest(given, meant):
    assert similar_model(given) == meant


@pytest.mark.parametrize("name", [SHORT, FULL, *OWN_NAMES, "lab/esm2", "none", "bert-base"])
def test_what_may_be_a_hub_id_is_not_mistyped(name):
    assert mistyped(name) == ""


def test_what_cannot_be_one_is_told_with_a_suggestion():
    assert mistyped("esm2_t12_35M").endswith(
        f"no known model; did you mean {FULL}? (see esm-pipeline models)"
    )
    assert "give a hub id, owner/model" in mistyped("esmc_300m")
