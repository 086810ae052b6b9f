"""Original fair-esm checkpoints, such as `esm2_t6_8M_UR50D.pt`: as the models were first published.

One file holds the weights and the arguments of training. The contact regression is in a second file
in the same folder, `esm2_t6_8M_UR50D-contact-regression.pt` (ESM-1v has none). Peer: fair-esm
pretrained.py.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from esm_pipeline.errors import WeightsError, brief
from esm_pipeline.model.checkpoints.tensors import PickledFile, is_named_tensors, load_pickle

SUFFIX = ".pt"
REGRESSION_SUFFIX = "-contact-regression.pt"
FAIR_PREFIX = re.compile(r"^(encoder\.)?(sentence_encoder\.)?")
PADDING, MASK, TOKENS = 1, 32, 33
"""Ids and size of the standard alphabet, which all of these models share."""

FAIR_NAMES = {
    r"embed_tokens\.weight": "esm.embeddings.word_embeddings.weight",
    r"embed_positions\.weight": "esm.embeddings.position_embeddings.weight",
    r"emb_layer_norm_before\.(\w+)": r"esm.embeddings.layer_norm.\1",
    r"emb_layer_norm_after\.(\w+)": r"esm.encoder.emb_layer_norm_after.\1",
    r"layers\.(\d+)\.self_attn\.q_proj\.(\w+)": r"esm.encoder.layer.\1.attention.self.query.\2",
    r"layers\.(\d+)\.self_attn\.k_proj\.(\w+)": r"esm.encoder.layer.\1.attention.self.key.\2",
    r"layers\.(\d+)\.self_attn\.v_proj\.(\w+)": r"esm.encoder.layer.\1.attention.self.value.\2",
    r"layers\.(\d+)\.self_attn\.out_proj\.(\w+)": r"esm.encoder.layer.\1.attention.output.dense.\2",
    r"layers\.(\d+)\.self_attn_layer_norm\.(\w+)": r"esm.encoder.layer.\1.attention.LayerNorm.\2",
    r"layers\.(\d+)\.self_attn\.rot_emb\.inv_freq": (
        r"esm.encoder.layer.\1.attention.self.rotary_embeddings.inv_freq"
    ),
    r"layers\.(\d+)\.fc1\.(\w+)": r"esm.encoder.layer.\1.intermediate.dense.\2",
    r"layers\.(\d+)\.fc2\.(\w+)": r"esm.encoder.layer.\1.output.dense.\2",
    r"layers\.(\d+)\.final_layer_norm\.(\w+)": r"esm.encoder.layer.\1.LayerNorm.\2",
    r"contact_head\.(.+)": r"esm.contact_head.\1",
}
"""Key of fair-esm without its prefix → key of the reference; those of the head are the same."""

RENAMES = {re.compile(theirs): ours for theirs, ours in FAIR_NAMES.items()}
FOLDING = "esmfold_"
"""Beginning of the names of ESMFold's files, which are not read: esmfold_3B_v0.pt, …_v1.pt."""

BERT = "roberta_large"
"""The architecture that the files of ESM-1b and ESM-1v name."""


def checkpoint_files(path: Path) -> tuple[Path, ...]:
    """The checkpoint `path`, and its contact regression if that is in the same folder."""
    regression = regression_of(path)
    return (path, regression) if regression.is_file() else (path,)


def regression_of(path: Path) -> Path:
    """Where the contact regression of the checkpoint `path` should be."""
    return path.with_name(path.stem + REGRESSION_SUFFIX)


def open_checkpoint(path: Path) -> PickledFile:
    """The tensors of a checkpoint, or of a contact regression, under the reference's keys.

    Raises WeightsError if it is damaged, or holds anything but tensors and arguments.
    """
    content = read_content(path)
    tensors = {FAIR_PREFIX.sub("", key): tensor for key, tensor in content["model"].items()}
    embedding = tensors.get("embed_tokens.weight")
    if content.get("args") and embedding is not None and embedding.shape[0] > MASK:
        embedding.data[MASK] = 0  # for token dropout; in memory, the file itself stays as it is
    if "lm_head.weight" in tensors:  # one parameter in fair-esm: the last one loaded wins
        tensors["embed_tokens.weight"] = tensors.pop("lm_head.weight")
    return PickledFile(path, {reference_key(key): tensor for key, tensor in tensors.items()})


def reference_key(key: str) -> str:
    """The reference's spelling of a key without its prefix; unknown keys stay as they are."""
    for theirs, ours in RENAMES.items():
        match = theirs.fullmatch(key)
        if match:
            return match.expand(ours)
    return key


def read_fair_settings(path: Path) -> dict[str, Any]:
    """The settings of a checkpoint, as a `config.json` would have them. Raises WeightsError."""
    content = read_content(path)
    settings = {
        "vocab_size": TOKENS,
        "mask_token_id": MASK,
        "pad_token_id": PADDING,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": 1e-5,
        "model_type": "esm",
        "architectures": ["EsmForMaskedLM"],
    }
    if "cfg" in content:
        return settings | esm2_settings(arguments(content["cfg"].get("model"), path), path)
    return settings | esm1_settings(arguments(content["args"], path), content["model"], path)


def esm2_settings(given: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The settings that follow from the training arguments of an ESM-2."""
    width = required(given, "embed_dim", path)
    return {
        "num_hidden_layers": required(given, "layers", path),
        "hidden_size": width,
        "num_attention_heads": required(given, "attention_heads", path),
        "intermediate_size": 4 * width,
        "max_position_embeddings": 1026,
        "position_embedding_type": "rotary",
        "token_dropout": required(given, "token_dropout", path),
        "emb_layer_norm_before": False,
    }


def esm1_settings(
    given: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path
) -> dict[str, Any]:
    """The settings that follow from the training arguments of an ESM-1b or ESM-1v.

    Whether there is a norm before the layers follows from its weights. Raises WeightsError for
    other architectures with the same arguments.
    """
    if required(given, "arch", path) != BERT:
        raise WeightsError(
            f"{path}: its architecture is {brief(given['arch'])}, which is not supported; use "
            "ESM-1b, ESM-1v or ESM-2"
        )
    keys = [FAIR_PREFIX.sub("", key) for key in tensors]
    return {
        "num_hidden_layers": required(given, "layers", path),
        "hidden_size": required(given, "embed_dim", path),
        "num_attention_heads": required(given, "attention_heads", path),
        "intermediate_size": required(given, "ffn_embed_dim", path),
        "max_position_embeddings": required(given, "max_positions", path) + PADDING + 1,
        "position_embedding_type": "absolute",
        "token_dropout": bool(given.get("token_dropout", False)),
        "emb_layer_norm_before": any(key.startswith("emb_layer_norm_before.") for key in keys),
    }


def required(given: Mapping[str, Any], name: str, path: Path) -> Any:
    """A training argument that must be there. Raises WeightsError if it is not."""
    value = given.get(name)
    if value is None or (name != "arch" and not isinstance(value, int)):
        raise WeightsError(f"{path}: its arguments have no usable '{name}'; is the file whole?")
    return value


def arguments(given: Any, path: Path) -> dict[str, Any]:
    """Training arguments by name, without the prefix `encoder_`. Raises WeightsError."""
    values = vars(given) if isinstance(given, argparse.Namespace) else given
    if not isinstance(values, dict):
        raise WeightsError(f"{path}: holds no training arguments; it is not a fair-esm checkpoint")
    return {str(name).removeprefix("encoder_"): value for name, value in values.items()}


def read_content(path: Path) -> dict[str, Any]:
    """The tensors in the file (`model`), with `cfg` or `args`. Raises WeightsError."""
    if path.name.startswith(FOLDING):  # its settings are classes of omegaconf
        raise WeightsError(
            f"{path}: fair-esm's ESMFold, a file without its language model; use "
            "facebook/esmfold_v1, which is complete"
        )
    content = load_pickle(path, argparse.Namespace)
    tensors = content.get("model") if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not is_named_tensors(tensors):
        raise WeightsError(
            f"{path}: not an original fair-esm checkpoint: it has no 'model' with named tensors; "
            "for other weights give the folder that holds them and config.json"
        )
    rotary = not any(key.endswith("embed_positions.weight") for key in tensors)
    if rotary and isinstance(content.get("cfg"), dict):
        return {"model": tensors, "cfg": content["cfg"]}
    return {"model": tensors, "args": content.get("args")}
