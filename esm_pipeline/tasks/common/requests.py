"""What a job asks for: memory and run time, from its models, its settings and its sequences.

Memory is the most that real jobs had resident, as tests/benchmarks/bench_requests.py measures it:
never below, and not far above. Run time counts the operations of the forward passes at the rate of
a slow machine. The workflow asks for every job, so there is no torch here, and NumPy computes.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from esm_pipeline.arrays import Int64
from esm_pipeline.errors import InputError
from esm_pipeline.footprint import FLOAT32, FoldShape
from esm_pipeline.settings.sections import ComputeSettings, JobLimits
from esm_pipeline.tasks.common.model_file import read_model_file

MEGA = 1e6
GIGA = 1e9

STEP_MB = 100
STEP_MINUTES = 5

IDLE_MB = 500
"""Of a job without sequences, which loads no model."""

LEAST_MINUTES = 10

BASE = {"cpu": 400e6, "gpu": 4e9}
"""Bytes of the libraries, those of a GPU among them, and of the index of a bundle."""

WEIGHT_BYTES = {"float32": 8.4, "bfloat16": 3.0, "int8": 7.0}
"""Bytes of memory for each parameter while a model is loaded and made ready on a CPU. In float32
the pages of the file are counted besides the weights; int8 layers are made from them."""

LOADED = 50e6
"""Bytes of weights that are read in a second."""

CPU_RATE = 20e9
"""Operations in a second of one thread of a CPU without AVX-512."""

GPU_RATE = 2e12
"""Operations in a second of an old GPU."""

CPU_TOKENS = 4096
"""Most tokens in a batch on the CPU: data that fits into its caches is computed faster."""
LEAST_TOKENS = 512
"""A batch is not made smaller than this many tokens to give other threads work."""

SPECIAL_TOKEN_COUNT = 2
"""BOS and EOS, which every sequence of residues has around it."""

WIDTHS = {"float32": (56, 8), "bfloat16": (28, 4), "int8": (60, 12)}
"""Bytes for each token in a batch: for each number of the states, and of the feed-forward."""


class Request(NamedTuple):
    """What one job asks for."""

    mem_mb: int
    """Memory in MB."""
    runtime: int
    """Run time in minutes."""


@dataclass(frozen=True)
class ModelSize:
    """What the memory and the time of a model depend on, from its model file."""

    parameters: int
    layers: int
    width: int
    feed_forward: int
    heads: int
    positions: int | None
    """Most residues that it has positions for; None for any number."""
    folding: FoldShape | None = None

    def operations(self, residues: Int64, passes: Int64 | int = 1) -> float:
        """Additions and multiplications of `passes` (U,) over sequences of `residues` (U,)."""
        tokens = np.where(residues > 0, residues + float(SPECIAL_TOKEN_COUNT), 0)
        attention = 4.0 * self.layers * self.width * tokens
        return float((passes * tokens * (2.0 * self.parameters + attention)).sum())


def model_size(path: Path) -> ModelSize:
    """The size of the model in a model file.

    Raises FileNotFoundError if there is none yet, InputError if it is not one, or has no size.
    """
    facts = os.stat(path)
    return size_stored(path, facts.st_size, facts.st_mtime_ns)


@cache
def size_stored(path: Path, size: int, changed: int) -> ModelSize:
    """`model_size`, read once for each state of the file: `size` in bytes, `changed` in ns."""
    facts = read_model_file(path)
    try:
        config, folding = facts["config"], facts.get("folding")
        limit = config["max_residues"]
        return ModelSize(
            parameters=int(facts["parameters"]),
            layers=int(config["num_hidden_layers"]),
            width=int(config["hidden_size"]),
            feed_forward=int(config["intermediate_size"]),
            heads=int(config["num_attention_heads"]),
            positions=None if limit is None else int(limit),
            folding=None if folding is None else FoldShape(**folding),
        )
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"{path}: does not tell the size of the model; remove it, and run the workflow again"
        ) from None


def on_gpu(settings: ComputeSettings) -> bool:
    """Whether a job runs on a GPU for certain; `auto` may find none."""
    return settings.device.startswith("cuda")


def residues_computed(
    size: ModelSize, settings: ComputeSettings, lengths: Int64, most: int = 0
) -> Int64:
    """(U,) the residues of each sequence that are computed: 0 if it is too long, and skipped.

    `most` is a limit besides the positions of the model, 0 for none.
    """
    limits = [limit for limit in (size.positions, most) if limit]
    long = getattr(settings, "long", "full")
    if not limits or long in ("full", "window"):
        return lengths
    return np.where(lengths <= min(limits), lengths, min(limits) if long == "truncate" else 0)


def tokens_at_once(
    settings: ComputeSettings, residues: Int64, passes: Int64 | int, threads: int
) -> int:
    """Tokens that are in memory at once: of one batch on a GPU, of one for each thread on a CPU."""
    tokens = np.where(residues > 0, residues + SPECIAL_TOKEN_COUNT, 0)
    budget = settings.token_budget
    if not on_gpu(settings):
        workers = max(1, min(threads, budget // LEAST_TOKENS))
        budget = workers * min(max(budget // workers, 1), CPU_TOKENS)
    return max(int(tokens.max(initial=0)), min(budget, int((tokens * passes).sum())))


def model_bytes(size: ModelSize, settings: ComputeSettings) -> float:
    """Bytes of the libraries and the weights."""
    if on_gpu(settings):
        return BASE["gpu"] + FLOAT32 * size.parameters
    return BASE["cpu"] + WEIGHT_BYTES[settings.dtype] * size.parameters


def batch_bytes(size: ModelSize, settings: ComputeSettings, tokens: int, stored: float) -> float:
    """Bytes of the batches of so many `tokens`, and of `stored` bytes for each token's results.

    Results wait until those before them are written: as many batches again.
    """
    of_width, of_feed_forward = WIDTHS[settings.dtype]
    states = of_width * size.width + of_feed_forward * size.feed_forward
    return tokens * ((0 if on_gpu(settings) else states) + 2 * stored)


class Need(NamedTuple):
    """What a job of a task needs, before attempts and limits; nothing if it computes nothing."""

    task: str
    memory: float = 0
    """Bytes."""
    operations: float = 0
    weights: float = 0
    """Bytes of the weights to read."""

    def with_more(self, memory: float) -> Need:
        """The same, and so many bytes of memory more."""
        return self._replace(memory=self.memory + memory)

    def request(
        self,
        settings: ComputeSettings,
        *,
        threads: int,
        attempt: int,
        limits: JobLimits,
        where: str,
    ) -> Request:
        """What to ask for in the `attempt` (from 1), which multiplies it, within the `limits`.

        Raises InputError, which begins with `where`, if the first attempt needs more than these.
        """
        rate = GPU_RATE if on_gpu(settings) else CPU_RATE * max(1, threads)
        minutes = (self.operations / rate + self.weights / LOADED) / 60
        mem_mb = rounded_up(self.memory / MEGA, STEP_MB, IDLE_MB)
        runtime = rounded_up(minutes, STEP_MINUTES, LEAST_MINUTES)
        if limits.mem_mb is not None and mem_mb > limits.mem_mb:
            raise InputError(
                f"{where}: {self.task} needs {mem_mb:,} MB of memory, more than limits.mem_mb "
                f"({limits.mem_mb:,}); raise it, skip the longest sequences, or lower "
                f"{self.task}.token_budget"
            )
        if limits.runtime is not None and runtime > limits.runtime:
            raise InputError(
                f"{where}: {self.task} needs {runtime:,} minutes, more than limits.runtime "
                f"({limits.runtime:,}); raise it, lower {self.task}.job_residues or set more "
                "shards; a single long sequence needs as much in any job"
            )
        return Request(
            capped(mem_mb * attempt, limits.mem_mb), capped(runtime * attempt, limits.runtime)
        )


def forward_need(
    task: str,
    size: ModelSize,
    settings: ComputeSettings,
    residues: Int64,
    threads: int,
    stored: float,
) -> Need:
    """What a forward pass over sequences of `residues` (U,) needs, with `stored` bytes a token."""
    if not residues.any():
        return Need(task)
    tokens = tokens_at_once(settings, residues, 1, threads)
    memory = model_bytes(size, settings) + batch_bytes(size, settings, tokens, stored)
    return Need(task, memory, size.operations(residues), FLOAT32 * size.parameters)


def capped(value: int, limit: int | None) -> int:
    """The value, or the limit if there is a lower one."""
    return value if limit is None else min(value, limit)


def rounded_up(value: float, step: int, least: int) -> int:
    """The smallest multiple of `step` that is not below `value` and `least`."""
    return step * math.ceil(max(value, least) / step)
