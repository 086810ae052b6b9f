"""The names of all results that a run writes to its output folder.

The workflow's rules make files with these names; `verdict`, `report` and `provenance` count only
these; samples and inputs must not have them. No torch: the workflow imports this through the
settings at every parse.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath


def bundle_names(count: int) -> list[str]:
    """The names of a sample's bundles, `00000` to `count` - 1."""
    return [f"{number:05d}" for number in range(count)]


RECORDS = "records.tsv"
SCORES, SCORE_FACTS = "scores.tsv", "scores.json"
RECORD_COUNTS, SCORE_COUNTS = "counts/records.json", "counts/variants.json"
"""What is counted of the tables above while they are written."""

INPUTS, VARIANTS = "inputs.sha256", "variants.sha256"
"""Digests of a sample's FASTA files, and of its variant table, when they were read."""

STRUCTURES = (
    *("structures.h5", "structures.tsv", "structures.parquet", "flags.tsv", "chain_pairs.tsv"),
    *("structures.sha256", "structures", "pae"),
)
HEATMAPS = ("heatmaps", "heatmaps.sha256")

OF_TASK = {
    "embed": ("embeddings.h5",),
    "score": ("saturation.h5", *HEATMAPS, SCORES, SCORE_FACTS, VARIANTS),
    "classify": ("classes.h5", "classes.tsv", "residue_classes.h5"),
    "fold": STRUCTURES,
}
"""All that a task may write to a sample's folder, with any settings."""

BY_BUNDLE = {
    "embeddings.h5": "embeddings/{}.h5",
    "saturation.h5": "saturation/{}.h5",
    "classes.h5": "classes/{}.h5",
    "residue_classes.h5": "residue_classes/{}.h5",
    "structures.h5": "structures/{}.h5",
    "structures.sha256": "structures/{}/structures.sha256",
    "structures": "structures/{}/structures",
    "pae": "structures/{}/pae",
    "heatmaps": "heatmaps/{}",
    "heatmaps.sha256": "heatmaps/{}.sha256",
}
"""Results that a sample of several bundles has once for each; all others it has once."""

LISTS = {"structures.sha256": ("structures", "pae"), "heatmaps.sha256": ("heatmaps",)}
"""Lists of digests, and the folders whose files each describes."""

FOLDERS = tuple(folder for folders in LISTS.values() for folder in folders)

WORK = ("bundles", "split", "variants", "counts", *OF_TASK)
"""Folders in a sample's folder for intermediate files."""

PROVENANCE, PROVENANCE_LIST = "provenance.json", "provenance.sha256"
REPORT, VERDICT = "report.html", "verdict.txt"
ACCEPTED = ".accepted"
MODELS = "models"
NOT_COUNTED = ("logs", "benchmarks", ACCEPTED)
"""Names next to the samples' folders that are not results."""

MODEL_NAMES = ("model.json", "classify_model.json", "fold_model.json")
"""Model files: of the model of all tasks, or of a task with its own model."""

TOP = (PROVENANCE, PROVENANCE_LIST, REPORT, VERDICT, MODELS, *MODEL_NAMES, *NOT_COUNTED)
"""All names that a run may use next to the samples' folders."""

IN_SAMPLE = tuple(
    dict.fromkeys(
        [
            *(RECORDS, INPUTS, *(name for names in OF_TASK.values() for name in names), *WORK),
            *(PurePosixPath(pattern).parts[0] for pattern in BY_BUNDLE.values()),
        ]
    )
)
"""All names that a run may use in a sample's folder."""


def of_bundles(name: str, bundles: int) -> list[str]:
    """The names of a result of a sample with so many bundles."""
    if bundles == 1 or name not in BY_BUNDLE:
        return [name]
    return [BY_BUNDLE[name].format(bundle) for bundle in bundle_names(bundles)]


def without_bundle(name: str) -> tuple[str, str]:
    """The name that a result has in a sample of one bundle, and its bundle; "" if it has none."""
    for plain, pattern in BY_BUNDLE.items():
        before, after = map(re.escape, pattern.split("{}"))
        if match := re.fullmatch(f"{before}([0-9]{{5,}}){after}", name):
            return plain, match[1]
    return name, ""


def found_as(name: str, names: Collection[str]) -> list[str]:
    """Those of `names` that are the result `name`: itself, or those of the bundles in order."""
    return (
        [name] if name in names else sorted(one for one in names if without_bundle(one)[0] == name)
    )


def listed_folders(name: str) -> list[str]:
    """The folders whose files the list of digests `name` describes; none if it is no list."""
    plain, bundle = without_bundle(name)
    folders = LISTS.get(plain, ())
    return [BY_BUNDLE[folder].format(bundle) if bundle else folder for folder in folders]


def is_taken(name: str, names: Collection[str]) -> bool:
    """Whether `name` is one of `names` on a file system that ignores case."""
    return name.casefold() in {one.casefold() for one in names}


def not_of_this_run(
    folder: Path, models: Collection[str], samples: dict[str, list[str]], tasks: Collection[str]
) -> Iterator[str]:
    """Names in an output folder and its samples' folders that are not of this run, sorted.

    `models` are the model files of this run, `samples` the results of each sample. Hidden files are
    left out: they are temporary, or belong to a file browser.
    """
    own = {PROVENANCE, PROVENANCE_LIST, REPORT, VERDICT, *NOT_COUNTED, *samples}
    own |= {Path(name).parts[0] for name in models}
    for name in visible_names(folder):
        if name not in own:
            yield name
        elif name in samples:
            work = {*tasks, "bundles", "counts"}
            work |= {"split", "variants"} if SCORES in samples[name] else set()
            others_found = _others_in(folder / name, samples[name], work)
            yield from (f"{name}/{other}" for other in others_found)
        elif name == MODELS:
            others = {f"{MODELS}/{other}" for other in visible_names(folder / MODELS)} - {*models}
            yield from sorted(others)


def _others_in(folder: Path, names: Collection[str], work: Collection[str]) -> Iterator[str]:
    """Names in a sample's folder, and in those of its bundles' results, that are not its own."""
    parts = [PurePosixPath(name).parts for name in names]
    for found in visible_names(folder):
        inner = {own[1] for own in parts if own[0] == found and len(own) > 1}
        if found in names or found in work:
            continue
        if not inner:
            yield found
        else:
            yield from (
                f"{found}/{one}" for one in visible_names(folder / found) if one not in inner
            )


def visible_names(folder: Path) -> list[str]:
    """Names in a folder that are not hidden, sorted; none if the folder does not exist."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
