"""FASTA as a stream of records with line numbers, plain or gzip.

Our own parser, because the usual ones have no line numbers and accept damaged input. It works on
blocks of bytes, so that a record takes less than a microsecond. Peer: Biopython's
`SimpleFastaParser`, which reads ordinary files the same way.
"""

from __future__ import annotations

import itertools
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from esm_pipeline.errors import InputError
from esm_pipeline.formats.other_formats import LOOK, require_fasta, require_no_a3m, require_no_other

if TYPE_CHECKING:
    import hashlib

FastaRecord: TypeAlias = tuple[int, bytes, bytes]
"""A record of a file: line number of its header, from 1; the header without `>` and line end; the
sequence in upper case without whitespace, not yet cleaned."""

STANDARD_INPUT = "-"
READ_BYTES = 1 << 18
GZIP_MAGIC = b"\x1f\x8b"
GZIP_WINDOW = 31  # zlib's wbits for a gzip wrapper with its checksum
WHITESPACE = b" \t\n\v\f\r"
UPPER = bytes(range(256)).upper()
CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f]")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

PREAMBLE = re.compile(
    rb"(?:[ \t\v\f\n]*\n|;[^\n]*\n|\xef\xbb\xbf(?=[ \t\v\f]*\n|;))*+(?:\xef\xbb\xbf)?"
)
"""Blank and comment lines before the first record. `*+` avoids backtracking, which would take 80 MB
for a block of such lines only."""

PENDING = re.compile(rb"[ \t\v\f]*|;[^\n]*|\xef\xbb?")
"""The beginning of a blank or comment line, which may continue in the next block."""

MOST_HEADER = 100_000
"""Most bytes of a header that are kept."""

MOST_LETTERS = 2_000_000_000
"""In one sequence: lengths are int32, and Linux reads no more than this at a time."""

LARGE = 1 << 20
"""Bytes; of a larger record, neither white space nor letters beyond the limit are kept."""

SEAM = len(b"\n" + BYTE_ORDER_MARK)
"""Bytes at the end of a block that may belong to the beginning of the next record."""


def read_fasta(path: str, *, allow_empty: bool = False) -> Iterator[FastaRecord]:
    """Stream a FASTA file, plain or gzip by its first bytes; `-` is standard input.

    Raises InputError with file and line for a file that is missing, unreadable, damaged, not FASTA,
    or without records; `allow_empty` accepts a file without records.
    """
    return itertools.chain.from_iterable(read_batches(path, allow_empty=allow_empty))


def read_batches(
    path: str,
    *,
    allow_empty: bool = False,
    aligned: bool = False,
    most_letters: int = MOST_LETTERS,
    digest: hashlib._Hash | None = None,
) -> Iterator[list[FastaRecord]]:
    """The same as `read_fasta`, in lists with the records of one block of the file.

    `aligned` accepts A3M, an alignment with insertions in lower case. A sequence of more than
    `most_letters` is cut, but stays longer than that; so does a header of more than `MOST_HEADER`
    bytes: this limits the memory of a record, whatever its size. `digest` is updated with the bytes
    of the file as they are read.
    """
    for line, chunk in _chunks(path, allow_empty, most_letters, digest):
        if not aligned:
            require_no_a3m(chunk, shown(path), line)
            aligned = True  # the first records decide
        batch = []
        for text in chunk[1:].split(b"\n>"):
            header, _, body = text.partition(b"\n")
            batch.append((line, header, body.translate(UPPER, WHITESPACE)))
            line += text.count(b"\n") + 1
        yield batch


def read_header(header: bytes, index: int) -> tuple[str, str, tuple[str, ...]]:
    """Id, text and notes of the header of record `index`.

    The id is the first word; a record without one is named after its index. Bytes that are not
    UTF-8 and control characters other than the tab become U+FFFD; a header of more than
    `MOST_HEADER` bytes is cut.
    """
    notes: tuple[str, ...] = ()
    if len(header) > MOST_HEADER:
        end = MOST_HEADER
        while header[end] & 0xC0 == 0x80 and end > MOST_HEADER - 4:  # within a character of UTF-8
            end -= 1
        header = header[:end]
        notes += (f"header cut after {MOST_HEADER:,} bytes",)
    try:
        text = header.decode("utf-8")
    except UnicodeDecodeError:
        text = header.decode("utf-8", "replace")
        notes += ("header is not UTF-8: bad bytes replaced",)
    if not text.isprintable() and CONTROL.search(text):
        text = CONTROL.sub("\ufffd", text)
        notes += ("control characters in the header replaced",)
    name = text.replace("\t", " ").lstrip(" ").split(" ", 1)[0]
    if not name:
        name = f"record_{index}"
        notes += (f"no id: named {name}",)
    return name, text, notes


def shown(path: str) -> str:
    """A path as a message of one line shows it."""
    if path == STANDARD_INPUT:
        return "standard input"
    return path if path.isprintable() else ascii(path)


def _chunks(
    path: str, allow_empty: bool, most: int, digest: hashlib._Hash | None
) -> Iterator[tuple[int, bytes]]:
    """Complete records of a file, some at a time, with the line number of the first."""
    name, buffer, line, begun = shown(path), bytearray(), 1, False
    hidden, room = 0, LARGE  # lines of the current record that are not kept; most bytes of it
    try:
        with _open_input(path) as file:
            for block in _unix_lines(_unpacked(_blocks(file, digest))):
                fresh = max(len(buffer) - 1, 0)
                buffer += block
                if not begun:
                    line += _drop_preamble(buffer)
                    begun = _begins(buffer, name, line)
                    fresh = 0
                if len(buffer) > room:
                    buffer, fresh = bytearray(_without_marks(bytes(buffer))), 0
                if begun and (cut := buffer.rfind(b"\n>", fresh) + 1):
                    for chunk, lines in _checked(bytes(buffer[:cut]), name, line, hidden):
                        yield line, chunk
                        line += lines
                    del buffer[:cut]
                    hidden, room = 0, LARGE
                elif begun and len(buffer) > room:
                    require_no_other(bytes(buffer), name, line)
                    buffer, lines = _squeezed(buffer, most)
                    hidden += lines
                    room = max(LARGE, 2 * len(buffer))
    except (OSError, EOFError, zlib.error) as error:
        line += buffer.count(b"\n") + hidden
        raise InputError(f"{name}:{line}: {_damage(error)}") from None
    if not begun and buffer:
        begun = _begins(buffer, name, line, whole=True)
    if begun:
        for chunk, lines in _checked(bytes(buffer), name, line, hidden):
            yield line, chunk
            line += lines
    elif not allow_empty:
        what = "no record in the file" if buffer or line > 1 else "the file is empty"
        raise InputError(f"{name}:{line}: {what}; a record begins with a line '>id'")


def _checked(text: bytes, name: str, line: int, hidden: int) -> Iterator[tuple[bytes, int]]:
    """Records and the number of their lines in the file; the first has `hidden` more than `text`.

    Raises InputError for another format among them.
    """
    text = _without_marks(text)
    require_no_other(text, name, line)
    if hidden and (cut := text.find(b"\n>") + 1):
        yield text[:cut], text.count(b"\n", 0, cut) + hidden
        text, hidden = text[cut:], 0
    yield text, text.count(b"\n") + hidden


def _squeezed(buffer: bytearray, most: int) -> tuple[bytearray, int]:
    """The beginning of a record in less memory, and the number of lines removed from it."""
    text, seam = bytes(buffer[:-SEAM]), buffer[-SEAM:]
    header, newline, body = text.partition(b"\n")
    kept = body.translate(UPPER, WHITESPACE)[: most + 1]
    lines = body.count(b"\n")
    return bytearray(header[: MOST_HEADER + 2] + newline + kept) + seam, lines


def _drop_preamble(buffer: bytearray) -> int:
    """Drop blank and comment lines at the beginning; returns their number."""
    match = PREAMBLE.match(buffer)
    assert match
    lines = match[0].count(b"\n")
    del buffer[: match.end()]
    return lines


def _begins(text: bytearray, name: str, line: int, *, whole: bool = False) -> bool:
    """Whether the text begins with a record; False while this is undecided. Raises InputError.

    Only the first character of an endless comment or blank line is kept.
    """
    if PENDING.fullmatch(text):
        if not BYTE_ORDER_MARK.startswith(text):
            del text[1:]
        return False
    if not whole and not text.startswith(b">") and len(text) < LOOK:
        return False
    require_fasta(text, f"{name}:{line}")
    return True


def _without_marks(chunk: bytes) -> bytes:
    """Drop byte order marks before `>`, which concatenated files contain."""
    return chunk if chunk.isascii() else chunk.replace(b"\n" + BYTE_ORDER_MARK + b">", b"\n>")


def _unix_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The text with the line ends of Windows and old Macs replaced."""
    held = b""
    for block in blocks:
        text = held + block
        held = b"\r" if text.endswith(b"\r") else b""  # its line feed may be in the next block
        text = text.removesuffix(b"\r")
        yield text.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in text else text
    if held:
        yield b"\n"


def _blocks(file: BinaryIO, digest: hashlib._Hash | None) -> Iterator[bytes]:
    """The blocks of the file."""
    while block := file.read(READ_BYTES):
        if digest is not None:
            digest.update(block)
        yield block


def _unpacked(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The blocks, decompressed if the first bytes are those of gzip."""
    first = next(blocks, b"")
    blocks = itertools.chain([first], blocks)
    return _inflated(blocks) if first.startswith(GZIP_MAGIC) else blocks


def _inflated(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Decompressed gzip members, one after the other; zeros after the last are padding."""
    member = zlib.decompressobj(GZIP_WINDOW)
    for block in blocks:
        while block:
            if member.eof:
                if not (block := block.lstrip(b"\0")):
                    break
                member = zlib.decompressobj(GZIP_WINDOW)
            yield member.decompress(block, READ_BYTES)
            block = member.unused_data if member.eof else member.unconsumed_tail
    if not member.eof:
        raise EOFError


def _damage(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror}); check the file and its disk"
    what = "is cut short" if isinstance(error, EOFError) else f"is damaged ({error})"
    return f"the gzip file {what}; fetch or copy it again"


def _open_input(path: str) -> AbstractContextManager[BinaryIO]:
    name = shown(path)
    if path == STANDARD_INPUT:
        if sys.stdin is None:
            raise InputError(f"{name}: closed; give a file, or a pipe that writes one")
        return nullcontext(sys.stdin.buffer)
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise InputError(f"{name}: no such file; check the path") from None
    except IsADirectoryError:
        raise InputError(f"{name}: a folder, not a file; name the FASTA file in it") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(
            f"{name}: cannot be read ({why}); check the path and its permissions"
        ) from None
