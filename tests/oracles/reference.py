"""Our models beside what transformers 4.37.2 answered, as record_reference.py recorded it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import esm_pipeline
from esm_pipeline import EsmConfig
from esm_pipeline.model.base import EsmPreTrainedModel
from tests.oracles.peers import max_abs
from tests.oracles.reference_cases import BASE, PAD, all_models
from tests.oracles.seeded import weight

GOLDEN = Path(__file__).parent / "reference_4.37.2.npz"
MODELS = all_models()


@cache
def facts() -> dict[str, Any]:
    """Everything that was recorded but the numbers."""
    with np.load(GOLDEN) as file:
        found: dict[str, Any] = json.loads(file["facts"].tobytes())
    return found


@cache
def answers() -> dict[str, list[dict[str, Tensor]]]:
    """Of each model and call the answers by name; none of calls that were recorded as shapes."""
    with np.load(GOLDEN) as file:
        numbers = torch.from_numpy(file["numbers"])
    found: dict[str, list[dict[str, Tensor]]] = {}
    for name, model in facts()["models"].items():
        for call in model["calls"]:
            arrays = {}
            for key, shape in call.get("shapes", {}).items():
                size = int(np.prod(shape))
                arrays[key] = numbers[:size].reshape(shape)
                numbers = numbers[size:]
            found.setdefault(name, []).append(arrays)
    assert not len(numbers), "the file holds more than its facts say"
    return found


def build(name: str) -> EsmPreTrainedModel:
    """Our model of a case, in float64, with the weights of the recorded one, not pruned yet."""
    case = MODELS[name]
    config = EsmConfig(**{**BASE, **case["config"]})
    options = {} if case.get("pooler", True) else {"add_pooling_layer": False}
    model = getattr(esm_pipeline, case.get("class", "EsmModel"))(config, **options)
    return fill(model.double().eval())


def fill(model: EsmPreTrainedModel) -> EsmPreTrainedModel:
    """Give `model` the weights that the reference's keys and the recorded seed stand for."""
    for name, parameter in model.named_parameters():
        own = weight(name, tuple(parameter.shape), facts()["seed"])
        parameter.data.copy_(torch.from_numpy(own))
    return model


def flat(name: str, value: Any) -> dict[str, Tensor]:
    """The tensors of an answer; nested ones are `name.0`, `name.0.1`."""
    if isinstance(value, Tensor):
        return {name: value}
    parts = (flat(f"{name}.{place}", part) for place, part in enumerate(value))
    return {key: tensor for part in parts for key, tensor in part.items()}


def shape(value: Any) -> Any:
    """A nested tuple with shapes in place of tensors."""
    if isinstance(value, Tensor):
        return list(value.shape)
    return None if value is None else [shape(part) for part in value]


def call_all(model: EsmPreTrainedModel, name: str) -> list[Any]:
    """What our model answers to all calls of a case."""
    found: list[Any] = []
    for call in MODELS[name]["calls"]:
        arguments = {
            key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
            for key, value in call.items()
        }
        if "past_of" in arguments:
            past = found[arguments.pop("past_of")]
            arguments["past_key_values"] = past.past_key_values
        found.append(getattr(model, arguments.pop("METHOD", "__call__"))(**arguments))
    return found


def differences(model: EsmPreTrainedModel, name: str) -> dict[str, float]:
    """Largest absolute difference of each answer, at tokens that the masks attend to."""
    worst: dict[str, float] = {}
    with torch.no_grad():
        found = call_all(model, name)
    for number, call in enumerate(MODELS[name]["calls"]):
        recorded = facts()["models"][name]["calls"][number]
        if "tuple" in recorded:
            assert shape(found[number]) == recorded["tuple"], f"call {number}"
            continue
        answer = found[number]
        named = {"contacts": answer} if isinstance(answer, Tensor) else dict(answer.items())
        assert list(named) == recorded["keys"], f"call {number}"
        tensors = {key: x for one in named for key, x in flat(one, named[one]).items()}
        expected = answers()[name][number]
        assert list(tensors) == list(expected)
        for key, tensor in tensors.items():
            if not tensor.numel():  # maps of a layer without heads
                assert tensor.shape == expected[key].shape
                continue
            where = attended(key, call, tensor)
            worst[f"{number} {key}"] = max_abs(tensor, expected[key], where)
    assert worst
    return worst


def attended(key: str, call: dict[str, Any], tensor: Tensor) -> Tensor:
    """Where an answer is about tokens that are attended to: there alone ours is the reference's."""
    ids, mask = call.get("input_ids"), call.get("attention_mask")
    first, *places = key.split(".")
    whole = torch.ones(tensor.shape, dtype=torch.bool)
    if mask is None and ids is not None:
        mask = ids != PAD
    if mask is None or first in ("loss", "contacts") or (len(places) == 2 and places[1] > "1"):
        return whole
    seen = torch.from_numpy(mask).bool()
    if first == "pooler_output":
        return whole & seen[:, :1]
    if first == "past_key_values" and tensor.shape[2] != seen.shape[1]:
        return whole  # behind a past without padding
    if first in ("attentions", "cross_attentions", "past_key_values"):
        return whole & seen[:, None, :, None]
    return whole & seen[:, :, None]
