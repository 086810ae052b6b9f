"""Gathering: the shards of a sample give what one run gives; damage and mix-ups are named."""

import csv
import hashlib
import itertools
import shutil
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esm_pipeline.cli import main
from esm_pipeline.formats.checksums import write_digests
from esm_pipeline.formats.records import Record, read_records, write_records
from esm_pipeline.formats.results import writer as hdf5
from esm_pipeline.formats.results.open import open_results
from esm_pipeline.model import EsmModel
from tests.allocator import Allocator, tokens

FASTA = """\
>first
MKTAYIAKQRQISFVKSHFSRQ
>short
GAV
>stop
MK*V
>again, the same as the first
MKTAYIAKQRQISFVKSHFSRQ
>middle
ACDEFGHIKLMN
>chains
MKV:GAV
>short
GAV
>last
WYVTSRQPNMLKIHGFEDCA
"""
INCLUDE = ("--include", "mean,residue,bos,contacts", "--layers", "0,-1")


def run(*arguments):
    return main([str(argument) for argument in arguments])


def shard(folder, shards, *texts):
    """Cut files with `texts`, or that of the example, into shards, as the workflow does."""
    texts = texts or (FASTA,)
    files = [folder / f"in{number or ''}.fasta" for number in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    assert run("shard", "--quiet", "--shards", shards, "--out", folder / "shards", *files) == 0


def embed(folder, model, shards, *options):
    """Embed all shards, as the workflow does."""
    for number in range(shards):
        source, target = folder / "shards" / f"{number:05d}", folder / "embed" / f"{number:05d}"
        command = ("embed", "--quiet", "--model", model, "--allow-empty", "--on-failure", "keep")
        command += (*INCLUDE, *options, "--sha256", f"{target}.sha256")
        assert run(*command, f"{source}.fasta", f"{target}.h5") == 0


def gather_command(folder, shards):
    return (
        *("aggregate", "embed", "--records", folder / "shards" / "records.tsv"),
        *("--shards-dir", folder / "embed", "--shards", shards),
        *("--out", folder / "embeddings.h5", "--status", folder / "embed" / "status.tsv"),
    )


def table_command(folder):
    return (
        *("aggregate", "records", "--records", folder / "shards" / "records.tsv"),
        *("--status", f"embed={folder / 'embed' / 'status.tsv'}"),
        *("--out", folder / "records.tsv"),
    )


def whole_run(folder, model, shards, *texts, options=()):
    """From FASTA files to gathered results, as the workflow does."""
    shard(folder, shards, *texts)
    embed(folder, model, shards, *options)
    assert run(*gather_command(folder, shards), "--quiet") == 0
    assert run(*table_command(folder)) == 0


def rows(path):
    with open(path, newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t"))


def assert_same_results(one, other):
    with h5py.File(one) as a, h5py.File(other) as b:
        assert dict(a.attrs) == dict(b.attrs)
        names, others = set(), set()
        a.visit(names.add)
        b.visit(others.add)
        assert names == others
        for name in names:
            if isinstance(a[name], h5py.Group):
                continue
            if a[name].dtype.kind == "f":
                steps = 1e-3 if a[name].dtype == np.float16 else 0  # float16 rounds in steps
                np.testing.assert_allclose(a[name][...], b[name][...], rtol=steps, atol=1e-4)
            else:
                assert a[name][...].tolist() == b[name][...].tolist(), name


@pytest.mark.parametrize("shards", [1, 2, 3, 7])
def test_shards_give_what_one_run_gives(rotary, tmp_path, shards):
    whole_run(tmp_path, rotary, shards)
    run_alone(tmp_path, rotary, FASTA)
    assert_same_results(tmp_path / "alone.h5", tmp_path / "embeddings.h5")
    assert (tmp_path / "alone.records.tsv").read_text() == (tmp_path / "records.tsv").read_text()
    with open_results(tmp_path / "embeddings.h5") as results:
        assert results.index.tolist() == [0, 1, 3, 4, 6, 7]
        assert results.row.tolist() == [0, 1, 0, 2, 1, 3]


def test_misplaced_rows_would_show(rotary, tmp_path, monkeypatch):
    """The twin of the test above."""
    whole_run(tmp_path, rotary, 2)
    shutil.copy(tmp_path / "embeddings.h5", tmp_path / "right.h5")
    copy = hdf5.RaggedWriter.copy
    monkeypatch.setattr(
        hdf5.RaggedWriter, "copy", lambda self, source, rows: copy(self, source, np.sort(rows))
    )
    run(*gather_command(tmp_path, 2))
    with pytest.raises(AssertionError):
        assert_same_results(tmp_path / "right.h5", tmp_path / "embeddings.h5")


SEQUENCES = ["MKTAYIAKQRQ", "GAV", "MK*V", "MKV:GAV", "W", "ACDEFGHIKL", "AC-D", "GAVLIMFYWACDEF"]
BAD = ("MK*V", "MKV:GAV", "AC-D")


@settings(max_examples=15)
@given(st.data())
def test_any_files_order_shards_and_budget_give_the_same(tmp_path_factory, rotary, data):
    """ids in = ids out, and each record's values wherever it stands and whatever it runs with."""
    chosen = data.draw(st.lists(st.sampled_from(SEQUENCES), max_size=12))
    records = [(f"id{place % 5}", one) for place, one in enumerate(["GAVL", *chosen])]
    order = data.draw(st.permutations(range(len(records))))
    cuts = sorted(data.draw(st.lists(st.integers(1, len(records)), max_size=2)))
    shards, budget = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 60))
    one, other = (tmp_path_factory.mktemp("run") for _ in range(2))
    texts = [f">{name}\n{sequence}\n" for name, sequence in records]
    run_alone(one, rotary, "".join(texts))
    shuffled = [texts[place] for place in order]
    parts = [shuffled[a:b] for a, b in itertools.pairwise([0, *cuts, len(records)]) if a < b]
    whole_run(other, rotary, shards, *map("".join, parts), options=("--token-budget", budget))
    found = rows(other / "records.tsv")
    assert [row["id"] for row in found] == [records[place][0] for place in order]
    assert [int(row["index"]) for row in found] == list(range(len(records)))
    assert [row["embed_status"] for row in found] == [
        "skipped" if records[place][1] in BAD else "ok" for place in order
    ]
    with open_results(one / "alone.h5") as ours, open_results(other / "embeddings.h5") as theirs:
        places = dict(zip(order, found, strict=True))
        kept = [place for place, (_, sequence) in enumerate(records) if sequence not in BAD]
        assert ours.index.tolist() == kept
        assert sorted(theirs.index.tolist()) == sorted(
            int(places[place]["index"]) for place in kept
        )
        for place in kept:
            assert_same_item(ours[place], theirs[int(places[place]["index"])])


def run_alone(folder, model, text):
    """Embed `text` by the standalone command."""
    (folder / "in.fasta").write_text(text)
    alone = ("embed", "--quiet", "--model", model, *INCLUDE)
    assert run(*alone, folder / "in.fasta", folder / "alone.h5") == 0


def assert_same_item(one, other):
    """What two results hold of a protein agrees within 1e-4, or a step of float16."""
    for kind in ("mean", "bos", "residue"):
        for layer in (0, 2):
            values = [getattr(item, kind)[layer].astype(float) for item in (one, other)]
            assert np.abs(values[0]).max() > 0.01
            rtol = 1e-3 if kind == "residue" else 0
            np.testing.assert_allclose(*values, rtol=rtol, atol=1e-4)
    np.testing.assert_allclose(
        one.contacts.astype(float), other.contacts.astype(float), rtol=1e-3, atol=1e-4
    )


def test_gathering_twice_gives_the_same_bytes(rotary, tmp_path):
    whole_run(tmp_path, rotary, 3)
    names = ("embeddings.h5", "embed/status.tsv", "records.tsv")
    before = [hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in names]
    assert run(*gather_command(tmp_path, 3)) == run(*table_command(tmp_path)) == 0
    assert before == [hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in names]


def test_a_failure_reaches_every_duplicate(rotary, tmp_path, esm, monkeypatch):
    Allocator(1000).limit(monkeypatch, EsmModel, "represent", tokens({24: 1001}))
    shard(tmp_path, 2)
    embed(tmp_path, rotary, 2)
    code, lines = esm(*gather_command(tmp_path, 2))
    assert code == 0
    assert "aggregate embed: 8 records of 2 shards: 4 ok, 2 skipped, 2 failed" in lines[0]
    assert run(*table_command(tmp_path)) == 0
    found = rows(tmp_path / "records.tsv")
    assert [row["embed_status"] for row in found] == [
        *("failed", "ok", "skipped", "failed", "ok", "skipped", "ok", "ok")
    ]
    reasons = Counter(row["embed_reason"] for row in found if row["embed_status"] == "failed")
    assert list(reasons.values()) == [2]
    with open_results(tmp_path / "embeddings.h5") as results:
        assert results.index.tolist() == [1, 4, 6, 7]


def test_a_sample_with_nothing_to_embed(rotary, tmp_path):
    whole_run(tmp_path, rotary, 2, ">stop\nM*V\n")
    with open_results(tmp_path / "embeddings.h5") as results:
        assert len(results) == 0
    assert [row["embed_status"] for row in rows(tmp_path / "records.tsv")] == ["skipped"]


@pytest.fixture
def embedded(rotary, tmp_path):
    """A sample of three shards, embedded and not yet gathered."""
    shard(tmp_path, 3)
    embed(tmp_path, rotary, 3)
    return tmp_path


def signed(folder, name):
    """Write the digests of a shard anew, as if its files had been so from the start."""
    files = [folder / "embed" / f"{name}{suffix}" for suffix in (".h5", ".records.tsv")]
    write_digests(folder / "embed" / f"{name}.sha256", {file.name: file for file in files})


def flip(folder):
    path = folder / "embed" / "00001.h5"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(folder):
    path = folder / "embed" / "00001.h5"
    path.write_bytes(path.read_bytes()[:-100])


def cut_and_sign(folder):
    cut(folder)
    signed(folder, "00001")


def remove(name):
    return lambda folder: (folder / "embed" / name).unlink()


def lose_a_record(folder):
    for name in ("00000", "00001", "00002"):
        table = folder / "embed" / f"{name}.records.tsv"
        kept = [record for record in read_records(table) if record.id != "4"]
        write_records(table, kept, ["embed"])
        signed(folder, name)


def lose_a_row(folder):
    """The table says ok of a record that the HDF5 file lacks."""
    for name in ("00000", "00001", "00002"):
        table = folder / "embed" / f"{name}.records.tsv"
        changed = [
            record.with_outcome("embed", "ok") if record.id == "5" else record
            for record in read_records(table)
        ]
        write_records(table, changed, ["embed"])
        signed(folder, name)


def repeat_a_shard(folder):
    for suffix in (".h5", ".records.tsv"):
        shutil.copy(folder / "embed" / f"00000{suffix}", folder / "embed" / f"00001{suffix}")
    signed(folder, "00001")


def swap_tables(folder):
    one, other = (folder / "embed" / f"0000{number}.h5" for number in (0, 1))
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)
    signed(folder, "00000")
    signed(folder, "00001")


def not_a_shard(folder):
    table = folder / "embed" / "00002.records.tsv"
    write_records(table, [Record(0, "P1", "P1", 3, "0" * 64, "ok")], ["embed"])
    signed(folder, "00002")


def sign(path):
    """Write the digest of a file anew in its folder's list, as if it had been so from the start."""
    write_digests(path.parent / "digests.sha256", {path.name: path})


def another_input(folder):
    records = list(read_records(folder / "shards" / "records.tsv"))
    write_records(folder / "shards" / "records.tsv", records[:-1])
    sign(folder / "shards" / "records.tsv")


def replace(name, old, new):
    def change(folder):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            replace("shards/records.tsv", "\tmiddle\t", "\tmiddlE\t"),
            "shards/records.tsv: damaged, its digest is not that in digests.sha256; remove it and",
        ),
        (
            replace("shards/digests.sha256", "records.tsv", "record.tsv"),
            "shards/digests.sha256: does not list records.tsv; remove it and run the workflow",
        ),
        (replace("shards/digests.sha256", "  ", " "), "digests.sha256:1: not a digest and a file"),
        (flip, "00001.h5: damaged, its digest is not that in 00001.sha256; remove it and run the"),
        (cut, "00001.h5: damaged"),
        (cut_and_sign, "00001.h5: not the result of a shard"),
        (remove("00002.h5"), "00002.h5: no such file, but 00002.sha256 lists it"),
        (remove("00000.records.tsv"), "00000.records.tsv: no such file"),
        (remove("00000.sha256"), "00000.sha256: no such file; run the workflow again"),
        (lose_a_record, "record 4 ('middle') is in no shard of"),
        (lose_a_row, "sequences that are ok have no row"),
        (repeat_a_shard, "a sequence is in two shards"),
        (not_a_shard, "00002.records.tsv: record 0 does not belong to a shard of 'embed'"),
        (another_input, "they belong to another input"),
    ],
)
def test_what_does_not_fit_is_named(embedded, esm, damage, message):
    damage(embedded)
    code, lines = esm(*gather_command(embedded, 3))
    assert (code, len(lines)) == (2, 1)
    assert message in lines[0]
    assert not (embedded / "embeddings.h5").exists()


def test_undamaged_shards_are_gathered(embedded, esm):
    """The twin of the test above."""
    assert esm(*gather_command(embedded, 3))[0] == 0
    assert (embedded / "embeddings.h5").exists()


def test_rows_of_another_shard_stay_what_they_are(embedded):
    """Which file holds a sequence does not matter, its name does."""
    assert run(*gather_command(embedded, 3), "--quiet") == 0
    shutil.copy(embedded / "embeddings.h5", embedded / "before.h5")
    swap_tables(embedded)
    assert run(*gather_command(embedded, 3), "--quiet") == 0
    assert_same_results(embedded / "before.h5", embedded / "embeddings.h5")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--layers", "1"), "00002.h5: layers is '1', but '0,-1' in 00000.h5"),
        (
            ("--residue-dtype", "float32"),
            "00002.h5: residue_dtype is 'float32', but 'float16' in 00000.h5",
        ),
        (("--dtype", "bfloat16"), "00002.h5: dtype is 'bfloat16', but 'float32' in 00000.h5"),
    ],
)
def test_shards_made_otherwise_are_refused(embedded, rotary, esm, options, message):
    target = embedded / "embed" / "00002"
    command = ("embed", "--quiet", "--model", rotary, *INCLUDE, *options)
    command += ("--sha256", f"{target}.sha256", embedded / "shards" / "00002.fasta", f"{target}.h5")
    assert run(*command) == 0
    code, lines = esm(*gather_command(embedded, 3))
    assert (code, len(lines)) == (2, 1)
    assert message in lines[0]


def test_shards_of_another_model_are_refused(embedded, absolute, esm):
    target = embedded / "embed" / "00002"
    command = ("embed", "--quiet", "--model", absolute, *INCLUDE, "--sha256", f"{target}.sha256")
    assert run(*command, embedded / "shards" / "00002.fasta", f"{target}.h5") == 0
    code, lines = esm(*gather_command(embedded, 3))
    assert (code, len(lines)) == (2, 1)
    assert "00002.h5: model is" in lines[0]


def lines_of(path):
    return Path(path).read_text().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], "no row for record 7 of"),
        (lambda lines: [*lines[:3], *lines[4:]], "no row for record 2 of"),
        (lambda lines: [*lines, "8\tok\t\n"], "has more records than"),
        (lambda lines: [*lines[:3], "2\tok\n", *lines[4:]], "status.tsv:4: not a row of a status"),
        (lambda lines: lines[1:], "status.tsv:1: not the status table of 'embed'"),
    ],
)
def test_status_tables_of_other_records(embedded, esm, change, message):
    assert run(*gather_command(embedded, 3), "--quiet") == 0
    status = embedded / "embed" / "status.tsv"
    status.write_text("".join(change(lines_of(status))))
    sign(status)
    code, lines = esm(*table_command(embedded))
    assert (code, len(lines)) == (2, 1)
    assert message in lines[0]
    assert not (embedded / "records.tsv").exists()


def test_records_without_any_task(embedded):
    shards = embedded / "shards" / "records.tsv"
    assert run("aggregate", "records", "--records", shards, "--out", embedded / "copy.tsv") == 0
    assert (embedded / "copy.tsv").read_text() == shards.read_text()


def test_unusable_flags(esm):
    for arguments in (
        ("records", "--records", "a", "--out", "b", "--status", "embed"),
        ("nothing", "--records", "a"),
    ):
        with pytest.raises(SystemExit) as stop:
            esm("aggregate", *arguments)
        assert stop.value.code == 2


def test_sequences_that_are_not_those_of_the_sample(rotary, tmp_path, esm):
    """Of two inputs alike in number: places fit, sequences do not."""
    shard(tmp_path, 2)
    other = tmp_path / "other"
    other.mkdir()
    shard(other, 2, FASTA.replace("WYVTSRQ", "WYVTSRE"))
    shutil.rmtree(tmp_path / "embed", ignore_errors=True)
    embed(other, rotary, 2)
    shutil.copytree(other / "embed", tmp_path / "embed")
    code, lines = esm(*gather_command(tmp_path, 2))
    assert code == 2
    assert "record 7 ('last') is another sequence than that in the shards of" in lines[-1]
    assert not (tmp_path / "embeddings.h5").exists()


def test_outputs_do_not_replace_inputs(rotary, tmp_path, esm):
    whole_run(tmp_path, rotary, 1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    shards, embedded = tmp_path / "shards" / "records.tsv", tmp_path / "embed"
    same = [
        ("--out", tmp_path / "x", "--status", tmp_path / "x"),
        ("--out", embedded / "00000.h5"),
        ("--status", shards),
    ]
    for change in same:
        code, lines = esm(*gather_command(tmp_path, 1), *change)
        assert (code, len(lines)) == (2, 1)
        assert "stands for two files here" in lines[0]
    code, lines = esm(*table_command(tmp_path), "--out", shards)
    assert code == 2
    code, lines = esm("verdict", shards, "--out", shards)
    assert code == 2
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    code, lines = esm(*table_command(tmp_path), "--status", f"embed={embedded / 'status.tsv'}")
    assert (code, "a task is given twice" in lines[0]) == (2, True)


@pytest.mark.parametrize("text", [b"\xff", b"index\tembed_status\tembed_reason\n0\tnonsense\t\n"])
def test_a_status_table_that_is_none(rotary, tmp_path, esm, text):
    whole_run(tmp_path, rotary, 1)
    (tmp_path / "embed" / "status.tsv").write_bytes(text)
    sign(tmp_path / "embed" / "status.tsv")
    code, lines = esm(*table_command(tmp_path))
    assert (code, len(lines)) == (2, 1)
    assert "embed/status.tsv:" in lines[0]
    assert "not a row of a status table (" in lines[0]
