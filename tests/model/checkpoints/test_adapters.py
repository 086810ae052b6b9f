"""Adapters of peft, merged while they are loaded, compared with what peft computes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import esm_pipeline
from esm_pipeline import EsmConfig, EsmForMaskedLM, EsmTokenizer, demo_model
from esm_pipeline.cli import main
from esm_pipeline.errors import WeightsError
from esm_pipeline.model import resolve_checkpoint
from tests.oracles.peers import max_abs

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # from peft, and about new classifiers
]
WIDE = ["query", "key", "value", "dense"]
TEXTS = ["MKTAYIAKQR", "GG"]


def base(name: str = "EsmForMaskedLM", **options: Any) -> Any:
    return getattr(esm_pipeline, name).from_pretrained("demo", **options)


def spread(model: nn.Module) -> nn.Module:
    """Change what is trained, as training would: a new adapter has no effect."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += 0.05 * noise.to(parameter.dtype)
    return model.eval()


def adapted(folder: Path, config: Any, name: str = "EsmForMaskedLM", **options: Any) -> Any:
    """A model with an adapter; both are saved in `folder`."""
    torch.manual_seed(0)
    model = spread(get_peft_model(base(name, **options), config))
    model.save_pretrained(folder)
    return model


def outputs(model: nn.Module) -> Tensor:
    batch = EsmTokenizer.from_pretrained("demo")(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model(**batch)
    states: Tensor = found.logits if hasattr(found, "logits") else found.last_hidden_state
    return states


PATTERNS = {
    "rank_pattern": {"query": 2, "layer.1.attention.self.key": 3, "^esm.encoder.layer.0.*": 6},
    "alpha_pattern": {"value": 32, "layer.1.attention.self.query": 3},
}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": WIDE, "lora_alpha": 16},
    "one layer": {"target_modules": ["query"], "layers_to_transform": [1]},
    "a pattern": {"target_modules": r".*layer\.[01]\..*(query|dense)"},
    "rsLoRA": {"target_modules": WIDE, "use_rslora": True, "r": 4},
    "DoRA": {"target_modules": WIDE, "use_dora": True},
    "ranks and scales of their own": {"target_modules": WIDE, **PATTERNS},
    "all biases": {"target_modules": WIDE, "bias": "all"},
    "biases of adapted layers": {"target_modules": ["query"], "bias": "lora_only"},
    "bias of the adapter": {"target_modules": ["query"], "lora_bias": True},
    "fan-in first": {"target_modules": WIDE, "fan_in_fan_out": True},
    "normal start": {"target_modules": WIDE, "init_lora_weights": "gaussian"},
    "the whole head": {"target_modules": ["query"], "modules_to_save": ["lm_head"]},
}
TIED: dict[str, dict[str, Any]] = {
    "head": {"target_modules": ["query", "decoder"]},
    "embedding": {"target_modules": ["query", "word_embeddings"]},
    "both": {"target_modules": ["word_embeddings", "decoder"]},
    "a whole embedding": {"target_modules": ["query"], "modules_to_save": ["word_embeddings"]},
}
"""Adapters of a weight that embedding and head share. They differ then, and peft merges wrongly."""


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_that_peft_merges(kind: str, tmp_path: Path) -> None:
    """Equal to the last bit, in float32."""
    model = adapted(tmp_path, LoraConfig(**KINDS[kind]))
    ours = EsmForMaskedLM.from_pretrained(tmp_path)
    assert max_abs(outputs(ours), outputs(model)) <= 5e-5
    assert max_abs(outputs(ours), outputs(base())) > 0.01
    merged = model.merge_and_unload().state_dict()
    for key, own in ours.state_dict().items():
        assert max_abs(own, merged[key]) <= 1e-7, key


@pytest.mark.parametrize("kind", TIED)
def test_tied_weights_that_differ_behind_an_adapter(kind: str, tmp_path: Path) -> None:
    model = adapted(tmp_path, LoraConfig(**TIED[kind]))
    ours = EsmForMaskedLM.from_pretrained(tmp_path)
    assert max_abs(outputs(ours), outputs(model)) <= 1e-4
    assert not ours.config.tie_word_embeddings
    ours.save_pretrained(tmp_path / "merged")
    again = EsmForMaskedLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(outputs(again), outputs(ours))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_precisions(dtype: torch.dtype, tmp_path: Path) -> None:
    """The merged weight is computed in float32 and rounded once."""
    adapted(tmp_path, LoraConfig(target_modules=WIDE))
    whole = EsmForMaskedLM.from_pretrained(tmp_path)
    ours = EsmForMaskedLM.from_pretrained(tmp_path, dtype=dtype)
    for (key, one), (_, other) in zip(
        ours.named_parameters(), whole.named_parameters(), strict=True
    ):
        assert torch.equal(one, other.to(dtype)), key


@pytest.mark.parametrize("labels", [2, 3])
@pytest.mark.parametrize("with_config", [True, False])
@pytest.mark.parametrize(
    ("name", "task"),
    [("EsmForSequenceClassification", "SEQ_CLS"), ("EsmForTokenClassification", "TOKEN_CLS")],
)
def test_a_classifier_comes_with_its_labels(
    name: str, task: str, with_config: bool, labels: int, tmp_path: Path
) -> None:
    config = LoraConfig(target_modules=["query"], task_type=task)
    model = adapted(tmp_path, config, name, num_labels=labels)
    if with_config:
        model.config.id2label = {number: f"kind {number}" for number in range(labels)}
        model.config.save_pretrained(tmp_path)
    ours, info = getattr(esm_pipeline, name).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert max_abs(outputs(ours), outputs(model)) <= 1e-5
    first = "kind 0" if with_config else "LABEL_0"
    assert ours.config.id2label[0] == first


def test_an_adapter_of_the_encoder_alone_and_for_another_class(tmp_path: Path) -> None:
    model = adapted(tmp_path / "bare", LoraConfig(target_modules=["query"]), "EsmModel")
    ours = esm_pipeline.EsmModel.from_pretrained(tmp_path / "bare")
    assert max_abs(outputs(ours), outputs(model)) <= 1e-5
    model = adapted(tmp_path / "whole", LoraConfig(target_modules=["query"]))
    ours = esm_pipeline.EsmModel.from_pretrained(tmp_path / "whole")
    batch = EsmTokenizer.from_pretrained("demo")(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model.base_model.model(**batch, output_hidden_states=True).hidden_states[-1]
    assert max_abs(outputs(ours), states) <= 1e-5


def test_peft_itself_loads_it_onto_our_base(tmp_path: Path) -> None:
    model = adapted(tmp_path, LoraConfig(target_modules=WIDE))
    again = PeftModel.from_pretrained(base(), tmp_path).eval()
    assert torch.equal(outputs(again), outputs(model))


# where the base model is


def test_a_base_model_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(demo_model(), tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    model = spread(
        get_peft_model(EsmForMaskedLM.from_pretrained("base"), LoraConfig(target_modules=WIDE))
    )
    model.save_pretrained("adapter")
    assert max_abs(outputs(EsmForMaskedLM.from_pretrained("adapter")), outputs(model)) <= 5e-5
    checkpoint = resolve_checkpoint("adapter")
    assert checkpoint.weight_files[0].parent == Path("base")
    assert checkpoint.source == Path("adapter")
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(WeightsError, match="base: no such folder"):
        EsmForMaskedLM.from_pretrained("adapter")


def test_the_digest_is_of_base_adapter_and_settings(tmp_path: Path) -> None:
    adapted(tmp_path / "one", LoraConfig(target_modules=["query"]))
    digests = {resolve_checkpoint(str(tmp_path / "one")).weights_sha256()}
    digests.add(resolve_checkpoint("demo").weights_sha256())
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert resolve_checkpoint(str(tmp_path / "two")).weights_sha256() in digests
    change_settings(tmp_path / "two", lora_alpha=9)
    digests.add(resolve_checkpoint(str(tmp_path / "two")).weights_sha256())
    assert len(digests) == 3


def change_settings(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "adapter_model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)


def first(state: dict[str, Tensor], part: str) -> str:
    return min(key for key in state if part in key)


# what is refused

OTHERS: dict[str, tuple[Any, str, str]] = {
    "IA3": (
        IA3Config(target_modules=["key", "dense"], feedforward_modules=["dense"]),
        "EsmForMaskedLM",
        "peft_type 'IA3', but only LORA is merged",
    ),
    "LoHa": (LoHaConfig(target_modules=["key"]), "EsmForMaskedLM", "peft_type 'LOHA'"),
    "prompts": (
        PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4),
        "EsmForSequenceClassification",
        "peft_type 'PROMPT_TUNING'",
    ),
    "PiSSA": (
        LoraConfig(target_modules=["key"], init_lora_weights="pissa"),
        "EsmForMaskedLM",
        "init_lora_weights is 'pissa', which starts from a changed base model",
    ),
    "OLoRA": (
        LoraConfig(target_modules=["key"], init_lora_weights="olora"),
        "EsmForMaskedLM",
        "init_lora_weights is 'olora'",
    ),
    "tokens": (
        LoraConfig(target_modules=["key"], trainable_token_indices=[3]),
        "EsmForMaskedLM",
        "trainable_token_indices is set, which cannot be merged here; merge it with peft",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_adapters_are_named(kind: str, tmp_path: Path) -> None:
    config, name, message = OTHERS[kind]
    adapted(tmp_path, config, name)
    for load in (getattr(esm_pipeline, name), EsmConfig):
        with pytest.raises(WeightsError, match=rf"adapter_config\.json: .*{message}"):
            load.from_pretrained(tmp_path)


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "no base": ({"base_model_name_or_path": None}, "base_model_name_or_path is None; set it to"),
    "a lost base": ({"base_model_name_or_path": "./lost"}, r"\./lost: no such folder"),
    "another rank": ({"r": 4}, "has rank 8, but its settings say 4"),
    "no rank": ({"r": 0}, "r is 0; it should be a number above 0"),
    "a rank in words": ({"r": "eight"}, "r is 'eight'"),
    "no scale": ({"lora_alpha": True}, "lora_alpha is True"),
    "a bad pattern": ({"rank_pattern": {"(": 2}}, "rank_pattern cannot be read"),
    "two scales": (
        {"alpha_pattern": {"query": 2, "self.query": 3}},
        "alpha_pattern gives esm.*query 2 and 3; keep one",
    ),
    "a list of patterns": ({"alpha_pattern": [2]}, "alpha_pattern cannot be read"),
    "something new": ({"use_quantum": True}, "use_quantum is set, which cannot be merged here"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_cannot_be(case: str, tmp_path: Path) -> None:
    adapted(tmp_path, LoraConfig(target_modules=["query"]))
    changes, message = SETTINGS[case]
    change_settings(tmp_path, **changes)
    with pytest.raises(WeightsError, match=message):
        EsmForMaskedLM.from_pretrained(tmp_path)


WEIGHTS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "a factor is missing": (
        lambda s: s.pop(first(s, "lora_B")),
        r"query: no lora_A\.weight and lora_B\.weight among its weights",
    ),
    "factors of two ranks": (
        lambda s: s.update({first(s, "lora_B"): torch.zeros(192, 3)}),
        r"have shapes \(8, 192\) and \(192, 3\), which do not fit",
    ),
    "another width": (
        lambda s: s.update({first(s, "lora_B"): torch.zeros(100, 8)}),
        r"does not fit 'encoder.*query\.weight' of its base model, of shape \(192, 192\)",
    ),
    "a layer that is not there": (
        lambda s: s.update({key.replace("layer.0", "layer.9"): s.pop(key) for key in list(s)}),
        r"changes 'encoder\.layer\.9.*', which its base model lacks",
    ),
    "whole numbers": (
        lambda s: s.update({first(s, "lora_B"): torch.zeros(192, 8, dtype=torch.int64)}),
        "not a type for weights",
    ),
    "a part of another method": (
        lambda s: s.update({"base_model.model.esm.encoder.layer.0.lora_mobius": torch.zeros(3)}),
        "lora_mobius' cannot be merged here",
    ),
    "nothing": (lambda s: s.clear(), "has no tensors"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_cannot_be(case: str, tmp_path: Path) -> None:
    adapted(tmp_path, LoraConfig(target_modules=["query"]))
    change, message = WEIGHTS[case]
    change_weights(tmp_path, change)
    with pytest.raises(WeightsError, match=message):
        EsmForMaskedLM.from_pretrained(tmp_path)


def test_folders_that_are_none_or_both(tmp_path: Path) -> None:
    adapted(tmp_path / "a", LoraConfig(target_modules=["query"]))
    shutil.copytree(tmp_path / "a", tmp_path / "both")
    base().save_pretrained(tmp_path / "both")
    with pytest.raises(WeightsError, match=r"model\.safetensors and adapter_config\.json, a whole"):
        EsmForMaskedLM.from_pretrained(tmp_path / "both")
    shutil.copytree(tmp_path / "a", tmp_path / "second")
    change_settings(tmp_path / "second", base_model_name_or_path=str(tmp_path / "a"))
    with pytest.raises(WeightsError, match="is an adapter too; merge that first"):
        EsmForMaskedLM.from_pretrained(tmp_path / "second")
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"but no adapter_model\.safetensors in the same folder"):
        EsmForMaskedLM.from_pretrained(tmp_path / "a")
    (tmp_path / "a" / "adapter_config.json").write_text("{")
    with pytest.raises(WeightsError, match="not the settings of an adapter"):
        EsmForMaskedLM.from_pretrained(tmp_path / "a")


@pytest.mark.parametrize("prefix", [True, False])
def test_unmerged_weights_are_named(prefix: bool, tmp_path: Path) -> None:
    model = get_peft_model(base(), LoraConfig(target_modules=["query"]))
    inner = model if prefix else model.base_model.model
    state = {key: tensor.clone() for key, tensor in inner.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    base().config.save_pretrained(tmp_path)
    message = "belongs to an adapter of peft that is not merged; merge it with peft"
    with pytest.raises(WeightsError, match=message):
        EsmForMaskedLM.from_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=message):
        EsmForMaskedLM.from_pretrained(None, config=base().config, state_dict=state)


# in the commands


def run_command(*arguments: object) -> None:
    """Run `esm-pipeline` in this process."""
    assert main([str(one) for one in arguments]) == 0


def test_commands_take_an_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fasta = tmp_path / "in.fasta"
    fasta.write_text(">a\nMKTAYIAKQR\n>b\nGG\n")
    model = adapted(tmp_path / "adapter", LoraConfig(target_modules=WIDE))
    batch = EsmTokenizer.from_pretrained("demo")(["MKTAYIAKQR"], return_tensors="pt")
    with torch.no_grad():
        states = model.base_model.model(**batch, output_hidden_states=True).hidden_states[-1][0]
    run_command("download", "--model", tmp_path / "adapter", "--out", tmp_path / "m.json")
    facts = json.loads((tmp_path / "m.json").read_text())
    assert facts["name"] == str(tmp_path / "adapter")
    assert facts["weights_sha256"] in capsys.readouterr().out
    for name, source in (("direct", tmp_path / "adapter"), ("file", tmp_path / "m.json")):
        out = tmp_path / f"{name}.h5"
        run_command("embed", "--quiet", "--model", source, fasta, out)
        with h5py.File(out) as results:
            assert results.attrs["weights_sha256"] == facts["weights_sha256"]
            (layer,) = results["mean"].values()
            mean = torch.from_numpy(layer[0])
        assert max_abs(mean, states[1:-1].mean(0)) <= 1e-4
    change_settings(tmp_path / "adapter", lora_alpha=1)
    assert main(["embed", "--model", str(tmp_path / "m.json"), str(fasta), str(out)]) == 2
    assert "have changed since it was written" in capsys.readouterr().err


def test_classify_takes_an_adapter(tmp_path: Path) -> None:
    fasta = tmp_path / "in.fasta"
    fasta.write_text(">a\nMKTAYIAKQR\n")
    config = LoraConfig(target_modules=WIDE, task_type="SEQ_CLS")
    model = adapted(tmp_path / "adapter", config, "EsmForSequenceClassification", num_labels=3)
    run_command("classify", "--model", tmp_path / "adapter", fasta, tmp_path / "out.tsv")
    head, row = (line.split("\t") for line in (tmp_path / "out.tsv").read_text().splitlines()[:2])
    batch = EsmTokenizer.from_pretrained("demo")(["MKTAYIAKQR"], return_tensors="pt")
    with torch.no_grad():
        expected = model(**batch).logits.softmax(-1)[0].tolist()
    found = [float(row[head.index(f"p.LABEL_{number}")]) for number in range(3)]
    assert found == pytest.approx(expected, abs=1e-4)
