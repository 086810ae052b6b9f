"""Adapters of peft, merged into their base model's weights as these are read.

LoRA (Hu et al. 2021), also with the scale of rsLoRA and the magnitudes of DoRA (Liu et al. 2024),
and what is trained together with it: biases, and whole modules such as a classifier. Peer: peft
`merge_and_unload`. An adapter that changes more than the weights of layers is refused, and so is
one that starts from a changed base model (PiSSA, OLoRA): peft itself converts or merges these.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esm_pipeline.errors import WeightsError
from esm_pipeline.json_files import read_object
from esm_pipeline.model.checkpoints.hub import (
    ADAPTER_CONFIG,
    ADAPTER_FILES,
    CONFIG_FILE,
    Checkpoint,
    Location,
)
from esm_pipeline.model.checkpoints.keys import BASE_PREFIX, EMBEDDING, TIED, modern_key
from esm_pipeline.model.checkpoints.tensors import StoredTensor, WeightFile
from esm_pipeline.model.checkpoints.weight_files import open_file

PEFT_PREFIX = "base_model.model."
"""The prefix that peft adds to the names of the model that it wraps."""

MERGE = "merge it with peft (merge_and_unload), and save the result"
TRAINED = "is base_model_name_or_path the one that it was trained on?"
INNER = ".base_layer."
PARTS = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A"
    r"|lora_embedding_B|lora_magnitude_vector)(\.weight)?"
)
PAIRS = (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B"))
"""The two factors of the change of a linear layer, (r, in) and (out, r), or of an embedding,
(r, V) and (D, r)."""

MAGNITUDE, BIAS = "lora_magnitude_vector", "lora_B.bias"
ADAPTER_KEY = re.compile(r"(.*\.)?(lora_|ia3_|prompt_|token_adapter|vera_|hada_|boft_).*")
"""Names of trained tensors that are not weights of a layer."""

KNOWN_SETTINGS = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
    *("revision", "inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha"),
    *("lora_dropout", "fan_in_fan_out", "bias", "use_rslora", "modules_to_save"),
    *("init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern"),
    *("alpha_pattern", "loftq_config", "eva_config", "use_dora", "lora_bias", "megatron_core"),
    *("qalora_group_size", "ensure_weight_tying", "runtime_config"),
}
"""Settings that are respected here, or that only describe the training."""

SAME_BASE = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that do not change the base model."""

TRAINED_CLASSES = {
    "classifier.out_proj.weight": "EsmForSequenceClassification",
    "classifier.weight": "EsmForTokenClassification",
}
"""The last layer of a classifier → the class that has it."""


def adapter_settings(place: Location) -> dict[str, Any]:
    """The settings that an adapter changes in its config, see `Adapter.settings`.

    None for a whole checkpoint, nor for an adapter with a config.json. Raises WeightsError for an
    adapter that cannot be merged.
    """
    config = place.find(ADAPTER_CONFIG)
    if config is None or place.find(CONFIG_FILE):
        return {}
    weights = place.fetch_first(ADAPTER_FILES)
    return {} if weights is None else Adapter.read(config, weights).settings()


def require_merged(keys: Iterable[str], name: str) -> None:
    """Raise WeightsError for weights with an adapter of peft that is not merged."""
    for key in keys:
        if key.startswith(PEFT_PREFIX) or INNER in key or ADAPTER_KEY.fullmatch(key):
            raise WeightsError(
                f"{name}: '{key}' among its weights belongs to an adapter of peft that is not "
                f"merged; {MERGE}, or give the folder with its adapter_config.json"
            )


@dataclass
class Change:
    """The change of one module: two factors, the scale of their product, and more."""

    ranks: list[float]
    """The ranks that the settings allow."""

    alpha: float
    rank_stabilized: bool
    """Whether the product is divided by the square root of the rank (rsLoRA), not by the rank."""

    parts: dict[str, StoredTensor] = field(default_factory=dict)

    @property
    def scale(self) -> float:
        """The number that multiplies the product of the two factors."""
        rank = self.parts[self.pair[0]].shape[0]
        return self.alpha / (math.sqrt(rank) if self.rank_stabilized else rank)

    @property
    def pair(self) -> tuple[str, str]:
        """The names of the two factors."""
        return PAIRS[1] if self.parts.keys() & set(PAIRS[1]) else PAIRS[0]

    def problem(self) -> str | None:
        """Why it cannot be merged, in words; None if it can."""
        down, up = (self.parts.get(name) for name in self.pair)
        if down is None or up is None:
            return f"no {' and '.join(self.pair)} among its weights; is the adapter whole?"
        if [len(down.shape), len(up.shape)] != [2, 2] or down.shape[0] != up.shape[1]:
            return f"its factors have shapes {down.shape} and {up.shape}, which do not fit"
        if down.shape[0] not in self.ranks:
            ranks = " or ".join(map(str, self.ranks))
            return f"has rank {down.shape[0]}, but its settings say {ranks}; which one is right?"
        if self.pair == PAIRS[1] and MAGNITUDE in self.parts:
            return f"DoRA of an embedding cannot be merged here; {MERGE}"
        return None

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether it fits a weight of this shape."""
        down, up = (self.parts[name].shape for name in self.pair)
        product = (down[1], up[0]) if self.pair == PAIRS[1] else (up[0], down[1])
        rows = [self.parts[name].shape for name in (MAGNITUDE, BIAS) if name in self.parts]
        return product == shape and all(one == shape[:1] for one in rows)

    def weight(self, base: Tensor) -> Tensor:
        """The merged weight, of the shape of the `base` weight."""
        down, up = (as_float(self.parts[name]) for name in self.pair)
        if self.pair == PAIRS[1]:
            return base + (up @ down).T * self.scale
        whole = base + (up @ down) * self.scale
        if MAGNITUDE not in self.parts:
            return whole
        lengths: Tensor = whole.norm(dim=1)
        return whole * (as_float(self.parts[MAGNITUDE]) / lengths).unsqueeze(1)

    def bias(self, base: Tensor) -> Tensor:
        """The merged bias."""
        return base + as_float(self.parts[BIAS]) * self.scale


@dataclass
class Adapter:
    """An adapter: the changes of modules, and the weights that it replaces.

    Modules and weights are named without the prefix of the encoder.
    """

    path: Path
    changes: dict[str, Change]
    replacements: dict[str, StoredTensor]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Adapter | None:
        """The adapter of a checkpoint, None if it is a whole one. Raises WeightsError."""
        return cls.read(*checkpoint.adapter) if checkpoint.adapter else None

    @classmethod
    def read(cls, config: Path, weights: Path) -> Adapter:
        """Read an adapter's settings and the header of its weights. Raises WeightsError."""
        settings = read_adapter_config(config)
        adapter = cls(weights, {}, {})
        for stored in open_file(weights).stored_tensors():
            name = stored.key.removeprefix(PEFT_PREFIX)
            match = PARTS.fullmatch(name)
            if not match and ADAPTER_KEY.fullmatch(name):
                raise WeightsError(f"{weights}: '{stored.key}' cannot be merged here; {MERGE}")
            if not stored.is_weight:
                raise WeightsError(
                    f"{weights}: '{stored.key}' is {stored.dtype}, not a type for weights"
                )
            if not match:
                adapter.replacements[bare(modern_key(name.replace(INNER, ".")))] = stored
                continue
            module = bare(match["module"])
            if module not in adapter.changes:
                adapter.changes[module] = change_of(settings, match["module"], config)
            adapter.changes[module].parts[match["part"]] = stored
        for module, change in adapter.changes.items():
            problem = change.problem()
            if problem:
                raise WeightsError(f"{weights}: {module}: {problem}")
        if not adapter.changes and not adapter.replacements:
            raise WeightsError(f"{weights}: has no tensors; is the adapter whole?")
        return adapter

    @property
    def unties(self) -> bool:
        """Whether the token embedding differs from the head that shares it, after merging."""
        return not {TIED, bare(EMBEDDING)}.isdisjoint(
            {*self.replacements, *(f"{module}.weight" for module in self.changes)}
        )

    def settings(self) -> dict[str, Any]:
        """Settings that follow from the weights: labels and class of a new classifier."""
        for key, name in TRAINED_CLASSES.items():
            stored = self.replacements.get(key)
            if stored is not None and len(stored.shape) == 2:
                return {"num_labels": stored.shape[0], "architectures": [name]}
        return {}

    def merged(self, stored_tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
        """The tensors of the base model with the adapter merged. Raises WeightsError."""
        keys = {bare(key): key for key in stored_tensors}
        merged = dict(stored_tensors)
        if self.unties and TIED not in keys and bare(EMBEDDING) in keys:
            merged[TIED] = renamed(stored_tensors[keys[bare(EMBEDDING)]], TIED)
        known = {bare(key): key for key in merged}
        for name, stored in self.replacements.items():
            merged[known.get(name, name)] = renamed(stored, known.get(name, name))
        for module, change in self.changes.items():
            for name in [f"{module}.weight", f"{module}.bias"][: 1 + (BIAS in change.parts)]:
                if name not in known:
                    raise WeightsError(
                        f"{self.path}: changes '{name}', which its base model lacks; {TRAINED}"
                    )
                base = merged[known[name]]
                if name.endswith(".weight") and not change.fits(base.shape):
                    raise WeightsError(
                        f"{self.path}: does not fit '{name}' of its base model, of shape "
                        f"{base.shape}; {TRAINED}"
                    )
                file = MergedFile(base, change, self.path)
                merged[known[name]] = StoredTensor(file, known[name], base.dtype, base.shape)
        return merged


class MergedFile(WeightFile):
    """One tensor of a base model, changed by an adapter."""

    def __init__(self, base: StoredTensor, change: Change, path: Path) -> None:
        super().__init__(path)
        self.base, self.change = base, change

    def stored_tensors(self) -> Iterator[StoredTensor]:
        """See the base class."""
        yield StoredTensor(self, self.base.key, self.base.dtype, self.base.shape)

    def mapped(self, stored: StoredTensor) -> Tensor:
        """See the base class; computed, not mapped."""
        assert isinstance(stored.dtype, torch.dtype), "callers check is_weight first"
        return self.computed().to(stored.dtype)

    def copy(self, stored: StoredTensor, target: Tensor) -> None:
        """See the base class."""
        target.copy_(self.computed())

    def computed(self) -> Tensor:
        """The merged tensor, in float32 or float64."""
        base = as_float(self.base)
        return self.change.bias(base) if base.ndim == 1 else self.change.weight(base)


class RenamedFile(WeightFile):
    """One tensor of a file under another name."""

    def __init__(self, stored: StoredTensor) -> None:
        super().__init__(stored.file.path)
        self.inner = stored

    def stored_tensors(self) -> Iterator[StoredTensor]:
        """See the base class."""
        yield self.inner

    def mapped(self, stored: StoredTensor) -> Tensor:
        """See the base class."""
        return self.inner.mapped()

    def copy(self, stored: StoredTensor, target: Tensor) -> None:
        """See the base class."""
        self.inner.copy_to(target)


def renamed(stored: StoredTensor, key: str) -> StoredTensor:
    """A tensor under the name `key`."""
    return StoredTensor(RenamedFile(stored), key, stored.dtype, stored.shape)


def bare(key: str) -> str:
    """A name without the prefix of the encoder in models with a head."""
    return key.removeprefix(BASE_PREFIX)


def as_float(stored: StoredTensor) -> Tensor:
    """A tensor of a file, in float32 or float64."""
    assert isinstance(stored.dtype, torch.dtype), "callers check is_weight first"
    found = torch.empty(stored.shape, dtype=torch.promote_types(stored.dtype, torch.float32))
    stored.copy_to(found)
    return found


def read_adapter_config(path: Path) -> dict[str, Any]:
    """The settings in `adapter_config.json`. Raises WeightsError if they cannot be merged here."""
    try:
        settings = read_object(path)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: not the settings of an adapter ({error})") from None
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise WeightsError(
            f"{path}: an adapter of peft_type {kind!r}, but only LORA is merged here; combine it "
            "with its base model in Python, by PeftModel.from_pretrained"
        )
    start = settings.get("init_lora_weights", True)
    if start not in SAME_BASE:
        raise WeightsError(
            f"{path}: init_lora_weights is {start!r}, which starts from a changed base model; "
            "convert it to plain LoRA (path_initial_model_for_weight_conversion), or " + MERGE
        )
    for name, value in settings.items():
        if name not in KNOWN_SETTINGS and value:
            raise WeightsError(f"{path}: {name} is set, which cannot be merged here; {MERGE}")
    return settings


def change_of(settings: Mapping[str, Any], module: str, path: Path) -> Change:
    """The ranks and the scale that the settings give to `module`. Raises WeightsError.

    peft does not keep the order of patterns: if several match and disagree, it is not known which
    one was used.
    """
    ranks = pattern_values(settings, "rank_pattern", "r", module, path)
    alphas = pattern_values(settings, "alpha_pattern", "lora_alpha", module, path)
    if len(alphas) > 1:
        values = " and ".join(map(str, alphas))
        raise WeightsError(f"{path}: alpha_pattern gives {module} {values}; keep one of them")
    return Change(ranks, alphas[0], bool(settings.get("use_rslora")))


def pattern_values(
    settings: Mapping[str, Any], patterns: str, default: str, module: str, path: Path
) -> list[float]:
    """The values that matching `patterns` give to `module`, else the `default` setting.

    Raises WeightsError for what is not a positive number.
    """
    try:
        found = [
            value
            for pattern, value in (settings.get(patterns) or {}).items()
            if re.fullmatch(rf"(.*\.)?({pattern})", module)
        ]
    except (re.error, AttributeError) as error:
        raise WeightsError(f"{path}: {patterns} cannot be read ({error})") from None
    values = found or [settings.get(default, 8)]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise WeightsError(f"{path}: {default} is {value!r}; it should be a number above 0")
    return list(dict.fromkeys(values))
