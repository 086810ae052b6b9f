"""What a run writes into its output folder: the names of all results, by the settings.

The workflow asks its rules for these names; `verdict`, `report` and `provenance` count these and no
others; no sample and no input may stand in their way. No torch: the workflow imports this through
the settings at every parse.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

RECORDS = "records.tsv"
SCORES = "scores.tsv"
INPUTS, VARIANTS = "inputs.sha256", "variants.sha256"
"""What a sample's FASTA files, and its table of variants, were when they were read."""

STRUCTURES = ("structures.h5", "structures.tsv", "structures.sha256", "structures", "pae")
HEATMAPS = ("heatmaps", "heatmaps.sha256")

OF_TASK = {
    "embed": ("embeddings.h5",),
    "score": ("saturation.h5", *HEATMAPS, SCORES, "scores.json", VARIANTS),
    "classify": ("classes.h5", "classes.tsv", "residue_classes.h5"),
    "fold": STRUCTURES,
}
"""All that a task may leave in a sample's folder, by any settings."""

LISTS = {"structures.sha256": ("structures", "pae"), "heatmaps.sha256": ("heatmaps",)}
"""Lists of digests among them, and the folders whose files each has."""

FOLDERS = tuple(folder for folders in LISTS.values() for folder in folders)

WORK = ("shards", "split", "variants", *OF_TASK)
"""Folders in a sample's folder for what is on the way to results."""

PROVENANCE, PROVENANCE_LIST = "provenance.json", "provenance.sha256"
REPORT, VERDICT = "report.html", "verdict.txt"
ACCEPTED = ".accepted"
MODELS = "models"
NOT_COUNTED = ("logs", "benchmarks", ACCEPTED)
"""What lies beside the samples' folders and is no result."""

MODEL_NAMES = ("model.json", "classify_model.json", "fold_model.json")
"""Files that tell which model all tasks run, or one that has its own."""

TOP = (PROVENANCE, PROVENANCE_LIST, REPORT, VERDICT, MODELS, *MODEL_NAMES, *NOT_COUNTED)
"""All that any run may leave beside the samples' folders."""

IN_SAMPLE = (RECORDS, INPUTS, *(name for names in OF_TASK.values() for name in names), *WORK)
"""All that any run may leave in a sample's folder."""


def is_taken(name: str, names: Collection[str]) -> bool:
    """Whether a file system that ignores case takes `name` for one of `names`."""
    return name.casefold() in {one.casefold() for one in names}


def not_of_this_run(
    folder: Path, models: Collection[str], samples: dict[str, list[str]], tasks: Collection[str]
) -> Iterator[str]:
    """What else lies in an output folder, beside its files and in its samples' folders, sorted.

    `models` are the files that tell which models were used, `samples` the results of each sample.
    Hidden files are left out: they are temporary, or of a file browser.
    """
    own = {PROVENANCE, PROVENANCE_LIST, REPORT, VERDICT, *NOT_COUNTED, *samples}
    own |= {Path(name).parts[0] for name in models}
    for name in visible(folder):
        if name not in own:
            yield name
        elif name in samples:
            work = {*tasks, "shards", *(("split", "variants") if SCORES in samples[name] else ())}
            others = set(visible(folder / name)) - {*samples[name], *work}
            yield from (f"{name}/{other}" for other in sorted(others))
        elif name == MODELS:
            others = {f"{MODELS}/{other}" for other in visible(folder / MODELS)} - {*models}
            yield from sorted(others)


def visible(folder: Path) -> list[str]:
    """Names in a folder that are not hidden, sorted; none if it is not there."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
