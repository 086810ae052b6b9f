"""Split a table of variants into shards of equal cost, each row validated against its wild type.

Writes, for each shard, a table of rows (`row`, its place in the input; `protein`, the index of its
record; `mutant`, spelled in one way) and a FASTA with their wild types. `unusable.tsv` has the rows
that cannot be scored, with the reasons, `status.tsv` the records. Rows that share passes of a model
stay together: those of a protein, or, for likelihoods, those of one mutated sequence.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, get_args

import numpy as np
from numpy.typing import NDArray

from esm_pipeline.arrays import Int32, Int64
from esm_pipeline.errors import InputError
from esm_pipeline.files import atomic_path, blaming, remove_leftovers
from esm_pipeline.flags import add_flags, add_unchanged, number_of_shards, section_from
from esm_pipeline.formats.checksums import LISTING, sha256, write_digests
from esm_pipeline.formats.fasta import shown
from esm_pipeline.formats.input_checksums import require_unchanged, states, write_inputs
from esm_pipeline.formats.mutations import MisfitError, mutate, spell
from esm_pipeline.formats.records import format_row, status_columns
from esm_pipeline.formats.tables.base import Column, Table, create_table, open_table
from esm_pipeline.locks import Outputs
from esm_pipeline.settings import shard_names
from esm_pipeline.settings.sections import CleaningSettings, StrategySettings, VariantSettings
from esm_pipeline.tasks.common.plan import Plan, Reach
from esm_pipeline.tasks.common.sequences import Intake
from esm_pipeline.tasks.run.shard import EVEN_LENGTH
from esm_pipeline.tasks.score.offsets import add_hints
from esm_pipeline.tasks.score.scored_table import added_columns
from esm_pipeline.tasks.score.table_columns import check_columns, require_match
from esm_pipeline.tasks.score.variant_rows import LIKELIHOOD, Reader, cells_of
from esm_pipeline.tasks.score.wild_types import open_wild_types

SUFFIX = ".tsv"
UNUSABLE, STATUS = "unusable.tsv", "status.tsv"
HEADER = b"row\tprotein\tmutant\n"
REASONS = (Column("row", "whole"), Column("reason", "text"))
SHARD_FILE = re.compile(r"([0-9]{5})\.(fasta|tsv)")
KEY_BYTES = 16
FEW = 4096  # rows written at a time


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
    """Split the table; returns the exit code. Raises InputError for what cannot be used."""
    began = time.monotonic()
    settings, cleaning = section_from(VariantSettings, args), section_from(CleaningSettings, args)
    table = open_table(args.variants)
    table.refuse(added_columns(args.strategy, []), SUFFIX)
    own = Path(args.variants)
    if own.resolve().parent == args.out.resolve() and (
        SHARD_FILE.fullmatch(own.name) or own.name in (UNUSABLE, STATUS, LISTING)
    ):
        raise InputError(f"{shown(str(own))}: a shard would replace it; choose another --out")
    before, digest = states([args.variants]), sha256(Path(table.path))
    with (
        open_wild_types(args.fasta, table, settings, cleaning, args.out) as wild_types,
        blaming(args.out),
        tempfile.TemporaryFile(dir=args.out) as spool,
    ):
        marginal = args.strategy != LIKELIHOOD
        reader = Reader(settings, cleaning, wild_types, marginal=marginal)
        check_columns(table, reader)
        rows = Split(spool)
        rows.read(table, reader)
        require_match(table, wild_types)
        add_hints(table, reader, rows.misfits)
        write_shards(rows, table, reader, args.out, args.shards)
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


class Split:
    """The rows of a table, their lines for the shards in the file `spool`.

    In memory some 80 bytes a row.
    """

    def __init__(self, spool: IO[bytes]) -> None:
        self._spool = spool
        self._protein, self._length, self._sites = array("i"), array("i"), array("i")
        self._ends, self._keys = array("q", [0]), bytearray()
        self.misfits: set[int] = set()

    def read(self, table: Table, reader: Reader) -> None:
        """Take up all rows."""
        first = reader.wild_types.intake.first
        for row, cells in enumerate(cells_of(table, reader)):
            protein, length, sites, line, key = -1, 0, 0, b"", b""
            try:
                mutant = reader.mutant(cells)
                wild_type, variant = mutant.wild_type, mutant.variant
                if reader.marginal:
                    sites = len(reader.substitutions(mutant))
                else:
                    key = mutate(variant, wild_type).encode()
                text = spell(variant, wild_type).encode()
                protein, length = mutant.protein, len(wild_type)
                line = b"%d\t%d\t%b\n" % (row, first[protein], text)
            except MisfitError:
                self.misfits.add(reader.protein(cells))
            except InputError:
                pass
            self._spool.write(line)
            self._protein.append(protein)
            self._length.append(length)
            self._sites.append(sites)
            self._ends.append(self._ends[-1] + len(line))
            if not reader.marginal:
                self._keys += (protein + 1).to_bytes(4, "big")
                self._keys += blake2b(key, digest_size=KEY_BYTES).digest()
        self._spool.flush()

    @property
    def proteins(self) -> Int32:
        """(N,) number of each row's wild type, -1 if the row cannot be used."""
        return np.frombuffer(self._protein, np.int32)

    def shards(self, count: int) -> list[Int64]:
        """The rows of each shard, ascending.

        What stays together is put in a row, by protein, and cut where the cost comes to equal
        parts: no shard exceeds its part by more than the cost of what stays together.
        """
        usable = np.flatnonzero(self.proteins >= 0)
        keys: NDArray[Any] = self.proteins
        if self._keys:
            keys = np.frombuffer(self._keys, f"V{4 + KEY_BYTES}")
        _, first, group = np.unique(keys[usable], return_index=True, return_inverse=True)
        length = np.frombuffer(self._length, np.int32)[usable[first]].astype(np.int64)
        sites = np.bincount(group, np.frombuffer(self._sites, np.int32)[usable])
        passes = np.where(sites > 0, np.minimum(sites, length), length)
        cost = passes * length * (EVEN_LENGTH + length)
        middle = np.cumsum(cost) - cost / 2
        total = max(float(cost.sum()), 1.0)
        shard = np.minimum((middle / total * count).astype(np.int64), count - 1)[group]
        order = np.argsort(shard, kind="stable")
        bounds = np.searchsorted(shard[order], np.arange(1, count))
        return np.split(usable[order], bounds)

    def lines(self, rows: Int64) -> Iterator[bytes]:
        """The lines of some rows, some at a time."""
        file, ends = self._spool.fileno(), np.frombuffer(self._ends, np.int64)
        for begin in range(0, len(rows), FEW):
            part = rows[begin : begin + FEW]
            spans = zip(ends[part].tolist(), ends[part + 1].tolist(), strict=True)
            yield b"".join(os.pread(file, stop - start, start) for start, stop in spans)


def write_shards(rows: Split, table: Table, reader: Reader, folder: Path, count: int) -> None:
    """Write `count` shards and `unusable.tsv` into `folder`, in place of those that are there.

    `unusable.tsv` and the list of all digests are removed first and written last: where these are,
    the shards are their own and whole.
    """
    for name in (LISTING, UNUSABLE):
        (folder / name).unlink(missing_ok=True)
    for old in folder.iterdir():
        if (match := SHARD_FILE.fullmatch(old.name)) and int(match[1]) >= count:
            old.unlink()
    remove_leftovers(folder)
    intake = reader.wild_types.intake
    for name, chosen in zip(shard_names(count), rows.shards(count), strict=True):
        with (
            atomic_path(folder / f"{name}.tsv", sweep=False) as path,
            path.open("wb") as file,
        ):
            file.write(HEADER)
            file.writelines(rows.lines(chosen))
        proteins = np.unique(rows.proteins[chosen])
        with (
            atomic_path(folder / f"{name}.fasta", sweep=False) as path,
            path.open("wb") as file,
        ):
            sequences = intake.sequences(proteins)
            pairs = zip(intake.first[proteins].tolist(), sequences, strict=True)
            file.writelines(b">%d\n%b\n" % pair for pair in pairs)
    with atomic_path(folder / STATUS) as path:
        write_status(path, intake)
    with atomic_path(folder / UNUSABLE) as path:
        write_unusable(path, rows.proteins, table, reader)
    written = [f"{name}.{end}" for name in shard_names(count) for end in ("tsv", "fasta")]
    with atomic_path(folder / LISTING) as path:
        write_digests(path, {name: folder / name for name in (*written, STATUS, UNUSABLE)})


def write_unusable(path: Path, proteins: Int32, table: Table, reader: Reader) -> None:
    """Write the rows that cannot be scored, with the reasons."""
    with create_table(path, SUFFIX, None, REASONS) as writer:
        done = 0
        for block in table.blocks(reader.columns):
            if done + len(block.cells) > len(proteins):
                break
            wrong = np.flatnonzero(proteins[done : done + len(block.cells)] < 0).tolist()
            reasons = [reader.reason(block.cells[place]) for place in wrong]
            writer.write(None, [[done + place for place in wrong], reasons])
            done += len(block.cells)
    if done != len(proteins):
        raise InputError(f"{shown(table.path)}: was changed while it was read; run again")


def write_status(path: Path, intake: Intake) -> None:
    """Write what becomes of each record before any model runs."""
    plan = Plan(intake, Reach("score", None, "full"))
    with path.open("w", encoding="utf-8", newline="") as handle:
        handle.write(format_row(status_columns("score")))
        for record in intake.records():
            handle.write(format_row([str(record.index), *plan.outcome(record)]))
