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

import esm_pipeline
from esm_pipeline.errors import DamagedError, InputError
from esm_pipeline.files import atomic_path
from esm_pipeline.formats.declared import judging, open_hdf5, read_attributes
from esm_pipeline.formats.digests import line, sha256
from esm_pipeline.locks import Outputs
from esm_pipeline.settings import Settings, load_settings
from esm_pipeline.tasks.endings import ending_of
from esm_pipeline.tasks.model_file import read_model_file
from esm_pipeline.tasks.verdict import count

FORMAT_VERSION = 1
INPUTS = "inputs.sha256"
VARIANTS = "variants.sha256"
"""In a sample's folder: what its FASTA files were when they were read."""
PACKAGES = ("biotite", "h5py", "huggingface_hub", "numpy", "safetensors", "snakemake", "torch")
HOME = Path(esm_pipeline.__file__).resolve().parents[1]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `provenance`."""
    parser.add_argument("--settings", required=True, help="the workflow's settings, as JSON")
    parser.add_argument(
        "--out", required=True, type=Path, help="file to write, in the folder with the results"
    )


def outputs(args: argparse.Namespace) -> Outputs:
    """What `provenance` writes."""
    return Outputs([args.out])


def run(args: argparse.Namespace) -> int:
    """Write the file; returns 0. Raises InputError for settings that are none."""
    ending_of(args.out, (".json",))
    try:
        values = json.loads(args.settings)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"--settings: not JSON ({error})") from None
    settings = load_settings(values, "--settings")
    facts = provenance(settings, args.out.parent)
    with atomic_path(args.out) as path:
        path.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


def provenance(settings: Settings, folder: Path) -> dict[str, Any]:
    """All there is to tell of the results in `folder`, where the files of the models lie too."""
    tables = settings.tables()
    return {
        "format": "esm-pipeline/provenance",
        "format_version": FORMAT_VERSION,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "software": software(),
        "source": source(HOME),
        "settings": settings.model_dump(),
        "models": {
            name.removesuffix(".json"): {**model_facts(folder / name), "tasks": model.tasks}
            for name, model in settings.models().items()
            if (folder / name).exists()
        },
        "samples": {
            name: sample(folder / name, files, settings.shard_count(files), tables.get(name))
            for name, files in settings.inputs().items()
        },
    }


def model_facts(path: Path) -> dict[str, Any]:
    """What a model file tells: name, commit, digest of the weights, and shape."""
    facts = read_model_file(path)
    return {name: facts[name] for name in facts if name not in ("format", "format_version")}


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
    told: dict[str, Any] = {"fasta": inputs(files, folder / INPUTS), "shards": shards}
    results = {path.name: attributes(path) for path in sorted(folder.glob("*.h5"))}
    if variants is not None:
        told["variants"] = inputs([variants], folder / VARIANTS)[0]
        results["scores.tsv"] = scores(folder)
    return {**told, "records": counts(folder / "records.tsv"), "results": results}


def scores(folder: Path) -> dict[str, Any]:
    """What is told of a table of scores beside it."""
    try:
        told = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        return {"bytes": (folder / "scores.tsv").stat().st_size, **told}
    except (FileNotFoundError, ValueError, TypeError) as error:
        raise InputError(
            f"{folder / 'scores.json'}: cannot be read ({error}); remove it and run the workflow "
            "again"
        ) from None


def inputs(files: list[str], listing: Path) -> list[dict[str, Any]]:
    """Path, size and digest of each input, as `listing` has it from when it was read.

    Raises InputError for one that has changed since, or is not there any more.
    """
    found = [origin(file) for file in files]
    try:
        lines = os.fsdecode(listing.read_bytes()).splitlines(keepends=True)
    except OSError as error:
        raise InputError(
            f"{listing}: cannot be read ({error.strerror}); run the workflow again to make it"
        ) from None
    for one in found:
        if line(one["sha256"], one["path"]) not in lines:
            raise InputError(
                f"{one['path']}: has changed since the workflow read it; remove {listing} and run "
                "the workflow again"
            )
    return found


def origin(file: str) -> dict[str, Any]:
    """Size and digest of an input. Raises InputError if it is not there any more."""
    try:
        return {"path": file, "bytes": os.path.getsize(file), "sha256": sha256(Path(file))}
    except OSError as error:
        raise InputError(
            f"{file}: cannot be read any more ({error.strerror}); put the input back"
        ) from None


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
    try:
        with open_hdf5(path) as file, judging(path):
            values = {name: plain(value) for name, value in read_attributes(file).items()}
    except DamagedError as error:
        raise InputError(
            f"{path}: not a whole HDF5 result ({error.why}); remove it and run the workflow again"
        ) from None
    return {"bytes": path.stat().st_size, **values}


def plain(value: Any) -> Any:
    """An HDF5 attribute as JSON has it; text that is JSON itself is opened."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, str) and value.startswith(("{", "[")):
        return json.loads(value)
    return value
