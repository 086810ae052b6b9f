"""The samples of a run: their names, their files, and about how large those are.

No torch: the workflow reads this at every parse.
"""

from __future__ import annotations

import csv
import gzip
import os
import re
import zlib
from pathlib import Path
from typing import NamedTuple

from esm_pipeline.errors import InputError

SAMPLE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
RESERVED_NAMES = {"logs", "benchmarks", "provenance.json", "report.html", "verdict.txt"}
"""What lies beside the samples' folders in the output folder, in lower case."""

FASTA_SUFFIX = re.compile(r"(\.(fasta|fa|faa|fas|pep|txt))?(\.gz)?$", re.IGNORECASE)
GZIP_MAGIC = b"\x1f\x8b"
GZIP_EXPANSION = 2  # bytes of protein FASTA behind one compressed byte, about


class Sample(NamedTuple):
    """FASTA files of a sample, and its table of variants."""

    fasta: list[str]
    variants: str | None = None


def read_samples(table: str) -> dict[str, Sample]:
    """Read the sample table: columns `sample`, `fasta` and perhaps `variants`.

    Several rows of a sample add FASTA files. Raises InputError with the line for anything unusable.
    """
    try:
        text = Path(table).read_bytes()
        if text.startswith(GZIP_MAGIC):
            text = gzip.decompress(text)
        lines = text.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"{table}: the sample table cannot be read ({why})") from None
    rows: csv.DictReader[str] = csv.DictReader(lines, delimiter="\t")
    missing = [name for name in ("sample", "fasta") if name not in (rows.fieldnames or [])]
    if missing:
        raise InputError(
            f"{table}:1: no column '{missing[0]}'; the table is tab-separated, "
            "with the columns sample and fasta"
        )
    samples: dict[str, Sample] = {}
    for row in rows:
        place = f"{table}:{rows.line_num}"
        name, fasta, variants = (
            (row.get(key) or "").strip() for key in ("sample", "fasta", "variants")
        )
        require_sample(place, name, fasta)
        sample = samples.setdefault(name, Sample([], variants or None))
        if fasta in sample.fasta:
            raise InputError(f"{place}: sample '{name}' lists {fasta} twice; remove one row")
        if variants and sample.variants not in (None, variants):
            raise InputError(
                f"{place}: sample '{name}' has two tables of variants; join them, or make it two "
                "samples"
            )
        sample.fasta.append(fasta)
        samples[name] = sample._replace(variants=variants or sample.variants)
    if not samples:
        raise InputError(f"{table}: no samples; add a row below the column names")
    folded: dict[str, str] = {}
    for name in samples:
        other = folded.setdefault(name.lower(), name)
        if other != name:
            raise InputError(
                f"{table}: samples '{other}' and '{name}' differ only in case and would share "
                "a folder on some systems; rename one"
            )
    return samples


def require_sample(place: str, name: str, fasta: str) -> None:
    """Raise InputError unless a row of the table names a sample and a file."""
    if not SAMPLE_NAME.fullmatch(name):
        raise InputError(
            f"{place}: sample name {name!r} cannot name a folder; use letters, digits, "
            "'.', '_' and '-', beginning with a letter or digit"
        )
    if name.lower() in RESERVED_NAMES:
        raise InputError(
            f"{place}: '{name}' is a name of the workflow's own in the output folder; "
            "rename the sample"
        )
    if not fasta:
        raise InputError(f"{place}: sample '{name}' has no fasta; name its file")


def sample_name(fasta: str) -> str:
    """The name of a single input's sample: its file name, without the suffix."""
    name = FASTA_SUFFIX.sub("", Path(fasta).name)
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-")[:100]
    if not cleaned or cleaned.lower() in RESERVED_NAMES:
        return f"sample_{cleaned}".rstrip("_")
    return cleaned


def expanded_size(file: str) -> int:
    """Bytes of `file`, or about as many as it has behind its compression."""
    try:
        size = os.stat(file).st_size
        with open(file, "rb") as handle:
            packed = handle.read(2) == GZIP_MAGIC
    except FileNotFoundError:
        raise InputError(
            f"{file}: no such file; check the path, or set 'shards' to a number if another "
            "rule makes this input"
        ) from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); check the path") from None
    return size * GZIP_EXPANSION if packed else size
