"""The files of a saved tokenizer. Peer: transformers 4.37.2 `PreTrainedTokenizerBase`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esm_pipeline.errors import WeightsError
from esm_pipeline.files import atomic_path
from esm_pipeline.json_files import read_object as read_json
from esm_pipeline.model.checkpoints.hub import find_file
from esm_pipeline.model.tokenizer.special_tokens import ADDITIONAL

VOCABULARY_FILE = "vocab.txt"
SETTINGS_FILE = "tokenizer_config.json"
ROLES_FILE = "special_tokens_map.json"
ADDED_FILE = "added_tokens.json"
DECODER = "added_tokens_decoder"
ADDITIONAL_IN_5 = "extra_special_tokens"
NO_SETTINGS = (
    *("tokenizer_class", "init_inputs", "name_or_path", "auto_map", "backend", "is_local"),
    *("vocab_file", "tokenizer_file", "special_tokens_map_file", "local_files_only"),
)
"""Keys of a settings file that say nothing of the tokens; paths are never taken from there."""

MOST_VOCABULARY = 16 << 20
"""Bytes of a vocabulary file."""


def read_vocabulary(path: Path) -> list[str]:
    """The tokens of a vocabulary file, one a line. Raises WeightsError."""
    try:
        with open(path, "rb") as handle:
            content = handle.read(MOST_VOCABULARY + 1)
        if len(content) > MOST_VOCABULARY:
            raise ValueError(f"larger than {MOST_VOCABULARY >> 20} MiB")
        return [line.strip() for line in content.decode("utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: not a readable vocabulary ({error})") from None


def read_settings(name: str, overrides: Mapping[str, Any], **where: Any) -> dict[str, Any]:
    """What the files of the tokenizer `name` say but its vocabulary, `overrides` over all.

    Files written before 4.34 keep roles and added tokens apart from the settings. Raises
    WeightsError for files that cannot be read.
    """
    settings = read_object(name, SETTINGS_FILE, **where)
    settings = {key: value for key, value in settings.items() if key not in NO_SETTINGS}
    settings.update(overrides)
    if DECODER not in settings:
        roles = read_object(name, ROLES_FILE, **where)
        listed = [settings.get(ADDITIONAL) or [], roles.get(ADDITIONAL) or []]
        settings.update({role: token for role, token in roles.items() if not overrides.get(role)})
        if not overrides.get(ADDITIONAL):
            settings[ADDITIONAL] = [token for one in listed for token in one]
        added = read_object(name, ADDED_FILE, **where)
        settings[DECODER] = {place: token for token, place in added.items()}
    return settings


def read_object(name: str, file: str, **where: Any) -> dict[str, Any]:
    """The JSON object in a file of `name`; empty if there is no such file. Raises WeightsError."""
    path = find_file(name, file, **where)
    if path is None:
        return {}
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: not readable JSON: {error}; is the file whole?") from None


def write_object(path: Path, content: Mapping[Any, Any]) -> str:
    """Write a JSON object, keys in order; returns the path."""
    with atomic_path(path) as temporary:
        text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
        temporary.write_text(f"{text}\n", encoding="utf-8")
    return str(path)
