"""ESM-2 650M and ESM-1b at their true size, with random weights, compared with transformers.

Each step runs in a process of its own, so that its peak of memory is measured separately and freed.
Printed: seconds of CPU, peaks in GB (the weights are 2.6), largest differences over the scale.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from esm_pipeline import EsmForMaskedLM
from tests.oracles.peers import ESM1B, ESM2, batch, max_abs

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no peak of memory in /proc"),
]

TRUE_SIZE: dict[str, Any] = {
    "vocab_size": 33,
    "mask_token_id": 32,
    "pad_token_id": 1,
    "hidden_size": 1280,
    "num_hidden_layers": 33,
    "num_attention_heads": 20,
    "intermediate_size": 5120,
    "max_position_embeddings": 1026,
    "layer_norm_eps": 1e-5,
}
CHECKPOINTS = {"ESM-2 650M": ESM2, "ESM-1b": ESM1B}
LENGTHS = [40, 120]
RELATIVE = 2e-5
"""Largest difference in float32 after 33 layers, over the largest value of an output."""

PEAK_GB = 4.5
"""The weights once, the libraries, and what a forward of 162 residues and its outputs need."""

Step = tuple[dict[str, Any], float, float]


def in_a_process(step: Callable[..., dict[str, Any]], *arguments: object) -> Step:
    """What a step returns, its seconds of CPU and its peak of memory in GB."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(measured, step, *arguments).result()


def measured(step: Callable[..., dict[str, Any]], *arguments: object) -> Step:
    start = time.process_time()
    found = step(*arguments)
    peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
    return found, time.process_time() - start, int(peak) / 1e6


def fill(model: nn.Module) -> nn.Module:
    """Random weights of the size that training leaves, norms and biases off their defaults."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        parameter.data.normal_(std=0.04, generator=generator)
        if parameter.ndim == 1 and name.endswith("weight"):
            parameter.data.add_(1)
        if "contact_head" in name:
            parameter.data.mul_(50)
    return model.eval()


def hidden_states(model: Any) -> dict[str, Tensor]:
    """Logits, and all hidden states as (n + 1, B, L, D), of two proteins of unequal length."""
    tokens, mask = batch(LENGTHS, masked=0.15)
    assert 0 < int(mask.sum()) < mask.numel()
    with torch.no_grad():
        found = model(tokens, attention_mask=mask, output_hidden_states=True)
    assert len(found.hidden_states) == TRUE_SIZE["num_hidden_layers"] + 1
    return {"logits": found.logits, "hidden": torch.stack(found.hidden_states)}


def outputs(model: Any) -> tuple[dict[str, Tensor], float]:
    """The same with contacts, and the seconds of CPU."""
    start = time.process_time()
    found = hidden_states(model)
    with torch.no_grad():
        found["contacts"] = model.predict_contacts(*batch(LENGTHS, masked=0.15))
    return found, time.process_time() - start


def run_peer(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Make the transformers model, save it and what it computes."""
    config = transformers.EsmConfig(**TRUE_SIZE, **settings, attn_implementation="eager")
    model = fill(transformers.EsmForMaskedLM(config))
    model.save_pretrained(folder / "theirs")
    found, seconds = outputs(model)
    torch.save(found, folder / "theirs.pt")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"forward": seconds, "parameters": parameters}


def run_ours(folder: Path) -> dict[str, Any]:
    """Load the same, compute the same, compare, and save it."""
    start = time.process_time()
    model = EsmForMaskedLM.from_pretrained(folder / "theirs")
    loading = time.process_time() - start
    found, seconds = outputs(model)
    expected = torch.load(folder / "theirs.pt")
    differences = relative_differences(found, expected)
    model.esm.embeddings.token_dropout = False
    without = relative_differences(hidden_states(model), expected)
    model.save_pretrained(folder / "ours")
    return {"loading": loading, "forward": seconds, "differences": differences, "twin": without}


def relative_differences(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Largest difference of each output over real tokens, over its largest value."""
    tokens, mask = batch(LENGTHS, masked=0.15)
    where = {"logits": mask, "hidden": mask.expand(len(expected["hidden"]), *tokens.shape)}
    return {
        name: max_abs(found[name], values, where.get(name)) / float(values.abs().max())
        for name, values in expected.items()
        if name in found
    }


def reload(folder: Path, kind: Any) -> dict[str, Any]:
    """Let a class load what ours saved and what it was saved from: what differs, and what lacks."""
    found, info = kind.from_pretrained(folder / "ours", output_loading_info=True)
    expected = kind.from_pretrained(folder / "theirs").state_dict()
    state = found.state_dict()
    assert state.keys() == expected.keys()
    differ = [name for name in state if not torch.equal(state[name], expected[name])]
    keys = {name: sorted(info[name]) for name in ("missing_keys", "unexpected_keys")}
    return {"differ": differ, **keys}


@pytest.fixture(scope="module", params=CHECKPOINTS)
def steps(request: pytest.FixtureRequest) -> Iterator[tuple[str, Path, Step, Step]]:
    """A checkpoint's name and folder, and what the peer and ours made of it."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        peer = in_a_process(run_peer, folder, CHECKPOINTS[request.param])
        yield request.param, folder, peer, in_a_process(run_ours, folder)


def test_equals_transformers(steps: Any, capsys: pytest.CaptureFixture[str]) -> None:
    name, _, (theirs, _, their_peak), (ours, _, our_peak) = steps
    with capsys.disabled():
        print(f"\n{name}: {theirs['parameters']:,} weights, proteins of {LENGTHS} residues")
        for who, found, peak in (("transformers", theirs, their_peak), ("ours", ours, our_peak)):
            print(f"  {who:12}  forward and contacts {found['forward']:.1f} s, peak {peak:.1f} GB")
        print(f"  loading {ours['loading']:.1f} s; largest differences over the scale", end=" ")
        print(*(f"{output} {value:.1e}" for output, value in ours["differences"].items()), sep=", ")
    assert theirs["parameters"] > 650e6
    assert ours["differences"].keys() == {"logits", "hidden", "contacts"}
    assert max(ours["differences"].values()) <= RELATIVE
    assert our_peak <= PEAK_GB


def test_a_twin_without_token_dropout_is_far_off(steps: Any) -> None:
    _, _, _, (ours, _, _) = steps
    assert min(ours["twin"].values()) > 50 * RELATIVE


def test_saved_as_it_was_loaded(steps: Any, capsys: pytest.CaptureFixture[str]) -> None:
    _, folder, _, _ = steps
    for kind in (EsmForMaskedLM, transformers.EsmForMaskedLM):
        found, seconds, peak = in_a_process(reload, folder, kind)
        assert found == {"differ": [], "missing_keys": [], "unexpected_keys": []}
        with capsys.disabled():
            print(f"\n  {kind.__module__}: both loads {seconds:.1f} s, peak {peak:.1f} GB", end="")
