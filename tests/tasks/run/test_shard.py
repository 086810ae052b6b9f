"""`shard`: every unique sequence in one shard, shards of equal cost, whole files or none."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from esm_pipeline.tasks.common.shards import EVEN_LENGTH
from hypothesis import given, settings
from hypothesis import strategies as st

from esm_pipeline.cli import main
from esm_pipeline.errors import InputError
from esm_pipeline.formats.fasta import read_fasta
from esm_pipeline.formats.records import read_records
from esm_pipeline.settings import shard_names
from esm_pipeline.settings.sections import CleaningSettings
from esm_pipeline.tasks.common.sequences import open_sequences
from esm_pipeline.tasks.run import shard as module
from esm_pipeline.tasks.run.shard import deal

MIXED = ">a\nMKV\n>b\nMKVLAA\n>c\nM-K\n>d\nmkv*\n>e\nMKVL:AA\n>f\nMKVLA\n>g\nVVV\n"


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "in.fasta"
    path.write_text(MIXED)
    return path


def shard(out: Path, count: int, *arguments: str | Path) -> int:
    return main(["shard", "--shards", str(count), "--out", str(out), *map(str, arguments)])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shards_and_table(tmp_path: Path, fasta: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made" / "shards"
    assert shard(out, 2, fasta) == 0
    files = contents(out)
    assert sorted(files) == ["00000.fasta", "00001.fasta", "digests.sha256", "records.tsv"]
    assert files["00000.fasta"] == b">1\nMKVLAA\n>5\nMKVLA\n"
    assert files["00001.fasta"] == b">4\nMKVL:AA\n>0\nMKV\n>6\nVVV\n"
    names = ("00000.fasta", "00001.fasta", "records.tsv")
    listed = "".join(f"{sha256(files[name]).hexdigest()}  {name}\n" for name in names)
    assert files["digests.sha256"].decode() == listed
    records = list(read_records(out / "records.tsv"))
    assert [record.id for record in records] == list("abcdefg")
    assert [record.status for record in records].count("skipped") == 1
    assert records[3].duplicate_of == 0
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(
        "shard: 7 records, 6 ok, 1 skipped, 1 duplicates; 5 sequences, 23 residues in 2 shards; "
    )
    assert output.err.count("\n") == 1


def test_quiet(tmp_path: Path, fasta: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shard(tmp_path / "out", 1, "--quiet", fasta) == 0
    assert capsys.readouterr() == ("", "")


def test_cleaning_flags(tmp_path: Path, fasta: Path) -> None:
    assert shard(tmp_path, 1, "--gaps=remove", fasta) == 0
    record = list(read_records(tmp_path / "records.tsv"))[2]
    assert (record.length, record.notes) == (2, "gap '-' at residue 2 removed")
    assert b">2\nMK\n" in (tmp_path / "00000.fasta").read_bytes()


def test_more_shards_than_sequences(tmp_path: Path, fasta: Path) -> None:
    assert shard(tmp_path, 9, fasta) == 0
    sizes = [(tmp_path / f"{name}.fasta").stat().st_size for name in shard_names(9)]
    assert [size > 0 for size in sizes] == [True] * 5 + [False] * 4


def test_nothing_but_skipped_records(tmp_path: Path) -> None:
    (tmp_path / "in.fasta").write_text(">a\n\n>b\n7\n")
    assert shard(tmp_path, 2, tmp_path / "in.fasta") == 0
    assert [record.status for record in read_records(tmp_path / "records.tsv")] == ["skipped"] * 2
    assert (tmp_path / "00001.fasta").read_bytes() == b""


def test_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(MIXED.encode())))
    assert shard(tmp_path, 1, "-") == 0
    assert len(list(read_records(tmp_path / "records.tsv"))) == 7


ENTRIES = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c d", '"', ""]), st.text("AC", min_size=1, max_size=4)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=30)
@given(st.lists(ENTRIES, min_size=1, max_size=3), st.integers(1, 6))
def test_any_number_of_shards_holds_the_same(
    files: list[list[tuple[str, str]]], count: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number, entries in enumerate(files):
            paths.append(Path(folder, f"in{number}"))
            paths[-1].write_text("".join(f">{header}\n{text}\n" for header, text in entries))
        one, many = Path(folder, "one"), Path(folder, "many")
        assert shard(one, 1, "--quiet", *paths) == shard(many, count, "--quiet", *paths) == 0
        table = list(read_records(one / "records.tsv"))
        assert contents(one)["records.tsv"] == contents(many)["records.tsv"]
        names = [str(many / f"{name}.fasta") for name in shard_names(count)]
        shards = [list(read_fasta(name, allow_empty=True)) for name in names]
        whole = list(read_fasta(str(one / "00000.fasta")))
        with open_sequences(
            names, CleaningSettings(), Path(folder), allow_empty=True
        ) as sequence_set:
            assert not any(record.notes or record.reason for record in sequence_set.records())
            assert sequence_set.count == len(sequence_set.first)
    given_ids = [header.split()[0] if header else "" for header, _ in itertools.chain(*files)]
    for record, name, (header, _) in zip(table, given_ids, itertools.chain(*files), strict=True):
        assert (record.id, record.header) == (name or f"record_{record.index}", header)
    sequences = [text for _, text in itertools.chain(*files)]
    held = {int(header): text.decode() for batch in shards for _, header, text in batch}
    assert held == {int(header): text.decode() for _, header, text in whole}
    assert held == {record.index: sequences[record.index] for record in table
                    if record.duplicate_of is None}  # fmt: skip
    for batch in [*shards, whole]:
        keys = [(-len(text), int(header)) for _, header, text in batch]
        assert keys == sorted(keys)


@given(st.lists(st.integers(1, 40_000), max_size=300), st.integers(1, 40))
def test_shards_cost_the_same_but_for_one_sequence(lengths: list[int], count: int) -> None:
    shards = deal(np.array(lengths, np.int32), count)
    assert len(shards) == count
    assert sorted(itertools.chain(*(numbers.tolist() for numbers in shards))) == list(
        range(len(lengths))
    )
    costs = [length * (1 + length / EVEN_LENGTH) for length in lengths]
    loads = [sum(costs[number] for number in numbers) for numbers in shards]
    assert max(loads) - min(loads) <= max(costs, default=0) * (1 + 1e-9)
    for numbers in shards:
        keys = [(-lengths[number], number) for number in numbers]
        assert keys == sorted(keys)


def test_many_sequences_are_dealt_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = np.random.default_rng(0).gamma(2.5, 140, 20_000).astype(np.int32) + 1
    lengths[77] = 35_000
    shards = deal(lengths, 50)
    loads = [np.sum(lengths[part] * (1 + lengths[part] / EVEN_LENGTH)) for part in shards]
    assert shards[int(np.argmax(loads))].tolist() == [77]
    others = np.delete(loads, np.argmax(loads))
    assert max(others) / min(others) < 1.001
    monkeypatch.setattr(module, "WRITTEN_AT_ONCE", 7)
    again = deal(lengths, 50)
    assert all((one == other).all() for one, other in zip(shards, again, strict=True))


def test_bad_input_changes_nothing(
    tmp_path: Path, fasta: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shard(out, 2, "--quiet", fasta)
    before = contents(out)
    bad = tmp_path / "bad.fasta"
    bad.write_text("@r\nMK\n+\nII\n")
    assert shard(out, 3, fasta, bad) == 2
    assert capsys.readouterr().err == (
        f"esm-pipeline shard: {bad}:1: not FASTA, looks like FASTQ; convert it to FASTA\n"
    )
    assert contents(out) == before


def test_shards_that_are_no_longer_there_are_removed(tmp_path: Path, fasta: Path) -> None:
    out = tmp_path / "out"
    shard(out, 4, "--quiet", fasta)
    (out / "mine.fasta").touch()
    shard(out, 2, "--quiet", fasta)
    left = ["00000.fasta", "00001.fasta", "digests.sha256", "mine.fasta", "records.tsv"]
    assert sorted(contents(out)) == left


def test_the_input_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "00003.fasta"
    path.write_text(MIXED)
    monkeypatch.chdir(tmp_path)
    elsewhere = tmp_path.parent / f"{tmp_path.name}.link"
    elsewhere.symlink_to(path)
    for given_path in (path, Path("00003.fasta"), elsewhere, tmp_path / "records.tsv"):
        assert shard(tmp_path, 1, given_path) == 2
        assert capsys.readouterr().err == (
            f"esm-pipeline shard: {given_path}: a shard would replace it; choose another --out\n"
        )
    assert contents(tmp_path) == {"00003.fasta": MIXED.encode()}


def test_a_file_in_place_of_the_folder(
    tmp_path: Path, fasta: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for out in (fasta, fasta / "below"):
        assert shard(out, 1, fasta) == 2
        assert capsys.readouterr().err == (
            f"esm-pipeline shard: {out}: not a folder; choose another one for the output\n"
        )


@pytest.mark.parametrize("count", ["0", "-1", "x", "1.5", "", "100001", "\u0663"])
def test_impossible_numbers_of_shards(
    tmp_path: Path, fasta: Path, capsys: pytest.CaptureFixture[str], count: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["shard", f"--shards={count}", "--out", str(tmp_path), str(fasta)])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert f"argument --shards: {count!r} is not a number from 1 to 100,000" in error
    assert error.count("\n") == 1


TERMINATED = """
import os, signal, sys
from esm_pipeline import files
from esm_pipeline.cli import main
real, calls = os.replace, []
def replace(*paths):
    calls.append(paths)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    real(*paths)
files.os.replace = replace
sys.exit(main(sys.argv[1:]))
"""


def test_a_terminated_run_removes_what_it_was_writing(tmp_path: Path, fasta: Path) -> None:
    out = tmp_path / "out"
    arguments = ["shard", "--shards=3", f"--out={out}", str(fasta)]
    ended = subprocess.run([sys.executable, "-c", TERMINATED, *arguments], check=False)
    assert ended.returncode == 143
    assert [path.name for path in out.iterdir()] == ["00000.fasta"]


def test_a_failed_run_leaves_what_was_there(
    tmp_path: Path, fasta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shard(out, 2, "--quiet", fasta)
    before = contents(out)
    monkeypatch.setattr(module, "deal", lambda *_: (_ for _ in ()).throw(InputError("stop")))
    assert shard(out, 1, fasta) == 2
    assert contents(out) == before


PEAK = """
import sys
from esm_pipeline.cli import main
main(sys.argv[1:])
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_memory_stays_below_a_hundred_bytes_a_record(tmp_path: Path) -> None:
    def peak(records: int) -> int:
        """Bytes of memory that a run over `records` records needs at most."""
        path = tmp_path / "in.fasta"
        letters = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", np.uint8)
        sequences = letters[np.random.default_rng(0).integers(0, 20, (records, 60))]
        with open(path, "wb") as file:
            for index, sequence in enumerate(sequences):
                file.write(b">protein_%d of no organism\n%b\n" % (index, sequence.tobytes()))
        arguments = ["shard", "--quiet", "--shards=7", f"--out={tmp_path / 'out'}", str(path)]
        child = [sys.executable, "-c", PEAK, *arguments]
        return 1024 * int(subprocess.run(child, check=True, capture_output=True).stdout)

    few, many = 200_000, 800_000
    assert 20 < (peak(many) - peak(few)) / (many - few) < 100
