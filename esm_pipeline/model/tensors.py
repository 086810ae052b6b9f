"""Weight files: what their headers say, and their tensors, mapped or read where they are wanted.

A tensor that is wanted as the file has it is mapped: it costs no memory of its own, and its pages
are read when they are first used. All others are read piece by piece into memory that is there, by
several threads, so that loading never holds a tensor twice. Only safetensors and `weights_only`
pickles are read.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from esm_pipeline.errors import WeightsError

PIECE = 1 << 24
"""Bytes that one thread reads at a time where the precision or the device changes."""

MOST_READERS = 8

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Types of a safetensors header. Weights are of the first four; others are told by their name."""


@dataclass(frozen=True)
class Entry:
    """One tensor in a weight file, known by the file's header. `key` is the file's spelling."""

    file: WeightFile
    key: str
    dtype: torch.dtype | str
    shape: tuple[int, ...]

    @property
    def is_weight(self) -> bool:
        """Whether it holds numbers that a model can have."""
        return isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point

    def mapped(self) -> Tensor:
        """The tensor as it lies in the file, mapped; changing it leaves the file alone."""
        return self.file.mapped(self.key)

    def read_into(self, target: Tensor) -> None:
        """Fill `target`, contiguous and of this shape, on any device and in any precision."""
        self.file.read_into(self, target)


class WeightFile(ABC):
    """A file with named tensors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}

    @abstractmethod
    def mapped(self, key: str) -> Tensor:
        """The tensor `key` as it lies in the file. Raises WeightsError."""

    @abstractmethod
    def read_into(self, entry: Entry, target: Tensor) -> None:
        """Fill `target` with a tensor of this file. Raises WeightsError."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the file. Tensors that were mapped stay so; the rest of it can go."""


class SafetensorsFile(WeightFile):
    """A safetensors file. Raises WeightsError if it is damaged."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._opened: Any = safe_open(path, framework="pt")  # checks the whole header
            with open(path, "rb") as handle:
                (length,) = struct.unpack("<Q", handle.read(8))
                header = json.loads(handle.read(length))
        except (SafetensorError, OSError, ValueError, struct.error) as error:
            raise WeightsError(
                f"{path}: not a whole safetensors file ({error}); download or copy it again"
            ) from None
        self._starts: dict[str, int] = {}
        for key in header.keys() - {"__metadata__"}:
            facts = header[key]
            dtype = DTYPES.get(facts["dtype"], facts["dtype"])
            self.entries[key] = Entry(self, key, dtype, tuple(facts["shape"]))
            self._starts[key] = 8 + length + facts["data_offsets"][0]

    def mapped(self, key: str) -> Tensor:
        """See the base class."""
        try:
            tensor: Tensor = self._opened.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise self._damaged(key, error) from None
        return tensor

    def read_into(self, entry: Entry, target: Tensor) -> None:
        """See the base class."""
        assert isinstance(entry.dtype, torch.dtype), "is_weight is asked first"
        flat = target.view(-1)
        as_it_is = target.device.type == "cpu" and target.dtype == entry.dtype
        step = max(1, flat.numel() if as_it_is else PIECE // entry.dtype.itemsize)
        try:
            with open(self.path, "rb", buffering=0) as handle:
                handle.seek(self._starts[entry.key])
                for piece in flat.split(step):
                    read = piece if as_it_is else torch.empty(len(piece), dtype=entry.dtype)
                    read_exactly(handle, read)
                    if read is not piece:
                        piece.copy_(read)
        except (OSError, EOFError) as error:
            raise self._damaged(entry.key, error) from None

    def close(self) -> None:
        """See the base class."""
        self._opened = None

    def _damaged(self, key: str, error: Exception) -> WeightsError:
        return WeightsError(f"{self.path}: tensor '{key}' cannot be read ({error}); copy it again")


def read_exactly(handle: BinaryIO, target: Tensor) -> None:
    """Fill a tensor of the CPU, (n,), with the bytes that follow. Raises EOFError if they end."""
    rest = memoryview(target.view(torch.uint8).numpy())  # type: ignore[arg-type]
    while rest:
        count = handle.readinto(rest)  # type: ignore[attr-defined]
        if not count:
            raise EOFError("the file ends early")
        rest = rest[count:]


class PickledFile(WeightFile):
    """Tensors of a legacy `.bin` or `.pt`, mapped by PyTorch unless they are older than 1.6."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(path)
        self._tensors = dict(tensors)
        for key, tensor in tensors.items():
            self.entries[key] = Entry(self, key, tensor.dtype, tuple(tensor.shape))

    def mapped(self, key: str) -> Tensor:
        """See the base class."""
        return self._tensors.pop(key)

    def read_into(self, entry: Entry, target: Tensor) -> None:
        """See the base class."""
        target.copy_(self._tensors.pop(entry.key))

    def close(self) -> None:
        """See the base class."""
        self._tensors.clear()  # of which a mapping keeps all


def open_pickle(path: Path) -> PickledFile:
    """A `.bin` file. Raises WeightsError if it is damaged or holds anything but named tensors."""
    tensors = load_pickle(path)
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise WeightsError(f"{path}: holds more than named tensors; this is not a checkpoint")
    return PickledFile(path, tensors)


def load_pickle(path: Path, *allowed: type) -> Any:
    """What a file of `torch.save` holds; nothing in it is run, and only `allowed` classes are made.

    Raises WeightsError if it is damaged or holds other classes or functions.
    """
    try:
        mapped = zipfile.is_zipfile(path)  # files of PyTorch before 1.6 are not
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError:
        raise WeightsError(
            f"{path}: holds pickled code, not only tensors, and is refused; convert it to "
            "safetensors where you trust it"
        ) from None
    except Exception as error:  # which a damaged pickle may raise any of
        why = (str(error).splitlines() or ["it ends early"])[0]
        raise WeightsError(f"{path}: not a whole weight file ({why}); copy it again") from None


def read_all(jobs: Iterable[tuple[Entry, Tensor]]) -> None:
    """Fill each tensor with its entry, file after file; of one file, several at a time."""
    by_file: dict[WeightFile, list[tuple[Entry, Tensor]]] = {}
    for entry, target in jobs:
        by_file.setdefault(entry.file, []).append((entry, target))
    with ThreadPoolExecutor(readers()) as pool:
        for file, own in by_file.items():
            for _ in pool.map(lambda job: job[0].read_into(job[1]), own):
                pass
            file.close()


def readers() -> int:
    """Threads to read with: the CPU's that PyTorch may use, but a disk is not made of many."""
    return max(1, min(MOST_READERS, torch.get_num_threads(), os.cpu_count() or 1))
