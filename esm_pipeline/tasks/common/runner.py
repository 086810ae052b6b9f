"""A checkpoint that a task runs: found at once, loaded only when there is something to compute."""

from __future__ import annotations

import platform
import time
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar, Generic, TypeVar

import torch

from esm_pipeline.errors import CapacityError, InputError, WeightsError
from esm_pipeline.files import shared_path
from esm_pipeline.model import (
    Checkpoint,
    EsmConfig,
    EsmTokenizer,
    optimize_for_inference,
)
from esm_pipeline.model.base import EsmPreTrainedModel
from esm_pipeline.model.checkpoints.config_check import require_config
from esm_pipeline.model.checkpoints.weight_files import open_tensors
from esm_pipeline.model.inference.batching import (
    default_tokenizer,
    is_out_of_memory,
    release_memory,
)
from esm_pipeline.model.inference.device import resolve_device
from esm_pipeline.settings.sections import ComputeSettings
from esm_pipeline.tasks.common.model_file import find_checkpoint
from esm_pipeline.tasks.common.progress import (
    LINE_SECONDS,
    SILENT,
    Speaker,
    duration,
    size_text,
    waiting,
)
from esm_pipeline.version import __version__

M = TypeVar("M", bound=EsmPreTrainedModel)

WORTH_TELLING = 1.0
"""Seconds from which on it is reported how long a model took to load."""


class Runner(Generic[M]):
    """A checkpoint on a device; `load` it before the first batch. Or a model that is loaded.

    `seconds` counts the time spent in the model. `say` reports downloads, and that the weights are
    loaded. Raises WeightsError for an unusable checkpoint, InputError for a loaded model of another
    class.
    """

    model_class: type[M]
    options: ClassVar[Mapping[str, Any]] = {}
    """Further arguments of `from_pretrained`."""

    given: EsmPreTrainedModel | None = None
    """The model, if it was loaded by the caller."""

    def __init__(
        self,
        model: str | EsmPreTrainedModel,
        revision: str | None,
        settings: ComputeSettings,
        say: Speaker = SILENT,
    ) -> None:
        self.settings, self.say = settings, say
        self.seconds = 0.0
        self._lock, self._inside, self._started = Lock(), 0, 0.0
        if not isinstance(model, str):
            self.given, self.device, self.config = model, model.device, model.config
            half = model.base_model.dtype == torch.bfloat16
            kept = {"dtype": "bfloat16" if half else "float32"}
            self.settings = settings.model_copy(update=kept)
            source = model.source or Path()
            self.checkpoint = Checkpoint(model.name_or_path or type(model).__name__, source, ())
            return
        self.device = resolve_device(settings.device)
        self.checkpoint = find_checkpoint(model, revision, say)
        self.config = EsmConfig.from_pretrained(self.checkpoint.source, **self.checkpoint.where)
        stored_tensors = open_tensors(self.checkpoint.weight_files)
        require_config(self.config, stored_tensors, self.checkpoint.name)

    def check(self) -> None:
        """Check tokenizer and weights, the latter by their files' headers. Raises WeightsError."""
        _ = self.tokenizer
        if self.given is not None:
            return
        _, info = self.model_class.from_pretrained(
            self.checkpoint.source,
            **self.checkpoint.where,
            **self.options,
            device="meta",
            output_loading_info=True,
        )
        self.check_missing(info["missing_keys"])

    def check_missing(self, missing: Collection[str]) -> None:
        """Raise WeightsError if the task needs one of the weights that are `missing`.

        The class itself can be loaded without them.
        """

    def load(self) -> None:
        """Load the weights now. Raises CapacityError if they do not fit into memory."""
        started = time.perf_counter()
        try:
            self.check()
            size = sum(path.stat().st_size for path in self.checkpoint.weight_files)
            self.say(f"loading {shared_path(self.checkpoint.name)} ({size_text(size)})")
            with waiting(f"{self.say.title}: loading", quiet=self.say.quiet, first=LINE_SECONDS):
                _ = self.model
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise CapacityError(
                f"{self.checkpoint.name}: the model does not fit into the memory of {self.device}; "
                "choose a smaller one, dtype bfloat16, or another device"
            ) from None

        seconds = time.perf_counter() - started
        if seconds >= WORTH_TELLING:
            self.say(f"loaded in {duration(seconds)}")

    def unload(self) -> None:
        """Free the memory of the weights."""
        self.__dict__.pop("model", None)
        release_memory()

    @cached_property
    def model(self) -> M:
        """The model, ready for inference. Raises WeightsError for weights that are not finite."""
        if self.given is not None and self.given.optimized:
            return self.loaded()
        # no variable holds the loaded model: each weight is freed when it is packed
        return optimize_for_inference(self.loaded(), getattr(torch, self.settings.dtype))

    def loaded(self) -> M:
        """The model as in the checkpoint, in the precision from which it is optimized."""
        if self.given is not None:
            return self.part_of(self.given)
        dtype = getattr(torch, self.settings.dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about missing weights: `check` has reported them
            found: M = self.model_class.from_pretrained(
                self.checkpoint.source,
                **self.checkpoint.where,
                **self.options,
                dtype=torch.float32 if dtype == torch.int8 else dtype,
                device=self.device,
            )
        return found

    def part_of(self, given: EsmPreTrainedModel) -> M:
        """The model that this task runs, in a model that was loaded. Raises InputError."""
        for one in (given, given.base_model):
            if isinstance(one, self.model_class):
                return one
        raise InputError(
            f"model: an {type(given).__name__}, but this needs an {self.model_class.__name__}; "
            f"load it with {self.model_class.__name__}.from_pretrained"
        )

    @cached_property
    def tokenizer(self) -> EsmTokenizer:
        """The checkpoint's tokenizer."""
        if self.given is not None:
            found = default_tokenizer(self.given)
        else:
            found = EsmTokenizer.from_pretrained(self.checkpoint.source, **self.checkpoint.where)
        try:
            found.require_fit(self.config.vocab_size)
        except WeightsError as error:
            raise WeightsError(f"{self.checkpoint.name}: {error}") from None
        return found

    @property
    def origin(self) -> dict[str, str]:
        """Model, revision, digest of the weights and precision, as attributes of a result."""
        return {
            "model": shared_path(self.checkpoint.name),
            "revision": self.checkpoint.revision or "",
            "weights_sha256": "" if self.given is not None else self.checkpoint.weights_sha256(),
            "dtype": self.settings.dtype,
        }

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the time spent inside to `seconds`, once for all threads that are inside."""
        with self._lock:
            if not self._inside:
                self._started = time.perf_counter()
            self._inside += 1
        try:
            yield
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self.seconds += time.perf_counter() - self._started


def software() -> dict[str, str]:
    """Versions of the software that made a result."""
    return {
        "esm_pipeline": __version__,
        "torch": torch.__version__,
        "h5py": version("h5py"),
        "python": platform.python_version(),
    }
