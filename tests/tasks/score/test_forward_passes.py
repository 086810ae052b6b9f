"""Forward passes: how they are planned, what a model sees, and logits of chosen tokens only."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esm_pipeline.errors import WeightsError
from esm_pipeline.model import EsmConfig, EsmForMaskedLM, EsmTokenizer, PackedLayout
from esm_pipeline.model.inference.batching import CPU_TOKENS
from esm_pipeline.settings.sections import ScoreSettings
from esm_pipeline.tasks.score.forward_passes import (
    LanguageModel,
    one_masked,
    ranges,
    together_masked,
    unmasked,
)
from tests.oracles.peers import SMALL, batch, enliven, max_abs

SEQUENCES = ["MKTAYIAKQR", "GAV"]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5)), max_size=9))
def test_ranges(pairs):
    starts, counts = (
        (np.array(x, np.int64) for x in zip(*pairs, strict=True)) if pairs else ([], [])
    )
    expected = [start + step for start, count in pairs for step in range(count)]
    found = ranges(np.array(starts, np.int64), np.array(counts, np.int64))
    assert found.tolist() == expected


def array(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_what_is_planned():
    alone = one_masked(array(0, 0, 1), array(1, 9, 2), array(5, 6, 7), array(12, 12, 5), 0)
    assert (len(alone), alone.masked) == (3, True)
    assert (alone.start.tolist(), alone.stop.tolist()) == ([0, 0, 0], [12, 12, 5])
    joint = together_masked(array(0, 1), array(0, 2, 3), array(1, 9, 2), array(12, 5), 0)
    assert (len(joint), joint.slot.tolist()) == (2, [0, 1, 2])
    none = unmasked(array(0, 0, 1), array(1, 9, 2), array(5, 6, 7), array(12, 12, 5), 0)
    assert (len(none), none.masked, none.ends.tolist()) == (2, False, [0, 2, 3])
    wide = unmasked(array(0, 0, 1), array(1, 9, 2), array(5, 6, 7), array(12, 12, 5), 8)
    shown = list(zip(wide.sequence.tolist(), wide.start.tolist(), wide.stop.tolist(), strict=True))
    assert shown == [(0, 0, 8), (0, 4, 12), (1, 0, 5)]
    assert wide.position.tolist() == [1, 9, 2]
    empty = array()
    for plan in (one_masked, unmasked):
        assert len(plan(empty, empty, empty, empty, 8)) == 0


@pytest.fixture
def model(rotary):
    return LanguageModel(str(rotary), None, ScoreSettings(device="cpu"))


def test_what_a_model_is_shown(model, monkeypatch):
    """Copies with one mask each, longest first, copies of one sequence together; masked rows."""
    seen = []

    def packed_logits(self, tokens, layout, rows):
        seen.append((tokens.tolist(), layout.lengths, rows.tolist()))
        return torch.zeros(len(rows), 33)

    monkeypatch.setattr(EsmForMaskedLM, "packed_logits", packed_logits)
    passes = one_masked(array(1, 0, 0), array(2, 1, 10), array(7, 8, 9), array(5, 12, 12), 0)
    read = lambda numbers: [SEQUENCES[number] for number in numbers]  # noqa: E731
    results = list(model.run_passes(passes, read, 29))
    ids = [EsmTokenizer.standard().encode_residues(one).tolist() for one in SEQUENCES]
    long, short = ids
    first, second, third = long.copy(), long.copy(), short.copy()
    first[1] = second[10] = third[2] = 32
    assert seen == [(first + second + third, [12, 12, 5], [1, 22, 26])]
    (found,) = results
    assert found.slot.tolist() == [8, 9, 7]
    assert found.sequence.tolist() == [0, 0, 1]
    assert found.wild_type.tolist() == [long[1], long[10], short[2]]
    assert (found.passes, model.passes) == (3, 3)
    assert found.cost == sum(tokens * (7680 + tokens) for tokens in (12, 12, 5))
    assert [len(one.slot) for one in model.run_passes(passes, read, 28)] == [2, 1]


def test_batches_on_the_cpu_fit_its_caches(model, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        EsmForMaskedLM,
        "packed_logits",
        lambda self, tokens, layout, rows: sizes.append(len(tokens)) or torch.zeros(len(rows), 33),
    )
    count = 2 * CPU_TOKENS // 12
    places, same = np.resize(np.arange(1, 11), count), np.zeros(count, np.int64)
    passes = one_masked(same, places, same, same + 12, 0)
    list(model.run_passes(passes, lambda numbers: [SEQUENCES[0]], 1 << 20))
    assert sum(sizes) == 12 * count
    assert CPU_TOKENS // 2 < max(sizes) <= CPU_TOKENS


def test_an_alphabet_without_a_residue_is_refused(rotary, tmp_path):
    for path in rotary.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text(vocabulary.read_text().replace("\nO\n", "\n<other>\n"))
    with pytest.raises(WeightsError, match="no token for residue O; choose a model with the ESM"):
        LanguageModel(str(tmp_path), None, ScoreSettings(device="cpu"))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("kind", ["rotary", "absolute"])
def test_logits_of_chosen_tokens_only(layers, kind):
    config = EsmConfig(**{**SMALL, "num_hidden_layers": layers}, position_embedding_type=kind)
    ours = enliven(EsmForMaskedLM(config)).double()
    lengths = [9, 40, 9, 1]
    tokens, mask = batch(lengths, masked=0.1)
    layout, packed = PackedLayout.from_lengths([n + 2 for n in lengths]), tokens[mask.bool()]
    rows = torch.tensor([3, 11, 12, 60, 66])
    with torch.inference_mode():
        whole = ours.packed_logits(packed, layout)
        assert max_abs(ours.packed_logits(packed, layout, rows), whole[rows]) <= 1e-12
        assert ours.packed_logits(packed, layout, rows[:0]).shape == (0, 33)
        state = ours.esm.represent(packed, layout, [layers], rows=rows).hidden[layers]
    assert state.shape == (5, 48)
