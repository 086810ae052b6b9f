"""Memory of loading, at the true shapes of ESM-2 3B, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import safetensors.torch
import torch

from esm_pipeline import EsmConfig, EsmForMaskedLM
from esm_pipeline.model.checkpoints.saving import index_of, split_into_shards, weight_shard_names
from esm_pipeline.model.checkpoints.weights import reference_state
from tests.oracles.peers import ESM2

ESM2_3B = {
    "vocab_size": 33,
    "mask_token_id": 32,
    "pad_token_id": 1,
    "hidden_size": 2560,
    "num_hidden_layers": 36,
    "num_attention_heads": 40,
    "intermediate_size": 10240,
}
SHARD = 2 * 10**9

LOAD = """
    import json, resource, sys, threading, time
    import torch
    from esm_pipeline import EsmForMaskedLM

    def kilobytes(name):
        with open("/proc/self/status") as status:
            return int(next(line for line in status if line.startswith(name)).split()[1])

    most, done = [0], threading.Event()

    def watch():
        while not done.wait(0.01):
            most[0] = max(most[0], kilobytes("RssAnon"))

    before = kilobytes("VmHWM")
    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    model = EsmForMaskedLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    layer = model.esm.encoder.layer[35]
    inner = layer.attention.self
    facts = {
        "weights": sum(p.numel() * p.element_size() for p in model.parameters()) / 1e9,
        "before": before / 1e6,
        "peak": kilobytes("VmHWM") / 1e6,
        "anonymous": most[0] / 1e6,
        "seconds": seconds,
        "qkv": [float(getattr(inner, name).weight[7, 9]) for name in ("query", "key", "value")],
        "down": float(layer.output.dense.weight[2559, 10239]),
        "dtypes": sorted({str(p.dtype) for p in model.parameters()}),
    }
    print(json.dumps(facts))
"""


def write_shards(folder: Path) -> None:
    """A 3B checkpoint in float32, shard by shard: every tensor holds the number of its key."""
    with torch.device("meta"):
        model = EsmForMaskedLM(EsmConfig(**ESM2_3B, **ESM2))
    model.config.save_pretrained(folder)
    state = reference_state(model)
    numbers = {key: float(number) for number, key in enumerate(sorted(state))}
    parts = split_into_shards(state, SHARD)
    names = weight_shard_names(len(parts))
    for name, part in zip(names, parts, strict=True):
        filled = {
            key: tensor if "inv_freq" in key else torch.full(tensor.shape, numbers[key])
            for key, tensor in part.items()
        }
        safetensors.torch.save_file(filled, folder / name, {"format": "pt"})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({**index_of(parts, names), "numbers": numbers}))


@pytest.mark.long
def test_3b_from_float32_shards_into_bfloat16(tmp_path: Path) -> None:
    """The files are twice the weights; the peak, mapped pages included, is 1.2 times at most."""
    write_shards(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 6
    command = [sys.executable, "-c", textwrap.dedent(LOAD), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    facts = json.loads(result.stdout)
    print(facts)
    numbers = json.loads((tmp_path / "model.safetensors.index.json").read_text())["numbers"]
    layer = "esm.encoder.layer.35"
    for name, found in zip(("query", "key", "value"), facts["qkv"], strict=True):
        expected = torch.tensor(numbers[f"{layer}.attention.self.{name}.weight"]).bfloat16()
        assert found == float(expected)
    assert facts["down"] == float(torch.tensor(numbers[f"{layer}.output.dense.weight"]).bfloat16())
    assert facts["dtypes"] == ["torch.bfloat16"]
    assert 5.6 < facts["weights"] < 5.8
    assert facts["peak"] <= 1.2 * facts["weights"], facts
    assert facts["anonymous"] <= 1.1 * facts["weights"], facts
