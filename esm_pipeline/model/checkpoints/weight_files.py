"""Weight files of any layout, opened as one mapping from keys to tensors that are not read yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from esm_pipeline.errors import WeightsError, brief
from esm_pipeline.model.checkpoints import fair_esm
from esm_pipeline.model.checkpoints.keys import modern_key
from esm_pipeline.model.checkpoints.pickle_check import DIMENSIONS
from esm_pipeline.model.checkpoints.tensors import (
    PickledFile,
    SafetensorsFile,
    StoredTensor,
    WeightFile,
    open_pickle,
)

MOST_KEY_LETTERS = 500
"""Characters of a tensor's name."""


def open_file(path: Path) -> WeightFile:
    """Open one weight file of any layout. Raises WeightsError if it is damaged or refused."""
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    is_fair_esm = path.suffix == fair_esm.SUFFIX
    return fair_esm.open_checkpoint(path) if is_fair_esm else open_pickle(path)


def open_tensors(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Key in its modern spelling → tensor, for all files of a checkpoint; nothing is read yet.

    Raises WeightsError for a damaged or refused file, and for a key that appears twice.
    """
    stored_tensors: dict[str, StoredTensor] = {}
    for path in files:
        for stored in open_file(path).stored_tensors():
            if not is_possible(stored):
                raise WeightsError(
                    f"{path}: {brief(stored.key)} has a name or a shape that no tensor of a model "
                    "has; is this a checkpoint?"
                )
            other = stored_tensors.setdefault(modern_key(stored.key), stored)
            if other is not stored:
                raise WeightsError(
                    f"{path}: '{stored.key}' is also in {other.file.path.name} as '{other.key}'; "
                    "it is not known which one is right: remove one"
                )
    return stored_tensors


def is_possible(stored: StoredTensor) -> bool:
    """Whether the name is one printable line, and the shape is one that PyTorch can have."""
    name = stored.key
    return name.isprintable() and len(name) <= MOST_KEY_LETTERS and len(stored.shape) <= DIMENSIONS


def tensors_of_state(state: Mapping[str, Tensor]) -> dict[str, StoredTensor]:
    """The same mapping for weights that a caller gives; they are copied, as from a file."""
    copies = {key: tensor.detach().clone() for key, tensor in state.items()}
    file = PickledFile(Path("state_dict"), copies)
    return {modern_key(stored.key): stored for stored in file.stored_tensors()}
