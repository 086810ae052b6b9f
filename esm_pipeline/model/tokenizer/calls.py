"""Texts to batches: the calls of a tokenizer. Peer: transformers 4.37.2 `PreTrainedTokenizer`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from esm_pipeline.errors import InputError
from esm_pipeline.model.tokenizer.batch_encoding import (
    BatchEncoding,
    Options,
    as_list,
    ignore,
    pad_columns,
    truncate,
)
from esm_pipeline.model.tokenizer.special_tokens import Ids
from esm_pipeline.model.tokenizer.tokens import TextTokens

ANY_LENGTH = int(1e30)
NO_LIMIT = int(1e20)
"""`model_max_length` of a model without a limit, and what is beyond any limit."""


class TokenizerCalls(TextTokens):
    """How a tokenizer is called."""

    model_max_length = ANY_LENGTH
    padding_side = "right"
    truncation_side = "right"
    pad_token_type_id = 0
    model_input_names: list[str]
    _warned: set[str]

    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        text_target: Any = None,
        text_pair_target: Any = None,
        **options: Any,
    ) -> BatchEncoding:
        """Encode a text, a pair of texts, or a list of texts or pairs.

        `text` is a str or a list of them; with `is_split_into_words`, a list of parts or a list of
        such lists. `text_pair` has the second of each pair; a list of (text, pair) will do.
        `text_target` is encoded as `labels`. Returns `input_ids` and `attention_mask`, lists of
        ints for one text, lists of lists or with `return_tensors` (B, L) for several.

        `padding`: False, True or "longest", "max_length"; to a multiple of `pad_to_multiple_of`, on
        `padding_side`. `truncation`: False, True or "longest_first", "only_first", "only_second",
        to `max_length` tokens with the special ones. `return_tensors`: "pt", "np" or None.
        `add_special_tokens=False` leaves them out. `return_special_tokens_mask`, `return_length`,
        `return_token_type_ids`, `return_attention_mask` and `return_overflowing_tokens` (the last
        `stride` kept ones too) add or drop values. Raises InputError, and TypeError for an unknown
        option.
        """
        if text is None and text_target is None:
            raise InputError("nothing to encode; give text or text_target")
        found = None if text is None else self._encode_texts(text, text_pair, options)
        if text_target is not None:
            target = self._encode_texts(text_target, text_pair_target, options)
            if found is None:
                return target
            found["labels"] = target["input_ids"]
        assert found is not None, "one of the two is given"
        return found

    def _encode_texts(self, text: Any, pair: Any, options: Mapping[str, Any]) -> BatchEncoding:
        """A call's text or texts, as `encode_plus` or `batch_encode_plus` would."""
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

    def encode(self, text: Any, text_pair: Any = None, **options: Any) -> Any:
        """Ids of one text or pair, with special tokens; options as in a call."""
        return self.encode_plus(text, text_pair, **options)["input_ids"]

    def encode_plus(self, text: Any, text_pair: Any = None, **options: Any) -> BatchEncoding:
        """Encode one text or pair: a str, a list of tokens or a list of ids each."""
        settings = self._options(options)
        first = self._ids_of(text, settings)
        second = None if text_pair is None else self._ids_of(text_pair, settings)
        return self._encode_one(first, second, settings, prepend_batch_axis=True)

    def batch_encode_plus(self, texts: Sequence[Any], **options: Any) -> BatchEncoding:
        """Encode several texts or pairs, each as `encode_plus` takes them."""
        settings = self._options(options)
        rows = []
        for place, one in enumerate(texts):
            pair = isinstance(one, (list, tuple))
            if pair and settings.is_split_into_words:
                pair = bool(one) and isinstance(one[0], (list, tuple))
            if pair and len(one) != 2:
                raise InputError(f"text {place} has {len(one)} parts; a pair has two")
            first, second = one if pair else (one, None)
            ids = self._ids_of(first, settings)
            rows.append(
                self._row(ids, None if second is None else self._ids_of(second, settings), settings)
            )
        if not rows:
            raise InputError("a list of no texts; give at least one")
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        if settings.return_length:
            columns["length"] = [len(row) for row in columns["input_ids"]]
        return BatchEncoding(self._pad(columns, settings), tensor_type=settings.return_tensors)

    def prepare_for_model(
        self,
        ids: Ids,
        pair_ids: Ids | None = None,
        *,
        prepend_batch_axis: bool = False,
        **options: Any,
    ) -> BatchEncoding:
        """Cut ids to length, put special tokens around them and pad; options as in a call."""
        return self._encode_one(ids, pair_ids, self._options(options), prepend_batch_axis)

    def _encode_one(
        self, first: Ids, second: Ids | None, options: Options, prepend_batch_axis: bool
    ) -> BatchEncoding:
        row = {name: [value] for name, value in self._row(first, second, options).items()}
        found = {name: column[0] for name, column in self._pad(row, options).items()}
        if options.return_length:
            found["length"] = len(found["input_ids"])
        return BatchEncoding(
            found, tensor_type=options.return_tensors, prepend_batch_axis=prepend_batch_axis
        )

    def truncate_sequences(
        self,
        ids: Ids,
        pair_ids: Ids | None = None,
        num_tokens_to_remove: int = 0,
        truncation_strategy: str = "longest_first",
        stride: int = 0,
    ) -> tuple[Ids, Ids | None, Ids]:
        """A pair of sequences without some of its tokens, and those removed; see `truncate`."""
        options = self._options(
            {"truncation": truncation_strategy, "stride": stride, "max_length": 1}
        )
        if num_tokens_to_remove <= 0 or options.truncation == "do_not_truncate":
            return ids, pair_ids, []
        return truncate(
            ids, pair_ids, num_tokens_to_remove, options, self.truncation_side, self._warn
        )

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
        *,
        padding_side: str | None = None,
    ) -> BatchEncoding:
        """Pad encodings: one or a list of them, or a mapping of columns. For data collators.

        Tensors and arrays come back as such. Values that are no rows of tokens (`labels`) stay as
        they are. Raises InputError.
        """
        columns = encoded_inputs
        if isinstance(columns, (list, tuple)) and columns and isinstance(columns[0], Mapping):
            columns = {name: [one[name] for one in columns] for name in columns[0]}
        if not isinstance(columns, Mapping) or "input_ids" not in columns:
            given = f"; there are {', '.join(columns)}" if isinstance(columns, Mapping) else ""
            raise InputError(f"encodings to pad need input_ids{given}")
        ids = columns["input_ids"]
        if ids is None or len(ids) == 0:
            masks: dict[str, Ids] = {"attention_mask": []} if return_attention_mask else {}
            return BatchEncoding({**columns, **masks})
        options = self._options(
            {
                "padding": padding,
                "truncation": False,
                "max_length": max_length,
                "pad_to_multiple_of": pad_to_multiple_of,
                "padding_side": padding_side,
                "return_attention_mask": return_attention_mask,
                "return_tensors": return_tensors,
                "verbose": verbose,
            }
        )
        rows = {name: as_list(value) for name, value in columns.items()}
        single = not isinstance(rows["input_ids"][0], (list, tuple))
        padded = self._pad({name: [row] for name, row in rows.items()} if single else rows, options)
        if single:
            padded = {name: column[0] for name, column in padded.items()}
        return BatchEncoding(padded, tensor_type=return_tensors or kind_of(ids))

    # the steps
    def _options(self, given: Mapping[str, Any]) -> Options:
        limit = None if self.model_max_length > NO_LIMIT else self.model_max_length
        return Options.of(given, limit, self._warn)

    def _ids_of(self, text: Any, options: Options) -> Ids:
        """Ids of a text, of its parts, of tokens or of ids. Raises InputError."""
        if isinstance(text, str):
            letters = self.letters_of(text) if options.split_special_tokens is None else None
            if letters is not None:
                return list(letters)
            text = self.tokenize(text, options.split_special_tokens)
        elif not isinstance(text, (list, tuple)) or not text:
            kind = "an empty list" if isinstance(text, (list, tuple)) else type(text).__name__
            raise InputError(f"a text is {kind}; give a str, tokens or ids")
        elif isinstance(text[0], int):
            return list(text)
        elif options.is_split_into_words:
            text = [t for part in text for t in self.tokenize(part, options.split_special_tokens)]
        if not all(isinstance(token, str) for token in text):
            raise InputError("a text is a list of neither tokens nor ids; give a str")
        ids: Ids = self.convert_tokens_to_ids(text)
        unknown = [token for token, place in zip(text, ids, strict=True) if place is None]
        if unknown:  # unlike the peer, whose ids then have None among them
            raise InputError(f"{unknown[0]!r} is no token, and the vocabulary has no unk_token")
        return ids

    def _row(self, first: Ids, second: Ids | None, options: Options) -> dict[str, Any]:
        """Values of one text or pair, cut to length and with special tokens, not padded."""
        row: dict[str, Any] = {}
        if options.max_length is not None or options.return_overflowing_tokens:
            first, second, row = self._cut(first, second, options)
        joined = [*first, *(second or ())]
        kinds, special = [0] * len(joined), [0] * len(joined)
        if options.add_special_tokens:
            joined = self.build_inputs_with_special_tokens(first, second)
            kinds = self.create_token_type_ids_from_sequences(first, second)
            special = self.get_special_tokens_mask(first, second)
        row["input_ids"] = joined
        with_kinds = options.return_token_type_ids
        if "token_type_ids" in self.model_input_names if with_kinds is None else with_kinds:
            row["token_type_ids"] = kinds
        if options.return_special_tokens_mask:
            row["special_tokens_mask"] = special
        if options.max_length is None and len(joined) > self.model_max_length and options.verbose:
            limit = self.model_max_length
            self._warn(f"a text has {len(joined)} tokens, the model takes {limit}; truncate it")
        return row

    def _cut(
        self, first: Ids, second: Ids | None, options: Options
    ) -> tuple[Ids, Ids | None, dict[str, Any]]:
        """A pair cut to length, and what is returned of what was cut off. Raises InputError."""
        strategy, told = options.truncation, options.return_overflowing_tokens
        if told and second is not None and strategy == "longest_first":
            raise InputError(
                "return_overflowing_tokens of a pair needs truncation='only_first' or 'only_second'"
            )
        excess, gone = 0, list[int]()
        if options.max_length is not None:
            extra = self.num_special_tokens_to_add(second is not None)
            extra = extra if options.add_special_tokens else 0
            excess = len(first) + len(second or ()) + extra - options.max_length
        if excess > 0 and strategy != "do_not_truncate":
            warn = self._warn if options.verbose else ignore
            first, second, gone = truncate(
                first, second, excess, options, self.truncation_side, warn
            )
        overflow = {"overflowing_tokens": gone, "num_truncated_tokens": excess}
        return first, second, overflow if told else {}

    def _pad(self, columns: dict[str, list[Any]], options: Options) -> dict[str, list[Any]]:
        """Columns of a batch with rows of one length, where asked for, and the attention mask."""
        masked = options.return_attention_mask
        masked = "attention_mask" in self.model_input_names if masked is None else masked
        if masked and "attention_mask" not in columns:
            columns = {**columns, "attention_mask": [[1] * len(r) for r in columns["input_ids"]]}
        if options.padding != "do_not_pad" and self.pad_token is None:
            raise InputError("padding without a pad_token; set tokenizer.pad_token")
        fills = {"input_ids": self.pad_token_id, "token_type_ids": self.pad_token_type_id}
        fills |= {"special_tokens_mask": 1, **({"attention_mask": 0} if masked else {})}
        return pad_columns(columns, options, fills, options.padding_side or self.padding_side)

    def _warn(self, message: str) -> None:
        """Warn once of each kind; messages that differ in numbers are of one kind."""
        kind = "".join(letter for letter in message if not letter.isdigit())
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, stacklevel=3)


def is_text(value: Any) -> bool:
    """Whether `value` begins as a call's text may: str, list of str, list of lists of str."""
    for _ in range(2):
        if isinstance(value, (list, tuple)):
            if not value:
                return True
            value = value[0]
    return isinstance(value, str) or (isinstance(value, (list, tuple)) and not value)


def kind_of(value: Any) -> str | None:
    """What the ids are held in: "pt", "np" or None for lists."""
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    if isinstance(value, Tensor):
        return "pt"
    return "np" if isinstance(value, (np.ndarray, np.generic)) else None
