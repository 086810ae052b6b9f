"""The guides of the reference for language models, sequences and tokens, with its `Trainer`.

From the tokenizer to `Trainer.train()` and back, ours against theirs: the same weights, batches and
steps, so that losses and trained weights are equal. What the guides need said is in the model's
README: a collator has to be given, since a `Trainer` pads by itself for its own tokenizers only.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

import esm_pipeline
from esm_pipeline import EsmConfig, EsmTokenizer
from esm_pipeline.errors import WeightsError
from tests.oracles.peers import ESM2, SMALL, enliven, max_abs

PROTEINS = ["MKTAYIAKQR", "GGW", "MSILVTRPSPAGEEL", "ACDEFGHIKL", "MKV", "WYVKLIR"]
STEPS = 4
TOLERANCE = 1e-5
"""Of weights in float32, after the steps; they move by 1e-2 and more."""

Guide = tuple[str, list[dict[str, Any]], Callable[[EsmTokenizer], Any]]


def encoded(tokenizer: EsmTokenizer) -> list[dict[str, Any]]:
    return [dict(tokenizer(text, truncation=True, max_length=16)) for text in PROTEINS]


def guide(task: str, tokenizer: EsmTokenizer) -> Guide:
    """The class, the data and the collator of one of the guides."""
    data = encoded(tokenizer)
    if task == "language model":
        return (
            "EsmForMaskedLM",
            data,
            lambda t: DataCollatorForLanguageModeling(t, mlm_probability=0.3, seed=0),
        )
    if task == "sequences":
        return (
            "EsmForSequenceClassification",
            [{**one, "label": len(one["input_ids"]) % 2} for one in data],
            DataCollatorWithPadding,
        )
    labels = [[-100, *(int(i in "AVLI") for i in text[:14]), -100] for text in PROTEINS]
    return (
        "EsmForTokenClassification",
        [{**one, "labels": own} for one, own in zip(data, labels, strict=True)],
        DataCollatorForTokenClassification,
    )


TASKS = ("language model", "sequences", "tokens")


def models(name: str) -> list[nn.Module]:
    """Theirs and ours with the same weights, without dropout."""
    settings = {**SMALL, **ESM2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    peer = getattr(transformers, name)(
        transformers.EsmConfig(**settings, attn_implementation="eager")
    )
    enliven(peer)
    ours = getattr(esm_pipeline, name)(EsmConfig(**settings))
    ours.load_state_dict(peer.state_dict())
    return [peer, ours]


def arguments(folder: Path, **more: Any) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=3,
        learning_rate=more.pop("learning_rate", 1e-2),
        optim="sgd",  # Adam makes steps of equal size of gradients near zero, whatever their sign
        save_strategy=more.pop("save_strategy", "no"),
        report_to=[],
        logging_steps=1,
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
        **more,
    )


def trained(model: nn.Module, task: str, folder: Path, **more: Any) -> Trainer:
    tokenizer = EsmTokenizer.from_pretrained("demo")
    _, data, collate = guide(task, tokenizer)
    trainer = Trainer(
        model=model,
        args=arguments(folder, **more),
        train_dataset=data,
        eval_dataset=data,
        data_collator=collate(tokenizer),
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("task", TASKS)
def test_a_guide_trains_as_the_reference(task: str, tmp_path: Path) -> None:
    """Losses are equal to 1e-4 of what the log rounds to, weights to 2e-5."""
    name = guide(task, EsmTokenizer.standard())[0]
    peer, ours = models(name)
    before = {key: value.clone() for key, value in ours.named_parameters()}
    runs = [trained(model, task, tmp_path / str(n)) for n, model in enumerate((peer, ours))]
    assert len(losses(runs[1])) == STEPS
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), abs=2e-4)
    theirs = dict(peer.named_parameters())
    moved = [max_abs(value, before[key]) for key, value in ours.named_parameters()]
    assert max(moved) > 1e-3
    for key, value in ours.named_parameters():
        if "contact_head" not in key:
            assert max_abs(value, theirs[key]) <= TOLERANCE, key
    assert runs[1].evaluate()["eval_loss"] == pytest.approx(runs[0].evaluate()["eval_loss"], 1e-3)


@pytest.mark.parametrize("task", TASKS)
def test_a_guide_and_back(task: str, tmp_path: Path) -> None:
    """Saved by `save_pretrained`; loaded here, in transformers, and from the Trainer's folder."""
    name = guide(task, EsmTokenizer.standard())[0]
    ours = models(name)[1]
    trainer = trained(ours, task, tmp_path / "run", save_strategy="steps", save_steps=2)
    ours.eval().save_pretrained(tmp_path / "saved")
    tokenizer = trainer.processing_class
    tokenizer.save_pretrained(tmp_path / "saved")
    again = EsmTokenizer.from_pretrained(tmp_path / "saved")
    batch = again(PROTEINS, padding=True, return_tensors="pt")
    mask = batch["attention_mask"] if task != "sequences" else None
    expected = ours(**batch).logits
    read = getattr(esm_pipeline, name).from_pretrained(tmp_path / "saved")
    assert torch.equal(read(**batch).logits, expected)
    peer, info = getattr(transformers, name).from_pretrained(
        tmp_path / "saved", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert max_abs(peer.eval()(**batch).logits, expected, mask) <= 1e-4
    step = tmp_path / "run" / f"checkpoint-{STEPS}"
    bare = getattr(esm_pipeline, name).from_pretrained(step, config=ours.config)
    assert torch.equal(bare(**batch).logits, expected)
    with pytest.raises(WeightsError, match=rf"the last is .*checkpoint-{STEPS}$"):
        getattr(esm_pipeline, name).from_pretrained(tmp_path / "run")


def test_without_a_collator_rows_of_one_length_are_needed(tmp_path: Path) -> None:
    """What the README says: give one, or pad when the texts are encoded."""
    tokenizer = EsmTokenizer.from_pretrained("demo")
    ours = models("EsmForSequenceClassification")[1]
    data = [
        {**tokenizer(text, padding="max_length", max_length=17), "labels": 1} for text in PROTEINS
    ]
    trainer = Trainer(model=ours, args=arguments(tmp_path), train_dataset=data)
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]


@pytest.mark.parametrize("options", [{}, {"every_n_layers": 2}, {"offload": True}], ids=str)
@pytest.mark.parametrize("key", ["gradient_checkpointing", "activation_checkpointing"])
def test_checkpointing_of_a_trainer(key: str, options: dict[str, Any], tmp_path: Path) -> None:
    pair = [models("EsmForMaskedLM")[1] for _ in range(2)]
    plain = trained(pair[0], "language model", tmp_path)
    name = f"{key}_kwargs"
    keeping = trained(pair[1], "language model", tmp_path, **{key: True, name: options or None})
    assert pair[1].is_gradient_checkpointing
    assert pair[1].is_activation_checkpointing
    assert losses(keeping) == losses(plain)
    for (name, one), (_, other) in zip(
        pair[0].named_parameters(), pair[1].named_parameters(), strict=True
    ):
        assert max_abs(other, one) <= 1e-6, name


@pytest.mark.filterwarnings("ignore:Could not find a config file in demo")
def test_an_adapter_is_trained_and_merged_at_loading(tmp_path: Path) -> None:
    base = esm_pipeline.EsmForMaskedLM.from_pretrained("demo")
    model = get_peft_model(base, LoraConfig(target_modules=["query", "value"], r=4))
    options = {"save_strategy": "steps", "save_steps": STEPS, "learning_rate": 0.3}
    trained(model, "language model", tmp_path / "run", **options)
    step = tmp_path / "run" / f"checkpoint-{STEPS}"
    info = json.loads((step / "adapter_config.json").read_text())
    assert info["base_model_name_or_path"] == "demo"
    batch = EsmTokenizer.from_pretrained(step)(PROTEINS, padding=True, return_tensors="pt")
    merged = esm_pipeline.EsmForMaskedLM.from_pretrained(step)
    expected = model.eval()(**batch).logits
    assert max_abs(merged(**batch).logits, expected) <= 1e-4
    plain = esm_pipeline.EsmForMaskedLM.from_pretrained("demo")
    assert max_abs(plain(**batch).logits, expected) > 1e-2
