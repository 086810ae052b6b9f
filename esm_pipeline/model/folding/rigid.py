"""Rigid frames: rotation and translation, from quaternions or three points.

Written out element by element: products this small gain nothing from matrix routines, and no
autocast or reduced precision gets at them. Peer: transformers openfold_utils/rigid_utils.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Frames:
    """Frames (*): a point x of the frame lies at `rotation` · x + `translation` outside.

    rotation: (*, 3, 3). translation: (*, 3), in the unit of the coordinates.
    """

    rotation: Tensor
    translation: Tensor

    def __getitem__(self, index: Any) -> Frames:
        """Some of the frames; `index` is as for a tensor of shape (*)."""
        own = index if isinstance(index, tuple) else (index,)
        return Frames(
            self.rotation[(*own, slice(None), slice(None))], self.translation[(*own, slice(None))]
        )

    def apply(self, points: Tensor) -> Tensor:
        """From inside the frames to outside; (*, 3), broadcast."""
        return rotate(self.rotation, points) + self.translation

    def invert_apply(self, points: Tensor) -> Tensor:
        """From outside to inside; (*, 3), broadcast."""
        return rotate(self.rotation.transpose(-1, -2), points - self.translation)

    def compose(self, inner: Frames) -> Frames:
        """The frames that apply `inner` first and then these; broadcast."""
        turned = self.rotation.unsqueeze(-1) * inner.rotation.unsqueeze(-3)  # (*, 3, 3, 3)
        return Frames(turned.sum(-2), self.apply(inner.translation))

    def invert(self) -> Frames:
        """The frames that undo these."""
        back = self.rotation.transpose(-1, -2)
        return Frames(back, -rotate(back, self.translation))

    def matrices(self) -> Tensor:
        """(*, 4, 4), homogeneous."""
        top = torch.cat([self.rotation, self.translation.unsqueeze(-1)], dim=-1)  # (*, 3, 4)
        last = top.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*top.shape[:-2], 1, 4)
        return torch.cat([top, last], dim=-2)


def rotate(rotation: Tensor, points: Tensor) -> Tensor:
    """Rotations (*, 3, 3) of points (*, 3), broadcast."""
    return (rotation * points.unsqueeze(-2)).sum(-1)


def from_quaternions(quaternions: Tensor, translation: Tensor) -> Frames:
    """Frames of unit quaternions (*, 4), real part first, and translations (*, 3)."""
    a, b, c, d = quaternions.unbind(-1)
    rows = [
        *(a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)),
        *(2 * (b * c + a * d), a * a - b * b + c * c - d * d, 2 * (c * d - a * b)),
        *(2 * (b * d - a * c), 2 * (c * d + a * b), a * a - b * b - c * c + d * d),
    ]
    return Frames(torch.stack(rows, dim=-1).unflatten(-1, (3, 3)), translation)


def turned(quaternions: Tensor, vectors: Tensor) -> Tensor:
    """Unit quaternions (*, 4) after the turn (1, `vectors` (*, 3)), which need not be unit.

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


def from_three_points(
    behind: Tensor, origin: Tensor, plane: Tensor, epsilon: float = 1e-8
) -> Frames:
    """Frames at `origin`, x away from `behind`, `plane` in the plane of x and y; each (*, 3).

    Algorithm 21 (Jumper et al. 2021) with the peer's order of points: (C, CA, N) of a backbone give
    −x along the bond to C; `epsilon` keeps points that coincide from dividing by zero.
    """
    x = unit(origin - behind, epsilon)
    aside = plane - origin
    y = unit(aside - (x * aside).sum(-1, keepdim=True) * x, epsilon)
    return Frames(torch.stack([x, y, torch.linalg.cross(x, y)], dim=-1), origin)


def unit(vectors: Tensor, epsilon: float) -> Tensor:
    """(*, 3) at length 1, but for those near 0."""
    return vectors / torch.sqrt((vectors * vectors).sum(-1, keepdim=True) + epsilon)


def stack(frames: Sequence[Frames]) -> Frames:
    """Frames of one shape (*) as (*, number of them)."""
    return Frames(
        torch.stack([one.rotation for one in frames], dim=-3),
        torch.stack([one.translation for one in frames], dim=-2),
    )
