"""On processors with fewer instructions: caps by the environment, read when a process starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json, torch
from esm_pipeline import EsmForMaskedLM, EsmTokenizer, demo_model, optimize_for_inference
from esm_pipeline.model.linears import can_pack
from esm_pipeline.model.inference.int8 import can_quantize

model = EsmForMaskedLM.from_pretrained(demo_model()).eval()
sequences = ["MKTAYIAKQRQISFVKSHFSRQ" * 3, "GSHMK"]
batch = EsmTokenizer.standard()(sequences, padding=True, return_tensors="pt")
dtypes = [torch.float32, torch.bfloat16, *([torch.int8] if can_quantize() else [])]
with torch.inference_mode():
    expected = model(**batch).logits
    found = [optimize_for_inference(model, dtype)(**batch).logits.float() for dtype in dtypes]
    within = batch.attention_mask.bool()
    far = [float((one - expected)[within].abs().max()) for one in found]
print(json.dumps({
    "packs": can_pack(torch.float32), "quantizes": can_quantize(), "far": far,
    "capability": torch.backends.cpu.get_cpu_capability(),
}))
"""


@pytest.mark.parametrize(
    ("aten", "onednn", "capability"),
    [("avx2", "AVX2", "AVX2"), ("default", "SSE41", "DEFAULT")],
)
def test_the_same_numbers_with_fewer_instructions(aten: str, onednn: str, capability: str) -> None:
    caps = {"ATEN_CPU_CAPABILITY": aten, "ONEDNN_MAX_CPU_ISA": onednn}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**os.environ, **caps}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    facts = json.loads(run.stdout)
    assert facts["capability"] == capability
    exact, half, *levels = facts["far"]
    assert exact <= 1e-4
    assert half <= 0.5
    assert len(levels) == facts["quantizes"]
    assert all(far <= 0.5 for far in levels)
