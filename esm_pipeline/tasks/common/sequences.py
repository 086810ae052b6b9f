"""One pass over FASTA files: every record is validated and equal sequences are found.

`shard` and every task that runs alone begin with it. Rows and sequences go to temporary files
without a name, so that memory stays small whatever the input, and a killed process leaves nothing.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from array import array
from binascii import hexlify
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from esm_pipeline.arrays import Int32, Int64
from esm_pipeline.errors import InputError, setting
from esm_pipeline.files import naming_errors
from esm_pipeline.formats.checksums import check_if_listed
from esm_pipeline.formats.fasta import (
    MOST_HEADER,
    MOST_LETTERS,
    STANDARD_INPUT,
    FastaRecord,
    read_batches,
    read_header,
    shown,
)
from esm_pipeline.formats.records import OK, SKIPPED, Record, format_row, parse_lines
from esm_pipeline.nucleotides import LEAST_LETTERS, nucleotides_in
from esm_pipeline.settings.sections import CleaningSettings
from esm_pipeline.tasks.common.cleaning import (
    CHAIN_BREAK,
    RESIDUE_LETTERS,
    CleanedSequence,
    nucleotides_remedy,
    read_sequence,
)
from esm_pipeline.tasks.common.progress import SILENT, Advance, Amounts, Speaker, step

DIGEST_BYTES = 16
"""Bytes of a sequence's SHA-256 to find equal ones; different ones will never share 128 bits."""

PLAIN = bytes(byte for byte in range(0x20, 0x7F) if byte != ord('"'))
"""Bytes of a header that are written as they are."""

FIRST_RECORDS = 1000
"""Records by which a file is judged to be of nucleotides or not."""

CODON = 3
L, E = b"LE"
"""A sequence with one of these letters is not of nucleotides."""

SPOOL_BLOCK = 1 << 20
BATCH = 1 << 23
"""Bytes of sequences that are read from the spool at once."""
OBJECT_BYTES = 64
"""About the bytes of memory that a sequence takes in addition to its residues."""


def open_sequences(
    paths: Sequence[str],
    cleaning: CleaningSettings,
    spool_dir: Path,
    *,
    allow_empty: bool = False,
    complexes: bool = False,
    say: Speaker = SILENT,
) -> SequenceSet:
    """Read FASTA files (`-` is standard input) as one input with a running index.

    Temporary files go to `spool_dir`, which is made if it is missing. `allow_empty` accepts a file
    without records; with `complexes`, sequences of several chains count as unique sequences too.
    `say` reports how much is read, if that takes a while.
    Raises InputError for a file that cannot be used, OSError if the disk of `spool_dir` is full.
    """
    if list(paths).count(STANDARD_INPUT) > 1:
        raise InputError(f"{shown(STANDARD_INPUT)}: given twice, but can be read once; drop one")
    digests = [CountingDigest() for _ in paths]

    def read(path: str, digest: CountingDigest) -> Iterator[list[FastaRecord]]:
        batches = read_batches(
            path,
            allow_empty=allow_empty,
            aligned=cleaning.gaps == "remove",
            most_letters=most_letters(cleaning),
            digest=digest,  # type: ignore[arg-type]  # has what is used of it
        )
        return proteins(batches, shown(path)) if cleaning.nucleotides == "refuse" else batches

    batches = itertools.chain.from_iterable(map(read, paths, digests))
    names = shown(paths[0]) if len(paths) == 1 else f"{len(paths):,} files"
    amounts = Amounts(size_of(paths), "bytes")
    with step(f"{say.title}: reading {names}", amounts, quiet=say.quiet) as advance:
        for digest in digests:
            digest.advance = advance
        sequence_set = read_entries(batches, cleaning, spool_dir, complexes=complexes)
    sequence_set.digests = [digest.hexdigest() for digest in digests]
    for path, found in zip(paths, sequence_set.digests, strict=True):
        check_if_listed(Path(path), found)
    return sequence_set


class CountingDigest:
    """A SHA-256 that reports how many bytes were added."""

    advance: Advance

    def __init__(self) -> None:
        self._digest = sha256()

    def update(self, block: bytes) -> None:
        """Add some bytes."""
        self._digest.update(block)
        self.advance(len(block))

    def hexdigest(self) -> str:
        """The digest in hexadecimal."""
        return self._digest.hexdigest()


def size_of(paths: Sequence[str]) -> int:
    """Bytes of some files; 0 if one is missing or not a plain file, such as standard input."""
    if not all(os.path.isfile(path) for path in paths):
        return 0
    return sum(os.path.getsize(path) for path in paths)


def most_letters(cleaning: CleaningSettings) -> int:
    """The most letters of a record; in a coding sequence three are one residue."""
    letters = cleaning.max_letters * (CODON if cleaning.nucleotides == "translate" else 1)
    return min(letters, MOST_LETTERS)


def proteins(batches: Iterable[list[FastaRecord]], name: str) -> Iterator[list[FastaRecord]]:
    """The records of the file `name`. Raises InputError if most of the first are nucleotides."""
    seen, found = 0, 0
    line, kind = 0, ""

    def require_proteins() -> None:
        if 2 * found > seen:
            those = f"{found:,} of the first {seen:,} records do"
            those = "the first record does" if seen == 1 else those
            raise InputError(
                f"{name}:{line}: looks like {kind}, as {those}; {nucleotides_remedy()}"
            )

    for batch in batches:
        if seen < FIRST_RECORDS:
            for place, _, sequence in batch[: FIRST_RECORDS - seen]:
                seen += 1
                if looks := nucleotides_in(sequence):
                    found += 1
                    line, kind = line or place, kind or looks
            if seen == FIRST_RECORDS:
                require_proteins()
        yield batch
    if seen < FIRST_RECORDS:
        require_proteins()


def read_entries(
    batches: Iterable[list[FastaRecord]],
    cleaning: CleaningSettings,
    spool_dir: Path,
    *,
    complexes: bool = False,
) -> SequenceSet:
    """Validate records and find equal sequences; `batches` as `read_batches` yields them.

    See `open_sequences` for the other arguments.
    """
    try:
        spool_dir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(
            f"{shown(str(spool_dir))}: not a folder; choose another one for the output"
        ) from None
    with naming_errors(spool_dir), ExitStack() as files:
        spool = SequenceSpool(*(files.enter_context(_spool_file(spool_dir)) for _ in range(2)))
        for batch in batches:
            spool.add(batch, cleaning)
        spool.flush()
        return SequenceSet(spool, files.pop_all(), complexes=complexes)


def _spool_file(folder: Path) -> IO[bytes]:
    """A file without a name. An OSError names the folder."""
    try:
        return tempfile.TemporaryFile(dir=folder)
    except OSError as error:
        error.filename = os.fspath(folder)
        raise


class SequenceSpool:
    """Validated records: two temporary files, and three numbers in memory for each record."""

    def __init__(self, rows: IO[bytes], sequences: IO[bytes]) -> None:
        self.rows = rows  # lines of records.tsv, with an empty duplicate_of
        self.sequences = sequences  # end to end
        self.digests = bytearray()  # DIGEST bytes each
        self.sizes = array("i")  # bytes in `sequences`; 0 if skipped
        self.residues = array("i")  # as many, or fewer in a complex

    def add(self, batch: list[FastaRecord], cleaning: CleaningSettings) -> None:
        """Validate some records and append them."""
        rows, sequences, digests, residues = [], [], [], []
        most = most_letters(cleaning)
        usual_bytes = 0 if cleaning.nucleotides == "translate" else min(most, MOST_HEADER)
        for index, (_, header, sequence) in enumerate(batch, start=len(self.sizes)):
            words = header.split(None, 1)
            length = len(sequence)
            if (
                words
                and (L in sequence or E in sequence or 0 < length < LEAST_LETTERS)
                and length + len(header) <= usual_bytes
                and not sequence.translate(None, RESIDUE_LETTERS)
                and not header.translate(None, PLAIN)
            ):
                digest = sha256(sequence).digest()
                cells = index, words[0], header, length, hexlify(digest)
                rows.append(b"%d\t%b\t%b\t%d\t%b\tok\t\t\t\n" % cells)
            else:
                cleaned = _cleaned(header, sequence, cleaning, most)
                sequence = cleaned.sequence
                length = len(sequence) - sequence.count(CHAIN_BREAK)
                digest = sha256(sequence).digest()
                rows.append(_row(index, header, length, digest, cleaned))
            sequences.append(sequence)
            digests.append(digest[:DIGEST_BYTES])
            residues.append(length)
        self.rows.write(b"".join(rows))
        self.sequences.write(b"".join(sequences))
        self.digests += b"".join(digests)
        self.sizes.extend(map(len, sequences))
        self.residues.extend(residues)

    def flush(self) -> None:
        """Write everything to the files."""
        self.rows.flush()
        self.sequences.flush()


def _cleaned(
    header: bytes, sequence: bytes, cleaning: CleaningSettings, most: int
) -> CleanedSequence:
    """Clean a sequence; one of more than `most` letters is skipped."""
    if len(sequence) <= most:
        return read_sequence(sequence, cleaning, header)
    remedy = "cut it into parts"
    if most < MOST_LETTERS:
        remedy = f"set {setting('shard.max_letters')} to as many as it has, or {remedy}"
    return CleanedSequence(b"", f"more than {most:,} letters; {remedy}")


def _row(
    index: int, header: bytes, residues: int, digest: bytes, cleaned: CleanedSequence
) -> bytes:
    """The line of records.tsv, with its last cell empty."""
    name, text, notes = read_header(header, index)
    length, sha, status = (str(residues), digest.hex(), OK) if residues else ("", "", SKIPPED)
    note = "; ".join((*notes, *cleaned.notes))
    return format_row(
        (str(index), name, text, length, sha, status, cleaned.reason, note, "")
    ).encode()


class SequenceSet:
    """The records of some FASTA files: N validated records, U unique sequences to compute.

    A context manager that owns the spool, files as large as the input. It takes about 44 bytes of
    memory for each record, up to 90 while it is opened; rows and sequences are read when needed.
    """

    digests: list[str]
    """SHA-256 of each file as it was read, in hexadecimal; empty if no files were read."""
    count: int
    """N, the number of records in all files."""
    lengths: Int32
    """(U,) residues of each unique sequence, in the order of their first records."""
    sizes: Int32
    """(U,) letters of each unique sequence, with the chain breaks of a complex."""
    first: Int64
    """(U,) index of the first record with each unique sequence."""
    digest: NDArray[np.uint64]
    """(U,) the first 64 bits of the SHA-256 of each unique sequence, chain breaks included."""
    unique: Int32
    """(N,) unique sequence of each record; -1 if it is skipped, or a complex."""
    part: None = None
    """These are whole files, not the range of a bundle."""

    def __init__(self, spool: SequenceSpool, files: ExitStack, *, complexes: bool) -> None:
        self._rows, self._sequences, self._files = spool.rows, spool.sequences, files
        self.digests = []
        self.count = len(spool.sizes)
        sizes, residues = np.frombuffer(spool.sizes, "i"), np.frombuffer(spool.residues, "i")
        own = np.arange(self.count)
        same = _first_with_same(spool.digests)  # (N,)
        same[residues == 0] = own[residues == 0]
        is_first = (same == own) & (residues > 0) & (complexes | (sizes == residues))
        self.first = np.flatnonzero(is_first)
        self.digest = np.frombuffer(spool.digests, ">u8")[::2][self.first].astype(np.uint64)
        spool.digests.clear()
        self.lengths, self.sizes = residues[self.first], sizes[self.first]
        self._offsets = (sizes.cumsum(dtype=np.int64) - sizes)[self.first]
        self.unique = np.where(is_first, is_first.cumsum(dtype=np.int32) - 1, np.int32(-1))[same]
        self._duplicate_of = np.where(same == own, -1, same)

    def sequence(self, number: int) -> bytes:
        """Unique sequence `number`, read from the spool."""
        file = self._sequences.fileno()
        return os.pread(file, self.sizes[number], self._offsets[number])

    def sequences(self, numbers: NDArray[np.integer[Any]]) -> Iterator[bytes]:
        """Unique sequences in the order of `numbers`, read from the spool in batches."""
        file = self._sequences.fileno()
        weights = np.cumsum(self.sizes[numbers] + OBJECT_BYTES, dtype=np.int64)
        for batch in np.split(numbers, np.flatnonzero(np.diff(weights // BATCH)) + 1):
            texts = [b""] * len(batch)
            order = np.argsort(self._offsets[batch])
            sizes, offsets = self.sizes[batch[order]], self._offsets[batch[order]]
            spans = zip(order.tolist(), sizes.tolist(), offsets.tolist(), strict=True)
            for place, size, offset in spans:
                texts[place] = os.pread(file, size, offset)
            yield from texts

    def records(self) -> Iterator[Record]:
        """All records in index order, read from the spool."""
        return parse_lines(line.decode() for line in self.lines())

    def lines(self) -> Iterator[bytes]:
        """The lines of `records.tsv` below its header line, read from the spool."""
        file, index, offset, begun = self._rows.fileno(), 0, 0, b""
        while block := os.pread(file, SPOOL_BLOCK, offset):
            offset += len(block)
            *lines, begun = (begun + block).split(b"\n")
            firsts = self._duplicate_of[index : index + len(lines)].tolist()
            index += len(lines)
            for line, first in zip(lines, firsts, strict=True):
                yield line + (b"\n" if first < 0 else b"%d\n" % first)

    def close(self) -> None:
        """Remove the spool."""
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _first_with_same(digests: bytearray) -> Int64:
    """(N,) for each record, the first one with the same digest."""
    keys = np.frombuffer(digests, np.uint64).reshape(-1, 2)
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: equal digests stay in input order
    begins = np.arange(len(order)) == 0
    for key in keys.T:
        ordered = key[order]
        begins[1:] |= ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(begins)
    first = np.empty_like(order)
    first[order] = np.repeat(order[starts], np.diff(starts, append=len(order)))
    return first
