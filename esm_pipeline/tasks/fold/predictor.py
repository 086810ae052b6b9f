"""Sequences to structures: the folding model and its results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from esm_pipeline.arrays import Int64
from esm_pipeline.errors import CapacityError, WeightsError, setting
from esm_pipeline.formats.results.structures import ARRAYS, Structures, write_structures
from esm_pipeline.formats.results.writer import RaggedWriter
from esm_pipeline.known_models import DEMO
from esm_pipeline.model import EsmForProteinFolding, optimize_for_inference
from esm_pipeline.model.base import EsmPreTrainedModel
from esm_pipeline.model.folding.complexes import BREAK, LINKER
from esm_pipeline.model.folding.demo import DEMO_FOLD
from esm_pipeline.model.folding.memory import CPU, choose_chunk_size, fold_memory
from esm_pipeline.model.folding.structures import structures_of
from esm_pipeline.model.inference.batching import BatchResult, run_splitting
from esm_pipeline.model.inference.device import free_memory
from esm_pipeline.model.inference.finite import require_finite
from esm_pipeline.settings.section import texts
from esm_pipeline.settings.sections import FoldSettings
from esm_pipeline.structure.quality import STORED_FLAGS, examine_structure
from esm_pipeline.structure.residues import folded_sequence
from esm_pipeline.structure.structure import RANDOM, Structure
from esm_pipeline.tasks.common.compute import ArrayRunner, BatchOutput
from esm_pipeline.tasks.common.plan import NOT_FINITE, LengthPolicy, SequencePlan
from esm_pipeline.tasks.common.progress import SILENT, Speaker
from esm_pipeline.tasks.common.requests import GIGA
from esm_pipeline.tasks.common.runner import software
from esm_pipeline.tasks.fold.batches import CHUNKS, FoldMode, fold_batches, fold_modes
from esm_pipeline.tasks.fold.plan import FOLD, fold_policy
from esm_pipeline.tasks.fold.work import SHARE, fold_cost

WITHOUT_CHUNKS = FoldMode()


@dataclass(frozen=True)
class Predictions:
    """The structures of a batch with the bits of their flags, None where numbers are not finite."""

    structures: Sequence[tuple[Structure, int] | None]
    chunk_size: int | None

    @property
    def problems(self) -> dict[int, str]:
        """Place of a sequence in the batch → why it has no structure."""
        return {place: NOT_FINITE for place, one in enumerate(self.structures) if one is None}

    def write(self, writer: RaggedWriter, rows: Int64) -> None:
        """Write the structures into the `rows` of their sequences."""
        for row, found in zip(np.split(rows, len(rows)), self.structures, strict=True):
            if found is not None:
                structure, flags = found
                write_structures(writer, row, [structure], [self.chunk_size or 0], [flags])


class Predictor(ArrayRunner[EsmForProteinFolding]):
    """A folding checkpoint and its settings; `load` it before the first batch.

    Raises WeightsError for a checkpoint that does not fold.
    """

    task = FOLD
    model_class = EsmForProteinFolding
    arrays: ClassVar = ARRAYS
    settings: FoldSettings

    def __init__(
        self,
        model: str | EsmPreTrainedModel,
        revision: str | None,
        settings: FoldSettings,
        say: Speaker = SILENT,
    ) -> None:
        super().__init__(DEMO_FOLD if model == DEMO else model, revision, settings, say)
        if not self.config.is_folding_model:
            raise WeightsError(
                f"{self.checkpoint.name}: has no folding part; set {setting('fold.model')} to a "
                "folding model, such as facebook/esmfold_v1"
            )
        self.random = bool(getattr(self.config, RANDOM, False))

    def check(self) -> None:
        """Check the weights by their files' headers. Raises WeightsError."""
        if self.given is not None:
            return
        self.model_class.from_pretrained(
            self.checkpoint.source, **self.checkpoint.where, device="meta"
        )

    @cached_property
    def model(self) -> EsmForProteinFolding:
        """The model, ready to fold. Raises WeightsError for weights that are not finite."""
        if self.given is not None and self.given.optimized:
            return self.loaded()
        if self.device.type == "cpu":
            return optimize_for_inference(self.loaded(), self.stem_dtype)
        found = self.loaded()
        require_finite(found)
        return found.to(self.device)

    def loaded(self) -> EsmForProteinFolding:
        """The model as in the checkpoint, its language model in the precision of the settings."""
        if self.given is not None:
            return self.part_of(self.given)
        found: EsmForProteinFolding = self.model_class.from_pretrained(
            self.checkpoint.source,
            **self.checkpoint.where,
            stem_dtype=self.stem_dtype,
            device=self.device,
        )
        return found

    def cost(self, lengths: Int64) -> NDArray[np.number[Any]]:
        """The relative cost (U,) of folding sequences of some `lengths` (U,)."""
        return fold_cost(lengths)

    @property
    def policy(self) -> LengthPolicy:
        """How long sequences are handled. Raises InputError if model and settings disagree."""
        return fold_policy(self.config.max_residues, self.settings)

    @cached_property
    def memory(self) -> int:
        """Bytes that a batch may take, in addition to the weights."""
        return int(self.settings.memory * GIGA) or int(SHARE * free_memory(self.device))

    @property
    def attributes(self) -> dict[str, str]:
        """How the structures were made: the attributes of the file."""
        return {
            "format": Structures.format,
            **self.origin,
            **texts(self.settings),
            RANDOM: "true" if self.random else "false",
            "flags": json.dumps(STORED_FLAGS),
            "software": json.dumps(software()),
        }

    def chunk_size(self, count: int, longest: int) -> int | None:
        """Rows computed at once for `count` sequences padded to `longest`, None for all."""
        if self.settings.chunk_size == "none":
            return None
        if self.settings.chunk_size != "auto":
            return self.settings.chunk_size
        try:
            return choose_chunk_size(self.config, count, longest, self.memory, **self.kind)
        except CapacityError:
            return CHUNKS[-1]  # and then the modes that save more

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
        """What else the memory of a batch depends on."""
        return {"device": self.device, "stem_dtype": self.stem_dtype}

    def require_memory(self, sequences: Sequence[str], mode: FoldMode) -> None:
        """Raise MemoryError for a batch that the CPU has no memory for: it would end the process.

        A GPU raises the error itself.
        """
        sizes = [len(text) + (len(LINKER) - 1) * text.count(BREAK) for text in sequences]
        kind = {**self.kind, "device": CPU}
        needed = fold_memory(self.config, len(sizes), max(sizes), mode.chunk_size, **kind)
        if needed.total > (free_memory(CPU) if mode.cpu else self.memory):
            raise MemoryError

    def modes(self, count: int, longest: int) -> list[FoldMode]:
        """The modes to try for `count` sequences padded to `longest` residues."""
        return fold_modes(self.chunk_size(count, longest), self.device)

    def run_batches(self, plan: SequencePlan, unique: Int64) -> Iterator[BatchResult[BatchOutput]]:
        """Fold the `unique` sequences in batches; parts are places in `unique`.

        A sequence that does not fit alone is folded in the first mode for which memory suffices.
        """
        sizes = plan.sizes[unique]

        def fold(part: Int64, mode: FoldMode) -> BatchOutput:
            return self(plan.sequences(unique[part]), mode)

        for batch in fold_batches(sizes, self.settings.token_budget, self.fits):
            modes = self.modes(len(batch), int(sizes[batch[0]]))
            yield from run_splitting(batch, *(partial(fold, mode=mode) for mode in modes))

    def does_not_fit(self, residues: int) -> str:
        """Why a sequence of so many residues failed when memory ran out in every mode."""
        memory, last = self.settings.memory, self.modes(1, residues)[-1]
        room = f"the {memory:g} GB of {setting('fold.memory')}" if memory else "memory"
        where = ", nor on the CPU" if last.cpu else ""
        remedy = "raise it" if memory else "use a machine with more"
        return (
            f"{residues} residues do not fit into {room}, even alone and {last.chunk_size} rows at "
            f"a time{where}; {remedy}, or set {setting('fold.max_residues')}"
        )

    @torch.inference_mode()
    def __call__(self, sequences: Sequence[str], mode: FoldMode = WITHOUT_CHUNKS) -> Predictions:
        """Fold a batch, `:` between chains. Raises what PyTorch raises when memory runs out.

        U is folded as C, O as K, and by the settings B as D and Z as E; other letters than the 20
        amino acids have no atoms. The structures have the letters that were given.
        """
        device = CPU if mode.cpu else self.device
        if device.type == "cpu":
            self.require_memory(sequences, mode)
        approximate = self.settings.ambiguous == "approximate"
        self.model.to(device)
        with self.timed():
            output = self.model.infer(
                [folded_sequence(sequence, approximate=approximate) for sequence in sequences],
                num_recycles=self.settings.num_recycles,
                chunk_size=mode.chunk_size,
                offload_stem=mode.offload and not mode.cpu,
                compact=True,
                nucleotides="keep",  # `shard` has checked for them
            )
        structures = [
            self.with_flags(replace(structure, letters=sequence.replace(BREAK, "")))
            for structure, sequence in zip(structures_of(output), sequences, strict=True)
        ]
        return Predictions(structures, mode.chunk_size)

    def with_flags(self, structure: Structure) -> tuple[Structure, int] | None:
        """A structure with the bits of its flags; None if its numbers are not finite."""
        numbers = (structure.positions, structure.plddt, structure.mean_plddt, structure.ptm)
        if not all(np.isfinite(values).all() for values in numbers):
            return None
        quality = examine_structure(structure)
        raised = {*quality.flags, *([RANDOM] if self.random else [])}
        bits = sum(1 << place for place, name in enumerate(STORED_FLAGS) if name in raised)
        return structure, bits
