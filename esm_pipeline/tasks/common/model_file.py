"""`model.json`: which model a run uses, found once: name, commit, digest and shape.

`--model` takes it wherever it takes a model: then no other revision is used, no other weights, and
no network. It names no path and no time, so that it is the same on every machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esm_pipeline.errors import InputError, WeightsError
from esm_pipeline.files import atomic_path
from esm_pipeline.formats.checksums import sha256
from esm_pipeline.json_files import read_object

if TYPE_CHECKING:
    from esm_pipeline.model import Checkpoint, EsmConfig

FORMAT = "esm-pipeline/model"
FORMAT_VERSION = 1
SUFFIX = ".json"
MODEL_HELP = "hub id, folder with a checkpoint, fair-esm file, demo, or a file of `download --out`"
OTHER_FILES = (
    *("config.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"),
    "added_tokens.json",
)
"""Files of a checkpoint that change what a model computes, beside its weights."""

CONFIG_FACTS = (
    *("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"),
    *("position_embedding_type", "max_residues", "token_dropout"),
)


def describe(checkpoint: Checkpoint, config: EsmConfig) -> dict[str, Any]:
    """What a model file says of a checkpoint."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": checkpoint.name,
        "revision": checkpoint.revision,
        "weights_sha256": checkpoint.weights_sha256(),
        "files_sha256": other_files(checkpoint),
        "config": {name: getattr(config, name) for name in CONFIG_FACTS},
    }


def other_files(checkpoint: Checkpoint) -> dict[str, str]:
    """Digests of the files of a checkpoint that are not its weights, by their names."""
    paths = [checkpoint.folder / name for name in OTHER_FILES]
    if checkpoint.is_fair_esm:
        file = checkpoint.weight_files[0]
        paths = [file.with_name(f"{file.stem}-contact-regression{file.suffix}")]
    return {path.name: sha256(path) for path in paths if path.is_file()}


def write_model_file(target: Path, facts: dict[str, Any]) -> None:
    """Write a model file."""
    with atomic_path(target) as path:
        path.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_model_file(path: Path) -> dict[str, Any]:
    """What a model file says. Raises InputError if it is none."""
    try:
        facts = read_object(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable model file ({error})") from None
    wanted = {"name": str, "revision": str | None, "weights_sha256": str}
    if (
        facts.get("format") != FORMAT
        or not all(isinstance(facts.get(name), kind) for name, kind in wanted.items())
        or not isinstance(facts.get("files_sha256", {}), dict)
    ):
        raise InputError(
            f"{path}: not a model file; make one with `esm-pipeline download --out {path}`"
        )
    return facts


def find_checkpoint(name: str, revision: str | None) -> Checkpoint:
    """The checkpoint `name`, or the one that the model file `name` tells of, without network.

    "demo-fold" is a folding model with random weights, made on the spot.
    Raises WeightsError if it cannot be found, or its weights are not those told of; InputError for
    a revision beside a model file.
    """
    path = Path(name)
    if path.suffix.lower() != SUFFIX or not path.is_file():
        return checkpoint_named(name, revision=revision)
    if revision:
        raise InputError(f"{name}: it names a revision; leave --revision out")
    facts = read_model_file(path)
    pinned = {"revision": facts["revision"], "local_files_only": True}
    checkpoint = checkpoint_named(facts["name"], **pinned)
    again = "remove it, and run the workflow again"
    if checkpoint.weights_sha256() != facts["weights_sha256"]:
        raise WeightsError(
            f"{name}: the weights of {facts['name']} are no longer those it tells of; {again}"
        )
    found = other_files(checkpoint)
    for file, digest in facts.get("files_sha256", {}).items():
        if found.get(file) != digest:
            raise WeightsError(
                f"{name}: {file} of {facts['name']} is no longer the one it tells of; {again}"
            )
    return checkpoint


def checkpoint_named(name: str, **options: Any) -> Checkpoint:
    """The checkpoint of this name, which may be that of the demonstration's folding model."""
    from esm_pipeline.model import resolve_checkpoint
    from esm_pipeline.model.folding.demo import DEMO_FOLD, demo_checkpoint

    return demo_checkpoint() if name == DEMO_FOLD else resolve_checkpoint(name, **options)
