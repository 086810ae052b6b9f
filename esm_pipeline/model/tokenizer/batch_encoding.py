"""From rows of ids to a batch: options, truncation, padding, tensors.

Peer: transformers 4.37.2 `PreTrainedTokenizerBase`, `BatchEncoding`.
"""

from __future__ import annotations

import warnings
from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esm_pipeline.errors import InputError

Ids = list[int]
Warn = Callable[[str], None]
TENSORS = ("pt", "np")
PADDINGS = ("longest", "max_length", "do_not_pad")
TRUNCATIONS = ("longest_first", "only_first", "only_second", "do_not_truncate")
SIDES = ("right", "left")
OLD_OPTIONS = {"pad_to_max_length": "padding='max_length'", "truncation_strategy": "truncation"}
"""Options of transformers 3, and what to say instead; they are understood."""


def ignore(message: str) -> None:
    """A warning not wanted."""


class BatchEncoding(UserDict[str, Any]):
    """`input_ids`, `attention_mask` and what else was asked for, by key or as attributes.

    A mapping, so that `model(**encoding)` takes it; a slice gives those rows of each value.
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

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return {name: value[key] for name, value in self.data.items()}
        if not isinstance(key, str):
            raise KeyError(f"{key!r} is no key; use one of {', '.join(self.data)}, or a slice")
        return self.data[key]

    def __getattr__(self, name: str) -> Any:
        if name != "data" and name in self.data:  # without data while it is being unpickled
            return self.data[name]
        raise AttributeError(f"the encoding has no '{name}'")

    def convert_to_tensors(
        self, tensor_type: str | None = None, prepend_batch_axis: bool = False
    ) -> BatchEncoding:
        """Make each value a tensor ("pt") or array ("np"), here. Raises InputError."""
        if tensor_type is not None:
            for name, value in self.data.items():
                value = [value] if prepend_batch_axis else value
                self.data[name] = as_tensor(name, value, tensor_type)
        return self

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> BatchEncoding:
        """Move the tensors to `device`, here; returns itself. A dtype changes nothing."""
        if isinstance(device, torch.dtype):
            warnings.warn(f"an encoding holds ids and masks, none as {device}", stacklevel=2)
            return self
        for name, value in self.data.items():
            if isinstance(value, Tensor):
                self.data[name] = value.to(device, non_blocking=non_blocking)
        return self


def as_tensor(name: str, value: Any, kind: str) -> Any:
    """A list as a tensor ("pt") or array ("np"), of int64 for ids. Raises InputError."""
    if kind not in TENSORS:
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
    """Tensors and arrays in `value`, itself or in lists, as lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    nested = isinstance(value, (list, tuple)) and value and not isinstance(value[0], (int, float))
    return [as_list(one) for one in value] if nested else value


@dataclass(frozen=True)
class Options:
    """The options of a call, with their defaults: how texts become rows."""

    add_special_tokens: bool = True
    padding: bool | str = False
    truncation: bool | str | None = None
    max_length: int | None = None
    stride: int = 0
    is_split_into_words: bool = False
    pad_to_multiple_of: int | None = None
    padding_side: str | None = None
    return_tensors: str | None = None
    return_token_type_ids: bool | None = None
    return_attention_mask: bool | None = None
    return_overflowing_tokens: bool = False
    return_special_tokens_mask: bool = False
    return_offsets_mapping: bool = False
    return_length: bool = False
    verbose: bool = True
    split_special_tokens: bool | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any], limit: int | None, warn: Warn) -> Options:
        """The options of keyword arguments, with padding, truncation and max_length spelt out.

        `limit` is the most tokens the model takes, None without one. Raises TypeError for an option
        that is not known, InputError for a value that cannot be.
        """
        known = [field.name for field in fields(cls)]
        given = renewed(given, warn)
        for name in set(given) - set(known):
            near = next(iter(get_close_matches(name, known)), None)
            raise TypeError(
                f"the tokenizer has no option '{name}'" + (f"; use {near}" if near else "")
            )
        options = cls(**given)
        options.check()
        return options.settled(limit, warn if options.verbose else ignore)

    def check(self) -> None:
        """Raise InputError for values that cannot be."""
        if self.return_offsets_mapping:
            raise InputError("return_offsets_mapping is not available; the reference has none too")
        if self.return_tensors not in (None, *TENSORS):
            raise InputError(
                f"return_tensors={self.return_tensors!r} is not known; use 'pt', 'np' or None"
            )
        if self.return_token_type_ids and not self.add_special_tokens:
            raise InputError("return_token_type_ids needs add_special_tokens; leave one out")
        if self.padding_side not in (None, *SIDES):
            raise InputError(f"padding_side={self.padding_side!r} is not 'right' or 'left'")
        for name in ("max_length", "pad_to_multiple_of"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, Integral) or value < 1):
                raise InputError(f"{name}={value!r} is not a whole number above 0")

    def settled(self, limit: int | None, warn: Warn) -> Options:
        """With padding, truncation and max_length spelt out. Raises InputError."""
        padding, length = choice("padding", self.padding, PADDINGS), self.max_length
        truncation = choice("truncation", self.truncation or False, TRUNCATIONS)
        if length is not None and self.padding is False and self.truncation is None:
            warn("max_length without truncation: texts are cut to it; say so with truncation=True")
            truncation = "longest_first"
        elif length is not None and self.padding is True and truncation == "do_not_truncate":
            warn("padding=True ignores max_length; use padding='max_length' or truncation=True")
        if length is None and limit is None and padding == "max_length":
            warn("padding='max_length' without a max_length, and the model has none: no padding")
            padding = "do_not_pad"
        if length is None and limit is None and truncation != "do_not_truncate":
            warn("truncation without a max_length, and the model has none: no truncation")
            truncation = "do_not_truncate"
        if length is None and (padding == "max_length" or truncation != "do_not_truncate"):
            length = limit
        cut_and_padded = truncation != "do_not_truncate" and padding != "do_not_pad"
        if cut_and_padded and length is not None and length % (self.pad_to_multiple_of or 1):
            raise InputError(
                f"max_length={length}, to which texts are cut, is no multiple of "
                f"pad_to_multiple_of={self.pad_to_multiple_of}"
            )
        return replace(self, padding=padding, truncation=truncation, max_length=length)


def renewed(given: Mapping[str, Any], warn: Warn) -> dict[str, Any]:
    """Options with those of transformers 3 in the words of today. Peer: 4.37.2."""
    options = dict(given)
    old = {name: options.pop(name) for name in OLD_OPTIONS if name in options}
    for name in old:
        warn(f"'{name}' is an old option; use {OLD_OPTIONS[name]}")
    cut = options.get("truncation") is None and options.get("max_length") is not None
    if old.get("pad_to_max_length") and not options.get("padding"):
        options["padding"] = "max_length" if options.get("max_length") else "longest"
        options["truncation"] = cut or options.get("truncation")
    strategy = old.get("truncation_strategy", "do_not_truncate")
    if options.get("truncation") is None and strategy != "do_not_truncate":
        options["truncation"] = strategy
    return options


def choice(name: str, value: Any, known: Sequence[str]) -> str:
    """`value` as one of `known`: True is the first, False the last. Raises InputError."""
    if isinstance(value, bool):
        return known[0] if value else known[-1]
    if value not in known:
        listed = ", ".join(map(repr, known))
        raise InputError(f"{name}={value!r} is not known; use True, False or one of {listed}")
    return known[known.index(value)]


def truncate(
    first: Ids, second: Ids | None, excess: int, options: Options, side: str, warn: Warn
) -> tuple[Ids, Ids | None, Ids]:
    """A pair without `excess` of its tokens, and those cut off (none of a pair cut on both ends).

    A sequence that would have to go whole stays whole, with a warning. Peer: 4.37.2.
    """
    if options.truncation == "longest_first" and second is not None:
        from_longer = min(abs(len(first) - len(second)), excess)
        from_both = excess - from_longer
        less, more = from_both // 2, from_both - from_both // 2
        if len(first) > len(second):
            return cut(first, from_longer + less, side), cut(second, more, side), []
        return cut(first, less, side), cut(second, from_longer + more, side), []
    name, row = ("second", second) if options.truncation == "only_second" else ("first", first)
    if row is None:
        return first, second, []
    if len(row) <= excess:
        warn(
            f"the {name} sequence has {len(row)} tokens, and {excess} too many to fit max_length; "
            "it is left whole"
        )
        return first, second, []
    window = min(len(row), options.stride + excess)
    gone = row[-window:] if side == "right" else row[:window]
    kept = cut(row, excess, side)
    return (first, kept, gone) if name == "second" else (kept, second, gone)


def cut(row: Ids, count: int, side: str) -> Ids:
    """A row without `count` tokens of one side."""
    return row[: max(len(row) - count, 0)] if side == "right" else row[count:]


def pad_columns(
    columns: Mapping[str, list[Any]], options: Options, fills: Mapping[str, Any], side: str
) -> dict[str, list[Any]]:
    """Columns of a batch, rows of those in `fills` made one length where padding is asked for.

    Rows of other columns stay as they are. Raises InputError for columns of unequal length.
    """
    padded = dict(columns)
    lengths = [len(row) for row in columns["input_ids"]]
    if {len(column) for column in columns.values()} != {len(lengths)}:
        counts = ", ".join(f"{len(column)} of '{name}'" for name, column in columns.items())
        raise InputError(f"a batch with unequal numbers of rows: {counts}")
    if options.padding == "do_not_pad":
        return padded
    width = options.max_length if options.padding == "max_length" else max(lengths)
    assert width is not None, "padding to max_length has one"
    width += -width % (options.pad_to_multiple_of or 1)
    for name in columns.keys() & fills.keys():
        fill = [fills[name]]
        rows = zip(columns[name], lengths, strict=True)
        if side == "right":
            padded[name] = [[*row, *fill * (width - length)] for row, length in rows]
        else:
            padded[name] = [[*fill * (width - length), *row] for row, length in rows]
    return padded
