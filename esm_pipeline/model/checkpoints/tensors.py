"""Weight files: their headers, and their tensors, which are mapped or copied into place.

A tensor that keeps the precision of the file is mapped: it takes no memory of its own, and its
pages are read when they are first used. Any other tensor is copied into memory that is already
allocated, and the pages it came from are released at once. So loading never holds a tensor twice.
Only safetensors and `weights_only` pickles are read.
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
from esm_pipeline.model.checkpoints.pickle_check import require_bounded

TORCH_DTYPES = {
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
"""Types in a safetensors header, the first four for weights; unknown types keep their name."""

MOST_HEADER_BYTES = 16 << 20
"""Bytes of a safetensors header; a tensor takes about 150 of them."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a weight file, known from the header. `key` is spelled as in the file."""

    file: WeightFile
    key: str
    dtype: torch.dtype | str
    shape: tuple[int, ...]

    @property
    def is_weight(self) -> bool:
        """Whether its numbers are of a type for weights."""
        return isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point

    def mapped(self) -> Tensor:
        """The tensor as it is in the file, mapped; changing it does not change the file."""
        return self.file.mapped(self)

    def copy_to(self, target: Tensor) -> None:
        """Copy it into `target`, which has the same shape, any device and any precision."""
        self.file.copy(self, target)


class WeightFile(ABC):
    """A file with named tensors."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def stored_tensors(self) -> Iterator[StoredTensor]:
        """The tensors in the header. They keep the file open; the file does not keep them."""

    @abstractmethod
    def mapped(self, stored: StoredTensor) -> Tensor:
        """A tensor as it is in the file."""

    @abstractmethod
    def copy(self, stored: StoredTensor, target: Tensor) -> None:
        """Copy a tensor of this file into `target`."""


class SafetensorsFile(WeightFile):
    """A safetensors file. Raises WeightsError if it is damaged."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            with open(path, "rb") as handle:
                (length,) = struct.unpack("<Q", handle.read(8))
                if length > MOST_HEADER_BYTES:
                    raise ValueError(
                        f"a header of {length:,} bytes, more than {MOST_HEADER_BYTES:,}"
                    )
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

    def stored_tensors(self) -> Iterator[StoredTensor]:
        """See the base class."""
        for key, facts in self._header.items():
            dtype = TORCH_DTYPES.get(facts["dtype"], facts["dtype"])
            yield StoredTensor(self, key, dtype, tuple(facts["shape"]))

    def start(self, stored: StoredTensor) -> int:
        """Where a tensor begins in the file."""
        return self._data + int(self._header[stored.key]["data_offsets"][0])

    def mapped(self, stored: StoredTensor) -> Tensor:
        """See the base class."""
        assert isinstance(stored.dtype, torch.dtype), "callers check is_weight first"
        count, start = prod(stored.shape), self.start(stored)
        if not count:
            return torch.empty(stored.shape, dtype=stored.dtype)
        flat = torch.frombuffer(self._bytes, dtype=stored.dtype, count=count, offset=start)
        aligned = start % stored.dtype.itemsize == 0  # usual, but not required
        return (flat if aligned else flat.clone()).view(stored.shape)

    def copy(self, stored: StoredTensor, target: Tensor) -> None:
        """See the base class."""
        source = self.mapped(stored)
        target.copy_(source)
        start = self.start(stored)
        page = start // mmap.PAGESIZE * mmap.PAGESIZE
        self._bytes.madvise(mmap.MADV_DONTNEED, page, start + source.nbytes - page)


class PickledFile(WeightFile):
    """Tensors of a `.bin` or `.pt` file, mapped by PyTorch unless it is older than version 1.6."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(path)
        self._tensors = dict(tensors)

    def stored_tensors(self) -> Iterator[StoredTensor]:
        """See the base class."""
        for key, tensor in self._tensors.items():
            yield StoredTensor(self, key, tensor.dtype, tuple(tensor.shape))

    def mapped(self, stored: StoredTensor) -> Tensor:
        """See the base class; each tensor can be taken once."""
        return self._tensors.pop(stored.key)

    def copy(self, stored: StoredTensor, target: Tensor) -> None:
        """See the base class; each tensor can be taken once."""
        target.copy_(self._tensors.pop(stored.key))


def open_pickle(path: Path) -> PickledFile:
    """A `.bin` file. Raises WeightsError if it is damaged or holds anything but named tensors."""
    tensors = load_pickle(path)
    if not is_named_tensors(tensors):
        raise WeightsError(f"{path}: holds more than named tensors; it is not a checkpoint")
    return PickledFile(path, tensors)


def is_named_tensors(found: Any) -> bool:
    """Whether it maps names to dense tensors in the memory of the CPU."""
    return isinstance(found, dict) and all(
        isinstance(key, str)
        and isinstance(tensor, Tensor)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        for key, tensor in found.items()
    )


def load_pickle(path: Path, *allowed: type) -> Any:
    """The content of a file of `torch.save`; no code runs, and only `allowed` classes are created.

    Raises WeightsError if the file is damaged, holds other classes or functions, or would take more
    memory than its size; the last is checked before unpacking.
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
    except Exception as error:  # a damaged pickle may raise any
        why = (str(error).splitlines() or ["it ends early"])[0]
        raise WeightsError(f"{path}: not a whole weight file ({why}); copy it again") from None
