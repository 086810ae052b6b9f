"""Results of every kind: the committed run, and what other settings and commands write."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import h5py
import numpy as np
import pyarrow.parquet
import torch

from esm_pipeline import (
    EsmConfig,
    EsmForSequenceClassification,
    EsmForTokenClassification,
    EsmTokenizer,
)
from esm_pipeline.cli import main
from esm_pipeline.errors import IN_WORKFLOW
from esm_pipeline.settings.result_names import IN_SAMPLE, MODELS, TOP
from esm_pipeline.structure.quality import FLAGS_OF_FILES
from tests.workflow.tools import GOLDEN, SAMPLE, TINY

RESULTS = GOLDEN / "results"
FASTA, VARIANTS, MODEL = (
    GOLDEN / name for name in ("my proteins.fasta", "my variants.csv", "model")
)
CLASSIFIERS = {
    "single": ("single_label_classification", ["one", "two"]),
    "multi": ("multi_label_classification", ["one", "two"]),
    "value": ("regression", ["one"]),
    "values": ("regression", ["one", "two"]),
}
OWN_FLAGS = [*FLAGS_OF_FILES]
"""Flags that structures.tsv adds to those in structures.h5."""


def run(command: str, *arguments: str | Path) -> None:
    """Run a command, which has to succeed."""
    quiet = [] if command == "classes" else ["--quiet"]
    assert main([command, *quiet, *map(str, arguments)]) == 0


def save_classifier(folder: Path, kind: type, problem: str, labels: list[str]) -> Path:
    """Save a tiny classifier with random weights; returns its folder."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        **TINY,
        "id2label": dict(enumerate(labels)),
        "problem_type": problem,
    }
    kind(EsmConfig(**settings)).save_pretrained(folder)
    EsmTokenizer.standard().save_pretrained(folder)
    return folder


def make(folder: Path) -> None:
    """Write what the committed run does not have; in `run/` what a run would write."""
    for name, (problem, labels) in CLASSIFIERS.items():
        model = save_classifier(folder / name, EsmForSequenceClassification, problem, labels)
        arrays, table = folder / name / "classes.h5", folder / name / "classes.tsv"
        provenance = folder / name / "classify.json"
        run("classify", "--model", model, "--provenance", provenance, FASTA, arrays)
        run("classes", "--records", arrays.with_suffix(".records.tsv"), arrays, table)
    model = save_classifier(folder / "residues", EsmForTokenClassification, *CLASSIFIERS["single"])
    elsewhere = folder / "elsewhere" / "model.json"
    with patch.dict(os.environ, {IN_WORKFLOW: "1"}):
        assert main(["download", "--model", str(MODEL), "--out", str(elsewhere)]) == 0
    ensemble = ["--model", MODEL, "--model", MODEL, "--label", "a", "--label", "b"]
    for suffix in ("h5", "tsv"):
        run("classify", "--model", model, FASTA, folder / f"residue_classes.{suffix}")
        run("score", *ensemble, "--saturation", FASTA, folder / f"saturation.{suffix}")
    run("heatmaps", "--id=copy", folder / "saturation.h5", folder / "run/a/heatmaps")
    for strategy in ("wt_marginal", "pseudo_log_likelihood"):
        scores = folder / strategy / "scores.tsv"
        scores.parent.mkdir()
        flags = ["--strategy", strategy, "--provenance", scores.with_suffix(".json")]
        run("score", *ensemble, *flags, "--variants", VARIANTS, FASTA, scores)
    run("embed", "--model", MODEL, "--include=mean,bos", FASTA, folder / "embeddings.tsv")
    (folder / "array").mkdir()
    run("embed", "--model", MODEL, FASTA, folder / "array/OUT.npy")
    run("export", "--format=per-protein", RESULTS / SAMPLE / "embeddings.h5", folder / "OUT.h5")
    (folder / "OUT.names.tsv").rename(folder / "array/OUT.names.tsv")
    records, arrays = RESULTS / SAMPLE / "records.tsv", RESULTS / SAMPLE / "structures.h5"
    for name, archive in (("a", "false"), ("b", "true")):
        flags = ["--formats=pdb,cif,foldcomp", "--pae=json,npz,cif", f"--archive={archive}"]
        run("structures", *flags, "--records", records, arrays, folder / "run" / name)


# What is in them.


def files_named(folder: Path, name: str) -> list[Path]:
    """All files of a name, which may have placeholders such as `{index}`."""
    pattern = re.sub(r"\{[a-z]+\}", "*", name)
    return [file for place in (RESULTS, folder) for file in sorted(place.rglob(pattern))]


def files_written(folder: Path) -> Iterator[str]:
    """Paths of all files that a run or a single command may write, the sample as `{sample}`."""
    for place, samples in ((RESULTS, (SAMPLE,)), (folder / "run", ("a", "b"))):
        for file in place.rglob("*"):
            top, *parts = file.relative_to(place).parts
            if file.is_file():
                yield "/".join(["{sample}" if top in samples else top, *parts])
    yield from (name for name in TOP if name != MODELS)
    yield f"{MODELS}/one.json"
    yield from (f"{{sample}}/{name}" for name in IN_SAMPLE if "." in name)
    yield from (file.name for file in (folder / "array").iterdir())


def columns_of(file: Path) -> list[str]:
    """Column names of a table; for scores.tsv those after the columns of the input."""
    if file.suffix == ".parquet":
        return [*pyarrow.parquet.read_schema(file).names]
    with file.open(newline="", encoding="utf-8") as lines:
        if file.suffix != ".tsv":
            return next(lines).split()
        names = next(csv.reader(lines, delimiter="\t"))
    if file.name != "scores.tsv":
        return names
    with VARIANTS.open(newline="", encoding="utf-8") as lines:
        before = next(csv.reader(lines))
    assert names[: len(before)] == before
    return names[len(before) :]


def datasets_of(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of each dataset of an HDF5 file."""
    found = {}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            kind = {"O": "text", "S": "letter"}.get(item.dtype.kind, item.dtype.name)
            found[name] = (item.shape, kind)

    with h5py.File(file) as handle:
        handle.visititems(visit)
    return found


def attributes_of(file: Path) -> list[str]:
    """Names of the attributes of an HDF5 file."""
    with h5py.File(file) as handle:
        return list(handle.attrs)


def sizes_of(file: Path) -> dict[str, int]:
    """N records, U sequences, R residues of these and P pairs of residues."""
    with h5py.File(file) as handle:
        length = handle["length"][...].astype(int)
        return {
            "N": len(handle["id"]),
            "U": len(length),
            "R": int(length.sum()),
            "P": int((length**2).sum()),
        }


def keys_of(file: Path) -> list[str]:
    """Top-level keys of a JSON file, or of the one object in its list."""
    content = json.loads(file.read_text(encoding="utf-8"))
    return list(content[0] if isinstance(content, list) else content)


def arrays_of(file: Path) -> list[str]:
    """Names of the arrays in an npz file."""
    with np.load(file) as arrays:
        return arrays.files


def flags_of(_: Path) -> list[str]:
    """Flags that a table of structures may have: those of the arrays, and its own."""
    with h5py.File(RESULTS / SAMPLE / "structures.h5") as handle:
        return [*json.loads(handle.attrs["flags"]), *OWN_FLAGS]


READERS: dict[str, Callable[[Path], Iterable[str]]] = {
    "column": columns_of,
    "dataset": datasets_of,
    "attribute": attributes_of,
    "key": keys_of,
    "array": arrays_of,
    "flag": flags_of,
}
"""What is listed of a file, by the first column of the table that lists it."""
