"""Triangle updates against transformers, chunked, in place, with gradients; twins that fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esm_pipeline.footprint import PRODUCTS
from esm_pipeline.model.folding import triangle
from esm_pipeline.model.folding.triangle import TriangleMultiplication
from esm_pipeline.model.folding.trunk import TrunkBlock
from tests.oracles.folding_peers import TRUNK, trunks

TOLERANCE = 1e-12
"""In float64, over pairs that are there. Found: 1e-15."""

LENGTHS = [[1], [2], [13], [9, 4, 1]]
PARTS = ["tri_mul_out", "tri_mul_in", "tri_att_start", "tri_att_end"]
Blocks = tuple[nn.Module, TrunkBlock]


@pytest.fixture(scope="module")
def blocks() -> Blocks:
    peer, ours = trunks(num_blocks=1)
    return peer.blocks[0], ours.blocks[0]


def pairs(lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """A random pair representation and the mask (B, R) of its residues."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    z = torch.randn(
        len(lengths),
        longest,
        longest,
        TRUNK["pairwise_state_dim"],
        generator=generator,
        dtype=torch.float64,
    )
    return z, (torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)).long()


def difference(
    blocks: Blocks, part: str, lengths: list[int], rows: int, *, gradients: bool = False
) -> float:
    """The largest difference, over pairs that are there, from z and the peer's update."""
    z, mask = pairs(lengths, seed=len(lengths))
    there = mask[:, :, None] * mask[:, None]
    peer, ours = (getattr(block, part) for block in blocks)
    with torch.no_grad():
        wanted = z + peer(z, mask=there.double())
    with nullcontext() if gradients else torch.no_grad():
        found = ours(z.clone(), None if bool(mask.all()) else mask, rows)
    assert (wanted - z)[there.bool()].abs().max() > 0.05, "an update of nothing proves nothing"
    return float((found - wanted)[there.bool()].abs().max())


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_updates_are_the_peers(blocks: Blocks, part: str, lengths: list[int]):
    assert difference(blocks, part, lengths, max(lengths)) <= TOLERANCE
    assert difference(blocks, part, lengths, max(lengths), gradients=True) <= TOLERANCE


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("rows", [1, 4, 64])
def test_rows_at_once_change_nothing(blocks: Blocks, part: str, rows: int):
    assert difference(blocks, part, [9, 4, 1], rows) <= TOLERANCE


@pytest.mark.parametrize("part", PARTS[:2])
def test_channels_at_once_change_nothing(
    blocks: Blocks, part: str, monkeypatch: pytest.MonkeyPatch
):
    for numbers in (1, 200, 500):  # one channel of 9 × 9, two, six
        monkeypatch.setattr(triangle, "products_at_once", lambda device, n=numbers: n)
        assert difference(blocks, part, [9, 4, 1], 4) <= TOLERANCE


@pytest.mark.parametrize("part", PARTS)
def test_padding_reaches_no_residue(blocks: Blocks, part: str):
    """Whatever stands in the padding of z."""
    z, mask = pairs([6, 3])
    there = (mask[:, :, None] * mask[:, None]).bool()
    other = torch.where(there.unsqueeze(-1), z, 50.0)
    with torch.no_grad():
        first, second = (getattr(blocks[1], part)(x.clone(), mask, 4) for x in (z, other))
    assert torch.equal(first[there], second[there])


@pytest.mark.parametrize("part", PARTS)
def test_gradients_are_the_peers(blocks: Blocks, part: str):
    z, mask = pairs([7, 4])
    there = mask[:, :, None] * mask[:, None]
    peer, ours = (getattr(block, part) for block in blocks)
    first, second = z.clone().requires_grad_(), z.clone().requires_grad_()
    wanted = first + peer(first, mask=there.double())
    found = ours(second, mask, 7)
    for output in (wanted, found):
        output[there.bool()].square().sum().backward()
    assert (first.grad - second.grad).abs().max() <= 1e-10
    theirs = {name: p.grad.clone() for name, p in peer.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert (parameter.grad - theirs[name]).abs().max() <= 1e-10, name
    peer.zero_grad(), ours.zero_grad()


@contextmanager
def other_way(blocks: Blocks, patch: pytest.MonkeyPatch) -> Iterator[None]:
    block = blocks[1]
    for part in PARTS:
        name = "outgoing" if "mul" in part else "starting"
        patch.setattr(getattr(block, part), name, not getattr(getattr(block, part), name))
    yield


@contextmanager
def blind_to_mask(blocks: Blocks, patch: pytest.MonkeyPatch) -> Iterator[None]:
    patch.setattr(
        triangle, "pair_mask", lambda mask: torch.ones_like(mask[:, :, None] * mask[:, None])
    )
    patch.setattr(triangle, "HIDDEN", 0.0)
    original = Tensor.masked_fill
    patch.setattr(
        Tensor,
        "masked_fill",
        lambda x, where, value: x if value == 0 else original(x, where, value),
    )
    yield


@contextmanager
def unscaled(blocks: Blocks, patch: pytest.MonkeyPatch) -> Iterator[None]:
    attention, factors = F.scaled_dot_product_attention, TriangleMultiplication.factors
    patch.setattr(F, "scaled_dot_product_attention", lambda *given: attention(*given, scale=1.0))
    patch.setattr(
        TriangleMultiplication,
        "factors",
        lambda self, a, b: factors(self, 2 * a, b),
    )
    yield


@contextmanager
def open_gates(blocks: Blocks, patch: pytest.MonkeyPatch) -> Iterator[None]:
    for part in PARTS:
        module = getattr(blocks[1], part)
        module = module if "mul" in part else module.mha
        patch.setattr(module.linear_g, "forward", lambda x: x.new_ones(()))
    yield


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "twin", [other_way, blind_to_mask, unscaled, open_gates], ids=lambda twin: twin.__name__
)
def test_a_twin_fails(blocks: Blocks, part: str, twin, monkeypatch: pytest.MonkeyPatch):
    with twin(blocks, monkeypatch):
        assert difference(blocks, part, [9, 4, 1], 4) > 1e6 * TOLERANCE


def test_a_room_holds_what_anyone_works_on(blocks: Blocks):
    """What is left in it by others changes nothing, and it is worked in."""
    z, mask = pairs([9, 4, 1])
    for part in PARTS:
        update = getattr(blocks[1], part)
        buffer = triangle.work_buffer(z, 2 * z.shape[-1]).fill_(1e30)
        with torch.no_grad():
            alone, inside = update(z.clone(), mask, 4), update(z.clone(), mask, 4, None, buffer)
        assert torch.equal(alone, inside), part
        assert (buffer != 1e30).any(), part


def test_numbers_at_once_follow_threads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triangle.torch, "get_num_threads", lambda: 2)
    assert triangle.products_at_once(torch.device("cpu")) == 2 * PRODUCTS
    assert triangle.products_at_once(torch.device("meta")) == triangle.PRODUCTS_ELSEWHERE
