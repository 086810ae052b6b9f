"""Adapters of peft, merged into their base model's weights as these are read.

LoRA (Hu et al. 2021), with rsLoRA's scale and DoRA's magnitudes (Liu et al. 2024), and what is
trained beside it: biases, and whole modules such as a classifier. Peer: peft `merge_and_unload`.
Whatever changes more than the weights of layers is refused by its name, and so is what starts from
a changed base model (PiSSA, OLoRA): peft itself converts or merges these.
"""

from __future__ import annotations

import math
import os
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
    find_file,
    local_path,
)
from esm_pipeline.model.checkpoints.hub_client import cached
from esm_pipeline.model.checkpoints.loading import open_file
from esm_pipeline.model.checkpoints.tensors import Entry, WeightFile
from esm_pipeline.model.checkpoints.weights import BASE_PREFIX, EMBEDDING, TIED, modern_key

PREFIX = "base_model.model."
"""What peft puts before the names of the model that it wraps."""

MERGE = "merge it with peft (merge_and_unload), and save what comes out"
TRAINED = "is base_model_name_or_path the one that it was trained on?"
INNER = ".base_layer."
PARTS = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A"
    r"|lora_embedding_B|lora_magnitude_vector)(\.weight)?"
)
PAIRS = (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B"))
"""The two factors of what is added to a linear layer (r, in), (out, r), or an embedding (r, V),
(D, r)."""

MAGNITUDE, BIAS = "lora_magnitude_vector", "lora_B.bias"
FOREIGN = re.compile(r"(.*\.)?(lora_|ia3_|prompt_|token_adapter|vera_|hada_|boft_).*")
"""Names of trained things that are no weights of a layer."""

WITHOUT_EFFECT = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
    *("revision", "inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha"),
    *("lora_dropout", "fan_in_fan_out", "bias", "use_rslora", "modules_to_save"),
    *("init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern"),
    *("alpha_pattern", "loftq_config", "eva_config", "use_dora", "lora_bias", "megatron_core"),
    *("qalora_group_size", "ensure_weight_tying", "runtime_config"),
}
"""Settings that are followed here, or say only how the adapter was trained."""

SAME_BASE = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base model as it is."""

TRAINED_CLASSES = {
    "classifier.out_proj.weight": "EsmForSequenceClassification",
    "classifier.weight": "EsmForTokenClassification",
}
"""The last layer of a classifier, and the class it makes."""


def settings_of(name: str, **where: Any) -> dict[str, Any]:
    """What an adapter says of its config: `Adapter.settings`, unless a config.json stands by it.

    Nothing for a whole checkpoint. Raises WeightsError for an adapter that cannot be merged.
    """
    if os.path.isfile(name):
        return {}
    path = local_path(name)
    found = cached(name, ADAPTER_CONFIG, **where) if path is None else path / ADAPTER_CONFIG
    if found is None or not found.is_file() or (found.parent / CONFIG_FILE).is_file():
        return {}
    weights = (find_file(name, file, **where) for file in ADAPTER_FILES)
    held = next((one for one in weights if one is not None), None)
    return {} if held is None else Adapter.read(found, held).settings()


def require_merged(keys: Iterable[str], name: str) -> None:
    """Raise WeightsError for weights with an adapter of peft still beside them."""
    for key in keys:
        if key.startswith(PREFIX) or INNER in key or FOREIGN.fullmatch(key):
            raise WeightsError(
                f"{name}: '{key}' among its weights is of a model with an adapter of peft that is "
                f"not merged; {MERGE}, or give the folder with its adapter_config.json"
            )


@dataclass
class Change:
    """What an adapter has for one module: two factors, the scale of their product, and more."""

    ranks: list[float]
    """What the settings say that the rank may be."""

    alpha: float
    rooted: bool
    """Whether the product is divided by the root of the rank (rsLoRA), not by the rank."""

    parts: dict[str, Entry] = field(default_factory=dict)

    @property
    def scale(self) -> float:
        """What the product of the two factors is multiplied by."""
        rank = self.parts[self.pair[0]].shape[0]
        return self.alpha / math.sqrt(rank) if self.rooted else self.alpha / rank

    @property
    def pair(self) -> tuple[str, str]:
        """The names of the two factors."""
        return PAIRS[1] if self.parts.keys() & set(PAIRS[1]) else PAIRS[0]

    def problem(self) -> str | None:
        """What keeps it from being merged, in words; None if nothing does."""
        down, up = (self.parts.get(name) for name in self.pair)
        if down is None or up is None:
            return f"no {' and '.join(self.pair)} among its weights; is the adapter whole?"
        if [len(down.shape), len(up.shape)] != [2, 2] or down.shape[0] != up.shape[1]:
            return f"its factors have shapes {down.shape} and {up.shape}, which do not fit"
        if down.shape[0] not in self.ranks:
            told = " or ".join(map(str, self.ranks))
            return f"is of rank {down.shape[0]}, its settings say {told}; are they of another?"
        if self.pair == PAIRS[1] and MAGNITUDE in self.parts:
            return f"DoRA of an embedding cannot be merged here; {MERGE}"
        return None

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether it goes with a weight of this shape."""
        down, up = (self.parts[name].shape for name in self.pair)
        product = (down[1], up[0]) if self.pair == PAIRS[1] else (up[0], down[1])
        rows = [self.parts[name].shape for name in (MAGNITUDE, BIAS) if name in self.parts]
        return product == shape and all(one == shape[:1] for one in rows)

    def weight(self, base: Tensor) -> Tensor:
        """The merged weight, of the shape of the `base` weight."""
        down, up = (read(self.parts[name]) for name in self.pair)
        if self.pair == PAIRS[1]:
            return base + (up @ down).T * self.scale
        whole = base + (up @ down) * self.scale
        if MAGNITUDE not in self.parts:
            return whole
        lengths: Tensor = whole.norm(dim=1)
        return whole * (read(self.parts[MAGNITUDE]) / lengths).unsqueeze(1)

    def bias(self, base: Tensor) -> Tensor:
        """The merged bias."""
        return base + read(self.parts[BIAS]) * self.scale


@dataclass
class Adapter:
    """An adapter: what it changes of modules, and what it has in place of weights.

    Modules and weights are named without the prefix of the encoder.
    """

    path: Path
    changes: dict[str, Change]
    instead: dict[str, Entry]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Adapter | None:
        """The adapter of a checkpoint, None if it is a whole one. Raises WeightsError."""
        return cls.read(*checkpoint.adapter) if checkpoint.adapter else None

    @classmethod
    def read(cls, config: Path, weights: Path) -> Adapter:
        """Read an adapter's settings and the header of its weights. Raises WeightsError."""
        settings = read_settings(config)
        adapter = cls(weights, {}, {})
        for entry in open_file(weights).entries():
            name = entry.key.removeprefix(PREFIX)
            match = PARTS.fullmatch(name)
            if not match and FOREIGN.fullmatch(name):
                raise WeightsError(f"{weights}: '{entry.key}' cannot be merged here; {MERGE}")
            if not entry.is_weight:
                raise WeightsError(f"{weights}: '{entry.key}' is {entry.dtype}, no type of weights")
            if not match:
                adapter.instead[bare(modern_key(name.replace(INNER, ".")))] = entry
                continue
            module = bare(match["module"])
            if module not in adapter.changes:
                adapter.changes[module] = change_of(settings, match["module"], config)
            adapter.changes[module].parts[match["part"]] = entry
        for module, change in adapter.changes.items():
            problem = change.problem()
            if problem:
                raise WeightsError(f"{weights}: {module}: {problem}")
        if not adapter.changes and not adapter.instead:
            raise WeightsError(f"{weights}: holds nothing; is the adapter whole?")
        return adapter

    @property
    def unties(self) -> bool:
        """Whether the token embedding and the head that shares it differ, once it is merged."""
        return not {TIED, bare(EMBEDDING)}.isdisjoint(
            {*self.instead, *(f"{module}.weight" for module in self.changes)}
        )

    def settings(self) -> dict[str, Any]:
        """What follows from the weights for the config: labels and class of a new classifier."""
        for key, name in TRAINED_CLASSES.items():
            entry = self.instead.get(key)
            if entry is not None and len(entry.shape) == 2:
                return {"num_labels": entry.shape[0], "architectures": [name]}
        return {}

    def merged(self, entries: Mapping[str, Entry]) -> dict[str, Entry]:
        """The base model's `entries` with the adapter in them. Raises WeightsError."""
        keys = {bare(key): key for key in entries}
        merged = dict(entries)
        if self.unties and TIED not in keys and bare(EMBEDDING) in keys:
            merged[TIED] = renamed(entries[keys[bare(EMBEDDING)]], TIED)
        known = {bare(key): key for key in merged}
        for name, entry in self.instead.items():
            merged[known.get(name, name)] = renamed(entry, known.get(name, name))
        for module, change in self.changes.items():
            for name in [f"{module}.weight", f"{module}.bias"][: 1 + (BIAS in change.parts)]:
                if name not in known:
                    raise WeightsError(
                        f"{self.path}: adapts '{name}', which its base model lacks; {TRAINED}"
                    )
                base = merged[known[name]]
                if name.endswith(".weight") and not change.fits(base.shape):
                    raise WeightsError(
                        f"{self.path}: does not fit '{name}' of its base model, of shape "
                        f"{base.shape}; {TRAINED}"
                    )
                file = MergedFile(base, change, self.path)
                merged[known[name]] = Entry(file, known[name], base.dtype, base.shape)
        return merged


class MergedFile(WeightFile):
    """One tensor of a base model with what an adapter changes in it."""

    def __init__(self, base: Entry, change: Change, path: Path) -> None:
        super().__init__(path)
        self.base, self.change = base, change

    def entries(self) -> Iterator[Entry]:
        """See the base class."""
        yield Entry(self, self.base.key, self.base.dtype, self.base.shape)

    def mapped(self, entry: Entry) -> Tensor:
        """See the base class; computed, not mapped."""
        assert isinstance(entry.dtype, torch.dtype), "is_weight is asked first"
        return self.computed().to(entry.dtype)

    def copy(self, entry: Entry, target: Tensor) -> None:
        """See the base class."""
        target.copy_(self.computed())

    def computed(self) -> Tensor:
        """The merged tensor, in float32 at least."""
        base = read(self.base)
        return self.change.bias(base) if base.ndim == 1 else self.change.weight(base)


class RenamedFile(WeightFile):
    """One tensor of a file by another name."""

    def __init__(self, entry: Entry) -> None:
        super().__init__(entry.file.path)
        self.inner = entry

    def entries(self) -> Iterator[Entry]:
        """See the base class."""
        yield self.inner

    def mapped(self, entry: Entry) -> Tensor:
        """See the base class."""
        return self.inner.mapped()

    def copy(self, entry: Entry, target: Tensor) -> None:
        """See the base class."""
        self.inner.copy_to(target)


def renamed(entry: Entry, key: str) -> Entry:
    """A tensor by the name `key`."""
    return Entry(RenamedFile(entry), key, entry.dtype, entry.shape)


def bare(key: str) -> str:
    """A name without the prefix that the encoder has in models with a head."""
    return key.removeprefix(BASE_PREFIX)


def read(entry: Entry) -> Tensor:
    """A tensor of a file in float32, or float64 if it is."""
    assert isinstance(entry.dtype, torch.dtype), "is_weight is asked first"
    found = torch.empty(entry.shape, dtype=torch.promote_types(entry.dtype, torch.float32))
    entry.copy_to(found)
    return found


def read_settings(path: Path) -> dict[str, Any]:
    """What `adapter_config.json` says. Raises WeightsError for what cannot be merged here."""
    try:
        settings = read_object(path)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: not the settings of an adapter ({error})") from None
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise WeightsError(
            f"{path}: an adapter of peft_type {kind!r}, and LORA alone is merged here; put it on "
            "its base model in Python, by PeftModel.from_pretrained"
        )
    start = settings.get("init_lora_weights", True)
    if start not in SAME_BASE:
        raise WeightsError(
            f"{path}: init_lora_weights is {start!r}, which starts from a changed base model; "
            "convert it to plain LoRA (path_initial_model_for_weight_conversion), or " + MERGE
        )
    for name, value in settings.items():
        if name not in WITHOUT_EFFECT and value:
            raise WeightsError(f"{path}: {name} is set, which cannot be merged here; {MERGE}")
    return settings


def change_of(settings: Mapping[str, Any], module: str, path: Path) -> Change:
    """What the settings say of `module`. Raises WeightsError.

    Patterns are written in another order than they were given in, so that of several that match
    and disagree, it is not known which was meant.
    """
    ranks = pattern_values(settings, "rank_pattern", "r", module, path)
    alphas = pattern_values(settings, "alpha_pattern", "lora_alpha", module, path)
    if len(alphas) > 1:
        told = " and ".join(map(str, alphas))
        raise WeightsError(f"{path}: alpha_pattern gives {module} {told}; leave one")
    return Change(ranks, alphas[0], bool(settings.get("use_rslora")))


def pattern_values(
    settings: Mapping[str, Any], patterns: str, default: str, module: str, path: Path
) -> list[float]:
    """What a setting of `module` may be, by the `patterns` that match. Raises WeightsError."""
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
