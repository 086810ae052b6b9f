"""What a measurement ran on: processor, versions, and the rate of its matrix products."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch
import torch.nn.functional as F

import esm_pipeline

PACKAGES = ("torch", "transformers", "openvino", "esm-cpp", "numpy")
SETS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8")
CAPS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "ESM_FORCE_ISA")
"""Environment variables that hold a library below what the processor has."""

ROWS, REPEATS, PATIENCE = 4096, 5, 2.0  # seconds
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


def describe() -> dict[str, object]:
    """Processor, instruction sets, cores, memory, system, load, versions."""
    told = cpuinfo()
    kind = ", ".join(f"{key} {told[key]}" for key in ("cpu family", "model") if key in told)
    flags = told.get("flags", told.get("Features", "")).split()
    return {
        "processor": told.get("model name", platform.processor() or platform.machine()),
        "kind": kind,
        "instruction sets": [one for one in SETS if one in flags],
        "capped by": {name: os.environ[name] for name in CAPS if name in os.environ},
        "cores": cores(),
        "memory": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        "load": round(os.getloadavg()[0], 2),
        "versions": {"python": platform.python_version(), **versions()},
    }


def cpuinfo() -> dict[str, str]:
    """What Linux tells of the first processor; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.exists() else []
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Of this package, with its commit, and of the others that are here."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    ).stdout.strip()
    found = {"esm_pipeline": f"{esm_pipeline.__version__} {commit}".strip()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def rate(dtype: str, width: int) -> float:
    """Operations/s that this machine's fastest matrix product reaches at a model's shapes.

    (4096, width) by (width, 4 · width), the best of 5 of each product that PyTorch has for `dtype`;
    int8 is with int8 activations, made beforehand, and sums in int32.
    """
    found = [best(product) for product in products(DTYPES[dtype], width)]
    return 2 * ROWS * width * 4 * width / min(found)


def products(dtype: torch.dtype, width: int) -> list[Callable[[], object]]:
    """The products there are; private operators of PyTorch are tried, and left out if they fail."""
    if dtype == torch.int8:
        x = torch.randint(-127, 128, (ROWS, width), dtype=dtype)
        w = torch.randint(-127, 128, (4 * width, width), dtype=dtype)
        return [lambda: torch._int_mm(x, w.T), *works(lambda: quantized(x, w))]
    x, w = torch.randn(ROWS, width).to(dtype), torch.randn(4 * width, width).to(dtype)
    return [lambda: F.linear(x, w), *works(lambda: packed(x, w))]


def packed(x: torch.Tensor, w: torch.Tensor) -> Callable[[], object]:
    """By oneDNN, with a weight that it reordered."""
    own = torch.ops.mkldnn._reorder_linear_weight(w, ROWS)
    return lambda: torch.ops.mkldnn._linear_pointwise(x, own, None, "none", [], "none")


def quantized(x: torch.Tensor, w: torch.Tensor) -> Callable[[], object]:
    """By oneDNN, with an int8 weight that it reordered; a scale for each channel."""
    own = torch.ops.onednn.qlinear_prepack(w, list(x.shape))
    x = x.abs().view(
        torch.uint8
    )  # with signed ones, oneDNN takes its reference, 1,000 times slower
    scales, zeros = torch.ones(len(w)), torch.zeros(len(w), dtype=torch.int64)

    def product() -> object:
        return torch.ops.onednn.qlinear_pointwise(
            *(x, 1.0, 0, own, scales, zeros, None, 1.0, 0, torch.float32, "none", [], "")
        )

    return product


def works(make: Callable[[], Callable[[], object]]) -> list[Callable[[], object]]:
    """The product that `make` gives, if it gives one and that can be computed."""
    try:
        product = make()
        product()
    except (RuntimeError, AttributeError, TypeError, NotImplementedError):
        return []
    return [product]


def best(function: Callable[[], object]) -> float:
    """Seconds of the fastest of some calls."""
    found = []
    with torch.inference_mode():
        for _ in range(REPEATS):
            start = time.perf_counter()
            function()
            found.append(time.perf_counter() - start)
            if sum(found) > PATIENCE:
                break
    return min(found)
