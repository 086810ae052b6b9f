"""One table of all records from the tables of bundles, and what is counted in the same pass.

`aggregate records` writes `records.tsv`, the rows of all bundles in input order with the outcomes
of all tasks appended, and the counts of both. `aggregate tables` merges tables of bundles whose
first column is `index`. Rows are merged as lines, `WINDOW` records at a time: memory grows with the
number of tables alone, by about `BLOCK` bytes each. One file is open at a time, however many there
are.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, compress, islice
from operator import itemgetter, not_
from pathlib import Path
from typing import Any, NamedTuple

from esm_pipeline.errors import InputError
from esm_pipeline.files import atomic_path, atomic_paths, naming_errors, require_apart
from esm_pipeline.flags import number_of_parts
from esm_pipeline.formats.bundles import FASTA, record_table_of
from esm_pipeline.formats.checksums import LISTING, check_listed, line, sha256, write_lines
from esm_pipeline.formats.records import (
    OK,
    RECORD_COLUMNS,
    REMAKE,
    STATUSES,
    Outcome,
    format_row,
    header_line,
    status_columns,
)
from esm_pipeline.locks import Outputs
from esm_pipeline.settings.result_names import bundle_names
from esm_pipeline.tasks.common.outcomes import OF_BUNDLE, listing_of
from esm_pipeline.tasks.common.outputs import ending_of
from esm_pipeline.tasks.common.tallies import VALIDATION, Counts, Tally, write_counts

WINDOW = 1 << 13
"""Records that are merged at a time."""

BLOCK, ALL_BLOCKS = 1 << 14, 1 << 25
"""Bytes of a table that are read at a time: at most so many, and of all tables together."""

DIFFERENT_LINES = 10_000
"""Most different outcomes of a table that are counted as lines."""

LENGTH_AT, STATUS_AT, REASON_AT, FIRST_AT = map(
    RECORD_COLUMNS.index, ("length", "status", "reason", "duplicate_of")
)
VALID = OK.encode()
FILE_COLUMN = "file"
"""A column of paths relative to the folder of their table, as in `structures.tsv`."""


class MergedRows(NamedTuple):
    """Consecutive rows of one table."""

    index: Sequence[int]  # type: ignore[assignment]  # hides tuple.index
    """The index of each, ascending."""
    rows: Sequence[Any]
    """The text of each; see `RecordMerge.bundle_rows` for another kind."""


def task_and_path(text: str) -> tuple[str, Path]:
    """Parse `TASK=PATH`."""
    task, equals, path = text.partition("=")
    if not (task and equals and path):
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form TASK=PATH")
    return task, Path(path)


def add_record_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `aggregate records`."""
    parser.add_argument("--bundles", required=True, type=Path, help="folder that `shard` wrote")
    parser.add_argument("--count", required=True, type=number_of_parts, help="number of bundles")
    parser.add_argument(
        "--status",
        action="append",
        default=[],
        type=task_and_path,
        metavar="TASK=PATH",
        help="outcomes of a task: folder of the bundles' status tables, or one of all records; may "
        "be repeated",
    )
    parser.add_argument("--out", required=True, type=Path, help="table to write, TSV")
    parser.add_argument("--counts", required=True, type=Path, help="JSON file to write")


def record_outputs(args: argparse.Namespace) -> Outputs:
    """What `aggregate records` writes. Raises InputError if it would replace what it reads."""
    written = [args.out, args.counts, args.counts.with_name(LISTING)]
    require_apart(written, list(tables_read(args)))
    return Outputs(written)


def tables_read(args: argparse.Namespace) -> Iterator[Path]:
    """All tables that `aggregate records` reads."""
    for name in bundle_names(args.count):
        yield record_table_of(args.bundles / f"{name}{FASTA}")
        yield from (path / f"{name}{OF_BUNDLE}" for _, path in args.status if path.is_dir())
    yield from (path for _, path in args.status if not path.is_dir())


def write_record_table(args: argparse.Namespace) -> None:
    """Write the table of all records, its counts and the list of both digests.

    Raises InputError for tables of other records, or that have changed since they were written.
    """
    statuses: dict[str, Path] = dict(args.status)
    if len(statuses) < len(args.status):
        raise InputError("--status: a task is given twice; drop one")
    ending_of(args.out, (".tsv",))
    ending_of(args.counts, (".json",))
    merge = RecordMerge(args.bundles, bundle_names(args.count), statuses)
    digests = args.counts.with_name(LISTING)
    with atomic_paths(args.out, args.counts, digests) as (table, counts, listed):
        header = header_line(list(statuses)).encode()
        digest = write_lines(table, chain([header], merge.lines()))
        write_counts(counts, merge.counts())
        names = [os.path.relpath(path, digests.parent) for path in (args.out, args.counts)]
        lines = map(line, (digest, sha256(counts)), names)
        with naming_errors(listed):
            listed.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")


NO_ROWS = MergedRows((), ())


class RecordMerge:
    """The tables of all bundles as one, and what is counted of it while it is read."""

    def __init__(self, folder: Path, names: Sequence[str], statuses: dict[str, Path]) -> None:
        self.folder, self.names, self.statuses = folder, names, statuses
        self.whole = {task for task, path in statuses.items() if not path.is_dir()}
        self.tallies = {step: Tally(step) for step in (VALIDATION, *statuses)}
        self.lengths: Counter[bytes] = Counter()
        self.block = block_of(len(names) * (1 + len(statuses)))

    def lines(self) -> Iterator[bytes]:
        """The rows in input order. Raises InputError."""
        windows = in_order([self.bundle_rows(name) for name in self.names], self.folder)
        tables = [self.table(task) for task in self.statuses if task in self.whole]
        for begin, window in windows:
            yield from with_cells(window, begin, tables) if tables else window
        for table in tables:
            table.end()

    def table(self, task: str, bundle: str = "") -> StatusTable:
        """The outcomes of a task, for all records or those of a bundle."""
        path = self.statuses[task]
        path = path / f"{bundle}{OF_BUNDLE}" if bundle else path
        return StatusTable(path, task, self.tallies[task], self.block)

    def bundle_rows(self, name: str) -> Iterator[MergedRows]:
        """The rows of one bundle, with the outcomes of the tasks that have a table of it.

        If the cells of other tables go in between, a row is the parts of its text, and whether the
        record is ok in validation.
        """
        path = record_table_of(self.folder / f"{name}{FASTA}")
        check_listed(path)
        tables = [None if task in self.whole else self.table(task, name) for task in self.statuses]
        outcomes = OutcomeLines(path, self.tallies[VALIDATION])
        duplicates = 0
        for rows in row_blocks(path, header_line(), self.block):
            columns = cell_columns(path, rows, len(RECORD_COLUMNS))
            index, status, numbers = columns[0], columns[STATUS_AT], numbers_of(path, columns[0])
            valid = [one == VALID for one in status]
            parts: list[list[Sequence[bytes]]] = [[]]
            for table in tables:
                if table is None:
                    parts.append([])
                else:
                    parts[-1].append(table.take(index, valid))
            outcomes.add([*map(b"\t".join, zip(status, columns[REASON_AT], strict=True))], index)
            self.lengths.update(compress(columns[LENGTH_AT], valid))
            duplicates += len(rows) - columns[FIRST_AT].count(b"")
            yield MergedRows(numbers, joined(rows, parts, valid))
        outcomes.end()
        for table in filter(None, tables):
            table.end()
        for tally in self.tallies.values():
            tally.duplicates += duplicates

    def counts(self) -> Counts:
        """What was counted, once all lines are read."""
        lengths = {int(length): number for length, number in self.lengths.items()}
        return Counts(list(self.tallies.values()), lengths=lengths)


class OutcomeLines:
    """Counts outcomes as they stand in a table, so that each different one is parsed once."""

    def __init__(self, path: Path, tally: Tally, *, new: bool = True) -> None:
        self.path, self.tally, self.new = path, tally, new
        self.numbers, self.first = Counter[bytes](), dict[bytes, int]()

    def add(self, texts: Sequence[bytes], index: Iterable[bytes]) -> None:
        """Count outcomes of records, each a status and a reason separated by a tab."""
        self.numbers.update(texts)
        if len(self.numbers) > len(self.first):
            for text, one in zip(texts, index, strict=True):
                self.first.setdefault(text, int(one))
        if len(self.numbers) > DIFFERENT_LINES:
            self.end()

    def end(self) -> None:
        """Add what was counted to the tally. Raises InputError for what is no outcome."""
        for text, number in self.numbers.items():
            status, reason = (cell.decode() for cell in parsed(self.path, text, 2))
            if status not in STATUSES:
                raise InputError(f"{self.path}: a row has status {status!a}; {REMAKE}")
            self.tally.add_many(Outcome(status, reason), number, new=self.new, at=self.first[text])
        self.numbers.clear()
        self.first.clear()


class StatusTable:
    """The rows of a status table, one after the other, and the count of their outcomes."""

    def __init__(self, path: Path, task: str, tally: Tally, block: int) -> None:
        check_listed(path, listing_of(path))
        self.path, self.waiting = path, list[bytes]()
        self.blocks = row_blocks(path, format_row(status_columns(task)), block)
        self.new = OutcomeLines(path, tally)
        self.known = OutcomeLines(path, tally, new=False)

    def take(self, index: Sequence[bytes], valid: Sequence[bool]) -> list[bytes]:
        """Status and reason of the next records, which have these indices. Raises InputError."""
        while len(self.waiting) < len(index) and (block := next(self.blocks, [])):
            self.waiting += block
        rows, self.waiting = self.waiting[: len(index)], self.waiting[len(index) :]
        parts = [row.partition(b"\t") for row in rows]
        found = [name for name, _, _ in parts]
        if found != [*index]:
            pairs = zip(index, [*found, *[b""] * len(index)], strict=False)
            wanted = next(one for one, other in pairs if one != other)
            raise InputError(f"{self.path}: no row for record {wanted.decode()}; {REMAKE}")
        outcomes = [outcome for _, _, outcome in parts]
        for lines, chosen in ((self.new, valid), (self.known, [*map(not_, valid)])):
            lines.add([*compress(outcomes, chosen)], compress(index, chosen))
        return outcomes

    def end(self) -> None:
        """Raise InputError if there are more rows; add the outcomes to the tally."""
        if self.waiting or next(self.blocks, []):
            raise InputError(f"{self.path}: has more records than the bundles; {REMAKE}")
        self.new.end()
        self.known.end()


class MergeSource:
    """One of several tables that are merged, of which a block is in memory."""

    def __init__(self, blocks: Iterator[MergedRows]) -> None:
        self.blocks, self.at = blocks, 0
        self.block = next(blocks, NO_ROWS)

    def fill(self, window: list[Any], begin: int) -> int:
        """Put the rows with an index in the window into their places; returns their number.

        Raises ValueError if the place of a row is taken, or lies before the window.
        """
        count = 0
        while self.block.index:
            index, rows = self.block
            stop = bisect_left(index, begin + len(window), self.at)
            for place, row in zip(index[self.at : stop], rows[self.at : stop], strict=True):
                if place < begin or window[place - begin] is not None:
                    raise ValueError(f"record {place} is there twice")
                window[place - begin] = row
            count, self.at = count + stop - self.at, stop
            if stop < len(index):
                break
            self.block, self.at = next(self.blocks, NO_ROWS), 0
        return count


def in_order(
    tables: Sequence[Iterator[MergedRows]], place: Path
) -> Iterator[tuple[int, list[Any]]]:
    """The rows of all `tables` as one: those of indices 0, 1, …, each once.

    Yields the first index and the rows of each window. Raises InputError, naming `place`, for an
    index that is missing, or there twice.
    """
    sources, begin = list(map(MergeSource, tables)), 0
    while any(source.block.index for source in sources):
        window: list[Any] = [None] * WINDOW
        try:
            count = sum(source.fill(window, begin) for source in sources)
        except ValueError as error:
            raise InputError(f"{place}: {error}; {REMAKE}") from None
        if not any(source.block.index for source in sources):
            del window[count:]
        if not all(window):
            raise InputError(f"{place}: no row for record {begin + window.index(None)}; {REMAKE}")
        yield begin, window
        begin += WINDOW


def joined(
    rows: Sequence[bytes], parts: Sequence[Sequence[Sequence[bytes]]], valid: Sequence[bool]
) -> Sequence[Any]:
    """The text of each row with the cells of tables; see `RecordMerge.bundle_rows`."""
    texts: list[list[bytes]] = []
    for number, cells in enumerate(parts):
        first = [b""] * len(rows) if texts else rows
        end = b"\t" if number < len(parts) - 1 else b"\n"
        texts.append([b"\t".join(row) + end for row in zip(first, *cells, strict=True)])
    return texts[0] if len(texts) == 1 else list(zip(*texts, valid, strict=True))


def with_cells(
    window: Sequence[tuple[Any, ...]], begin: int, tables: Sequence[StatusTable]
) -> Iterable[bytes]:
    """The text of rows that begin at an index, with the cells of tables of the whole sample."""
    text, *parts, valid = zip(*window, strict=True)
    texts: Iterable[bytes] = text
    names = [b"%d" % index for index in range(begin, begin + len(window))]
    for table, part in zip(tables, parts, strict=True):
        texts = map(b"".join, zip(texts, table.take(names, valid), part, strict=True))
    return texts


def block_of(tables: int) -> int:
    """Bytes of each of so many tables that are read at a time."""
    return min(BLOCK, max(1, ALL_BLOCKS // max(1, tables)))


def row_blocks(path: Path, header: str, block: int) -> Iterator[list[bytes]]:
    """The rows of a table, without line ends, which quoted cells may contain.

    Raises InputError if the file is missing, or its first line is not `header`.
    """
    blocks = lines_of(path, block)
    first, *rows = next(blocks, [b""])
    if first + b"\n" != header.encode():
        raise InputError(f"{path}:1: does not have the expected columns; check the path")
    return chain([rows] if rows else [], blocks)


def lines_of(path: Path, block: int) -> Iterator[list[bytes]]:
    """The lines of a table by blocks, of which `block` bytes are read at a time.

    The file is open only meanwhile.
    """
    offset, rest = 0, b""
    while found := read_block(path, offset, block):
        offset += len(found)
        text = rest + found
        lines = text.split(b"\n")
        if b'"' in text:
            lines = connected(lines, b"\n")
        rest = lines.pop()
        if lines:
            yield lines
    if rest:
        yield [rest]


def connected(pieces: Sequence[bytes], separator: bytes) -> list[bytes]:
    """`pieces` of a text with those joined between which the `separator` is in a quoted cell.

    The last one may be incomplete.
    """
    found, waiting = [], b""
    for text in pieces[:-1]:
        waiting = waiting + separator + text if waiting else text
        if waiting.count(b'"') % 2 == 0:
            found.append(waiting)
            waiting = b""
    return [*found, waiting + separator + pieces[-1] if waiting else pieces[-1]]


def read_block(path: Path, offset: int, size: int) -> bytes:
    """Bytes of a file from `offset` on. Raises InputError if it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return os.pread(file.fileno(), size, offset)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from None


def cell_columns(path: Path, rows: Sequence[bytes], count: int) -> list[tuple[bytes, ...]]:
    """The cells of each of `count` columns as they stand in the table, quoted or not.

    Raises InputError for a row with another number of cells.
    """
    cells = [row.split(b"\t") for row in rows]
    if {*map(len, cells)} != {count}:
        cells = [row if len(row) == count else connected(row, b"\t") for row in cells]
        if wrong := {*map(len, cells)} - {count}:
            raise InputError(
                f"{path}: not a row of the table ({min(wrong)} cells, not {count}); {REMAKE}"
            )
    return list(zip(*cells, strict=True))


def parsed(path: Path, text: bytes, count: int) -> list[bytes]:
    """The `count` cells of a row, which may be quoted. Raises InputError for another row."""
    try:
        (cells,) = csv.reader([text.decode()], delimiter="\t", strict=True)
        if len(cells) != count:
            raise ValueError(f"{len(cells)} cells, not {count}")
    except (csv.Error, ValueError) as error:
        raise InputError(f"{path}: not a row of the table ({error}); {REMAKE}") from None
    return [cell.encode() for cell in cells]


def numbers_of(path: Path, index: Sequence[bytes], *, several: bool = False) -> list[int]:
    """The indices of rows. Raises InputError if they are not whole numbers in ascending order.

    Each is there once unless there may be `several` rows of it.
    """
    digits = b"".join(index)
    numbers = list(map(int, index)) if digits.isdigit() and max(map(len, index)) <= 10 else []
    if not numbers or numbers != sorted(numbers if several else {*numbers}):
        raise InputError(f"{path}: its rows are not in the order of their index; {REMAKE}")
    return numbers


def add_table_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `aggregate tables`."""
    parser.add_argument("parts", nargs="+", type=Path, metavar="PART", help="tables of bundles")
    parser.add_argument("--out", required=True, type=Path, help="table to write, TSV")
    parser.add_argument(
        "--any-rows", action="store_true", help="a record may have no row, or several"
    )


def table_outputs(args: argparse.Namespace) -> Outputs:
    """What `aggregate tables` writes. Raises InputError if it would replace what it reads."""
    require_apart([args.out], args.parts)
    return Outputs([args.out])


def write_merged_table(args: argparse.Namespace) -> None:
    """Write the rows of all parts by their index, which is there once unless `args.any_rows`.

    Raises InputError for parts with different columns, or without the column `index`.
    """
    ending_of(args.out, (".tsv",))
    block = block_of(len(args.parts))
    (first, *_), *_ = chain(islice(lines_of(args.parts[0], block), 1), [[b""]])
    header = first.decode(errors="replace") + "\n"
    if first.partition(b"\t")[0] != RECORD_COLUMNS[0].encode():
        raise InputError(f"{args.parts[0]}:1: the first column is not index; give another table")
    folder, several = args.out.parent, args.any_rows
    tables = [part_rows(part, header, block, folder, several=several) for part in args.parts]
    if several:
        texts = by_index(tables)
    else:
        texts = chain.from_iterable(window for _, window in in_order(tables, args.out))
    with atomic_path(args.out) as path:
        write_lines(path, chain([header.encode()], texts))


def by_index(tables: Iterable[Iterator[MergedRows]]) -> Iterator[Any]:
    """The rows of all `tables` by their indices, whatever their number."""
    rows = (
        chain.from_iterable(zip(part.index, part.rows, strict=True) for part in table)
        for table in tables
    )
    return (row for _, row in heapq.merge(*rows, key=itemgetter(0)))


def part_rows(
    path: Path, header: str, block: int, folder: Path, *, several: bool = False
) -> Iterator[MergedRows]:
    """The rows of one table, its paths of files made relative to `folder`.

    An index is there once unless there may be `several` rows of it.
    """
    columns = header.removesuffix("\n").split("\t")
    prefix = os.path.relpath(path.parent, folder)
    moved = FILE_COLUMN in columns and prefix != os.curdir
    for rows in row_blocks(path, header, block):
        index = [row.partition(b"\t")[0] for row in rows]
        if moved:
            place = columns.index(FILE_COLUMN)
            rows = [with_prefix(path, row, len(columns), place, prefix) for row in rows]
        yield MergedRows(numbers_of(path, index, several=several), [row + b"\n" for row in rows])


def with_prefix(path: Path, text: bytes, count: int, place: int, prefix: str) -> bytes:
    """A row with `prefix` before the path of a file in its cell at `place`, if there is one."""
    cells = [cell.decode() for cell in parsed(path, text, count)]
    if cells[place]:
        cells[place] = f"{prefix}/{cells[place]}"
    return format_row(cells).removesuffix("\n").encode()
