"""Split a variant table into shards of equal cost; check each row against its wild type.

Writes for each shard a table of rows (`row`, its number in the input; `protein`, the index of its
record; `mutant`, in one notation for all) and a FASTA with their wild types. `unusable.tsv` has the
rows that cannot be scored, with the reasons, `status.tsv` the outcomes of the records. Rows that
share forward passes stay together: those of a protein, or, for likelihoods, those of one mutated
sequence.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from array import array
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import IO, Any, get_args

import numpy as np
from numpy.typing import NDArray

from esm_pipeline.arrays import Bool, Int32, Int64
from esm_pipeline.errors import InputError
from esm_pipeline.files import atomic_path, naming_errors, remove_leftovers
from esm_pipeline.flags import add_flags, add_unchanged, number_of_shards, section_from
from esm_pipeline.formats.checksums import LISTING, sha256, write_digests
from esm_pipeline.formats.fasta import shown
from esm_pipeline.formats.input_checksums import require_unchanged, states, write_inputs
from esm_pipeline.formats.mutations import spell
from esm_pipeline.formats.tables.base import Column
from esm_pipeline.formats.tables.open import create_table, open_table
from esm_pipeline.locks import Outputs
from esm_pipeline.settings.result_names import bundle_names as shard_names
from esm_pipeline.settings.sections import CleaningSettings, StrategySettings, VariantSettings
from esm_pipeline.tasks.common.outcomes import write_status
from esm_pipeline.tasks.common.plan import LengthPolicy, SequencePlan
from esm_pipeline.tasks.common.sequences import DIGEST_BYTES, SequenceSet
from esm_pipeline.tasks.common.work import forward_cost
from esm_pipeline.tasks.score.variant_table import (
    LIKELIHOOD,
    SCORE,
    VariantRow,
    VariantTable,
    score_columns,
)
from esm_pipeline.tasks.score.wild_types import open_wild_types

SUFFIX = ".tsv"
UNUSABLE, STATUS = "unusable.tsv", "status.tsv"
SHARD_COLUMNS = b"row\tprotein\tmutant\n"
REASONS = (Column("row", "whole"), Column("reason", "text"))
SHARD_FILE = re.compile(r"([0-9]{5})\.(fasta|tsv)")
LINES_READ = 4096  # lines of the spool that are read together


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("fasta", nargs="*", help="FASTA files with the wild types")
    parser.add_argument("--variants", required=True, metavar="TABLE", help="CSV, TSV or Parquet")
    parser.add_argument("--shards", type=number_of_shards, required=True, help="number of shards")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument(
        "--inputs", type=Path, metavar="FILE", help="write the digest of the table as read"
    )
    add_unchanged(parser)
    parser.add_argument(
        "--strategy",
        choices=get_args(StrategySettings.model_fields["strategy"].annotation),
        default="masked_marginal",
        help="how the variants will be scored (default: masked_marginal)",
    )
    parser.add_argument("--quiet", action="store_true", help="no summary")
    add_flags(parser, VariantSettings)
    add_flags(parser, CleaningSettings)


def outputs(args: argparse.Namespace) -> Outputs:
    """What `split` writes: a folder, and the list of its input."""
    return Outputs([args.inputs], added_to=[args.out])


def run(args: argparse.Namespace) -> int:
    """Split the table; returns the exit code. Raises InputError for input that cannot be used."""
    began = time.monotonic()
    settings, cleaning = section_from(VariantSettings, args), section_from(CleaningSettings, args)
    table = open_table(args.variants)
    table.require_room_for(score_columns(args.strategy, []), SUFFIX)
    refuse_own_shard(Path(args.variants), args.out)
    before, digest = states([args.variants]), sha256(Path(table.path))
    with (
        open_wild_types(args.fasta, table, settings, cleaning, args.out) as wild_types,
        naming_errors(args.out),
        tempfile.TemporaryFile(dir=args.out) as spool,
    ):
        by_likelihood = args.strategy == LIKELIHOOD
        variants = VariantTable(
            table, wild_types, settings, cleaning, substitutions_only=not by_likelihood
        )
        rows = VariantSpool(spool, wild_types.sequence_set.first, by_sequence=by_likelihood)
        for row in variants.rows():
            rows.add(row)
        rows.flush()
        write_split(rows, variants, args.out, args.shards)
    require_unchanged(args.unchanged)
    if args.inputs:
        write_inputs(args.inputs, [args.variants], [digest], before)
    if not args.quiet:
        unusable = int((rows.proteins < 0).sum())
        print(
            f"split: {len(rows.proteins):,} variants, {unusable:,} unusable, in {args.shards:,} "
            f"shards; {time.monotonic() - began:.1f} s",
            file=sys.stderr,
        )
    return 0


def refuse_own_shard(table: Path, folder: Path) -> None:
    """Raise InputError if a file that is written into `folder` would replace the table."""
    ours = SHARD_FILE.fullmatch(table.name) or table.name in (UNUSABLE, STATUS, LISTING)
    if ours and table.resolve().parent == folder.resolve():
        raise InputError(f"{shown(str(table))}: a shard would replace it; choose another --out")


class VariantSpool:
    """The rows of a table; their lines for the shards are in the file `spool`.

    first: (U,) index of the record of each wild type. `by_sequence` keeps rows of one mutated
    sequence together, instead of those of one protein. In memory some 80 bytes a row.
    """

    def __init__(self, spool: IO[bytes], first: Int64, *, by_sequence: bool) -> None:
        self._spool, self._first = spool, first
        self._protein, self._length, self._sites = array("i"), array("i"), array("i")
        self._ends = array("q", [0])
        self._sequences = bytearray() if by_sequence else None

    def add(self, row: VariantRow | None) -> None:
        """Append a row; None for one that cannot be scored."""
        protein, length, sites, line, sequence = -1, 0, 0, b"", b""
        if row is not None:
            protein, length, sites = row.protein, len(row.wild_type), len(row.substitutions)
            mutant = spell(row.variant, row.wild_type).encode()
            line = b"%d\t%d\t%b\n" % (len(self._protein), self._first[protein], mutant)
        self._spool.write(line)
        self._protein.append(protein)
        self._length.append(length)
        self._sites.append(sites)
        self._ends.append(self._ends[-1] + len(line))
        if self._sequences is not None:
            sequence = row.sequence.encode() if row is not None else b""
            self._sequences += (protein + 1).to_bytes(4, "big")
            self._sequences += blake2b(sequence, digest_size=DIGEST_BYTES).digest()

    def flush(self) -> None:
        """Write all lines to the file, so that `lines` can read them."""
        self._spool.flush()

    @property
    def proteins(self) -> Int32:
        """(N,) number of each row's wild type, -1 if the row cannot be scored."""
        return np.frombuffer(self._protein, np.int32)

    def shards(self, count: int) -> list[Int64]:
        """The rows of each shard, ascending.

        Groups of rows that stay together are lined up by protein and cut into parts of equal cost:
        no shard exceeds its part by more than the cost of one group.
        """
        usable = np.flatnonzero(self.proteins >= 0)
        keys: NDArray[Any] = self.proteins
        if self._sequences:
            keys = np.frombuffer(self._sequences, f"V{4 + DIGEST_BYTES}")
        _, first, group = np.unique(keys[usable], return_index=True, return_inverse=True)
        length = np.frombuffer(self._length, np.int32)[usable[first]].astype(np.int64)
        sites = np.bincount(group, np.frombuffer(self._sites, np.int32)[usable])
        passes = np.where(sites > 0, np.minimum(sites, length), length)
        cost = passes * forward_cost(length)
        middle = np.cumsum(cost) - cost / 2
        total = max(float(cost.sum()), 1.0)
        shard = np.minimum((middle / total * count).astype(np.int64), count - 1)[group]
        order = np.argsort(shard, kind="stable")
        bounds = np.searchsorted(shard[order], np.arange(1, count))
        return np.split(usable[order], bounds)

    def lines(self, rows: Int64) -> Iterator[bytes]:
        """The lines of some rows, a block at a time."""
        file, ends = self._spool.fileno(), np.frombuffer(self._ends, np.int64)
        for begin in range(0, len(rows), LINES_READ):
            part = rows[begin : begin + LINES_READ]
            spans = zip(ends[part].tolist(), ends[part + 1].tolist(), strict=True)
            yield b"".join(os.pread(file, stop - start, start) for start, stop in spans)


def write_split(rows: VariantSpool, variants: VariantTable, folder: Path, count: int) -> None:
    """Write `count` shards and `unusable.tsv` into `folder`, and remove those of a former run.

    `unusable.tsv` and the list of all digests are removed first and written last: where they exist,
    the shards belong to them and are whole.
    """
    for name in (LISTING, UNUSABLE):
        (folder / name).unlink(missing_ok=True)
    for old in folder.iterdir():
        if (match := SHARD_FILE.fullmatch(old.name)) and int(match[1]) >= count:
            old.unlink()
    remove_leftovers(folder)
    sequence_set = variants.wild_types.sequence_set
    for name, chosen in zip(shard_names(count), rows.shards(count), strict=True):
        write_shard_file(folder / f"{name}.tsv", chain([SHARD_COLUMNS], rows.lines(chosen)))
        wild_types = np.unique(rows.proteins[chosen])
        write_shard_file(folder / f"{name}.fasta", fasta_lines(sequence_set, wild_types))
    plan = SequencePlan(sequence_set, LengthPolicy(SCORE, None, "full"))
    with atomic_path(folder / STATUS) as path:
        records = sequence_set.records()  # as they are before any model runs
        write_status(path, SCORE, ((record.index, plan.outcome(record)) for record in records))
    with atomic_path(folder / UNUSABLE) as path:
        write_unusable(path, variants, rows.proteins >= 0)
    written = [f"{name}.{end}" for name in shard_names(count) for end in ("tsv", "fasta")]
    with atomic_path(folder / LISTING) as path:
        write_digests(path, {name: folder / name for name in (*written, STATUS, UNUSABLE)})


def write_shard_file(target: Path, lines: Iterable[bytes]) -> None:
    """Write a file of a shard."""
    with atomic_path(target, sweep=False) as path, path.open("wb") as file:
        file.writelines(lines)


def fasta_lines(sequence_set: SequenceSet, numbers: Int32) -> Iterator[bytes]:
    """FASTA records of some wild types, each named by the index of its record."""
    indices = sequence_set.first[numbers].tolist()
    for pair in zip(indices, sequence_set.sequences(numbers), strict=True):
        yield b">%d\n%b\n" % pair


def write_unusable(path: Path, variants: VariantTable, usable: Bool) -> None:
    """Write the rows that are not `usable` (N,), with the reasons."""
    with create_table(path, SUFFIX, None, REASONS) as writer:
        for first, _, reasons in variants.blocks_with_reasons(usable):
            wrong = [(row, why) for row, why in enumerate(reasons, first) if why is not None]
            writer.write(None, [[row for row, _ in wrong], [why for _, why in wrong]])
