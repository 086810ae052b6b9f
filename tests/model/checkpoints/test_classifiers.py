"""Labels in the config, and classifiers in checkpoints: new, of another size, in and out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import esm_pipeline
from esm_pipeline import (
    EsmConfig,
    EsmForMaskedLM,
    EsmForSequenceClassification,
    EsmForTokenClassification,
    EsmModel,
)
from esm_pipeline.errors import InputError, WeightsError
from tests.oracles.classifiers import HEADS, twins_of
from tests.oracles.peers import ESM1B, ESM2, KINDS, SMALL, batch, enliven, max_abs

CLASSIFIERS = (EsmForSequenceClassification, EsmForTokenClassification)
NAMES = {0: "helix", 1: "strand", 2: "coil"}


@pytest.fixture
def trunk(tmp_path: Path) -> Path:
    """A checkpoint of a masked language model."""
    model = EsmForMaskedLM(EsmConfig(**SMALL, **ESM2))
    enliven(model)
    model.save_pretrained(tmp_path / "trunk")
    return tmp_path / "trunk"


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """A checkpoint of a sequence classifier with three labels."""
    config = EsmConfig(**SMALL, **ESM2, id2label=NAMES, problem_type="single_label_classification")
    model = EsmForSequenceClassification(config)
    enliven(model)
    model.save_pretrained(tmp_path / "classifier")
    return tmp_path / "classifier"


# Labels in the config.

LABELS: dict[str, dict[str, Any]] = {
    "two by default": {},
    "a number": {"num_labels": 5},
    "names": {"id2label": NAMES, "label2id": {"helix": 0, "strand": 1, "coil": 2}},
    "names as JSON has them": {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}},
    "names and number": {"id2label": NAMES, "label2id": {}, "num_labels": 3},
    "problem": {"num_labels": 1, "problem_type": "regression"},
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_as_the_reference_has_them(case: str, tmp_path: Path) -> None:
    theirs = transformers.EsmConfig(**LABELS[case])
    theirs.save_pretrained(tmp_path / "theirs")
    ours = EsmConfig(**LABELS[case])
    ours.save_pretrained(tmp_path / "ours")
    configs = [ours, EsmConfig.from_pretrained(tmp_path / "theirs")]
    configs += [EsmConfig.from_pretrained(tmp_path / "ours")]
    configs += [transformers.EsmConfig.from_pretrained(tmp_path / "ours")]
    for config in configs:
        for name in ("id2label", "label2id", "num_labels", "problem_type"):
            assert getattr(config, name) == getattr(theirs, name), name
    text = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert ("id2label" in text) == (ours.num_labels != 2 or case == "names as JSON has them")


def test_names_number_each_other() -> None:
    config = EsmConfig(id2label=NAMES)
    assert config.label2id == {"helix": 0, "strand": 1, "coil": 2}
    config.num_labels = 3
    assert config.id2label == NAMES, "as many as there are: the names stay"
    config.num_labels = 2
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert config.label2id == {"LABEL_0": 0, "LABEL_1": 1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"id2label": ["a", "b"]}, "id2label should map numbers to names"),
        ({"id2label": {"one": "a"}}, "id2label should map numbers to names"),
        ({"id2label": NAMES, "label2id": ["a"]}, "label2id names to numbers"),
        ({"num_labels": "3"}, "num_labels is '3'; it should be a whole number"),
        ({"num_labels": 2, "id2label": NAMES}, "num_labels is 2, but id2label names 3"),
    ],
)
def test_labels_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        EsmConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_labels": 0}, "num_labels is 0; a classifier needs at least one"),
        ({"problem_type": "ranking"}, "problem_type 'ranking' is not one of regression, single_"),
    ],
)
def test_models_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        EsmForTokenClassification(EsmConfig(**SMALL, **settings))


def test_labels_chosen_on_loading(classifier: Path) -> None:
    kept = EsmConfig.from_pretrained(classifier)
    assert kept.id2label == NAMES
    assert kept.num_labels == 3
    assert EsmConfig.from_pretrained(classifier, num_labels=3).id2label == NAMES
    assert EsmConfig.from_pretrained(classifier, num_labels=4).id2label[3] == "LABEL_3"
    named = EsmConfig.from_pretrained(classifier, id2label={0: "no", 1: "yes"})
    assert named.label2id == {"no": 0, "yes": 1}
    assert EsmConfig.from_pretrained(classifier, problem_type="regression").num_labels == 3
    with pytest.raises(WeightsError, match="num_labels is 4, but id2label names 2"):
        EsmConfig.from_pretrained(classifier, num_labels=4, id2label={0: "no", 1: "yes"})


# Fresh classifiers.


@pytest.mark.parametrize("cls", CLASSIFIERS)
def test_a_trunk_gets_a_fresh_classifier_with_one_warning(cls: type, trunk: Path) -> None:
    with pytest.warns(UserWarning, match="initialised at random") as warned:
        model, info = cls.from_pretrained(trunk, num_labels=3, output_loading_info=True)
    own = sorted(name for name, _ in model.named_parameters() if name.startswith("classifier."))
    assert len(warned) == 1
    assert all(name in str(warned[0].message) for name in own)
    assert sorted(info["missing_keys"]) == own
    assert {key.split(".")[0] for key in info["unexpected_keys"]} == {"lm_head"}
    assert info["mismatched_keys"] == []
    assert model.num_labels == model.config.num_labels == 3
    assert not any(parameter.is_meta for parameter in model.parameters())
    with_head = EsmForMaskedLM.from_pretrained(trunk)
    for name, tensor in model.esm.state_dict().items():
        assert torch.equal(tensor, with_head.esm.state_dict()[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_fresh_classifiers_have_the_precision_asked_for(trunk: Path, dtype: torch.dtype) -> None:
    with pytest.warns(UserWarning, match="initialised"):
        model = EsmForTokenClassification.from_pretrained(trunk, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_the_same_seed_gives_the_same_fresh_classifier(trunk: Path) -> None:
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        with pytest.warns(UserWarning, match="initialised"):
            model = EsmForSequenceClassification.from_pretrained(trunk)
        weights.append(model.classifier.out_proj.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    torch.manual_seed(1)  # in the order of the modules, whatever the hashes of their names
    torch.empty(48, 48).normal_(std=0.02)  # classifier.dense
    assert torch.equal(weights[0], torch.empty(2, 48).normal_(std=0.02))


# Another number of labels than the checkpoint's.


def test_classifier_of_another_size(classifier: Path) -> None:
    message = r"'classifier.out_proj.weight' .* shape \(3, 48\), the config .* \(2, 48\); leave num"
    with pytest.raises(WeightsError, match=message):
        EsmForSequenceClassification.from_pretrained(classifier, num_labels=2)
    options = {"num_labels": 2, "ignore_mismatched_sizes": True, "output_loading_info": True}
    with pytest.warns(UserWarning, match=r"out_proj\.bias' has shape \(3,\), not \(2,\)") as warned:
        model, info = EsmForSequenceClassification.from_pretrained(classifier, **options)
    assert len(warned) == 1
    assert sorted(info["mismatched_keys"]) == [
        ("classifier.out_proj.bias", (3,), (2,)),
        ("classifier.out_proj.weight", (3, 48), (2, 48)),
    ]
    whole = EsmForSequenceClassification.from_pretrained(classifier)
    assert torch.equal(model.classifier.dense.weight, whole.classifier.dense.weight)
    assert 0 < float(model.classifier.out_proj.weight.detach().std()) < 0.05
    assert not model.classifier.out_proj.bias.any()
    tokens, _ = batch([5, 3])
    assert model(tokens).logits.shape == (2, 2)


def test_other_shapes_are_ignored_where_told(trunk: Path) -> None:
    options = {"vocab_size": 40, "ignore_mismatched_sizes": True}
    with pytest.warns(UserWarning, match="random") as warned:
        model = EsmForMaskedLM.from_pretrained(trunk, **options)
    message = str(warned[0].message)
    assert "'esm.embeddings.word_embeddings.weight' has shape (33, 48), not (40, 48)" in message
    assert "'lm_head.bias' has shape (33,), not (40,)" in message
    assert not model.lm_head.bias.any()
    assert model.lm_head.decoder.weight is model.get_input_embeddings().weight
    assert not model.get_input_embeddings().weight[1].any(), "padding"
    tokens, _ = batch([5, 3])
    assert model(tokens).logits.shape == (2, 7, 40)
    half = {"hidden_size": 24, "num_attention_heads": 2, "ignore_mismatched_sizes": True}
    with pytest.warns(UserWarning, match="random") as warned:
        narrow = EsmModel.from_pretrained(trunk, **half)
    assert "attention.self.key.weight" in str(warned[0].message)
    assert narrow(tokens).last_hidden_state.isfinite().all()
    assert torch.equal(narrow.encoder.layer[0].attention.LayerNorm.weight, torch.ones(24))


def test_a_classifier_of_another_class(classifier: Path) -> None:
    message = r"'classifier\.\w+\.\w+' .* not part of EsmForTokenC.*EsmForSequenceClassification"
    with pytest.raises(WeightsError, match=message):
        EsmForTokenClassification.from_pretrained(classifier)
    with pytest.raises(WeightsError, match=r"'lm_head\.bias'.*EsmForSequenceClassification"):
        EsmForMaskedLM.from_pretrained(classifier)
    bare = EsmModel.from_pretrained(classifier, add_pooling_layer=False)
    assert bare.num_parameters() > 0


def test_arguments_that_cannot_be(trunk: Path) -> None:
    near = "'ignore_mismatched_size'; did you mean 'ignore_mismatched_sizes'"
    with pytest.raises(InputError, match=near):
        EsmModel.from_pretrained(trunk, ignore_mismatched_size=True)
    config = EsmConfig.from_pretrained(trunk)
    with pytest.raises(InputError, match="with a config, leave out num_labels"):
        EsmForTokenClassification.from_pretrained(trunk, config=config, num_labels=3)


# Both ways beside transformers.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HEADS)
def test_transformers_loads_what_we_save(name: str, kind: str, tmp_path: Path) -> None:
    config = EsmConfig(**SMALL, **KINDS[kind], id2label=NAMES)
    ours = getattr(esm_pipeline, name)(config)
    enliven(ours)
    ours.save_pretrained(tmp_path)
    loaded, info = getattr(transformers, name).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert loaded.config.id2label == NAMES
    assert loaded.config.architectures == [name]
    tokens, mask = batch([5, 40], masked=0.1)
    found, expected = ours(tokens).logits, loaded(tokens, attention_mask=mask).logits
    assert max_abs(found, expected, mask if found.ndim == 3 else None) <= 1e-5


@pytest.mark.parametrize("settings", [ESM2, ESM1B], ids=["ESM-2", "ESM-1b"])
@pytest.mark.parametrize("name", HEADS)
def test_we_load_what_transformers_saves(name: str, settings: dict, tmp_path: Path) -> None:
    peer, _ = twins_of(name, problem_type="multi_label_classification", **settings)
    peer.save_pretrained(tmp_path)
    loaded, info = getattr(esm_pipeline, name).from_pretrained(
        tmp_path, dtype="auto", output_loading_info=True
    )
    assert not any(info.values())
    assert loaded.config.problem_type == "multi_label_classification"
    assert loaded.dtype == torch.float64
    tokens, mask = batch([5, 40], masked=0.1)
    found, expected = loaded(tokens).logits, peer(tokens, attention_mask=mask).logits
    assert max_abs(found, expected, mask if found.ndim == 3 else None) <= 1e-5


def test_the_config_saved_says_what_was_saved(trunk: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="initialised"):
        model = EsmForTokenClassification.from_pretrained(trunk)
    model.bfloat16().save_pretrained(tmp_path / "half")
    text = json.loads((tmp_path / "half" / "config.json").read_text())
    assert text["architectures"] == ["EsmForTokenClassification"]
    assert text["torch_dtype"] == "bfloat16"
    again = EsmForTokenClassification.from_pretrained(tmp_path / "half", dtype="auto")
    assert again.dtype == torch.bfloat16
