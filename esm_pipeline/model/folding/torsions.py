"""From torsion angles to atoms: angles → frames of the rigid groups → positions.

Peers: transformers openfold_utils/feats.py, data_transforms.py; modeling_esmfold.py
`EsmFoldAngleResnet`. Only small tensors for each residue: their memory does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from esm_pipeline.model.folding.config import StructureModuleConfig
from esm_pipeline.model.folding.linear import FINAL, RELU, Linear
from esm_pipeline.model.folding.rigid import Frames, stack_frames
from esm_pipeline.structure import residues


@dataclass(frozen=True)
class ResidueTables:
    """Tables of the `residues` module as tensors; the first dimension is the residue number."""

    default_frames: Tensor  # (21, 8, 4, 4)
    group: Tensor  # (21, 14)
    position: Tensor  # (21, 14, 3)
    atom14_mask: Tensor  # (21, 14)
    atom37_mask: Tensor  # (21, 37)
    atom14_to_atom37: Tensor  # (21, 14)
    atom37_to_atom14: Tensor  # (21, 37)


@cache
def residue_tables(device: torch.device, dtype: torch.dtype) -> ResidueTables:
    """The tables on a device and in a dtype; no module holds them, as they are not weights."""

    def tensor(table: NDArray[Any], kind: torch.dtype) -> Tensor:
        return torch.tensor(table, dtype=kind, device=device)

    return ResidueTables(
        tensor(residues.DEFAULT_FRAMES, dtype),
        tensor(residues.ATOM14_GROUP, torch.int64),
        tensor(residues.ATOM14_POSITION, dtype),
        tensor(residues.ATOM14_MASK, dtype),
        tensor(residues.ATOM37_MASK, dtype),
        tensor(residues.ATOM14_TO_ATOM37, torch.int64),
        tensor(residues.ATOM37_TO_ATOM14, torch.int64),
    )


class AngleResnetBlock(nn.Module):
    """Two layers with a residual connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = Linear(width, width, RELU)
        self.linear_2 = Linear(width, width, FINAL)

    def forward(self, a: Tensor) -> Tensor:
        """(*, width) → (*, width)."""
        moved: Tensor = a + self.linear_2(F.relu(self.linear_1(F.relu(a))))
        return moved


class AngleResnet(nn.Module):
    """Torsion angles from the single representation. Algorithm 20, lines 11–14."""

    def __init__(self, config: StructureModuleConfig) -> None:
        super().__init__()
        self.epsilon = config.epsilon
        self.linear_in = Linear(config.sequence_dim, config.resnet_dim)
        self.linear_initial = Linear(config.sequence_dim, config.resnet_dim)
        self.layers = nn.ModuleList(
            AngleResnetBlock(config.resnet_dim) for _ in range(config.num_resnet_blocks)
        )
        self.linear_out = Linear(config.resnet_dim, config.num_angles * 2)

    def forward(self, s: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
        """Current and initial s (*, S) → sines and cosines (*, 7, 2), raw and at length 1.

        In the order ω, φ, ψ, χ1–χ4.
        """
        # the published code has ReLUs here that the supplement lacks
        a = self.linear_in(F.relu(s)) + self.linear_initial(F.relu(initial))
        for layer in self.layers:
            a = layer(a)
        angles = self.linear_out(F.relu(a)).unflatten(-1, (-1, 2))
        squares = (angles * angles).sum(-1, keepdim=True)
        return angles, angles / torch.sqrt(squares.clamp(min=self.epsilon))


def group_frames(backbone: Frames, angles: Tensor, aatype: Tensor) -> Frames:
    """Frames (*, R, 8) of the rigid groups. Algorithm 24.

    backbone: (*, R). angles: (*, R, 7, 2) sines and cosines. aatype: (…, R), broadcast.
    """
    default = residue_tables(angles.device, backbone.rotation.dtype).default_frames[aatype]
    backbone_angle = angles.new_tensor([0.0, 1.0]).expand_as(angles[..., :1, :])
    sine, cosine = torch.cat([backbone_angle, angles], dim=-2).unsqueeze(-2).unbind(-1)
    x, y, z = default[..., :3, :3].unbind(-1)  # (…, R, 8, 3) each
    columns = [x.expand_as(y * sine), y * cosine + z * sine, z * cosine - y * sine]
    origin = default[..., :3, 3].expand_as(columns[0])
    local = Frames(torch.stack(columns, dim=-1), origin)  # each relative to the frame before it
    groups = [local[..., group] for group in range(5)]
    for chi in (5, 6, 7):  # the frame of each χ is relative to the one before
        groups.append(groups[-1].compose(local[..., chi]))
    return backbone[..., None].compose(stack_frames(groups))


def atom14_positions(groups: Frames, aatype: Tensor) -> Tensor:
    """Positions (*, R, 14, 3) of the atoms in Å, zeros where there is no atom. Algorithm 24.

    groups: (*, R, 8), from `group_frames`. aatype: (…, R), broadcast.
    """
    table = residue_tables(groups.translation.device, groups.translation.dtype)
    of_atom = table.group[aatype].unsqueeze(-1)  # (…, R, 14, 1)
    of_atom = of_atom.expand(*groups.translation.shape[:-2], 14, 1)
    frames = Frames(
        groups.rotation.take_along_dim(of_atom.unsqueeze(-1), dim=-3),
        groups.translation.take_along_dim(of_atom, dim=-2),
    )
    return frames.apply(table.position[aatype]) * table.atom14_mask[aatype].unsqueeze(-1)


def atom_maps(aatype: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Which atoms the residues have, and at which places: fields of the reference's output.

    aatype, mask: (B, R); mask is 1 for residues and 0 for padding, whose atoms do not exist.
    `atom14_atom_exists` (B, R, 14) and `atom37_atom_exists` (B, R, 37) are float32;
    `residx_atom14_to_atom37` and `residx_atom37_to_atom14` are places, 0 where there is no atom.
    """
    table = residue_tables(aatype.device, torch.float32)
    present = mask.to(torch.float32).unsqueeze(-1)
    return {
        "atom14_atom_exists": table.atom14_mask[aatype] * present,
        "residx_atom14_to_atom37": table.atom14_to_atom37[aatype],
        "residx_atom37_to_atom14": table.atom37_to_atom14[aatype],
        "atom37_atom_exists": table.atom37_mask[aatype] * present,
    }
