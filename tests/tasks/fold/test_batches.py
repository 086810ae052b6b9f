"""Batches by cost, and the modes to try when memory runs out: each sequence once, in any case."""

from __future__ import annotations

import weakref
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esm_pipeline.model.inference.batching import run_splitting
from esm_pipeline.tasks.fold.batches import (
    LAUNCH,
    FoldMode,
    cost,
    fold_batches,
    fold_modes,
)
from tests.allocator import Allocator

CPU, GPU = torch.device("cpu"), torch.device("cuda")
LENGTHS = st.lists(st.integers(1, 2_000), max_size=60)


def anything(count: int, longest: int) -> bool:
    return True


@given(LENGTHS, st.integers(1, 5_000), st.integers(1, 2_000**2 * 4))
def test_each_once_within_all_bounds(lengths, budget, pairs):
    def fits(count: int, longest: int) -> bool:
        return count * longest**2 <= pairs

    batches = [part.tolist() for part in fold_batches(np.array(lengths), budget, fits)]
    assert sorted(place for part in batches for place in part) == list(range(len(lengths)))
    order = [lengths[place] for part in batches for place in part]
    assert order == sorted(order, reverse=True)
    for part in batches:
        longest, shortest = lengths[part[0]], lengths[part[-1]]
        if len(part) > 1:
            assert len(part) * longest <= budget
            assert fits(len(part), longest)
            assert cost(longest) - cost(shortest) <= LAUNCH


@given(LENGTHS, st.integers(1, 5_000))
def test_no_batch_could_take_one_more(lengths, budget):
    batches = list(fold_batches(np.array(lengths), budget, anything))
    for part, following in pairwise(batches):
        longest, next_one = lengths[part[0]], lengths[following[0]]
        full = (len(part) + 1) * longest > budget
        assert full or cost(longest) - cost(next_one) > LAUNCH


def test_batches_are_as_large_as_memory_holds():
    batches = fold_batches(np.array([5] * 7), 1_000, lambda count, longest: count * longest <= 15)
    assert [len(part) for part in batches] == [3, 3, 1]


def test_equals_stay_in_their_order():
    (part,) = fold_batches(np.array([5, 7, 5, 5]), 100, anything)
    assert part.tolist() == [1, 0, 2, 3]


def test_padding_that_costs_more_than_a_batch_is_not_taken():
    assert len(list(fold_batches(np.array([100, 90, 80]), 10_000, anything))) == 1
    assert len(list(fold_batches(np.array([400, 300]), 10_000, anything))) == 2
    assert LAUNCH < cost(200) - cost(160) < 2 * LAUNCH
    assert len(list(fold_batches(np.array([200, 160]), 10_000, anything))) == 2


def test_the_modes():
    assert fold_modes(None, CPU) == [FoldMode(size) for size in (None, 128, 64, 32, 16)]
    assert fold_modes(64, CPU) == [FoldMode(64), FoldMode(32), FoldMode(16)]
    assert fold_modes(8, CPU) == [FoldMode(8)]
    assert fold_modes(32, GPU) == [
        FoldMode(32),
        FoldMode(16),
        FoldMode(16, offload=True),
        FoldMode(16, offload=True, cpu=True),
    ]


class Memory:
    """Stands for a device: holds one of `needs` at the first mode, twice as much at each next."""

    def __init__(self, sizes, needs):
        self.sizes, self.needs, self.calls = sizes, needs, []
        self.allocator = Allocator(1, MemoryError())

    def __call__(self, part, mode):
        level = self.sizes.index(mode)
        self.calls.append((part.tolist(), level))
        with self.allocator.hold(sum(self.needs[place] for place in part) / 2**level):
            return mode, [place * 10 for place in part.tolist()]


MODES = fold_modes(64, GPU)


def split(batch, compute):
    return run_splitting(batch, *(partial(compute, mode=mode) for mode in MODES))


def run(needs):
    memory = Memory(MODES, needs)
    return list(split(np.arange(len(needs)), memory)), memory.calls


def test_all_at_once_if_there_is_room():
    (one,), calls = run([0.3, 0.3, 0.4])
    assert (one.part.tolist(), one.result) == ([0, 1, 2], (MODES[0], [0, 10, 20]))
    assert len(calls) == 1


def test_no_result_is_held_while_the_next_is_computed():
    made, alive = [], []

    def compute(part, mode):
        alive.append(sum(one() is not None for one in made))
        if len(part) > 1:
            raise MemoryError
        values = torch.zeros(1)
        made.append(weakref.ref(values))
        return values

    for folded in split(np.arange(4), compute):
        del folded
    assert len(made) == 4
    assert set(alive) == {0}


def test_halves_first_then_the_other_modes_then_none():
    found, calls = run([0.5, 1, 16, 99])
    assert [(one.part.tolist(), one.result) for one in found] == [
        ([0], (MODES[0], [0])),
        ([1], (MODES[0], [10])),
        ([2], (MODES[4], [20])),
        ([3], None),
    ]
    assert [level for part, level in calls if part == [2]] == [0, 1, 2, 3, 4]
    assert [level for part, level in calls if part == [3]] == [0, 1, 2, 3, 4]


@given(st.lists(st.sampled_from([0.1, 0.6, 1, 3, 16, 99]), min_size=1, max_size=12))
def test_each_sequence_ends_once_whatever_fits(needs):
    found, _ = run(needs)
    assert [place for one in found for place in one.part.tolist()] == list(range(len(needs)))
    for one in found:
        total = sum(needs[place] for place in one.part)
        if one.result is None:
            assert len(one.part) == 1
            assert total > 2**4
        else:
            mode, values = one.result
            assert values == [place * 10 for place in one.part.tolist()]
            assert total <= 2 ** MODES.index(mode)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), KeyError("x")])
def test_other_errors_pass(error):
    def fail(part, mode):
        raise error

    with pytest.raises(type(error)):
        list(split(np.arange(3), fail))
