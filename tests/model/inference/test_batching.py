"""Batches within the budget, splitting when memory runs out, iter_packed against padded input."""

import re
import weakref
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esm_pipeline import iter_packed
from esm_pipeline.errors import CapacityError, InputError
from esm_pipeline.model import (
    EsmForMaskedLM,
    EsmForSequenceClassification,
    EsmForTokenClassification,
    EsmModel,
    EsmTokenizer,
)
from esm_pipeline.model.inference import batching
from esm_pipeline.model.inference.batching import (
    LEAST_TOKENS,
    compute_batches,
    is_out_of_memory,
    run_splitting,
    token_batches,
)
from tests.allocator import Allocator, tokens

SEQUENCES = ["MKTAYIAKQR", "G", "ACDEFGHIKLMNPQRSTVWY", "MKTAYIAKQR", "WWPHL", "ACDBUZOX"]


@given(lengths=st.lists(st.integers(1, 60), max_size=40), budget=st.integers(1, 200))
def test_batches_hold_each_sequence_once_within_the_budget(lengths, budget):
    lengths = np.array(lengths, np.int32)
    batches = list(token_batches(lengths, budget))
    order = np.concatenate([np.empty(0, int), *batches])
    assert sorted(order) == list(range(len(lengths)))
    assert (np.diff(lengths[order]) <= 0).all()
    tokens = [int((lengths[batch] + 2).sum()) for batch in batches]
    for batch, size in zip(batches, tokens, strict=True):
        assert len(batch) == 1 or size <= budget
    for size, following in zip(tokens, batches[1:], strict=False):
        assert size + lengths[following[0]] + 2 > budget, "the batch could hold one more"


def test_equal_lengths_keep_their_order():
    assert [batch.tolist() for batch in token_batches(np.array([3, 5, 3, 5]), 14)] == [
        [1, 3],
        [0, 2],
    ]


@given(count=st.integers(1, 40), room=st.integers(0, 12), big=st.sets(st.integers(0, 39)))
def test_splitting_gives_every_sequence_once(count, room, big):
    """There is room for `room` sequences, and not even for one of those in `big`."""
    memory = Allocator(room)

    def compute(part):
        with memory.hold(sum(99 if place in big else 1 for place in part.tolist())):
            return part * 10

    results = list(run_splitting(np.arange(count), compute))
    assert np.concatenate([part for part, _ in results]).tolist() == list(range(count))
    for part, result in results:
        if result is None:
            assert len(part) == 1
            assert room == 0 or part[0] in big
        else:
            assert result.tolist() == (part * 10).tolist()
    if room >= count and not big & set(range(count)):
        assert memory.tried == [count], "what fits is computed in one go"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"
        ),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError(
            "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"
        ),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously rep"),
        torch.AcceleratorError("CUDA error: out of memory", 2),
        RuntimeError("HIP error: out of memory"),
        RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
        RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCre"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        RuntimeError("std::bad_alloc"),
        RuntimeError("could not create a primitive"),
        RuntimeError("could not create a memory object"),
        RuntimeError("could not execute a primitive"),
    ],
)
def test_what_counts_as_out_of_memory(error):
    assert is_out_of_memory(error)


def test_the_real_allocator_is_understood():
    with pytest.raises((RuntimeError, MemoryError)) as error:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shapes do not match"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
        ValueError("memory"),
        ValueError("CUDA error: out of memory"),
    ],
)
def test_other_errors_pass_through(error):
    def compute(part):
        raise error

    with pytest.raises(type(error), match=re.escape(str(error))):
        list(run_splitting(np.arange(4), compute))


def test_the_failed_attempt_is_gone_before_the_next(monkeypatch):
    """What the frames of the error held must be free when memory is given back."""

    class Tensor:
        pass

    alive = []

    def compute(part):
        values = Tensor()
        alive.append(weakref.ref(values))
        if len(part) > 1:
            raise MemoryError
        return part

    released = []
    monkeypatch.setattr(
        batching, "release_memory", lambda: released.append([one() for one in alive])
    )
    list(run_splitting(np.arange(2), compute))
    assert released == [[None]]


@given(
    lengths=st.lists(st.integers(1, 3000), max_size=60),
    budget=st.integers(1, 9000),
    workers=st.integers(2, 5),
)
def test_batches_of_several_workers_get_smaller(lengths, budget, workers):
    lengths = np.array(lengths, np.int32)
    batches = list(token_batches(lengths, budget, workers))
    order = np.concatenate([np.empty(0, int), *batches])
    assert order.tolist() == np.argsort(-lengths, kind="stable").tolist()
    left = int((lengths + 2).sum())
    for batch in batches:
        size = int((lengths[batch] + 2).sum())
        assert len(batch) == 1 or size <= min(budget, max(LEAST_TOKENS, left // (2 * workers)))
        left -= size


def test_no_result_is_held_while_the_next_is_computed():
    """A graphics card may have no room for both."""
    memory, made, alive = Allocator(1), [], []

    def compute(part):
        alive.append(sum(one() is not None for one in made))
        with memory.hold(len(part)):
            values = torch.zeros(1)
        made.append(weakref.ref(values))
        return values

    for computed in compute_batches(np.full(5, 8), 50, compute, torch.device("meta")):
        del computed
    assert len(made) == 5
    assert set(alive) == {0}


def test_iter_packed_holds_no_batch_while_the_next_is_computed(model, monkeypatch):
    whole, made, alive = EsmForMaskedLM.packed_logits, [], []

    def packed_logits(self, tokens, layout):
        alive.append(sum(one() is not None for one in made))
        logits = whole(self, tokens, layout)
        made.append(weakref.ref(logits.untyped_storage()))
        return logits

    monkeypatch.setattr(EsmForMaskedLM, "packed_logits", packed_logits)
    found = iter_packed(model, ["MKT"] * 5, token_budget=10)
    for _ in range(5):
        next(found)
    assert alive == [0] * 3


@pytest.fixture(scope="module")
def model(rotary):
    return EsmForMaskedLM.from_pretrained(rotary)


def padded(model, sequence):
    """(logits, states of all layers) of one sequence by the padded door."""
    tokens = EsmTokenizer.standard()([sequence], return_tensors="pt")
    with torch.no_grad():
        output = model(**tokens, output_hidden_states=True)
    return output.logits[0], [states[0] for states in output.hidden_states]


@settings(max_examples=15)
@given(
    sequences=st.lists(st.text("ACDEFGHIKLMNPQRSTVWYX", min_size=1, max_size=40), max_size=8),
    budget=st.integers(1, 100),
)
def test_iter_packed_is_the_padded_door(model, sequences, budget):
    found = dict(iter_packed(model, sequences, token_budget=budget))
    assert sorted(found) == list(range(len(sequences)))
    for place, logits in found.items():
        torch.testing.assert_close(logits, padded(model, sequences[place])[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("layer", "place"), [(0, 0), (1, 1), (2, 2), (-1, 2)])
def test_representations_of_every_layer(model, layer, place):
    found = list(iter_packed(model, SEQUENCES, output="representation", layer=layer))
    assert len(found) == len(SEQUENCES)
    for index, states in found:
        expected = padded(model, SEQUENCES[index])[1][place]
        assert states.shape == (len(SEQUENCES[index]) + 2, 16)
        torch.testing.assert_close(states, expected, atol=1e-5, rtol=0)
    other = padded(model, SEQUENCES[found[0][0]])[1][(place + 1) % 3]
    assert not torch.allclose(found[0][1], other, atol=1e-2), "layers must differ to be told apart"


def test_a_bare_encoder_gives_the_same_representations(model, rotary):
    bare = EsmModel.from_pretrained(rotary, add_pooling_layer=False)
    for (i, ours), (j, theirs) in zip(
        iter_packed(bare, SEQUENCES, output="representation"),
        iter_packed(model, SEQUENCES, output="representation"),
        strict=True,
    ):
        assert i == j
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)
        assert not ours.requires_grad
        assert not ours.is_inference(), "usable for training on top"


class Lazy(Sequence):
    """A Sequence that makes its items when asked and notes which."""

    def __init__(self, items):
        self.items, self.asked = items, []

    def __len__(self):
        return len(self.items)

    def __getitem__(self, place):
        if place >= len(self.items):
            raise IndexError
        self.asked.append(place)
        return self.items[place]


def test_lazy_sequences_are_asked_for_batch_by_batch(model):
    lazy = Lazy(SEQUENCES)
    results = iter_packed(model, lazy, token_budget=22)
    lengths_asked = len(lazy.asked)
    first, _ = next(results)
    assert first == 2
    assert lazy.asked[lengths_asked:] == [2]
    assert len(list(results)) == len(SEQUENCES) - 1


def test_iter_packed_halves_what_does_not_fit(model, monkeypatch):
    expected = dict(iter_packed(model, SEQUENCES))
    Allocator(24).limit(monkeypatch, EsmForMaskedLM, "packed_logits", tokens())
    found = dict(iter_packed(model, SEQUENCES))
    assert sorted(found) == sorted(expected)
    for place, logits in found.items():
        torch.testing.assert_close(logits, expected[place], atol=1e-5, rtol=0)
    with pytest.raises(CapacityError, match=r"sequence 0 \(30 residues\) does not fit"):
        list(iter_packed(model, ["A" * 30, "C"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output": "attention"}, "output 'attention' is not known"),
        ({"token_budget": 0}, "token_budget 0 is not a positive whole number"),
        ({"token_budget": 1.5}, "token_budget 1.5 is not a positive whole number"),
        ({"token_budget": True}, "token_budget True is not a positive whole number"),
        ({"token_budget": "9"}, "token_budget '9' is not a positive whole number"),
        ({"layer": 3}, "layer 3 does not exist; the model has layers 0 to 2"),
        ({"layer": -2}, "layer -2 does not exist"),
        ({"layer": 1.0}, r"layer 1\.0 is not a whole number"),
        ({"layer": "1"}, "layer '1' is not a whole number"),
        ({"layer": True}, "layer True is not a whole number"),
    ],
)
def test_unusable_arguments_are_refused_at_once(model, arguments, message):
    with pytest.raises(InputError, match=message):
        iter_packed(model, SEQUENCES, **arguments)


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ("MKTAYIAKQR", "sequences are of type str; pass a list"),
        (b"MKTAYIAKQR", "sequences are of type bytes; pass a list"),
        ({"a": "MKT"}, "sequences are of type dict; pass a list"),
        ((one for one in SEQUENCES), "sequences are of type generator; pass a list"),
        (np.array("MKT"), "sequences are of type str; pass a list"),
        (None, "sequences are of type NoneType"),
        (["MKT", b"MKT"], "sequence 1 is of type bytes"),
        (["MKT", None], "sequence 1 is of type NoneType"),
        ([["MKT"]], "sequence 0 is of type list"),
        (pd.Series(["MKT", float("nan")], dtype=object), "sequence 1 is of type float"),
    ],
)
def test_what_is_no_sequence_of_text_is_refused_at_once(model, sequences, message):
    with pytest.raises(InputError, match=message):
        iter_packed(model, sequences)


@pytest.mark.parametrize(
    "made", [tuple, np.array, pd.Series, lambda items: pd.Series(items, range(9, 9 + len(items)))]
)
def test_arrays_and_columns_are_taken_in_their_order(model, made):
    found, expected = iter_packed(model, made(SEQUENCES)), iter_packed(model, SEQUENCES)
    for (i, ours), (j, theirs) in zip(found, expected, strict=True):
        assert i == j
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


def test_a_bare_encoder_has_no_logits(rotary):
    with pytest.raises(InputError, match=r"EsmModel has no logits; load EsmForMaskedLM"):
        iter_packed(EsmModel.from_pretrained(rotary, add_pooling_layer=False), SEQUENCES)


def test_classifiers_give_one_for_each_residue_or_sequence(rotary):
    for name, ndim in ((EsmForSequenceClassification, 1), (EsmForTokenClassification, 2)):
        with pytest.warns(UserWarning, match="initialised at random"):
            classifier = name.from_pretrained(rotary, num_labels=3)
        found = dict(iter_packed(classifier, SEQUENCES, token_budget=40))
        assert sorted(found) == list(range(len(SEQUENCES)))
        for place, logits in found.items():
            assert logits.ndim == ndim
            tokens = EsmTokenizer.standard()([SEQUENCES[place]], return_tensors="pt")
            with torch.no_grad():
                expected = classifier(**tokens).logits[0]
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


def test_sequences_beyond_the_table_are_refused_at_once(absolute):
    model = EsmForMaskedLM.from_pretrained(absolute)
    assert len(list(iter_packed(model, ["A" * 30]))) == 1
    with pytest.raises(
        InputError, match="sequence 1 has 31 residues, the model has positions for 30"
    ):
        iter_packed(model, ["A" * 30, "A" * 31])


def test_the_standard_alphabet_serves_a_model_without_a_checkpoint(model):
    fresh = EsmForMaskedLM(model.config).eval()
    fresh.load_state_dict(model.state_dict())
    assert fresh.source is None
    for (_, ours), (_, theirs) in zip(
        iter_packed(fresh, SEQUENCES), iter_packed(model, SEQUENCES), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)
