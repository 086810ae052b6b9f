"""Where a checkpoint lies: the packaged model, a folder, a fair-esm file, or the hub's cache."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from esm_pipeline.errors import WeightsError, brief
from esm_pipeline.json_files import read_object
from esm_pipeline.model.checkpoints import fair_esm
from esm_pipeline.model.checkpoints.hub_client import cached, fetch, fetch_first

DEMO = "demo"
CONFIG_FILE = "config.json"
SAFETENSORS_FILE = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"
WEIGHT_FILES = (
    SAFETENSORS_FILE,
    SAFETENSORS_INDEX,
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Names a checkpoint's weights may have, in the order of preference; an index names shards."""

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
"""What peft writes: the settings of an adapter, and its weights by one of these names."""

FAIR_SUFFIX = ".pt"
TOKENIZER_FILES = (
    *("vocab.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)
HUB_OPTIONS = ("revision", "cache_dir", "local_files_only", "token")
STEP_FOLDER = re.compile(r"checkpoint-(\d+)")
"""Folders in which a Trainer saves what it has after so many steps."""

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
MOST_NAME = 255
"""Bytes of a file's name."""

DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on this machine. `revision` is the commit on the hub, None for what is local.

    `adapter` has the settings and the weights of a peft adapter, if it is one: `weight_files` are
    then those of its base model, which has the commit `base_revision`.
    """

    name: str
    folder: Path
    weight_files: tuple[Path, ...]
    revision: str | None = None
    adapter: tuple[Path, ...] = ()
    base_revision: str | None = None

    @property
    def is_fair_esm(self) -> bool:
        """Whether it is an original fair-esm file and not a folder."""
        return any(path.suffix == FAIR_SUFFIX for path in self.weight_files[:1])

    @property
    def source(self) -> Path:
        """What `from_pretrained` takes, with `where`: the folder, or the fair-esm file."""
        return self.weight_files[0] if self.is_fair_esm and not self.adapter else self.folder

    @property
    def where(self) -> dict[str, Any]:
        """Keywords of `from_pretrained` by which an adapter keeps to this base model."""
        if self.base_revision is None:
            return {}
        return {"revision": self.base_revision, "local_files_only": True}

    def weights_sha256(self) -> str:
        """Digest of the weights: of the file, or of the files' digests in the order of names.

        The hub's cache names large files by their digest, which is then taken from there.
        """
        digests = [file_digest(path) for path in (*sorted(self.weight_files), *self.adapter)]
        if len(digests) == 1:
            return digests[0]
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as hex; it is read once, unless it changes."""
    target = path.resolve()
    if path.is_symlink() and target.parent.name == "blobs" and DIGEST.fullmatch(target.name):
        return target.name
    facts = target.stat()
    return computed_digest(target, facts.st_size, facts.st_mtime_ns)


@lru_cache
def computed_digest(path: Path, size: int, changed: int) -> str:
    """SHA-256 of a file of this size, last changed then."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def demo_model() -> Path:
    """Folder of the packaged model: a small ESM-2 for demonstrations, not for science."""
    return Path(__file__).parents[2] / "data" / "demo_model"


def resolve_checkpoint(name: str, *, needs_config: bool = True, **options: Any) -> Checkpoint:
    """Find the checkpoint `name`: "demo", a folder, a fair-esm file, or a hub id.

    What a hub model lacks in the cache is downloaded. A folder that only has weights will do
    without `needs_config`. `options`: revision, cache_dir, local_files_only, token. Raises
    WeightsError, or CapacityError where the disk is full.
    """
    path = local_path(name)
    config = fetch_config(name, **options) if path is None else None
    adapter = find_adapter(name, **options) if config is None else None
    if adapter is not None:
        return resolve_adapter(name, adapter, **options)
    if path is not None and options.get("revision"):
        raise WeightsError(
            f"{name}: a revision is of a hub model, this lies on the disk; leave it out"
        )
    if path is not None and path.is_file():
        return Checkpoint(name, path.parent, fair_esm.files_of(path))
    if config is None and (needs_config or path is None):
        config = find_config(name, **options)
    folder = path if config is None else config.parent
    assert folder is not None, "a name without a path has its config in the cache"
    commit = None
    if path is None:  # what the revision means now holds for all the rest
        commit = folder.name
        options = {**options, "revision": commit}
    found = find_weights(name, **options)
    files = tuple(weight_files(name, found, **options))
    if path is None:
        for extra in TOKENIZER_FILES:
            find_file(name, extra, **options)
    return Checkpoint(name, folder, files, commit)


def find_adapter(name: str, **options: Any) -> Path | None:
    """The settings of a peft adapter, None if `name` is a whole checkpoint.

    Raises WeightsError if it is both.
    """
    found = find_file(name, ADAPTER_CONFIG, **options)
    path = local_path(name)
    whole = [one for one in WEIGHT_FILES if path and (path / one).is_file()] if found else []
    if whole:
        raise WeightsError(
            f"{name}: has {whole[0]} and {ADAPTER_CONFIG}, a whole model and an adapter; which one "
            "is meant is not known: move one to a folder of its own"
        )
    return found


def resolve_adapter(name: str, config: Path, **options: Any) -> Checkpoint:
    """The checkpoint of a peft adapter: its base model's weights, and its own. A revision is that
    of the base model if the adapter is local. Raises WeightsError."""
    base_name, base_options = base_of(name, config, **options)
    base = resolve_checkpoint(base_name, **base_options)
    local = local_path(name) is not None
    if not local:
        options["revision"] = config.parent.name
    for file in ADAPTER_FILES:
        weights = find_file(name, file, **options)
        if weights is not None:
            break
    else:
        raise WeightsError(f"{name}: has {ADAPTER_CONFIG}, but no {ADAPTER_FILES[0]} beside it")
    if not local:
        for extra in TOKENIZER_FILES:
            find_file(name, extra, **options)
    return Checkpoint(
        *(name, config.parent, base.weight_files),
        revision=base.revision if local else config.parent.name,
        adapter=(config, weights),
        base_revision=base.revision,
    )


def base_of(name: str, config: Path, **options: Any) -> tuple[str, dict[str, Any]]:
    """Name of an adapter's base model, and the options with which it is found.

    Raises WeightsError if the adapter does not say, or if that is an adapter as well.
    """
    try:
        told = read_object(config)
        base, revision = told["base_model_name_or_path"], told.get("revision")
    except (OSError, ValueError, KeyError) as error:
        raise WeightsError(f"{config}: not the settings of an adapter ({error!r})") from None
    if not isinstance(base, str) or not base or not isinstance(revision, str | None):
        raise WeightsError(
            f"{config}: base_model_name_or_path is {base!r}; set it to the model that the adapter "
            "was trained on: a folder, a hub id, or demo"
        )
    try:
        path = local_path(base)
    except WeightsError as error:
        raise WeightsError(f"{config}: base_model_name_or_path: {error}") from None
    if path is not None and (path / ADAPTER_CONFIG).is_file():
        raise WeightsError(f"{config}: its base model {base} is an adapter too; merge that first")
    given = options.get("revision") if local_path(name) is not None else None
    revision = given or (revision if path is None else None)
    return base, {**options, "revision": revision}


def find_config(name: str, **options: Any) -> Path:
    """Where the settings of the checkpoint `name` stand, itself if it is a file of settings.

    Raises WeightsError if they are nowhere.
    """
    if name.endswith(".json") and os.path.isfile(name):
        return Path(name)
    path = local_path(name)
    if path is not None and path.is_file():
        return path
    found = fetch_config(name, **options) if path is None else path / CONFIG_FILE
    if found is not None and found.is_file():
        return found
    adapter = find_adapter(name, **options)
    if adapter is not None:
        base, base_options = base_of(name, adapter, **options)
        return find_config(base, **base_options)
    steps = {} if path is None else step_folders(path)
    if steps:
        raise WeightsError(
            f"{name}: no {CONFIG_FILE} in it, but folders of a Trainer; give one of them, the last "
            f"is {os.path.join(name, steps[max(steps)])}"
        )
    raise WeightsError(
        f"{name}: no {CONFIG_FILE} in it; is this an ESM checkpoint? (of a bare state, as a "
        "Trainer writes it, load with config=)"
    )


def fetch_config(name: str, **options: Any) -> Path | None:
    """The config.json of a hub model, asked for first; None if it has none, as adapters do."""
    if cached(name, ADAPTER_CONFIG, **options) and not cached(name, CONFIG_FILE, **options):
        return None
    return fetch_first(name, CONFIG_FILE, **options)


def step_folders(path: Path) -> dict[int, str]:
    """Steps → name of the folder that a Trainer saved then, in `path`."""
    found = {one.name: STEP_FOLDER.fullmatch(one.name) for one in path.iterdir() if one.is_dir()}
    return {int(match[1]): name for name, match in found.items() if match}


def find_weights(name: str, **options: Any) -> Path:
    """The preferred weight file or index of the checkpoint; a cached one needs no network."""
    if local_path(name) is None:
        for weights in WEIGHT_FILES:
            found = cached(name, weights, **options)
            if found is not None:
                return found
    for weights in WEIGHT_FILES:
        found = find_file(name, weights, **options)
        if found is not None:
            return found
    raise WeightsError(
        f"{name}: no weights in it; one of {', '.join(WEIGHT_FILES)} should be there"
    )


def weight_files(name: str, found: Path, **options: Any) -> Iterator[Path]:
    """The files that hold the weights: `found` itself, or the shards that it lists.

    Raises WeightsError for a shard that is not there.
    """
    if not found.name.endswith(".index.json"):
        yield found
        return
    for shard in shards_of(found):
        path = find_file(name, shard, **options)
        if path is None:
            raise WeightsError(
                f"{found}: lists {shard}, which is not there; copy or download it, all the shards "
                "are needed"
            )
        yield path


def shards_of(index: Path) -> list[str]:
    """Names of the shards that an index file lists. Raises WeightsError."""
    try:
        names = sorted(set(read_object(index)["weight_map"].values()))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{index}: not a readable index of weight files ({error})") from None
    except (KeyError, AttributeError, TypeError):
        raise WeightsError(f"{index}: not a readable index of weight files") from None
    for shard in names:
        if not isinstance(shard, str) or not is_file_name(shard):
            raise WeightsError(f"{index}: {brief(shard)} is not the name of a file beside it")
    if not names:
        raise WeightsError(f"{index}: lists no weight files")
    return names


def is_file_name(name: str) -> bool:
    """Whether a file of a folder can have this name; a path to elsewhere is none."""
    whole = name.isprintable() and os.path.basename(name) == name and name not in ("", ".", "..")
    return whole and len(os.fsencode(name)) <= MOST_NAME


def local_path(name: str) -> Path | None:
    """The folder or fair-esm file `name` stands for, None for a hub id.

    Raises WeightsError if it is none of them.
    """
    if name == DEMO:
        return demo_model()
    if not name.isascii() and name != name.encode(errors="replace").decode():
        raise WeightsError(
            f"{name}: safetensors reads only paths of UTF-8; rename it, or link to it"
        )
    path = Path(os.path.expanduser(name))
    if path.is_dir() or (path.suffix == FAIR_SUFFIX and path.is_file()):
        return path
    if path.exists():
        raise WeightsError(
            f"{name}: a file; give the folder that holds {CONFIG_FILE} and weights, or an original "
            "fair-esm file (.pt)"
        )
    if not HUB_ID.fullmatch(name) or name.startswith(".") or path.suffix == FAIR_SUFFIX:
        raise WeightsError(f"{name}: no such folder or file, and no hub id of the form owner/model")
    return None


def find_file(name: str, file: str, **options: Any) -> Path | None:
    """One file of the checkpoint `name`, None if it has none of that name.

    What an adapter lacks is its base model's, but for weights. Raises WeightsError.
    """
    path = local_path(name)
    if path is None:
        found = fetch(name, file, **options)
        adapter = None if found else cached(name, ADAPTER_CONFIG, **options)
    else:
        found = path / file if (path / file).is_file() else None
        adapter = path / ADAPTER_CONFIG
    if found or file in (*WEIGHT_FILES, *ADAPTER_FILES, ADAPTER_CONFIG):
        return found
    if adapter is None or not adapter.is_file():
        return None
    base, base_options = base_of(name, adapter, **options)
    return find_file(base, file, **base_options)
