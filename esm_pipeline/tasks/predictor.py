"""Sequences to structures: the folding model, and what is made of its output."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from esm_pipeline import __version__, residues
from esm_pipeline.errors import CapacityError, WeightsError
from esm_pipeline.formats.pae import to_steps
from esm_pipeline.formats.structure_arrays import FORMAT
from esm_pipeline.formats.structures import RANDOM, Structure
from esm_pipeline.model import EsmConfig, EsmForProteinFolding
from esm_pipeline.model.folding.quality import FLAGS, examine
from esm_pipeline.model.outputs import ModelOutput
from esm_pipeline.sections import FoldSettings
from esm_pipeline.tasks.batching import is_out_of_memory
from esm_pipeline.tasks.device import free_memory, resolve_device
from esm_pipeline.tasks.fold_batches import CHUNKS, Rung, rungs
from esm_pipeline.tasks.model_file import find_checkpoint

FLAG_NAMES = (*FLAGS, RANDOM)
NOT_FINITE = "the model gave values that are not finite numbers"
GIGA = 1e9
CPU = torch.device("cpu")


class Prediction(NamedTuple):
    """Of one sequence: its structure and the bits of its flags, or else what is wrong."""

    structure: Structure | None
    flags: int = 0
    problem: str = ""


class Predictor:
    """A folding checkpoint and what is wanted of it; `load` it before the first batch.

    Raises WeightsError for a checkpoint that does not fold.
    """

    def __init__(self, name: str, revision: str | None, settings: FoldSettings) -> None:
        self.settings = settings
        self.device = resolve_device(settings.device)
        self.checkpoint = find_checkpoint(name, revision, folding=True)
        self.config = EsmConfig.from_pretrained(self.checkpoint.source)
        if not self.config.is_folding_model:
            raise WeightsError(
                f"{self.checkpoint.name}: has no folding part; set fold.model to a folding model, "
                "such as facebook/esmfold_v1"
            )
        self.random = bool(getattr(self.config, RANDOM, False))
        self.seconds = 0.0  # spent in the model

    def check(self) -> None:
        """Judge the weights by their files' headers. Raises WeightsError."""
        EsmForProteinFolding.from_pretrained(self.checkpoint.source, device="meta")

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
                "choose dtype bfloat16, or another device"
            ) from None

    @cached_property
    def model(self) -> EsmForProteinFolding:
        """The model, ready to fold."""
        found: EsmForProteinFolding = EsmForProteinFolding.from_pretrained(self.checkpoint.source)
        found.esm.to(getattr(torch, self.settings.dtype))
        return found.to(self.device).eval()

    @cached_property
    def memory(self) -> int:
        """Bytes that a batch may take, besides the weights."""
        return int(self.settings.memory * GIGA) or free_memory(self.device)

    @property
    def attributes(self) -> dict[str, str]:
        """How the structures were made: what the file says of itself."""
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
            "num_recycles": str(self.settings.num_recycles),
            RANDOM: "true" if self.random else "false",
            "flags": json.dumps(FLAG_NAMES),
            "software": json.dumps(software),
        }

    def chunk_size(self, count: int, longest: int) -> int | None:
        """Rows at once for a batch of `count` sequences padded to `longest`, None for all."""
        if self.settings.chunk_size == "none":
            return None
        if self.settings.chunk_size != "auto":
            return self.settings.chunk_size
        sizes = (None, *CHUNKS)
        return next((size for size in sizes if self.has_room(count, longest, size)), CHUNKS[-1])

    def fits(self, count: int, longest: int) -> bool:
        """Whether a batch of `count` sequences padded to `longest` fits into memory."""
        return self.has_room(count, longest, self.chunk_size(count, longest))

    def has_room(self, count: int, longest: int, chunk_size: int | None) -> bool:
        """Whether a batch computed so fits into memory, as far as can be told before."""
        return True

    def ways(self, count: int, longest: int) -> list[Rung]:
        """The ways to fold a batch of `count` sequences padded to `longest` residues."""
        return rungs(self.chunk_size(count, longest), self.device)

    @torch.inference_mode()
    def __call__(self, sequences: Sequence[str], rung: Rung) -> list[Prediction]:
        """Fold a batch, `:` between chains. Raises what PyTorch raises when memory runs out."""
        device = CPU if rung.cpu else self.device
        self.model.to(device)
        started = time.perf_counter()
        output = self.model.infer(
            list(sequences),
            num_recycles=self.settings.num_recycles,
            chunk_size=rung.chunk_size,
            offload_stem=rung.offload and not rung.cpu,
            compact=True,
        )
        found = [predicted(one) for one in by_sequence(output)]
        self.seconds += time.perf_counter() - started
        return [self.judged(structure) for structure in found]

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


def by_sequence(output: ModelOutput) -> Iterator[dict[str, NDArray[np.generic]]]:
    """What the output of a batch says of each sequence, padding left out, in host memory."""
    values = {
        "aatype": output.aatype,
        "chains": output.chain_index,
        "positions": output.positions[-1].float(),  # of the last block
        "plddt": output.plddt.float(),
        "error": output.predicted_aligned_error.float(),
        "mean_plddt": output.mean_plddt.float(),
        "ptm": output.ptm.float(),
        "iptm": output.iptm.float(),
    }
    arrays = {name: value.cpu().numpy() for name, value in values.items()}
    for place, shown in enumerate(output.attention_mask.bool().cpu().numpy()):
        one = {name: value[place] for name, value in arrays.items()}
        one["error"] = one["error"][shown][:, shown]
        one |= {name: one[name][shown] for name in ("aatype", "chains", "positions", "plddt")}
        yield one


def predicted(one: dict[str, NDArray[np.generic]]) -> Structure:
    """A structure of what `by_sequence` gives."""
    aatype = one["aatype"].astype(np.int64)
    there = residues.ATOM14_MASK[aatype]
    by_atom = np.take_along_axis(one["plddt"], residues.ATOM14_TO_ATOM37[aatype], axis=1)
    iptm = float(one["iptm"])
    return Structure(
        aatype=aatype,
        chains=one["chains"].astype(np.int64),
        positions=np.where(there[..., None], one["positions"], 0).astype(np.float32),
        plddt=np.where(there, by_atom, 0).astype(np.float32),
        pae=to_steps(one["error"]),
        mean_plddt=float(one["mean_plddt"]),
        ptm=float(one["ptm"]),
        iptm=None if np.isnan(iptm) else iptm,
    )
