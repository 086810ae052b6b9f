"""Shared by the tests of `split`, `score --range` and `join`: a table in ranges."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from esm_pipeline.cli import main
from esm_pipeline.formats.bundles import range_names
from esm_pipeline.formats.variant_bundles import VariantBundle
from tests.tasks.score.scoring import OTHER, WILD_TYPE

LIKELIHOOD = "pseudo_log_likelihood"
PROTEINS = {
    "a": WILD_TYPE,
    "gap": "MK-V",
    "b": OTHER,
    "again": WILD_TYPE,
    "chains": "MK:V",
    "c": WILD_TYPE[::-1],
    "unused": "MKVL",
}
VARIANTS = [
    *(("a", text) for text in ("K2L", "K2L:T3S", "K2*", "WT", "K2del", "L2K", "M1_K2insWW")),
    *(("b", text) for text in ("G1A", "nonsense", "G1A", "A2L:V3C", "G1dup", "W6W")),
    *(("again", text) for text in ("p.Lys2Leu", "K2S")),
    *(("c", text) for text in ("Q1A", "R2C", "S3T:F4C")),
    *(("gap", "M1A"), ("chains", "M1A"), ("none", "M1A"), ("a", "")),
]


def called(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def esm_quietly(command: str, *arguments: object) -> None:
    assert called(command, "--quiet", *arguments) == 0


@pytest.fixture
def inputs(tmp_path):
    """Two FASTA files and a table of variants."""
    entries = [f">{name}\n{one}\n" for name, one in PROTEINS.items()]
    fasta = [tmp_path / "one.fasta", tmp_path / "two.fasta"]
    fasta[0].write_text("".join(entries[:3]))
    fasta[1].write_text("".join(entries[3:]))
    (tmp_path / "all.fasta").write_text("".join(entries))
    rows = [{"mutant": text, "n,": '"x"', "protein": name} for name, text in VARIANTS]
    pd.DataFrame(rows).to_csv(tmp_path / "in.csv", index=False)
    return fasta, tmp_path / "in.csv"


def whole(folder: Path, strategy: str, *models: Path) -> Path:
    """The table as one command scores it."""
    out = folder / "whole.tsv"
    options = (*(f"--model={model}" for model in models), "--strategy", strategy)
    esm_quietly("score", *options, "--variants", folder / "in.csv", folder / "all.fasta", out)
    return out


def in_ranges(
    folder: Path, strategy: str, count: int, fasta: list[Path], table: Path, *models: Path
) -> Path:
    """The same through `split`, a job for each range, and `join`; ranges may have one row."""
    for name in ("split", "scores"):
        shutil.rmtree(folder / name, ignore_errors=True)
    options = ("--strategy", strategy, "--least=1", "--out", folder / "split")
    esm_quietly("split", *options, "--variants", table, *fasta)
    for name in range_names(count):
        assert score_one(folder, name, *models, options=("--strategy", strategy)) == 0
    assert join(folder, count, table) == 0
    return folder / "joined.tsv"


def score_one(folder: Path, name: str, *models: Path, options: tuple[object, ...] = ()) -> int:
    """Score the range with a name; returns the exit code."""
    split = folder / "split"
    return called(
        *("score", "--quiet", *(f"--model={model}" for model in models), *options),
        *("--range", name, "--variants", split / "variants.tsv", split / "wild_types.fasta"),
        folder / "scores" / f"{name}.h5",
    )


def join(folder: Path, count: int, table: Path) -> int:
    return called(
        *("join", "--quiet", "--variants", table, "--split", folder / "split"),
        *("--scores", folder / "scores", "--count", count),
        *("--out", folder / "joined.tsv", "--status", folder / "status" / "status.tsv"),
        *("--provenance", folder / "joined.json", "--counts", folder / "counts" / "variants.json"),
    )


def bundle_in(folder: Path) -> VariantBundle:
    return VariantBundle.open(folder / "variants.tsv", folder / "wild_types.fasta")
