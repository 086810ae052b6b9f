"""Write down where results came from: versions, model, settings and inputs.

The only result with a time in it. Everything is read from the results themselves, so that the file
tells what was done and not what was asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import h5py

import esm_pipeline
from esm_pipeline.errors import InputError
from esm_pipeline.files import atomic_path
from esm_pipeline.formats.digests import sha256
from esm_pipeline.settings import Settings, load_settings
from esm_pipeline.tasks.verdict import count

FORMAT_VERSION = 1
PACKAGES = ("h5py", "huggingface_hub", "numpy", "safetensors", "snakemake", "torch")
HOME = Path(esm_pipeline.__file__).resolve().parents[1]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `provenance`."""
    parser.add_argument("--settings", required=True, help="the workflow's settings, as JSON")
    parser.add_argument(
        "--out", required=True, type=Path, help="file to write, in the folder with the results"
    )


def run(args: argparse.Namespace) -> int:
    """Write the file; returns 0. Raises InputError for settings that are none."""
    try:
        values = json.loads(args.settings)
    except json.JSONDecodeError as error:
        raise InputError(f"--settings: not JSON ({error})") from None
    settings = load_settings(values, "--settings")
    facts = provenance(settings, args.out.parent)
    with atomic_path(args.out) as path:
        path.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


def provenance(settings: Settings, folder: Path) -> dict[str, Any]:
    """All there is to tell of the results in `folder`."""
    tables = settings.tables()
    return {
        "format": "esm-pipeline/provenance",
        "format_version": FORMAT_VERSION,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "software": software(),
        "source": source(HOME),
        "settings": settings.model_dump(),
        "samples": {
            name: sample(folder / name, files, settings.shard_count(files), tables.get(name))
            for name, files in settings.inputs().items()
        },
    }


def software() -> dict[str, str]:
    """Versions of the project, of what it depends on, and of what lies under it."""
    versions = {"esm_pipeline": esm_pipeline.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # Snakemake, say, is not in a job's conda environment
    return {**versions, "platform": platform.platform()}


def source(folder: Path) -> dict[str, Any] | None:
    """Commit of the project's own repository and whether files differ from it, if there is one."""
    if not (folder / ".git").exists():
        return None
    try:
        commit = git(folder, "rev-parse", "HEAD")
        changed = git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit, "changed_files": len(changed.splitlines())}


def git(folder: Path, *arguments: str) -> str:
    """What git says."""
    command = ["git", "-C", os.fspath(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def sample(folder: Path, files: list[str], shards: int, variants: str | None) -> dict[str, Any]:
    """Inputs, records and results of one sample."""
    inputs: dict[str, Any] = {"fasta": list(map(origin, files)), "shards": shards}
    if variants is not None:
        inputs["variants"] = origin(variants)
    results = {path.name: attributes(path) for path in sorted(folder.glob("*.h5"))}
    if variants is not None:
        told = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        results["scores.tsv"] = {"bytes": (folder / "scores.tsv").stat().st_size, **told}
    return {**inputs, "records": counts(folder / "records.tsv"), "results": results}


def origin(file: str) -> dict[str, Any]:
    """An input, so that it can be known again."""
    return {"path": file, "bytes": os.path.getsize(file), "sha256": sha256(Path(file))}


def counts(path: Path) -> dict[str, Any]:
    """What validation and each task made of a sample's records."""
    return {
        tally.step: {
            "records": tally.statuses.total(),
            **tally.statuses,
            "duplicates": tally.duplicates,
        }
        for tally in count(path)
    }


def attributes(path: Path) -> dict[str, Any]:
    """What an HDF5 result says of itself: model, revision, digest of the weights, versions."""
    with h5py.File(path) as file:
        values = {name: plain(value) for name, value in file.attrs.items()}
    return {"bytes": path.stat().st_size, **values}


def plain(value: Any) -> Any:
    """An HDF5 attribute as JSON has it; text that is JSON itself is opened."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, str) and value.startswith("{"):
        return json.loads(value)
    return value
