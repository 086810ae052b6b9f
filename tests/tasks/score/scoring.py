"""Shared by the tests of `score`: rows of variants, and running the command on them."""

from __future__ import annotations

import csv
import re
from pathlib import Path

WILD_TYPE = "MKTAYIAKQRQISFVKSHFSRQ"
OTHER = "GAVLIWGAVLIW"
MARGINAL = "masked_marginal"


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t" if path.suffix == ".tsv" else ","))


def mutants(*texts: str, **more: str) -> list[dict[str, str]]:
    return [{"mutant": text, **more} for text in texts]


def run(esm, model, fasta, table, out, *arguments):
    """Score; returns the exit code, the last line on standard error, and the rows."""
    code, lines = esm("score", "--model", model, *arguments, "--variants", table, fasta, out)
    return code, lines[-1] if lines else "", rows_of(out) if code < 2 else []


def passes(message: str) -> int:
    return int(re.search(r"([\d,]+) pass(?:es)?,", message)[1].replace(",", ""))


def shifted(offset: int) -> list[str]:
    return [f"{one}{at + 1 + offset}W" for at, one in enumerate(WILD_TYPE)]
