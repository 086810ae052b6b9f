"""Record where results come from: versions, models, settings and inputs, with their digests.

The only result with a time in it, and the last: it has the digests of all other results of the run,
for files of structures and pictures those of the lists of their digests. Its own digest is in the
file next to it. Everything but the settings is read from the results and what was counted of them:
the file says what was done. A file whose digest was listed when it was written, and that has not
changed since, is not read again.
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
from esm_pipeline.files import atomic_paths, shared_path
from esm_pipeline.formats.checksums import CHECKSUM_REMEDY, read_list, sha256, write_digests
from esm_pipeline.formats.input_checksums import MARGIN, changed, gone, last_change, listed_name
from esm_pipeline.formats.results.attributes import read_attributes
from esm_pipeline.formats.results.validation import open_hdf5, reading
from esm_pipeline.locks import Outputs
from esm_pipeline.settings import Settings
from esm_pipeline.settings.result_names import (
    FOLDERS,
    INPUTS,
    PROVENANCE_LIST,
    REPORT,
    SCORE_FACTS,
    SCORES,
    VARIANTS,
    VERDICT,
    without_bundle,
)
from esm_pipeline.tasks.common.model_file import read_model_file
from esm_pipeline.tasks.common.outputs import ending_of
from esm_pipeline.tasks.common.progress import waiting
from esm_pipeline.tasks.common.tallies import VARIANTS_STEP
from esm_pipeline.tasks.run.tallies import (
    SampleResults,
    add_run_flags,
    counted_sample,
    files_of_other_runs,
    listed_digests,
    settings_of,
)

PROVENANCE_FORMAT_VERSION = 2
PACKAGES = ("biotite", "h5py", "huggingface_hub", "numpy", "safetensors", "snakemake", "torch")
HOME = Path(esm_pipeline.__file__).resolve().parents[1]


EXAMPLES = (
    (
        """esm-pipeline provenance --settings '{"fasta": "a.fa"}' --out results/provenance.json""",
        "versions, models, inputs and digests of what is in the folder results",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `provenance`."""
    add_run_flags(parser)


def outputs(args: argparse.Namespace) -> Outputs:
    """What `provenance` writes."""
    return Outputs([args.out, args.out.with_name(PROVENANCE_LIST)])


def run(args: argparse.Namespace) -> int:
    """Write the file and its digest; returns 0. Raises InputError for unusable settings."""
    ending_of(args.out, (".json",))
    with waiting("provenance: reading the results"):
        facts = provenance(settings_of(args), args.out.parent)
    with atomic_paths(args.out, args.out.with_name(PROVENANCE_LIST)) as (path, listed):
        path.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        write_digests(listed, {args.out.name: path})
    return 0


def provenance(settings: Settings, folder: Path) -> dict[str, Any]:
    """The provenance of the results in `folder`, which also has the files of the models."""
    tables, models, inputs = settings.tables(), settings.models(), settings.inputs()
    return {
        "format": "esm-pipeline/provenance",
        "format_version": PROVENANCE_FORMAT_VERSION,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "software": versions(),
        "source": source(HOME),
        "settings": shareable(settings.model_dump()),
        "models": {
            name.removesuffix(".json"): {**model_facts(folder / name), "tasks": model.tasks}
            for name, model in models.items()
            if (folder / name).exists()
        },
        "samples": {
            name: {
                **sample_inputs(folder / name, inputs[name], tables.get(name)),
                **division(settings, inputs[name], tables.get(name)),
                "records": counts(counted_sample(folder / name, names, settings.tasks)),
                "results": sample_results(folder / name, names),
            }
            for name, names in settings.results().items()
        },
        "results": {name: result(folder / name) for name in (*models, REPORT, VERDICT)},
        "not_of_this_run": files_of_other_runs(settings, folder),
    }


def model_facts(path: Path) -> dict[str, Any]:
    """The facts in a model file: name, commit, digest of the weights, and shape."""
    facts = read_model_file(path)
    return {name: facts[name] for name in facts if name not in ("format", "format_version", "path")}


def shareable(settings: Any) -> Any:
    """Settings without absolute paths; see `shared_path`."""
    if isinstance(settings, dict):
        return {name: shareable(value) for name, value in settings.items()}
    if isinstance(settings, list):
        return [shareable(value) for value in settings]
    return shared_path(settings) if isinstance(settings, str) else settings


def versions() -> dict[str, str]:
    """Versions of the project, its dependencies, Python and the platform."""
    found = {"esm_pipeline": esm_pipeline.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # a job's conda environment has no Snakemake, for example
    return {**found, "platform": platform.platform()}


def source(folder: Path) -> dict[str, Any] | None:
    """Commit of the project's own repository and how many files differ from it, if there is one."""
    if not (folder / ".git").exists():
        return None
    try:
        commit = git(folder, "rev-parse", "HEAD")
        changed = git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit, "changed_files": len(changed.splitlines())}


def git(folder: Path, *arguments: str) -> str:
    """The output of a git command."""
    command = ["git", "-C", os.fspath(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def division(settings: Settings, files: list[str], table: str | None) -> dict[str, Any]:
    """The number of bundles of a sample, and of jobs of each task."""
    tasks = [task for task in settings.tasks if task != "score" or settings.score.saturation]
    jobs: dict[str, int] = {task: sum(settings.range_counts(task, files)) for task in tasks}
    if table is not None:
        jobs[VARIANTS_STEP] = settings.table_range_count(table)
    return {"bundles": settings.bundle_count(files), "jobs": jobs}


def sample_inputs(folder: Path, files: list[str], variants: str | None) -> dict[str, Any]:
    """The inputs of one sample."""
    found: dict[str, Any] = {"fasta": inputs(files, folder / INPUTS)}
    if variants is not None:
        found["variants"] = inputs([variants], folder / VARIANTS)[0]
    return found


def inputs(files: list[str], listing: Path) -> list[dict[str, Any]]:
    """Path, size and digest of each input; `listing` has the digests of when they were read.

    Raises InputError for an input that has changed since, or is missing.
    """
    try:
        sizes = [os.path.getsize(file) for file in files]
        listed = {listed_name(name): digest for digest, name in read_list(listing)}
        before = listing.stat().st_mtime_ns - MARGIN
        for file in files:
            name = listed_name(file)
            known = last_change(file) < before and name in listed
            if not known and sha256(Path(file)) != listed.get(name):
                raise changed(file, listing)
    except OSError as error:
        raise gone(os.fsdecode(error.filename), error) from None
    return [
        {"path": shared_path(file), "bytes": size, "sha256": listed[listed_name(file)]}
        for file, size in zip(files, sizes, strict=True)
    ]


def sample_results(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Size and digest of each result of a sample, and the facts stored with it.

    Files in folders are covered by lists of digests, which are results too.
    """
    known = listed_digests(folder)
    return {
        name: {
            **result(folder / name, *known.get(os.path.normpath(folder / name), ("", None))),
            **stored_facts(folder / name),
        }
        for name in names
        if without_bundle(name)[0] not in FOLDERS
    }


def result(path: Path, digest: str = "", listing: Path | None = None) -> dict[str, Any]:
    """Size and digest of a result. Raises InputError if it is missing or has changed."""
    try:
        return {"bytes": path.stat().st_size, "sha256": digest_of(path, digest, listing)}
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); run the workflow again to make it"
        ) from None


def digest_of(path: Path, digest: str, listing: Path | None) -> str:
    """The digest of a result: as in `listing` since it was written, or by reading the file.

    Raises InputError if it has changed since. The file is read again only if its time of change
    does not show that it is unchanged.
    """
    if listing and path.stat().st_ctime_ns <= listing.stat().st_ctime_ns:
        return digest
    found = sha256(path)
    if listing and found != digest:
        raise InputError(f"{path}: has changed since it was written; {CHECKSUM_REMEDY}")
    return found


def stored_facts(path: Path) -> dict[str, Any]:
    """The facts stored in a result, or for a table of scores in the file next to it."""
    if path.suffix == ".h5":
        return attributes(path)
    return score_facts(path) if path.name == SCORES else {}


def score_facts(path: Path) -> dict[str, Any]:
    """The facts in the file next to a table of scores."""
    origin = path.with_name(SCORE_FACTS)
    try:
        return {**json.loads(origin.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{origin}: cannot be read ({error}); remove it and run the workflow again"
        ) from None


def counts(sample: SampleResults) -> dict[str, Any]:
    """The outcomes of a sample's records, in validation and in each task."""
    return {
        tally.step: {
            "records": tally.statuses.total(),
            **{status: number for status, number in tally.statuses.items() if number},
            "duplicates": tally.duplicates,
        }
        for tally in sample.tallies()
    }


def attributes(path: Path) -> dict[str, Any]:
    """The attributes of an HDF5 result: model, revision, digest of the weights, versions."""
    try:
        with open_hdf5(path) as file, reading(path):
            return {name: json_value(value) for name, value in read_attributes(file).items()}
    except DamagedError as error:
        raise InputError(
            f"{path}: not a complete HDF5 result ({error.why}); "
            "remove it and run the workflow again"
        ) from None


def json_value(value: Any) -> Any:
    """An HDF5 attribute as a value for JSON; text that is JSON itself is parsed."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, str) and value.startswith(("{", "[")):
        return json.loads(value)
    return value
