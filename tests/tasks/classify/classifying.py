"""Checkpoints with classifiers, as transformers saves them, and what they say by it alone."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from esm_pipeline import EsmTokenizer
from esm_pipeline.cli import main
from tests.oracles.peers import ESM2, SMALL, enliven

FASTA = """\
>a first
MKTAYIAKQRQISFVKSHFSRQ
>b
GAVLIW
>stop
MK*V
>c again
MKTAYIAKQRQISFVKSHFSRQ
>d
ACDEFGHIKLMNPQRSTVWYBUZOX
>chains
MKV:GAV
>e
W
"""
SEQUENCES = {"a": "MKTAYIAKQRQISFVKSHFSRQ", "b": "GAVLIW", "c": "MKTAYIAKQRQISFVKSHFSRQ"}
SEQUENCES |= {"d": "ACDEFGHIKLMNPQRSTVWYBUZOX", "e": "W"}
NAMES = {0: "inside", 1: "outside", 2: "spans it"}
TOLERANCE = 1e-5
MULTI = "multi_label_classification"
PROBLEMS = ["regression", "single_label_classification", MULTI, None]
SEQUENCE, RESIDUE = "EsmForSequenceClassification", "EsmForTokenClassification"
TABLES = {".tsv": "\t", ".csv": ","}


def save(folder: Path, name: str, kind: dict[str, Any] = ESM2, **settings: Any) -> nn.Module:
    """A checkpoint of transformers with random weights, large enough to tell things apart."""
    settings.setdefault("id2label", NAMES)
    torch.manual_seed(0)
    config = transformers.EsmConfig(**{**SMALL, **kind, **settings})
    peer = getattr(transformers, name)(config)
    enliven(peer)
    peer.eval().save_pretrained(folder)
    EsmTokenizer.standard().save_pretrained(folder)
    return peer


def change_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


@torch.no_grad()
def expected(peer: nn.Module, problem: str | None) -> dict[str, np.ndarray]:
    """What the checkpoint says of each sequence, or its residues, one at a time: (…, K)."""
    tokenizer = EsmTokenizer.standard()
    found = {}
    for name, sequence in SEQUENCES.items():
        logits = peer(**tokenizer(sequence, return_tensors="pt")).logits[0]
        if logits.ndim == 2:
            logits = logits[1:-1]
        expected = {"regression": logits, MULTI: logits.sigmoid()}
        found[name] = expected.get(problem or "", logits.softmax(-1)).numpy()
    return found


def label_of(p: np.ndarray, problem: str | None, threshold: float = 0.5) -> str:
    if problem == MULTI:
        return ";".join(NAMES[place] for place in range(len(p)) if p[place] >= threshold)
    return NAMES[int(p.argmax())]


def rows(path: Path) -> dict[str, dict[str, str]]:
    """The rows of a table by the ids of records; of several, the last."""
    with open(path, newline="", encoding="utf-8") as handle:
        return {row["id"]: row for row in csv.DictReader(handle, delimiter=TABLES[path.suffix])}


def numbers(row: dict[str, str]) -> list[float]:
    return [float(row[key] or "nan") for key in row if key.startswith(("p.", "value"))]


def classify(model: Path, fasta: Path, out: Path, *flags: str) -> int:
    command = ["classify", "--quiet", "--device=cpu", f"--model={model}", *flags]
    return main([*command, str(fasta), str(out)])


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """What `classify` says in one line; it writes nothing."""
    capsys.readouterr()
    before = sorted(arguments[2].parent.iterdir())
    assert classify(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sorted(arguments[2].parent.iterdir()) == before
    return line
