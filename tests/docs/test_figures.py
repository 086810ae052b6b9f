"""The figures on the pages are those that were measured, or follow from the shape of the models."""

from __future__ import annotations

import csv
import re

import pytest
import torch

from esm_pipeline import EsmConfig, EsmForMaskedLM
from tests.benchmarks.proteins import proteins
from tests.benchmarks.table import Results
from tests.docs.blocks import ROOT
from tests.membrane import KNOWN, UNSEEN, labels, read
from tests.reference_page import Row, read_tables

PAGE = (ROOT / "workflow/docs/which_model.md").read_text(encoding="utf-8")
SHAPES = {
    "8M": (6, 320),
    "35M": (12, 480),
    "150M": (30, 640),
    "650M": (33, 1280),
    "3B": (36, 2560),
    "15B": (48, 5120),
}
"""Layers and width of the published ESM-2."""


def rows_below(heading: str) -> dict[str, Row]:
    """The cells of a table by the size of the model, which is ESM-2's."""
    (table,) = [one for one in read_tables(PAGE) if one.heading == heading]
    names = {row[0]: row[1:] for row in table.rows}
    found = {
        size: cells for name, cells in names.items() for size in SHAPES if f"ESM-2 {size}" in name
    }
    assert found.keys() == SHAPES.keys()
    return found


def measured() -> dict[tuple[str, str], float]:
    """Millions of residues an hour by size and precision, from the medians of the benchmarks."""
    results = Results.read(ROOT / "tests/benchmarks/results.json")
    return {
        (case.size, row.way.split()[1]): case.residues / row.median * 3600 / 1e6
        for case in results.cases
        for row in case.rows
        if case.size and case.residues and row.values and row.way in WAYS
    }


WAYS = ("ours float32", "ours bfloat16", "ours int8")


def operations(size: str) -> float:
    """Operations for each residue of the proteins of the benchmarks, in a model of this size."""
    layers, width = SHAPES[size]
    tokens = [len(one) + 2 for one in proteins()]
    head = 2 * width * (width + 33)
    each = sum((layers * (24 * width**2 + 4 * width * n) + head) * n for n in tokens)
    return each / sum(n - 2 for n in tokens)


def millions(cell: str) -> float:
    """The number in a cell such as "0.11 million, estimated"."""
    return float(cell.split(" million")[0].replace(",", ""))


def test_measured_speeds_are_those_of_the_benchmarks() -> None:
    rows, found = rows_below("How fast"), measured()
    assert len(found) == 9
    for (size, kind), value in found.items():
        cell = rows[size][["float32", "bfloat16", "int8"].index(kind)]
        assert "estimated" not in cell
        assert millions(cell) == pytest.approx(value, rel=0.03)


def test_estimated_speeds_follow_from_the_operations() -> None:
    rows, found = rows_below("How fast"), measured()
    for size, cells in rows.items():
        for kind, cell in zip(("float32", "bfloat16"), cells, strict=False):
            if (size, kind) not in found:
                near = "35M" if size == "8M" else "650M"
                value = found[near, kind] * operations(near) / operations(size)
                assert cell.endswith(", estimated")
                assert millions(cell) == pytest.approx(value, rel=0.08)
        if cells[3]:
            assert millions(cells[3]) == pytest.approx(
                40e12 / operations(size) * 3600 / 1e6, rel=0.05
            )
    assert not rows["8M"][2], "int8 was not measured there"


def test_sizes_are_those_of_the_models() -> None:
    for size, cells in rows_below("Which model?").items():
        layers, width = SHAPES[size]
        with torch.device("meta"):
            model = EsmForMaskedLM(
                EsmConfig(
                    vocab_size=33,
                    mask_token_id=32,
                    pad_token_id=1,
                    hidden_size=width,
                    num_hidden_layers=layers,
                    num_attention_heads=20,
                    intermediate_size=4 * width,
                    position_embedding_type="rotary",
                    token_dropout=True,
                )
            )
        name, parameters, weights, shown_width, _ = cells
        assert re.fullmatch(rf"`esm2_t{layers}_{size}_UR50D`", name)
        count = sum(one.numel() for one in model.parameters())
        number, unit = parameters.split()
        scale = {"million": 1e6, "billion": 1e9}[unit]
        assert float(number) * scale == pytest.approx(count, rel=0.07)
        both = [float(one) for one in weights.removesuffix(" GB").split(" / ")]
        assert both == pytest.approx(
            [4e-9 * count, 2e-9 * count], rel=0.4 if size == "8M" else 0.06
        )
        assert int(shown_width.replace(",", "")) == width


def test_the_table_of_labels_is_that_of_the_proteins() -> None:
    wanted = [
        (header.split()[0], label)
        for path in (KNOWN, UNSEEN)
        for (header, _), label in zip(read(path), labels(path), strict=True)
    ]
    with (KNOWN.parent / "labels.tsv").open(encoding="utf-8", newline="") as file:
        rows = [(row["id"], row["label"]) for row in csv.DictReader(file, delimiter="\t")]
    assert rows == wanted
    assert len({name for name, _ in rows}) == len(rows) == 256
