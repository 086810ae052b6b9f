"""Where a checkpoint lies: the packaged model, a folder, or the Hugging Face hub and its cache."""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esm_pipeline.errors import WeightsError

DEMO = "demo"
CONFIG_FILE = "config.json"
SAFETENSORS_FILE = "model.safetensors"
WEIGHT_FILES = (
    SAFETENSORS_FILE,
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Names a checkpoint's weights may have, in the order of preference; an index names shards."""

TOKENIZER_FILES = (
    *("vocab.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)
HUB_OPTIONS = ("revision", "cache_dir", "local_files_only", "token")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on this machine. `revision` is the commit on the hub, None for a folder."""

    name: str
    folder: Path
    weight_files: tuple[Path, ...]
    revision: str | None = None

    def weights_sha256(self) -> str:
        """Digest of the weights: of the file, or of the shards' digests in the order of names.

        The hub's cache names large files by their digest, which is then taken from there.
        """
        digests = [file_digest(path) for path in sorted(self.weight_files)]
        if len(digests) == 1:
            return digests[0]
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    target = path.resolve()
    if path.is_symlink() and target.parent.name == "blobs" and DIGEST.fullmatch(target.name):
        return target.name
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def demo_model() -> Path:
    """Folder of the packaged model: a small ESM-2 for demonstrations, not for science."""
    return Path(__file__).parent.parent / "data" / "demo_model"


def resolve_checkpoint(name: str, **options: Any) -> Checkpoint:
    """Find the checkpoint `name`: "demo", a folder, or a hub id, which is downloaded if need be.

    `options`: revision, cache_dir, local_files_only, token. Raises WeightsError.
    """
    config = resolve_file(name, CONFIG_FILE, **options)
    folder = config.parent
    on_hub = local_folder(name) is None
    if options.get("revision") and not on_hub:
        raise WeightsError(f"{name}: a revision is of a hub model, this is a folder; leave it out")
    commit = folder.name if on_hub else None
    if on_hub:
        options = {**options, "revision": commit}
    found = find_weights(name, commit, **options)
    files = [found]
    if found.name.endswith(".index.json"):
        files = [resolve_file(name, shard, **options) for shard in shards_of(found)]
    for extra in TOKENIZER_FILES:
        with suppress(WeightsError):
            find_file(name, extra, **options)
    return Checkpoint(name, folder, tuple(files), commit)


def find_weights(name: str, commit: str | None, **options: Any) -> Path:
    """The preferred weight file or index of the checkpoint; a cached one needs no network."""
    if commit is not None:
        for weights in WEIGHT_FILES:
            cached = find_cached(name, weights, commit, options.get("cache_dir"))
            if cached is not None:
                return cached
    for weights in WEIGHT_FILES:
        found = find_file(name, weights, **options)
        if found is not None:
            return found
    raise WeightsError(
        f"{name}: no weights in it; one of {', '.join(WEIGHT_FILES)} should be there"
    )


def find_cached(name: str, file: str, commit: str, cache_dir: Any) -> Path | None:
    """A file of a hub model in the cache, None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, file, cache_dir=cache_dir, revision=commit)
    return Path(found) if isinstance(found, str) else None


def shards_of(index: Path) -> list[str]:
    """Names of the shards that an index file lists. Raises WeightsError."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise WeightsError(f"{index}: not a readable index of weight files") from None
    for shard in names:
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise WeightsError(f"{index}: {shard!r} is not the name of a file beside it")
    return names


def local_folder(name: str) -> Path | None:
    """The folder `name` stands for, None for a hub id. Raises WeightsError if it is neither."""
    if name == DEMO:
        return demo_model()
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise WeightsError(f"{name}: a file; give the folder that holds config.json and weights")
    if not HUB_ID.fullmatch(name) or name.startswith("."):
        raise WeightsError(f"{name}: no such folder, and not a hub id of the form owner/model")
    return None


def resolve_file(name: str, file: str, **options: Any) -> Path:
    """One file of the checkpoint `name`. Raises WeightsError if there is none."""
    found = find_file(name, file, **options)
    if found is None:
        raise WeightsError(f"{name}: no {file} in it; is this an ESM checkpoint?")
    return found


def find_file(name: str, file: str, **options: Any) -> Path | None:
    """One file of the checkpoint `name`, None if it has none of that name. Raises WeightsError."""
    folder = local_folder(name)
    if folder is not None:
        return folder / file if (folder / file).is_file() else None
    return download(name, file, **options)


def download(name: str, file: str, **options: Any) -> Path | None:
    """One file of a hub model, from the cache or the hub; None if the model has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    offline = options.get("local_files_only", False) or HF_HUB_OFFLINE
    try:
        return Path(hf_hub_download(name, file, **options))
    except LocalEntryNotFoundError:
        if offline and file != CONFIG_FILE:
            return None
        remedy = "fetch it once with network" if offline else "check the network"
        raise WeightsError(
            f"{name}: {file} is not in the cache, and the hub was not reached; {remedy}"
        ) from None
    except EntryNotFoundError:
        return None
    except GatedRepoError:
        raise WeightsError(
            f"{name}: access is restricted; accept its terms and give a token"
        ) from None
    except RevisionNotFoundError:
        raise WeightsError(f"{name}: no revision '{options.get('revision')}' on the hub") from None
    except RepositoryNotFoundError:
        raise WeightsError(
            f"{name}: no such folder, and no such public model on the hub; check the spelling"
        ) from None
    except HFValidationError:
        raise WeightsError(f"{name}: no such folder, and not a hub id") from None
    except HfHubHTTPError as error:
        raise WeightsError(f"{name}: {file}: {str(error).splitlines()[0]}") from None
