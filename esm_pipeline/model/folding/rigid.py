"""Rigid frames: rotation and translation.

Products are written out element by element: matrices this small gain nothing from matrix routines,
and autocast and reduced precision do not apply. Peer: transformers openfold_utils/rigid_utils.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Frames:
    """Frames (*): a local point x has the global position `rotation` · x + `translation`.

    rotation: (*, 3, 3). translation: (*, 3), in the unit of the coordinates.
    """

    rotation: Tensor
    translation: Tensor

    def __getitem__(self, index: Any) -> Frames:
        """Some of the frames; `index` as for a tensor of shape (*)."""
        own = index if isinstance(index, tuple) else (index,)
        return Frames(
            self.rotation[(*own, slice(None), slice(None))], self.translation[(*own, slice(None))]
        )

    def apply(self, points: Tensor) -> Tensor:
        """Local points → global points; (*, 3), broadcast."""
        return rotate_points(self.rotation, points) + self.translation

    def invert_apply(self, points: Tensor) -> Tensor:
        """Global points → local points; (*, 3), broadcast."""
        return rotate_points(self.rotation.transpose(-1, -2), points - self.translation)

    def compose(self, inner: Frames) -> Frames:
        """Frames that apply first `inner`, then these; broadcast."""
        products = self.rotation.unsqueeze(-1) * inner.rotation.unsqueeze(-3)  # (*, 3, 3, 3)
        return Frames(products.sum(-2), self.apply(inner.translation))

    def matrices(self) -> Tensor:
        """(*, 4, 4): homogeneous matrices."""
        top = torch.cat([self.rotation, self.translation.unsqueeze(-1)], dim=-1)  # (*, 3, 4)
        last = top.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*top.shape[:-2], 1, 4)
        return torch.cat([top, last], dim=-2)


def rotate_points(rotation: Tensor, points: Tensor) -> Tensor:
    """Points (*, 3) rotated by (*, 3, 3), broadcast."""
    return (rotation * points.unsqueeze(-2)).sum(-1)


def from_quaternions(quaternions: Tensor, translation: Tensor) -> Frames:
    """Frames from unit quaternions (*, 4), real part first, and translations (*, 3)."""
    a, b, c, d = quaternions.unbind(-1)
    rows = [
        *(a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)),
        *(2 * (b * c + a * d), a * a - b * b + c * c - d * d, 2 * (c * d - a * b)),
        *(2 * (b * d - a * c), 2 * (c * d + a * b), a * a - b * b - c * c + d * d),
    ]
    return Frames(torch.stack(rows, dim=-1).unflatten(-1, (3, 3)), translation)


def rotate_quaternions(quaternions: Tensor, vectors: Tensor) -> Tensor:
    """Unit quaternions (*, 4) times the quaternions (1, `vectors` (*, 3)), at length 1 again.

    Algorithm 23, line 10 (Jumper et al. 2021).
    """
    a, b, c, d = quaternions.unbind(-1)
    x, y, z = vectors.unbind(-1)
    product = [
        -b * x - c * y - d * z,
        a * x + c * z - d * y,
        a * y + d * x - b * z,
        a * z + b * y - c * x,
    ]
    moved = quaternions + torch.stack(product, dim=-1)
    return torch.nn.functional.normalize(moved, dim=-1)


def stack_frames(frames: Sequence[Frames]) -> Frames:
    """Frames of the same shape (*) → (*, number of frames)."""
    return Frames(
        torch.stack([one.rotation for one in frames], dim=-3),
        torch.stack([one.translation for one in frames], dim=-2),
    )
