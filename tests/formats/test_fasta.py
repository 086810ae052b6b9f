"""The FASTA reader: what it accepts, what it refuses and in which words."""

from __future__ import annotations

import gzip
import io
import itertools
import os
import sys
import tempfile
import zlib
from pathlib import Path

import pytest
from Bio.SeqIO.FastaIO import SimpleFastaParser
from hypothesis import given, settings
from hypothesis import strategies as st

from esm_pipeline.errors import InputError
from esm_pipeline.formats import fasta
from esm_pipeline.formats.fasta import read_batches, read_fasta, read_header

TWO = b">a first\nMKV\nLAA\n>b\nMK\n"
TWO_READ = [(1, b"a first", b"MKVLAA"), (4, b"b", b"MK")]


@pytest.fixture
def read(tmp_path: Path):
    """Read bytes as a FASTA file named in.fasta."""

    def read_bytes(content: bytes, **options: bool) -> list[tuple[int, bytes, bytes]]:
        path = tmp_path / "in.fasta"
        path.write_bytes(content)
        return list(read_fasta(str(path), **options))

    return read_bytes


def refusal(path: Path) -> str:
    """The error that a file is refused with, its folder left out."""
    with pytest.raises(InputError) as error:
        list(read_fasta(str(path)))
    return str(error.value).replace(f"{path.parent}/", "")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (TWO, TWO_READ),
        (TWO.removesuffix(b"\n"), TWO_READ),
        (TWO.replace(b"\n", b"\r\n"), TWO_READ),
        (TWO.replace(b"\n", b"\r"), TWO_READ),
        (b"\xef\xbb\xbf" + TWO, TWO_READ),
        (gzip.compress(TWO), TWO_READ),
        (gzip.compress(TWO[:7]) + gzip.compress(TWO[7:]), TWO_READ),
        (gzip.compress(TWO) + bytes(700), TWO_READ),
        (gzip.compress(b"\xef\xbb\xbf" + TWO.replace(b"\n", b"\r\n")), TWO_READ),
        (b"; by hand\n\n;\n" + TWO, [(line + 3, *rest) for line, *rest in TWO_READ]),
        (b"\xef\xbb\xbf; by hand\r\n  \r\n" + TWO, [(line + 2, *rest) for line, *rest in TWO_READ]),
        (b">a\n\n m k\tv \n\n l\x0b\x0ca\n", [(1, b"a", b"MKVLA")]),
        (b">a\n>b\n\n>c", [(1, b"a", b""), (2, b"b", b""), (4, b"c", b"")]),
        (b">", [(1, b"", b"")]),
        (b"> a  b \nMK", [(1, b" a  b ", b"MK")]),
        (b">a\nM;K\n;MK>\n", [(1, b"a", b"M;K;MK>")]),
        (b">a\nMK\n\xef\xbb\xbf>b\nMV\n", [(1, b"a", b"MK"), (3, b"b", b"MV")]),
        ("\n>caf\u00e9\nm\u00e9\n".encode(), [(2, "caf\u00e9".encode(), "M\u00e9".encode())]),
    ],
)
def test_reads(read, content: bytes, expected: list[tuple[int, bytes, bytes]]) -> None:
    assert read(content) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "in.fasta:1: the file is empty; a record begins with a line '>id'"),
        (b"\xef\xbb\xbf", "in.fasta:1: the file is empty; a record begins with a line '>id'"),
        (gzip.compress(b""), "in.fasta:1: the file is empty; a record begins with a line '>id'"),
        (b"\n\n", "in.fasta:3: no record in the file; a record begins with a line '>id'"),
        (b"; only", "in.fasta:1: no record in the file; a record begins with a line '>id'"),
        (
            b"\n;\nMKVL AA\n>a\nMK\n",
            "in.fasta:3: text before the first '>': 'MKVL AA'; begin each record with a line '>id'",
        ),
        (
            b" >a\nMK\n",
            "in.fasta:1: text before the first '>': ' >a'; begin each record with a line '>id'",
        ),
        (
            "\u00e9\u2028".encode() + b"M" * 50,
            "in.fasta:1: text before the first '>': '\\xe9\\u2028" + "M" * 35 + "'; "
            "begin each record with a line '>id'",
        ),
        (b"@r1\nMK\n+\nII\n", "in.fasta:1: not FASTA, looks like FASTQ; convert it to FASTA"),
        (
            b"\n<!DOCTYPE html>\n<html>",
            "in.fasta:2: not FASTA, looks like HTML or XML, perhaps the error page of a download; "
            "fetch the file again",
        ),
        (
            b"\x89HDF\r\n\x1a\n" + bytes(9),
            "in.fasta:1: not FASTA, looks like binary data; give a FASTA file",
        ),
        (
            b"PK\3\4" + bytes(9),
            "in.fasta:1: not FASTA, looks like a zip archive, such as a Word or Excel file; "
            "unpack it, or save its text as FASTA",
        ),
        (
            b"BZh91AY",
            "in.fasta:1: not FASTA, looks like a compressed file; unpack it, or use gzip",
        ),
        (
            gzip.compress(gzip.compress(TWO)),
            "in.fasta:1: not FASTA, looks like gzip inside gzip; unpack it once",
        ),
        *(
            (
                TWO.decode().encode(encoding),
                "in.fasta:1: not FASTA, looks like UTF-16 text; save it as UTF-8",
            )
            for encoding in ("utf-16", "utf-16-le", "utf-16-be")
        ),
        (
            b"\x1f\x8b",
            "in.fasta:1: the gzip file is cut short; fetch or copy it again",
        ),
        (
            gzip.compress(TWO)[:-1],
            "in.fasta:6: the gzip file is cut short; fetch or copy it again",
        ),
        (
            gzip.compress(TWO) + b"\x1f\x8b",
            "in.fasta:6: the gzip file is cut short; fetch or copy it again",
        ),
        (
            gzip.compress(TWO) + b"\0MK",
            "in.fasta:6: the gzip file is damaged (Error -3 while decompressing data: incorrect "
            "header check); fetch or copy it again",
        ),
    ],
)
def test_refuses(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "in.fasta"
    path.write_bytes(content)
    assert refusal(path) == message


def test_every_cut_of_a_gzip_file_is_noticed(tmp_path: Path) -> None:
    whole, path = gzip.compress(TWO), tmp_path / "in.fasta"
    for size in range(2, len(whole)):
        path.write_bytes(whole[:size])
        assert "the gzip file is cut short" in refusal(path)


def test_refuses_a_damaged_byte_of_gzip(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(TWO))
    content[-6] ^= 1  # in the checksum
    path = tmp_path / "in.fasta.gz"
    path.write_bytes(content)
    assert refusal(path) == (
        "in.fasta.gz:1: the gzip file is damaged (Error -3 while decompressing data: incorrect "
        "data check); fetch or copy it again"
    )


def test_refuses_what_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(tmp_path / "no.fasta") == "no.fasta: no such file; check the path"
    (tmp_path / "folder").mkdir()
    assert refusal(tmp_path / "folder") == (
        "folder: a folder, not a file; name the FASTA file in it"
    )
    (tmp_path / "file").touch()
    assert refusal(tmp_path / "file" / "in.fasta").endswith(
        "in.fasta: cannot be read (Not a directory); check the path and its permissions"
    )
    assert refusal(tmp_path / "two\nlines").endswith("two\\nlines': no such file; check the path")

    def deny(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(fasta, "open", deny, raising=False)
    assert refusal(tmp_path / "mine.fasta") == (
        "mine.fasta: cannot be read (Permission denied); check the path and its permissions"
    )


def test_refuses_a_disk_that_fails_halfway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() >= 10:
                raise OSError(5, "Input/output error")
            return super().read(10)

    monkeypatch.setattr(fasta, "open", lambda *_: Failing(TWO), raising=False)
    assert refusal(tmp_path / "in.fasta") == (
        "in.fasta:2: cannot be read (Input/output error); check the file and its disk"
    )


def test_empty_is_allowed_where_asked_for(read) -> None:
    assert read(b"", allow_empty=True) == []
    assert read(b"\n; nothing\n", allow_empty=True) == []
    with pytest.raises(InputError, match="text before the first"):
        read(b"MK", allow_empty=True)


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(gzip.compress(TWO))))
    assert list(read_fasta("-")) == TWO_READ
    assert not sys.stdin.closed
    with pytest.raises(InputError, match=r"^standard input:1: the file is empty;"):
        list(read_fasta("-"))
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match=r"^standard input: closed;"):
        list(read_fasta("-"))


def test_a_pipe_is_read_once_and_forwards(tmp_path: Path) -> None:
    readable, writable = os.pipe()
    os.write(writable, TWO)
    os.close(writable)
    assert list(read_fasta(f"/dev/fd/{readable}")) == TWO_READ
    os.close(readable)


@pytest.mark.parametrize("block", [2, 3, 5, 7, 64])
@pytest.mark.parametrize("packed", [False, True])
def test_blocks_leave_no_seams(
    read, monkeypatch: pytest.MonkeyPatch, block: int, packed: bool
) -> None:
    content = (
        b"\xef\xbb\xbf\r\n; comment\r\n \r>a one\r\nmk v\r\rLA\r\n\xef\xbb\xbf>b\nMK\n"
        + b">long\n"
        + b"MKVLAADE\n" * 20
        + b">\n\n>d > e\r"
    )
    content = gzip.compress(content[:30]) + gzip.compress(content[30:]) if packed else content
    whole = read(content)
    assert [line for line, _, _ in whole] == [4, 8, 10, 31, 33]
    monkeypatch.setattr(fasta, "READ_BYTES", block)
    assert read(content) == whole


def test_batches_hold_about_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fasta, "READ_BYTES", 1000)
    path = tmp_path / "in.fasta"
    path.write_bytes(b"".join(b">%d\nMKVLAADE\n" % index for index in range(1000)))
    batches = list(read_batches(str(path)))
    assert len(batches) > 10
    assert list(itertools.chain(*batches)) == list(read_fasta(str(path)))
    assert max(len(batch) for batch in batches) < 100
    monkeypatch.setattr(fasta, "READ_BYTES", 10)
    path.write_bytes(b"".join(b">%d\nMKVLA\n" % index for index in range(10, 30)))
    assert [len(batch) for batch in read_batches(str(path))] == [1] * 20  # a seam at each header


@settings(max_examples=60)
@given(st.binary(max_size=200), st.sampled_from(["plain", "gzip", "cut", "raw"]), st.booleans())
def test_any_bytes_are_read_or_refused_in_one_line(content: bytes, kind: str, lead: bool) -> None:
    content = b">" + content if lead else content
    if kind in ("gzip", "cut"):
        content = gzip.compress(content)
        content = content[: len(content) // 2] if kind == "cut" else content
    elif kind == "raw":
        content = b"\x1f\x8b\x08\0" + content
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "in.fasta")
        path.write_bytes(content)
        try:
            entries, problem = list(read_fasta(str(path))), ""
        except InputError as error:
            entries, problem = [], str(error)
    if not entries:
        assert problem.startswith(f"{path}:")
        assert len(problem.splitlines()) == 1


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.text("abcXYZ09|_.,=[]>; ", min_size=1).filter(lambda text: text == text.rstrip()),
            st.lists(st.text("ACDEFGHIKLMNPQRSTVWYacd*-", max_size=80), max_size=4),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_agrees_with_biopython(records: list[tuple[str, list[str]]]) -> None:
    text = "".join("\n".join((f">{header}", *lines, "")) for header, lines in records)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "in.fasta")
        path.write_text(text)
        entries = [*itertools.chain(*read_batches(str(path), aligned=True))]
    ours = [(header.decode(), sequence.decode()) for _, header, sequence in entries]
    peer = [(title, sequence.upper()) for title, sequence in SimpleFastaParser(io.StringIO(text))]
    assert ours == peer


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"sp|P1|X_Y some text", ("sp|P1|X_Y", "sp|P1|X_Y some text", ())),
        (b" a\tb", ("a", " a\tb", ())),
        (b"../../etc/passwd x", ("../../etc/passwd", "../../etc/passwd x", ())),
        ("\u00fc\u00a0b c".encode(), ("\u00fc\u00a0b", "\u00fc\u00a0b c", ())),
        ("\ufffd".encode(), ("\ufffd", "\ufffd", ())),
        (b"", ("record_7", "", ("no id: named record_7",))),
        (b" \t ", ("record_7", " \t ", ("no id: named record_7",))),
        (
            b"caf\xe9 x",
            ("caf\ufffd", "caf\ufffd x", ("header is not UTF-8: bad bytes replaced",)),
        ),
        (
            b"a\0b\x7fc\x0b d",
            ("a\ufffdb\ufffdc\ufffd", "a\ufffdb\ufffdc\ufffd d",
             ("control characters in the header replaced",)),
        ),
        (
            b"\xff\x01",
            ("\ufffd\ufffd", "\ufffd\ufffd",
             ("header is not UTF-8: bad bytes replaced",
              "control characters in the header replaced")),
        ),
    ],
)  # fmt: skip
def test_headers(header: bytes, expected: tuple[str, str, tuple[str, ...]]) -> None:
    assert read_header(header, 7) == expected


def test_a_bomb_is_unpacked_piece_by_piece(tmp_path: Path) -> None:
    packer = zlib.compressobj(wbits=31)
    path = tmp_path / "in.fasta.gz"
    with open(path, "wb") as file:
        for index in range(40):
            file.write(packer.compress(b">%d\n%b\n" % (index, b"M" * 100_000)))
        file.write(packer.flush())
    assert path.stat().st_size < 20_000
    with open(path, "rb") as file:
        sizes = [len(block) for block in fasta._unpacked(file)]
    assert sum(sizes) == sum(len(b">%d\n" % index) + 100_001 for index in range(40))
    assert max(sizes) <= fasta.READ_BYTES
