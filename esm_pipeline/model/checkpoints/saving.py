"""Write checkpoints as the reference does: one file, or shards with an index; all files or none.

Peer: transformers 4.37.2 `save_pretrained` and `shard_checkpoint`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from esm_pipeline.errors import InputError
from esm_pipeline.files import atomic_path
from esm_pipeline.model.checkpoints.hub import CONFIG_FILE, SAFETENSORS_FILE, SAFETENSORS_INDEX
from esm_pipeline.model.checkpoints.weights import CheckpointModel, reference_state

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
SIZE = re.compile(r"(\d+) ?([KMGkmg][Ii]?B)")
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def save_checkpoint(
    model: CheckpointModel,
    folder: str | os.PathLike[str],
    max_shard_size: int | str,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write config and weights into `folder`, in shards if they are larger than `max_shard_size`.

    If `state` is given, it replaces the model's own weights. All files are written under temporary
    names first, so an error leaves the folder as it was. Then they are moved into place, the index
    last, and files of an earlier save are removed.
    """
    folder = Path(folder)
    shards = split_into_shards(reference_state(model, state), read_size(max_shard_size))
    names = weight_shard_names(len(shards))
    stale = earlier_files(folder) - set(names)
    with ExitStack() as moves:  # moves happen in reverse order
        if len(names) > 1:
            index = moves.enter_context(atomic_path(folder / SAFETENSORS_INDEX))
            index.write_text(json.dumps(index_of(shards, names), indent=2, sort_keys=True) + "\n")
            stale.discard(SAFETENSORS_INDEX)
        config = moves.enter_context(atomic_path(folder / CONFIG_FILE))
        config.write_text(model.config.to_json_string())
        for name, shard in zip(names, shards, strict=True):
            path = moves.enter_context(atomic_path(folder / name))
            save_file(shard, path, metadata={"format": "pt"})
        if earlier_files(folder) & set(names) - {SAFETENSORS_FILE}:
            # an earlier save left shards of this name: better no index than one of mixed files
            (folder / SAFETENSORS_INDEX).unlink(missing_ok=True)
    for name in stale:
        (folder / name).unlink(missing_ok=True)


def read_size(size: int | str) -> int:
    """Bytes of a size such as "5GB" or "500MiB". Raises InputError."""
    match = SIZE.fullmatch(size) if isinstance(size, str) else None
    count = int(match[1]) * UNITS[match[2].upper()] if match else size
    if type(count) is not int or count < 1:
        raise InputError(
            f"max_shard_size: {size!r} is not a size; give bytes, or text such as '500MB'"
        )
    return count


def split_into_shards(state: dict[str, Tensor], most: int) -> list[dict[str, Tensor]]:
    """The tensors in order, in parts of at most `most` bytes; a larger tensor gets its own part."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, tensor in state.items():
        if shards[-1] and size + tensor.nbytes > most:
            shards.append({})
            size = 0
        shards[-1][key] = tensor
        size += tensor.nbytes
    return shards


def weight_shard_names(count: int) -> list[str]:
    """The names of `count` shards, as in the reference."""
    if count == 1:
        return [SAFETENSORS_FILE]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def index_of(shards: list[dict[str, Tensor]], names: list[str]) -> dict[str, Any]:
    """The content of the index: bytes of all weights, and the shard of each key."""
    total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    places = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    return {"metadata": {"total_size": total}, "weight_map": places}


def earlier_files(folder: Path) -> set[str]:
    """Names of the weight files in `folder` that an earlier save may have left."""
    if not folder.is_dir():
        return set()
    own = {SAFETENSORS_FILE, SAFETENSORS_INDEX}
    return {name for name in os.listdir(folder) if name in own or SHARD.fullmatch(name)}
