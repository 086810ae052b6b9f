"""The structure module against transformers, its symmetries, and twins with one mistake each."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from unittest import mock

import pytest
import torch
from torch import Tensor
from transformers.models.esm.modeling_esmfold import EsmFoldLinear

from esm_pipeline.model.folding import structure_module
from esm_pipeline.model.folding.linear import Linear
from esm_pipeline.model.folding.rigid import Frames, from_quaternions
from esm_pipeline.model.folding.structure_module import (
    InvariantPointAttention,
    StructureModule,
)
from tests.oracles.structure_peers import (
    SMALL,
    Largest,
    StructureModuleConfig,
    full_precision,
    inputs,
    structure_modules,
)

LENGTHS = [[1], [2], [13], [40, 7, 1], [9, 9]]
TOLERANCE = 1e-11
"""In float64, for residues: Å of coordinates up to 30, and all else. Found: 5e-14."""

OF_PADDING = 1e-3
"""Weight of differences in padding, whose scores are all 10⁵ lower and so rounded more."""


def differences(lengths: list[int], seed: int = 0, **settings: int) -> dict[str, float]:
    """The largest difference from the peer in each field; padding counts a thousandth."""
    peer, ours = structure_modules(seed=seed, **settings)
    representations, aatype, mask = inputs(lengths, seed, **settings)
    with torch.no_grad(), full_precision():
        wanted = peer(dict(representations), aatype, mask)
    with torch.no_grad():
        found = ours(representations, aatype, mask)
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert value.shape == wanted[name].shape, name
        assert value.dtype == torch.float64, name
        assert value.abs().max() > 0, name
    off = {}
    for name, value in found.items():
        apart = (value - wanted[name]).abs()
        by_residue = apart.flatten(2 if name == "single" else 3).amax(-1)  # (…, B, R)
        off[name] = (by_residue * (mask + OF_PADDING * (1 - mask))).max().item()
    return off


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_every_output_is_the_peers(lengths: list[int]):
    assert max(differences(lengths, seed=len(lengths)).values()) <= TOLERANCE


@pytest.mark.parametrize(
    "settings",
    [
        {"num_blocks": 1, "num_transition_layers": 3, "num_resnet_blocks": 1},
        {"num_heads_ipa": 1, "num_qk_points": 1, "num_v_points": 2, "ipa_dim": 5},
        {"trans_scale_factor": 3, "inf": 10.0, "epsilon": 1e-2, "pairwise_dim": 6},
    ],
    ids=str,
)
def test_every_setting_is_the_peers(settings: dict[str, int]):
    assert max(differences([11, 5], **settings).values()) <= TOLERANCE


def test_without_a_mask_nothing_is_hidden():
    _, ours = structure_modules()
    representations, aatype, mask = inputs([6, 6])
    found, wanted = ours(representations, aatype), ours(representations, aatype, mask)
    assert torch.equal(found["positions"], wanted["positions"])


def test_names_and_shapes_of_weights_are_the_peers_both_ways():
    peer, ours = structure_modules()
    theirs, own = peer.state_dict(), ours.state_dict()
    assert {key: value.shape for key, value in own.items()} == {
        key: value.shape for key, value in theirs.items()
    }
    peer.load_state_dict(own)


def inside_out(self: InvariantPointAttention, flat: Tensor, frames: Frames) -> Tensor:
    points = flat.unflatten(-1, (self.heads, -1, 3))  # x, y and z of a point side by side
    return frames[..., None, None].apply(points)


def unplaced(self: InvariantPointAttention, flat: Tensor, frames: Frames) -> Tensor:
    return flat.unflatten(-1, (3, self.heads, -1)).movedim(2, -1)


def without_distance(ipa: type, original: Callable) -> Callable:
    def twin(self, s, frames):
        query, key, value = original(self, s, frames)
        return query, torch.cat([key[..., :-1], key[..., -1:] * 0], dim=-1), value

    return twin


def blind_to_mask(ipa: type, original: Callable) -> Callable:
    return lambda self, z, mask: original(self, z, torch.ones_like(mask))


def heavier_pairs(ipa: type, original: Callable) -> Callable:
    return lambda self, z, mask: original(self, z * 3**0.5, mask)


TWINS = {
    "points laid out by point": ("to_global", lambda ipa, original: inside_out),
    "points left inside": ("to_global", lambda ipa, original: unplaced),
    "without the length of key points": ("queries_keys_values", without_distance),
    "blind to the mask": ("bias", blind_to_mask),
    "pairs not scaled": ("bias", heavier_pairs),
}


@pytest.mark.parametrize("mistake", TWINS)
def test_a_twin_of_the_attention_fails(mistake: str, monkeypatch: pytest.MonkeyPatch):
    name, make = TWINS[mistake]
    original = getattr(InvariantPointAttention, name)
    monkeypatch.setattr(InvariantPointAttention, name, make(InvariantPointAttention, original))
    assert max(differences([13, 5]).values()) > 1e6 * TOLERANCE


def test_a_twin_that_turns_before_it_moves_fails(monkeypatch: pytest.MonkeyPatch):
    original = structure_module.from_quaternions
    monkeypatch.setattr(
        structure_module,
        "from_quaternions",
        lambda q, t: original(q * torch.tensor([1.0, -1, 1, 1]), t),
    )
    assert max(differences([13, 5]).values()) > 1e6 * TOLERANCE


def gradients(module: torch.nn.Module, lengths: list[int]) -> dict[str, Tensor]:
    """Of one number that depends on all outputs, for every weight and both representations."""
    representations, aatype, mask = inputs(lengths)
    leaves = {name: value.requires_grad_() for name, value in representations.items()}
    outputs = module.train()(dict(leaves), aatype, mask)
    generator = torch.Generator().manual_seed(1)
    total = sum(
        (value * torch.randn(value.shape, generator=generator, dtype=torch.float64)).sum()
        for _, value in sorted(outputs.items())
    )
    total.backward()
    leaves.update(module.named_parameters())
    return {name: leaf.grad for name, leaf in leaves.items()}


def gradient_difference(lengths: list[int], mistake: AbstractContextManager | None = None) -> float:
    """The largest, against the weight's largest gradient; where that is nothing, against 1."""
    peer, ours = structure_modules()
    with full_precision():
        wanted = gradients(peer, lengths)
    with mistake or nullcontext():
        found = gradients(ours, lengths)
    assert found.keys() == wanted.keys()
    return max(
        ((found[name] - value).abs().max() / value.abs().max().clamp(min=1)).item()
        for name, value in wanted.items()
    )


def test_gradients_are_the_peers():
    assert gradient_difference([12, 5]) <= 1e-9


def test_a_twin_with_gradients_through_earlier_turns_fails():
    mistake = mock.patch.object(Tensor, "detach", lambda self: self)
    assert gradient_difference([12, 5], mistake) > 1e-4


def motion(seed: int = 3) -> Frames:
    generator = torch.Generator().manual_seed(seed)
    quaternion = torch.randn(1, 1, 4, generator=generator, dtype=torch.float64)
    shift = torch.randn(1, 1, 3, generator=generator, dtype=torch.float64)
    return from_quaternions(torch.nn.functional.normalize(quaternion, dim=-1), 10 * shift)


def attended(ours: StructureModule, frames: Frames) -> Tensor:
    representations, _, mask = inputs([11, 8])
    bias = ours.ipa.bias(representations["pair"], mask)
    return ours.ipa(representations["single"], representations["pair"], bias, frames)


def test_attention_does_not_see_where_the_whole_stands():
    _, ours = structure_modules()
    generator = torch.Generator().manual_seed(5)
    quaternions = torch.randn(2, 11, 4, generator=generator, dtype=torch.float64)
    quaternions = torch.nn.functional.normalize(quaternions, dim=-1)
    frames = from_quaternions(
        quaternions, torch.randn(2, 11, 3, generator=generator, dtype=torch.float64)
    )
    still = attended(ours, frames)
    assert (attended(ours, motion().compose(frames)) - still).abs().max() <= 1e-10
    mirrored = Frames(frames.rotation, frames.translation * torch.tensor([1.0, 1.0, -1.0]))
    assert (attended(ours, mirrored) - still).abs().max() > 1e-3
    assert (attended(ours, frames[:, [1, 0, *range(2, 11)]]) - still).abs().max() > 1e-3


def test_rounding_does_not_grow_with_the_distance_from_the_origin():
    """In float32, 2,560 Å away: squares of such coordinates would round by tenths."""
    _, ours = structure_modules(torch.float32)
    representations, _, mask = inputs([11], dtype=torch.float32)
    bias = ours.ipa.bias(representations["pair"], mask)
    spread = torch.randn(1, 11, 3, generator=torch.Generator().manual_seed(0))
    turn = torch.eye(3).expand(1, 11, 3, 3)
    near, far = (
        ours.ipa(*representations.values(), bias, Frames(turn, spread + shift))
        for shift in (0.0, 256.0)
    )
    assert (near - far).abs().max() <= 2e-5 * near.abs().max()


def test_residues_may_come_in_any_order():
    _, ours = structure_modules()
    representations, aatype, mask = inputs([9, 6])
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    single, pair = (
        representations["single"][:, order],
        representations["pair"][:, order][:, :, order],
    )
    found = ours({"single": single, "pair": pair}, aatype[:, order], mask[:, order])
    wanted = ours(representations, aatype, mask)
    for name in ("frames", "positions", "angles"):
        assert (found[name] - wanted[name][:, :, order]).abs().max() <= 1e-10, name


def test_padding_changes_nothing():
    _, ours = structure_modules()
    representations, aatype, mask = inputs([12, 5])
    padded = ours(representations, aatype, mask)
    single, pair = representations["single"][1:, :5], representations["pair"][1:, :5, :5]
    alone = ours({"single": single, "pair": pair}, aatype[1:, :5])
    for name in ("frames", "positions", "angles", "states"):
        assert (padded[name][:, 1:, :5] - alone[name]).abs().max() <= 1e-10, name


def test_no_more_is_held_for_a_pair_than_the_pair_itself():
    """The peer holds 3 H P numbers for each: 45 here, where the pair representation has 16."""
    peer, ours = structure_modules()
    representations, aatype, mask = inputs([64])
    largest = max(SMALL["pairwise_dim"], SMALL["num_heads_ipa"])
    with torch.no_grad(), Largest() as found:
        ours(representations, aatype, mask)
    assert found.numbers == largest * 64**2
    with torch.no_grad(), Largest() as theirs:
        peer(dict(representations), aatype, mask)
    assert theirs.numbers > 2 * found.numbers


def test_rounding_in_float32_is_as_small_as_the_peers():
    published = StructureModuleConfig(dropout_rate=0.0).to_dict()
    settings = {name: published[name] for name in SMALL}
    peer, ours = structure_modules(**settings)
    representations, aatype, mask = inputs([48], **settings)
    with torch.no_grad():
        exact = ours(representations, aatype, mask)["positions"]
        halves = {name: value.float() for name, value in representations.items()}
        found = ours.float()(halves, aatype, mask.float())["positions"]
        theirs = peer.float()(halves, aatype, mask.float())["positions"]
    assert found.dtype == torch.float32
    off, peers_off = ((x.double() - exact).abs().max().item() for x in (found, theirs))
    assert off <= max(2 * peers_off, 1e-4)
    assert off > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_frames_stay_in_float32_in_a_module_of_16_bits(dtype: torch.dtype):
    _, ours = structure_modules()
    representations, aatype, mask = inputs([20, 9], dtype=dtype)
    with torch.no_grad():
        found = ours.to(dtype)(representations, aatype, mask)
    for name in ("frames", "sidechain_frames", "positions"):
        assert found[name].dtype == torch.float32, name
        assert found[name].isfinite().all(), name
    assert found["states"].dtype == dtype
    lengths = found["frames"][..., :4].norm(dim=-1)
    assert (lengths - 1).abs().max() < 1e-6


def test_autocast_has_no_say():
    _, ours = structure_modules(torch.float32)
    representations, aatype, mask = inputs([20, 9], dtype=torch.float32)
    halves = {name: value.bfloat16() for name, value in representations.items()}
    with torch.no_grad():
        for given in (representations, halves):
            wanted = ours({name: x.float() for name, x in given.items()}, aatype, mask)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                found = ours(given, aatype, mask)
            for name, value in wanted.items():
                assert torch.equal(found[name], value), name


def test_all_is_made_where_the_inputs_are():
    """A tensor left on the CPU would meet those of another device, and fail."""
    _, ours = structure_modules(torch.float32)
    representations, aatype, mask = inputs([20, 9], dtype=torch.float32)
    wanted = ours(representations, aatype, mask)
    elsewhere = {name: value.to("meta") for name, value in representations.items()}
    found = ours.to("meta")(elsewhere, aatype.to("meta"), mask.to("meta"))
    for name, value in found.items():
        assert value.is_meta, name
        assert value.shape == wanted[name].shape, name


def test_dropout_is_the_peers_and_acts_in_training_alone():
    """One seed gives both the same draws, as long as they come in the same order."""
    peer, ours = structure_modules(dropout_rate=0.5)
    representations, aatype, mask = inputs([7])

    def states(module: torch.nn.Module) -> Tensor:
        torch.manual_seed(0)
        with torch.no_grad(), full_precision():
            return module(dict(representations), aatype, mask)["states"]

    still = states(ours)
    dropped = states(ours.train())
    assert (dropped - states(peer.train())).abs().max() <= TOLERANCE
    assert (dropped - still).abs().max() > 0.1


def test_a_fresh_module_starts_as_the_peers():
    """Residual branches and updates without effect: all frames lie unturned in one place."""
    torch.manual_seed(0)
    peer, _ = structure_modules()
    fresh = StructureModule(StructureModuleConfig(**SMALL)).double()
    gains = {"default": 1.0, "relu": 2**0.5, "final": 0.0}
    started = {
        name: (part.gain, part.weight.count_nonzero().item())
        for name, part in fresh.named_modules()
        if isinstance(part, Linear)
    }
    assert started == {
        name: (gains[part.init], part.weight.numel() if part.init != "final" else 0)
        for name, part in peer.named_modules()
        if isinstance(part, EsmFoldLinear)
    }
    assert torch.nn.functional.softplus(fresh.ipa.head_weights).sub(1).abs().max() < 1e-6
    representations, aatype, mask = inputs([8])
    frames = fresh(representations, aatype, mask)["frames"]
    assert torch.equal(frames[..., 0], torch.ones_like(frames[..., 0]))
    assert not frames[..., 1:].any()
    wide = Linear(400, 300, gain=2.0)
    assert wide.weight.std().item() == pytest.approx(2 / 400**0.5, rel=0.02)
    assert not wide.bias.any()
