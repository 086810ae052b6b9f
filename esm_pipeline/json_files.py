"""Read JSON files of others within limits, so that no file takes much memory or time.

An ambiguous file, with two values for one key, is refused too.
"""

from __future__ import annotations

import json
import os
import re
from codecs import BOM_UTF8
from typing import Any

from esm_pipeline.errors import brief

MOST_JSON_BYTES = 32 << 20
"""Enough for 100,000 labels with long names."""

MOST_LEVELS = 100  # of objects and lists in each other
MOST_DIGITS = 100
"""Digits of a whole number. transformers writes 31 for a tokenizer without a length limit."""

LONG_NUMBER = re.compile(rf'(?:"([^"\\]{{0,60}})"\s*:\s*)?-?(\d{{{MOST_DIGITS + 1},}})')


def read_object(path: str | os.PathLike[str], most: int = MOST_JSON_BYTES) -> dict[str, Any]:
    """The JSON object in a file of at most `most` bytes.

    Raises OSError if the file cannot be read, and ValueError, whose message says why on one line,
    if it is too large, not UTF-8, not JSON, or not an object.
    """
    with open(path, "rb") as handle:
        content = handle.read(most + 1)
    if len(content) > most:
        raise ValueError(f"larger than {most >> 20} MiB")
    text = content.removeprefix(BOM_UTF8).decode("utf-8")
    try:
        found = json.loads(text, parse_int=whole_number, object_pairs_hook=without_duplicates)
    except OverflowError:
        raise ValueError(long_number(text)) from None
    except RecursionError:
        raise ValueError(f"nested more than {MOST_LEVELS} levels deep") from None
    if not isinstance(found, dict):
        raise ValueError(f"holds {brief(found)}; it should hold a JSON object")
    require_shallow(found)
    return found


def whole_number(digits: str) -> int:
    """A whole number. Raises OverflowError if it has too many digits."""
    if len(digits) > MOST_DIGITS:
        raise OverflowError
    return int(digits)


def long_number(text: str) -> str:
    """The message about the first number in `text` with too many digits."""
    found = LONG_NUMBER.search(text)
    if found is None:
        return f"a number of more than {MOST_DIGITS} digits"
    key, digits = found.groups()
    return (f"{key!a} is " if key else "") + f"a number of {len(digits):,} digits"


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object with these pairs. Raises ValueError if a key has two different values."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if value != found[key]:
                raise ValueError(f"two values for the key {brief(key)}")
    return found


def require_shallow(found: Any) -> None:
    """Raise ValueError for objects and lists nested more than `MOST_LEVELS` deep."""
    level = [found]
    for _ in range(MOST_LEVELS):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return
    raise ValueError(f"nested more than {MOST_LEVELS} levels deep")
