"""What a tokenizer call returns. Peer: transformers 4.37.2 `BatchEncoding`."""

from __future__ import annotations

import warnings
from collections import UserDict
from collections.abc import Mapping
from typing import Any, Self, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from esm_pipeline.errors import InputError
from esm_pipeline.model.tokenizer.options import TENSOR_KINDS

V = TypeVar("V")


class BatchEncoding(UserDict[str, V]):
    """`input_ids`, `attention_mask` and other requested values, by key or as attributes.

    It is a mapping, so that `model(**encoding)` works; a slice gives those rows of each value.
    """

    is_fast = False
    encodings = None

    def __init__(
        self,
        data: Mapping[str, Any] | None = None,
        *,
        tensor_type: str | None = None,
        prepend_batch_axis: bool = False,
    ) -> None:
        super().__init__(data or {})
        self.convert_to_tensors(tensor_type, prepend_batch_axis)

    @overload
    def __getitem__(self, key: str) -> V: ...
    @overload
    def __getitem__(self, key: slice) -> dict[str, V]: ...
    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            data: dict[str, Any] = self.data
            return {name: value[key] for name, value in data.items()}
        if not isinstance(key, str):
            raise KeyError(f"{key!r} is no key; use one of {', '.join(self.data)}, or a slice")
        return self.data[key]

    def __getattr__(self, name: str) -> V:
        if name != "data" and name in self.data:  # no data yet while it is being unpickled
            return self.data[name]
        raise AttributeError(f"the encoding has no '{name}'")

    def convert_to_tensors(
        self, tensor_type: str | None = None, prepend_batch_axis: bool = False
    ) -> Self:
        """Make each value a tensor ("pt") or array ("np"), in place. Raises InputError."""
        data: dict[str, Any] = self.data
        if tensor_type is not None:
            for name, value in data.items():
                value = [value] if prepend_batch_axis else value
                data[name] = as_tensor(name, value, tensor_type)
        return self

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> Self:
        """Move the tensors to `device`, in place; returns itself. A dtype changes nothing."""
        if isinstance(device, torch.dtype):
            warnings.warn(f"an encoding holds ids and masks, none as {device}", stacklevel=2)
            return self
        data: dict[str, Any] = self.data
        for name, value in data.items():
            if isinstance(value, Tensor):
                data[name] = value.to(device, non_blocking=non_blocking)
        return self


def as_tensor(name: str, value: Any, kind: str) -> Any:
    """A list as a tensor ("pt") or array ("np"), int64 for ids. Raises InputError."""
    if kind not in TENSOR_KINDS:
        raise InputError(f"tensors of type {kind!r} are not known; use 'pt' or 'np'")
    if isinstance(value, Tensor if kind == "pt" else np.ndarray):
        return value
    try:
        array = np.array(value)
        array = array if array.size else array.astype(np.int64)
        if kind == "np":
            return array
        return torch.from_numpy(array) if array.dtype.kind in "iub" else torch.tensor(value)
    except (TypeError, ValueError, RuntimeError):
        if kind == "np" and all(isinstance(row, (list, tuple)) for row in value):
            return np.array([np.array(row) for row in value], dtype=object)
        raise InputError(
            f"'{name}' makes no tensor: rows of different lengths, or no numbers; padding=True and "
            "truncation=True give rows of one length"
        ) from None


def as_list(value: Any) -> Any:
    """Lists instead of tensors and arrays, at any depth of lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    nested = isinstance(value, (list, tuple)) and value and not isinstance(value[0], (int, float))
    return [as_list(one) for one in value] if nested else value


def kind_of(value: Any) -> str | None:
    """What holds the ids: "pt" for a tensor, "np" for an array, None for lists."""
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    if isinstance(value, Tensor):
        return "pt"
    return "np" if isinstance(value, (np.ndarray, np.generic)) else None
