"""Models of random shapes against the installed transformers, for all that it still can do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from esm_pipeline import EsmConfig, EsmForMaskedLM
from tests.oracles.peers import enliven, max_abs

TOLERANCE = 1e-5
"""In float64, but transformers 5 rotates by angles in float32; the worst measured is 2e-6."""

EOS = 2


class Case(NamedTuple):
    """A config, and a batch for it."""

    config: dict[str, Any]
    lengths: list[int]
    masked: float
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any shape; contacts need EOS to have the id 2, so that padding and mask have others."""
    heads, kind = draw(st.integers(1, 5)), draw(st.sampled_from(["absolute", "rotary"]))
    width = 2 * draw(st.integers(1, 6))
    vocabulary = draw(st.integers(8, 60))
    ids = st.integers(0, vocabulary - 1).filter(lambda one: one != EOS)
    pad, mask = draw(st.lists(ids, min_size=2, max_size=2, unique=True))
    lengths = draw(st.lists(st.integers(1, 14), min_size=1, max_size=4))
    decoding = draw(st.booleans())
    config = {
        "vocab_size": vocabulary,
        "pad_token_id": pad,
        "mask_token_id": mask,
        "hidden_size": heads * width,
        "num_hidden_layers": draw(st.integers(1, 4)),
        "num_attention_heads": heads,
        "intermediate_size": draw(st.integers(1, 40)),
        "max_position_embeddings": max(lengths) + 2 + pad + 1 + draw(st.integers(0, 5)),
        "layer_norm_eps": 10.0 ** -draw(st.integers(3, 12)),
        "position_embedding_type": kind,
        "emb_layer_norm_before": draw(st.sampled_from([None, False, True])),
        "token_dropout": draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
        "is_decoder": decoding,
        # transformers turns an encoder's keys by the decoder's angles, and fails for most shapes
        "add_cross_attention": decoding and kind == "absolute" and draw(st.booleans()),
    }
    return Case(config, lengths, draw(st.sampled_from([0.0, 0.3])), draw(st.integers(0, 999)))


def ours_like(peer: nn.Module, config: dict[str, Any]) -> EsmForMaskedLM:
    """Our model with the weights of the peer."""
    ours, theirs = EsmForMaskedLM(EsmConfig(**config)).double().eval(), peer.state_dict()
    for name, parameter in ours.named_parameters():
        parameter.data.copy_(theirs[name])
    return ours


def batch(case: Case) -> tuple[Tensor, Tensor]:
    """Random tokens of the case's vocabulary, EOS last; ids and mask (B, L)."""
    generator = torch.Generator().manual_seed(case.seed)
    pad, mask = case.config["pad_token_id"], case.config["mask_token_id"]
    common = [one for one in range(case.config["vocab_size"]) if one not in (pad, mask, EOS)]
    ids = torch.full((len(case.lengths), max(case.lengths) + 2), pad)
    for row, length in zip(ids, case.lengths, strict=True):
        drawn = torch.randint(len(common), (length + 2,), generator=generator)
        row[: length + 2] = torch.tensor(common)[drawn]
        row[1 : length + 1][torch.rand(length, generator=generator) < case.masked] = mask
        row[length + 1] = EOS
    return ids, (ids != pad).long()


def differences(
    case: Case, spoil: Callable[[EsmForMaskedLM], None] = lambda model: None
) -> dict[str, float]:
    """Largest differences of our model from transformers', at tokens that the mask attends to."""
    config = transformers.EsmConfig(**case.config, attn_implementation="eager")
    peer = enliven(transformers.EsmForMaskedLM(config), case.seed).double()
    ours = ours_like(peer, case.config)
    spoil(ours)
    ids, mask = batch(case)
    wanted: dict[str, Any] = {"attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    if case.config["add_cross_attention"]:
        generator = torch.Generator().manual_seed(case.seed)
        shape = (*ids.shape, case.config["hidden_size"])  # transformers 5 fails for other lengths
        states = torch.randn(shape, generator=generator, dtype=torch.float64)
        seen = torch.rand(shape[:2], generator=generator) < 0.7
        seen[:, 0] = True
        wanted |= {"encoder_hidden_states": states, "encoder_attention_mask": seen.long()}
    with torch.no_grad():
        theirs, found = (
            model(ids, **wanted, output_hidden_states=True, output_attentions=True)
            for model in (peer, ours)
        )
        without_maps = ours(ids, **wanted).logits
    worst = {
        "loss": max_abs(found.loss, theirs.loss),
        "logits": max_abs(found.logits, theirs.logits, mask),
        "logits without maps": max_abs(without_maps, theirs.logits, mask),
    }
    for a, b in zip(found.hidden_states, theirs.hidden_states, strict=True):
        worst["hidden"] = max(worst.get("hidden", 0.0), max_abs(a, b, mask))
    for a, b in zip(found.attentions, theirs.attentions, strict=True):
        by_token = max_abs(a.transpose(1, 2), b.transpose(1, 2), mask)
        worst["maps"] = max(worst.get("maps", 0.0), by_token)
    if not case.config["add_cross_attention"]:
        contacts = ours.predict_contacts(ids, mask)
        worst["contacts"] = max_abs(contacts, peer.predict_contacts(ids, mask))
    return worst


@settings(max_examples=80)
@given(case=cases())
def test_any_shape(case: Case) -> None:
    found = differences(case)
    assert max(found.values()) <= TOLERANCE, found


ONE = Case(
    {
        "vocab_size": 20,
        "pad_token_id": 1,
        "mask_token_id": 5,
        "hidden_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 9,
        "max_position_embeddings": 20,
        "layer_norm_eps": 1e-3,
        "position_embedding_type": "absolute",
        "token_dropout": True,
        "emb_layer_norm_before": True,
        "is_decoder": True,
        "add_cross_attention": True,
    },
    lengths=[7, 3],
    masked=0.3,
    seed=0,
)


def other_epsilon(model: EsmForMaskedLM) -> None:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-12


def other_mask_token(model: EsmForMaskedLM) -> None:
    model.esm.embeddings.mask_token_id = 32


def no_norm_before(model: EsmForMaskedLM) -> None:
    model.esm.embeddings.layer_norm = None


def sees_ahead(model: EsmForMaskedLM) -> None:
    for layer in model.esm.encoder.layers:
        attention = layer.attention.self
        attention.explicit = partial(without_order, attention.explicit)


def without_order(explicit: Callable[..., Any], *arguments: Any, causal: bool) -> Any:
    assert causal
    return explicit(*arguments)


def sees_no_encoder(model: EsmForMaskedLM) -> None:
    for layer in model.esm.encoder.layers:
        layer.crossattention = None


@pytest.mark.parametrize(
    "mistake", [other_epsilon, other_mask_token, no_norm_before, sees_ahead, sees_no_encoder]
)
def test_twin_fails(mistake: Callable[[EsmForMaskedLM], None]) -> None:
    assert max(differences(ONE).values()) <= TOLERANCE
    assert max(differences(ONE, mistake).values()) > 10 * TOLERANCE
