"""A checkpoint that a task runs: found at once, loaded when there is something to compute."""

from __future__ import annotations

import platform
import time
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from threading import Lock
from typing import Any, ClassVar, Generic, TypeVar

import torch

from esm_pipeline import __version__
from esm_pipeline.errors import CapacityError, WeightsError
from esm_pipeline.model import EsmConfig, EsmTokenizer, optimize_for_inference
from esm_pipeline.model.base import EsmPreTrainedModel
from esm_pipeline.model.checkpoints.loading import open_entries
from esm_pipeline.model.checkpoints.sizes import require_config
from esm_pipeline.model.inference.batching import is_out_of_memory, release_memory
from esm_pipeline.model.inference.device import resolve_device
from esm_pipeline.settings.sections import ComputeSettings
from esm_pipeline.tasks.common.model_file import find_checkpoint

M = TypeVar("M", bound=EsmPreTrainedModel)


class Runner(Generic[M]):
    """A checkpoint and where it runs; `load` it before the first batch.

    `seconds` are those spent in the model. Raises WeightsError for an unusable checkpoint.
    """

    model_class: type[M]
    options: ClassVar[Mapping[str, Any]] = {}
    """What `from_pretrained` is told besides."""

    def __init__(self, name: str, revision: str | None, settings: ComputeSettings) -> None:
        self.settings = settings
        self.device = resolve_device(settings.device)
        self.checkpoint = find_checkpoint(name, revision)
        self.config = EsmConfig.from_pretrained(self.checkpoint.source, **self.checkpoint.where)
        entries = open_entries(self.checkpoint.weight_files)
        require_config(self.config, entries, self.checkpoint.name)
        self.seconds = 0.0
        self._lock, self._inside, self._started = Lock(), 0, 0.0

    def check(self) -> None:
        """Judge tokenizer and weights, these by their files' headers. Raises WeightsError."""
        _ = self.tokenizer
        _, info = self.model_class.from_pretrained(
            self.checkpoint.source,
            **self.checkpoint.where,
            **self.options,
            device="meta",
            output_loading_info=True,
        )
        self.judge(info["missing_keys"])

    def judge(self, missing: Collection[str]) -> None:
        """Raise WeightsError if the task cannot do without a weight that the checkpoint lacks.

        `missing` are those that a model of the class can be loaded without.
        """

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

    def unload(self) -> None:
        """Give the memory of the weights back."""
        self.__dict__.pop("model", None)
        release_memory()

    @cached_property
    def model(self) -> M:
        """The model, ready for inference. Raises WeightsError for weights that are no numbers."""
        # no name for what is loaded: each weight goes when it is packed
        return optimize_for_inference(self.loaded(), getattr(torch, self.settings.dtype))

    def loaded(self) -> M:
        """The model as it is in the checkpoint, in the precision that it is optimized from."""
        dtype = getattr(torch, self.settings.dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is missing: `check` has seen to it
            found: M = self.model_class.from_pretrained(
                self.checkpoint.source,
                **self.checkpoint.where,
                **self.options,
                dtype=torch.float32 if dtype == torch.int8 else dtype,
                device=self.device,
            )
        return found

    @cached_property
    def tokenizer(self) -> EsmTokenizer:
        """The checkpoint's tokenizer."""
        found = EsmTokenizer.from_pretrained(self.checkpoint.source, **self.checkpoint.where)
        try:
            found.require_fit(self.config.vocab_size)
        except WeightsError as error:
            raise WeightsError(f"{self.checkpoint.name}: {error}") from None
        return found

    @property
    def origin(self) -> dict[str, str]:
        """Where the weights are from, and the precision: attributes of a result."""
        return {
            "model": self.checkpoint.name,
            "revision": self.checkpoint.revision or "",
            "weights_sha256": self.checkpoint.weights_sha256(),
            "dtype": self.settings.dtype,
        }

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the time that the model takes inside to `seconds`, once for all threads in it."""
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
    """Versions of what made a result."""
    return {
        "esm_pipeline": __version__,
        "torch": torch.__version__,
        "h5py": version("h5py"),
        "python": platform.python_version(),
    }
