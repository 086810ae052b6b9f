"""From checkpoints to models: what goes where is planned from the files' headers, then read.

A model is built without memory. The peak is the weights in their new precision.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from esm_pipeline.errors import WeightsError, brief
from esm_pipeline.model.checkpoints import fair_esm
from esm_pipeline.model.checkpoints.hub import FAIR_SUFFIX, Checkpoint
from esm_pipeline.model.checkpoints.pickle_sizes import DIMENSIONS
from esm_pipeline.model.checkpoints.tensors import (
    Entry,
    PickledFile,
    SafetensorsFile,
    WeightFile,
    open_pickle,
)
from esm_pipeline.model.checkpoints.weights import (
    BASE_PREFIX,
    FREQUENCIES,
    IGNORED,
    POSITIONS,
    modern_key,
)

if TYPE_CHECKING:
    from esm_pipeline.model.base import EsmPreTrainedModel

Misfit = tuple[str, tuple[int, ...], tuple[int, ...]]
"""A key, the shape it has, and the shape asked for."""

MOST_NAME = 500
"""Characters of a tensor's name."""

HEADS = ("lm_head.", "classifier.", "pooler.")
"""Heads that a checkpoint may have and the class being loaded may lack."""

FRESH = ("pooler.", "classifier.")
"""Heads that may be missing from a checkpoint: they are initialised, with a warning."""

FAIR_FRESH = ("contact_head.", "esm.contact_head.")
"""The same of original fair-esm files: their contact regression lies in a file of its own."""

CLASSES = {
    "trunk.": "EsmForProteinFolding",
    "lm_head.": "EsmForMaskedLM",
    "classifier.out_proj.": "EsmForSequenceClassification",
    "classifier.": "EsmForTokenClassification",
}
"""Beginnings of the keys of a head, and the class it makes."""


@contextmanager
def uncollected() -> Iterator[None]:
    """Python's search for unreachable objects waits: thousands are made here, and all stay.

    It would go through everything that is imported, and take longer than the loading of a model.
    """
    waits = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if waits:
            gc.enable()


def open_file(path: Path) -> WeightFile:
    """Open one weight file of any layout. Raises WeightsError if it is damaged or refused."""
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    return fair_esm.open_checkpoint(path) if path.suffix == FAIR_SUFFIX else open_pickle(path)


def open_entries(files: Iterable[Path]) -> dict[str, Entry]:
    """Key, in its modern spelling → tensor of a checkpoint's files, not read yet.

    Raises WeightsError for a file that is damaged or refused, and for a key that comes twice.
    """
    entries: dict[str, Entry] = {}
    for path in files:
        for entry in open_file(path).entries():
            if not is_plain(entry):
                raise WeightsError(
                    f"{path}: {brief(entry.key)} is no name of a tensor, or not of one of a model; "
                    "is this a checkpoint?"
                )
            other = entries.setdefault(modern_key(entry.key), entry)
            if other is not entry:
                raise WeightsError(
                    f"{path}: '{entry.key}' is also in {other.file.path.name} as '{other.key}'; "
                    "which one holds is not known: remove one"
                )
    return entries


def is_plain(entry: Entry) -> bool:
    """Whether a tensor has a name of one line, and no more dimensions than PyTorch has."""
    name = entry.key
    return name.isprintable() and len(name) <= MOST_NAME and len(entry.shape) <= DIMENSIONS


def entries_of(state: Mapping[str, Tensor]) -> dict[str, Entry]:
    """The same of weights that a caller gave; they are copied, as those of a file would be."""
    held = {key: tensor.detach().clone() for key, tensor in state.items()}
    file = PickledFile(Path("state_dict"), held)
    return {modern_key(entry.key): entry for entry in file.entries()}


@dataclass
class Plan:
    """Where each part of a checkpoint goes in a model, known from the files' headers alone."""

    sources: dict[str, Entry] = field(default_factory=dict)
    """Parameter → what it is filled with."""

    missing: list[str] = field(default_factory=list)
    mismatched: list[Misfit] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    @property
    def info(self) -> dict[str, list[Any]]:
        """What `output_loading_info` tells."""
        return {
            "missing_keys": self.missing,
            "unexpected_keys": self.unexpected,
            "mismatched_keys": self.mismatched,
            "error_msgs": [],
        }

    @property
    def causes(self) -> list[str]:
        """Why weights are initialised anew."""
        told = [f"no weights for {', '.join(sorted(self.missing))}"] if self.missing else []
        for key, found, asked in self.mismatched:
            told.append(f"'{key}' has shape {found}, not {asked}")
        return told


def load_weights(
    model: EsmPreTrainedModel,
    checkpoint: Checkpoint,
    entries: dict[str, Entry],
    dtype: torch.dtype | None,
    device: torch.device | str,
    *,
    ignore_mismatched_sizes: bool = False,
) -> dict[str, list[Any]]:
    """Fill `model`, built on the meta device, from `checkpoint` and its `entries`, strictly.

    Returns `missing_keys` and `mismatched_keys` (both initialised anew; the latter with the shapes
    found and wanted) and `unexpected_keys` (of heads the class lacks). With the meta device, the
    files' headers are read and nothing else. Raises WeightsError for any other difference.
    """
    plan = plan_weights(model, checkpoint, entries, ignore_mismatched_sizes)
    encoder = model.base_model.encoder
    if encoder.rotary:
        encoder.frequencies = read_frequencies(encoder.frequencies, entries, checkpoint)
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
            remedy += (
                f", or put {fair_esm.regression_of(checkpoint.weight_files[0]).name} beside it"
            )
        warnings.warn(
            f"{checkpoint.name}: {'; '.join(plan.causes)}; initialised at random, {remedy}",
            stacklevel=4,  # who called from_pretrained, within `uncollected`
        )
    return plan.info


def plan_weights(
    model: EsmPreTrainedModel,
    checkpoint: Checkpoint,
    entries: Mapping[str, Entry],
    ignore_mismatched_sizes: bool = False,
) -> Plan:
    """What of `entries` makes up which parameter. Raises WeightsError for what does not fit."""
    plan = Plan()
    keys = match_prefix(model, entries)
    for name, parameter in wanted_of(model).items():
        if name not in keys:
            if not may_be_new(name, model, checkpoint):
                raise lacking(model, name, keys, checkpoint)
            plan.missing.append(name)
            continue
        entry = entries[keys.pop(name)]
        asked = tuple(parameter.shape)
        if entry.shape != asked and ignore_mismatched_sizes:
            plan.mismatched.append((name, entry.shape, asked))
            continue
        require_fit(entry, parameter, name, checkpoint, other_class(model, name, keys))
        plan.sources[name] = entry
    plan.unexpected = surplus(model, keys, checkpoint)
    return plan


def wanted_of(model: EsmPreTrainedModel) -> dict[str, Tensor]:
    """What a checkpoint should have: the parameters, and buffers of a script's own class."""
    wanted: dict[str, Tensor] = dict(model.named_parameters())
    if model.is_foreign():
        kept = model.state_dict().keys()
        own = {name: held for name, held in model.named_buffers() if name in kept}
        wanted |= {name: held for name, held in own.items() if not FREQUENCIES.fullmatch(name)}
    return wanted


def may_be_new(name: str, model: EsmPreTrainedModel, checkpoint: Checkpoint) -> bool:
    """Whether a parameter may be missing from a checkpoint: it is initialised, with a warning."""
    if model.is_foreign() and not name.startswith(BASE_PREFIX):
        return True
    return name.startswith(FRESH) or (checkpoint.is_fair_esm and name.startswith(FAIR_FRESH))


def lacking(
    model: EsmPreTrainedModel, key: str, keys: Mapping[str, str], checkpoint: Checkpoint
) -> WeightsError:
    """The error that `key` is not among a checkpoint's, with the class to load it with instead."""
    told = (
        f"{checkpoint.name}: no '{key}' among its weights; {type(model).__name__} needs it"
        f"{other_class(model, key, keys)}"
    )
    if key.startswith(HEADS) and not any(other.startswith(key.split(".")[0]) for other in keys):
        told = (
            f"{checkpoint.name}: has no {key.split('.')[0]} ('{key}'), the head of "
            f"{type(model).__name__}; load it with {class_of(keys)}"
        )
    return WeightsError(told)


def class_of(keys: Iterable[str]) -> str:
    """The class whose head a checkpoint has."""
    for head, name in CLASSES.items():
        if any(key.startswith(head) for key in keys):
            return name
    return "EsmModel"


def read_state(
    plan: Plan, dtypes: Mapping[str, torch.dtype | None], device: torch.device | str
) -> dict[str, Tensor]:
    """Parameter → its weights, in its of `dtypes` (None: the file's) on `device`.

    What is wanted as it lies in its file is mapped, all else copied into place.
    """
    state: dict[str, Tensor] = {}
    for name, entry in plan.sources.items():
        assert isinstance(entry.dtype, torch.dtype), "require_fit has seen to it"
        dtype = dtypes[name]
        precision = dtype if dtype and entry.is_weight else entry.dtype
        if entry.dtype == precision and torch.device(device).type == "cpu":
            state[name] = entry.mapped()
        else:
            state[name] = torch.empty(entry.shape, dtype=precision, device=device)
            entry.copy_to(state[name])
    return state


def read_frequencies(own: Tensor, entries: Mapping[str, Entry], checkpoint: Checkpoint) -> Tensor:
    """The rotary frequencies (K / 2,) of a checkpoint, or those the model has of its `own`.

    ESM-2 was trained in float16, and its published files hold the frequencies as rounded then:
    they are part of the weights; at position 1,000 angles differ by up to 0.16. Every layer's are
    the same. Raises WeightsError if they are not, or do not fit.
    """
    found: Tensor | None = None
    for key, entry in entries.items():
        if not FREQUENCIES.fullmatch(key):
            continue
        if entry.shape != own.shape or not entry.is_weight:
            raise WeightsError(
                f"{checkpoint.name}: '{key}' is {entry.dtype} of shape {entry.shape}, the config "
                f"asks for numbers of shape {tuple(own.shape)}; weights and config.json do not "
                "belong together"
            )
        table = torch.empty(own.shape, dtype=own.dtype)
        entry.copy_to(table)
        if found is not None and not torch.equal(found, table):
            raise WeightsError(
                f"{checkpoint.name}: '{key}' differs from the frequencies of other layers, which "
                "no model here can have"
            )
        found = table
    return own if found is None else found


def fresh_modules(model: nn.Module, loaded: Set[str]) -> list[nn.Module]:
    """The modules of which a parameter, that no other module has, is not loaded."""
    names = [name for name, _ in model.named_parameters() if name not in loaded]
    places = dict.fromkeys(name.rpartition(".")[0] for name in names)
    return [model.get_submodule(place) for place in places]


def initialise(module: nn.Module, spread: float) -> None:
    """Random weights for one module: normal of deviation `spread`; padding and biases zero."""
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


def match_prefix(model: nn.Module, tensors: Iterable[str]) -> dict[str, str]:
    """Key as the model's class spells it → key in the files.

    The encoder's keys begin with `esm.` in checkpoints of models with a head, and with nothing in
    those of the bare model.
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
    entry: Entry, parameter: Tensor, name: str, checkpoint: Checkpoint, other: str
) -> None:
    """Raise WeightsError for what has not the shape of `parameter`, or no weights for it.

    other: of `other_class`, the remedy for a head.
    """
    asked = tuple(parameter.shape)
    if entry.shape != asked:
        remedy = "weights and config.json do not belong together"
        if name.startswith(HEADS) and other:
            remedy = other.removeprefix("; ")
        if name.startswith(FRESH):
            remedy = "leave num_labels out, or start it anew with ignore_mismatched_sizes=True"
        raise WeightsError(
            f"{checkpoint.name}: '{name}' has the shape {entry.shape}, the config asks for "
            f"{asked}; {remedy}"
        )
    if isinstance(parameter, nn.Parameter) and not entry.is_weight:
        raise WeightsError(f"{checkpoint.name}: '{name}' is {entry.dtype}, no type of weights")


def surplus(
    model: EsmPreTrainedModel, keys: Mapping[str, str], checkpoint: Checkpoint
) -> list[str]:
    """Keys left over that belong to heads the class lacks. Raises WeightsError for others."""
    own = tuple(f"{name}." for name, _ in model.named_children())
    heads = []
    for key in keys:
        bare = key.removeprefix(BASE_PREFIX)
        tied = key == "lm_head.decoder.weight"
        if IGNORED.fullmatch(bare) or bare == POSITIONS or tied:
            continue
        if not bare.startswith(HEADS) or (key.startswith(own) and not key.startswith(BASE_PREFIX)):
            raise WeightsError(
                f"{checkpoint.name}: '{key}' among its weights is not part of "
                f"{type(model).__name__}"
                f"{other_class(model, key, keys) or '; is config.json the one it was saved with?'}"
            )
        heads.append(key)
    return heads


def other_class(model: EsmPreTrainedModel, key: str, keys: Iterable[str]) -> str:
    """Which class to load a checkpoint with, if not `model`'s: the config's, or that of its head.

    `key` is what does not fit, `keys` are what the checkpoint has.
    """
    told = getattr(model.config, "architectures", None)
    if isinstance(told, list) and told and str(told[0]).isidentifier():
        name = str(told[0])[:MOST_NAME]
    elif key.startswith(HEADS):
        name = class_of(keys)
    else:
        return ""
    return "" if name == type(model).__name__ else f"; load it with {name}"
