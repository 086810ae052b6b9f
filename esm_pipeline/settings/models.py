"""The models that a configuration names, and their files on this machine.

No torch: the workflow imports this through the settings at every parse.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from esm_pipeline.json_files import read_object
from esm_pipeline.known_models import OWN_NAMES, hub_name, mistyped

MODEL_FILES = re.compile(
    r"config\.json|vocab\.txt|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json"
    r"|.+\.safetensors(\.index\.json)?|(pytorch|adapter)_model.*\.bin(\.index\.json)?"
    r"|adapter_config\.json"
)
"""The names of the files of a checkpoint folder that belong to the model."""


LOCAL_MODELS = "ESM_PIPELINE_MODELS"
"""Environment variable that the workflow sets for its jobs: the absolute paths of its models."""


class Model(NamedTuple):
    """A model of the run, with the tasks that use it."""

    name: str
    revision: str | None
    tasks: list[str]

    def files(self) -> list[str]:
        """Return its files if it is on this machine; none for a hub model and the demo."""
        path = Path(os.path.expanduser(self.name))
        if self.name in OWN_NAMES or not path.exists():
            return []
        if path.is_file():
            regression = path.with_name(f"{path.stem}-contact-regression{path.suffix}")
            found = [file for file in (path, regression) if file.is_file()]
        else:
            found = [file for file in path.iterdir() if MODEL_FILES.fullmatch(file.name)]
        return [*sorted(map(str, found)), *self.base_files(path / "adapter_config.json")]

    def base_files(self, adapter: Path) -> list[str]:
        """Return the files of the base model of an adapter, if that is on this machine."""
        try:
            name = read_object(adapter)["base_model_name_or_path"]
            base = Path(os.path.expanduser(name))
            if (base / adapter.name).exists():  # an adapter of an adapter: an error, reported later
                return []
            return Model(name, None, []).files()
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def architectures(self) -> list[str]:
        """Return the `architectures` of its config.json; none without one on this machine."""
        try:
            path = Path(os.path.expanduser(self.name)) / "config.json"
            names = read_object(path)["architectures"]
        except (OSError, ValueError, KeyError, TypeError):
            return []
        return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []

    def flags(self) -> list[str]:
        """Return the flags of the command line that name it."""
        revision = [f"--revision={self.revision}"] if self.revision else []
        return [f"--model={self.name}", *revision]


def local_models(models: Iterable[Model]) -> str:
    """Return the value of `LOCAL_MODELS`: as JSON, the models that are named by absolute paths.

    Results have none of these paths, and their folder may be moved.
    """
    return json.dumps([model.name for model in models if os.path.isabs(model.name)])


def full_name(model: str) -> str:
    """The model that a key of the configuration means: a hub id for a name of fair-esm.

    Raises ValueError for a mistyped name.
    """
    if not os.path.lexists(os.path.expanduser(model)) and (wrong := mistyped(model)):
        raise ValueError(wrong)
    return hub_name(model)


def full_names(models: dict[str, str]) -> dict[str, str]:
    """The same for each of several models, with or without `@revision`, by their labels."""
    found = {}
    for label, model in models.items():
        name, revision = split_revision(model)
        try:
            found[label] = "@".join([full_name(name), *([revision] if revision else [])])
        except ValueError as error:
            raise ValueError(f"'{label}' = {model!r}: {error}") from None
    return found


def split_revision(model: str) -> tuple[str, str | None]:
    """Split `name@revision`, or a name alone, into name and revision."""
    name, at, revision = model.rpartition("@")
    if not (name and at and revision) or os.path.exists(os.path.expanduser(model)):
        return model, None
    return name, revision


def file_state(file: str) -> tuple[str, int, int]:
    """Return name, size in bytes and time of the last change (ns): they identify a file.

    The time is compared for equality, since a file that replaces another may be the older one.
    """
    facts = os.stat(file)
    return Path(file).name, facts.st_size, facts.st_mtime_ns
