"""Sequences to structures: the folding model, and what is made of its output."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from esm_pipeline.errors import CapacityError, WeightsError, setting
from esm_pipeline.formats.results.structures import FORMAT
from esm_pipeline.model import EsmForProteinFolding, optimize_for_inference
from esm_pipeline.model.folding.complexes import BREAK, LINKER
from esm_pipeline.model.folding.demo import DEMO_FOLD
from esm_pipeline.model.folding.memory import choose_chunk_size, fold_memory
from esm_pipeline.model.folding.structures import structures_of
from esm_pipeline.model.inference.device import free_memory
from esm_pipeline.model.inference.finite import require_finite
from esm_pipeline.settings.sections import FoldSettings, texts
from esm_pipeline.structure.quality import FLAGS, examine
from esm_pipeline.structure.structure import RANDOM, Structure
from esm_pipeline.tasks.common.plan import NOT_FINITE
from esm_pipeline.tasks.common.runner import Runner, software
from esm_pipeline.tasks.fold.batches import CHUNKS, Rung, rungs

DEMO = "demo"
FLAG_NAMES = (*FLAGS, RANDOM)
GIGA = 1e9
SHARE = 0.8
"""Of the memory that is free: what a batch is planned for, the formula being good to 20 %."""

CPU = torch.device("cpu")


class Prediction(NamedTuple):
    """Of one sequence: its structure and the bits of its flags, or else what is wrong."""

    structure: Structure | None
    flags: int = 0
    problem: str = ""


class Predictor(Runner[EsmForProteinFolding]):
    """A folding checkpoint and what is wanted of it; `load` it before the first batch.

    Raises WeightsError for a checkpoint that does not fold.
    """

    model_class = EsmForProteinFolding
    settings: FoldSettings

    def __init__(self, name: str, revision: str | None, settings: FoldSettings) -> None:
        super().__init__(DEMO_FOLD if name == DEMO else name, revision, settings)
        if not self.config.is_folding_model:
            raise WeightsError(
                f"{self.checkpoint.name}: has no folding part; set {setting('fold.model')} to a "
                "folding model, such as facebook/esmfold_v1"
            )
        self.random = bool(getattr(self.config, RANDOM, False))

    def check(self) -> None:
        """Judge the weights by their files' headers. Raises WeightsError."""
        self.model_class.from_pretrained(
            self.checkpoint.source, **self.checkpoint.where, device="meta"
        )

    @cached_property
    def model(self) -> EsmForProteinFolding:
        """The model, ready to fold. Raises WeightsError for weights that are no numbers."""
        if self.device.type == "cpu":
            return optimize_for_inference(self.loaded(), self.stem_dtype)
        found = self.loaded()
        require_finite(found)
        return found.to(self.device)

    def loaded(self) -> EsmForProteinFolding:
        """The model as it is in the checkpoint, the language model in its precision."""
        found: EsmForProteinFolding = self.model_class.from_pretrained(
            self.checkpoint.source,
            **self.checkpoint.where,
            stem_dtype=self.stem_dtype,
            device=self.device,
        )
        return found

    @cached_property
    def memory(self) -> int:
        """Bytes that a batch may take, besides the weights."""
        return int(self.settings.memory * GIGA) or int(SHARE * free_memory(self.device))

    @property
    def attributes(self) -> dict[str, str]:
        """How the structures were made: what the file says of itself."""
        return {
            "format": FORMAT,
            **self.origin,
            **texts(self.settings),
            RANDOM: "true" if self.random else "false",
            "flags": json.dumps(FLAG_NAMES),
            "software": json.dumps(software()),
        }

    def chunk_size(self, count: int, longest: int) -> int | None:
        """Rows at once for a batch of `count` sequences padded to `longest`, None for all."""
        if self.settings.chunk_size == "none":
            return None
        if self.settings.chunk_size != "auto":
            return self.settings.chunk_size
        try:
            return choose_chunk_size(self.config, count, longest, self.memory, **self.kind)
        except CapacityError:
            return CHUNKS[-1]  # and then the ways that save more

    def fits(self, count: int, longest: int) -> bool:
        """Whether a batch of `count` sequences padded to `longest` fits into memory."""
        chunk_size = self.chunk_size(count, longest)
        needed = fold_memory(self.config, count, longest, chunk_size, **self.kind)
        return needed.total <= self.memory

    @property
    def stem_dtype(self) -> torch.dtype:
        """Precision of the language model."""
        dtype: torch.dtype = getattr(torch, self.settings.dtype)
        return dtype

    @property
    def kind(self) -> dict[str, Any]:
        """What the memory of a batch also depends on."""
        return {"device": self.device, "stem_dtype": self.stem_dtype}

    def require_memory(self, sequences: Sequence[str], rung: Rung) -> None:
        """Raise MemoryError for a batch that the CPU has no room for, which would end the process.

        A graphics card says so by itself.
        """
        sizes = [len(text) + (len(LINKER) - 1) * text.count(BREAK) for text in sequences]
        kind = {**self.kind, "device": CPU}
        needed = fold_memory(self.config, len(sizes), max(sizes), rung.chunk_size, **kind)
        if needed.total > (free_memory(CPU) if rung.cpu else self.memory):
            raise MemoryError

    def ways(self, count: int, longest: int) -> list[Rung]:
        """The ways to fold a batch of `count` sequences padded to `longest` residues."""
        return rungs(self.chunk_size(count, longest), self.device)

    @torch.inference_mode()
    def __call__(self, sequences: Sequence[str], rung: Rung) -> list[Prediction]:
        """Fold a batch, `:` between chains. Raises what PyTorch raises when memory runs out."""
        device = CPU if rung.cpu else self.device
        if device.type == "cpu":
            self.require_memory(sequences, rung)
        self.model.to(device)
        with self.timed():
            output = self.model.infer(
                list(sequences),
                num_recycles=self.settings.num_recycles,
                chunk_size=rung.chunk_size,
                offload_stem=rung.offload and not rung.cpu,
                compact=True,
                nucleotides="keep",  # `shard` has judged them
            )
        return [self.judged(structure) for structure in structures_of(output)]

    def judged(self, structure: Structure) -> Prediction:
        """A structure with its flags, or why it is none."""
        numbers = (structure.positions, structure.plddt, structure.mean_plddt, structure.ptm)
        if not all(np.isfinite(values).all() for values in numbers):
            return Prediction(None, problem=NOT_FINITE)
        quality = examine(
            structure.positions,
            structure.aatype,
            structure.chains,
            structure.mean_plddt,
            structure.ptm,
        )
        raised = {*quality.flags, *([RANDOM] if self.random else [])}
        bits = sum(1 << place for place, name in enumerate(FLAG_NAMES) if name in raised)
        return Prediction(structure, bits)
