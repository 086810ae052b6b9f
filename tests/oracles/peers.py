"""Peers with random weights, and the same weights in our classes. Peers: transformers, fair-esm.

Every comparison is the largest absolute difference over real tokens, never a cosine: leaving out
the token-dropout factor still gives cosine 0.9998.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import esm
import torch
import transformers
from torch import Tensor, nn

from esm_pipeline import EsmConfig, EsmForMaskedLM
from esm_pipeline.model.checkpoints.weights import reference_state

TOLERANCE = 1e-5
FIRST_RESIDUE, LAST_RESIDUE = 4, 24
CLS, PAD, EOS, MASK = 0, 1, 2, 32
SMALL = {
    "vocab_size": 33,
    "mask_token_id": MASK,
    "pad_token_id": PAD,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "layer_norm_eps": 1e-5,
}
ESM2 = {"position_embedding_type": "rotary", "token_dropout": True, "emb_layer_norm_before": False}
ESM1B = {
    "position_embedding_type": "absolute",
    "token_dropout": True,
    "emb_layer_norm_before": True,
}
ESM1V = {**ESM1B, "emb_layer_norm_before": False}
KINDS = {"ESM-2": ESM2, "ESM-1b": ESM1B, "ESM-1v": ESM1V}


def enliven(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights at which every part matters: spread, with norms and biases off their defaults."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        is_norm = parameter.ndim == 1 and name.endswith("weight")
        value = 1 + 0.2 * noise if is_norm else 0.15 * noise
        parameter.data.copy_(value)
    return model.eval()


def transformers_peer(dtype: torch.dtype, **settings: object) -> nn.Module:
    """A transformers EsmForMaskedLM with lively random weights, attention maps at hand."""
    config = transformers.EsmConfig(**{**SMALL, **settings}, attn_implementation="eager")
    return enliven(transformers.EsmForMaskedLM(config)).to(dtype)


def ours_like(peer: nn.Module, folder: Path) -> EsmForMaskedLM:
    """Our model loaded from what the transformers peer saves, in its precision."""
    peer.save_pretrained(folder)
    return EsmForMaskedLM.from_pretrained(folder, dtype=next(peer.parameters()).dtype)


def fair_esm2(dtype: torch.dtype) -> nn.Module:
    """A fair-esm ESM-2 of the small shape with lively random weights."""
    model = esm.model.esm2.ESM2(
        num_layers=SMALL["num_hidden_layers"],
        embed_dim=SMALL["hidden_size"],
        attention_heads=SMALL["num_attention_heads"],
        token_dropout=True,
    )
    return enliven(model).to(dtype)


def fair_esm1b(dtype: torch.dtype) -> nn.Module:
    """A fair-esm ESM-1b of the small shape with lively random weights."""
    arguments = argparse.Namespace(
        arch="roberta_large",
        layers=SMALL["num_hidden_layers"],
        embed_dim=SMALL["hidden_size"],
        ffn_embed_dim=4 * SMALL["hidden_size"],
        attention_heads=SMALL["num_attention_heads"],
        max_positions=1024,
        emb_layer_norm_before=True,
        token_dropout=True,
    )
    alphabet = esm.data.Alphabet.from_architecture("ESM-1b")
    return enliven(esm.model.esm1.ProteinBertModel(arguments, alphabet)).to(dtype)


FAIR_NAMES = {
    "esm.embeddings.word_embeddings": "embed_tokens",
    "esm.embeddings.position_embeddings": "embed_positions",
    "esm.embeddings.layer_norm": "emb_layer_norm_before",
    "esm.encoder.emb_layer_norm_after": "emb_layer_norm_after",
    "esm.contact_head": "contact_head",
    "attention.self.query": "self_attn.q_proj",
    "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.out_proj",
    "attention.LayerNorm": "self_attn_layer_norm",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "LayerNorm": "final_layer_norm",
    "esm.encoder.layer": "layers",
}


def fair_name(key: str) -> str:
    """The reference's key as fair-esm spells it."""
    for ours, theirs in FAIR_NAMES.items():
        key = key.replace(ours, theirs)
    return key


def ours_like_fair(peer: nn.Module, folder: Path, **settings: object) -> EsmForMaskedLM:
    """Our model with the weights of a fair-esm peer."""
    config = EsmConfig(**{**SMALL, "intermediate_size": 4 * SMALL["hidden_size"], **settings})
    dtype = next(peer.parameters()).dtype
    shaped = reference_state(EsmForMaskedLM(config))
    theirs = peer.state_dict()
    folder.mkdir(exist_ok=True)
    known = {key: theirs[fair_name(key)] for key in shaped if fair_name(key) in theirs}
    torch.save(known, folder / "pytorch_model.bin")
    config.save_pretrained(folder)
    return EsmForMaskedLM.from_pretrained(folder, dtype=dtype)


def batch(lengths: Iterable[int], *, masked: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random proteins of `lengths` residues, some masked: tokens and attention mask, (B, L)."""
    generator = torch.Generator().manual_seed(seed)
    lengths = list(lengths)
    tokens = torch.full((len(lengths), max(lengths) + 2), PAD)
    for row, length in zip(tokens, lengths, strict=True):
        row[: length + 2] = torch.randint(
            FIRST_RESIDUE, LAST_RESIDUE, (length + 2,), generator=generator
        )
        row[1 : length + 1][torch.rand(length, generator=generator) < masked] = MASK
        row[0], row[length + 1] = CLS, EOS
    return tokens, (tokens != PAD).long()


def max_abs(found: Tensor, expected: Tensor, where: Tensor | None = None) -> float:
    """Largest absolute difference, over the places where `where` is true; never of nothing."""
    assert found.shape == expected.shape
    difference = (found.detach().double() - expected.detach().double()).abs()
    if where is not None:
        assert where.any(), "a comparison of nothing proves nothing"
        difference = difference[where.bool()]
    assert difference.numel() > 0, "a comparison of nothing proves nothing"
    return float(difference.max())
