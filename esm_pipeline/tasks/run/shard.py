"""Validate FASTA files, remove duplicate sequences and split the others into shards of equal cost.

Writes `records.tsv`, a row for every record, and the shards `00000.fasta`, `00001.fasta`, …: each
unique sequence is in one of them, named by the index of its first record, the longest first. The
digests of all files are in `digests.sha256`.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from esm_pipeline.arrays import Int32, Int64
from esm_pipeline.errors import InputError
from esm_pipeline.files import atomic_paths, remove_leftovers
from esm_pipeline.flags import add_flags, number_of_shards, section_from
from esm_pipeline.formats.checksums import LISTING, line, write_lines
from esm_pipeline.formats.fasta import shown
from esm_pipeline.formats.input_checksums import states, write_inputs
from esm_pipeline.formats.records import header_line
from esm_pipeline.locks import Outputs
from esm_pipeline.settings import shard_names
from esm_pipeline.settings.sections import CleaningSettings
from esm_pipeline.tasks.common.outputs import require_folder_name
from esm_pipeline.tasks.common.sequences import SequenceSet, open_sequences
from esm_pipeline.tasks.common.shards import forward_cost

WRITTEN_AT_ONCE = 1 << 16
SHARD_FASTA = re.compile(r"[0-9]{5}\.fasta")
RECORDS_FILE = "records.tsv"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `shard`."""
    parser.add_argument("fasta", nargs="+", help="FASTA files, plain or gzip; - is standard input")
    parser.add_argument("--shards", type=number_of_shards, required=True, help="number of shards")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument(
        "--inputs", type=Path, metavar="FILE", help="write digests of the FASTA files as read"
    )
    parser.add_argument("--quiet", action="store_true", help="no summary")
    add_flags(parser, CleaningSettings)


def outputs(args: argparse.Namespace) -> Outputs:
    """What `shard` writes: a folder, and the list of its inputs."""
    require_folder_name(args.out, "shards")
    return Outputs([args.inputs], added_to=[args.out])


def run(args: argparse.Namespace) -> int:
    """Write the shards; returns 0. Raises InputError for input that cannot be used."""
    started = time.perf_counter()
    cleaning = section_from(CleaningSettings, args)
    for path in args.fasta:
        place = Path(path).resolve()
        ours = place.name in (RECORDS_FILE, LISTING) or SHARD_FASTA.fullmatch(place.name)
        if ours and place.parent == args.out.resolve():
            raise InputError(f"{shown(path)}: a shard would replace it; choose another --out")
    before = states(args.fasta)
    with open_sequences(args.fasta, cleaning, args.out, complexes=True) as sequence_set:
        write_shards(sequence_set, args.out, args.shards)
        if args.inputs:
            write_inputs(args.inputs, args.fasta, sequence_set.digests, before)
        if not args.quiet:
            print(
                shard_summary(sequence_set, args.shards, time.perf_counter() - started),
                file=sys.stderr,
            )
    return 0


def write_shards(sequence_set: SequenceSet, folder: Path, count: int) -> None:
    """Write `count` shards and `records.tsv` into `folder`, in place of previous ones.

    They are moved into place together when all are written, the list of their digests last: if it
    exists, the files are complete and those it describes. Old shards beyond `count` are removed.
    """
    table, digests = folder / RECORDS_FILE, folder / LISTING
    shards = [folder / f"{name}.fasta" for name in shard_names(count)]
    remove_leftovers(folder)
    with atomic_paths(*shards, table, digests, sweep=False) as (*paths, records, listed):
        lines = [
            line(write_lines(path, shard_lines(sequence_set, numbers)), shard.name)
            for path, shard, numbers in zip(
                paths, shards, deal(sequence_set.lengths, count), strict=True
            )
        ]
        rows = itertools.chain([header_line().encode()], sequence_set.lines())
        lines.append(line(write_lines(records, rows), RECORDS_FILE))
        write_lines(listed, (text.encode() for text in lines))
        digests.unlink(missing_ok=True)
        table.unlink(missing_ok=True)
        for old in folder.iterdir():
            if SHARD_FASTA.fullmatch(old.name) and int(old.stem) >= count:
                old.unlink()


def shard_lines(sequence_set: SequenceSet, numbers: Int64) -> Iterator[bytes]:
    """The records of a shard, each under the index of the first one with its sequence."""
    for begin in range(0, len(numbers), WRITTEN_AT_ONCE):
        block = numbers[begin : begin + WRITTEN_AT_ONCE]
        sequences = sequence_set.sequences(block)
        for index, sequence in zip(sequence_set.first[block].tolist(), sequences, strict=True):
            yield b">%d\n%b\n" % (index, sequence)


def deal(lengths: Int32, count: int) -> list[Int64]:
    """Distribute sequences of `lengths (U,)` residues over `count` shards of nearly equal cost.

    The longest remaining sequence goes to the shard of lowest cost, so that no two shards differ by
    more than the cost of one sequence. Returns the places in `lengths` of each shard, longest
    first, equal lengths in their order.
    """
    order = np.argsort(-lengths, kind="stable")
    shard_of = np.empty(len(order), np.int32)
    loads = [(0, shard) for shard in range(count)]
    for begin in range(0, len(order), WRITTEN_AT_ONCE):
        block = lengths[order[begin : begin + WRITTEN_AT_ONCE]].astype(np.int64)
        dealt = []
        for cost in forward_cost(block).tolist():
            load, shard = loads[0]
            dealt.append(shard)
            heapq.heapreplace(loads, (load + cost, shard))
        shard_of[begin : begin + WRITTEN_AT_ONCE] = dealt
    ends = np.bincount(shard_of, minlength=count).cumsum()
    return np.split(order[np.argsort(shard_of, kind="stable")], ends[:-1])


def shard_summary(sequence_set: SequenceSet, shards: int, seconds: float) -> str:
    """One line about a finished run."""
    ok = int((sequence_set.unique >= 0).sum())
    unique, residues = len(sequence_set.lengths), int(sequence_set.lengths.sum())
    return (
        f"shard: {sequence_set.count:,} records, {ok:,} ok, {sequence_set.count - ok:,} skipped, "
        f"{ok - unique:,} duplicates; {unique:,} sequences, {residues:,} residues "
        f"in {shards:,} shards; {seconds:.1f} s"
    )
