"""The options of a tokenizer call, with those of transformers 3. Peer: transformers 4.37.2."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from numbers import Integral
from typing import Any

from esm_pipeline.errors import InputError

Warn = Callable[[str], None]
TENSOR_KINDS = ("pt", "np")
PADDINGS = ("longest", "max_length", "do_not_pad")
TRUNCATIONS = ("longest_first", "only_first", "only_second", "do_not_truncate")
SIDES = ("right", "left")
OLD_OPTIONS = {"pad_to_max_length": "padding='max_length'", "truncation_strategy": "truncation"}
"""Options of transformers 3 → what replaces them; they still work."""


@dataclass(frozen=True)
class CallOptions:
    """How texts become rows of ids; the defaults are those of a call."""

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
    def read(cls, given: Mapping[str, Any], limit: int | None, warn: Warn) -> CallOptions:
        """Options from keyword arguments, with padding, truncation and max_length spelled out.

        `limit`: most tokens that the model takes, None if there is no limit. Raises TypeError for
        an unknown option, InputError for an impossible value.
        """
        known = [field.name for field in fields(cls)]
        given = without_old_names(given, warn)
        for name in set(given) - set(known):
            near = next(iter(get_close_matches(name, known)), None)
            raise TypeError(
                f"the tokenizer has no option '{name}'" + (f"; use {near}" if near else "")
            )
        options = cls(**given)
        options.require_valid()
        return options.spelled_out(limit, warn if options.verbose else ignore)

    def require_valid(self) -> None:
        """Raise InputError for impossible values."""
        if self.return_offsets_mapping:
            raise InputError("return_offsets_mapping is not available; the reference has none too")
        if self.return_tensors not in (None, *TENSOR_KINDS):
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

    def spelled_out(self, limit: int | None, warn: Warn) -> CallOptions:
        """The same with padding, truncation and max_length spelled out. Raises InputError."""
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


def ignore(message: str) -> None:
    """Drop a warning."""


def without_old_names(given: Mapping[str, Any], warn: Warn) -> dict[str, Any]:
    """Options with those of transformers 3 replaced by today's. Peer: 4.37.2."""
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
