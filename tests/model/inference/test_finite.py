"""Weights that are NaN or infinite are reported by name before anything is computed with them."""

from __future__ import annotations

import pytest
import torch

from esm_pipeline import (
    EsmConfig,
    EsmForMaskedLM,
    EsmForProteinFolding,
    EsmForSequenceClassification,
    EsmForTokenClassification,
    EsmModel,
    optimize_for_inference,
)
from esm_pipeline.errors import WeightsError
from esm_pipeline.model.base import EsmPreTrainedModel
from esm_pipeline.model.folding.demo import LANGUAGE_MODEL, TRUNK
from esm_pipeline.model.inference import optimize
from esm_pipeline.model.inference.finite import require_finite
from tests.oracles.peers import ESM1B, ESM2, SMALL, enliven

NAN, INF = float("nan"), float("inf")
FOLDING = {"lddt_head_hid_dim": 16, "trunk": TRUNK}


def make(kind: type[EsmPreTrainedModel]) -> EsmPreTrainedModel:
    torch.manual_seed(0)
    if kind is EsmForProteinFolding:
        model = kind(EsmConfig(is_folding_model=True, esmfold_config=FOLDING, **LANGUAGE_MODEL))
    else:
        model = kind(EsmConfig(**SMALL, **(ESM1B if kind is EsmModel else ESM2)))
    enliven(model)
    return model


CLASSES = [
    EsmModel,
    EsmForMaskedLM,
    EsmForSequenceClassification,
    EsmForTokenClassification,
    EsmForProteinFolding,
]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_tensor_is_looked_at(kind: type[EsmPreTrainedModel]) -> None:
    model = make(kind)
    model.name_or_path = "lab/model"
    require_finite(model)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    floating = {name: one for name, one in tensors.items() if one.is_floating_point()}
    assert any("contact_head.regression" in name for name in floating)
    assert any("inv_freq" in name for name in floating) == (kind is not EsmModel)
    for number, (name, tensor) in enumerate(floating.items()):
        place = tensor.data.view(-1)[-1]
        before = place.item()
        place.fill_((NAN, INF, -INF)[number % 3])
        with pytest.raises(WeightsError, match=f"^lab/model: '{name}' has NaN or infinity among"):
            require_finite(model)
        place.fill_(before)
    require_finite(model)


def test_buffers_of_a_script_are_looked_at() -> None:
    model = make(EsmForMaskedLM)
    model.register_buffer("counts", torch.tensor([1, 2]))
    model.register_buffer("scales", torch.tensor([1.0, NAN]))
    with pytest.raises(WeightsError, match="'scales' has NaN"):
        require_finite(model)


def test_infinities_do_not_cancel_out() -> None:
    model = make(EsmForMaskedLM)
    weight = model.esm.encoder.layer[0].output.dense.weight.data
    weight[0, 0], weight[0, 1] = INF, -INF
    with pytest.raises(WeightsError, match="NaN or infinity"):
        require_finite(model)


@pytest.mark.parametrize(
    ("dtype", "value"), [(torch.float32, 3e38), (torch.bfloat16, 3e38), (torch.float16, 6e4)]
)
def test_large_weights_are_numbers(dtype: torch.dtype, value: float) -> None:
    """Whose sum is none."""
    model = make(EsmForMaskedLM).to(dtype)
    weight = model.esm.encoder.layer[0].output.dense.weight.data
    weight[:] = value
    assert weight.sum().isinf()
    require_finite(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("part", ["query", "key"])
def test_optimizing_refuses_what_kernels_hide(
    part: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of short sequences PyTorch's fused attention gives finite numbers all the same."""
    monkeypatch.setattr(optimize, "can_quantize", lambda: True)
    model = make(EsmForMaskedLM)
    attention = model.esm.encoder.layer[1].attention.self
    getattr(attention, part).weight.data[:] = NAN
    name = f"esm.encoder.layer.1.attention.self.{part}.weight"
    with pytest.raises(WeightsError, match=f"^EsmForMaskedLM: '{name}' has NaN"):
        optimize_for_inference(model, dtype)


def test_optimizing_refuses_a_folding_model() -> None:
    model = make(EsmForProteinFolding)
    model.trunk.recycle_disto.weight.data[0, 0] = NAN
    with pytest.raises(WeightsError, match=r"'trunk\.recycle_disto\.weight' has NaN"):
        optimize_for_inference(model)
