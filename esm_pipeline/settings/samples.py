"""The input of the workflow: the sample table, and the checks of all its paths.

No torch: the workflow imports this through the settings at every parse.
"""

from __future__ import annotations

import csv
import gzip
import os
import re
import stat
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from esm_pipeline.errors import InputError
from esm_pipeline.settings.result_names import IN_SAMPLE, TOP, is_taken

SAMPLE_COLUMNS = ("sample", "fasta")
OPTIONAL = "variants"
SAMPLE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
FASTA_SUFFIX = re.compile(r"(\.(fasta|fa|faa|fas|pep|txt))?(\.gz)?$", re.IGNORECASE)
GZIP_MAGIC = b"\x1f\x8b"
GZIP_EXPANSION = 2  # approximate bytes of protein FASTA in one compressed byte

NO_TABLE = (
    (b"\xff\xfe", "UTF-16 text, as spreadsheets write it; save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text, as spreadsheets write it; save it as UTF-8"),
    (b"PK\x03\x04", "a spreadsheet or an archive; export it as tab-separated text"),
)
"""The first bytes of files that are not tables, and what these files are."""

UNUSABLE_CHARACTERS = re.compile(
    "(?P<brace>[{}<>])|(?P<control>[\0-\x1f\x7f-\x9f\u2028\u2029])|[\ud800-\udfff]"
)
"""Characters that a path in the workflow cannot contain."""


class Sample(NamedTuple):
    """The FASTA files of a sample and its variant table."""

    fasta: list[str]
    variants: str | None = None


def sample_name(fasta: str) -> str:
    """Return the sample name of a single input: its file name without the suffix."""
    name = FASTA_SUFFIX.sub("", Path(fasta).name)
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-")[:100]
    if not cleaned or is_taken(cleaned, TOP):
        return f"sample_{cleaned}".rstrip("_")
    return cleaned


def read_samples(table: str) -> dict[str, Sample]:
    """Read the sample table: columns `sample`, `fasta` and, optionally, `variants`.

    Several rows of one sample list several FASTA files. Raises InputError, with the line number,
    for anything unusable.
    """
    samples: dict[str, Sample] = {}
    folded: dict[str, str] = {}
    places: dict[tuple[str, str], int] = {}
    for number, sample, fasta, variants in read_rows(table):
        place = f"{table}:{number}"
        require_sample_name(sample, place)
        other = folded.setdefault(sample.lower(), sample)
        if other != sample:
            raise InputError(
                f"{place}: samples '{other}' and '{sample}' differ only in case and would share "
                "a folder on some systems; rename one"
            )
        if not fasta:
            raise InputError(f"{place}: sample '{sample}' has no fasta; add the path of its file")
        require_usable(fasta, place)
        first = places.setdefault((sample, os.path.realpath(fasta)), number)
        if first != number:
            raise InputError(
                f"{place}: sample '{sample}' lists {fasta} twice, also in line {first}; remove "
                "one row"
            )
        known = samples.setdefault(sample, Sample([]))
        known.fasta.append(fasta)
        if variants:
            samples[sample] = known._replace(variants=variants)
            require_usable(variants, place)
        if variants and known.variants not in (None, variants):
            raise InputError(
                f"{place}: sample '{sample}' has two variant tables; join them, or make it two "
                "samples"
            )
    if not samples:
        raise InputError(f"{table}: no samples; add a row below the column names")
    return samples


def require_sample_name(sample: str, place: str) -> None:
    """Raise InputError unless `sample` can be the name of a folder in the output folder."""
    if not SAMPLE_NAME.fullmatch(sample):
        raise InputError(
            f"{place}: sample name {sample[:120]!a} cannot name a folder; use up to 100 letters, "
            "digits, '.', '_' and '-', beginning with a letter or digit"
        )
    if is_taken(sample, TOP):
        raise InputError(
            f"{place}: the workflow itself uses the name '{sample}' in the output folder; "
            "rename the sample"
        )


def read_rows(table: str) -> Iterator[tuple[int, str, str, str]]:
    """Yield line number, sample, FASTA file and variant table of each row that is not blank."""
    lines = re.split("\r\n|\r|\n", read_text(table))
    columns = cells_of(lines[0], f"{table}:1")
    require_columns(columns, f"{table}:1")
    sample, fasta = map(columns.index, SAMPLE_COLUMNS)
    variants = columns.index(OPTIONAL) if OPTIONAL in columns else -1
    for number, line in enumerate(lines[1:], 2):
        cells = cells_of(line, f"{table}:{number}")
        if not any(cells):
            continue
        if any(cells[len(columns) :]):
            raise InputError(
                f"{table}:{number}: {len(cells)} cells, but {len(columns)} columns; remove a tab, "
                "or add a column name"
            )
        cells += [""] * (len(columns) + 1)  # the last cell stands for a missing column
        yield number, cells[sample], cells[fasta], cells[variants]


def read_text(table: str) -> str:
    """Return the text of the table, plain or gzip. Raises InputError if it is not text."""
    try:
        content = Path(table).read_bytes()
        if content.startswith(GZIP_MAGIC):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        why = getattr(error, "strerror", None) or "a damaged gzip file"
        raise InputError(f"{table}: the sample table cannot be read ({why}); check it") from None
    for beginning, what in NO_TABLE:
        if content.startswith(beginning):
            raise InputError(f"{table}: not a sample table but {what}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{table}:{number}: not UTF-8 text; save the table as UTF-8") from None


def cells_of(line: str, place: str) -> list[str]:
    """Return the cells of one line, stripped. Raises InputError for unbalanced quotes."""
    try:
        return [cell.strip() for cell in next(csv.reader([line], "excel-tab", strict=True), [])]
    except csv.Error:
        raise InputError(
            f"{place}: a cell begins with '\"' but does not end with one; close the quotes on the "
            "same line, and write a '\"' inside them twice"
        ) from None


def require_columns(columns: list[str], place: str) -> None:
    """Raise InputError unless `columns` has each required column exactly once."""
    wanted = "the table is tab-separated, with the columns sample and fasta"
    for name in (*SAMPLE_COLUMNS, OPTIONAL):
        if columns.count(name) > 1:
            raise InputError(f"{place}: two columns '{name}'; remove one")
        if name not in columns and name != OPTIONAL:
            others = ", ".join(f"'{column[:40]}'" for column in columns[:6]) or "nothing"
            raise InputError(f"{place}: no column '{name}', only {others}; {wanted}")


def require_usable(path: str, place: str) -> None:
    """Raise InputError, naming `place`, if the workflow cannot work with `path`."""
    if found := UNUSABLE_CHARACTERS.search(path):
        remedy = "rename it, or make a link without these characters"
        what = {
            "brace": "Snakemake reads braces and angle brackets in a path as wildcards",
            "control": "a path cannot contain line breaks or control characters",
        }.get(found.lastgroup or "", "a path must be UTF-8")
        raise InputError(f"{place}: {path!a}: {what}; {remedy}")


def require_inputs_apart(samples: Mapping[str, Sample], outdir: str) -> None:
    """Raise InputError for an input in a place where the workflow writes or removes files."""
    root = Path(os.path.realpath(outdir))
    inputs = [file for sample in samples.values() for file in (*sample.fasta, sample.variants)]
    for file in filter(None, inputs):
        path = Path(os.path.realpath(file))
        if not path.is_relative_to(root):
            continue
        folder, *rest = path.relative_to(root).parts or ("",)
        own = not rest or is_taken(rest[0], IN_SAMPLE)
        if is_taken(folder, TOP) or (is_taken(folder, samples) and own):
            raise InputError(
                f"{file}: is in a folder where the workflow writes results, {outdir}; move it, or "
                "choose another outdir"
            )


def require_usable_outdir(outdir: str) -> None:
    """Raise InputError unless `outdir` is, or can become, a folder for the results alone."""
    for taken, what in (
        ("/", "the root of the file system"),
        (".", "the folder where Snakemake runs"),
    ):
        if os.path.normpath(outdir).replace("//", "/") == taken:
            raise InputError(f"outdir '{outdir}': {what}; name a folder in it, such as results")
    path = Path(outdir)
    there = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
    if not there.is_dir():
        raise InputError(f"outdir '{outdir}': {there} is not a folder; choose another one")


def expanded_size(file: str) -> int:
    """Return the size of `file` in bytes, if compressed an estimate. Raises InputError."""
    try:
        status = os.stat(file)
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise InputError(
                f"{file}: not a regular file; use one, since the workflow reads its input twice"
            )
        with open(file, "rb") as handle:
            packed = handle.read(2) == GZIP_MAGIC
    except FileNotFoundError:
        raise InputError(
            f"{file}: no such file; check the path, or set 'shards' to a number if another "
            "rule makes this input"
        ) from None
    except IsADirectoryError:
        raise InputError(f"{file}: a folder, not a file; name the FASTA file in it") from None
    except OSError as error:
        raise InputError(
            f"{file}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from None
    return status.st_size * GZIP_EXPANSION if packed else status.st_size
