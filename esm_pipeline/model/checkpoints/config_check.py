"""Compare a config with the headers of the weights, before any module is built.

The headers show the number of layers and most sizes. A config with a billion layers is therefore
refused at once, and not when memory runs out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from esm_pipeline.errors import WeightsError, brief
from esm_pipeline.model.checkpoints.keys import BASE_PREFIX, POSITIONS, class_of

if TYPE_CHECKING:
    from esm_pipeline.model.checkpoints.tensors import StoredTensor
    from esm_pipeline.model.config import EsmConfig

TRUNK_KEY = "esmfold_config.trunk"
COUNTS = {
    "num_hidden_layers": r"encoder\.layer\.(\d{1,9})\..+",
    f"{TRUNK_KEY}.num_blocks": r"trunk\.blocks\.(\d{1,9})\..+",
    f"{TRUNK_KEY}.structure_module.num_transition_layers": (
        r"trunk\.structure_module\.transition\.layers\.(\d{1,9})\..+"
    ),
    f"{TRUNK_KEY}.structure_module.num_resnet_blocks": (
        r"trunk\.structure_module\.angle_resnet\.layers\.(\d{1,9})\..+"
    ),
}
"""Setting that counts modules → the keys of these modules; the group is the module's number."""

SIZES = {
    "vocab_size": ("embeddings.word_embeddings.weight", 0),
    "hidden_size": ("embeddings.word_embeddings.weight", 1),
    "intermediate_size": ("encoder.layer.0.intermediate.dense.weight", 0),
    f"{TRUNK_KEY}.sequence_state_dim": ("trunk.recycle_s_norm.weight", 0),
    f"{TRUNK_KEY}.pairwise_state_dim": ("trunk.recycle_z_norm.weight", 0),
    f"{TRUNK_KEY}.structure_module.sequence_dim": ("trunk.trunk2sm_s.weight", 0),
    f"{TRUNK_KEY}.structure_module.pairwise_dim": ("trunk.trunk2sm_z.weight", 0),
    "esmfold_config.lddt_head_hid_dim": ("lddt_head.1.weight", 0),
}
"""Setting → key and dimension of a tensor that has this size."""

POSITION_TABLE = {"max_position_embeddings": (POSITIONS, 0)}
"""The same for models that look positions up in a table."""


def require_config(
    config: EsmConfig,
    stored_tensors: Mapping[str, StoredTensor],
    name: str,
    *,
    counts_only: bool = False,
) -> None:
    """Raise WeightsError unless a model built from `config` can take `stored_tensors`.

    name: of the checkpoint. counts_only: sizes may differ.
    """
    try:
        config.require_supported(limits=False)
        require_sizes(config, stored_tensors, counts_only)
        config.require_supported()
    except WeightsError as error:
        raise WeightsError(f"{name}: {error}") from None


def require_sizes(
    config: EsmConfig, stored_tensors: Mapping[str, StoredTensor], counts_only: bool = False
) -> None:
    """Raise WeightsError if `config` has more layers than the weights, or other sizes."""
    shapes = {key.removeprefix(BASE_PREFIX): stored.shape for key, stored in stored_tensors.items()}
    for setting, pattern in COUNTS.items():
        required = size_in(config, setting)
        numbers = {match[1] for key in shapes if (match := re.fullmatch(pattern, key))}
        if required is not None and required > len(numbers):
            other = (
                class_of(stored_tensors) if setting.startswith(TRUNK_KEY) and not numbers else ""
            )
            raise disagreement(setting, required, f"{len(numbers)} of them", other)
    if counts_only:
        return
    absolute = config.position_embedding_type == "absolute"
    for setting, (key, place) in (SIZES | (POSITION_TABLE if absolute else {})).items():
        required, shape = size_in(config, setting), shapes.get(key, ())
        if required is not None and place < len(shape) and required != shape[place]:
            raise disagreement(setting, required, f"{brief(shape[place])} ('{key}')")


def size_in(config: EsmConfig, setting: str) -> int | None:
    """The value of a setting if it is a whole number above 0, else None."""
    if setting.startswith("esmfold_config") and config.esmfold_config is None:
        return None
    value: Any = attrgetter(setting)(config)
    return value if type(value) is int and value > 0 else None


def disagreement(setting: str, required: int, found: str, other: str = "") -> WeightsError:
    """The error for a config and weights that differ; `other` is the class of the weights."""
    remedy = (
        f"load them with {other}" if other else "weights and config.json do not belong together"
    )
    return WeightsError(
        f"config: {setting} is {brief(required)}, but the weights have {found}; {remedy}"
    )
