"""Whether a config asks for what the weights have, known before a module is built.

The headers of the weights tell the numbers of layers and most sizes. A config that asks for a
billion layers is thereby refused at once, and not when memory runs out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from esm_pipeline.errors import WeightsError, brief
from esm_pipeline.model.checkpoints.loading import class_of
from esm_pipeline.model.checkpoints.weights import BASE_PREFIX, POSITIONS

if TYPE_CHECKING:
    from esm_pipeline.model.checkpoints.tensors import Entry
    from esm_pipeline.model.config import EsmConfig

TRUNK = "esmfold_config.trunk"
COUNTS = {
    "num_hidden_layers": r"encoder\.layer\.(\d{1,9})\..+",
    f"{TRUNK}.num_blocks": r"trunk\.blocks\.(\d{1,9})\..+",
    f"{TRUNK}.structure_module.num_transition_layers": (
        r"trunk\.structure_module\.transition\.layers\.(\d{1,9})\..+"
    ),
    f"{TRUNK}.structure_module.num_resnet_blocks": (
        r"trunk\.structure_module\.angle_resnet\.layers\.(\d{1,9})\..+"
    ),
}
"""Settings, and the keys of the modules of which there are as many; the group is their number."""

SIZES = {
    "vocab_size": ("embeddings.word_embeddings.weight", 0),
    "hidden_size": ("embeddings.word_embeddings.weight", 1),
    "intermediate_size": ("encoder.layer.0.intermediate.dense.weight", 0),
    f"{TRUNK}.sequence_state_dim": ("trunk.recycle_s_norm.weight", 0),
    f"{TRUNK}.pairwise_state_dim": ("trunk.recycle_z_norm.weight", 0),
    f"{TRUNK}.structure_module.sequence_dim": ("trunk.trunk2sm_s.weight", 0),
    f"{TRUNK}.structure_module.pairwise_dim": ("trunk.trunk2sm_z.weight", 0),
    "esmfold_config.lddt_head_hid_dim": ("lddt_head.1.weight", 0),
}
"""Settings, and the key and dimension of a tensor that is as large."""

TABLE = {"max_position_embeddings": (POSITIONS, 0)}
"""The same of models that look positions up in a table."""


def require_config(
    config: EsmConfig, entries: Mapping[str, Entry], name: str, *, counts_only: bool = False
) -> None:
    """Raise WeightsError if no model can be built from `config` that takes `entries`.

    entries: of the checkpoint `name`. counts_only: sizes may be others than theirs.
    """
    try:
        config.require_supported(limits=False)
        require_sizes(config, entries, counts_only)
        config.require_supported()
    except WeightsError as error:
        raise WeightsError(f"{name}: {error}") from None


def require_sizes(
    config: EsmConfig, entries: Mapping[str, Entry], counts_only: bool = False
) -> None:
    """Raise WeightsError if `config` asks for more layers than `entries` have, or other sizes."""
    shapes = {key.removeprefix(BASE_PREFIX): entry.shape for key, entry in entries.items()}
    for setting, pattern in COUNTS.items():
        asked = wanted(config, setting)
        numbers = {match[1] for key in shapes if (match := re.fullmatch(pattern, key))}
        if asked is not None and asked > len(numbers):
            other = class_of(entries) if setting.startswith(TRUNK) and not numbers else ""
            raise disagreement(setting, asked, f"{len(numbers)} of them", other)
    if counts_only:
        return
    absolute = config.position_embedding_type == "absolute"
    for setting, (key, place) in (SIZES | (TABLE if absolute else {})).items():
        asked, shape = wanted(config, setting), shapes.get(key, ())
        if asked is not None and place < len(shape) and asked != shape[place]:
            raise disagreement(setting, asked, f"{brief(shape[place])} ('{key}')")


def wanted(config: EsmConfig, setting: str) -> int | None:
    """A setting that is a whole number above 0; None for all else."""
    if setting.startswith("esmfold_config") and config.esmfold_config is None:
        return None
    value: Any = attrgetter(setting)(config)
    return value if type(value) is int and value > 0 else None


def disagreement(setting: str, asked: int, found: str, other: str = "") -> WeightsError:
    """The error that config and weights do not agree; the latter may be of an `other` class."""
    remedy = (
        f"load them with {other}" if other else "weights and config.json do not belong together"
    )
    return WeightsError(
        f"config: {setting} is {brief(asked)}, but the weights have {found}; {remedy}"
    )
