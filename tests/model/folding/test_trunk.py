"""The folding trunk against transformers: its parts, recycles, chunks, and training by seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esm_pipeline.errors import InputError
from esm_pipeline.footprint import ELEMENTS
from esm_pipeline.model.folding import trunk
from esm_pipeline.model.folding.trunk import (
    FoldingTrunk,
    RelativePosition,
    SequenceToPair,
    TrunkBlock,
    distance_bins,
    rows_at_once,
)
from tests.oracles.folding_peers import TRUNK, all_double, gapped, proteins, trunks
from tests.oracles.structure_peers import Largest

TOLERANCE = 1e-11
"""In float64, over residues, coordinates in Å among them. Found: 7e-14."""

LENGTHS = [[1], [2], [13], [11, 1, 6]]
Trunks = tuple[nn.Module, FoldingTrunk]
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def pair() -> Trunks:
    return trunks()


def inputs(lengths: list[int], seed: int = 0) -> Inputs:
    """Random s, z, residues and mask of a padded batch."""
    generator = torch.Generator().manual_seed(seed)
    aatype, mask = proteins(lengths, seed)
    batch, longest = mask.shape
    s, z = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in (
            (batch, longest, TRUNK["sequence_state_dim"]),
            (batch, longest, longest, TRUNK["pairwise_state_dim"]),
        )
    )
    return s, z, aatype, mask


def where(name: str, mask: Tensor) -> Any:
    """Indices of what of a field is of residues."""
    if name == "s_z":
        return (mask[:, :, None] * mask[:, None]).bool()
    return mask.bool() if name == "s_s" else (slice(None), mask.bool())


FIELDS = ("s_s", "s_z", "states", "angles", "positions")


def differences(
    pair: Trunks, lengths: list[int], num_recycles: int | None, *, gradients: bool = False
) -> dict[str, float]:
    """The largest difference from the peer in each field, over residues."""
    peer, ours = pair
    s, z, aatype, mask = inputs(lengths, sum(lengths))
    numbers = gapped(mask)
    with torch.set_grad_enabled(gradients):
        with all_double():
            wanted = peer(s, z, aatype, numbers, mask, no_recycles=num_recycles)
        padded = None if bool(mask.all()) else mask
        found = ours(s.clone(), z.clone(), aatype, numbers, padded, num_recycles)
    off = {}
    for name in FIELDS:
        place = where(name, mask)
        off[name] = float((found[name][place] - wanted[name][place]).detach().abs().max())
    return off


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("num_recycles", [None, 0, 1, 2, 3])
def test_every_field_is_the_peers(pair: Trunks, lengths: list[int], num_recycles: int | None):
    assert max(differences(pair, lengths, num_recycles).values()) <= TOLERANCE


@pytest.mark.parametrize("chunk_size", [1, 4, 64])
@pytest.mark.parametrize("gradients", [False, True])
def test_chunks_change_nothing(pair: Trunks, chunk_size: int, gradients: bool):
    pair[1].set_chunk_size(chunk_size)
    try:
        off = differences(pair, [11, 1, 6], 1, gradients=gradients)
    finally:
        pair[1].set_chunk_size(None)
    assert max(off.values()) <= TOLERANCE


def test_the_callers_pairs_are_left_alone(pair: Trunks):
    s, z, aatype, _ = inputs([7])
    copies = s.clone(), z.clone()
    with torch.no_grad():
        pair[1](s, z, aatype, torch.arange(7)[None], None, 1)
    assert torch.equal(s, copies[0])
    assert torch.equal(z, copies[1])


def test_no_start_is_one_of_zeros(pair: Trunks):
    s, z, aatype, mask = inputs([7, 4])
    with torch.no_grad():
        first, second = (
            pair[1](s, start, aatype, gapped(mask), mask, 1)
            for start in (None, torch.zeros_like(z))
        )
    for name in FIELDS:
        assert torch.equal(first[name], second[name])


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("num_recycles", [0, 1, 2])
def test_training_by_seed(chunk_size: int | None, num_recycles: int):
    """Same draws of dropout in the same places, passes without gradients among them."""
    pair = trunks(dropout=0.2, chunk_size=chunk_size)
    assert training_apart(pair, num_recycles) == []


def training_apart(pair: Trunks, num_recycles: int) -> list[str]:
    """Fields and gradients that differ from the peer's, in training with one seed."""
    peer, ours = pair
    s, z, aatype, mask = inputs([9, 5])
    outputs = []
    for model, recycles in ((peer, "no_recycles"), (ours, "num_recycles")):
        model.train()
        model.structure_module.eval()  # whose dropout draws in another order
        torch.manual_seed(5)
        with all_double():
            output = model(s, z, aatype, gapped(mask), mask, **{recycles: num_recycles})
        outputs.append(output)
        sum(output[name][where(name, mask)].square().mean() for name in FIELDS).backward()
    wanted, found = outputs
    wrong = [
        name
        for name in FIELDS
        if (wanted[name] - found[name])[where(name, mask)].abs().max() > TOLERANCE
    ]
    theirs = dict(peer.named_parameters())
    for name, parameter in ours.named_parameters():
        other = theirs[name].grad
        assert (parameter.grad is None) == (other is None), name
        if other is not None:
            scale = max(1.0, float(other.abs().max()))
            if (parameter.grad - other).abs().max() > 1e-10 * scale:
                wrong.append(name)
    assert sum(p.grad is not None for p in ours.parameters()) > 100
    return wrong


def test_a_twin_with_rows_and_columns_swapped_fails(monkeypatch: pytest.MonkeyPatch):
    shared = TrunkBlock.shared
    monkeypatch.setattr(TrunkBlock, "shared", lambda self, dimension: shared(self, 3 - dimension))
    assert {"s_z", "positions"} <= set(training_apart(trunks(dropout=0.2), 0))


def test_a_twin_that_drops_nothing_while_it_recycles_fails(monkeypatch: pytest.MonkeyPatch):
    shared = TrunkBlock.shared
    monkeypatch.setattr(
        TrunkBlock,
        "shared",
        lambda self, dimension: shared(self, dimension) if torch.is_grad_enabled() else None,
    )
    assert not training_apart(trunks(dropout=0.2), 0)
    assert {"s_z", "positions"} <= set(training_apart(trunks(dropout=0.2), 1))


def test_evaluation_drops_nothing():
    pair = trunks(dropout=0.2)
    assert max(differences(pair, [9], 1).values()) <= TOLERANCE


# --- parts ---


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_parts_of_a_block_are_the_peers(pair: Trunks, lengths: list[int]):
    theirs, ours = (one.blocks[0] for one in pair)
    s, z, _, mask = inputs(lengths)
    rows = 4
    with torch.no_grad():
        found = ours.sequence_to_pair(s, z.clone(), rows)
        assert (found - z - theirs.sequence_to_pair(s)).abs().max() <= TOLERANCE
        bias = theirs.pair_to_sequence(z)
        own = ours.pair_to_sequence(z, rows)
        assert (own - bias.permute(0, 3, 1, 2)).abs().max() <= TOLERANCE
        wanted, _ = theirs.seq_attention(s, mask=mask, bias=bias)
        hidden = own.masked_fill(~mask.bool()[:, None, None], -torch.inf)
        attended = ours.seq_attention(s, hidden)
        assert (attended - wanted)[mask.bool()].abs().max() <= TOLERANCE
        for name, x in (("mlp_seq", s), ("mlp_pair", z)):
            added = getattr(ours, name)(x)
            assert (x + added - getattr(theirs, name)(x)).abs().max() <= TOLERANCE


@pytest.mark.parametrize("gradients", [False, True])
def test_a_block_is_the_peers(pair: Trunks, gradients: bool):
    theirs, ours = (one.blocks[1] for one in pair)
    s, z, _, mask = inputs([11, 4])
    with torch.set_grad_enabled(gradients):
        wanted = theirs(s, z, mask=mask)
        found = ours(s.clone(), z.clone(), mask, 3)
    for name, one, other in zip(("s_s", "s_z"), found, wanted, strict=True):
        assert (one - other)[where(name, mask)].abs().max() <= TOLERANCE


def relative_positions(pair: Trunks, lengths: list[int]) -> float:
    _, _, _, mask = inputs(lengths)
    numbers = gapped(mask)
    with torch.no_grad():
        wanted = pair[0].pairwise_positional_embedding(numbers, mask=mask)
        parts = [
            pair[1].pairwise_positional_embedding(numbers, mask, slice(start, start + 4))
            for start in range(0, max(lengths), 4)
        ]
    return float((torch.cat(parts, 1) - wanted).abs().max())


def test_relative_positions_are_the_peers(pair: Trunks, monkeypatch: pytest.MonkeyPatch):
    for lengths in LENGTHS:
        assert relative_positions(pair, lengths) == 0
    forward = RelativePosition.forward
    monkeypatch.setattr(
        RelativePosition, "forward", lambda self, numbers, *more: forward(self, -numbers, *more)
    )
    assert relative_positions(pair, [13]) > 0.1


def test_distance_bins_are_the_peers(pair: Trunks):
    generator = torch.Generator().manual_seed(1)
    alphas = torch.randn(2, 60, 1, 3, generator=generator) * 7
    backbone = alphas + torch.randn(2, 60, 3, 3, generator=generator)
    wanted = pair[0].distogram(backbone, 3.375, 21.375, 15)
    found = distance_bins(backbone)
    assert torch.equal(found, wanted)
    assert set(found.unique().tolist()) == set(range(15))


def test_a_distance_on_an_edge_is_of_the_bin_below():
    """An edge is where the peer's `>` is not true yet: 4.5 Å, squared, is the first but one."""
    edges = torch.linspace(3.375, 21.375, 14, dtype=torch.float64)
    for number, edge in enumerate(edges):
        line = torch.zeros(1, 2, 3, 3, dtype=torch.float64)  # N, CA and C at one place
        line[0, 1, :, 0] = edge
        assert distance_bins(line)[0, 0, 1] == number
        line[0, 1, :, 0] = edge * (1 + 1e-12)
        assert distance_bins(line)[0, 0, 1] == number + 1


def test_sequence_to_pair_needs_nothing_wide(pair: Trunks):
    """The peer makes 2 (R, R, Z); beside z, only rows of weights are here."""
    s, z, _, _ = inputs([24])
    part: SequenceToPair = pair[1].blocks[0].sequence_to_pair
    with torch.no_grad(), Largest() as largest:
        part(s, z, 1)
    assert largest.numbers <= z.numel()


def test_a_negative_number_of_recycles_is_told(pair: Trunks):
    s, z, aatype, mask = inputs([3])
    with pytest.raises(InputError, match="num_recycles is -2; give 0 or more"):
        pair[1](s, z, aatype, gapped(mask), None, -2)


def test_rows_follow_length_and_threads(monkeypatch: pytest.MonkeyPatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(trunk.torch, "get_num_threads", lambda: 2)
    assert rows_at_once((1, 64, 64, 128), cpu) == 2 * ELEMENTS // (64 * 128)
    assert rows_at_once((4, 64, 64, 128), cpu) == 2 * ELEMENTS // (4 * 64 * 128)
    assert rows_at_once((1, 10**6, 10**6, 128), cpu) == 1
    assert rows_at_once((1, 64, 64, 128), torch.device("meta")) > 64


def test_blocks_share_a_room_where_memory_is_not_scarce(pair: Trunks):
    _, z, _, _ = inputs([7])
    ours = pair[1]
    with torch.no_grad():
        buffer = ours.shared_buffer(z)
        assert buffer is not None
        assert buffer.shape == (1, 2 * TRUNK["pairwise_state_dim"], 7, 7)
        assert ours.shared_buffer(z.to("meta")) is None
        ours.set_chunk_size(4)
        try:
            assert ours.shared_buffer(z) is None
        finally:
            ours.set_chunk_size(None)
    assert ours.shared_buffer(z) is None, "with gradients nothing is overwritten"
