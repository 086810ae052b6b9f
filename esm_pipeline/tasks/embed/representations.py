"""Sequences to the arrays that `embed` stores: one packed pass of the model for each batch."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from esm_pipeline.errors import WeightsError
from esm_pipeline.formats.results.embeddings import Embeddings
from esm_pipeline.formats.results.layout import Array
from esm_pipeline.model import EsmModel, PackedLayout
from esm_pipeline.model.base import EsmPreTrainedModel
from esm_pipeline.model.inference.batching import (
    SPECIAL_TOKEN_COUNT,
    check_layer,
    pack,
    residue_states,
)
from esm_pipeline.settings.section import texts
from esm_pipeline.settings.sections import EmbedSettings
from esm_pipeline.tasks.common.compute import ArrayRunner, BatchArrays
from esm_pipeline.tasks.common.runner import software


class Encoder(ArrayRunner[EsmModel]):
    """A checkpoint and the representations to compute; `load` it before the first batch.

    Raises InputError for a layer that does not exist, WeightsError for an unusable checkpoint.
    """

    task = "embed"
    model_class = EsmModel
    options: ClassVar = {"add_pooling_layer": False}
    settings: EmbedSettings

    def __init__(
        self, model: str | EsmPreTrainedModel, revision: str | None, settings: EmbedSettings
    ) -> None:
        super().__init__(model, revision, settings)
        count = self.config.num_hidden_layers
        for layer in settings.layers:
            check_layer(layer, count)
        self.layers = sorted({layer % (count + 1) for layer in settings.layers})

    def check_missing(self, missing: Collection[str]) -> None:
        """Raise WeightsError for contacts without the weights of their regression."""
        if missing and "contacts" in self.settings.include:
            raise WeightsError(
                f"{self.checkpoint.name}: no '{min(missing)}', and without it contacts mean "
                "nothing; put its contact regression next to it, or leave contacts out"
            )

    @property
    def arrays(self) -> list[Array]:
        """The arrays to store, as datasets."""
        width, include = self.config.hidden_size, self.settings.include
        residue = np.dtype(self.settings.residue_dtype).str
        arrays = [Array("contacts", "pair", (), "<f2")] if "contacts" in include else []
        for layer in self.layers:
            if "mean" in include:
                arrays.append(Array(f"mean/{layer}", "sequence", (width,), "<f4"))
            if "bos" in include:
                arrays.append(Array(f"bos/{layer}", "sequence", (width,), "<f4"))
            if "residue" in include:
                arrays.append(Array(f"residue/{layer}", "residue", (width,), residue))
        return arrays

    @property
    def attributes(self) -> dict[str, str]:
        """How the results were made: the attributes of the file."""
        return {
            "format": Embeddings.format,
            **self.origin,
            **texts(self.settings),
            "software": json.dumps(software()),
        }

    @torch.inference_mode()
    def __call__(self, sequences: Sequence[str]) -> BatchArrays:
        """Embed a batch. Raises what PyTorch raises when memory runs out."""
        include = self.settings.include
        tokens, layout = pack(sequences, self.tokenizer, self.device)
        layers = self.layers if {"mean", "bos", "residue"} & {*include} else []
        with self.timed():
            output = self.model.represent(tokens, layout, layers, contacts="contacts" in include)
        lengths = [length - SPECIAL_TOKEN_COUNT for length in layout.lengths]
        arrays = BatchArrays()
        for layer, hidden in output.hidden.items():
            if "mean" in include:
                arrays.add(f"mean/{layer}", residue_means(hidden, layout), [1] * len(lengths))
            if "bos" in include:
                arrays.add(f"bos/{layer}", hidden[layout.firsts].float(), [1] * len(lengths))
            if "residue" in include:
                states, dtype = residue_states(hidden, layout), self.settings.residue_dtype
                arrays.add(f"residue/{layer}", states, lengths, getattr(torch, dtype))
        if output.contacts is not None:
            contacts = torch.cat([one.flatten() for one in output.contacts])
            arrays.add("contacts", contacts, [length**2 for length in lengths], torch.float16)
        return arrays


def residue_means(hidden: Tensor, layout: PackedLayout) -> Tensor:
    """(T, D) → (B, D) float32: means over the residues, without BOS and EOS."""
    means = [
        hidden[start : start + count * length]
        .view(count, length, -1)[:, 1:-1]  # (sequences, R, D)
        .mean(1, dtype=torch.float32)
        for start, count, length in layout.groups
    ]
    return torch.cat(means)
