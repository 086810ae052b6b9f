"""Check each row of a variant table against its wild type, and put the rows in order for many jobs.

Writes the bundle of the table (`formats.variant_bundles`): its usable rows, in one notation for
all, and their wild types. Rows that share forward passes stand together: those that mutate the same
positions, or, for likelihoods, those of one mutated sequence. `unusable.tsv` has the rows that
cannot be scored, with the reasons, `status.tsv` the outcomes of all records.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator
from hashlib import blake2b
from itertools import islice, pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from esm_pipeline.arrays import Bool, Int32, Int64
from esm_pipeline.errors import InputError
from esm_pipeline.files import atomic_path, naming_errors, remove_leftovers
from esm_pipeline.flags import add_flags, add_least, add_unchanged, section_from
from esm_pipeline.formats.checksums import LISTING, sha256, write_digests
from esm_pipeline.formats.fasta import shown
from esm_pipeline.formats.input_checksums import require_unchanged, states, write_inputs
from esm_pipeline.formats.mutations import spell
from esm_pipeline.formats.tables.base import Column
from esm_pipeline.formats.tables.open import create_table, open_table
from esm_pipeline.formats.variant_bundles import (
    VARIANT_COLUMNS,
    VARIANT_ROWS,
    WILD_TYPE_FASTA,
    first_bits,
    index_of_rows,
    write_variant_index,
)
from esm_pipeline.locks import Outputs
from esm_pipeline.parsers import COMPUTED_GROUP, INPUT_OUTPUT, group_of
from esm_pipeline.settings.sections import (
    CleaningSettings,
    StrategySettings,
    VariantSettings,
)
from esm_pipeline.tasks.common.outcomes import count_text
from esm_pipeline.tasks.common.plan import LengthPolicy, SequencePlan
from esm_pipeline.tasks.common.progress import waiting
from esm_pipeline.tasks.common.sequences import SequenceSet
from esm_pipeline.tasks.score.variant_table import (
    JOINT,
    LIKELIHOOD,
    SCORE,
    VariantRow,
    VariantTable,
    score_columns,
)
from esm_pipeline.tasks.score.wild_types import open_wild_types

SUFFIX = ".tsv"
UNUSABLE, STATUS = "unusable.tsv", "status.tsv"
SPLIT_FILES = (
    VARIANT_ROWS,
    index_of_rows(Path(VARIANT_ROWS)).name,
    WILD_TYPE_FASTA,
    STATUS,
    UNUSABLE,
)
"""What a split consists of, in the order in which it is written."""

REASONS = (Column("row", "whole"), Column("reason", "text"))
OUTCOMES = (
    *(Column("index", "whole"), Column("first", "whole")),
    *(Column("status", "text"), Column("reason", "text")),
)
"""The columns of `status.tsv`; `first` is the index of the first record with the same sequence."""

ROWS_TOGETHER = 1 << 20
"""Most rows that share forward passes and stay together; for more, passes are run again."""

MOST_POSITION = (1 << 32) - 1
LINES_READ = 4096  # lines of the spool that are read together


STRATEGIES = get_args(StrategySettings.model_fields["strategy"].annotation)
EXAMPLES = (
    (
        "esm-pipeline split --variants variants.csv --out split wt.fasta",
        "the rows that can be scored, into the folder split",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    files = group_of(parser, INPUT_OUTPUT)
    files.add_argument("fasta", nargs="*", help="FASTA files with the wild types")
    files.add_argument("--variants", required=True, metavar="TABLE", help="CSV, TSV or Parquet")
    files.add_argument("--out", type=Path, required=True, help="folder for the bundle")
    files.add_argument(
        "--inputs", type=Path, metavar="FILE", help="write the digest of the table as read"
    )
    add_unchanged(parser)
    group_of(parser, COMPUTED_GROUP).add_argument(
        "--strategy",
        choices=STRATEGIES,
        default="masked_marginal",
        metavar="STRATEGY",
        help=f"how the variants will be scored: {', '.join(STRATEGIES)} (default: masked_marginal)",
    )
    parser.add_argument("--quiet", action="store_true", help="no summary")
    add_least(parser)
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
    refuse_own_file(Path(args.variants), args.out)
    before, digest = states([args.variants]), sha256(Path(table.path))
    with (
        waiting(f"split: sorting the rows of {args.variants}", quiet=args.quiet),
        open_wild_types(args.fasta, table, settings, cleaning, args.out) as wild_types,
        naming_errors(args.out),
        tempfile.TemporaryFile(dir=args.out) as spool,
    ):
        variants = VariantTable(
            table, wild_types, settings, cleaning, substitutions_only=args.strategy != LIKELIHOOD
        )
        rows = VariantSpool(spool, wild_types.sequence_set, args.strategy)
        for row in variants.rows():
            rows.add(row)
        rows.flush()
        write_split(rows, variants, args.out, args.least)
        usable = int(rows.usable.sum())
    require_unchanged(args.unchanged)
    if args.inputs:
        write_inputs(args.inputs, [args.variants], [digest], before)
    if not args.quiet:
        print(
            f"split: {count_text(len(rows), 'variants')}, {len(rows) - usable:,} unusable; "
            f"{time.monotonic() - began:.1f} s",
            file=sys.stderr,
        )
    return 0


def refuse_own_file(table: Path, folder: Path) -> None:
    """Raise InputError if a file that is written into `folder` would replace the table."""
    ours = table.name in (*SPLIT_FILES, LISTING)
    if ours and table.resolve().parent == folder.resolve():
        raise InputError(f"{shown(str(table))}: the result would replace it; choose another --out")


class RowGroups(NamedTuple):
    """The usable rows in the order of the bundle, and the G groups that they form."""

    order: Int64
    """(n,) numbers of the rows."""
    bounds: Int64
    """(G + 1,) where each group begins in `order`."""
    protein: Int64
    """(G,) number of the wild type."""
    passes: Int64
    """(G,) forward passes, about."""


class VariantSpool:
    """The rows of a table that are to be scored with `strategy`; their lines are in `spool`.

    Holds 24 bytes of memory for each row, and up to 80 while they are put in order.
    """

    def __init__(self, spool: IO[bytes], sequence_set: SequenceSet, strategy: str) -> None:
        self._spool, self._first = spool, sequence_set.first
        self._lengths, self._strategy = sequence_set.lengths, strategy
        self._keys, self._ends = array("q"), array("q", [0])
        self._last, self._sites = array("i"), array("i")

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, row: VariantRow | None) -> None:
        """Append a row; None for one that cannot be scored."""
        key, last, line = -1, 0, b""
        sites = [] if row is None else row.substitutions
        if row is not None:
            key = row.protein << 32 | self._shared(row)
            last = sites[-1][0] if sites else 0
            mutant = spell(row.variant, row.wild_type).encode()
            line = b"%d\t%d\t%b\n" % (len(self), self._first[row.protein], mutant)
        self._spool.write(line)
        self._keys.append(key)
        self._ends.append(self._ends[-1] + len(line))
        if self._strategy not in (JOINT, LIKELIHOOD):
            self._last.append(last)
            self._sites.append(len(sites))

    def _shared(self, row: VariantRow) -> int:
        """A number of 32 bits: rows of a protein that need the same passes have the same.

        If each position has its own pass, the first position.
        """
        if self._strategy == LIKELIHOOD:
            return hash32(row.sequence.encode())
        if self._strategy == JOINT:
            return hash32(array("i", [position for position, _ in row.substitutions]))
        return row.substitutions[0][0] if row.substitutions else 0

    def flush(self) -> None:
        """Write all lines to the file, so that `lines` can read them."""
        self._spool.flush()

    @property
    def usable(self) -> Bool:
        """(N,) whether each row can be scored."""
        return np.frombuffer(self._keys, np.int64) >= 0

    def groups(self, least: int) -> RowGroups:
        """The usable rows, sorted; groups take `least` residues of passes, or one row more.

        Between two groups no pass is shared, except where more than `ROWS_TOGETHER` rows share one.
        """
        keys = np.frombuffer(self._keys, np.int64)
        order = np.argsort(keys, kind="stable")[np.count_nonzero(keys < 0) :]
        keys, count = keys[order], len(order)
        if not count:
            return RowGroups(order, np.zeros(1, np.int64), order, order)
        starts = cut_large(self._unshared(keys, order), count)
        keys = keys[starts]
        protein = (keys >> 32).astype(np.int32)
        passes = self._passes(keys, order, starts, protein)
        residues = self._lengths[protein].astype(np.int64)
        residues *= passes
        residues += np.diff(starts, append=count)
        begun = np.cumsum(residues)
        begun -= residues
        begun //= least
        merged = np.flatnonzero(changes(begun) | changes(protein))
        return RowGroups(
            order,
            np.append(starts[merged], count),
            protein[merged].astype(np.int64),
            np.add.reduceat(passes, merged, dtype=np.int64),
        )

    def _unshared(self, keys: Int64, order: Int64) -> Bool:
        """(n,) whether a sorted row shares no pass with those before it."""
        if self._strategy in (JOINT, LIKELIHOOD):
            return changes(keys)
        reached = keys & ~MOST_POSITION
        reached |= np.frombuffer(self._last, np.int32)[order]
        np.maximum.accumulate(reached, out=reached)
        found = np.ones(len(keys), bool)
        found[1:] = keys[1:] > reached[:-1]
        return found

    def _passes(self, keys: Int64, order: Int64, starts: Int64, protein: Int32) -> Int32:
        """Passes, about, that the rows from each of `starts` to the next one take.

        `keys` and `protein` are those of the first of these rows.
        """
        if self._strategy == LIKELIHOOD:
            return self._lengths[protein]
        if self._strategy == JOINT:
            return np.ones(len(starts), np.int32)
        last = np.maximum.reduceat(np.frombuffer(self._last, np.int32)[order], starts)
        sites = np.add.reduceat(np.frombuffer(self._sites, np.int32)[order], starts, dtype=np.int64)
        last -= (keys & MOST_POSITION).astype(np.int32)
        passes: Int32 = np.maximum(1, np.minimum(sites, last + 1)).astype(np.int32)
        return passes

    def lines(self, rows: Int64) -> Iterator[bytes]:
        """The lines of some rows, a block at a time."""
        file, ends = self._spool.fileno(), np.frombuffer(self._ends, np.int64)
        for begin in range(0, len(rows), LINES_READ):
            part = rows[begin : begin + LINES_READ]
            spans = zip(ends[part].tolist(), ends[part + 1].tolist(), strict=True)
            yield b"".join(os.pread(file, stop - start, start) for start, stop in spans)


def hash32(data: bytes | array[int]) -> int:
    """A number of 32 bits. Where different data share one by chance, rows just stay together."""
    return int.from_bytes(blake2b(data, digest_size=4).digest(), "big")


def changes(values: Int64 | Int32) -> Bool:
    """(n,) whether a value differs from the one before it, as the first one does."""
    found = np.ones(len(values), bool)
    found[1:] = values[1:] != values[:-1]
    return found


def cut_large(begins: Bool, count: int) -> Int64:
    """The places where `begins` (n,) is true, and every `ROWS_TOGETHER` rows after each."""
    starts = np.flatnonzero(begins)
    sizes = np.diff(starts, append=count)
    large = np.flatnonzero(sizes > ROWS_TOGETHER)
    ends = starts[large] + sizes[large]
    more = [
        np.arange(start + ROWS_TOGETHER, end, ROWS_TOGETHER)
        for start, end in zip(starts[large].tolist(), ends.tolist(), strict=True)
    ]
    found: Int64 = np.sort(np.concatenate([starts, *more])) if more else starts
    return found


def write_split(rows: VariantSpool, variants: VariantTable, folder: Path, least: int) -> None:
    """Write the bundle and `unusable.tsv` into `folder`.

    `unusable.tsv` and the list of all digests are removed first and written last: where they exist,
    the other files belong to them and are whole.
    """
    for name in (LISTING, UNUSABLE):
        (folder / name).unlink(missing_ok=True)
    remove_leftovers(folder)
    sequence_set, groups = variants.wild_types.sequence_set, rows.groups(least)
    numbers = np.unique(groups.protein)
    with atomic_path(folder / VARIANT_ROWS) as path:
        arrays = write_variant_rows(path, rows, groups)
    with atomic_path(folder / WILD_TYPE_FASTA) as path:
        arrays |= write_wild_types(path, sequence_set, numbers)
    arrays |= {
        "rows": np.diff(groups.bounds),
        "passes": groups.passes,
        "protein": np.searchsorted(numbers, groups.protein),
    }
    with atomic_path(index_of_rows(folder / VARIANT_ROWS)) as path:
        write_variant_index(path, arrays, least)
    with atomic_path(folder / STATUS) as path:
        write_outcomes(path, sequence_set)
    with atomic_path(folder / UNUSABLE) as path:
        write_unusable(path, variants, rows.usable)
    with atomic_path(folder / LISTING) as path:
        write_digests(path, {name: folder / name for name in SPLIT_FILES})


def write_variant_rows(
    path: Path, rows: VariantSpool, groups: RowGroups
) -> dict[str, NDArray[Any]]:
    """Write the rows in their order; returns where each group is, and its digest."""
    ends, digests = array("q"), array("Q")
    with path.open("wb") as file:
        file.write("\t".join(VARIANT_COLUMNS).encode() + b"\n")
        ends.append(file.tell())
        for start, stop in pairwise(groups.bounds.tolist()):
            digest, size = hashlib.sha256(), 0
            for lines in rows.lines(groups.order[start:stop]):
                digest.update(lines)
                size += file.write(lines)
            ends.append(ends[-1] + size)
            digests.append(first_bits(digest))
    return {"offset": np.frombuffer(ends, np.int64), "digest": np.frombuffer(digests, np.uint64)}


def write_wild_types(
    path: Path, sequence_set: SequenceSet, numbers: Int64
) -> dict[str, NDArray[Any]]:
    """Write the wild types with some `numbers`, each named by the index of its record.

    Returns which they are, where each is, and its digest.
    """
    first = sequence_set.first[numbers]
    ends, digests = array("q", [0]), array("Q")
    with path.open("wb") as file:
        pairs = zip(first.tolist(), sequence_set.sequences(numbers), strict=True)
        for index, sequence in pairs:
            record = b">%d\n%b\n" % (index, sequence)
            ends.append(ends[-1] + file.write(record))
            digests.append(first_bits(hashlib.sha256(record)))
    return {
        "first": first,
        "protein_length": sequence_set.lengths[numbers],
        "fasta_offset": np.frombuffer(ends, np.int64),
        "fasta_digest": np.frombuffer(digests, np.uint64),
    }


def write_outcomes(path: Path, sequence_set: SequenceSet) -> None:
    """Write the outcome of each record as it is before any model runs, and its first record."""
    plan = SequencePlan(sequence_set, LengthPolicy(SCORE, None, "full"))
    records = sequence_set.records()
    with create_table(path, SUFFIX, None, OUTCOMES) as writer:
        while block := list(islice(records, LINES_READ)):
            indices = [record.index for record in block]
            firsts = [
                record.index if record.duplicate_of is None else record.duplicate_of
                for record in block
            ]
            outcomes = zip(*map(plan.outcome, block), strict=True)
            writer.write(None, [indices, firsts, *outcomes])


def write_unusable(path: Path, variants: VariantTable, usable: Bool) -> None:
    """Write the rows that are not `usable` (N,), with the reasons."""
    with create_table(path, SUFFIX, None, REASONS) as writer:
        for first, _, reasons in variants.blocks_with_reasons(usable):
            wrong = [(row, why) for row, why in enumerate(reasons, first) if why is not None]
            writer.write(None, [[row for row, _ in wrong], [why for _, why in wrong]])
