"""Models and calls of each, for transformers 4.37.2 and for the models here. Needs numpy.

A model is a class, settings over `BASE`, heads to prune, and calls. A call is the arguments of
`forward`; besides, `past_of` is the number of the call whose cache it goes on from, and `METHOD`
names another method. Of calls with `TUPLE`, the shapes alone are recorded.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.oracles.seeded import residues, uniform

CLS, PAD, EOS, MASK = 0, 1, 2, 32
TYPES = ("absolute", "rotary", "relative_key", "relative_key_query")
BASE: dict[str, Any] = {
    "vocab_size": 33,
    "mask_token_id": MASK,
    "pad_token_id": PAD,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 24,
    "layer_norm_eps": 1e-5,
}
DECODER = {"is_decoder": True}
CROSS = {"is_decoder": True, "add_cross_attention": True}
ALL = {"output_hidden_states": True, "output_attentions": True}
TUPLE = {"return_dict": False}

Call = dict[str, Any]
Model = dict[str, Any]


def tokens() -> tuple[np.ndarray, np.ndarray]:
    """Two proteins, one with masked residues, one shorter, padded: ids and mask (2, 9)."""
    ids = residues("tokens", (2, 9))
    ids[:, 0], ids[0, 8], ids[1, 6], ids[1, 7:] = CLS, EOS, EOS, PAD
    ids[0, 3] = ids[1, 2] = MASK
    return ids, (ids != PAD).astype(np.int64)


def shifted() -> tuple[np.ndarray, np.ndarray]:
    """The same, the first with a hole in its mask, the second padded on the left."""
    ids, mask = tokens()
    ids[1], mask[1] = np.roll(ids[1], 2), np.roll(mask[1], 2)
    mask[0, 5] = 0
    return ids, mask


def call(ids_and_mask: tuple[np.ndarray, np.ndarray], **more: Any) -> Call:
    """A call with ids and mask."""
    ids, mask = ids_and_mask
    return {"input_ids": ids, "attention_mask": mask, **more}


def contacts(ids_and_mask: tuple[np.ndarray, np.ndarray]) -> Call:
    """A call of `predict_contacts`."""
    ids, mask = ids_and_mask
    return {"tokens": ids, "attention_mask": mask, "METHOD": "predict_contacts"}


def encoders() -> dict[str, Model]:
    """Encoders of all position types, with every argument."""
    found: dict[str, Model] = {}
    for number, kind in enumerate(TYPES):
        config = {
            "position_embedding_type": kind,
            "token_dropout": number % 2 == 1,
            "emb_layer_norm_before": number > 1,
        }
        calls = [
            call(tokens(), **ALL),
            call(shifted(), output_hidden_states=True),
            contacts(tokens()),
            call(tokens(), **TUPLE),
            call(tokens(), **TUPLE, **ALL),
        ]
        found[f"encoder {kind}"] = {"config": config, "calls": calls}
    heads = np.array([1.0, 0.0, 0.5])
    each = np.array([[0.0, 1.0, 1.0], [1.0, 0.25, 0.0]])
    embeds = uniform("embeds", (2, 9, 12))
    for kind in TYPES:
        config = {"position_embedding_type": kind}
        calls = [
            call(tokens(), head_mask=heads, output_attentions=True),
            call(tokens(), head_mask=each),
            {"inputs_embeds": embeds, "attention_mask": tokens()[1], "output_hidden_states": True},
            {"inputs_embeds": embeds},
            call(tokens(), position_ids=np.arange(18).reshape(2, 9)[:, ::-1].copy()),
            call(tokens(), position_ids=np.arange(3, 12)[None]),
        ]
        found[f"arguments {kind}"] = {"config": config, "calls": calls}
    found["encoder without pooler"] = {
        "config": {},
        "pooler": False,
        "calls": [call(tokens()), call(tokens(), **TUPLE), call(tokens(), **TUPLE, **ALL)],
    }
    return found


def decoders() -> dict[str, Model]:
    """Decoders of all position types; cross attention and steps where the reference has them."""
    found: dict[str, Model] = {}
    for kind in TYPES:
        calls = [
            call(tokens(), **ALL),
            call(shifted(), use_cache=False),
            contacts(tokens()),
            call(tokens(), **TUPLE),
            call(tokens(), **TUPLE, use_cache=False, **ALL),
        ]
        config = {**DECODER, "position_embedding_type": kind, "token_dropout": kind == "rotary"}
        found[f"decoder {kind}"] = {"config": config, "calls": calls}
    states = uniform("states", (2, 7, 12))
    flat = np.array([[1, 1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 1, 0, 0]])
    deep = (uniform("deep mask", (2, 9, 7)) > -0.3).astype(np.int64)
    deep[:, :, 4] = 1
    calls = [
        call(tokens(), encoder_hidden_states=states, encoder_attention_mask=flat, **ALL),
        call(tokens(), encoder_hidden_states=states, encoder_attention_mask=deep, use_cache=False),
        call(shifted(), encoder_hidden_states=states, use_cache=False),
        call(
            tokens(),
            encoder_hidden_states=states,
            head_mask=np.array([[0.0, 1.0, 1.0], [1.0, 0.25, 0.0]]),
            use_cache=False,
        ),
        call(tokens(), encoder_hidden_states=states, **TUPLE, **ALL),
    ]
    found["cross attention"] = {"config": CROSS, "calls": calls}
    for kind in TYPES[1:]:  # only to be saved and loaded: the reference's answers are none
        config = {**CROSS, "position_embedding_type": kind}
        found[f"cross attention {kind}"] = {"config": config, "calls": []}
    found["steps"] = {"config": DECODER, "calls": steps()}
    with_states = {"encoder_hidden_states": states, "encoder_attention_mask": flat}
    found["steps with cross attention"] = {"config": CROSS, "calls": steps(**with_states)}
    return found


def steps(**more: Any) -> list[Call]:
    """A first pass, then one token a time with a mask (B, 1): what the reference can do."""
    ids = residues("steps", (2, 8))
    one = np.ones((2, 1), dtype=np.int64)
    return [
        {"input_ids": ids[:, :6], **more},
        {"input_ids": ids[:, 6:7], "attention_mask": one, "past_of": 0, **more, **ALL},
        {"input_ids": ids[:, 7:8], "attention_mask": one, "past_of": 1, **more},
    ]


def language_models() -> dict[str, Model]:
    """The masked language model, as encoder and as decoder."""
    labels = np.where(tokens()[0] == MASK, 7, -100)
    states = uniform("states", (2, 7, 12))
    found = {}
    for name, config, more in (
        ("encoder", {"position_embedding_type": "relative_key"}, {}),
        ("decoder", {**DECODER, "position_embedding_type": "rotary"}, {}),
        ("cross attention", CROSS, {"encoder_hidden_states": states}),
    ):
        calls = [
            call(tokens(), labels=labels, **more),
            call(tokens(), **TUPLE, **more),
            call(tokens(), labels=labels, **TUPLE, **ALL, **more),
        ]
        found[f"masked LM, {name}"] = {"class": "EsmForMaskedLM", "config": config, "calls": calls}
    return found


def pruned() -> dict[str, Model]:
    """Models that lost heads, some of them in two rounds."""
    rounds: dict[str, list[dict[int, list[int]]]] = {
        "absolute": [{0: [1], 1: [0, 2]}],
        "rotary": [{0: [0]}, {0: [2], 1: [1]}],
        "relative_key": [{1: [2]}, {1: [2, 0]}],
        "relative_key_query": [{0: [0, 1, 2]}],
    }
    found = {}
    for kind, prune in rounds.items():
        config = {"position_embedding_type": kind}
        calls = [call(tokens(), **ALL)]
        found[f"pruned {kind}"] = {"config": config, "prune": prune, "calls": calls}
    states = uniform("states", (2, 7, 12))
    calls = [call(tokens(), encoder_hidden_states=states, **ALL)]
    found["pruned decoder"] = {"config": CROSS, "prune": [{0: [1]}], "calls": calls}
    return found


def all_models() -> dict[str, Model]:
    """Everything that is recorded."""
    return {**encoders(), **decoders(), **language_models(), **pruned()}
