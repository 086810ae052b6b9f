"""Sequences for the tests of functions, and what their commands say of them."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

SEQUENCES = {
    "a": "MKTAYIAKQRQISFVKSHFSRQLEERLGLIE",
    "gap": "MK-T",
    "b": "gav liw",
    "stop": "MKTAYIAKQRQISFVKSHFSRQLEERLGLIE*",
    "nothing": "",
    "chains": "MKV:GAV",
    "again": "MKTAYIAKQRQISFVKSHFSRQLEERLGLIE",
    "rare": "ACDEFGHIKLMNPQRSTVWYBUZOXJ",
}
SKIPPED = {"gap", "nothing", "chains"}
WILD_TYPE = "MKTAYIAKQRQISFVKSHFSRQ"


QUIET = [
    pytest.mark.filterwarnings(f"ignore:{text}")
    for text in (
        ".* skipped, the first is",
        "the demo model for folding",
        ".*no weights for pooler",
    )
]
"""Marks of tests that are not about these warnings."""


def write_fasta(path: Path, sequences: dict[str, str] = SEQUENCES) -> Path:
    """Write sequences to a FASTA file."""
    path.write_text("".join(f">{name}\n{text}\n" for name, text in sequences.items()))
    return path


def as_frame() -> pd.DataFrame:
    """The same sequences in a frame with an index of its own."""
    frame = pd.DataFrame({"id": SEQUENCES.keys(), "sequence": SEQUENCES.values()})
    frame.index = pd.Index([f"row {place}" for place in range(len(frame))])
    return frame


def records_of(path: Path, task: str) -> list[tuple[str, str, str]]:
    """Id, status and reason of each record of a command, as a function spells settings."""
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    reasons = [
        re.sub("--([a-z_-]+)", lambda m: m[1].replace("-", "_"), one)
        for one in table[f"{task}_reason"]
    ]
    return list(zip(table["id"], table[f"{task}_status"], reasons, strict=True))


def outcomes_in(table: pd.DataFrame) -> list[tuple[str, str, str]]:
    return list(zip(table["id"], table["status"], table["reason"], strict=True))
