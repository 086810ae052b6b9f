"""`shard`: every unique sequence in one bundle, bundles of equal cost, whole files or none."""

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
from hypothesis import given, settings
from hypothesis import strategies as st

from esm_pipeline.cli import main
from esm_pipeline.errors import InputError
from esm_pipeline.formats.bundles import Bundle
from esm_pipeline.formats.fasta import read_fasta
from esm_pipeline.formats.records import Record, read_records
from esm_pipeline.settings.result_names import bundle_names
from esm_pipeline.settings.sections import CleaningSettings
from esm_pipeline.tasks.common.sequences import open_sequences
from esm_pipeline.tasks.run import shard as module
from esm_pipeline.tasks.run.shard import bundle_of_each, longest_first_order

MIXED = ">a\nMKV\n>b\nMKVLAA\n>c\nM-K\n>d\nmkv*\n>e\nMKVL:AA\n>f\nMKVLA\n>g\nVVV\n"


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "in.fasta"
    path.write_text(MIXED)
    return path


def shard(out: Path, count: int, *arguments: str | Path) -> int:
    return main(["shard", "--bundles", str(count), "--out", str(out), *map(str, arguments)])


def records_of(folder: Path, count: int) -> list[Record]:
    """The records of all bundles, in index order; within a bundle they are in this order too."""
    tables = [list(read_records(folder / f"{name}.records.tsv")) for name in bundle_names(count)]
    for table in tables:
        assert [record.index for record in table] == sorted(record.index for record in table)
    return sorted(itertools.chain(*tables), key=lambda record: record.index)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_bundles_and_tables(
    tmp_path: Path, fasta: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made" / "bundles"
    assert shard(out, 2, fasta) == 0
    files = contents(out)
    names = [f"0000{b}{end}" for end in (".fasta", ".index.npz", ".records.tsv") for b in (0, 1)]
    assert sorted(files) == sorted([*names, "digests.sha256"])
    assert files["00000.fasta"] == b">1\nMKVLAA\n>5\nMKVLA\n>6\nVVV\n"
    assert files["00001.fasta"] == b">4\nMKVL:AA\n>0\nMKV\n"
    listed = "".join(f"{sha256(files[name]).hexdigest()}  {name}\n" for name in names)
    assert files["digests.sha256"].decode() == listed
    records = records_of(out, 2)
    assert [record.id for record in records] == list("abcdefg")
    assert [record.status for record in records].count("skipped") == 1
    assert records[3].duplicate_of == 0
    own = [record.id for record in read_records(out / "00000.records.tsv")]
    assert own == ["b", "c", "f", "g"]  # c, which is skipped, has the index 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(
        "shard: 7 records, 6 ok, 1 skipped, 1 duplicate; 5 sequences, 23 residues in 2 bundles; "
    )
    assert output.err.count("\n") == 1


def test_one_bundle_is_not_several(tmp_path: Path, fasta: Path, capsys) -> None:
    assert shard(tmp_path, 1, fasta) == 0
    assert "23 residues in 1 bundle; " in capsys.readouterr().err


def test_the_index_places_and_identifies_each_sequence(tmp_path: Path, fasta: Path) -> None:
    assert shard(tmp_path, 1, "--least=7", fasta) == 0
    bundle, text = Bundle.open(tmp_path / "00000.fasta"), (tmp_path / "00000.fasta").read_bytes()
    assert bundle.first.tolist() == [1, 4, 5, 0, 6]
    assert bundle.length.tolist() == [6, 6, 5, 3, 3]
    assert bundle.is_complex.tolist() == [False, True, False, False, False]
    assert (bundle.least, bundle.residues) == (7, 23)
    found = [text[a:b] for a, b in itertools.pairwise(bundle.offset.tolist())]
    assert found == [b">1\nMKVLAA\n", b">4\nMKVL:AA\n", b">5\nMKVLA\n", b">0\nMKV\n", b">6\nVVV\n"]
    digests = [sha256(one.split(b"\n")[1]).hexdigest()[:16] for one in found]
    assert [f"{digest:016x}" for digest in bundle.digest.tolist()] == digests
    assert bundle.sha256 == sha256((tmp_path / "00000.index.npz").read_bytes()).hexdigest()


def test_quiet(tmp_path: Path, fasta: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shard(tmp_path / "out", 1, "--quiet", fasta) == 0
    assert capsys.readouterr() == ("", "")


def test_cleaning_flags(tmp_path: Path, fasta: Path) -> None:
    assert shard(tmp_path, 1, "--gaps=remove", fasta) == 0
    record = records_of(tmp_path, 1)[2]
    assert (record.length, record.notes) == (2, "gap '-' at residue 2 removed")
    assert b">2\nMK\n" in (tmp_path / "00000.fasta").read_bytes()


def test_more_bundles_than_sequences(tmp_path: Path, fasta: Path) -> None:
    assert shard(tmp_path, 9, fasta) == 0
    bundles = [Bundle.open(tmp_path / f"{name}.fasta") for name in bundle_names(9)]
    assert [len(bundle) for bundle in bundles] == [1] * 5 + [0] * 4
    sizes = [bundle.fasta.stat().st_size for bundle in bundles]
    assert sizes == [bundle.offset[-1] for bundle in bundles]


def test_nothing_but_skipped_records(tmp_path: Path) -> None:
    (tmp_path / "in.fasta").write_text(">a\n\n>b\n7\n")
    assert shard(tmp_path, 2, tmp_path / "in.fasta") == 0
    for name in bundle_names(2):  # dealt by their index
        table = read_records(tmp_path / f"{name}.records.tsv")
        assert [(record.index, record.status) for record in table] == [(int(name), "skipped")]
    assert (tmp_path / "00001.fasta").read_bytes() == b""


def test_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(MIXED.encode())))
    assert shard(tmp_path, 1, "-") == 0
    assert len(records_of(tmp_path, 1)) == 7


ENTRIES = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c d", '"', ""]), st.text("AC", min_size=1, max_size=4)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=30)
@given(st.lists(ENTRIES, min_size=1, max_size=3), st.integers(1, 6))
def test_any_number_of_bundles_holds_the_same(
    files: list[list[tuple[str, str]]], count: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number, entries in enumerate(files):
            paths.append(Path(folder, f"in{number}"))
            paths[-1].write_text("".join(f">{header}\n{text}\n" for header, text in entries))
        one, many = Path(folder, "one"), Path(folder, "many")
        assert shard(one, 1, "--quiet", *paths) == shard(many, count, "--quiet", *paths) == 0
        table = records_of(one, 1)
        assert table == records_of(many, count)
        names = [str(many / f"{name}.fasta") for name in bundle_names(count)]
        tables = [list(read_records(many / f"{b}.records.tsv")) for b in bundle_names(count)]
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
    for number, (batch, own) in enumerate(zip(shards, tables, strict=True)):
        firsts = {int(header) for _, header, _ in batch}
        for record in own:  # next to its sequence
            first = record.index if record.duplicate_of is None else record.duplicate_of
            assert first in firsts if record.status == "ok" else record.index % count == number
    for batch in [*shards, whole]:
        keys = [(-len(text), int(header)) for _, header, text in batch]
        assert keys == sorted(keys)


@given(st.lists(st.integers(1, 40_000), max_size=300), st.integers(1, 40), st.floats(0, 3))
def test_bundles_cost_the_same_but_for_one_sequence(
    lengths: list[int], count: int, exponent: float
) -> None:
    """Whatever the task: its cost grows with the length."""
    order = longest_first_order(np.array(lengths, np.int32))
    assert order.tolist() == sorted(range(len(lengths)), key=lambda place: -lengths[place])
    bundle = bundle_of_each(order, count)
    costs = np.array(lengths, float) ** exponent
    loads = np.bincount(bundle, costs, minlength=count)
    assert max(loads) - min(loads) <= max(costs, default=0) * (1 + 1e-9)
    sizes = np.bincount(bundle, minlength=count)
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("block", [1, 2, 5])
def test_blocks_do_not_matter(
    tmp_path: Path, fasta: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    shard(tmp_path / "one", 3, "--quiet", fasta)
    monkeypatch.setattr(module, "WRITTEN_AT_ONCE", block)
    shard(tmp_path / "other", 3, "--quiet", fasta)
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


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


def test_bundles_that_are_no_longer_there_are_removed(tmp_path: Path, fasta: Path) -> None:
    out = tmp_path / "out"
    shard(out, 4, "--quiet", fasta)
    (out / "mine.fasta").touch()
    shard(out, 2, "--quiet", fasta)
    left = [f"0000{b}{end}" for b in (0, 1) for end in (".fasta", ".index.npz", ".records.tsv")]
    assert sorted(contents(out)) == [*left, "digests.sha256", "mine.fasta"]


def test_the_input_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "00003.fasta"
    path.write_text(MIXED)
    monkeypatch.chdir(tmp_path)
    elsewhere = tmp_path.parent / f"{tmp_path.name}.link"
    elsewhere.symlink_to(path)
    for given_path in (path, Path("00003.fasta"), elsewhere, tmp_path / "00000.index.npz"):
        assert shard(tmp_path, 1, given_path) == 2
        assert capsys.readouterr().err == (
            f"esm-pipeline shard: {given_path}: a bundle would replace it; choose another --out\n"
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
def test_impossible_numbers_of_bundles(
    tmp_path: Path, fasta: Path, capsys: pytest.CaptureFixture[str], count: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["shard", f"--bundles={count}", "--out", str(tmp_path), str(fasta)])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert f"argument --bundles: {count!r} is not a number from 1 to 100,000" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("least", ["0", "-1", "x", "1.5", ""])
def test_impossible_least_residues(
    tmp_path: Path, fasta: Path, capsys: pytest.CaptureFixture[str], least: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        shard(tmp_path, 1, f"--least={least}", fasta)
    assert exit_.value.code == 2
    assert f"argument --least: {least!r} is not a number from 1 on" in capsys.readouterr().err


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
    arguments = ["shard", "--bundles=3", f"--out={out}", str(fasta)]
    ended = subprocess.run([sys.executable, "-c", TERMINATED, *arguments], check=False)
    assert ended.returncode == 143
    assert [path.name for path in out.iterdir()] == ["00000.fasta"]


def test_a_failed_run_leaves_what_was_there(
    tmp_path: Path, fasta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shard(out, 2, "--quiet", fasta)
    before = contents(out)
    monkeypatch.setattr(
        module, "write_tables", lambda *_: (_ for _ in ()).throw(InputError("stop"))
    )
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
        arguments = ["shard", "--quiet", "--bundles=7", f"--out={tmp_path / 'out'}", str(path)]
        child = [sys.executable, "-c", PEAK, *arguments]
        return 1024 * int(subprocess.run(child, check=True, capture_output=True).stdout)

    few, many = 200_000, 800_000
    assert 20 < (peak(many) - peak(few)) / (many - few) < 100
