"""The layers of the encoder in 8-bit integers, weights and inputs: for the CPU.

Each output of a linear layer has its own step (quantisation scale) for the weights. Its inputs have
one step, measured beforehand on real proteins, so that the results of a sequence do not depend on
the rest of its batch. After a norm, channels with large values are scaled down and their weights
up, by the same factor (SmoothQuant, Xiao et al. 2023). Values outside the measured range are
clipped. Attention computes in bfloat16, everything else in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esm_pipeline.errors import InputError
from esm_pipeline.model.base import EsmPreTrainedModel
from esm_pipeline.model.checkpoints.hub import demo_model
from esm_pipeline.model.layer import EsmLayer
from esm_pipeline.model.linears import ROWS_EXPECTED, FusedLinear, Packed, frozen
from esm_pipeline.model.tokenizer.tokenizer import EsmTokenizer

INT8_LEVELS = 255
MIDDLE = 128
TINY = 1e-6
"""Smallest range that does not count as zero."""

RESIDUES_SEEN = 2048
"""Residues of packaged proteins on which steps are measured."""


class Int8Linear(Packed):
    """A linear layer with 8-bit inputs: levels, which stand for values `(level - zero) * step`.

    `smooth` (in,): what the values were divided by. `activation` is fused in. Results are in
    `dtype`; if it is uint8, they are levels with `to_step` and `to_zero`.
    """

    def __init__(
        self,
        linear: nn.Linear | FusedLinear,
        step: float,
        zero: int = MIDDLE,
        *,
        smooth: Tensor | None = None,
        activation: str = "none",
        dtype: torch.dtype = torch.float32,
        to_step: float = 1.0,
        to_zero: int = 0,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.step, self.zero, self.activation = step, zero, activation
        self.dtype, self.to_step, self.to_zero = dtype, to_step, to_zero
        weight = linear.weight.float() if smooth is None else linear.weight.float() * smooth
        widest = weight.abs().amax(1)
        steps = torch.where(widest > 0, widest / 127, 1.0)
        levels = (weight / steps.unsqueeze(1)).round().to(torch.int8)
        self.steps = frozen(steps)
        self.bias = None if linear.bias is None else frozen(linear.bias.float())
        self.zeros = torch.zeros(len(steps), dtype=torch.int64)
        self.packed = self.pack(levels)

    @staticmethod
    def pack(weight: Tensor) -> Tensor:
        """Reorder levels (out, in)."""
        rows = [ROWS_EXPECTED, weight.shape[1]]
        packed: Tensor = torch.ops.onednn.qlinear_prepack(weight, rows)
        return packed

    @staticmethod
    def unpack(packed: Tensor) -> Tensor:
        """Levels (out, in); oneDNN holds them transposed."""
        return packed.to_dense().t().contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """Levels (T, in) → (T, out)."""
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            *(x, self.step, self.zero, self.packed, self.steps, self.zeros, self.bias),
            *(self.to_step, self.to_zero, self.dtype, self.activation, [], "none"),
        )
        return y


class ToLevels(nn.Module):
    """Values → the nearest levels, with 0 at level 128, clipped to 0–255."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.per_value = 1 / step

    def forward(self, x: Tensor) -> Tensor:
        """(T, D) → uint8 (T, D)."""
        return to_levels(x.float() * self.per_value + (MIDDLE + 0.5))


class LevelNorm(nn.Module):
    """A norm that returns levels, with steps `steps` (D,) and 0 at level 128."""

    def __init__(self, norm: nn.LayerNorm, steps: Tensor) -> None:
        super().__init__()
        self.eps = norm.eps
        self.weight = frozen(norm.weight / steps)
        self.bias = frozen(norm.bias / steps + (MIDDLE + 0.5))

    def forward(self, x: Tensor) -> Tensor:
        """(T, D) → uint8 (T, D)."""
        return to_levels(F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps))


def to_levels(x: Tensor) -> Tensor:
    """Levels with 0.5 added → uint8; `x` is changed."""
    return x.clamp_(0, INT8_LEVELS).to(torch.uint8)


@cache
def can_quantize() -> bool:
    """Whether this PyTorch and processor have 8-bit products that do not overflow."""
    linear = nn.Linear(256, 32)
    nn.init.constant_(linear.weight, 1.0)
    nn.init.constant_(linear.bias, -0.5)
    try:
        with torch.inference_mode():
            found = Int8Linear(linear, 0.5, 0, activation="gelu")(
                torch.full((3, 256), INT8_LEVELS, dtype=torch.uint8)
            )
    except (RuntimeError, AttributeError, TypeError):
        return False
    return bool((found - (256 * INT8_LEVELS * 0.5 - 0.5)).abs().max() < 1)


def quantize(layers: Sequence[EsmLayer], ranges: Sequence[Ranges]) -> None:
    """Replace the linear layers by 8-bit ones, whose inputs had these ranges.

    Queries, keys and values have to be fused already.
    """
    for layer, found in zip(layers, ranges, strict=True):
        attention, wide = layer.attention, layer.intermediate
        if isinstance(attention.self.fused, FusedLinear):  # not all heads are pruned
            attention.LayerNorm, step, smooth = quantized_norm(  # type: ignore[assignment]
                attention.LayerNorm, attention.self.fused, found["normed"]
            )
            attention.self.fused = Int8Linear(
                attention.self.fused, step, smooth=smooth, dtype=torch.bfloat16
            )
            step = step_of(found["mixed"])
            attention.output.dense = nn.Sequential(  # type: ignore[assignment]
                ToLevels(step), Int8Linear(attention.output.dense, step)
            )
        layer.LayerNorm, step, smooth = quantized_norm(  # type: ignore[assignment]
            layer.LayerNorm, wide.dense, found["fed"]
        )
        least, most = (float(value) for value in (found["wide"][0].min(), found["wide"][1].max()))
        to_step = max(most - least, TINY) / INT8_LEVELS
        to_zero = round(-least / to_step)
        wide.dense = Int8Linear(  # type: ignore[assignment]
            *(wide.dense, step),
            smooth=smooth,
            activation="gelu",
            dtype=torch.uint8,
            to_step=to_step,
            to_zero=to_zero,
        )
        wide.activation = nn.Identity()
        layer.output.dense = Int8Linear(  # type: ignore[assignment]
            layer.output.dense, to_step, to_zero
        )


def quantized_norm(
    norm: nn.LayerNorm, linear: nn.Linear | FusedLinear, found: Tensor
) -> tuple[LevelNorm, float, Tensor]:
    """A norm that returns levels, their step, and the divisors (D,) of the channels.

    `found` (2, D): minimum and maximum of each channel. A channel is divided by the square root of
    the ratio between its largest value and its largest weight.
    """
    values = found.abs().amax(0).clamp_min(TINY)
    weights = linear.weight.float().abs().amax(0).clamp_min(TINY)
    smooth = (values / weights).sqrt()
    step = step_of(values / smooth)
    return LevelNorm(norm, smooth * step), step, smooth


def step_of(found: Tensor) -> float:
    """The step with which 127 levels on either side of level 128 cover `found`."""
    return max(float(found.abs().max()), TINY) / (MIDDLE - 1)


Ranges = dict[str, Tensor]
"""Minimum and maximum of each channel (2, D) of the inputs of one layer's linear layers."""


def find_ranges(model: EsmPreTrainedModel) -> list[Ranges]:
    """Ranges of the inputs of the linear layers in each layer, measured on packaged proteins.

    Raises InputError for NaN or infinity, which levels would hide.
    """
    encoder = model.base_model
    found: list[Ranges] = [{} for _ in encoder.encoder.layer]
    with ExitStack() as hooks:
        for layer, ranges in zip(encoder.encoder.layer, found, strict=True):
            for name, linear in linears_of(layer).items():
                hooks.callback(
                    linear.register_forward_pre_hook(partial(widen, ranges, name)).remove
                )
        with torch.inference_mode():
            for sequence in packaged_proteins():
                sequence = sequence[: encoder.max_residues]
                tokens = EsmTokenizer.standard()([sequence], return_tensors="pt").input_ids
                encoder(tokens)
    if not all(values.isfinite().all() for ranges in found for values in ranges.values()):
        raise InputError("int8: this model computes NaN or infinity; check its weights")
    return found


def linears_of(layer: EsmLayer) -> dict[str, nn.Module]:
    """One linear layer of a layer for each of its different inputs, by the name of the input."""
    return {
        "normed": layer.attention.self.query,
        "mixed": layer.attention.output.dense,
        "fed": layer.intermediate.dense,
        "wide": layer.output.dense,
    }


def widen(ranges: Ranges, name: str, _: nn.Module, inputs: tuple[Tensor]) -> None:
    """A hook that extends the range `name` in `ranges` by the channels of `inputs`."""
    least, most = torch.aminmax(inputs[0].float(), dim=0)
    if name in ranges:
        least, most = torch.minimum(least, ranges[name][0]), torch.maximum(most, ranges[name][1])
    ranges[name] = torch.stack((least, most))


def packaged_proteins() -> Iterator[str]:
    """Proteins of the packaged FASTA file, up to 2,048 residues in all."""
    total = 0
    for record in demo_model().with_name("demo.fasta").read_text().split(">")[1:]:
        sequence = "".join(record.splitlines()[1:]).rstrip("*")
        if total + len(sequence) <= RESIDUES_SEEN:
            total += len(sequence)
            yield sequence
