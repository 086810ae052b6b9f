"""Devices by name, threads by what the system grants."""

import os

import pytest
import torch

from esm_pipeline.errors import InputError
from esm_pipeline.model.inference import device
from esm_pipeline.model.inference.device import resolve_device, set_threads, thread_count


@pytest.fixture
def hardware(monkeypatch):
    def have(cuda=0, mps=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return have


@pytest.mark.parametrize(
    ("cuda", "mps", "name", "expected"),
    [
        (0, False, "auto", "cpu"),
        (0, True, "auto", "mps"),
        (2, False, "auto", "cuda"),
        (2, True, "auto", "cuda"),
        (2, False, "cuda:1", "cuda:1"),
        (2, False, "cuda", "cuda"),
        (2, False, "cpu", "cpu"),
        (0, True, "mps", "mps"),
    ],
)
def test_devices(hardware, cuda, mps, name, expected):
    hardware(cuda, mps)
    assert resolve_device(name) == torch.device(expected)


@pytest.mark.parametrize(
    ("cuda", "name", "message"),
    [
        (0, "cuda", "device cuda: PyTorch sees no CUDA GPU; use auto or cpu"),
        (0, "cuda:0", "device cuda:0: PyTorch sees no CUDA GPU"),
        (2, "cuda:2", "device cuda:2: PyTorch sees only cuda:0 to cuda:1"),
        (0, "mps", "device mps: PyTorch sees no Apple GPU"),
        (0, "gpu", "device 'gpu' is not known; use auto, cpu, cuda, cuda:N or mps"),
    ],
)
def test_devices_that_are_not_there(hardware, cuda, name, message):
    hardware(cuda)
    with pytest.raises(InputError, match=message):
        resolve_device(name)


@pytest.fixture
def cores(monkeypatch):
    monkeypatch.setattr(device, "usable_cores", lambda: 16)
    for name in device.THREAD_LIMITS:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_threads(cores):
    assert thread_count(3) == 3
    assert thread_count(0) == 16
    cores.setenv("SLURM_CPUS_PER_TASK", "4")
    assert thread_count(0) == 4
    cores.setenv("OMP_NUM_THREADS", "2")
    assert thread_count(0) == 2
    assert thread_count(32) == 32, "what the user asks for stands"
    cores.setenv("OMP_NUM_THREADS", "many")
    assert thread_count(0) == 4
    cores.setenv("SLURM_CPUS_PER_TASK", "64")
    assert thread_count(0) == 16


def test_usable_cores_are_those_of_the_affinity(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 7}, raising=False)
    assert device.usable_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert device.usable_cores() == 8


def test_pytorch_uses_that_number():
    before = torch.get_num_threads()
    try:
        assert set_threads(3) == torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """A machine with so much memory, and groups with limits."""

    def have(available: int | None, groups: dict[str, tuple[str, int]], lines: str) -> int:
        if available is not None:
            (tmp_path / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:   {available} kB\n")
        (tmp_path / "cgroup").write_text(lines)
        for name, (limit, used) in groups.items():
            folder = tmp_path / "groups" / name
            folder.mkdir(parents=True)
            (folder / "memory.max").write_text(f"{limit}\n")
            (folder / "memory.current").write_text(f"{used}\n")
        monkeypatch.setattr(device, "MEMINFO", tmp_path / "meminfo")
        monkeypatch.setattr(device, "CGROUP", tmp_path / "cgroup")
        files = (tmp_path / "groups", "memory.max", "memory.current")
        monkeypatch.setattr(device, "CGROUP_FILES", {"": files})
        return device.free_memory(torch.device("cpu"))

    return have


def test_free_memory_is_the_machines(memory):
    assert memory(1000, {}, "0::/\n") == 1000 * 1024
    assert memory(1000, {"job": ("max", 5)}, "9:cpu:/x\n0::/job\n") == 1000 * 1024


@pytest.mark.parametrize("name", ["job", "job/step", "job/step/task"])
def test_a_limit_that_a_scheduler_set_counts(memory, name):
    """That of the process's own group, or of one above it."""
    assert memory(1000, {name: ("5000", 2000)}, "0::/job/step/task\n") == 3000


def test_limits_of_other_groups_do_not_count(memory):
    assert memory(1000, {"other": ("5000", 2000)}, "0::/job\n") == 1000 * 1024


def test_without_linux_it_is_all_there_is(memory):
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory(None, {}, "") == pages
