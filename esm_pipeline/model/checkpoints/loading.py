"""From checkpoint to model: planned from the headers of the files first, then read.

The model is built without memory, so the peak is the weights in their new precision.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypedDict

import torch
from torch import Tensor, nn

from esm_pipeline.errors import WeightsError
from esm_pipeline.model.checkpoints import fair_esm
from esm_pipeline.model.checkpoints.hub import Checkpoint
from esm_pipeline.model.checkpoints.keys import (
    BASE_PREFIX,
    FREQUENCIES,
    HEADS,
    IGNORED,
    POSITIONS,
    TIED,
    class_of,
)
from esm_pipeline.model.checkpoints.tensors import StoredTensor
from esm_pipeline.model.checkpoints.weights import CheckpointModel

Mismatch = tuple[str, tuple[int, ...], tuple[int, ...]]
"""A key, the shape in the checkpoint, and the shape that the config requires."""

MOST_CLASS_NAME = 500
"""Characters of a class name that an error quotes from a config."""


class LoadingInfo(TypedDict):
    """What `from_pretrained` returns with `output_loading_info`."""

    missing_keys: list[str]
    """Weights that were initialised at random."""
    unexpected_keys: list[str]
    """Keys of heads that the class lacks."""
    mismatched_keys: list[Mismatch]
    """Weights of another shape, initialised at random."""
    error_msgs: list[str]
    """Empty: what cannot be loaded is an error."""


FRESH = ("pooler.", "classifier.")
"""Heads that may be missing from a checkpoint: they are initialised, with a warning."""

FAIR_FRESH = ("contact_head.", "esm.contact_head.")
"""The same for original fair-esm files, whose contact regression is in a file of its own."""


@contextmanager
def gc_paused() -> Iterator[None]:
    """Pause Python's garbage collection: loading makes thousands of objects that all stay alive.

    The collector would visit everything that is imported, which takes longer than loading a model.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@dataclass
class LoadPlan:
    """Which tensor of a checkpoint goes where in a model, known from the headers of the files."""

    sources: dict[str, StoredTensor] = field(default_factory=dict)
    """Parameter → the tensor that fills it."""

    missing: list[str] = field(default_factory=list)
    mismatched: list[Mismatch] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    @property
    def info(self) -> LoadingInfo:
        """What `output_loading_info` returns."""
        return LoadingInfo(
            missing_keys=self.missing,
            unexpected_keys=self.unexpected,
            mismatched_keys=self.mismatched,
            error_msgs=[],
        )

    @property
    def causes(self) -> list[str]:
        """Reasons why some weights are initialised at random."""
        causes = [f"no weights for {', '.join(sorted(self.missing))}"] if self.missing else []
        for key, found, required in self.mismatched:
            causes.append(f"'{key}' has shape {found}, not {required}")
        return causes


def load_weights(
    model: CheckpointModel,
    checkpoint: Checkpoint,
    stored_tensors: dict[str, StoredTensor],
    dtype: torch.dtype | None,
    device: torch.device | str,
    *,
    ignore_mismatched_sizes: bool = False,
) -> LoadingInfo:
    """Fill `model`, built on the meta device, with the `stored_tensors` of `checkpoint`.

    Returns `missing_keys` and `mismatched_keys` (both initialised at random; the latter with the
    shapes found and required) and `unexpected_keys` (of heads that the class lacks). On the meta
    device, only the headers of the files are read. Raises WeightsError for any other difference.
    """
    plan = plan_weights(model, checkpoint, stored_tensors, ignore_mismatched_sizes)
    encoder = model.base_model.encoder
    if encoder.rotary:
        encoder.frequencies = read_frequencies(encoder.frequencies, stored_tensors, checkpoint)
    if torch.device(device).type == "meta":
        return plan.info
    state = read_state(
        plan, {name: model.precision_of(name) or dtype for name in plan.sources}, device
    )
    precision = dtype or next(iter(state.values())).dtype
    if not model.is_foreign():
        for module in fresh_modules(model, state.keys()):
            module.to_empty(device=device, recurse=False).to(precision)
            for own in module.parameters(recurse=False):
                nn.init.zeros_(own)
            initialise(module, model.config.initializer_range)
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    if model.is_foreign():
        model.to(device, precision)
    if plan.causes:
        remedy = "train before use"
        if checkpoint.is_fair_esm:
            regression = fair_esm.regression_of(checkpoint.weight_files[0])
            remedy += f", or put {regression.name} into the same folder"
        warnings.warn(
            f"{checkpoint.name}: {'; '.join(plan.causes)}; initialised at random, {remedy}",
            stacklevel=4,  # the caller of from_pretrained, which `gc_paused` wraps
        )
    return plan.info


def plan_weights(
    model: CheckpointModel,
    checkpoint: Checkpoint,
    stored_tensors: Mapping[str, StoredTensor],
    ignore_mismatched_sizes: bool = False,
) -> LoadPlan:
    """Match tensors and parameters. Raises WeightsError for what does not fit."""
    plan = LoadPlan()
    keys = match_prefix(model, stored_tensors)
    for name, parameter in required_of(model).items():
        if name not in keys:
            if not may_be_new(name, model, checkpoint):
                raise missing_key(model, name, keys, checkpoint)
            plan.missing.append(name)
            continue
        stored = stored_tensors[keys.pop(name)]
        required = tuple(parameter.shape)
        if stored.shape != required and ignore_mismatched_sizes:
            plan.mismatched.append((name, stored.shape, required))
            continue
        require_fit(stored, parameter, name, checkpoint, other_class(model, name, keys))
        plan.sources[name] = stored
    plan.unexpected = unexpected_keys(model, keys, checkpoint)
    return plan


def required_of(model: CheckpointModel) -> dict[str, Tensor]:
    """What a checkpoint should have: the parameters, and the buffers of a script's own class."""
    required: dict[str, Tensor] = dict(model.named_parameters())
    if model.is_foreign():
        saved = model.state_dict().keys()
        own = {name: held for name, held in model.named_buffers() if name in saved}
        required |= {name: held for name, held in own.items() if not FREQUENCIES.fullmatch(name)}
    return required


def may_be_new(name: str, model: CheckpointModel, checkpoint: Checkpoint) -> bool:
    """Whether a parameter may be missing from a checkpoint; it is then initialised."""
    if model.is_foreign() and not name.startswith(BASE_PREFIX):
        return True
    return name.startswith(FRESH) or (checkpoint.is_fair_esm and name.startswith(FAIR_FRESH))


def missing_key(
    model: CheckpointModel, key: str, keys: Mapping[str, str], checkpoint: Checkpoint
) -> WeightsError:
    """The error for a key that the checkpoint lacks; it names the class to use instead."""
    message = (
        f"{checkpoint.name}: no '{key}' among its weights; {type(model).__name__} needs it"
        f"{other_class(model, key, keys)}"
    )
    if key.startswith(HEADS) and not any(other.startswith(key.split(".")[0]) for other in keys):
        message = (
            f"{checkpoint.name}: has no {key.split('.')[0]} ('{key}'), the head of "
            f"{type(model).__name__}; load it with {class_of(keys)}"
        )
    return WeightsError(message)


def read_state(
    plan: LoadPlan, dtypes: Mapping[str, torch.dtype | None], device: torch.device | str
) -> dict[str, Tensor]:
    """Parameter → its weights on `device`, in the precision of `dtypes` (None: that of the file).

    A tensor that keeps the precision of its file is mapped, any other is copied.
    """
    state: dict[str, Tensor] = {}
    for name, stored in plan.sources.items():
        assert isinstance(stored.dtype, torch.dtype), "require_fit checks this"
        dtype = dtypes[name]
        precision = dtype if dtype and stored.is_weight else stored.dtype
        if stored.dtype == precision and torch.device(device).type == "cpu":
            state[name] = stored.mapped()
        else:
            state[name] = torch.empty(stored.shape, dtype=precision, device=device)
            stored.copy_to(state[name])
    return state


def read_frequencies(
    own: Tensor, stored_tensors: Mapping[str, StoredTensor], checkpoint: Checkpoint
) -> Tensor:
    """The rotary frequencies (K / 2,) of a checkpoint; the model's `own` if it has none.

    ESM-2 was trained in float16, and its published files hold the frequencies rounded to that
    precision. They are part of the weights: at position 1,000, angles differ by up to 0.16. All
    layers have the same. Raises WeightsError if they differ or do not fit.
    """
    found: Tensor | None = None
    for key, stored in stored_tensors.items():
        if not FREQUENCIES.fullmatch(key):
            continue
        if stored.shape != own.shape or not stored.is_weight:
            raise WeightsError(
                f"{checkpoint.name}: '{key}' is {stored.dtype} of shape {stored.shape}, the config "
                f"requires numbers of shape {tuple(own.shape)}; weights and config.json do not "
                "belong together"
            )
        table = torch.empty(own.shape, dtype=own.dtype)
        stored.copy_to(table)
        if found is not None and not torch.equal(found, table):
            raise WeightsError(
                f"{checkpoint.name}: '{key}' differs from the frequencies of other layers; no "
                "model here can have different ones"
            )
        found = table
    return own if found is None else found


def fresh_modules(model: CheckpointModel, loaded: Set[str]) -> list[nn.Module]:
    """The modules with a parameter of their own that is not loaded."""
    names = [name for name, _ in model.named_parameters() if name not in loaded]
    places = dict.fromkeys(name.rpartition(".")[0] for name in names)
    return [model.get_submodule(place) for place in places]


def initialise(module: nn.Module, spread: float) -> None:
    """Random weights for one module: normal with deviation `spread`; padding and biases zero."""
    if isinstance(module, nn.LayerNorm):
        module.reset_parameters()
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=spread)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=spread)
        if module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()


def match_prefix(model: CheckpointModel, tensors: Iterable[str]) -> dict[str, str]:
    """Key as the class of the model spells it → key in the files.

    The keys of the encoder begin with `esm.` in the checkpoint of a model with a head, and have no
    prefix in that of the bare model.
    """
    has_head = hasattr(model, "esm")
    saved_with_head = any(key.startswith(BASE_PREFIX) for key in tensors)
    keys = {}
    for key in tensors:
        name = key
        if saved_with_head and not has_head:
            name = key.removeprefix(BASE_PREFIX)
        elif has_head and not saved_with_head and not key.startswith(HEADS):
            name = BASE_PREFIX + key
        keys[name] = key
    return keys


def require_fit(
    stored: StoredTensor, parameter: Tensor, name: str, checkpoint: Checkpoint, other: str
) -> None:
    """Raise WeightsError for a tensor without the shape of `parameter`, or without numbers.

    other: the remedy if it belongs to a head, from `other_class`.
    """
    required = tuple(parameter.shape)
    if stored.shape != required:
        remedy = "weights and config.json do not belong together"
        if name.startswith(HEADS) and other:
            remedy = other.removeprefix("; ")
        if name.startswith(FRESH):
            remedy = (
                "leave num_labels out, or initialise it again with ignore_mismatched_sizes=True"
            )
        raise WeightsError(
            f"{checkpoint.name}: '{name}' has the shape {stored.shape}, the config requires "
            f"{required}; {remedy}"
        )
    if isinstance(parameter, nn.Parameter) and not stored.is_weight:
        raise WeightsError(f"{checkpoint.name}: '{name}' is {stored.dtype}, not a type for weights")


def unexpected_keys(
    model: CheckpointModel, keys: Mapping[str, str], checkpoint: Checkpoint
) -> list[str]:
    """The unused keys, all of heads that the class lacks. Raises WeightsError for others."""
    own = tuple(f"{name}." for name, _ in model.named_children())
    heads = []
    for key in keys:
        bare = key.removeprefix(BASE_PREFIX)
        if IGNORED.fullmatch(bare) or bare == POSITIONS or key == TIED:
            continue
        if not bare.startswith(HEADS) or (key.startswith(own) and not key.startswith(BASE_PREFIX)):
            raise WeightsError(
                f"{checkpoint.name}: '{key}' among its weights is not part of "
                f"{type(model).__name__}"
                f"{other_class(model, key, keys) or '; is config.json the one it was saved with?'}"
            )
        heads.append(key)
    return heads


def other_class(model: CheckpointModel, key: str, keys: Iterable[str]) -> str:
    """The remedy for a checkpoint of another class: the one in its config, or that of its head.

    Empty if the model is of that class. `key` does not fit; `keys` are those of the checkpoint.
    """
    saved_with = model.config.architectures
    if isinstance(saved_with, list) and saved_with and str(saved_with[0]).isidentifier():
        name = str(saved_with[0])[:MOST_CLASS_NAME]
    elif key.startswith(HEADS):
        name = class_of(keys)
    else:
        return ""
    return "" if name == type(model).__name__ else f"; load it with {name}"
