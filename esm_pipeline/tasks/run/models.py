"""List the known models: names, sizes, memory, and what each is for.

The names are those of fair-esm; with facebook/ in front they are those of the Hugging Face hub.
Both are understood wherever a model is. LONGEST is the longest protein in residues, GB the memory
of the weights in float32, CACHED whether the model is in the hub's cache on this machine. Other
checkpoints of the family can be used too: a folder, a hub id, or a file of fair-esm (.pt).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import textwrap
from itertools import groupby
from pathlib import Path
from typing import Any

from esm_pipeline.json_files import read_object
from esm_pipeline.known_models import (
    FOLDING_MODEL,
    KNOWN_MODELS,
    MASKED_LM,
    OWNER,
    VARIANT_EFFECT,
    KnownModel,
)
from esm_pipeline.locks import Outputs

EXAMPLES = (
    ("esm-pipeline models", "a table to read"),
    ("esm-pipeline models --tsv", "the same for scripts, with hub ids and exact numbers"),
)
TITLES = {
    MASKED_LM: "Masked language models: for embed, score, and as a base of classifiers",
    VARIANT_EFFECT: "Models of variant effects: for score",
    FOLDING_MODEL: "Folding models: for fold",
}
COLUMN_NAMES = ("NAME", "PARAMETERS", "LAYERS", "WIDTH", "LONGEST", "GB", "CACHED")
TABLE_WIDTHS = (-24, 10, 6, 5, 7, 6, 6)
"""Width of each column of the table; negative: aligned to the left."""

WEIGHTS_IN_CACHE = re.compile(r"model\.safetensors|pytorch_model\.bin")
INDEX_IN_CACHE = re.compile(r"(model\.safetensors|pytorch_model\.bin)\.index\.json")
SHOWN_WIDTH = 78


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `models`."""
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--tsv", action="store_true", help="print a table separated by tabs")
    form.add_argument("--json", action="store_true", help="print a list of objects as JSON")


def outputs(args: argparse.Namespace) -> Outputs:
    """`models` writes no file."""
    return Outputs([])


def run(args: argparse.Namespace) -> int:
    """Print the models; returns 0."""
    rows = [known_facts(model) for model in KNOWN_MODELS]
    if args.json:
        text = json.dumps(rows, indent=2)
    elif args.tsv:
        lines = [[*rows[0]], *([*map(tsv_cell, row.values())] for row in rows)]
        text = "\n".join(map("\t".join, lines))
    else:
        text = "\n".join(table_lines())
    try:
        print(text, flush=True)
    except BrokenPipeError:  # the reader has what it wants, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def known_facts(model: KnownModel) -> dict[str, Any]:
    """The columns of a model by their names."""
    return {
        "name": model.name,
        "fair_esm_name": model.fair_esm_name,
        "kind": model.kind,
        "parameters": model.parameters,
        "layers": model.layers,
        "width": model.width,
        "longest": model.longest,
        "float32_gb": round(model.float32_gb, 3),
        "cached": is_cached(model),
        "purpose": model.purpose,
    }


def tsv_cell(value: object) -> str:
    """A value in a table: nothing for None, yes or no for a truth value."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def table_lines() -> list[str]:
    """The lines of the table for reading; what models are for stands below them."""
    lines: list[str] = []
    for kind, models in groupby(KNOWN_MODELS, key=lambda model: model.kind):
        lines += [*([""] if lines else []), TITLES[kind], table_line(COLUMN_NAMES)]
        for purpose, alike in groupby(models, key=lambda model: model.purpose):
            lines += [table_line(shown_cells(model)) for model in alike]
            lines += textwrap.wrap(
                purpose, SHOWN_WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 4
            )
    note = (
        f"Give a name to --model, as it is here or with {OWNER} in front. The columns are "
        "explained by esm-pipeline models --help."
    )
    return [*lines, "", *textwrap.wrap(note, SHOWN_WIDTH)]


def shown_cells(model: KnownModel) -> tuple[str, ...]:
    """The cells of a model in the table for reading."""
    return (
        model.fair_esm_name or model.name,
        in_short(model.parameters),
        *(f"{model.layers}", f"{model.width:,}"),
        "any" if model.longest is None else f"{model.longest:,}",
        f"{model.float32_gb:.{2 if model.float32_gb < 1 else 1}f}",
        tsv_cell(is_cached(model)),
    )


def table_line(cells: tuple[str, ...]) -> str:
    """A line of the table."""
    return "  ".join(
        cell.ljust(-width) if width < 0 else cell.rjust(width)
        for cell, width in zip(cells, TABLE_WIDTHS, strict=True)
    )


def in_short(count: int) -> str:
    """A number in millions or billions: `7.5 M`, `651 M`, `2.8 B`."""
    unit, letter = (1e9, "B") if count >= 1e9 else (1e6, "M")
    value = count / unit
    return f"{value:.1f} {letter}" if value < 10 else f"{value:.0f} {letter}"


def is_cached(model: KnownModel) -> bool:
    """Whether the hub's cache has the model with its weights, at the commit of its main branch.

    The packaged model is on every machine. Only names of files are looked at; there is no network.
    """
    if not model.fair_esm_name:
        return True
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{model.name.replace('/', '--')}"
    try:
        commit = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
        names = {path.name for path in (folder / "snapshots" / commit).iterdir() if path.exists()}
        return "config.json" in names and has_weights(folder / "snapshots" / commit, names)
    except (OSError, ValueError):
        return False


def has_weights(folder: Path, names: set[str]) -> bool:
    """Whether files with these `names` are all weights of a model. Raises OSError, ValueError."""
    if any(map(WEIGHTS_IN_CACHE.fullmatch, names)):
        return True
    for index in filter(INDEX_IN_CACHE.fullmatch, names):
        listed = read_object(folder / index).get("weight_map")
        if isinstance(listed, dict) and {*map(str, listed.values())} <= names:
            return True
    return False
