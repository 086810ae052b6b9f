"""From the trunk's representations to a structure: invariant point attention and frame updates.

Algorithms 20, 22 and 23 (Jumper et al. 2021). Peer: transformers modeling_esmfold.py
`EsmFoldStructureModule`, with the same names of parameters, so that state dicts are
interchangeable.

Here H are the heads of invariant point attention and P its points. The peer expands the squared
distances of all points, (R, R, H, P, 3), and the values in the same way: 144 and 288 numbers for
each pair of residues with the published config. Here |q − k|² = |q|² + |k|² − 2 q·k: the first term
does not change a softmax over k, and the last one joins the product of queries and keys. For each
pair only its bias, scores and weights are held, 3 H numbers in all (36 as published), in addition
to the normed pair representation (Z).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esm_pipeline.model.folding.config import StructureModuleConfig
from esm_pipeline.model.folding.linear import FINAL, RELU, Linear
from esm_pipeline.model.folding.rigid import Frames, from_quaternions, rotate_quaternions
from esm_pipeline.model.folding.torsions import AngleResnet, atom14_positions, group_frames

SOFTPLUS_OF_ONE = math.log(math.e - 1)
"""Its softplus is 1."""


class InvariantPointAttention(nn.Module):
    """Attention by queries and keys, the pair representation, and distances of points in space."""

    def __init__(self, config: StructureModuleConfig) -> None:
        super().__init__()
        self.heads, self.width, self.inf = config.num_heads_ipa, config.ipa_dim, config.inf
        self.qk_points, self.v_points = config.num_qk_points, config.num_v_points
        self.epsilon = config.epsilon
        single, pair, heads = config.sequence_dim, config.pairwise_dim, self.heads
        self.linear_q = Linear(single, heads * self.width)
        self.linear_kv = Linear(single, heads * self.width * 2)
        self.linear_q_points = Linear(single, heads * self.qk_points * 3)
        self.linear_kv_points = Linear(single, heads * (self.qk_points + self.v_points) * 3)
        self.linear_b = Linear(pair, heads)
        self.head_weights = nn.Parameter(torch.empty(heads))
        mixed = heads * (pair + self.width + self.v_points * 4)
        self.linear_out = Linear(mixed, single, FINAL)
        nn.init.constant_(self.head_weights, SOFTPLUS_OF_ONE)

    def bias(self, z: Tensor, mask: Tensor) -> Tensor:
        """(B, H, R, R): what z (B, R, R, Z) and the mask (B, R) add to the scores.

        All blocks share it, as it depends neither on frames nor on the single representation.
        """
        pair: Tensor = self.linear_b(z).permute(0, 3, 1, 2) * math.sqrt(1 / 3)
        hidden = mask.unsqueeze(-1) * mask.unsqueeze(-2) - 1  # (B, R, R), -1 where one is hidden
        return pair + self.inf * hidden.unsqueeze(1)

    def forward(self, s: Tensor, z: Tensor, bias: Tensor, frames: Frames) -> Tensor:
        """s (B, R, S), normed z (B, R, R, Z), `bias` and frames (B, R) → update (B, R, S)."""
        # only distances matter; squares of centred coordinates have the smallest rounding errors
        centre = frames.translation.mean(1, keepdim=True)
        frames = Frames(frames.rotation, frames.translation - centre)
        query, key, value = self.queries_keys_values(s, frames)
        scores = torch.baddbmm(
            bias.flatten(0, 1), query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2)
        )
        weights = scores.softmax(-1).unflatten(0, (-1, self.heads))  # (B, H, R, R)
        mixed = (weights @ value).transpose(1, 2)  # (B, R, H, K + 3 P)
        scalars, points = mixed.split([self.width, 3 * self.v_points], dim=-1)
        points = frames[..., None, None].invert_apply(points.unflatten(-1, (-1, 3)))
        lengths = torch.sqrt((points * points).sum(-1) + self.epsilon)  # (B, R, H, P)
        pair = weights.to(z.dtype).transpose(1, 2) @ z  # (B, R, H, Z)
        parts = [scalars, *points.unbind(-1), lengths, pair]
        update: Tensor = self.linear_out(
            torch.cat([part.flatten(2).to(z.dtype) for part in parts], dim=-1)
        )
        return update

    def queries_keys_values(self, s: Tensor, frames: Frames) -> tuple[Tensor, Tensor, Tensor]:
        """(B, H, R, ·) each; query · key is the score, up to `bias` and a constant for each query.

        Numbers and points are concatenated; the last column is 1 in the query and, in the key, the
        squared distances of its points from the origin, scaled.
        """
        q = self.linear_q(s).unflatten(-1, (self.heads, -1))
        kv = self.linear_kv(s).unflatten(-1, (self.heads, -1))
        k, v = kv.chunk(2, dim=-1)  # (B, R, H, K)
        q_points = self.to_global(self.linear_q_points(s), frames)
        kv_points = self.to_global(self.linear_kv_points(s), frames)
        k_points, v_points = kv_points.split([self.qk_points, self.v_points], dim=-2)
        # softplus(weight) · w_C · w_L of the supplement
        scale = F.softplus(self.head_weights) * math.sqrt(2 / (27 * self.qk_points))
        scale = scale.unsqueeze(-1)
        far = k_points.square().sum((-1, -2)).unsqueeze(-1) * scale * -0.5  # (B, R, H, 1)
        query = [q * math.sqrt(1 / (3 * self.width)), q_points.flatten(-2) * scale]
        key = [k, k_points.flatten(-2), far]
        return (
            torch.cat([*query, torch.ones_like(far)], dim=-1).transpose(1, 2),
            torch.cat(key, dim=-1).transpose(1, 2),
            torch.cat([v, v_points.flatten(-2)], dim=-1).transpose(1, 2),
        )

    def to_global(self, flat: Tensor, frames: Frames) -> Tensor:
        """Local points (B, R, 3 H P), all x, then y, then z → global points (B, R, H, P, 3)."""
        local = flat.unflatten(-1, (3, self.heads, -1)).movedim(2, -1)
        return frames[..., None, None].apply(local)


class TransitionLayer(nn.Module):
    """Three layers with a residual connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = Linear(width, width, RELU)
        self.linear_2 = Linear(width, width, RELU)
        self.linear_3 = Linear(width, width, FINAL)

    def forward(self, s: Tensor) -> Tensor:
        """(*, S) → (*, S)."""
        moved: Tensor = s + self.linear_3(F.relu(self.linear_2(F.relu(self.linear_1(s)))))
        return moved


class Transition(nn.Module):
    """The feed-forward of a block. Algorithm 20, lines 8 and 9."""

    def __init__(self, config: StructureModuleConfig) -> None:
        super().__init__()
        width = config.sequence_dim
        self.layers = nn.ModuleList(
            TransitionLayer(width) for _ in range(config.num_transition_layers)
        )
        self.dropout = nn.Dropout(config.dropout_rate)
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, s: Tensor) -> Tensor:
        """(*, S) → (*, S)."""
        for layer in self.layers:
            s = layer(s)
        normed: Tensor = self.layer_norm(self.dropout(s))
        return normed


class BackboneUpdate(nn.Module):
    """Rotation and translation of each frame. Algorithm 23."""

    def __init__(self, config: StructureModuleConfig) -> None:
        super().__init__()
        self.linear = Linear(config.sequence_dim, 6, FINAL)

    def forward(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """(*, S) → imaginary part of a quaternion (*, 3), and local shift (*, 3)."""
        turn, shift = self.linear(s).chunk(2, dim=-1)
        return turn, shift


class StructureModule(nn.Module):
    """From single and pair representation to the positions of all heavy atoms. Algorithm 20.

    The blocks share their weights. Frames and everything computed from them are in float32 or
    higher: in 16 bits, atoms would be off by tenths of an Å. Autocast is switched off, and inputs
    are cast to the dtype of the weights.
    """

    def __init__(self, config: StructureModuleConfig) -> None:
        super().__init__()
        self.config = config
        self.layer_norm_s = nn.LayerNorm(config.sequence_dim)
        self.layer_norm_z = nn.LayerNorm(config.pairwise_dim)
        self.linear_in = Linear(config.sequence_dim, config.sequence_dim)
        self.ipa = InvariantPointAttention(config)
        self.ipa_dropout = nn.Dropout(config.dropout_rate)
        self.layer_norm_ipa = nn.LayerNorm(config.sequence_dim)
        self.transition = Transition(config)
        self.bb_update = BackboneUpdate(config)
        self.angle_resnet = AngleResnet(config)

    def forward(
        self,
        evoformer_output_dict: Mapping[str, Tensor],
        aatype: Tensor,
        mask: Tensor | None = None,
        *,
        overwrite: bool = False,
    ) -> dict[str, Tensor]:
        """The structure after each of the n blocks.

        evoformer_output_dict: `single` (B, R, S) and `pair` (B, R, R, Z). aatype: (B, R), 0–20.
        mask: (B, R), 1 for residues, 0 for padding. overwrite: norm `pair` in place, as it is not
        needed afterwards; not with gradients. Returns the fields of the reference: `frames`
        (n, B, R, 7), quaternions and alpha carbons in Å; `sidechain_frames` (n, B, R, 8, 4, 4);
        `unnormalized_angles` and `angles` (n, B, R, 7, 2), sines and cosines of ω, φ, ψ, χ1–χ4;
        `positions` (n, B, R, 14, 3) in Å, zeros where there is no atom; `states` (n, B, R, S);
        and `single` (B, R, S), the last of the states.
        """
        dtype = self.layer_norm_s.weight.dtype
        single, pair = (evoformer_output_dict[name].to(dtype) for name in ("single", "pair"))
        if mask is None:
            mask = single.new_ones(single.shape[:-1])
        with full_precision(single.device.type):
            normed = self.normed_in_place(pair) if overwrite else self.layer_norm_z(pair)
            return self.structure(single, normed, aatype, mask)

    def normed_in_place(self, pair: Tensor) -> Tensor:
        """Norm (B, R, R, Z) in place, one row at a time."""
        for row in pair.unbind(1):
            row.copy_(self.layer_norm_z(row))
        return pair

    def structure(
        self, single: Tensor, pair: Tensor, aatype: Tensor, mask: Tensor
    ) -> dict[str, Tensor]:
        """As `forward`, with a normed pair representation."""
        initial = self.layer_norm_s(single)
        states, quaternions, translations = self.blocks(initial, pair, mask)
        places = translations * self.config.trans_scale_factor  # Å
        raw, angles = self.angle_resnet(states, initial)
        backbone = from_quaternions(quaternions, places)
        groups = group_frames(backbone, angles, aatype)
        return {
            "frames": torch.cat([quaternions, places], dim=-1),
            "sidechain_frames": groups.matrices(),
            "unnormalized_angles": raw,
            "angles": angles,
            "positions": atom14_positions(groups, aatype),
            "states": states,
            "single": states[-1],
        }

    def blocks(self, initial: Tensor, z: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States (n, B, R, S), quaternions (n, B, R, 4) and translations (n, B, R, 3) of n blocks.

        initial (B, R, S) and z (B, R, R, Z) are normed. Translations are in units of
        `trans_scale_factor` Å. Frames start at the origin, not rotated.
        """
        s = self.linear_in(initial)
        bias = self.ipa.bias(z, mask.to(torch.promote_types(s.dtype, torch.float32)))
        translation = torch.zeros(*s.shape[:-1], 3, dtype=bias.dtype, device=s.device)
        quaternion = F.pad(translation, (1, 0))
        quaternion[..., 0] = 1
        states, quaternions, translations = [], [], []
        for _ in range(self.config.num_blocks):
            # no gradients through rotations of earlier blocks
            frames = from_quaternions(quaternion.detach(), translation)
            s = s + self.ipa(s, z, bias, frames)
            s = self.transition(self.layer_norm_ipa(self.ipa_dropout(s)))
            turn, shift = self.bb_update(s)
            quaternion = rotate_quaternions(quaternion.detach(), turn)
            translation = frames.apply(shift)
            states.append(s)
            quaternions.append(quaternion)
            translations.append(translation)
        return torch.stack(states), torch.stack(quaternions), torch.stack(translations)


def full_precision(device: str) -> AbstractContextManager[object]:
    """Within, autocast is off: it would compute products of points in 16 bits."""
    available = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if available else nullcontext()
