"""Find a checkpoint: the packaged model, a folder, a fair-esm file, or a model on the hub."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from esm_pipeline.errors import WeightsError, brief
from esm_pipeline.json_files import read_object
from esm_pipeline.known_models import DEMO, hub_name, mistyped, similar_model
from esm_pipeline.model.checkpoints import fair_esm
from esm_pipeline.model.checkpoints.hub_client import snapshot

ESM = "esm"
"""The `model_type` of all configs of the family."""

CONFIG_FILE = "config.json"
SAFETENSORS_FILE = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"
WEIGHT_FILES = (
    SAFETENSORS_FILE,
    SAFETENSORS_INDEX,
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Names of weight files in the order of preference; an index lists shards."""

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
"""Files of peft: the settings of an adapter, and the possible names of its weights."""

TOKENIZER_FILES = (
    *("vocab.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)
SETTINGS_FILES = (CONFIG_FILE, ADAPTER_CONFIG, *TOKENIZER_FILES)
"""Small files of a checkpoint, which are downloaded together."""

HUB_OPTIONS = ("revision", "cache_dir", "local_files_only", "token")
STEP_FOLDER = re.compile(r"checkpoint-(\d+)")
"""Folders that a Trainer writes, with the number of steps."""

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
MOST_NAME_BYTES = 255
"""Bytes of a file name."""

HUB_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on this machine. `revision`: the commit of a hub model, None for a local one.

    `adapter`: settings and weights of a peft adapter, if it is one. `weight_files` are then those
    of its base model, whose commit is `base_revision`.
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
        return any(path.suffix == fair_esm.SUFFIX for path in self.weight_files[:1])

    @property
    def source(self) -> Path:
        """The folder or fair-esm file to give to `from_pretrained`, together with `where`."""
        return self.weight_files[0] if self.is_fair_esm and not self.adapter else self.folder

    @property
    def where(self) -> dict[str, Any]:
        """Keywords of `from_pretrained` that pin the base model of an adapter."""
        if self.base_revision is None:
            return {}
        return {"revision": self.base_revision, "local_files_only": True}

    def weights_sha256(self) -> str:
        """Digest of the weights: that of the file, or of the digests of the files sorted by name.

        The hub's cache names large files by their digest; these are not read.
        """
        digests = [file_digest(path) for path in (*sorted(self.weight_files), *self.adapter)]
        if len(digests) == 1:
            return digests[0]
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as hex; the file is read once, unless it changes."""
    target = path.resolve()
    if path.is_symlink() and target.parent.name == "blobs" and HUB_DIGEST.fullmatch(target.name):
        return target.name
    facts = target.stat()
    return computed_digest(target, facts.st_size, facts.st_mtime_ns)


@lru_cache
def computed_digest(path: Path, size: int, changed: int) -> str:
    """SHA-256 of a file; size and time of the last change tell a changed file apart."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def demo_model() -> Path:
    """Folder of the packaged model: a small ESM-2 for demonstrations, not for science."""
    return Path(__file__).parents[2] / "data" / "demo_model"


def resolve_checkpoint(name: str, *, needs_config: bool = True, **options: Any) -> Checkpoint:
    """Find the checkpoint `name`: "demo", a folder, a fair-esm file, or a hub id.

    A published model may be named as in fair-esm, `esm2_t6_8M_UR50D`; the checkpoint then has the
    hub id. Files of a hub model that the cache lacks are downloaded. Without `needs_config`, a
    folder with weights alone will do. `options`: revision, cache_dir, local_files_only, token.
    Raises WeightsError, or CapacityError if the disk is full.
    """
    place = locate(name, **options)
    adapter = place.adapter()
    if adapter is not None:
        return resolve_adapter(place, adapter)
    if place.commit is None and options.get("revision"):
        raise WeightsError(
            f"{place.name}: only hub models have revisions, and this is on the disk; leave it out"
        )
    if place.file is not None:
        return Checkpoint(place.name, place.folder, fair_esm.checkpoint_files(place.file))
    if needs_config or place.commit is not None:
        config = config_of(place)
        if needs_config:
            require_esm(config)
    return Checkpoint(place.name, place.folder, weight_files(place), place.commit)


@dataclass(frozen=True)
class Location:
    """Where the files of a checkpoint are: a folder, or the snapshot of a hub model in the cache.

    `file`: the checkpoint itself, if it is one file. `options`: revision, cache_dir,
    local_files_only, token; the revision of a hub model is the `commit`, None for what is local.
    """

    name: str
    folder: Path
    options: Mapping[str, Any]
    file: Path | None = None
    commit: str | None = None

    def find(self, file: str) -> Path | None:
        """A file of the folder, None if it is not there. Nothing is downloaded."""
        path = self.folder / file
        return path if self.file is None and path.is_file() else None

    def fetch(self, files: Iterable[str]) -> None:
        """Download those of `files` that the hub model has and the cache lacks."""
        absent = [file for file in files if self.find(file) is None]
        if absent and self.commit is not None:
            snapshot(self.name, absent, **self.options)

    def fetch_first(self, files: Sequence[str]) -> Path | None:
        """The first of `files` in the folder; else the first that the hub model has."""
        for file in files:
            if (path := self.find(file)) is not None:
                return path
        for file in files:
            self.fetch([file])
            if (path := self.find(file)) is not None:
                return path
        return None

    def adapter(self) -> Path | None:
        """The settings of a peft adapter, None for a whole checkpoint.

        Raises WeightsError for a folder that is both.
        """
        found = self.find(ADAPTER_CONFIG)
        if self.commit is not None:
            return None if self.find(CONFIG_FILE) else found
        whole = [one for one in WEIGHT_FILES if self.find(one)]
        if found and whole:
            raise WeightsError(
                f"{self.name}: has {whole[0]} and {ADAPTER_CONFIG}, a whole model and an adapter; "
                "it is not known which one to use: move one to a folder of its own"
            )
        return found


def locate(name: str, **options: Any) -> Location:
    """Find the folder of a checkpoint; of a hub model, the files of settings are downloaded.

    Raises WeightsError, or CapacityError if the disk is full.
    """
    path = local_path(name)
    if path is None:
        name = hub_name(name)
        folder = hub_snapshot(name, **options)
        pinned = {**options, "revision": folder.name}
        return Location(name, folder, pinned, commit=folder.name)
    if path.is_file():
        return Location(name, path.parent, options, file=path)
    return Location(name, path, options)


def hub_snapshot(name: str, **options: Any) -> Path:
    """The folder in the cache with the settings of a hub model.

    Raises what `snapshot` does; the message ends with the known model that may have been meant.
    """
    try:
        return snapshot(name, SETTINGS_FILES, **options)
    except WeightsError as error:
        near = similar_model(name)
        if near is None:
            raise
        raise WeightsError(f"{error}; did you mean {near}?") from None


def locate_config(name: str, **options: Any) -> Location:
    """The same; `name` may also be a JSON file of settings."""
    if name.endswith(".json") and os.path.isfile(name):
        return Location(name, Path(name).parent, options, file=Path(name))
    return locate(name, **options)


def resolve_adapter(place: Location, config: Path) -> Checkpoint:
    """The checkpoint of a peft adapter: the weights of its base model, and its own.

    Raises WeightsError.
    """
    base_name, base_options = base_model_of(place, config)
    base = resolve_checkpoint(base_name, **base_options)
    weights = place.fetch_first(ADAPTER_FILES)
    if weights is None:
        raise WeightsError(
            f"{place.name}: has {ADAPTER_CONFIG}, but no {ADAPTER_FILES[0]} in the same folder"
        )
    return Checkpoint(
        *(place.name, place.folder, base.weight_files),
        revision=base.revision if place.commit is None else place.commit,
        adapter=(config, weights),
        base_revision=base.revision,
    )


def base_model_of(place: Location, config: Path) -> tuple[str, dict[str, Any]]:
    """Name of the base model of an adapter, and the options to find it with.

    If the adapter is local, its revision is that of the base model. Raises WeightsError if it
    names no base model, or names another adapter.
    """
    try:
        settings = read_object(config)
        base, revision = settings["base_model_name_or_path"], settings.get("revision")
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
    given = place.options.get("revision") if place.commit is None else None
    revision = given or (revision if path is None else None)
    return base, {**place.options, "revision": revision}


def config_of(place: Location) -> Path:
    """The file with the settings of a checkpoint; for an adapter, that of its base model.

    Raises WeightsError if there is none.
    """
    found = place.file or place.find(CONFIG_FILE)
    if found is not None:
        return found
    adapter = place.adapter()
    if adapter is not None:
        base, base_options = base_model_of(place, adapter)
        return config_of(locate(base, **base_options))
    if steps := step_folders(place.folder):
        raise WeightsError(
            f"{place.name}: no {CONFIG_FILE} in it, but folders of a Trainer; give one of them, "
            f"the last is {os.path.join(place.name, steps[max(steps)])}"
        )
    raise WeightsError(
        f"{place.name}: no {CONFIG_FILE} in it; is this an ESM checkpoint? (load a bare state, as "
        "a Trainer writes it, with config=)"
    )


def require_esm(path: Path) -> None:
    """Raise WeightsError if a `config.json` is of another family; before weights are looked for.

    A file that cannot be read is left to `EsmConfig`, which says why.
    """
    try:
        found = read_object(path).get("model_type", ESM)
    except (OSError, ValueError):
        return
    if found != ESM:
        raise WeightsError(f"{path}: {other_family(found)}")


def other_family(model_type: object) -> str:
    """What is wrong with a config of another family of models."""
    return (
        f"config: model_type is {brief(model_type)}, not '{ESM}'; choose a checkpoint of the "
        "ESM family (ESM-1b, ESM-1v, ESM-2)"
    )


def step_folders(path: Path) -> dict[int, str]:
    """Number of steps → name of the folder in `path` that a Trainer saved after them."""
    names = [one.name for one in path.iterdir() if one.is_dir()] if path.is_dir() else []
    found = {name: STEP_FOLDER.fullmatch(name) for name in names}
    return {int(match[1]): name for name, match in found.items() if match}


def find_files(name: str, files: Sequence[str], **options: Any) -> dict[str, Path]:
    """Name → path of those of `files`, none of them weights, that the checkpoint `name` has.

    What an adapter lacks is taken from its base model. Raises WeightsError.
    """
    place = locate(name, **options)
    found = {file: path for file in files if (path := place.find(file)) is not None}
    absent = [file for file in files if file not in found]
    adapter = place.find(ADAPTER_CONFIG)
    if absent and adapter is not None:
        base, base_options = base_model_of(place, adapter)
        found |= find_files(base, absent, **base_options)
    return found


def weight_files(place: Location) -> tuple[Path, ...]:
    """The files with the weights: one file, or the shards that an index lists.

    Those of a hub model are downloaded in one format only. Raises WeightsError if one is missing.
    """
    found = place.fetch_first(WEIGHT_FILES)
    if found is None:
        raise WeightsError(
            f"{place.name}: no weights in it; one of {', '.join(WEIGHT_FILES)} should be there"
        )
    if not found.name.endswith(".index.json"):
        return (found,)
    shards = shards_of(found)
    place.fetch(shards)
    for shard in shards:
        if place.find(shard) is None:
            raise WeightsError(
                f"{found}: lists {shard}, which is not there; copy or download it, all the shards "
                "are needed"
            )
    return tuple(place.folder / shard for shard in shards)


def shards_of(index: Path) -> list[str]:
    """Names of the shards that an index lists. Raises WeightsError."""
    try:
        names = sorted(set(read_object(index)["weight_map"].values()))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{index}: not a readable index of weight files ({error})") from None
    except (KeyError, AttributeError, TypeError):
        raise WeightsError(f"{index}: not a readable index of weight files") from None
    for shard in names:
        if not isinstance(shard, str) or not is_file_name(shard):
            raise WeightsError(f"{index}: {brief(shard)} is not the name of a file in its folder")
    if not names:
        raise WeightsError(f"{index}: lists no weight files")
    return names


def is_file_name(name: str) -> bool:
    """Whether it can be the name of a file in a folder, and is not a path to elsewhere."""
    whole = name.isprintable() and os.path.basename(name) == name and name not in ("", ".", "..")
    return whole and len(os.fsencode(name)) <= MOST_NAME_BYTES


def local_path(name: str) -> Path | None:
    """The folder or fair-esm file that `name` means, None for a hub id.

    Raises WeightsError if it is none of these.
    """
    if name == DEMO:
        return demo_model()
    if not name.isascii() and name != name.encode(errors="replace").decode():
        raise WeightsError(
            f"{name}: safetensors reads only paths in UTF-8; rename it, or link to it"
        )
    path = Path(os.path.expanduser(name))
    if path.is_dir() or (path.suffix == fair_esm.SUFFIX and path.is_file()):
        return path
    if path.exists():
        raise WeightsError(
            f"{name}: a file; give the folder that holds {CONFIG_FILE} and weights, or an original "
            "fair-esm file (.pt)"
        )
    if wrong := mistyped(name):
        raise WeightsError(f"{name}: {wrong}")
    if not HUB_ID.fullmatch(name) or name.startswith(".") or path.suffix == fair_esm.SUFFIX:
        raise WeightsError(f"{name}: no such folder or file, and no hub id of the form owner/model")
    return None
