"""From texts to rows of ids: cut to length, with special tokens, padded.

Peer: transformers 4.37.2 `PreTrainedTokenizer` and `PreTrainedTokenizerBase`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from esm_pipeline.errors import InputError
from esm_pipeline.model.tokenizer.batch_encoding import BatchEncoding
from esm_pipeline.model.tokenizer.options import CallOptions, Warn, ignore
from esm_pipeline.model.tokenizer.vocabulary import Ids


class RowTokenizer(Protocol):
    """What `RowBuilder` uses of a tokenizer; a script's own class may replace the methods."""

    model_max_length: int
    model_input_names: list[str]
    padding_side: str
    truncation_side: str
    pad_token_type_id: int
    pad_token: Any
    pad_token_id: Any

    def letters_of(self, text: str) -> bytes | None:
        """See `EsmTokenizer`, as for all that follow."""

    def tokenize(self, text: str, split_special_tokens: bool | None = None) -> list[str]:
        """Tokens of a text."""

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Ids of tokens."""

    def build_inputs_with_special_tokens(
        self, token_ids_0: Ids, token_ids_1: Ids | None = None
    ) -> Ids:
        """Ids with special tokens."""

    def create_token_type_ids_from_sequences(
        self, token_ids_0: Ids, token_ids_1: Ids | None = None
    ) -> Ids:
        """Token types."""

    def get_special_tokens_mask(self, token_ids_0: Ids, token_ids_1: Ids | None = None) -> Ids:
        """1 at special tokens."""

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Number of special tokens."""


class RowBuilder:
    """Makes the rows of one call, with its options. `warn` reports what is odd but no error."""

    def __init__(self, tokenizer: RowTokenizer, options: CallOptions, warn: Warn) -> None:
        self.tokenizer, self.options = tokenizer, options
        self.warn = warn if options.verbose else ignore

    def ids_of(self, text: Any) -> Ids:
        """Ids of a text, of its parts, of tokens or of ids. Raises InputError."""
        split_special = self.options.split_special_tokens
        if isinstance(text, str):
            letters = self.tokenizer.letters_of(text) if split_special is None else None
            if letters is not None:
                return list(letters)
            text = self.tokenizer.tokenize(text, split_special)
        elif not isinstance(text, (list, tuple)) or not text:
            kind = "an empty list" if isinstance(text, (list, tuple)) else type(text).__name__
            raise InputError(f"a text is {kind}; give a str, tokens or ids")
        elif isinstance(text[0], int):
            return list(text)
        elif self.options.is_split_into_words:
            text = [
                token for part in text for token in self.tokenizer.tokenize(part, split_special)
            ]
        if not all(isinstance(token, str) for token in text):
            raise InputError("a text is a list of neither tokens nor ids; give a str")
        ids: Ids = self.tokenizer.convert_tokens_to_ids(text)
        unknown = [token for token, place in zip(text, ids, strict=True) if place is None]
        if unknown:  # unlike the peer, whose ids then contain None
            raise InputError(f"{unknown[0]!r} is no token, and the vocabulary has no unk_token")
        return ids

    def encode(
        self, first: Ids, second: Ids | None, *, prepend_batch_axis: bool
    ) -> BatchEncoding[Any]:
        """The encoding of one text or pair, given as ids."""
        found: dict[str, Any] = self.padded_row(self.row(first, second))
        if self.options.return_length:
            found["length"] = len(found["input_ids"])
        kind = self.options.return_tensors
        return BatchEncoding(found, tensor_type=kind, prepend_batch_axis=prepend_batch_axis)

    def encode_batch(self, texts: Sequence[Any]) -> BatchEncoding[Any]:
        """The encoding of several texts or pairs. Raises InputError."""
        rows = [self.row(*self.pair_of(text, place)) for place, text in enumerate(texts)]
        if not rows:
            raise InputError("a list of no texts; give at least one")
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        if self.options.return_length:
            columns["length"] = [len(row) for row in columns["input_ids"]]
        return BatchEncoding(self.padded(columns), tensor_type=self.options.return_tensors)

    def pair_of(self, text: Any, place: int) -> tuple[Ids, Ids | None]:
        """Ids of a text, and of the second one if it is a pair. Raises InputError with `place`."""
        is_pair = isinstance(text, (list, tuple))
        if is_pair and self.options.is_split_into_words:
            is_pair = bool(text) and isinstance(text[0], (list, tuple))
        if is_pair and len(text) != 2:
            raise InputError(f"text {place} has {len(text)} parts; a pair has two")
        first, second = text if is_pair else (text, None)
        return self.ids_of(first), None if second is None else self.ids_of(second)

    def row(self, first: Ids, second: Ids | None = None) -> dict[str, Any]:
        """The values of one text or pair: cut to length, with special tokens, not padded."""
        options, tokenizer = self.options, self.tokenizer
        row: dict[str, Any] = {}
        if options.max_length is not None or options.return_overflowing_tokens:
            first, second, row = self.truncated(first, second)
        special = options.add_special_tokens
        ids = [*first, *(second or ())]
        if special:
            ids = tokenizer.build_inputs_with_special_tokens(first, second)
        row["input_ids"] = ids
        if self.returns("token_type_ids", options.return_token_type_ids):
            types = tokenizer.create_token_type_ids_from_sequences
            row["token_type_ids"] = types(first, second) if special else [0] * len(ids)
        if options.return_special_tokens_mask:
            mask = tokenizer.get_special_tokens_mask
            row["special_tokens_mask"] = mask(first, second) if special else [0] * len(ids)
        limit = tokenizer.model_max_length
        if options.max_length is None and len(ids) > limit:
            self.warn(f"a text has {len(ids)} tokens, the model takes {limit}; truncate it")
        return row

    def returns(self, name: str, requested: bool | None) -> bool:
        """Whether the call returns a value: as requested, else if it is an input of the model."""
        return name in self.tokenizer.model_input_names if requested is None else requested

    def truncated(self, first: Ids, second: Ids | None) -> tuple[Ids, Ids | None, dict[str, Any]]:
        """A pair cut to length, and the values that describe the overflow. Raises InputError."""
        options = self.options
        strategy, with_overflow = options.truncation, options.return_overflowing_tokens
        if with_overflow and second is not None and strategy == "longest_first":
            raise InputError(
                "return_overflowing_tokens of a pair needs truncation='only_first' or 'only_second'"
            )
        excess, overflow = 0, list[int]()
        if options.max_length is not None:
            special = self.tokenizer.num_special_tokens_to_add(second is not None)
            special = special if options.add_special_tokens else 0
            excess = len(first) + len(second or ()) + special - options.max_length
        if excess > 0 and strategy != "do_not_truncate":
            side = self.tokenizer.truncation_side
            first, second, overflow = truncate(first, second, excess, options, side, self.warn)
        values = {"overflowing_tokens": overflow, "num_truncated_tokens": excess}
        return first, second, values if with_overflow else {}

    def padded_row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """One row, padded as the only one of a batch."""
        padded = self.padded({name: [value] for name, value in row.items()})
        return {name: column[0] for name, column in padded.items()}

    def padded(self, columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Columns of a batch with rows of one length, if requested, and the attention mask."""
        options, tokenizer = self.options, self.tokenizer
        masked = self.returns("attention_mask", options.return_attention_mask)
        if masked and "attention_mask" not in columns:
            columns = {**columns, "attention_mask": [[1] * len(r) for r in columns["input_ids"]]}
        if options.padding != "do_not_pad" and tokenizer.pad_token is None:
            raise InputError("padding without a pad_token; set tokenizer.pad_token")
        fills = {
            "input_ids": tokenizer.pad_token_id,
            "token_type_ids": tokenizer.pad_token_type_id,
            "special_tokens_mask": 1,
            **({"attention_mask": 0} if masked else {}),
        }
        return pad_columns(columns, options, fills, options.padding_side or tokenizer.padding_side)


def is_text(value: Any) -> bool:
    """Whether `value` starts as the text of a call: str, list of str, or list of lists of str."""
    for _ in range(2):
        if isinstance(value, (list, tuple)):
            if not value:
                return True
            value = value[0]
    return isinstance(value, str) or (isinstance(value, (list, tuple)) and not value)


def encoding_columns(encodings: Any) -> Mapping[str, Any]:
    """Columns of one encoding or a list of them. Raises InputError if `input_ids` are missing."""
    if isinstance(encodings, (list, tuple)) and encodings and isinstance(encodings[0], Mapping):
        encodings = {name: [one[name] for one in encodings] for name in encodings[0]}
    if not isinstance(encodings, Mapping) or "input_ids" not in encodings:
        given = f"; there are {', '.join(encodings)}" if isinstance(encodings, Mapping) else ""
        raise InputError(f"encodings to pad need input_ids{given}")
    return encodings


def truncate(
    first: Ids, second: Ids | None, excess: int, options: CallOptions, side: str, warn: Warn
) -> tuple[Ids, Ids | None, Ids]:
    """A pair without `excess` of its tokens, and the tokens cut off (none if both are cut).

    A sequence that would have to go as a whole is left whole, with a warning. Peer: 4.37.2.
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
    overflow = row[-window:] if side == "right" else row[:window]
    kept = cut(row, excess, side)
    return (first, kept, overflow) if name == "second" else (kept, second, overflow)


def cut(row: Ids, count: int, side: str) -> Ids:
    """A row without `count` tokens of one side."""
    return row[: max(len(row) - count, 0)] if side == "right" else row[count:]


def pad_columns(
    columns: Mapping[str, list[Any]], options: CallOptions, fills: Mapping[str, Any], side: str
) -> dict[str, list[Any]]:
    """Columns of a batch; if padding is requested, the rows of those in `fills` get one length.

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
