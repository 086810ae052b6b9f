"""Limits for the numbers and switches of a config, far beyond every existing model.

They keep a mistyped or malicious config from allocating all memory.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

MOST_LAYERS = 10_000
MOST_WIDTH = 1_000_000
MOST_ROWS = 100_000_000
"""Rows of an embedding table."""

MOST_LABELS = 1_000_000
MOST_PASSES = 1_000
"""Passes of a loop over the same weights."""

SWITCH = "true or false"


def is_whole(value: Any, least: int, most: float) -> bool:
    """Whether it is a whole number from `least` to `most`."""
    return type(value) is int and least <= value <= most


def is_number(value: Any, least: float = float("-inf"), most: float = float("inf")) -> bool:
    """Whether it is a finite number from `least` to `most`."""
    return type(value) in (int, float) and least <= value <= most and is_finite(value)


def is_finite(value: float) -> bool:
    """Whether a number fits into a float and is neither NaN nor infinite."""
    try:
        return isfinite(value)
    except OverflowError:
        return False


def is_switch(value: Any) -> bool:
    """Whether it is true, false or None; text is not, since "false" would count as true."""
    return value is None or (isinstance(value, (bool, int)) and value in (0, 1))


def whole_between(least: int, most: int) -> str:
    """The allowed values of a setting, for an error."""
    return f"a whole number from {least} to {most:,}"
