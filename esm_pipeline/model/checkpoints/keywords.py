"""Keywords of the reference's `from_pretrained` and `save_pretrained` beyond our own.

Some say how the reference should go about its work: they are taken, and mean nothing here. The
others would change what comes out: those are refused, never ignored.
"""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from esm_pipeline.errors import InputError
from esm_pipeline.model.checkpoints.hub import ADAPTER_CONFIG, DEMO, HUB_OPTIONS

WITHOUT_EFFECT = {
    *("low_cpu_mem_usage", "_fast_init", "trust_remote_code", "resume_download", "mirror"),
    *("use_safetensors", "attn_implementation", "offload_state_dict", "_from_auto"),
    *("_from_pipeline", "_commit_hash", "code_revision", "use_fast", "legacy_format"),
}
REFUSED = {
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
"""The revision that the reference asks for unless told."""

ARGUMENTS = ("ignore_mismatched_sizes", "output_loading_info", "torch_dtype", "add_pooling_layer")
"""Our own, that one may misspell."""


def settle(
    caller: str, name: str | os.PathLike[str] | None, options: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Name of the checkpoint and keywords of a call, in our spelling.

    Raises InputError for a keyword that cannot be followed, and for a call without a name.
    """
    settled = {key: value for key, value in options.items() if key not in WITHOUT_EFFECT}
    given = settled.pop("pretrained_model_name_or_path", None)
    if "use_auth_token" in settled:
        settled["token"] = settled.pop("use_auth_token")
    refuse(caller, settled)
    name = given if name is None else name
    if name is None:
        raise InputError(f"{caller}: give a folder, a hub id, or 'demo'")
    return os.fspath(name), settled


def refuse(caller: str, options: dict[str, Any]) -> None:
    """Take out of `options` what was left at its default, and raise InputError for the rest."""
    for name in REFUSED.keys() & options.keys():
        value = options.pop(name)
        if value not in (None, False, ""):
            raise InputError(f"{caller}: '{name}' is not here; {REFUSED[name]}")


def hub_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """What of `options` says where the checkpoint `name` is from; taken out of them.

    What lies on the disk has no revisions, as in the reference: one beside it is left out, with a
    warning unless it is the default's name.
    """
    where = {key: options.pop(key) for key in HUB_OPTIONS if key in options}
    path = Path(name).expanduser()
    if where.get("revision") and is_whole(name, path):
        if where["revision"] != MAIN:
            warnings.warn(
                f"{name}: lies on the disk, where revision '{where['revision']}' means nothing",
                stacklevel=4,
            )
        del where["revision"]
    return where


def is_whole(name: str, path: Path) -> bool:
    """Whether a checkpoint lies on the disk, and is no adapter, whose base model may have one."""
    return name == DEMO or (path.exists() and not (path / ADAPTER_CONFIG).is_file())


def refuse_unknown(caller: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Raise InputError for a keyword that is none of `known`, with the nearest that is."""
    known = [*known]
    for name in options:
        if name not in known:
            right = [*known, *ARGUMENTS, *HUB_OPTIONS]
            near = difflib.get_close_matches(name, right, n=1, cutoff=0.8)
            remedy = f"did you mean '{near[0]}'?" if near else "set it on the config afterwards"
            raise InputError(f"{caller}: no argument and no setting '{name}'; {remedy}")
