"""The models against recorded output of transformers 4.37.2, and twins that must fail."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

import esm_pipeline
from esm_pipeline.model import base as model_base
from esm_pipeline.model import decoder_inputs, explicit_attention, pruning
from esm_pipeline.model import esm as model_esm
from esm_pipeline.model import layer as model_layer
from esm_pipeline.model.arguments import table_rows
from esm_pipeline.model.base import EsmPreTrainedModel
from esm_pipeline.model.checkpoints.weights import reference_state
from esm_pipeline.model.decoder import EsmEncoderAttention
from esm_pipeline.model.decoder_inputs import DecoderInputs, Past
from esm_pipeline.model.layer import EsmLayer, EsmSelfAttention
from esm_pipeline.model.layout import PackedLayout
from esm_pipeline.model.relative_positions import DistanceEmbedding
from esm_pipeline.model.rotary import rotary_frequencies, rotary_tables, rotate
from tests.oracles.reference import MODELS, build, differences, facts
from tests.oracles.reference_cases import TYPES

TOLERANCE = 1e-10
"""All in float64; the worst that was measured is 4e-15."""


def pruned(name: str) -> EsmPreTrainedModel:
    model = build(name)
    for heads in MODELS[name].get("prune", ()):
        model.prune_heads(heads)
    return model


def test_the_file_tells_where_it_is_from() -> None:
    assert facts()["recorded with"]["transformers"] == "4.37.2"
    assert facts()["recorded with"].keys() == {"transformers", "torch", "numpy", "python"}
    assert list(facts()["models"]) == list(MODELS)


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if model["calls"]])
def test_answers(name: str) -> None:
    found = differences(pruned(name), name)
    assert {key: worst for key, worst in found.items() if not worst <= TOLERANCE} == {}


def test_what_the_reference_cannot_do() -> None:
    """Why a mask (B, L, L) is refused, and why no golden has other steps and other positions."""
    working: dict[str, set[str]] = {}
    for question, outcome in facts()["failures"].items():
        asked, kind = question.split(", ")[:-1], question.split(", ")[-1]
        working.setdefault(", ".join(asked), set()).update({kind} if outcome == "works" else ())
    assert working == {
        "a mask (B, L, L)": set(),
        "encoder states without a decoder": set(TYPES),  # passed over in silence
        "embeddings with token dropout": set(),
        "two tokens a step": set(),
        "one token a step": {"absolute"},
        "a step with the past's mask": set(),
        "cross attention": {"absolute"},
        "contacts of a pruned model": set(),
    }


@pytest.mark.parametrize("name", facts()["signatures"])
def test_arguments_of_forward(name: str) -> None:
    parameters = inspect.signature(getattr(esm_pipeline, name).forward).parameters
    found = {one.name: one.default for one in list(parameters.values())[1:]}
    assert list(found.items()) == list(facts()["signatures"][name].items())


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("arguments")])
def test_checkpoints_have_the_keys_of_the_reference_and_come_back(
    name: str, tmp_path: Path
) -> None:
    model, recorded = pruned(name), facts()["models"][name]
    found = {key: list(tensor.shape) for key, tensor in reference_state(model).items()}
    wanted = recorded["weights"]
    tied = {"lm_head.decoder.weight"}  # the token embedding, which a file need not have twice
    assert found.keys() - tied == wanted.keys() - tied
    assert {key: wanted[key] for key in found} == found
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["pruned_heads"] == recorded["pruned_heads"]
    pooler = {"add_pooling_layer": False} if not MODELS[name].get("pooler", True) else {}
    again = type(model).from_pretrained(tmp_path, dtype=torch.float64, **pooler)
    for (key, one), (_, other) in zip(
        model.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), key


# Twins: one deliberate mistake each, through the same comparison.


def flipped_distances(patch: pytest.MonkeyPatch) -> None:
    scores = DistanceEmbedding.scores
    patch.setattr(
        DistanceEmbedding, "scores", lambda self, q, k, at, of: scores(self, q, k, -at, -of)
    )


def distances_of_unscaled_queries(patch: pytest.MonkeyPatch) -> None:
    scores = DistanceEmbedding.scores
    patch.setattr(
        DistanceEmbedding,
        "scores",
        lambda self, q, *rest: scores(self, q * q.shape[-1] ** 0.5, *rest),
    )


def distances_without_keys(patch: pytest.MonkeyPatch) -> None:
    init = DistanceEmbedding.__init__

    def without(self: DistanceEmbedding, config: object) -> None:
        init(self, config)
        self.with_keys = False

    patch.setattr(DistanceEmbedding, "__init__", without)


def one_token_ahead(patch: pytest.MonkeyPatch) -> None:
    mix = explicit_attention.mix

    def ahead(scores: Tensor, v: Tensor, hidden: Tensor | None, *rest: object) -> object:
        return mix(scores, v, None if hidden is None else hidden.triu(2), *rest)

    patch.setattr(explicit_attention, "mix", ahead)


def not_causal(patch: pytest.MonkeyPatch) -> None:
    attend = explicit_attention.attend_explicitly
    patch.setattr(
        model_layer,
        "attend_explicitly",
        lambda *given, **options: attend(*given, **{**options, "causal": False}),
    )


def rotated_cache(patch: pytest.MonkeyPatch) -> None:
    extended = DecoderInputs.extend_cache

    def rotated(
        self: DecoderInputs, past: Sequence[Tensor], k: Tensor, v: Tensor, layout: PackedLayout
    ) -> tuple[Tensor, ...]:
        tables = rotary_tables(layout.positions, rotary_frequencies(k.shape[-1]), k.dtype)
        return extended(self, past, rotate(k, tables), v, layout)

    patch.setattr(DecoderInputs, "extend_cache", rotated)


def cache_places_off_by_one(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Past, "positions", lambda self, layout: layout.positions + self.length - 1)


def cache_rows_off_by_one(patch: pytest.MonkeyPatch) -> None:
    def off(*given: object) -> Tensor | None:
        rows = table_rows(*given)
        return rows if given[4] is None else rows - 1

    patch.setattr(model_esm, "table_rows", off)


def swapped_cross_keys_and_values(patch: pytest.MonkeyPatch) -> None:
    look = EsmEncoderAttention.keys_values
    patch.setattr(EsmEncoderAttention, "keys_values", lambda self, *rest: look(self, *rest)[::-1])


def unseen_encoder_mask(patch: pytest.MonkeyPatch) -> None:
    see = decoder_inputs.visible_states
    patch.setattr(decoder_inputs, "visible_states", lambda *given: see(*given[:-1], None))


def unheard_head_mask(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(EsmSelfAttention, "own_heads", lambda self, head_mask: None)


def unheard_position_ids(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        model_esm, "table_rows", lambda c, ids, mask, given, past: table_rows(c, ids, mask)
    )


def embeddings_from_row_zero(patch: pytest.MonkeyPatch) -> None:
    def rows(config: object, ids: Tensor | None, *rest: object) -> Tensor | None:
        found = table_rows(config, ids, *rest)
        return found if ids is not None else found - 2

    patch.setattr(model_esm, "table_rows", rows)


def heads_counted_anew(patch: pytest.MonkeyPatch) -> None:
    prune = pruning.prune_layer

    def anew(layer: EsmLayer, heads: list[int]) -> None:
        attention = layer.attention.self
        attention.heads = list(range(len(attention.heads)))
        prune(layer, heads)

    patch.setattr(model_base, "prune_layer", anew)


TWINS: list[tuple[Callable[[pytest.MonkeyPatch], None], str]] = [
    (flipped_distances, "encoder relative_key"),
    (flipped_distances, "encoder relative_key_query"),
    (flipped_distances, "decoder relative_key"),
    (distances_of_unscaled_queries, "encoder relative_key"),
    (distances_without_keys, "encoder relative_key_query"),
    (one_token_ahead, "decoder absolute"),
    (one_token_ahead, "decoder rotary"),
    (not_causal, "decoder relative_key_query"),
    (rotated_cache, "decoder rotary"),
    (cache_places_off_by_one, "steps"),
    (cache_rows_off_by_one, "steps with cross attention"),
    (swapped_cross_keys_and_values, "cross attention"),
    (unseen_encoder_mask, "cross attention"),
    (unheard_head_mask, "arguments relative_key"),
    (unheard_position_ids, "arguments absolute"),
    (embeddings_from_row_zero, "arguments absolute"),
    (heads_counted_anew, "pruned rotary"),
]


@pytest.mark.parametrize(
    ("mistake", "name"), TWINS, ids=[f"{mistake.__name__}-{name}" for mistake, name in TWINS]
)
def test_twin_fails(
    mistake: Callable[[pytest.MonkeyPatch], None], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake(monkeypatch)
    assert max(differences(pruned(name), name).values()) > 1e-4
