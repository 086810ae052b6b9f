"""Confidences of predicted structures as a table with a row for each record."""

from __future__ import annotations

from pathlib import Path

from esm_pipeline.formats.results.structures import Structures
from esm_pipeline.formats.tables.base import Column
from esm_pipeline.formats.tables.open import create_table

CONFIDENCE_COLUMNS = [
    *(Column("id", "text"), Column("index", "whole"), Column("length", "whole")),
    *(Column(name, "exact") for name in ("plddt", "ptm", "iptm")),
    Column("flags", "text"),
]


def write_structure_rows(target: Path, suffix: str, results: Structures) -> None:
    """Write the table of `results.to_pandas()` in the format of `suffix`."""
    table = results.to_pandas()
    with create_table(target, suffix, None, CONFIDENCE_COLUMNS) as writer:
        writer.write(None, [table[column.name].tolist() for column in CONFIDENCE_COLUMNS])
