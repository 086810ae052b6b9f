"""What is read from a checkpoint, how, and the messages about what is missing."""

from __future__ import annotations

import gc
import json
import re
import struct
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

import esm_pipeline
from esm_pipeline import EsmConfig, EsmForMaskedLM, EsmForSequenceClassification, EsmModel
from esm_pipeline.errors import WeightsError
from esm_pipeline.model.checkpoints import loading
from esm_pipeline.model.checkpoints.weight_files import open_tensors
from esm_pipeline.model.checkpoints.weights import reference_state
from tests.oracles.peers import ESM2, SMALL, batch, enliven, max_abs, transformers_peer


@pytest.fixture
def model() -> EsmForMaskedLM:
    model = EsmForMaskedLM(EsmConfig(**SMALL, **ESM2))
    enliven(model)
    return model


@pytest.fixture
def folder(model: EsmForMaskedLM, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    """Save the checkpoint again with tensors added, replaced or (None) removed."""
    path = folder / "model.safetensors"
    state = {**safetensors.torch.load_file(path), **change}
    kept = {key: tensor for key, tensor in state.items() if tensor is not None}
    safetensors.torch.save_file(kept, path, {"format": "pt"})


@pytest.mark.parametrize("where", ["each layer", "a star", "the model"])
def test_frequencies_are_those_of_the_checkpoint(where: str, tmp_path: Path) -> None:
    """Used as in transformers and fair-esm. Those of ESM-2 were rounded to float16 in training."""
    peer = transformers_peer(torch.float32, **ESM2)
    own = peer.esm.rotary_embeddings.inv_freq
    rounded = own.half().float()
    assert not torch.equal(own, rounded)
    peer.save_pretrained(tmp_path)
    stem, rest = "esm.encoder.layer", "attention.self.rotary_embeddings.inv_freq"
    (saved,) = [key for key in keys_of(tmp_path) if key.endswith("inv_freq")]
    new = {
        "each layer": [f"{stem}.{layer}.{rest}" for layer in range(3)],
        "a star": [f"{stem}.*.{rest}"],
        "the model": ["esm.rotary_embeddings.inv_freq"],
    }[where]
    rewrite(tmp_path, {saved: None, **{key: rounded.clone().half() for key in new}})
    ours = EsmForMaskedLM.from_pretrained(tmp_path)
    theirs = transformers.EsmForMaskedLM.from_pretrained(tmp_path, attn_implementation="eager")
    tokens, mask = batch([5, 300])
    if where != "the model":  # it never writes this spelling
        assert torch.equal(theirs.esm.rotary_embeddings.inv_freq.float(), rounded)
        expected = theirs(tokens, attention_mask=mask).logits
        assert max_abs(ours(tokens).logits, expected, mask) <= 1e-5
    unrounded = peer(tokens, attention_mask=mask).logits
    assert (
        max_abs(ours(tokens).logits, unrounded, mask) > 1e-4
    )  # without them the result would differ
    for precise in (torch.bfloat16, torch.float64):
        model = EsmForMaskedLM.from_pretrained(tmp_path, dtype=precise)
        assert torch.equal(model.esm.encoder.frequencies, rounded)
    ours.save_pretrained(tmp_path / "again")
    again = EsmForMaskedLM.from_pretrained(tmp_path / "again")
    assert torch.equal(again(tokens).logits, ours(tokens).logits)


def keys_of(folder: Path) -> set[str]:
    return set(safetensors.torch.load_file(folder / "model.safetensors"))


def test_frequencies_that_cannot_be(folder: Path) -> None:
    key = "esm.encoder.layer.1.attention.self.rotary_embeddings.inv_freq"
    rewrite(folder, {key: torch.ones(6)})
    with pytest.raises(WeightsError, match=r"layer\.1.*differs from the frequencies of other lay"):
        EsmForMaskedLM.from_pretrained(folder)
    rewrite(folder, {key: torch.ones(5)})
    with pytest.raises(WeightsError, match=r"inv_freq' is torch\.float32 of shape \(5,\), the con"):
        EsmForMaskedLM.from_pretrained(folder)


def mappings(folder: Path) -> list[str]:
    """Lines of this process's memory map that belong to a file in `folder`."""
    return [
        line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line
    ]


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
def test_files_are_let_go_of_and_never_changed(
    layout: str, model: EsmForMaskedLM, tmp_path: Path
) -> None:
    name = "model.safetensors" if layout == "safetensors" else "pytorch_model.bin"
    if layout == "bin":
        model.config.save_pretrained(tmp_path)
        torch.save(reference_state(model), tmp_path / name)
    else:
        model.save_pretrained(tmp_path)
    before = (tmp_path / name).read_bytes()
    converted = EsmForMaskedLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert mappings(tmp_path) == []  # although the garbage collector has not run
    mapped = EsmForMaskedLM.from_pretrained(tmp_path)
    assert mappings(tmp_path) != []
    with torch.no_grad():
        for parameter in mapped.parameters():
            parameter.zero_()
    assert (tmp_path / name).read_bytes() == before
    assert max_abs(converted.lm_head.dense.weight, model.lm_head.dense.weight) == 0


def resident(path: Path) -> int:
    """Bytes of a mapped file that are in this process's memory."""
    _, _, rest = Path("/proc/self/smaps").read_text().partition(str(path))
    return 1024 * int(re.search(r"Rss: +(\d+) kB", rest)[1])


def test_pages_of_what_was_copied_are_let_go_of(tmp_path: Path) -> None:
    path = tmp_path / "big.safetensors"
    size = 8 << 20
    safetensors.torch.save_file({"a": torch.ones(size // 4), "b": torch.ones(size // 4)}, path)
    entries = open_tensors([path])
    target = torch.empty(size // 4, dtype=torch.bfloat16)
    entries["a"].copy_to(target)
    assert bool((target == 1).all())
    assert resident(path) < size // 8
    assert float(entries["b"].mapped().sum()) == size // 4
    assert resident(path) >= size  # what is seen where they are not


@pytest.mark.parametrize("padding", range(4))
def test_data_at_odd_places(padding: int, tmp_path: Path) -> None:
    """A header may have any length, but processors need numbers at multiples of their size."""
    tensor = torch.randn(7, 3)
    header = {"a": {"dtype": "F32", "shape": [7, 3], "data_offsets": [0, tensor.nbytes]}}
    text = json.dumps(header).encode() + b" " * padding
    path = tmp_path / "odd.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + tensor.numpy().tobytes())
    entry = open_tensors([path])["a"]
    assert torch.equal(entry.mapped(), tensor)
    assert entry.mapped().data_ptr() % 4 == 0
    target = torch.empty(7, 3, dtype=torch.float64)
    entry.copy_to(target)
    assert torch.equal(target.float(), tensor)


def test_headers_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device everything is checked, nothing is read, and there is no warning."""
    monkeypatch.setattr(loading, "read_state", None)
    monkeypatch.setattr(warnings, "warn", None)
    model, info = EsmModel.from_pretrained(folder, device="meta", output_loading_info=True)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sorted(info["missing_keys"]) == ["pooler.dense.bias", "pooler.dense.weight"]
    rewrite(folder, {"esm.encoder.layer.1.output.dense.bias": None})
    with pytest.raises(WeightsError, match=r"layer\.1\.output\.dense\.bias"):
        EsmModel.from_pretrained(folder, device="meta")


def test_loading_draws_nothing_and_compiles_nothing(folder: Path) -> None:
    """No random weights are drawn only to be replaced; the random state does not change."""
    code = (
        "import sys, torch; from esm_pipeline import EsmForMaskedLM;"
        "before = torch.get_rng_state();"
        f"EsmForMaskedLM.from_pretrained({str(folder)!r});"
        "assert torch.equal(before, torch.get_rng_state());"
        "print('torch._dynamo' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "False\n"


@pytest.mark.parametrize("collects", [True, False])
def test_garbage_collection_is_paused(
    collects: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take longer than loading; its state is restored afterwards."""
    seen = []

    def watched(*arguments: Any) -> loading.LoadPlan:
        seen.append(gc.isenabled())
        return plan_weights(*arguments)

    plan_weights = loading.plan_weights
    monkeypatch.setattr(loading, "plan_weights", watched)
    before = gc.isenabled()
    (gc.enable if collects else gc.disable)()
    try:
        EsmModel.from_pretrained(folder, add_pooling_layer=False)
        assert gc.isenabled() == collects
        with pytest.raises(WeightsError):
            EsmForSequenceClassification.from_pretrained(folder / "no such")
        assert gc.isenabled() == collects
    finally:
        (gc.enable if before else gc.disable)()
    assert seen == [False]


def test_the_warning_of_new_weights_points_at_who_loads(folder: Path) -> None:
    with pytest.warns(UserWarning, match="train before use") as caught:
        EsmForSequenceClassification.from_pretrained(folder, num_labels=3)
    assert [one.filename for one in caught] == [__file__]


HEADS = {
    "EsmForMaskedLM": ("lm_head", "EsmForSequenceClassification"),
    "EsmForTokenClassification": ("classifier", "EsmForSequenceClassification"),
}


@pytest.mark.parametrize("asked", HEADS)
def test_a_head_that_the_checkpoint_lacks(asked: str, tmp_path: Path) -> None:
    """The error names the head, and the class to use instead."""
    head, instead = HEADS[asked]
    saved = EsmForSequenceClassification(EsmConfig(**SMALL, **ESM2, num_labels=3))
    saved.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for known in (True, False):
        if not known:
            del config["architectures"]
            (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(WeightsError, match=rf"{head}.*load it with .*{instead}") as caught:
            getattr(esm_pipeline, asked).from_pretrained(tmp_path)
        assert "\n" not in str(caught.value)
