"""Windows over proteins longer than the context, as ProteinGym defines them.

Places count tokens: BOS is 0, the first residue 1. A window is a range of tokens, [start, stop);
inside a protein it has neither BOS nor EOS. Peer: ProteinGym's `get_optimal_window`, and the
overlapping windows of its `compute_fitness.py`; its constants are for 1,024 tokens and are scaled
here.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from esm_pipeline.arrays import Float64, Int64
from esm_pipeline.model.inference.batching import SPECIAL_TOKEN_COUNT


def optimal(places: Int64, tokens: Int64, window: int) -> tuple[Int64, Int64]:
    """The window around each place in a protein of so many `tokens`: starts and stops.

    The place is in the middle of its window; places near an end have the first or the last `window`
    tokens.
    """
    half = window // 2
    start, stop = places - half, places + half
    last = tokens - window
    near_start, near_end = places < half, places >= tokens - half
    start = np.where(near_start, 0, np.where(near_end, last, start))
    stop = np.where(near_start, window, np.where(near_end, tokens, stop))
    short = tokens <= window
    return np.where(short, 0, start), np.where(short, tokens, stop)


def overlapping(tokens: int, window: int) -> list[tuple[int, int]]:
    """The windows that cover a protein of `tokens`, in pairs from both ends to the middle.

    Each pair is half a window less one token farther in than the pair before. If the last two
    overlap by less than that, one more window is added in the middle.
    """
    if tokens <= window:
        return [(0, tokens)]
    stride = max(window // 2 - 1, 1)
    left, right = 0, tokens - window
    windows = [(left, left + window), (right, right + window)]
    while left + window - 1 <= right:
        left, right = left + stride, right - stride
        windows += [(left, left + window), (right, right + window)]
    if left + window - right < stride:
        middle = tokens // 2 - window // 2
        windows.append((middle, middle + window))
    return windows


@cache
def weights(window: int) -> Float64:
    """(window,) weight of each token of an overlapping window: lower near its ends.

    Logistic over a quarter of the window at both ends, 1 between them and for the outermost tokens.
    """
    place = np.arange(window)
    quarter, centre, width = window // 4, window / 8, window / 64
    rising = 1 / (1 + np.exp(-(place - centre) / width))
    last = window - SPECIAL_TOKEN_COUNT
    falling = 1 / (1 + np.exp((place - last + centre) / width))
    at_start = (place >= 1) & (place <= quarter)
    at_end = (place >= last - quarter) & (place <= last)
    return np.where(at_end, falling, np.where(at_start, rising, 1.0))
