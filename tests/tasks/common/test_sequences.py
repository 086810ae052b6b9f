"""Reading sequences: every record has its row, every sequence is kept once, memory stays small."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm_pipeline.errors import InputError
from esm_pipeline.formats.records import Record, header_line, read_records
from esm_pipeline.settings.sections import CleaningSettings
from esm_pipeline.tasks.common import sequences as module
from esm_pipeline.tasks.common.sequences import SequenceSet, open_sequences

CLEANING = CleaningSettings()
MIXED = """>a first
MKVLAA
>b "quoted"\ttab
MKJ*
>c
MK-V
>a again
mkvlaa
>
MKX
>complex
MKV:MKV
>complex twice
MKV:MKV
>d
MKVMKV
"""


def sha(sequence: str) -> str:
    return hashlib.sha256(sequence.encode()).hexdigest()


def take(
    folder: Path,
    *texts: str | bytes,
    cleaning: CleaningSettings = CLEANING,
    **options: bool,
) -> SequenceSet:
    """The sequences of some files with these contents."""
    paths = []
    for number, text in enumerate(texts):
        paths.append(folder / f"in{number}.fasta")
        paths[-1].write_bytes(text if isinstance(text, bytes) else text.encode())
    return open_sequences([str(path) for path in paths], cleaning, folder, **options)


def test_records(tmp_path: Path) -> None:
    with take(tmp_path, MIXED) as sequence_set:
        assert sequence_set.count == 8
        gap = "gap '-' at residue 3; set --gaps to 'remove' to drop gaps"
        changed = "J at residue 3 replaced by X; '*' at the end removed"
        assert list(sequence_set.records()) == [
            Record(0, "a", "a first", 6, sha("MKVLAA"), "ok"),
            Record(1, "b", 'b "quoted"\ttab', 3, sha("MKX"), "ok", notes=changed),
            Record(2, "c", "c", None, "", "skipped", gap),
            Record(3, "a", "a again", 6, sha("MKVLAA"), "ok", duplicate_of=0),
            Record(4, "record_4", "", 3, sha("MKX"), "ok", "", "no id: named record_4", 1),
            Record(5, "complex", "complex", 6, sha("MKV:MKV"), "ok"),
            Record(6, "complex", "complex twice", 6, sha("MKV:MKV"), "ok", duplicate_of=5),
            Record(7, "d", "d", 6, sha("MKVMKV"), "ok"),
        ]


def test_unique_sequences(tmp_path: Path) -> None:
    with take(tmp_path, MIXED) as sequence_set:
        assert sequence_set.first.tolist() == [0, 1, 7]
        assert sequence_set.lengths.tolist() == [6, 3, 6]
        assert sequence_set.unique.tolist() == [0, 1, -1, 0, 1, -1, -1, 2]
        assert [sequence_set.sequence(number) for number in range(3)] == [
            b"MKVLAA",
            b"MKX",
            b"MKVMKV",
        ]
        assert list(sequence_set.sequences(np.array([2, 0, 1, 1]))) == [
            b"MKVMKV",
            b"MKVLAA",
            b"MKX",
            b"MKX",
        ]
        assert list(sequence_set.sequences(np.array([], int))) == []
        assert (sequence_set.first.dtype, sequence_set.lengths.dtype) == (np.int64, np.int32)


def test_complexes_where_asked_for(tmp_path: Path) -> None:
    with take(tmp_path, MIXED, complexes=True) as sequence_set:
        assert sequence_set.first.tolist() == [0, 1, 5, 7]
        assert sequence_set.lengths.tolist() == [6, 3, 6, 6]
        assert sequence_set.unique.tolist() == [0, 1, -1, 0, 1, 2, 2, 3]
        assert list(sequence_set.sequences(np.arange(4))) == [
            b"MKVLAA",
            b"MKX",
            b"MKV:MKV",
            b"MKVMKV",
        ]


def test_files_of_every_kind_share_one_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "1").write_text(">a\nMK\n>b\nMV")
    (tmp_path / "2").write_bytes(gzip.compress(b">c\r\nMK\r\n"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b">d\nMV\n>e\nML\n")))
    paths = [str(tmp_path / "1"), "-", str(tmp_path / "2")]
    with open_sequences(paths, CLEANING, tmp_path) as sequence_set:
        records = list(sequence_set.records())
        assert [record.index for record in records] == [0, 1, 2, 3, 4]
        assert [record.id for record in records] == ["a", "b", "d", "e", "c"]
        assert [record.duplicate_of for record in records] == [None, None, 1, None, 0]
        assert [sequence_set.sequence(number) for number in range(3)] == [b"MK", b"MV", b"ML"]


def test_an_error_names_the_right_file_and_leaves_no_spool(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"in1\.fasta:2: text before the first '>'"):
        take(tmp_path, ">a\nMK\n", "\nMK\n>b\nMK\n")
    with pytest.raises(InputError, match=r"in1\.fasta:1: the file is empty"):
        take(tmp_path, ">a\nMK\n", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in0.fasta", "in1.fasta"]
    with pytest.raises(InputError, match=r"^standard input: given twice, but can be read once"):
        open_sequences(["-", "-"], CLEANING, tmp_path)
    with pytest.raises(InputError, match=r"in0\.fasta: not a folder; choose another one"):
        open_sequences(["-"], CLEANING, tmp_path / "in0.fasta")


def test_empty_files(tmp_path: Path) -> None:
    with take(tmp_path, "", "; nothing\n", allow_empty=True) as sequence_set:
        assert sequence_set.count == 0
        assert list(sequence_set.records()) == []
        assert [
            len(a) for a in (sequence_set.first, sequence_set.lengths, sequence_set.unique)
        ] == [0, 0, 0]
    with take(tmp_path, "", ">a\nMK\n", allow_empty=True) as sequence_set:
        assert sequence_set.count == 1
    with take(tmp_path, ">a\n7\n>b\n\n") as sequence_set:
        assert [record.status for record in sequence_set.records()] == ["skipped", "skipped"]
        assert [record.duplicate_of for record in sequence_set.records()] == [None, None]
        assert sequence_set.unique.tolist() == [-1, -1]
        assert len(sequence_set.lengths) == 0


def test_the_spool_has_no_name_and_goes(tmp_path: Path) -> None:
    spool = tmp_path / "made" / "for it"
    (tmp_path / "in.fasta").write_text(">a\nMK\n")
    open_files = len(os.listdir("/dev/fd"))
    with open_sequences([str(tmp_path / "in.fasta")], CLEANING, spool) as sequence_set:
        assert list(spool.iterdir()) == []
        assert len(os.listdir("/dev/fd")) == open_files + 2
        assert sequence_set.sequence(0) == b"MK"
    assert len(os.listdir("/dev/fd")) == open_files
    with pytest.raises(ValueError, match="closed"):
        sequence_set.sequence(0)


@pytest.mark.parametrize("size", [1, 7, 300])
def test_blocks_and_batches_leave_no_seams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    rng = np.random.default_rng(0)
    sequences = ["".join(rng.choice(list("ACDE"), length)) for length in rng.integers(1, 9, 200)]
    text = "".join(f">{i} é\n{sequence}\n" for i, sequence in enumerate(sequences))
    order = rng.permutation(len(set(sequences)))
    with take(tmp_path, text) as sequence_set:
        expected = list(sequence_set.records()), list(sequence_set.sequences(order))
        assert [sequences[first].encode() for first in sequence_set.first[order]] == expected[1]
    monkeypatch.setattr(module, "SPOOL_BLOCK", size)
    monkeypatch.setattr(module, "BATCH", size)
    with take(tmp_path, text) as sequence_set:
        assert (list(sequence_set.records()), list(sequence_set.sequences(order))) == expected
        together = zip(sequence_set.records(), sequence_set.records(), strict=True)
        assert all(one == other for one, other in together)


def test_a_sequence_beyond_the_most_letters_is_skipped(tmp_path: Path) -> None:
    """With the most that can be set the number of residues still fits into what holds it."""
    assert np.iinfo(np.int32).max - 4096 > module.MOST_LETTERS
    text = MIXED + ">long\nMKVLA\nAA\n>gaps\n-------\n"
    with take(tmp_path, text, cleaning=CleaningSettings(max_letters=6)) as sequence_set:
        records = list(sequence_set.records())
        message = (
            "more than 6 letters; set --max-letters to as many as it has, or cut it into parts"
        )
        skipped = [record.index for record in records if record.reason == message]
        assert skipped == [5, 6, 8, 9]
        assert [int(sequence_set.unique[place]) for place in skipped] == [-1] * 4
        assert {records[place].status for place in skipped} == {"skipped"}
        assert records[7].length == 6


def test_equal_halves_of_digests_are_no_equal_digests() -> None:
    one, two = b"1" * 8, b"2" * 8
    digests = bytearray(b"".join([one + two, two + one, one + one, two + one, one + two]))
    assert module._first_with_same(digests).tolist() == [0, 1, 2, 1, 0]
    assert module._first_with_same(bytearray()).tolist() == []


HEADERS = st.binary(max_size=12).map(lambda text: text.translate(None, b"\r\n"))
SEQUENCES = st.sampled_from([b"MK", b"mk", b"MK*", b"MV", b"MJ", b"MX", b"7", b"", b"M:K"])


@given(st.lists(st.lists(st.tuples(HEADERS, SEQUENCES), min_size=1), min_size=1, max_size=3))
def test_no_record_is_lost(files: list[list[tuple[bytes, bytes]]]) -> None:
    texts = [b"".join(b">%b\n%b\n" % entry for entry in entries) for entries in files]
    entries = [entry for file in files for entry in file]
    with tempfile.TemporaryDirectory() as folder, take(Path(folder), *texts) as sequence_set:
        table = Path(folder, "records.tsv")
        table.write_bytes(header_line().encode() + b"".join(sequence_set.lines()))
        records = list(read_records(table))
        assert list(sequence_set.records()) == records
        kept = {
            int(number): sequence_set.sequence(number) for number in set(sequence_set.unique) - {-1}
        }
    assert [record.index for record in records] == list(range(len(entries)))
    first: dict[str, int] = {}
    for record, (header, sequence) in zip(records, entries, strict=True):
        text = header.decode("utf-8", "replace")
        assert len(record.header) == len(text)
        assert record.id in record.header or record.id == f"record_{record.index}"
        unique = int(sequence_set.unique[record.index])
        clean = sequence.decode().upper().removesuffix("*").replace("J", "X")
        if clean in ("", "7"):
            assert (record.status, record.sha256, unique) == ("skipped", "", -1)
            continue
        assert (record.status, record.sha256) == ("ok", sha(clean))
        assert record.duplicate_of == first.get(clean)
        first.setdefault(clean, record.index)
        assert (unique == -1) == (":" in clean)
        if unique >= 0:
            assert kept[unique] == clean.encode()
            assert sequence_set.first[unique] == first[clean]
            assert sequence_set.lengths[unique] == len(clean) == record.length
    assert sorted(kept) == list(range(len(sequence_set.first)))
    assert (np.diff(sequence_set.first) > 0).all()


@given(st.binary(max_size=100).map(lambda text: b">" + text) | st.binary(max_size=100))
def test_any_bytes_become_rows_or_one_line_of_error(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            with take(Path(folder), content) as sequence_set:
                records, problem = list(sequence_set.records()), ""
                kept = [sequence_set.sequence(number) for number in range(len(sequence_set.first))]
        except InputError as error:
            records, kept, problem = [], [], str(error)
    if problem:
        assert len(problem.splitlines()) == 1
    else:
        lines = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        assert len(records) == sum(line.startswith((b">", b"\xef\xbb\xbf>")) for line in lines)
        assert all((record.status == "ok") == bool(record.sha256) for record in records)
        assert all((record.status == "ok") != bool(record.reason) for record in records)
        assert len(set(kept)) == len(kept)
