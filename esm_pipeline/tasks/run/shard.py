"""Validate FASTA files, remove duplicate sequences and deal the others into bundles of equal cost.

Each bundle has `00000.fasta`, its unique sequences, the longest first, named by the index of their
first records; `00000.index.npz`, the index of these (see `formats/bundles.py`); and
`00000.records.tsv`, a row for every record with one of these sequences. The digests of all files
are in `digests.sha256`.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from esm_pipeline.arrays import Int32, Int64
from esm_pipeline.errors import InputError
from esm_pipeline.files import atomic_paths, naming_errors, remove_leftovers
from esm_pipeline.flags import add_flags, add_least, number_of_parts, section_from
from esm_pipeline.formats.bundles import (
    FASTA,
    INDEX_FILE,
    RECORD_TABLE,
    record_offsets,
    write_index,
)
from esm_pipeline.formats.checksums import LISTING, line, sha256, write_lines
from esm_pipeline.formats.fasta import shown
from esm_pipeline.formats.input_checksums import states, write_inputs
from esm_pipeline.formats.records import header_line
from esm_pipeline.locks import Outputs
from esm_pipeline.parsers import INPUT_OUTPUT, JOB_GROUP, group_of
from esm_pipeline.settings.result_names import bundle_names
from esm_pipeline.settings.sections import CleaningSettings
from esm_pipeline.tasks.common.outcomes import count_text
from esm_pipeline.tasks.common.outputs import require_folder_name
from esm_pipeline.tasks.common.progress import Speaker, waiting
from esm_pipeline.tasks.common.sequences import SequenceSet, open_sequences

WRITTEN_AT_ONCE = 1 << 16
BUNDLE_FILES = (FASTA, INDEX_FILE, RECORD_TABLE)
"""Endings of the files of a bundle, in the order of the list of their digests."""

BUNDLE_FILE = re.compile(rf"([0-9]{{5}})(?:{'|'.join(map(re.escape, BUNDLE_FILES))})")


EXAMPLES = (
    (
        "esm-pipeline shard --bundles 1 --out bundles proteins.fasta",
        "validated and unique sequences, into the folder bundles",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `shard`."""
    files = group_of(parser, INPUT_OUTPUT)
    files.add_argument("fasta", nargs="+", help="FASTA files, plain or gzip; - is standard input")
    group_of(parser, JOB_GROUP).add_argument(
        "--bundles", type=number_of_parts, required=True, help="number of bundles"
    )
    add_least(parser)
    files.add_argument("--out", type=Path, required=True, help="folder for the bundles")
    files.add_argument(
        "--inputs", type=Path, metavar="FILE", help="write digests of the FASTA files as read"
    )
    parser.add_argument("--quiet", action="store_true", help="no summary")
    add_flags(parser, CleaningSettings)


def outputs(args: argparse.Namespace) -> Outputs:
    """What `shard` writes: a folder, and the list of its inputs."""
    require_folder_name(args.out, "bundles")
    return Outputs([args.inputs], added_to=[args.out])


def run(args: argparse.Namespace) -> int:
    """Write the bundles; returns 0. Raises InputError for input that cannot be used."""
    started = time.perf_counter()
    cleaning = section_from(CleaningSettings, args)
    for path in args.fasta:
        place = Path(path).resolve()
        ours = place.name == LISTING or BUNDLE_FILE.fullmatch(place.name)
        if ours and place.parent == args.out.resolve():
            raise InputError(f"{shown(path)}: a bundle would replace it; choose another --out")
    before = states(args.fasta)
    say = Speaker("shard", args.quiet)
    with open_sequences(args.fasta, cleaning, args.out, complexes=True, say=say) as sequence_set:
        with waiting("shard: writing the bundles", quiet=args.quiet):
            write_bundles(sequence_set, args.out, args.bundles, args.least)
        if args.inputs:
            write_inputs(args.inputs, args.fasta, sequence_set.digests, before)
        if not args.quiet:
            seconds = time.perf_counter() - started
            print(shard_summary(sequence_set, args.bundles, seconds), file=sys.stderr)
    return 0


def write_bundles(sequence_set: SequenceSet, folder: Path, count: int, least: int) -> None:
    """Write `count` bundles into `folder`, in place of previous ones.

    They are moved into place together when all are written, the list of their digests last: if it
    exists, the files are complete and those it describes. Old bundles beyond `count` are removed.
    Takes 12 bytes of memory for each unique sequence, and 60 for each in a bundle.
    """
    names = bundle_names(count)
    files = [folder / f"{name}{part}" for part in BUNDLE_FILES for name in names]
    digests = folder / LISTING
    remove_leftovers(folder)
    with atomic_paths(*files, digests, sweep=False) as (*paths, listed):
        fastas, indices, tables = (paths[place * count : (place + 1) * count] for place in range(3))
        order = longest_first_order(sequence_set.lengths)
        found = []
        for number, (fasta, index) in enumerate(zip(fastas, indices, strict=True)):
            chosen = order[number::count]
            found.append(write_lines(fasta, fasta_lines(sequence_set, chosen)))
            with naming_errors(index):
                write_index_of(index, sequence_set, chosen, least)
        found += [sha256(index) for index in indices]
        found += write_tables(sequence_set, bundle_of_each(order, count), tables)
        lines = map(line, found, (file.name for file in files))
        write_lines(listed, (text.encode() for text in lines))
        digests.unlink(missing_ok=True)
        for old in folder.iterdir():
            match = BUNDLE_FILE.fullmatch(old.name)
            if match and int(match[1]) >= count:
                old.unlink()


def longest_first_order(lengths: Int32) -> Int64:
    """The places in `lengths` (U,), the longest first, equal lengths in their order.

    Bundle b of B has every B-th from b on. Whatever a sequence costs, as long as a longer one never
    costs less, two bundles differ by no more than the cost of the longest.
    """
    return np.argsort(-lengths, kind="stable")


def bundle_of_each(order: Int64, count: int) -> Int32:
    """(U,) the bundle of each sequence."""
    bundle = np.empty(len(order), np.int32)
    for number in range(count):
        bundle[order[number::count]] = number
    return bundle


def fasta_lines(sequence_set: SequenceSet, numbers: Int64) -> Iterator[bytes]:
    """The records of a bundle, each under the index of the first one with its sequence."""
    for begin in range(0, len(numbers), WRITTEN_AT_ONCE):
        block = numbers[begin : begin + WRITTEN_AT_ONCE]
        sequences = sequence_set.sequences(block)
        for index, sequence in zip(sequence_set.first[block].tolist(), sequences, strict=True):
            yield b">%d\n%b\n" % (index, sequence)


def write_index_of(path: Path, sequence_set: SequenceSet, numbers: Int64, least: int) -> None:
    """Write the index of a bundle of some unique sequences."""
    first = sequence_set.first[numbers]
    write_index(
        path,
        first=first,
        length=sequence_set.lengths[numbers],
        offset=record_offsets(first, sequence_set.sizes[numbers]),
        digest=sequence_set.digest[numbers],
        least=least,
    )


def write_tables(sequence_set: SequenceSet, bundle_of: Int32, paths: list[Path]) -> list[str]:
    """Write the table of records of each bundle; returns their digests.

    A record is in the bundle of its sequence; without one, in that of its index modulo their
    number.
    """
    digests = [hashlib.sha256() for _ in paths]
    rows, begin = sequence_set.lines(), 0
    add_text(paths, digests, [header_line().encode()] * len(paths))
    while block := list(itertools.islice(rows, WRITTEN_AT_ONCE)):
        numbers = sequence_set.unique[begin : begin + len(block)]
        by_index = np.arange(begin, begin + len(block)) % len(paths)
        begin += len(block)
        bundle = np.where(numbers < 0, by_index, bundle_of[numbers] if len(bundle_of) else 0)
        order = np.argsort(bundle, kind="stable").tolist()
        ends = np.bincount(bundle, minlength=len(paths)).cumsum().tolist()
        spans = itertools.pairwise([0, *ends])
        texts = [b"".join([block[place] for place in order[a:b]]) for a, b in spans]
        add_text(paths, digests, texts)
    return [digest.hexdigest() for digest in digests]


def add_text(paths: list[Path], digests: list[hashlib._Hash], texts: list[bytes]) -> None:
    """Append a text to each file, and add it to the file's digest."""
    for path, digest, text in zip(paths, digests, texts, strict=True):
        digest.update(text)
        with naming_errors(path), open(path, "ab") as file:
            file.write(text)


def shard_summary(sequence_set: SequenceSet, bundles: int, seconds: float) -> str:
    """One line about a finished run."""
    ok = int((sequence_set.unique >= 0).sum())
    unique, residues = len(sequence_set.lengths), int(sequence_set.lengths.sum())
    return (
        f"shard: {count_text(sequence_set.count, 'records')}, {ok:,} ok, "
        f"{sequence_set.count - ok:,} skipped, {count_text(ok - unique, 'duplicates')}; "
        f"{count_text(unique, 'sequences')}, {count_text(residues, 'residues')} in "
        f"{count_text(bundles, 'bundles')}; {seconds:.1f} s"
    )
