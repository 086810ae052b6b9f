"""Frames compared with the peer, and the laws of rigid motion."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.models.esm.openfold_utils.rigid_utils import Rigid, Rotation

from esm_pipeline.model.folding.rigid import (
    Frames,
    from_quaternions,
    rotate_points,
    rotate_quaternions,
    stack_frames,
)
from tests.oracles.peptides import from_three_points
from tests.oracles.structure_peers import full_precision

TOLERANCE = 1e-12


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def unit_quaternions(*shape: int, seed: int = 0) -> Tensor:
    return torch.nn.functional.normalize(normal(*shape, 4, seed=seed), dim=-1)


def frames(*shape: int, seed: int = 0) -> Frames:
    return from_quaternions(unit_quaternions(*shape, seed=seed), normal(*shape, 3, seed=seed + 1))


def peers(ours: Frames) -> Rigid:
    return Rigid(Rotation(rot_mats=ours.rotation), ours.translation)


def difference(ours: Frames, theirs: Rigid) -> float:
    rotation = (ours.rotation - theirs.get_rots().get_rot_mats()).abs().max()
    return max(rotation, (ours.translation - theirs.get_trans()).abs().max()).item()


@pytest.fixture(autouse=True)
def _float64():
    with full_precision():
        yield


def test_every_motion_is_the_peers():
    a, b, points = frames(5, 3), frames(5, 3, seed=7), normal(5, 3, 3, seed=9)
    assert (a.apply(points) - peers(a).apply(points)).abs().max() <= TOLERANCE
    assert (a.invert_apply(points) - peers(a).invert_apply(points)).abs().max() <= TOLERANCE
    assert difference(a.compose(b), peers(a).compose(peers(b))) <= TOLERANCE
    assert (a.matrices() - peers(a).to_tensor_4x4()).abs().max() <= TOLERANCE


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)], ids=str)
def test_an_update_of_the_backbone_is_the_peers(shape: tuple[int, ...]):
    quaternions, translation = unit_quaternions(*shape), normal(*shape, 3, seed=3)
    update = normal(*shape, 6, seed=4)
    theirs = Rigid(Rotation(quats=quaternions), translation).compose_q_update_vec(update)
    turn, shift = update.split(3, dim=-1)
    moved = from_quaternions(quaternions, translation).apply(shift)
    found = torch.cat([rotate_quaternions(quaternions, turn), moved], dim=-1)
    assert (found - theirs.to_tensor_7()).abs().max() <= TOLERANCE
    assert difference(from_quaternions(*found.split([4, 3], dim=-1)), theirs) <= TOLERANCE


def test_a_turn_without_imaginary_part_is_none():
    quaternions = unit_quaternions(6)
    torch.testing.assert_close(rotate_quaternions(quaternions, torch.zeros(6, 3)), quaternions)


def test_quaternions_turn_as_one_would_expect():
    """A quarter turn about z takes x to y; updates act inside the frame, so on its own axes."""
    half = 0.5**0.5
    quarter = torch.tensor([half, 0, 0, half], dtype=torch.float64)
    x, y, z = torch.eye(3, dtype=torch.float64)
    frame = from_quaternions(quarter, torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(frame.apply(x), y)
    about_x = from_quaternions(rotate_quaternions(quarter, x), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(about_x.apply(y), z)  # own y → own z = z, both z axes being one
    torch.testing.assert_close(about_x.apply(x), y)  # its own x axis stays


def test_three_points_are_the_peers_and_lie_where_they_should():
    behind, origin, plane = normal(3, 6, 3)
    found = from_three_points(behind, origin, plane)
    assert difference(found, Rigid.from_3_points(behind, origin, plane)) <= TOLERANCE
    inside = from_three_points(behind, origin, plane, epsilon=0.0)
    assert inside.invert_apply(origin).abs().max() <= TOLERANCE
    back, aside = inside.invert_apply(behind), inside.invert_apply(plane)
    assert (back[:, 0] < 0).all()
    assert back[:, 1:].abs().max() <= TOLERANCE
    assert (aside[:, 1] > 0).all()
    assert aside[:, 2].abs().max() <= TOLERANCE
    assert (torch.linalg.det(inside.rotation) - 1).abs().max() <= TOLERANCE


def test_points_that_coincide_give_numbers():
    point = torch.ones(1, 3)
    assert from_three_points(point, point, point).rotation.isfinite().all()


def test_the_laws_of_motion():
    a, b, points = frames(8), frames(8, seed=5), normal(8, 3, seed=6)
    back = a.rotation.transpose(-1, -2)
    inverse = Frames(back, -rotate_points(back, a.translation))
    there_and_back = inverse.compose(a)
    assert (there_and_back.rotation - torch.eye(3)).abs().max() <= TOLERANCE
    assert there_and_back.translation.abs().max() <= TOLERANCE
    assert (a.invert_apply(a.apply(points)) - points).abs().max() <= TOLERANCE
    assert (a.compose(b).apply(points) - a.apply(b.apply(points))).abs().max() <= TOLERANCE
    assert (inverse.apply(points) - a.invert_apply(points)).abs().max() <= TOLERANCE


def test_frames_are_taken_and_stacked_as_a_tensors_elements():
    a = frames(4, 5)
    assert torch.equal(a[1].rotation, a.rotation[1])
    assert torch.equal(a[..., 2].translation, a.translation[:, 2])
    assert a[:, None].rotation.shape == (4, 1, 5, 3, 3)
    again = stack_frames([a[..., place] for place in range(5)])
    assert torch.equal(again.rotation, a.rotation)
    assert torch.equal(again.translation, a.translation)
