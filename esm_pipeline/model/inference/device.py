"""Where a model runs: the device that `--device` names, CPU threads, free memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from esm_pipeline.errors import InputError

THREAD_LIMITS = ("SLURM_CPUS_PER_TASK", "OMP_NUM_THREADS")
"""Environment variables by which a scheduler or a user limits the cores of this process."""

MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/proc/self/cgroup")
CGROUP_FILES = {
    "": (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
    "memory": (
        Path("/sys/fs/cgroup/memory"),
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
    ),
}
"""For both versions of cgroups: the folder, and the files with the limit and the memory in use."""


def resolve_device(name: str) -> torch.device:
    """The device of this machine that `auto`, `cpu`, `cuda`, `cuda:N` or `mps` names.

    `auto` is the first CUDA GPU, else Apple's, else the CPU. Raises InputError for an unknown name
    or a missing device.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise InputError(f"device '{name}' is not known; use auto, cpu, cuda, cuda:N or mps")
    if name == "auto":
        return torch.device(best_device())
    if name == "mps" and not torch.backends.mps.is_available():
        raise InputError("device mps: PyTorch sees no Apple GPU here; use auto or cpu")
    if name.startswith("cuda"):
        require_cuda(name)
    return torch.device(name)


def best_device() -> str:
    """A GPU if PyTorch sees one, else the CPU."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def require_cuda(name: str) -> None:
    """Raise InputError unless PyTorch sees the GPU that `name` (`cuda` or `cuda:N`) names."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise InputError(
            f"device {name}: PyTorch sees no CUDA GPU; use auto or cpu, or check nvidia-smi and "
            "that this PyTorch was built for CUDA"
        )
    if int(name.partition(":")[2] or 0) >= count:
        raise InputError(f"device {name}: PyTorch sees only cuda:0 to cuda:{count - 1}")


def thread_count(threads: int) -> int:
    """CPU threads to compute with: `threads`, or all cores that this process may use if 0."""
    if threads:
        return threads
    limits = [os.environ.get(name, "") for name in THREAD_LIMITS]
    return min(
        [usable_cores(), *(int(limit) for limit in limits if re.fullmatch("[1-9]\\d*", limit))]
    )


def usable_cores() -> int:
    """Cores on which the system lets this process run."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_threads(threads: int) -> int:
    """Let PyTorch compute with `thread_count(threads)` CPU threads; returns their number."""
    count = thread_count(threads)
    torch.set_num_threads(count)
    return count


def free_memory(device: torch.device) -> int:
    """Free bytes of memory of a device; on the CPU, those that this process may use."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min([available_memory(), *(limit - used for limit, used in cgroup_memory())])


def available_memory() -> int:
    """Bytes of the machine's memory that are free or can be freed."""
    try:
        found = re.search(r"MemAvailable: *(\d+) kB", MEMINFO.read_text())
    except OSError:
        found = None  # not Linux
    if found:
        return int(found[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cgroup_memory() -> Iterator[tuple[int, int]]:
    """Limit and memory in use, in bytes, of each of this process's cgroups that has a limit."""
    try:
        lines = CGROUP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kind, path = line.split(":", 2)
        root, limit, used = CGROUP_FILES.get(kind, (None, "", ""))
        group = Path(path.lstrip("/"))
        for folder in [] if root is None else [root / group, *(root / p for p in group.parents)]:
            try:
                yield int((folder / limit).read_text()), int((folder / used).read_text())
            except (OSError, ValueError):  # missing, or "max"
                continue
