"""The files of a saved tokenizer. Peer: transformers 4.37.2 `PreTrainedTokenizerBase`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from esm_pipeline.errors import WeightsError
from esm_pipeline.files import atomic_path
from esm_pipeline.json_files import read_object
from esm_pipeline.model.alphabet import ALPHABET
from esm_pipeline.model.checkpoints.hub import TOKENIZER_FILES, find_files
from esm_pipeline.model.config import EsmConfig
from esm_pipeline.model.tokenizer.vocabulary import ADDITIONAL, Vocabulary

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
"""Keys of a settings file that say nothing about the tokens; paths are never taken from a file."""

MOST_VOCABULARY = 16 << 20
"""Bytes of a vocabulary file."""


def read_files(
    name: str, overrides: Mapping[str, Any], **where: Any
) -> tuple[Path | Sequence[str], dict[str, Any]]:
    """Vocabulary and settings of the tokenizer `name`; `overrides` replace settings.

    Without a vocabulary file, a checkpoint whose config has 33 tokens gets the standard alphabet.
    `where`: revision, cache_dir, local_files_only, token. Raises WeightsError.
    """
    files = find_files(name, TOKENIZER_FILES, **where)
    vocabulary = files.get(VOCABULARY_FILE)
    if vocabulary is None and (
        EsmConfig.from_pretrained(name, **where).vocab_size != len(ALPHABET)
    ):
        raise WeightsError(f"{name}: no {VOCABULARY_FILE} in it, and not 33 tokens")
    return vocabulary or ALPHABET, read_tokenizer_settings(files, overrides)


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


def read_tokenizer_settings(
    files: Mapping[str, Path], overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """What the files of a tokenizer say, except the vocabulary; `overrides` replace it.

    `files`: name → path of those that the checkpoint has. Files written before transformers 4.34
    keep roles and added tokens apart from the settings. Raises WeightsError for unreadable files.
    """
    settings = read_json_file(files, SETTINGS_FILE)
    settings = {key: value for key, value in settings.items() if key not in NO_SETTINGS}
    settings.update(overrides)
    if DECODER not in settings:
        roles = read_json_file(files, ROLES_FILE)
        listed = [settings.get(ADDITIONAL) or [], roles.get(ADDITIONAL) or []]
        settings.update({role: token for role, token in roles.items() if not overrides.get(role)})
        if not overrides.get(ADDITIONAL):
            settings[ADDITIONAL] = [token for one in listed for token in one]
        added = read_json_file(files, ADDED_FILE)
        settings[DECODER] = {place: token for token, place in added.items()}
    return settings


def read_json_file(files: Mapping[str, Path], name: str) -> dict[str, Any]:
    """The JSON object in a file; empty if there is no such file. Raises WeightsError."""
    path = files.get(name)
    if path is None:
        return {}
    try:
        return read_object(path)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: not readable JSON: {error}; is the file whole?") from None


def write_settings(stem: str, settings: Mapping[str, Any], vocabulary: Vocabulary) -> list[str]:
    """Write all files of a tokenizer except the vocabulary; returns their paths.

    `stem`: folder, and what the names of the files begin with.
    """
    roles = vocabulary.special_tokens_map()
    decoder = {str(place): asdict(token) for place, token in vocabulary.added_tokens().items()}
    written = [
        write_object(Path(stem + SETTINGS_FILE), {**settings, **roles, DECODER: decoder}),
        write_object(Path(stem + ROLES_FILE), roles),
    ]
    if beyond_file := vocabulary.beyond_file():
        written.append(write_object(Path(stem + ADDED_FILE), beyond_file))
    return written


def write_object(path: Path, content: Mapping[str, Any]) -> str:
    """Write a JSON object with sorted keys; returns the path."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    return write_text(path, f"{text}\n")


def write_vocabulary(path: Path, tokens: Sequence[str]) -> str:
    """Write tokens, one a line; returns the path."""
    return write_text(path, "\n".join(tokens))


def write_text(path: Path, text: str) -> str:
    """Write a file as a whole; returns the path."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return str(path)
