"""Attention of optimized models on the CPU: compared with plain softmax attention in float64."""

from __future__ import annotations

import math

import pytest
import torch

from esm_pipeline import EsmConfig, EsmForMaskedLM, optimize_for_inference
from esm_pipeline.model.inference import cpu_attention
from esm_pipeline.model.inference.cpu_attention import (
    CpuSelfAttention,
    attend_in_tiles,
    attend_joined,
    by_pairs,
    half_scale,
    mix_tiles,
    part_of,
)
from esm_pipeline.model.layout import PackedLayout
from esm_pipeline.model.rotary import rotary_frequencies, rotary_tables, rotate
from tests.oracles.peers import ESM1B, ESM2, SMALL, batch, enliven, max_abs

HEADS, WIDTH = 4, 6
LENGTHS = [1, 7, 7, 7, 40, 3, 0, 40]
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 0.05}


def softmax_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """(…, L, K) ×3 → (…, L, K), in float64."""
    q, k, v = q.double(), k.double(), v.double()
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v


def joined(lengths: list[int], scale: float = 1.0) -> tuple[torch.Tensor, PackedLayout]:
    """Queries, keys and values (T, 3 * H * K), and where each sequence lies."""
    torch.manual_seed(0)
    layout = PackedLayout.from_lengths(lengths)
    return torch.randn(layout.tokens, 3 * HEADS * WIDTH) * scale, layout


def one_by_one(qkv: torch.Tensor, layout: PackedLayout, rotary: bool) -> torch.Tensor:
    """What attention over `qkv`, half-split as in the reference, gives: (T, H * K) float64."""
    q, k, v = (part.unflatten(-1, (HEADS, WIDTH)) for part in qkv.double().chunk(3, -1))
    if rotary:
        tables = rotary_tables(layout.positions, rotary_frequencies(WIDTH), torch.float64)
        q, k = rotate(q, tables), rotate(k, tables)
    parts = [
        softmax_attention(*(x[start : start + length].transpose(0, 1) for x in (q, k, v)))
        for start, length in zip(layout.offsets, layout.lengths, strict=False)
    ]
    return torch.cat([part.transpose(0, 1).flatten(1) for part in parts])


def in_tiles(looks: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Attention of queries and keys in float32, weights in the values' dtype."""
    out = torch.full_like(values, torch.nan)
    attend_in_tiles(looks * half_scale(looks.shape[-1]), values, out)
    return out


@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize("rotary", [True, False])
def test_joined_attention_is_softmax_attention(rotary: bool, dtype: torch.dtype) -> None:
    qkv, layout = joined(LENGTHS)
    qkv = qkv.to(dtype)
    rotations = None
    given = qkv
    if rotary:
        tables = rotary_tables(layout.positions, rotary_frequencies(WIDTH), dtype)
        rotations, given = tables.rotations, qkv[:, by_pairs(HEADS, WIDTH)]
    found = attend_joined(given, rotations, layout, HEADS)
    assert found.dtype == dtype
    expected = one_by_one(qkv, layout, rotary)
    assert float((found - expected).abs().max()) <= BOUNDS[dtype]
    if rotary:  # the mistake that the order of the weights is there to avoid
        wrong = attend_joined(qkv, rotations, layout, HEADS)
        assert float((wrong - expected).abs().max()) > 10 * BOUNDS[dtype]


def test_the_given_projections_are_not_changed() -> None:
    qkv, layout = joined(LENGTHS)
    tables = rotary_tables(layout.positions, rotary_frequencies(WIDTH), torch.float32)
    before = qkv.clone()
    attend_joined(qkv, tables.rotations, layout, HEADS)
    assert torch.equal(qkv, before)


@pytest.mark.parametrize(("count", "length"), [(1, 5), (3, 100), (2, 700)])
@pytest.mark.parametrize("scores", [2**20, 2**14, 300])
def test_tiles_of_every_size(
    count: int, length: int, scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_attention, "SCORES_AT_ONCE", scores)
    torch.manual_seed(1)
    looks, values = torch.randn(2, count, 2, length, 8), torch.randn(count, 2, length, 8)
    expected = softmax_attention(*looks, values)
    found = in_tiles(looks, values)
    assert float((found - expected).abs().max()) <= 1e-5, "scores in float32 are exact"
    values = values.bfloat16()
    found = in_tiles(looks, values)
    assert float((found - expected).abs().max()) <= 0.05


@pytest.mark.parametrize("largest", [1, 20, 139, 500])
def test_large_scores_lose_nothing(largest: float) -> None:
    """In bfloat16, which has 8 bits, scores of 139 would be off by half of 1, and weights by as
    much: what is left are the roundings of weights, of their sums and of what they make."""
    qkv, layout = joined([100])
    q, k, v = (part.view(100, HEADS, WIDTH).transpose(0, 1) for part in qkv.chunk(3, -1))
    scores = q @ k.transpose(-1, -2) * WIDTH**-0.5
    qkv[:, : 2 * HEADS * WIDTH] *= (largest / float(scores.abs().max())) ** 0.5
    qkv = qkv.bfloat16()
    expected = one_by_one(qkv, layout, rotary=False)
    bound = 4 * 2**-9 * float(v.abs().max())
    found = attend_joined(qkv, None, layout, HEADS)
    assert float((found - expected).abs().max()) <= bound
    # the mistake: scores rounded before the exponential
    q, k, v = (part.view(100, HEADS, WIDTH).transpose(0, 1) for part in qkv.float().chunk(3, -1))
    rounded = (q @ k.transpose(-1, -2) * half_scale(WIDTH) ** 2).bfloat16().double()
    wrong = (rounded * math.log(2)).softmax(-1) @ v.double()
    wrong = wrong.transpose(0, 1).flatten(1)
    assert (float((wrong - expected).abs().max()) > bound) == (largest >= 20)


@pytest.mark.parametrize("sign", [1, -1])
def test_scores_beyond_what_exponentials_hold(sign: int) -> None:
    """All scores of a query some hundreds above zero, or below."""
    torch.manual_seed(2)
    looks, values = torch.randn(2, 1, 2, 50, 8), torch.randn(1, 2, 50, 8)
    looks[0] += 40
    looks[1] += 40 * sign
    expected = softmax_attention(*looks, values)
    found = in_tiles(looks, values)
    assert float((found - expected).abs().max()) <= 1e-3
    queries, keys = (looks * half_scale(8)).view(2, 2, 50, 8)
    with_ones = torch.cat((values[0], torch.ones(2, 50, 1)), -1)
    mixed = mix_tiles(queries, keys.transpose(1, 2), with_ones, shift=False)
    plain = mixed[..., :8] / mixed[..., 8:]
    assert not float((plain - expected[0]).abs().max()) <= 1e-3, "so there are two ways"


def test_what_is_no_number_stays_none() -> None:
    looks, values = torch.randn(2, 1, 1, 9, 8), torch.randn(1, 1, 9, 8)
    looks[0, 0, 0, 4, 0] = torch.nan
    found = in_tiles(looks, values)[0, 0]
    assert found[4].isnan().all()
    assert found[[0, 1, 2, 3, 5, 6, 7, 8]].isfinite().all()


def test_parts_divide() -> None:
    assert [part_of(20, most) for most in (0, 1, 3, 7, 19, 20, 99)] == [1, 1, 2, 5, 10, 20, 20]
    assert part_of(7, 6) == 1


@pytest.mark.parametrize("kind", [ESM2, ESM1B], ids=["ESM-2", "ESM-1b"])
def test_in_a_model(kind: dict[str, object]) -> None:
    """Holes in the mask, heads pruned or masked, maps: the numbers of the original."""
    torch.manual_seed(3)
    model = EsmForMaskedLM(EsmConfig(**SMALL, **kind))
    enliven(model)
    model.esm.prune_heads({0: [1]})
    tokens, mask = batch([30, 12, 30, 30], masked=0.1)
    mask[0, 5:9] = 0
    fast = optimize_for_inference(model)
    assert all(isinstance(one.attention.self, CpuSelfAttention) for one in fast.esm.encoder.layers)
    masks = torch.ones(SMALL["num_attention_heads"])
    masks[2] = 0.5
    for options in ({}, {"output_attentions": True}, {"head_mask": masks}):
        with torch.inference_mode():
            expected, found = (one(tokens, mask, **options) for one in (model, fast))
        assert max_abs(found.logits, expected.logits, mask) <= 2e-5
        if options.get("output_attentions"):
            for one, other in zip(found.attentions, expected.attentions, strict=True):
                assert float((one - other).abs().max()) <= 1e-5
