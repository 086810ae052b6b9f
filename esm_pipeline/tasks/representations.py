"""Sequences to the arrays that `embed` stores: one packed pass of the model for each batch."""

from __future__ import annotations

import json
import math
import platform
import time
import warnings
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esm_pipeline import __version__
from esm_pipeline.errors import CapacityError, WeightsError
from esm_pipeline.formats.hdf5 import Array
from esm_pipeline.formats.results import FORMAT
from esm_pipeline.model import (
    EsmConfig,
    EsmModel,
    EsmTokenizer,
    PackedLayout,
    optimize_for_inference,
)
from esm_pipeline.settings import EmbedSettings
from esm_pipeline.tasks.batching import SPECIAL_TOKENS, check_layer, is_out_of_memory, pack
from esm_pipeline.tasks.device import resolve_device
from esm_pipeline.tasks.model_file import find_checkpoint

Values = NDArray[np.float16] | NDArray[np.float32]

NOT_FINITE = "the model gave values that are not finite numbers"
TOO_LARGE = (
    f"a value beyond ±{torch.finfo(torch.float16).max:.0f} does not fit into float16; set "
    "embed.residue_dtype to float32"
)


class Encoder:
    """A checkpoint and what is wanted of it; `load` it before the first batch.

    Raises InputError for a layer that does not exist, WeightsError for an unusable checkpoint.
    """

    def __init__(self, name: str, revision: str | None, settings: EmbedSettings) -> None:
        self.settings = settings
        self.device = resolve_device(settings.device)
        self.checkpoint = find_checkpoint(name, revision)
        self.config = EsmConfig.from_pretrained(self.checkpoint.source)
        try:
            self.config.require_supported()
        except WeightsError as error:
            raise WeightsError(f"{self.checkpoint.name}: {error}") from None
        count = self.config.num_hidden_layers
        for layer in settings.layers:
            check_layer(layer, count)
        self.seconds = 0.0  # spent in the model
        self.layers = sorted({layer % (count + 1) for layer in settings.layers})

    def check(self) -> None:
        """Judge tokenizer and weights, these by their files' headers. Raises WeightsError."""
        _ = self.tokenizer
        _, info = EsmModel.from_pretrained(
            self.checkpoint.source,
            add_pooling_layer=False,
            device="meta",
            output_loading_info=True,
        )
        if info["missing_keys"] and "contacts" in self.settings.include:
            raise WeightsError(
                f"{self.checkpoint.name}: no '{info['missing_keys'][0]}', and without it contacts "
                "mean nothing; put its contact regression beside it, or leave contacts out"
            )

    def load(self) -> None:
        """Load the weights now. Raises CapacityError if the device has no room for them."""
        try:
            self.check()
            _ = self.model
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise CapacityError(
                f"{self.checkpoint.name}: the model does not fit into the memory of {self.device}; "
                "choose a smaller one, dtype bfloat16, or another device"
            ) from None

    @cached_property
    def model(self) -> EsmModel:
        """The model, ready for inference."""
        dtype = getattr(torch, self.settings.dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that contacts mean nothing: `check` has seen to it
            loaded: EsmModel = EsmModel.from_pretrained(
                self.checkpoint.source, add_pooling_layer=False, dtype=dtype, device=self.device
            )
        return optimize_for_inference(loaded, dtype)

    @cached_property
    def tokenizer(self) -> EsmTokenizer:
        """The checkpoint's tokenizer."""
        found = EsmTokenizer.from_pretrained(self.checkpoint.source)
        try:
            found.require_fit(self.config.vocab_size)
        except WeightsError as error:
            raise WeightsError(f"{self.checkpoint.name}: {error}") from None
        return found

    @property
    def arrays(self) -> list[Array]:
        """What is stored, as datasets."""
        width, include = self.config.hidden_size, self.settings.include
        residue = np.dtype(self.settings.residue_dtype).str
        found = [Array("contacts", "pair", (), "<f2")] if "contacts" in include else []
        for layer in self.layers:
            if "mean" in include:
                found.append(Array(f"mean/{layer}", "sequence", (width,), "<f4"))
            if "bos" in include:
                found.append(Array(f"bos/{layer}", "sequence", (width,), "<f4"))
            if "residue" in include:
                found.append(Array(f"residue/{layer}", "residue", (width,), residue))
        return found

    @property
    def attributes(self) -> dict[str, str]:
        """How the results were made: what the file says of itself."""
        software = {
            "esm_pipeline": __version__,
            "torch": torch.__version__,
            "h5py": version("h5py"),
            "python": platform.python_version(),
        }
        return {
            "format": FORMAT,
            "model": self.checkpoint.name,
            "revision": self.checkpoint.revision or "",
            "weights_sha256": self.checkpoint.weights_sha256(),
            "dtype": self.settings.dtype,
            "software": json.dumps(software),
        }

    @torch.inference_mode()
    def __call__(self, sequences: Sequence[str]) -> Embedded:
        """Embed a batch. Raises what PyTorch raises when memory runs out."""
        include = self.settings.include
        tokens, layout = pack(sequences, self.tokenizer, self.device)
        layers = self.layers if {"mean", "bos", "residue"} & {*include} else []
        started = time.perf_counter()
        found = self.model.represent(tokens, layout, layers, contacts="contacts" in include)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds += time.perf_counter() - started
        lengths = [length - SPECIAL_TOKENS for length in layout.lengths]
        embedded = Embedded()
        for layer, hidden in found.hidden.items():
            if "mean" in include:
                embedded.add(f"mean/{layer}", residue_means(hidden, layout), [1] * len(lengths))
            if "bos" in include:
                embedded.add(f"bos/{layer}", hidden[layout.firsts].float(), [1] * len(lengths))
            if "residue" in include:
                states, dtype = residue_states(hidden, layout), self.settings.residue_dtype
                embedded.add(f"residue/{layer}", states, lengths, getattr(torch, dtype))
        if found.contacts is not None:
            contacts = torch.cat([one.flatten() for one in found.contacts])
            embedded.add("contacts", contacts, [length**2 for length in lengths], torch.float16)
        return embedded


class Embedded:
    """What came out of a batch, in host memory.

    `values`: array name → (units of all sequences, *shape). `problems`: place of a sequence in the
    batch → why its values cannot be stored.
    """

    def __init__(self) -> None:
        self.values: dict[str, Values] = {}
        self.problems: dict[int, str] = {}

    def add(
        self, name: str, values: Tensor, units: list[int], dtype: torch.dtype = torch.float32
    ) -> None:
        """Take up an array, `units` of it for each sequence, to be stored as `dtype`."""
        limit = torch.finfo(dtype).max
        if not largest(values) <= limit:
            for place, part in enumerate(torch.split(values, units)):
                size = largest(part)
                if not size <= limit:
                    self.problems[place] = TOO_LARGE if math.isfinite(size) else NOT_FINITE
        self.values[name] = values.to(dtype).cpu().numpy()


def largest(values: Tensor) -> float:
    """The largest absolute value, or NaN if one is NaN."""
    low, high = torch.aminmax(values)
    return float(torch.maximum(-low, high))


def residue_means(hidden: Tensor, layout: PackedLayout) -> Tensor:
    """(T, D) → (B, D) float32: means over the residues, BOS and EOS left out."""
    means = [
        hidden[start : start + count * length]
        .view(count, length, -1)[:, 1:-1]  # (sequences, R, D)
        .mean(1, dtype=torch.float32)
        for start, count, length in layout.groups
    ]
    return torch.cat(means)


def residue_states(hidden: Tensor, layout: PackedLayout) -> Tensor:
    """(T, D) → (sum of R, D): the residues of all sequences, BOS and EOS left out."""
    keep = torch.ones(len(hidden), dtype=torch.bool, device=hidden.device)
    keep[layout.cumulative[:-1]] = keep[layout.cumulative[1:] - 1] = False
    return hidden[keep]
