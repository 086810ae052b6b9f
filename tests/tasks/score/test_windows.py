"""Windows against positions worked out by hand, and against ProteinGym's loops for any length."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm_pipeline.tasks.score import windows
from tests.oracles import variants

OPTIMAL = [
    # place, tokens, start, stop: by hand, for windows of 1,024 tokens
    (0, 302, 0, 302),  # a short protein is seen whole, BOS and EOS with it
    (301, 302, 0, 302),
    (1000, 1024, 0, 1024),  # 1,022 residues fill the window
    (1, 1025, 0, 1024),  # one more residue: EOS is cut off …
    (511, 1025, 0, 1024),
    (512, 1025, 0, 1024),  # … at 512 the window would reach from 0 as well
    (513, 1025, 1, 1025),  # 513 >= 1025 - 512: the last window, without BOS
    (1024, 1025, 1, 1025),
    (511, 3000, 0, 1024),
    (512, 3000, 0, 1024),
    (513, 3000, 1, 1025),
    (1500, 3000, 988, 2012),  # neither BOS nor EOS
    (2487, 3000, 1975, 2999),
    (2488, 3000, 1976, 3000),
    (2999, 3000, 1976, 3000),
]


def optimal(place: int, tokens: int, window: int) -> tuple[int, int]:
    start, stop = windows.optimal(np.array([place]), np.array([tokens]), window)
    return int(start[0]), int(stop[0])


@pytest.mark.parametrize(("place", "tokens", "start", "stop"), OPTIMAL)
def test_optimal_windows_by_hand(place, tokens, start, stop):
    assert optimal(place, tokens, 1024) == (start, stop)


@given(tokens=st.integers(3, 200), window=st.integers(8, 64))
def test_optimal_windows_of_any_length(tokens, window):
    for place in range(tokens):
        check_optimal(place, tokens, window)


def check_optimal(place, tokens, window):
    start, stop = optimal(place, tokens, window)
    whole = tokens <= window
    assert (start, stop) == ((0, tokens) if whole else variants.optimal(place, tokens, window))
    assert 0 <= start <= place < stop <= tokens
    assert stop - start in (min(tokens, window), window // 2 * 2)


OVERLAPPING = [
    # tokens, starts, by hand
    (302, [0]),
    (1024, [0]),
    (1025, [0, 1]),  # the last token of the left window, 1023, is beyond the start of the right
    (1600, [0, 576, 288]),  # 448 tokens shared, fewer than 511: one more in the middle
    (1537, [0, 513]),  # 511 shared: enough
    (1538, [0, 514, 257]),  # 510 shared
    (2046, [0, 1022, 511]),
    (2047, [0, 1023, 511, 512]),  # 1023 = 1023: a second pair
    (2048, [0, 1024, 511, 513]),
    (3000, [0, 1976, 511, 1465, 988]),  # 70 shared
    (3100, [0, 2076, 511, 1565, 1022, 1054]),
]


@pytest.mark.parametrize(("tokens", "starts"), OVERLAPPING)
def test_overlapping_windows_by_hand(tokens, starts):
    found = windows.overlapping(tokens, 1024)
    assert found == [(start, min(start + 1024, tokens)) for start in starts]


@given(tokens=st.integers(3, 400), window=st.integers(8, 64))
def test_overlapping_windows_of_any_length(tokens, window):
    found = windows.overlapping(tokens, window)
    if tokens > window:
        assert [start for start, _ in found] == variants.overlapping(tokens, window)
    covered = np.zeros(tokens, int)
    for start, stop in found:
        assert 0 <= start < stop <= tokens
        assert stop - start == min(window, tokens)
        covered[start:stop] += 1
    assert covered.min() > 0


WEIGHTS = {
    # token of the window: weight, by hand, 1 / (1 + exp(x))
    0: 1.0,
    1: 0.000357,  # x = 127 / 16
    128: 0.5,  # x = 0
    144: 0.731059,  # x = -1
    256: 0.999665,  # x = -8
    257: 1.0,
    765: 1.0,
    766: 0.999665,
    894: 0.5,
    1022: 0.000335,  # x = 8
    1023: 1.0,
}


@pytest.mark.parametrize(("place", "weight"), WEIGHTS.items())
def test_weights_by_hand(place, weight):
    assert windows.weights(1024)[place] == pytest.approx(weight, abs=1e-6)


@pytest.mark.parametrize("window", [8, 32, 65, 1024])
def test_weights_of_any_window(window):
    np.testing.assert_allclose(windows.weights(window), variants.ramp(window), atol=1e-12)
