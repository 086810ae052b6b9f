"""Tokens to text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Set
from itertools import groupby


def join_tokens(tokens: Iterable[str], added: Set[str]) -> str:
    """Tokens joined by spaces, except around those `added`, which get none."""
    groups = groupby(tokens, added.__contains__)
    return "".join(("" if are_added else " ").join(group) for are_added, group in groups)


def clean_up(text: str) -> str:
    """Remove the space before punctuation marks and inside English contractions."""
    text = re.sub(r" ([.?!,])", r"\1", text).replace(" ' ", "'")
    return re.sub(r" (n't|'m|'s|'ve|'re)", r"\1", text)
