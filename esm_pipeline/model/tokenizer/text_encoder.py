"""Calling the tokenizer: the types of what it returns follow from what it is given."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from esm_pipeline.errors import InputError
from esm_pipeline.model.tokenizer.batch_encoding import BatchEncoding
from esm_pipeline.model.tokenizer.rows import is_text

Texts: TypeAlias = str | Sequence[str] | Sequence[Sequence[str]]


class TextEncoder:
    """A tokenizer that is called with a text or several."""

    @abstractmethod
    def encode_plus(self, text: Any, text_pair: Any = None, **options: Any) -> BatchEncoding[Any]:
        """Encode one text or pair."""

    @abstractmethod
    def batch_encode_plus(self, texts: Sequence[Any], **options: Any) -> BatchEncoding[Any]:
        """Encode several texts or pairs."""

    @overload
    def __call__(
        self,
        text: Texts | None = None,
        text_pair: Texts | None = None,
        text_target: Texts | None = None,
        text_pair_target: Texts | None = None,
        *,
        return_tensors: Literal["pt"],
        **options: object,
    ) -> BatchEncoding[Tensor]: ...
    @overload
    def __call__(
        self,
        text: Texts | None = None,
        text_pair: Texts | None = None,
        text_target: Texts | None = None,
        text_pair_target: Texts | None = None,
        *,
        return_tensors: Literal["np"],
        **options: object,
    ) -> BatchEncoding[NDArray[np.int64]]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]  # a str is a Sequence[str]
        self,
        text: str,
        text_pair: str | None = None,
        text_target: str | None = None,
        text_pair_target: str | None = None,
        *,
        return_tensors: None = None,
        **options: object,
    ) -> BatchEncoding[list[int]]: ...
    @overload
    def __call__(
        self,
        text: Texts | None = None,
        text_pair: Texts | None = None,
        text_target: Texts | None = None,
        text_pair_target: Texts | None = None,
        *,
        return_tensors: None = None,
        **options: object,
    ) -> BatchEncoding[list[list[int]]]: ...
    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        text_target: Any = None,
        text_pair_target: Any = None,
        **options: Any,
    ) -> BatchEncoding[Any]:
        """Encode a text, a pair of texts, or a list of texts or pairs.

        `text` is a str or a list of them; with `is_split_into_words`, a list of parts or a list of
        such lists. `text_pair` has the second text of each pair; a list of (text, pair) works too.
        `text_target` is encoded as `labels`. Returns `input_ids` and `attention_mask`: lists of
        ints for one text; for several, lists of lists, or with `return_tensors` (B, L).

        `padding`: False, True or "longest", "max_length"; to a multiple of `pad_to_multiple_of`, on
        `padding_side`. `truncation`: False, True or "longest_first", "only_first", "only_second",
        to `max_length` tokens including the special ones. `return_tensors`: "pt", "np" or None.
        `add_special_tokens=False` leaves them out. `return_special_tokens_mask`, `return_length`,
        `return_token_type_ids`, `return_attention_mask` and `return_overflowing_tokens` (together
        with the last `stride` tokens kept) add or drop values. Raises InputError, and TypeError for
        an unknown option.
        """
        if text is None and text_target is None:
            raise InputError("nothing to encode; give text or text_target")
        if text is None:
            return self._encode(text_target, text_pair_target, options)
        found = self._encode(text, text_pair, options)
        if text_target is not None:
            target = self._encode(text_target, text_pair_target, options)
            found["labels"] = target["input_ids"]
        return found

    def _encode(self, text: Any, pair: Any, options: Mapping[str, Any]) -> BatchEncoding[Any]:
        """Encode the text or texts of a call by `encode_plus` or `batch_encode_plus`."""
        if not is_text(text) or not (pair is None or is_text(pair)):
            raise InputError("a text is a str, a list of str or a list of lists of str")
        split = options.get("is_split_into_words", False)
        if isinstance(text, str) or (split and not (text and isinstance(text[0], (list, tuple)))):
            return self.encode_plus(text, pair, **options)
        if pair is None:
            return self.batch_encode_plus(text, **options)
        if isinstance(pair, str) or len(pair) != len(text):
            count = "one str" if isinstance(pair, str) else f"{len(pair)} of them"
            raise InputError(f"text_pair is {count}, but there are {len(text)} texts; give as many")
        return self.batch_encode_plus(list(zip(text, pair, strict=True)), **options)

    @overload
    def encode(
        self,
        text: str | Sequence[str] | Sequence[int],
        text_pair: str | Sequence[str] | Sequence[int] | None = None,
        *,
        return_tensors: None = None,
        **options: object,
    ) -> list[int]: ...
    @overload
    def encode(
        self,
        text: str | Sequence[str] | Sequence[int],
        text_pair: str | Sequence[str] | Sequence[int] | None = None,
        *,
        return_tensors: Literal["pt"],
        **options: object,
    ) -> Tensor: ...
    @overload
    def encode(
        self,
        text: str | Sequence[str] | Sequence[int],
        text_pair: str | Sequence[str] | Sequence[int] | None = None,
        *,
        return_tensors: Literal["np"],
        **options: object,
    ) -> NDArray[np.int64]: ...
    def encode(self, text: Any, text_pair: Any = None, **options: Any) -> Any:
        """Ids of one text or pair, with special tokens; options as in a call."""
        return self.encode_plus(text, text_pair, **options)["input_ids"]
