"""Text to tokens: the known tokens in a text, and residues as people write them."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

from esm_pipeline.errors import InputError

STOP_LETTER, UNKNOWN_LETTER = "*", "X"
NOT_A_TOKEN = 255
"""Marks a byte that is not a token by itself."""


class Splitter:
    """Finds the tokens of a vocabulary in texts. `ids`: token → id."""

    def __init__(self, ids: dict[str, int]) -> None:
        self.ids = ids
        self._pattern = pattern_of(ids)
        self._letter_ids = letter_table(ids)
        self._spelling = ResidueSpelling(ids)

    def split(self, text: str) -> list[str]:
        """The known tokens, and what stands between them, cut at blanks."""
        return self._pattern.findall(text)

    def letter_ids(self, text: str) -> bytes | None:
        """Ids (L,), one a byte, of a text of known one-letter tokens; None for any other text."""
        if self._letter_ids is None:
            return None
        try:
            found = text.encode("latin-1").translate(self._letter_ids)
        except UnicodeEncodeError:
            return None
        return None if NOT_A_TOKEN in found else found

    def normalize_residues(self, text: str) -> str:
        """A sequence as people write it, as a text of known tokens. Raises InputError."""
        return self._spelling.normalize(text)


def pattern_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """A pattern for the tokens, the longest first, and for what stands between them and blanks."""
    words = by_length(tokens)
    letters = "".join(re.escape(token) for token in tokens if len(token) == 1)
    known = "|".join([*map(re.escape, words), *([f"[{letters}]"] if letters else [])]) or "(?!)"
    return re.compile(rf"{known}|(?:(?!{known})\S)+")


def by_length(tokens: Iterable[str]) -> list[str]:
    """The tokens of more than one letter, the longest first."""
    return sorted((token for token in tokens if len(token) > 1), key=len, reverse=True)


def letter_table(ids: dict[str, int]) -> bytes | None:
    """(256,) id of each letter; None if letters could also spell a longer token."""
    letters = {token: place for token, place in ids.items() if len(token) == 1}
    if any(len(token) > 1 and letters.keys() >= set(token) for token in ids):
        return None
    table = bytearray([NOT_A_TOKEN] * 256)
    for token, place in letters.items():
        if ord(token) < len(table) and place < NOT_A_TOKEN:
            table[ord(token)] = place
    return bytes(table)


class ResidueSpelling:
    """How people write sequences: in any case, with white space, with a `*` at the end, and with J
    for I or L, which becomes X. Text that is itself a token is left as it is.
    """

    def __init__(self, ids: dict[str, int]) -> None:
        letters = {token for token in ids if len(token) == 1}
        self._end = string.whitespace if STOP_LETTER in letters else string.whitespace + STOP_LETTER
        self._table: dict[int, str] = dict.fromkeys(map(ord, string.whitespace), "")
        if UNKNOWN_LETTER in letters and "J" not in letters:
            self._table |= {ord("J"): UNKNOWN_LETTER, ord("j"): UNKNOWN_LETTER}
        for letter in letters & set(string.ascii_uppercase):
            if letter.lower() not in letters:
                self._table[ord(letter.lower())] = letter
        readable = "".join(map(re.escape, [*letters, *map(chr, self._table)]))
        words = "|".join(map(re.escape, by_length(ids))) or "(?!)"
        self._readable = re.compile(rf"(?:{words}|[{readable}])*+")
        self._word = re.compile(f"({words})")

    def normalize(self, text: str) -> str:
        """A text of known tokens only. Raises InputError with the wrong character and its place."""
        body = text.rstrip(self._end)
        found = self._readable.match(body)
        assert found, "the pattern also matches an empty text"
        if (end := found.end()) < len(body):
            why = "is inside the sequence" if body[end] == STOP_LETTER else "is no residue"
            raise InputError(f"{body[end]!a} at place {end + 1} {why}; correct the sequence")
        parts = self._word.split(body)
        parts[::2] = [part.translate(self._table) for part in parts[::2]]
        return "".join(parts)
