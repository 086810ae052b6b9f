"""The four types of positions, and which path of attention each takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from esm_pipeline import EsmConfig, EsmForMaskedLM, EsmModel, iter_packed
from esm_pipeline.errors import CapacityError, WeightsError
from esm_pipeline.model import PackedLayout
from esm_pipeline.model import layer as model_layer
from esm_pipeline.model.encoder import EncoderInputs
from tests.oracles.peers import max_abs
from tests.oracles.reference import fill
from tests.oracles.reference_cases import BASE, DECODER, PAD, TYPES, residues

TOLERANCE = 1e-10
MOST = BASE["max_position_embeddings"]
RELATIVE = ("relative_key", "relative_key_query")


def build(kind: str, made: type[Any] = EsmModel, **more: Any) -> Any:
    config = EsmConfig(**{**BASE, "position_embedding_type": kind, **more})
    return fill(made(config).double().eval()).requires_grad_(False)


MODELS = {kind: build(kind) for kind in TYPES}


@pytest.fixture(params=TYPES, scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def padded(lengths: list[int], left: bool) -> Tensor:
    """Token ids of proteins, padded on one side."""
    ids = torch.full((len(lengths), max(lengths)), PAD)
    for row, length in enumerate(lengths):
        start = max(lengths) - length if left else 0
        ids[row, start : start + length] = torch.from_numpy(residues(f"protein {row}", (length,)))
    return ids


@settings(max_examples=30)
@given(lengths=st.lists(st.integers(1, MOST - 2), min_size=1, max_size=5), left=st.booleans())
def test_neither_company_nor_padding_matters(kind: str, lengths: list[int], left: bool) -> None:
    model, ids = MODELS[kind], padded(lengths, left)
    together = model(ids, output_attentions=True)
    for row in range(len(lengths)):
        alone = model(ids[row, ids[row] != PAD].unsqueeze(0), output_attentions=True)
        real = ids[row] != PAD
        assert max_abs(together.last_hidden_state[row, real], alone[0][0]) <= TOLERANCE
        maps = together.attentions[1][row][:, real][:, :, real]
        assert max_abs(maps, alone.attentions[1][0]) <= TOLERANCE


def test_packed_door_equals_padded_door(kind: str) -> None:
    model, lengths = MODELS[kind], [5, 9, 9, 3]
    ids = padded(lengths, left=False)
    layout = PackedLayout.from_lengths(lengths)
    found = model.represent(ids[ids != PAD], layout, [0, 1, -1], contacts=True)
    expected = model(ids, output_hidden_states=True).hidden_states
    for layer, states in found.hidden.items():
        assert max_abs(states, expected[layer][ids != PAD]) <= TOLERANCE
    contacts = model.predict_contacts(ids)
    for row, single in enumerate(found.contacts):
        assert max_abs(single, contacts[row, : len(single), : len(single)]) <= TOLERANCE


def test_contacts_of_a_batch_padded_on_the_left(kind: str) -> None:
    model = MODELS[kind]
    left, right = (model.predict_contacts(padded([9, 5], side)) for side in (True, False))
    assert max_abs(left, right) <= TOLERANCE


@pytest.mark.parametrize("kind", RELATIVE)
def test_stream_of_sequences(kind: str) -> None:
    model = build(kind, EsmForMaskedLM).float()
    sequences = ["MKTAYIAK", "MKV", "GG", "MKTAYIAK"]
    for i, logits in iter_packed(model, sequences, token_budget=16):
        (alone,) = (found for _, found in iter_packed(model, [sequences[i]]))
        assert max_abs(logits, alone) <= 1e-5


@pytest.mark.parametrize(
    ("kind", "longest"), [("absolute", MOST - PAD - 1), *((kind, MOST) for kind in RELATIVE)]
)
def test_table_ends(kind: str, longest: int) -> None:
    model = MODELS[kind]
    assert model.max_residues == longest - 2
    assert model(padded([longest], left=False)).last_hidden_state.isfinite().all()
    with pytest.raises(CapacityError, match="shorten the sequence, or use a rotary model"):
        model(padded([longest + 1], left=False))
    beside = padded([longest, 3], left=True)
    assert model(beside).last_hidden_state.isfinite().all()


def test_rotary_has_no_table() -> None:
    assert MODELS["rotary"].max_residues is None
    assert MODELS["rotary"](padded([3 * MOST], left=False))[0].isfinite().all()


def test_other_types_are_refused() -> None:
    with pytest.raises(WeightsError, match="'alibi' is not one of absolute, rotary, relative_key"):
        build("alibi")


# The explicit path is taken where it must be, and nowhere else.


class ExplicitError(Exception):
    """Raised in place of the explicit path."""


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **more: Any) -> None:
        raise ExplicitError

    monkeypatch.setattr(model_layer, "attend_explicitly", refuse)


IDS = padded([5, 9], left=False)


@pytest.mark.usefixtures("forbidden")
@pytest.mark.parametrize("kind", ["absolute", "rotary"])
def test_fast_path(kind: str) -> None:
    model = MODELS[kind]
    model(IDS, output_hidden_states=True)
    model(inputs_embeds=torch.zeros(1, 4, BASE["hidden_size"], dtype=torch.float64))
    model(IDS, position_ids=torch.arange(9))
    model.represent(IDS[0], PackedLayout.from_lengths([9]), [0, 1, 2])
    whole = build(kind, EsmForMaskedLM)
    whole(IDS, labels=IDS)
    whole.prune_heads({0: [1]})
    whole(IDS)


@pytest.mark.usefixtures("forbidden")
@pytest.mark.parametrize(
    ("config", "arguments"),
    [
        ({"position_embedding_type": "relative_key"}, {}),
        ({"position_embedding_type": "relative_key_query"}, {}),
        (DECODER, {}),
        ({}, {"output_attentions": True}),
        ({}, {"head_mask": torch.ones(3)}),
    ],
)
def test_explicit_path(config: dict[str, Any], arguments: dict[str, Any]) -> None:
    model = EsmModel(EsmConfig(**{**BASE, **config}))
    with pytest.raises(ExplicitError):
        model(IDS, **arguments)


@pytest.mark.parametrize("config", [{"position_embedding_type": "relative_key"}, DECODER])
def test_explicit_path_keeps_no_maps_unasked(config: dict[str, Any]) -> None:
    model = EsmModel(EsmConfig(**{**BASE, **config}))
    layout = PackedLayout.from_lengths([9])
    x = model.embeddings(IDS[0], layout)
    assert [step.outputs.maps for step in model.encoder.steps(x, layout)] == [None] * 3
    asked = model.encoder.steps(x, layout, EncoderInputs(with_maps=True))
    assert [len(step.outputs.maps or ()) for step in asked] == [0, 1, 1]
