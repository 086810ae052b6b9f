"""Weight files: what their headers say, and their tensors, mapped or copied where they are wanted.

A tensor that is wanted as the file has it is mapped: it costs no memory of its own, and its pages
are read when they are first used. All others are copied into memory that is there, and the pages
they came from are let go at once. Loading thereby never holds a tensor twice. Only safetensors and
`weights_only` pickles are read.
"""

from __future__ import annotations

import json
import mmap
import pickle
import struct
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from esm_pipeline.errors import WeightsError
from esm_pipeline.model.checkpoints.pickle_sizes import require_bounded

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

MOST_HEADER = 16 << 20
"""Bytes of a safetensors header, which has some 150 for each tensor."""


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
        return self.file.mapped(self)

    def copy_to(self, target: Tensor) -> None:
        """Fill `target`, of this shape, on any device and in any precision."""
        self.file.copy(self, target)


class WeightFile(ABC):
    """A file with named tensors."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def entries(self) -> Iterator[Entry]:
        """The tensors, as the header has them. They hold the file, which does not hold them."""

    @abstractmethod
    def mapped(self, entry: Entry) -> Tensor:
        """A tensor as it lies in the file."""

    @abstractmethod
    def copy(self, entry: Entry, target: Tensor) -> None:
        """Fill `target` with a tensor of this file."""


class SafetensorsFile(WeightFile):
    """A safetensors file. Raises WeightsError if it is damaged."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            with open(path, "rb") as handle:
                (length,) = struct.unpack("<Q", handle.read(8))
                if length > MOST_HEADER:
                    raise ValueError(f"a header of {length:,} bytes, more than {MOST_HEADER:,}")
                with safe_open(path, framework="pt"):  # checks the header, and the file's length
                    pass
                header = json.loads(handle.read(length))
                self._bytes = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
        except (SafetensorError, OSError, ValueError, struct.error) as error:
            raise WeightsError(
                f"{path}: not a whole safetensors file ({error}); download or copy it again"
            ) from None
        header.pop("__metadata__", None)
        self._header: dict[str, dict[str, Any]] = header
        self._data: int = 8 + length

    def entries(self) -> Iterator[Entry]:
        """See the base class."""
        for key, facts in self._header.items():
            dtype = DTYPES.get(facts["dtype"], facts["dtype"])
            yield Entry(self, key, dtype, tuple(facts["shape"]))

    def start(self, entry: Entry) -> int:
        """Where a tensor begins in the file."""
        return self._data + int(self._header[entry.key]["data_offsets"][0])

    def mapped(self, entry: Entry) -> Tensor:
        """See the base class."""
        assert isinstance(entry.dtype, torch.dtype), "is_weight is asked first"
        count, start = prod(entry.shape), self.start(entry)
        if not count:
            return torch.empty(entry.shape, dtype=entry.dtype)
        flat = torch.frombuffer(self._bytes, dtype=entry.dtype, count=count, offset=start)
        aligned = start % entry.dtype.itemsize == 0  # as its writers do, but nothing demands
        return (flat if aligned else flat.clone()).view(entry.shape)

    def copy(self, entry: Entry, target: Tensor) -> None:
        """See the base class."""
        source = self.mapped(entry)
        target.copy_(source)
        start = self.start(entry)
        page = start // mmap.PAGESIZE * mmap.PAGESIZE
        self._bytes.madvise(mmap.MADV_DONTNEED, page, start + source.nbytes - page)


class PickledFile(WeightFile):
    """Tensors of a legacy `.bin` or `.pt`, mapped by PyTorch unless they are older than 1.6."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(path)
        self._tensors = dict(tensors)

    def entries(self) -> Iterator[Entry]:
        """See the base class."""
        for key, tensor in self._tensors.items():
            yield Entry(self, key, tensor.dtype, tuple(tensor.shape))

    def mapped(self, entry: Entry) -> Tensor:
        """See the base class; of each tensor once."""
        return self._tensors.pop(entry.key)

    def copy(self, entry: Entry, target: Tensor) -> None:
        """See the base class; of each tensor once."""
        target.copy_(self._tensors.pop(entry.key))


def open_pickle(path: Path) -> PickledFile:
    """A `.bin` file. Raises WeightsError if it is damaged or holds anything but named tensors."""
    tensors = load_pickle(path)
    if not is_named_tensors(tensors):
        raise WeightsError(f"{path}: holds more than named tensors; this is not a checkpoint")
    return PickledFile(path, tensors)


def is_named_tensors(found: Any) -> bool:
    """Whether it maps names to tensors that have all their numbers, one after another."""
    return isinstance(found, dict) and all(
        isinstance(key, str)
        and isinstance(tensor, Tensor)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        for key, tensor in found.items()
    )


def load_pickle(path: Path, *allowed: type) -> Any:
    """What a file of `torch.save` holds; nothing in it is run, and only `allowed` classes are made.

    Raises WeightsError if it is damaged or holds other classes or functions, and before it is
    unpacked if it would take more memory than its size.
    """
    require_bounded(path)
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
