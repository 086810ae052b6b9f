"""One small file of each kind of result, and all that is read from one."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import numpy as np

from esm_pipeline import open_results
from esm_pipeline.cli import main
from esm_pipeline.formats.records import Record, write_records
from esm_pipeline.formats.results.layout import Array, RecordRow, unit_starts
from esm_pipeline.formats.results.writer import RaggedWriter
from tests.folded import made_up, write_arrays

ENTRIES = [
    RecordRow("P1", 0, 0),
    RecordRow("é|x", 2, 1),
    RecordRow("P1 again", 3, 0),
    RecordRow("last", 7, 2),
]
LENGTHS = np.array([3, 1, 6])
LABELS = json.dumps(["in", "out"])
ALPHABET = "ACDEFGHIKLMNPQRSTVWY"
KINDS: dict[str, tuple[list[Array], dict[str, str]]] = {
    "embeddings": (
        [
            *(
                Array(f"{kind}/{layer}", "sequence", (4,), "<f4")
                for kind in ("mean", "bos")
                for layer in (0, 2)
            ),
            *(Array(f"residue/{layer}", "residue", (4,), "<f2") for layer in (0, 2)),
            Array("contacts", "pair", (), "<f2"),
        ],
        {"model": "m", "software": "{}"},
    ),
    "saturation": (
        [
            *(
                Array(name, "residue", (20,), "<f4")
                for name in ("log_odds", "log_odds.a", "log_odds.b")
            ),
            Array("wild_type", "residue", (), "|S1"),
        ],
        {"alphabet": ALPHABET, "strategy": "wt_marginal", "models": "{}"},
    ),
    "classes": (
        [Array("p", "sequence", (2,), "<f4")],
        {"labels": LABELS, "problem_type": "multi_label_classification"},
    ),
    "residue_classes": (
        [Array("p", "residue", (2,), "<f4"), Array("sequence", "residue", (), "|S1")],
        {"labels": LABELS, "problem_type": "single_label_classification"},
    ),
}
NAMES = (*KINDS, "structures")


def write_result(path: Path, kind: str) -> Path:
    """A result of this kind, with four records of three sequences."""
    if kind == "structures":
        chains = [("MKV",), ("G",), ("GAV", "LIW")]
        return write_arrays(path, [made_up(*one, spread=3) for one in chains], ENTRIES)
    arrays, attributes = KINDS[kind]
    told = {"format": f"esm-pipeline/{kind}", **attributes}
    with RaggedWriter(path, arrays, LENGTHS, len(ENTRIES), ENTRIES, told) as writer:
        for array in arrays:
            size = int(unit_starts(LENGTHS, array.per)[-1])
            letters = np.frombuffer(b"MKVGAVLIWX"[:size], "S1")
            numbers = np.linspace(0, 1, size * int(np.prod(array.shape))).reshape(-1, *array.shape)
            writer.write(array.name, np.arange(3), letters if array.dtype == "|S1" else numbers)
    return path


def write_outcomes(path: Path, task: str) -> Path:
    """The records.tsv of these results."""
    records = [Record(index, name, name, 3, "", "ok") for name, index, _ in ENTRIES]
    kept = {record.index: record.with_outcome(task, "ok") for record in records}
    skipped = [Record(index, "x", "x", None, "", "skipped", "no") for index in (1, 4, 5, 6)]
    kept |= {record.index: record.with_outcome(task, "skipped", "no") for record in skipped}
    write_records(path, [kept[index] for index in sorted(kept)], [task])
    return path


def read_all(path: Path) -> None:
    """Read everything in a result of any kind."""
    with open_results(path) as results:
        results.to_pandas()
        _ = results.attributes
        for item in results:
            for name in dir(type(item)):
                if not name.startswith("_"):
                    read_field(item, name)


def read_field(item: object, name: str) -> None:
    """Read one property of a record; what its file does not hold is left out."""
    if type(item).__name__ in ("ClassifiedProtein", "ClassifiedResidues") and name == "value":
        return
    getattr(item, name)


def command(*arguments: object) -> tuple[int, str]:
    """Exit code of a command, and what it says."""
    said = StringIO()
    with redirect_stderr(said):
        code = main([*map(str, arguments)])
    return code, said.getvalue()


def commands(path: Path, records: Path, out: Path) -> dict[str, Callable[[], tuple[int, str]]]:
    """The commands that read each kind."""
    return {
        "saturation": lambda: command("heatmaps", path, out / "png", "--quiet"),
        "structures": lambda: command("structures", path, out, "--records", records, "--quiet"),
        "classes": lambda: command("classes", path, out / "a.tsv", "--records", records),
        "residue_classes": lambda: command("classes", path, out / "a.tsv"),
    }
