"""Loading holds the weights once: the original goes layer by layer while its copy is packed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from esm_pipeline.model import EsmConfig, EsmForMaskedLM, EsmTokenizer

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="no peak of memory that can be reset"
)

WIDTH, LAYERS = 768, 6
PROGRAM = """
import json, sys
from pathlib import Path
import torch
from esm_pipeline.model.inference import optimize
from esm_pipeline.model.linears import can_pack
from esm_pipeline.model.inference.int8 import can_quantize
from esm_pipeline.settings.sections import StrategySettings
from esm_pipeline.tasks.score.marginals import LanguageModel

def memory(name):
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) / 1024

packs = {dtype: can_pack(dtype) for dtype in (torch.float32, torch.bfloat16)}
cases = ["float32", "bfloat16", *(["int8"] if can_quantize() else []), "fused"]
peaks = {}
for case in cases:
    if case == "fused":  # as on a graphics card
        optimize.can_pack = lambda dtype: False
    dtype = "float32" if case == "fused" else case
    model = LanguageModel(sys.argv[1], None, StrategySettings(dtype=dtype, device="cpu"))
    model.check()
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    model.load()
    peaks[case] = memory("VmHWM") - before
    model.unload()
print(json.dumps(peaks))
"""


def test_the_weights_are_held_once(tmp_path):
    """Of a checkpoint in float16, so that nothing is mapped from its file."""
    torch.manual_seed(0)
    config = EsmConfig(
        vocab_size=33,
        mask_token_id=32,
        pad_token_id=1,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=12,
        intermediate_size=4 * WIDTH,
        position_embedding_type="rotary",
    )
    model = EsmForMaskedLM(config).half()
    weights = model.num_parameters() * 4 / 2**20  # MB in float32
    model.save_pretrained(tmp_path)
    EsmTokenizer.standard().save_pretrained(tmp_path)
    del model
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": "1000000",  # what is freed is free
        "MALLOC_TRIM_THRESHOLD_": "1000000",
    }
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    peaks = json.loads(done.stdout)
    print(f"{weights:.0f} MB of weights; peaks: {peaks}")
    assert weights > 150
    once = {"float32": weights, "bfloat16": weights / 2, "int8": weights, "fused": weights}
    for case, peak in peaks.items():
        assert peak <= 1.1 * once[case] + (40 if case == "int8" else 16), case
        assert peak >= 0.9 * once[case], "what was measured is the weights"
