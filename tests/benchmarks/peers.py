"""Who is measured: each way to compute logits, run as well as its authors tell how to.

A way is a function `(folder, threads)` that loads a checkpoint and returns its engine: a function
that prepares sequences and returns a `Run`, which computes their logits. Tokens and batches are
made beforehand for the peers, and during the run by ours. UnavailableError tells what cannot run.

- transformers: sdpa attention; padded batches of like lengths, longest first, 4,096 tokens with
  the padding.
- OpenVINO: the same model of transformers, traced, with open shapes, weights in float32; the same
  batches, one stream with all threads. bfloat16 is its hint for the inference precision.
- both in small batches too, of 1,024 tokens, which have less padding and stay in caches: what
  someone who measures finds best. OpenVINO then has a stream for each thread.
- esm.cpp: reads the same checkpoint, packs on its own. Its int8 is that of its `quantize`:
  SmoothQuant (alpha 0.5) by activations of some of the proteins, then weights in int8.
- ours: `optimize_for_inference` and `iter_packed`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from esm_pipeline import EsmForMaskedLM, EsmTokenizer, iter_packed, optimize_for_inference
from esm_pipeline.errors import InputError
from esm_pipeline.model.inference.batching import SPECIAL_TOKEN_COUNT
from tests.benchmarks.machine import DTYPES
from tests.benchmarks.proteins import proteins
from tests.benchmarks.rounds import UnavailableError

PEER_BUDGET, SMALL_BUDGET = 4096, 1024
CALIBRATION = 8  # proteins
ALPHA, PERCENTILE = 0.5, 99.9  # esm.cpp's own defaults
IR = "openvino.xml"

Logits = dict[int, NDArray[np.float32]]
"""Place of a sequence → (L, V), BOS and EOS among them."""
Run = Callable[[], Logits]
Engine = Callable[[Sequence[str]], Run]


def required(name: str) -> Any:
    """A peer's package."""
    try:
        return import_module(name)
    except ImportError as error:
        raise UnavailableError(
            f"{name} cannot be imported: {error}; `make bench` installs it"
        ) from None


def padded_batches(
    sequences: Sequence[str], budget: int = PEER_BUDGET
) -> Iterator[tuple[list[int], Any]]:
    """Places and tokens of padded batches of like lengths, `budget` tokens with the padding."""
    tokenizer = EsmTokenizer.standard()
    lengths = np.array([len(sequence) for sequence in sequences]) + SPECIAL_TOKEN_COUNT
    order = np.argsort(-lengths, kind="stable").tolist()
    while order:
        count = max(1, budget // int(lengths[order[0]]))
        chosen, order = order[:count], order[count:]
        told = tokenizer([sequences[i] for i in chosen], padding=True, return_tensors="pt")
        yield chosen, told


def without_padding(chosen: list[int], sequences: Sequence[str], logits: Any) -> Logits:
    """(B, L, V) of a padded batch, cut."""
    return {i: row[: len(sequences[i]) + 2] for i, row in zip(chosen, logits, strict=True)}


def transformers(folder: Path, threads: int, dtype: str, budget: int = PEER_BUDGET) -> Engine:
    """By transformers."""
    torch.set_num_threads(threads)
    model = reference(folder, dtype)

    def prepare(sequences: Sequence[str]) -> Run:
        batches = list(padded_batches(sequences, budget))

        @torch.inference_mode()
        def run() -> Logits:
            found: Logits = {}
            for chosen, told in batches:
                logits = model(**told).logits.float().numpy()
                found |= without_padding(chosen, sequences, logits)
            return found

        return run

    return prepare


def reference(folder: Path, dtype: str = "float32") -> Any:
    """The model of transformers."""
    library = required("transformers")
    library.logging.disable_progress_bar()
    library.logging.set_verbosity_error()
    model = library.EsmForMaskedLM.from_pretrained(
        folder, attn_implementation="sdpa", dtype=DTYPES[dtype]
    )
    return model.eval()


def convert(folder: Path) -> Path:
    """The checkpoint in OpenVINO's format, in its folder; made once."""
    path = folder / IR
    if not path.exists():
        openvino = required("openvino")
        model = reference(folder)
        _, told = next(padded_batches(proteins(4)))
        open_shape = openvino.PartialShape([-1, -1])
        example = {"input_ids": told.input_ids, "attention_mask": told.attention_mask}
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing tells of branches on shapes, which stay open
            own = openvino.convert_model(
                LogitsOnly(model), example_input=example, input=[open_shape, open_shape]
            )
        openvino.save_model(own, path, compress_to_fp16=False)
    return path


class LogitsOnly(torch.nn.Module):
    """A model of transformers as a function of tensors to a tensor."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(B, L) → (B, L, V)."""
        logits: torch.Tensor = self.model(input_ids, attention_mask=attention_mask).logits
        return logits


def openvino(
    folder: Path, threads: int, dtype: str, *, budget: int = PEER_BUDGET, streams: bool = False
) -> Engine:
    """By OpenVINO; with `streams`, a batch on each thread."""
    options = {
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[dtype],
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "THROUGHPUT" if streams else "LATENCY",
        "NUM_STREAMS": threads if streams else 1,
    }
    library = required("openvino")
    model = library.Core().compile_model(convert(folder), "CPU", options)
    taken = str(model.get_property("INFERENCE_PRECISION_HINT"))
    if dtype not in taken:
        raise UnavailableError(f"OpenVINO takes {taken} on this processor, not {dtype}")

    def prepare(sequences: Sequence[str]) -> Run:
        batches = [
            (chosen, [told.input_ids.numpy(), told.attention_mask.numpy()])
            for chosen, told in padded_batches(sequences, budget)
        ]

        def run() -> Logits:
            found: Logits = {}

            def done(request: Any, chosen: list[int]) -> None:
                logits = request.get_output_tensor(0).data.copy()  # its next batch overwrites them
                found.update(without_padding(chosen, sequences, logits))

            queue = library.AsyncInferQueue(model, threads if streams else 1)
            queue.set_callback(done)
            for chosen, told in batches:
                queue.start_async(told, chosen)
            queue.wait_all()
            return found

        return run

    return prepare


def esm_cpp(folder: Path, threads: int, dtype: str) -> Engine:
    """By esm.cpp."""
    os.environ["ESM_NUM_THREADS"] = str(threads)  # read when the first model is loaded
    library = required("esm_cpp")
    model = library.Model.load_from_safetensors(str(folder / "model.safetensors"))
    encode = library.Tokenizer().encode

    def tokens(sequences: Sequence[str]) -> list[NDArray[np.int32]]:
        return [np.asarray(encode(one, truncate=False), np.int32) for one in sequences]

    if dtype == "int8":
        observer = library.ActivationObserver()
        for one in tokens(proteins(CALIBRATION)):
            model.forward_with_observer(one, None, observer)
        model.apply_smoothquant(observer.percentile(PERCENTILE), ALPHA)
        model.quantize_weights()
    if library.Model.num_threads != threads:
        raise UnavailableError(f"esm.cpp takes {library.Model.num_threads} threads, not {threads}")

    def prepare(sequences: Sequence[str]) -> Run:
        inputs = tokens(sequences)
        return lambda: dict(enumerate(model.forward_scheduled(inputs)))

    return prepare


def ours(folder: Path, threads: int, dtype: str) -> Engine:
    """By this package."""
    torch.set_num_threads(threads)
    try:
        model = optimize_for_inference(EsmForMaskedLM.from_pretrained(folder), DTYPES[dtype])
    except InputError as error:
        raise UnavailableError(str(error)) from None

    def prepare(sequences: Sequence[str]) -> Run:
        def run() -> Logits:
            found = iter_packed(model, sequences)
            return {i: logits.float().numpy() for i, logits in found}

        return run

    return prepare


BASE = "transformers float32"
WAYS: dict[str, Callable[[Path, int], Engine]] = {
    BASE: partial(transformers, dtype="float32"),
    "transformers bfloat16": partial(transformers, dtype="bfloat16"),
    "transformers, small, float32": partial(transformers, dtype="float32", budget=SMALL_BUDGET),
    "transformers, small, bfloat16": partial(transformers, dtype="bfloat16", budget=SMALL_BUDGET),
    "OpenVINO float32": partial(openvino, dtype="float32"),
    "OpenVINO bfloat16": partial(openvino, dtype="bfloat16"),
    "OpenVINO, small, float32": partial(
        openvino, dtype="float32", budget=SMALL_BUDGET, streams=True
    ),
    "OpenVINO, small, bfloat16": partial(
        openvino, dtype="bfloat16", budget=SMALL_BUDGET, streams=True
    ),
    "esm.cpp float32": partial(esm_cpp, dtype="float32"),
    "esm.cpp int8": partial(esm_cpp, dtype="int8"),
    "ours float32": partial(ours, dtype="float32"),
    "ours bfloat16": partial(ours, dtype="bfloat16"),
    "ours int8": partial(ours, dtype="int8"),
}
RIVALS = {
    "ours float32": ("OpenVINO float32", "OpenVINO, small, float32"),
    "ours bfloat16": ("transformers bfloat16", "OpenVINO bfloat16", "OpenVINO, small, bfloat16"),
    "ours int8": ("esm.cpp int8", "ours bfloat16"),
}
"""Ways that one is compared with, beside the base of all."""


def dtype_of(way: str) -> str:
    """`ours bfloat16` → `bfloat16`."""
    return way.rsplit(" ", 1)[-1]
