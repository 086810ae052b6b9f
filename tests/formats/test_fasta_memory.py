"""The FASTA reader holds no more of a record than the limits say, whatever its size."""

from __future__ import annotations

import resource
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esm_pipeline.formats import fasta
from esm_pipeline.formats.fasta import MOST_HEADER, read_batches, read_fasta, read_header

MEGA = 1 << 20
SIZE = 64 * MEGA


def bomb(path: Path, kind: str, size: int = SIZE) -> None:
    """A gzip file of some hundred KB: a good record, one of `size` bytes, and a good one."""
    packer = zlib.compressobj(9, wbits=31)
    before, piece, after = {
        "letters": (b">big\n", b"M" * MEGA, b"\n"),
        "lines": (b">big\n", (b"M" * 63 + b"\n") * (MEGA // 64), b"\n"),
        "blank lines": (b">big\nMK", b"\n" * MEGA, b"V\n"),
        "spaces": (b">big\nMK", b" " * MEGA, b"V\n"),
        "header": (b">big ", b"h" * MEGA, b"\nMKV\n"),
        "id": (b">", b"h" * MEGA, b"\nMKV\n"),
        "nucleotides": (b">big\n", b"ACGT" * (MEGA // 4), b"\n"),
        "headers without an end": (b">big ", b"h" * MEGA, b""),
    }[kind]
    with open(path, "wb") as file:
        file.write(packer.compress(b">first\nMKVLA\n" + before))
        for _ in range(size // MEGA):
            file.write(packer.compress(piece))
        end = b"" if kind == "headers without an end" else b">last\nMKVLE\n"
        file.write(packer.compress(after + end) + packer.flush())


KINDS = (
    "letters",
    "lines",
    "blank lines",
    "spaces",
    "header",
    "id",
    "nucleotides",
    "headers without an end",
)
RUN = """
import resource, sys
from esm_pipeline.cli import main
code = main(sys.argv[1:])
unit = 1 if sys.platform == "darwin" else 1024
print(code, unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def shard(folder: Path, path: Path) -> tuple[int, int, list[list[str]]]:
    """Exit code, most memory in bytes, and the rows of records.tsv."""
    arguments = ["shard", "--quiet", "--bundles=1", f"--out={folder / 'out'}", str(path)]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, check=True
    )
    code, memory = map(int, done.stdout.split())
    table = (folder / "out" / "00000.records.tsv").read_text().splitlines()
    return code, memory, [line.split("\t") for line in table[1:]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_record_takes_little_memory(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "in.fasta"
    path.write_bytes(b">first\nMKVLA\n")
    _, least, _ = shard(tmp_path, path)
    bomb(path, kind)
    assert path.stat().st_size < 2 * MEGA
    code, memory, rows = shard(tmp_path, path)
    assert code == 0
    assert memory - least < 20 * MEGA, "of 64"
    told = {row[1][:5]: row[5:8] for row in rows}
    assert told["first"] == ["ok", "", ""]
    if kind != "headers without an end":
        assert told["last"] == ["ok", "", ""]
    if kind in ("letters", "lines"):
        reason = "more than 100,000 letters; set --max-letters to as many as it has, or cut it into"
        assert told["big"][:2] == ["skipped", f"{reason} parts"]
    elif kind == "nucleotides":
        assert told["big"][0] == "skipped"
    elif kind in ("blank lines", "spaces"):
        assert told["big"] == ["ok", "", ""]
        assert rows[1][3] == "3"
    else:
        big = rows[1]
        assert big[7] == f"header cut after {MOST_HEADER:,} bytes"
        assert len(big[2]) == MOST_HEADER
        assert big[5] == ("skipped" if kind == "headers without an end" else "ok")


@pytest.mark.long
def test_with_less_memory_than_the_record_has(tmp_path: Path) -> None:
    path = tmp_path / "in.fasta"
    bomb(path, "letters", 2048 * MEGA)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1024 * MEGA, 1024 * MEGA))

    arguments = ["shard", "--bundles=1", f"--out={tmp_path / 'out'}", str(path)]
    done = subprocess.run(
        [sys.executable, "-m", "esm_pipeline", *arguments],
        preexec_fn=limit,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1].startswith("shard: 3 records, 2 ok, 1 skipped")


def squeezed(path: Path, most: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[fasta.FastaRecord]:
    """The entries read with small blocks, so that every record is a large one."""
    monkeypatch.setattr(fasta, "READ_BYTES", 5)
    monkeypatch.setattr(fasta, "LARGE", 12)
    monkeypatch.setattr(fasta, "MOST_HEADER", 8)
    for batch in read_batches(str(path), most_letters=most):
        yield from batch


LINES = st.lists(st.sampled_from(["", " ", "MK", "m\tk", "ACDEFGHIKLMNPQ", "V" * 30]), max_size=6)


@settings(max_examples=150)
@given(
    records=st.lists(
        st.tuples(st.text("ab >", max_size=20).filter(lambda t: not t.endswith(" ")), LINES),
        min_size=1,
        max_size=6,
    ),
    most=st.integers(1, 40),
    end=st.sampled_from(["\n", "\r\n"]),
    mark=st.booleans(),
)
def test_what_is_within_the_limits_is_read_as_ever(
    tmp_path_factory: pytest.TempPathFactory,
    records: list[tuple[str, list[str]]],
    most: int,
    end: str,
    mark: bool,
) -> None:
    """Line numbers, headers and sequences are those of large blocks, up to the limits."""
    path = tmp_path_factory.mktemp("in") / "in.fasta"
    joint = end + ("\ufeff" if mark else "") + ">"
    text = joint.join(end.join([header, *lines]) for header, lines in records)
    path.write_bytes(f">{text}{end}".encode())
    expected = list(read_fasta(str(path)))
    with pytest.MonkeyPatch.context() as patch:
        found = list(squeezed(path, most, patch))
    assert [entry[0] for entry in found] == [entry[0] for entry in expected]
    for (_, header, sequence), (_, whole, letters) in zip(found, expected, strict=True):
        assert header[:8] == whole[:8]
        assert (len(header) > 8) == (len(whole) > 8)
        assert sequence[:most] == letters[:most]
        assert (len(sequence) > most) == (len(letters) > most)


def test_a_header_is_cut_between_characters() -> None:
    header = b"x" * (MOST_HEADER - 1) + "\u00e9y".encode()
    assert read_header(header, 0)[1:] == (
        "x" * (MOST_HEADER - 1),
        (f"header cut after {MOST_HEADER:,} bytes",),
    )
    assert read_header(b"\x80" * (MOST_HEADER + 9), 0)[2] == (
        f"header cut after {MOST_HEADER:,} bytes",
        "header is not UTF-8: bad bytes replaced",
    )
    assert read_header(b"x" * MOST_HEADER, 0)[2] == ()


def test_another_format_within_a_large_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "in.fasta"
    path.write_bytes(b">a\nMKV\n" + b"@r\nACGT\n+\nIIII\n" * 200_000)
    with pytest.raises(fasta.InputError, match=r"in\.fasta:3: not FASTA, looks like FASTQ from"):
        list(read_fasta(str(path)))
