"""The models' layers once more, as plain as can be: one sequence, one head, one pair at a time.

For what no peer can do: relative and rotary positions with a cache or an encoder. Rotation is a
product of complex numbers here, and a distance is looked up for each pair.
"""

from __future__ import annotations

import cmath

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esm_pipeline import EsmModel
from esm_pipeline.model.layer import EsmLayer


def states(model: EsmModel, x: Tensor, places: list[int], encoder: Tensor | None = None) -> Tensor:
    """Embedded tokens (L, D) at `places`, and an encoder's states (S, D) → last states (L, D)."""
    for layer in model.encoder.layers:
        x = x + attention(model, layer, x, places)
        if encoder is not None:
            x = x + cross_attention(model, layer, x, encoder)
        fed = linear(layer.intermediate.dense, layer.LayerNorm(x))
        gelu = fed * 0.5 * (1 + torch.erf(fed / 2**0.5))
        x = x + linear(layer.output.dense, gelu)
    return model.encoder.emb_layer_norm_after(x)


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """A layer without its module."""
    return F.linear(x, layer.weight, layer.bias)


def attention(model: EsmModel, layer: EsmLayer, x: Tensor, places: list[int]) -> Tensor:
    """What self-attention adds, (L, D)."""
    normed, inner = layer.attention.LayerNorm(x), layer.attention.self
    q, k, v = (linear(one, normed) for one in (inner.query, inner.key, inner.value))
    length, heads = len(places), model.config.num_attention_heads
    columns = []
    for qh, kh, vh in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
        scores = torch.full((length, length), -torch.inf, dtype=x.dtype)
        for i in range(length):
            for j in range(length):
                if j <= i or not model.config.is_decoder:
                    scores[i, j] = score(model, layer, qh[i], kh[j], places[i], places[j])
        columns.append(scores.softmax(-1) @ vh)
    return linear(layer.attention.output.dense, torch.cat(columns, -1))


def score(model: EsmModel, layer: EsmLayer, q: Tensor, k: Tensor, at: int, of: int) -> Tensor:
    """How much a query at one place looks at a key at another."""
    kind, scale = model.config.position_embedding_type, len(q) ** -0.5
    if kind == "rotary":
        return (turned(q, at) * turned(k, of).conj()).real.sum() * scale
    found = (q * k).sum() * scale
    if kind.startswith("relative"):
        e = layer.attention.self.distance_embedding.weight[
            at - of + model.config.max_position_embeddings - 1
        ]
        found = found + (q * e).sum() * scale
        if kind == "relative_key_query":
            found = found + (k * e).sum()
    return found


def turned(vector: Tensor, place: int) -> Tensor:
    """Pairs (i, i + K/2) as complex numbers, turned by their angles; (K / 2,)."""
    half = len(vector) // 2
    slow = torch.tensor(10_000.0) ** (torch.arange(0, 2 * half, 2).float() / (2 * half))
    turns = [cmath.exp(1j * place * float(frequency)) for frequency in 1.0 / slow]
    return torch.complex(vector[:half], vector[half:]) * torch.tensor(turns, dtype=torch.complex128)


def cross_attention(model: EsmModel, layer: EsmLayer, x: Tensor, encoder: Tensor) -> Tensor:
    """What attention to an encoder's states adds, (L, D): no positions."""
    cross, heads = layer.crossattention, model.config.num_attention_heads
    q = linear(cross.self.query, cross.LayerNorm(x))
    k, v = linear(cross.self.key, encoder), linear(cross.self.value, encoder)
    columns = [
        (qh @ kh.T * qh.shape[1] ** -0.5).softmax(-1) @ vh
        for qh, kh, vh in zip(
            q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True
        )
    ]
    return linear(cross.output.dense, torch.cat(columns, -1))
