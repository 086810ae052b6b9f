"""The models that are measured: the true sizes of ESM-2, with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from esm_pipeline import EsmConfig, EsmForMaskedLM, EsmTokenizer

SIZES = {"8M": (6, 320, 20), "35M": (12, 480, 20), "150M": (30, 640, 20), "650M": (33, 1280, 20)}
"""Layers, width and heads."""

VOCABULARY = 33


def settings(size: str) -> dict[str, object]:
    """The config of a published ESM-2."""
    layers, width, heads = SIZES[size]
    return {
        "vocab_size": VOCABULARY,
        "mask_token_id": 32,
        "pad_token_id": 1,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "position_embedding_type": "rotary",
        "token_dropout": True,
        "layer_norm_eps": 1e-5,
    }


def write_checkpoint(size: str, folder: Path) -> Path:
    """A checkpoint that all peers read, and its tokenizer; the same at each call."""
    torch.manual_seed(0)
    EsmForMaskedLM(EsmConfig(**settings(size))).save_pretrained(folder)
    EsmTokenizer.standard().save_pretrained(folder)
    return folder


def operations(size: str, lengths: Sequence[int]) -> float:
    """Multiplications and additions that the logits of proteins of `lengths` residues cost.

    The products alone: projections and feed-forward, scores and sums of attention, and the head; of
    all tokens, BOS and EOS too, and of no padding.
    """
    layers, width, _ = SIZES[size]
    head = 2 * width * (width + VOCABULARY)
    tokens = [length + 2 for length in lengths]
    return float(sum((layers * (24 * width**2 + 4 * width * n) + head) * n for n in tokens))
