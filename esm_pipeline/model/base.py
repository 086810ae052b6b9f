"""What the ESM classes share: construction, `from_pretrained`, `save_pretrained`.

Peer: transformers `PreTrainedModel`, cut down to what its users call on ESM models.
"""

from __future__ import annotations

import difflib
import inspect
import os
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from esm_pipeline.errors import InputError, WeightsError
from esm_pipeline.model.config import EsmConfig
from esm_pipeline.model.hub import CONFIG_FILE, HUB_OPTIONS, resolve_checkpoint
from esm_pipeline.model.weights import initialise, load_weights, save_weights

M = TypeVar("M", bound="EsmPreTrainedModel")


class EsmPreTrainedModel(nn.Module):
    """Base of the ESM models."""

    config_class = EsmConfig
    name_or_path: str = ""
    folder: Path | None = None
    """Where the checkpoint lies that the weights are from."""

    optimized = False
    """Whether `optimize_for_inference` made this model, which then cannot be saved or trained."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        config.require_supported()
        self.config = config

    def post_init(self) -> None:
        """Random weights as the reference starts from: normal, norms at one, biases at zero."""
        for module in self.modules():
            initialise(module, self.config.initializer_range)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.parameters()).device

    def num_parameters(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.parameters())

    @classmethod
    def from_pretrained(
        cls: type[M],
        path_or_hub_id: str | os.PathLike[str],
        *,
        config: EsmConfig | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device: torch.device | str = "cpu",
        output_loading_info: bool = False,
        **options: Any,
    ) -> Any:
        """Load a checkpoint of a folder, a hub id or "demo"; the model is in evaluation mode.

        `revision`, `cache_dir`, `local_files_only` and `token` say where from; `dtype` (also spelt
        `torch_dtype`) is the precision, float32 unless told, "auto" for the file's; other keywords
        go to the class (`add_pooling_layer`) or replace settings of the config. With
        `output_loading_info`, returns (model, dict): the keys that were missing and left out. A
        missing pooler or classifier is initialised with a warning. Raises WeightsError for any
        other missing or unexpected key, and for a checkpoint that cannot be read.
        """
        where = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
        checkpoint = resolve_checkpoint(os.fspath(path_or_hub_id), **where)
        known = inspect.signature(cls).parameters.keys() - {"config"}
        arguments = {name: options.pop(name) for name in known if name in options}
        refuse_misspelt(options)
        if config is None:
            config = cls.config_class.from_file(checkpoint.folder / CONFIG_FILE, **options)
        with torch.device("meta"), Unfilled():
            model = cls(config, **arguments)
        info = load_weights(
            model, checkpoint, read_dtype(dtype if dtype is not None else torch_dtype), device
        )
        model.name_or_path, model.folder = checkpoint.name, checkpoint.folder
        model.eval()
        return (model, info) if output_loading_info else model

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `config.json` and `model.safetensors` in the layout of transformers 4.37.2.

        Raises InputError for what `optimize_for_inference` made.
        """
        if self.optimized:
            raise InputError("a model optimized for inference cannot be saved; save the original")
        self.config.save_pretrained(folder)
        save_weights(self, folder)


class Unfilled(TorchFunctionMode):
    """Leaves new weights as they are: on the meta device random ones load SymPy, in two seconds."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def refuse_misspelt(options: dict[str, Any]) -> None:
    """Raise InputError for a keyword that is nearly one of `from_pretrained`, but for a letter."""
    known = [*HUB_OPTIONS, "config", "dtype", "device", "add_pooling_layer", "output_loading_info"]
    for name in options:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
        if near:
            raise InputError(f"from_pretrained: no argument '{name}'; did you mean '{near[0]}'?")


def read_dtype(given: torch.dtype | str | None) -> torch.dtype | None:
    """The dtype asked for; None stands for the checkpoint's own. Raises WeightsError."""
    if given == "auto":
        return None
    if isinstance(given, str):
        found = getattr(torch, given.removeprefix("torch."), None)
    else:
        found = torch.float32 if given is None else given
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise WeightsError(f"dtype '{given}' is not known; use float32, bfloat16 or auto")
    return found
