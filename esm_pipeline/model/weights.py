"""Checkpoint files and the one table between our names and the reference's, both ways.

Loading builds the model without memory, maps the files, and assigns each tensor: the peak is the
weights in their new precision. Only safetensors and `weights_only` pickles are read.
"""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Set
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from esm_pipeline.errors import WeightsError
from esm_pipeline.files import atomic_path
from esm_pipeline.model.hub import SAFETENSORS_FILE, Checkpoint
from esm_pipeline.model.rotary import rotary_frequencies

if TYPE_CHECKING:
    from esm_pipeline.model.base import EsmPreTrainedModel

BASE_PREFIX = "esm."
LAYER = re.compile(r"(.*encoder\.layer\.\d+)\.([\w.]+)\.(weight|bias)")
LAYER_NAMES = {
    "attention_norm": ("attention.LayerNorm",),
    "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "distances": ("attention.self.distance_embedding",),
    "attention_out": ("attention.output.dense",),
    "cross.norm": ("crossattention.LayerNorm",),
    "cross.query": ("crossattention.self.query",),
    "cross.kv": ("crossattention.self.key", "crossattention.self.value"),
    "cross.out": ("crossattention.output.dense",),
    "feed_norm": ("LayerNorm",),
    "up": ("intermediate.dense",),
    "down": ("output.dense",),
}
"""Modules of a layer here, and in the reference; several are stacked. All other names agree."""

Misfit = tuple[str, tuple[int, ...], tuple[int, ...]]
"""A key, the shape it has, and the shape asked for."""

HEADS = ("lm_head.", "classifier.", "pooler.")
"""Heads that a checkpoint may have and the class being loaded may lack."""

FRESH = ("pooler.", "classifier.")
"""Heads that may be missing from a checkpoint: they are initialised, with a warning."""

CROSS_DISTANCES = "crossattention.self.distance_embedding.weight"
IGNORED = re.compile(rf".*(position_ids|inv_freq|{re.escape(CROSS_DISTANCES)})")
"""Tables that checkpoints carry, and every model makes itself or has no use for."""

POSITIONS = "embeddings.position_embeddings.weight"


def reference_keys(name: str) -> tuple[str, ...]:
    """Keys of the reference that make up our parameter `name`, in stacking order."""
    match = LAYER.fullmatch(name)
    if match is None:
        return (name,)
    layer, module, kind = match.groups()
    return tuple(f"{layer}.{part}.{kind}" for part in LAYER_NAMES[module])


def modern_key(key: str) -> str:
    """`key` with the LayerNorm spellings of old checkpoints (gamma, beta) renewed."""
    return re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", key))


class TensorFiles(Mapping[str, Tensor]):
    """The tensors of a checkpoint's files by key, read when they are asked for."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._open: dict[str, tuple[Any, str]] = {}  # our key: (opened file, key in it)
        self._places: dict[str, Path] = {}
        for path in files:
            opened = open_tensors(path)
            for key in opened.keys():  # noqa: SIM118 - safe_open is no mapping
                self._open[modern_key(key)] = (opened, key)
                self._places[modern_key(key)] = path

    def __getitem__(self, key: str) -> Tensor:
        opened, name = self._open[key]
        try:
            tensor: Tensor = opened.get_tensor(name)
        except SafetensorError as error:
            raise WeightsError(
                f"{self._places[key]}: tensor '{name}' is damaged ({error})"
            ) from None
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._open)

    def __len__(self) -> int:
        return len(self._open)


class PickledTensors:
    """A legacy `.bin` file with the interface of `safe_open`."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors
        self.keys = tensors.keys

    def get_tensor(self, key: str) -> Tensor:
        """The tensor of `key`, mapped from the file."""
        return self._tensors[key]


def open_tensors(path: Path) -> Any:
    """Open one weight file. Raises WeightsError if it is damaged or holds anything but tensors."""
    if path.suffix == ".safetensors":
        try:
            return safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise WeightsError(
                f"{path}: not a whole safetensors file ({error}); download or copy it again"
            ) from None
    try:
        mapped = zipfile.is_zipfile(path)  # files of PyTorch before 1.6 are not
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError:
        raise WeightsError(
            f"{path}: holds pickled code, not only tensors, and is refused; convert it to "
            "safetensors where you trust it"
        ) from None
    except (RuntimeError, OSError, EOFError) as error:
        why = str(error).splitlines()[0]
        raise WeightsError(f"{path}: not a whole weight file ({why}); copy it again") from None
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise WeightsError(f"{path}: holds more than named tensors; this is not a checkpoint")
    return PickledTensors(tensors)


def load_weights(
    model: EsmPreTrainedModel,
    checkpoint: Checkpoint,
    dtype: torch.dtype | None,
    device: torch.device | str,
    *,
    ignore_mismatched_sizes: bool = False,
) -> dict[str, list[Any]]:
    """Fill `model`, built on the meta device, from `checkpoint`, strictly.

    Returns `missing_keys` and `mismatched_keys` (both initialised anew; the latter with the shapes
    found and wanted) and `unexpected_keys` (of heads the class lacks). Raises WeightsError for any
    other difference, naming it.
    """
    tensors = TensorFiles(checkpoint.weight_files)
    keys = match_prefix(model, tensors)
    state: dict[str, Tensor] = {}
    missing: list[str] = []
    mismatched: list[Misfit] = []
    for name, parameter in model.named_parameters():
        wanted = reference_keys(name)
        absent = [key for key in wanted if key not in keys]
        if absent and name.startswith(FRESH):
            missing += absent
            continue
        if absent:
            raise WeightsError(
                f"{checkpoint.name}: no '{absent[0]}' among its weights; {type(model).__name__} "
                f"needs it{other_class(model)}"
            )
        parts = [tensors[keys.pop(key)] for key in wanted]
        wrong = misfits(parts, parameter, name) if ignore_mismatched_sizes else []
        if wrong:
            mismatched += wrong
            continue
        state[name] = fit(parts, parameter, name, checkpoint, dtype, device)
    unexpected = surplus(model, keys, checkpoint)
    for module in fresh_modules(model, state.keys()):
        module.to_empty(device=device, recurse=False).to(dtype or next(iter(state.values())).dtype)
        for own in module.parameters(recurse=False):
            nn.init.zeros_(own)
        initialise(module, model.config.initializer_range)
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    causes = [f"no weights for {', '.join(sorted(missing))}"] if missing else []
    causes += [f"'{key}' has shape {found}, not {asked}" for key, found, asked in mismatched]
    if causes:
        warnings.warn(
            f"{checkpoint.name}: {'; '.join(causes)}; initialised at random, train before use",
            stacklevel=3,
        )
    return {
        "missing_keys": missing,
        "unexpected_keys": unexpected,
        "mismatched_keys": mismatched,
    }


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


def match_prefix(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, str]:
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


def misfits(parts: list[Tensor], parameter: Tensor, name: str) -> list[Misfit]:
    """The keys, with the shapes found and asked for, of parts that do not fill `parameter`."""
    asked = (parameter.shape[0] // len(parts), *parameter.shape[1:])
    shapes = zip(reference_keys(name), (tuple(part.shape) for part in parts), strict=True)
    return [(key, found, asked) for key, found in shapes if found != asked]


def fit(
    parts: list[Tensor],
    parameter: Tensor,
    name: str,
    checkpoint: Checkpoint,
    dtype: torch.dtype | None,
    device: torch.device | str,
) -> Tensor:
    """The tensors of one parameter stacked, in its shape, precision and place."""
    shape = tuple(parameter.shape)
    expected = (shape[0] // len(parts), *shape[1:])
    for key, part in zip(reference_keys(name), parts, strict=True):
        if tuple(part.shape) != expected or not part.is_floating_point():
            remedy = "weights and config.json do not belong together"
            if name.startswith(FRESH):
                remedy = "leave num_labels out, or start it anew with ignore_mismatched_sizes=True"
            raise WeightsError(
                f"{checkpoint.name}: '{key}' is {part.dtype} of shape {tuple(part.shape)}, the "
                f"config asks for numbers of shape {expected}; {remedy}"
            )
    whole = torch.empty(shape, dtype=dtype or parts[0].dtype, device=device)
    start = 0
    for part in parts:
        whole[start : start + part.shape[0]] = part
        start += part.shape[0]
    return whole


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
                f"{other_class(model) or '; is config.json the one it was saved with?'}"
            )
        heads.append(key)
    return heads


def other_class(model: EsmPreTrainedModel) -> str:
    """Where the config tells another class than `model` is of: which one to load it with."""
    told = getattr(model.config, "architectures", None)
    if not isinstance(told, list) or not told or type(model).__name__ in told:
        return ""
    return f"; it was saved from {told[0]}: load it with that class"


def reference_state(model: EsmPreTrainedModel) -> dict[str, Tensor]:
    """The model's weights under the reference's keys, with the tables its loaders look for."""
    state = reference_tables(model)
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    tied -= {name for name, _ in model.named_parameters()}
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        keys = reference_keys(name)
        for key, part in zip(keys, tensor.chunk(len(keys)), strict=True):
            state[key] = part.contiguous()
    return state


def reference_tables(model: EsmPreTrainedModel) -> dict[str, Tensor]:
    """What the reference keeps in a checkpoint without learning or needing it.

    Position tables of models that have other positions, the frequencies of rotary ones, distances
    in cross attention. Without these, transformers 4 and 5 report missing keys.
    """
    config = model.config
    if config.position_embedding_type == "absolute":
        return {}
    prefix = BASE_PREFIX if hasattr(model, "esm") else ""
    most = config.max_position_embeddings
    head_width = config.hidden_size // config.num_attention_heads
    zeros = partial(torch.zeros, dtype=model.dtype)
    tables = {f"{prefix}{POSITIONS}": zeros(most, config.hidden_size)}
    for number in range(config.num_hidden_layers):
        layer = f"{prefix}encoder.layer.{number}"
        attentions = ["attention", *["crossattention"] * config.add_cross_attention]
        if config.position_embedding_type == "rotary":
            for name in attentions:
                key = f"{layer}.{name}.self.rotary_embeddings.inv_freq"
                tables[key] = rotary_frequencies(head_width)
        elif config.add_cross_attention:
            tables[f"{layer}.{CROSS_DISTANCES}"] = zeros(2 * most - 1, head_width)
    return tables


def save_weights(model: EsmPreTrainedModel, folder: str | os.PathLike[str]) -> None:
    """Write `model.safetensors` into `folder`, under the reference's keys."""
    with atomic_path(Path(folder) / SAFETENSORS_FILE) as path:
        save_file(reference_state(model), path, metadata={"format": "pt"})
