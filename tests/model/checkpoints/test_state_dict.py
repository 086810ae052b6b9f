"""State dicts as scripts use them: with our names, or with those of the reference."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from esm_pipeline import EsmConfig, EsmForMaskedLM
from esm_pipeline.errors import InputError
from tests.oracles.peers import KINDS, SMALL, TOLERANCE, batch, max_abs, transformers_peer


class Within(nn.Module):
    """A model inside a model of a script."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = self.inner(tokens, attention_mask=mask).logits
        return logits


def pair(kind: str) -> tuple[nn.Module, EsmForMaskedLM]:
    """A reference model, and one of ours with other weights."""
    peer = transformers_peer(torch.float64, **KINDS[kind])
    return peer, EsmForMaskedLM(EsmConfig(**SMALL, **KINDS[kind])).double().eval()


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_state_of_the_reference_is_read(kind: str, strict: bool, within: bool) -> None:
    peer, ours = pair(kind)
    tokens, mask = batch([9, 30, 2])
    theirs, found = Within(peer), Within(copy.deepcopy(ours))
    assert max_abs(found(tokens, mask), theirs(tokens, mask), mask) > 0.1
    if within:
        keys = found.load_state_dict(theirs.state_dict(), strict=strict)
    else:
        keys = found.inner.load_state_dict(peer.state_dict(), strict=strict)
    assert (keys.missing_keys, keys.unexpected_keys) == ([], [])
    assert max_abs(found(tokens, mask), theirs(tokens, mask), mask) <= TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_the_references(kind: str) -> None:
    peer, ours = pair(kind)
    assert dict(ours.named_parameters()).keys() == dict(peer.named_parameters()).keys()


def test_missing_keys_are_still_reported() -> None:
    peer, ours = pair("ESM-2")
    state = dict(peer.state_dict())
    del state["esm.encoder.layer.1.attention.self.key.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*layer\.1\.attention\.self\.key\.weight"):
        ours.load_state_dict(state)


@pytest.mark.parametrize("name", ["device_map", "load_in_8bit", "quantization_config"])
def test_ways_to_load_that_are_not_here(name: str, tmp_path: Path) -> None:
    _, ours = pair("ESM-2")
    ours.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"from_pretrained: '{name}' is not here; choose"):
        EsmForMaskedLM.from_pretrained(tmp_path, **{name: "auto"})
