"""Text to tokens and back, and what goes around a sequence.

Peer: transformers 4.37.2 `PreTrainedTokenizer` and `EsmTokenizer`.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from esm_pipeline.errors import InputError
from esm_pipeline.model.tokenizer.special_tokens import Ids, SpecialTokens

STOP, UNKNOWN = "*", "X"
NO_LETTER = 255
"""Stands for a byte that is no token of its own."""


def pattern_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """What finds the tokens in a text, the longest first, and what else stands between blanks."""
    words = sorted((token for token in tokens if len(token) > 1), key=len, reverse=True)
    letters = "".join(re.escape(token) for token in tokens if len(token) == 1)
    known = "|".join([*map(re.escape, words), *([f"[{letters}]"] if letters else [])]) or "(?!)"
    return re.compile(rf"{known}|(?:(?!{known})\S)+")


def letters_in(ids: dict[str, int]) -> bytes | None:
    """(256,) id of each letter; None where letters could spell a longer token."""
    letters = {token: place for token, place in ids.items() if len(token) == 1}
    if any(len(token) > 1 and letters.keys() >= set(token) for token in ids):
        return None
    table = bytearray([NO_LETTER] * 256)
    for token, place in letters.items():
        if ord(token) < len(table) and place < NO_LETTER:
            table[ord(token)] = place
    return bytes(table)


class Spelling:
    """How sequences are written, to be read as tokens: in any case, with white space, with a `*`
    at the end, and with J for I or L, which is X.

    What is a token itself is taken as it is.
    """

    def __init__(self, ids: dict[str, int]) -> None:
        letters = {token for token in ids if len(token) == 1}
        words = sorted((token for token in ids if len(token) > 1), key=len, reverse=True)
        self._end = string.whitespace if STOP in letters else string.whitespace + STOP
        self._table: dict[int, str] = dict.fromkeys(map(ord, string.whitespace), "")
        if UNKNOWN in letters and "J" not in letters:
            self._table |= {ord("J"): UNKNOWN, ord("j"): UNKNOWN}
        for letter in letters & set(string.ascii_uppercase):
            if letter.lower() not in letters:
                self._table[ord(letter.lower())] = letter
        read = "".join(map(re.escape, [*letters, *map(chr, self._table)]))
        known = "|".join(map(re.escape, words)) or "(?!)"
        self._known = re.compile(rf"(?:{known}|[{read}])*+")
        self._word = re.compile(f"({known})")

    def read(self, text: str) -> str:
        """A text of known tokens alone. Raises InputError, with the character and its place."""
        body = text.rstrip(self._end)
        found = self._known.match(body)
        assert found, "it matches nothing, too"
        if (end := found.end()) < len(body):
            why = "is inside the sequence" if body[end] == STOP else "is no residue"
            raise InputError(f"{body[end]!a} at place {end + 1} {why}; correct the sequence")
        parts = self._word.split(body)
        parts[::2] = [part.translate(self._table) for part in parts[::2]]
        return "".join(parts)


class TextTokens(SpecialTokens):
    """Tokens in a text, and around it: `<cls>` before a sequence, `<eos>` after it."""

    split_special_tokens = False
    clean_up_tokenization_spaces = True

    def _index(self) -> None:
        super()._index()
        self._pattern = pattern_of(self._ids)
        self._letters = letters_in(self._ids)
        self._spelling = Spelling(self._ids)

    def tokenize(self, text: str, split_special_tokens: bool | None = None) -> list[str]:
        """Tokens of `text`: those known, and what stands between, cut at blanks.

        With `split_special_tokens`, it is cut at blanks only. Raises InputError.
        """
        if not isinstance(text, str):
            raise InputError(f"a text is of type {type(text).__name__}; give a str")
        if self.split_special_tokens if split_special_tokens is None else split_special_tokens:
            return text.split()
        return self._pattern.findall(text)

    def letters_of(self, text: str) -> bytes | None:
        """Ids (L,) of a text of known single letters, one a byte; None for any other text."""
        if self._letters is None or self.split_special_tokens:
            return None
        try:
            found = text.encode("latin-1").translate(self._letters)
        except UnicodeEncodeError:
            return None
        return None if NO_LETTER in found else found

    def residue_ids(self, sequence: str) -> bytes | Ids:
        """Ids (R,) of a sequence, without special tokens around it.

        Tokens are taken as they are. Else lower case is upper case, white space and a `*` at the
        end are left out, and J is X, as `shard` does. Raises InputError for anything else.
        """
        letters = self.letters_of(sequence)
        if letters is not None:
            return letters
        text = self._spelling.read(sequence)
        letters = self.letters_of(text)
        if letters is not None:
            return letters
        ids: Ids = self.convert_tokens_to_ids(self.tokenize(text, split_special_tokens=False))
        return ids

    @staticmethod
    def convert_tokens_to_string(tokens: Iterable[str]) -> str:
        """Tokens joined by spaces."""
        return " ".join(tokens)

    @staticmethod
    def clean_up_tokenization(text: str) -> str:
        """No space before a punctuation mark, nor in English contractions."""
        text = re.sub(r" ([.?!,])", r"\1", text).replace(" ' ", "'")
        return re.sub(r" (n't|'m|'s|'ve|'re)", r"\1", text)

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        spaces_between_special_tokens: bool = True,
    ) -> str:
        """Tokens of ids (an int, list, array or tensor), joined by spaces.

        Unless told otherwise there is no space before a `.`, as in the reference; without
        `spaces_between_special_tokens`, none around tokens beside the vocabulary file.
        """
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        ids = [ids] if isinstance(ids, int) else ids
        tokens = self.convert_ids_to_tokens(ids, skip_special_tokens)
        text = self.convert_tokens_to_string(tokens)
        if not spaces_between_special_tokens:
            beside = {t.content for place, t in self._added.items() if place >= self.vocab_size}
            groups = groupby(tokens, (beside - set(self.roles.values())).__contains__)
            text = "".join(("" if apart else " ").join(group) for apart, group in groups)
        clean_up = clean_up_tokenization_spaces
        clean_up = self.clean_up_tokenization_spaces if clean_up is None else clean_up
        return self.clean_up_tokenization(text) if clean_up else text

    def batch_decode(self, sequences: Iterable[Any], *options: Any, **named: Any) -> list[str]:
        """`decode` of each, with the same options."""
        return [self.decode(ids, *options, **named) for ids in sequences]

    def build_inputs_with_special_tokens(
        self, token_ids_0: Ids, token_ids_1: Ids | None = None
    ) -> Ids:
        """`<cls>` ids `<eos>`, and for a pair ids `<eos>` again. Raises InputError."""
        cls, eos = self._around()
        if token_ids_1 is None:
            return [*cls, *token_ids_0, *eos]
        if not eos:
            raise InputError("a pair of sequences needs an eos_token between them; set one")
        return [*cls, *token_ids_0, *eos, *token_ids_1, *eos]

    def get_special_tokens_mask(
        self,
        token_ids_0: Sequence[int],
        token_ids_1: Sequence[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> Ids:
        """1 at special tokens, 0 at others; of ids to come between them, or with them. Raises
        InputError for a pair that has them.
        """
        if already_has_special_tokens:
            if token_ids_1 is not None:
                raise InputError("ids with special tokens already come as one list, not as a pair")
            special = set(self.all_special_ids)
            return [int(place in special) for place in map(int, token_ids_0)]
        before, after = ([1] * len(ids) for ids in self._around())
        first = [*before, *[0] * len(token_ids_0), *after]
        return first if token_ids_1 is None else [*first, *[0] * len(token_ids_1), *after]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: Ids, token_ids_1: Ids | None = None
    ) -> Ids:
        """0 for each token of the first sequence, 1 for the second's.

        As in 4.37.2, which has none for the special tokens: no ESM model takes them.
        """
        return [0] * len(token_ids_0) + [1] * len(token_ids_1 or ())

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens go around a sequence or a pair. Raises InputError."""
        return len(self.build_inputs_with_special_tokens([], [] if pair else None))

    def _around(self) -> tuple[Ids, Ids]:
        """What goes before and after a sequence; unlike the peer's, without None."""
        cls = [] if self.cls_token is None else [self.cls_token_id]
        return cls, [] if self.eos_token is None else [self.eos_token_id]
