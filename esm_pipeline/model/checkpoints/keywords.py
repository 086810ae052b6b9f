"""Keywords of `from_pretrained` and `save_pretrained` that only transformers has.

Some say how transformers should do its work: they are accepted and have no effect. The others would
change the result: they are refused, never ignored.
"""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from esm_pipeline.errors import InputError
from esm_pipeline.known_models import DEMO, hub_name
from esm_pipeline.model.checkpoints.hub import ADAPTER_CONFIG, HUB_OPTIONS

WITHOUT_EFFECT = {
    *("low_cpu_mem_usage", "_fast_init", "trust_remote_code", "resume_download", "mirror"),
    *("use_safetensors", "attn_implementation", "offload_state_dict", "_from_auto"),
    *("_from_pipeline", "_commit_hash", "code_revision", "use_fast", "legacy_format"),
}
REFUSED_KEYWORDS = {
    **dict.fromkeys(
        ("device_map", "max_memory", "offload_folder"), "choose `device`, or call .to(...)"
    ),
    **dict.fromkeys(
        ("load_in_8bit", "load_in_4bit", "quantization_config"),
        "choose `dtype`, and see optimize_for_inference",
    ),
    **dict.fromkeys(("from_tf", "from_flax"), "give weights of PyTorch"),
    **dict.fromkeys(("subfolder", "variant", "gguf_file"), "give the folder that holds the files"),
    **dict.fromkeys(("force_download", "proxies"), "set HF_HOME or HTTPS_PROXY instead"),
    "push_to_hub": "save to a folder, and upload it with `hf upload`",
}
"""Keyword → what to do instead."""

MAIN = "main"
"""The default revision of the reference."""

ARGUMENTS = ("ignore_mismatched_sizes", "output_loading_info", "torch_dtype", "add_pooling_layer")
"""Our own keywords, which a caller may misspell."""


def normalize_kwargs(
    caller: str, name: str | os.PathLike[str] | None, options: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Name of the checkpoint, a hub id for a name of fair-esm, and keywords in our spelling.

    Raises InputError for a refused keyword, and for a call without a name.
    """
    kept = {key: value for key, value in options.items() if key not in WITHOUT_EFFECT}
    given = kept.pop("pretrained_model_name_or_path", None)
    if "use_auth_token" in kept:
        kept["token"] = kept.pop("use_auth_token")
    refuse(caller, kept)
    name = given if name is None else name
    if name is None:
        raise InputError(f"{caller}: give a folder, a hub id, or 'demo'")
    return hub_name(os.fspath(name)), kept


def refuse(caller: str, options: dict[str, Any]) -> None:
    """Remove refused keywords at their defaults from `options`. Raises InputError for others."""
    for name in REFUSED_KEYWORDS.keys() & options.keys():
        value = options.pop(name)
        if value not in (None, False, ""):
            raise InputError(f"{caller}: '{name}' is not here; {REFUSED_KEYWORDS[name]}")


def hub_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options that say where the checkpoint `name` comes from; they are removed from `options`.

    A checkpoint on the disk has no revisions. As in the reference, a revision is then ignored, with
    a warning unless it is the default one.
    """
    where = {key: options.pop(key) for key in HUB_OPTIONS if key in options}
    path = Path(name).expanduser()
    if where.get("revision") and is_local_model(name, path):
        if where["revision"] != MAIN:
            warnings.warn(
                f"{name}: is on this disk, so that revision '{where['revision']}' is ignored",
                stacklevel=4,
            )
        del where["revision"]
    return where


def is_local_model(name: str, path: Path) -> bool:
    """Whether a checkpoint is on the disk and is not an adapter, whose base model may be remote."""
    return name == DEMO or (path.exists() and not (path / ADAPTER_CONFIG).is_file())


def refuse_unknown(caller: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Raise InputError for a keyword that is not `known`, with the most similar one that is."""
    known = [*known]
    for name in options:
        if name not in known:
            right = [*known, *ARGUMENTS, *HUB_OPTIONS]
            near = difflib.get_close_matches(name, right, n=1, cutoff=0.8)
            remedy = f"did you mean '{near[0]}'?" if near else "set it on the config afterwards"
            raise InputError(f"{caller}: no argument and no setting '{name}'; {remedy}")
