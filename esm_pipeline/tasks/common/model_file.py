"""`model.json`: the model of a run, found once: name, commit, digest and shape.

`--model` accepts it wherever it accepts a model; then the revision and the weights are fixed, and
no network is used. It contains no time. That of a run contains no absolute path: of a local model
that the configuration names by one, it has the last name, and the `path` from the folder of this
file. The memory and the run time of a job follow from its shape.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esm_pipeline.errors import IN_WORKFLOW, InputError, WeightsError, setting
from esm_pipeline.files import atomic_path, shared_path
from esm_pipeline.formats.checksums import sha256
from esm_pipeline.json_files import read_object
from esm_pipeline.settings.models import LOCAL_MODELS
from esm_pipeline.tasks.common.progress import SILENT, Speaker, downloads_shown, waiting

if TYPE_CHECKING:
    from esm_pipeline.model import Checkpoint, EsmConfig

MODEL_FORMAT = "esm-pipeline/model"
MODEL_FORMAT_VERSION = 1
SUFFIX = ".json"
MODEL_HELP = (
    "a name that `esm-pipeline models` lists, hub id, folder with a checkpoint, fair-esm file, or "
    "a file of `download --out`"
)
OTHER_FILES = (
    *("config.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"),
    "added_tokens.json",
)
"""Files of a checkpoint, other than the weights, that change what a model computes."""

CONFIG_FACTS = (
    *("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"),
    *("intermediate_size", "position_embedding_type", "max_residues", "token_dropout"),
)


def describe_model(checkpoint: Checkpoint, config: EsmConfig) -> dict[str, Any]:
    """The content of the model file for a checkpoint. Raises WeightsError for damaged weights."""
    from esm_pipeline.model.checkpoints.weight_files import open_tensors
    from esm_pipeline.model.folding.memory import shape_of

    stored_tensors = open_tensors(checkpoint.weight_files).values()
    folding = shape_of(config)._asdict() if config.is_folding_model else None
    return {
        "format": MODEL_FORMAT,
        "format_version": MODEL_FORMAT_VERSION,
        "name": checkpoint.name,
        "revision": checkpoint.revision,
        "weights_sha256": checkpoint.weights_sha256(),
        "files_sha256": other_files(checkpoint),
        "config": {name: getattr(config, name) for name in CONFIG_FACTS},
        "parameters": sum(math.prod(one.shape) for one in stored_tensors if one.is_weight),
        **({} if folding is None else {"folding": folding}),
    }


def other_files(checkpoint: Checkpoint) -> dict[str, str]:
    """Name → digest of the files of a checkpoint that are not its weights."""
    paths = [checkpoint.folder / name for name in OTHER_FILES]
    if checkpoint.is_fair_esm:
        paths = [*checkpoint.weight_files[1:]]  # the contact regression
    return {path.name: sha256(path) for path in paths if path.is_file()}


def write_model_file(target: Path, facts: dict[str, Any]) -> None:
    """Write a model file; in the workflow an absolute path in it is made relative to its folder."""
    if os.environ.get(IN_WORKFLOW) and os.path.isabs(facts["name"]):
        place = os.path.relpath(facts["name"], os.path.realpath(target.parent))
        facts = {**facts, "name": shared_path(facts["name"]), "path": place}
    with atomic_path(target) as path:
        path.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_model_file(path: Path) -> dict[str, Any]:
    """The content of a model file. Raises InputError if it is not one."""
    try:
        facts = read_object(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable model file ({error})") from None
    wanted = {
        **{"name": str, "revision": str | None, "weights_sha256": str},
        "path": str | None,
    }
    if (
        facts.get("format") != MODEL_FORMAT
        or not all(isinstance(facts.get(name), kind) for name, kind in wanted.items())
        or not isinstance(facts.get("files_sha256", {}), dict)
    ):
        raise InputError(
            f"{path}: not a model file; make one with `esm-pipeline download --out {path}`"
        )
    return facts


def find_checkpoint(name: str, revision: str | None, say: Speaker = SILENT) -> Checkpoint:
    """The checkpoint `name`, or the one that the model file `name` describes, without network.

    "demo-fold" is a folding model with random weights, made when it is needed. `say` reports what
    is downloaded. Raises WeightsError if the checkpoint is not found or differs from the model
    file; InputError for a revision together with a model file.
    """
    path = Path(name)
    if path.suffix.lower() != SUFFIX or not path.is_file():
        with downloads_shown(say, name):
            return checkpoint_named(name, revision=revision)
    if revision:
        raise InputError(f"{name}: contains a revision; leave {setting('revision')} out")
    facts = read_model_file(path)
    pinned = {"revision": facts["revision"], "local_files_only": True}
    checkpoint = checkpoint_named(model_in(path, facts), **pinned)
    again = "remove the file, and run the workflow again"
    with waiting(
        f"{say.title}: reading the weights of {shared_path(checkpoint.name)}", quiet=say.quiet
    ):
        digest = checkpoint.weights_sha256()
    if digest != facts["weights_sha256"]:
        raise WeightsError(
            f"{name}: the weights of {checkpoint.name} have changed since it was written; {again}"
        )
    found = other_files(checkpoint)
    for file, digest in facts.get("files_sha256", {}).items():
        if found.get(file) != digest:
            raise WeightsError(
                f"{name}: {file} of {checkpoint.name} has changed since it was written; {again}"
            )
    return checkpoint


def model_in(path: Path, facts: dict[str, Any]) -> str:
    """The model that the file at `path` names: where the configuration has it, or its `path`."""
    name = str(facts["name"])
    if facts.get("path") is None:
        return name
    place = os.path.normpath(os.path.join(os.path.realpath(path.parent), facts["path"]))
    known = json.loads(os.environ.get(LOCAL_MODELS, "[]"))
    named = [one for one in known if shared_path(one) == name]
    return next(iter([] if place in named else named), place)


def checkpoint_named(name: str, **options: Any) -> Checkpoint:
    """The checkpoint with this name; "demo-fold" is the folding model for demonstrations."""
    from esm_pipeline.model import EsmForProteinFolding, resolve_checkpoint
    from esm_pipeline.model.folding.demo import DEMO_FOLD, demo_checkpoint

    if name == DEMO_FOLD:
        return demo_checkpoint(EsmForProteinFolding)
    return resolve_checkpoint(name, **options)
