"""Gathering: the ranges of a bundle give what one run gives; damage and mix-ups are named."""

import csv
import hashlib
import itertools
import shutil
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esm_pipeline.cli import main
from esm_pipeline.formats.bundles import range_names
from esm_pipeline.formats.results import writer as hdf5
from esm_pipeline.formats.results.open import open_results
from esm_pipeline.model import EsmModel
from esm_pipeline.tasks.common import gather
from tests.allocator import Allocator, tokens
from tests.jobs import assert_same_results

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


def shard(folder, *texts, bundles=1):
    """Deal files with `texts`, or that of the example, into bundles, as the workflow does."""
    texts = texts or (FASTA,)
    files = [folder / f"in{number or ''}.fasta" for number in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    command = ("shard", "--quiet", "--bundles", bundles, "--least", 1, "--out", folder / "bundles")
    assert run(*command, *files) == 0


def embed(folder, model, ranges, *options, bundle="00000"):
    """Embed all ranges of a bundle, as the workflow does."""
    for name in range_names(ranges):
        command = ("embed", "--quiet", "--model", model, "--range", name, "--on-failure", "keep")
        files = (folder / "bundles" / f"{bundle}.fasta", folder / "embed" / bundle / f"{name}.h5")
        assert run(*command, *INCLUDE, *options, *files) == 0


def gather_command(folder, ranges, bundle="00000"):
    return (
        *("aggregate", "embed", "--bundle", folder / "bundles" / f"{bundle}.fasta"),
        *("--ranges", folder / "embed" / bundle, "--count", ranges),
        *("--out", folder / "embeddings.h5"),
        *("--status", folder / "embed" / f"{bundle}.status.tsv"),
    )


def table_command(folder):
    return (
        *("aggregate", "records", "--bundles", folder / "bundles", "--count", "1"),
        *("--status", f"embed={folder / 'embed'}"),
        *("--out", folder / "records.tsv", "--counts", folder / "counts" / "records.json"),
    )


def whole_run(folder, model, ranges, *texts, options=()):
    """From FASTA files to gathered results, as the workflow does."""
    shard(folder, *texts)
    embed(folder, model, ranges, *options)
    assert run(*gather_command(folder, ranges), "--quiet") == 0
    assert run(*table_command(folder)) == 0


def rows(path):
    with open(path, newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t"))


@pytest.mark.parametrize("ranges", [1, 2, 3, 7])
def test_ranges_give_what_one_run_gives(rotary, tmp_path, ranges):
    whole_run(tmp_path, rotary, ranges)
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
def test_any_files_order_ranges_and_budget_give_the_same(tmp_path_factory, rotary, data):
    """ids in = ids out, and each record's values wherever it stands and whatever it runs with."""
    chosen = data.draw(st.lists(st.sampled_from(SEQUENCES), max_size=12))
    records = [(f"id{place % 5}", one) for place, one in enumerate(["GAVL", *chosen])]
    order = data.draw(st.permutations(range(len(records))))
    cuts = sorted(data.draw(st.lists(st.integers(1, len(records)), max_size=2)))
    ranges, budget = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 60))
    one, other = (tmp_path_factory.mktemp("run") for _ in range(2))
    texts = [f">{name}\n{sequence}\n" for name, sequence in records]
    run_alone(one, rotary, "".join(texts))
    shuffled = [texts[place] for place in order]
    parts = [shuffled[a:b] for a, b in itertools.pairwise([0, *cuts, len(records)]) if a < b]
    whole_run(other, rotary, ranges, *map("".join, parts), options=("--token-budget", budget))
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
    names = ("embeddings.h5", "embed/00000.status.tsv", "embed/00000.sha256", "records.tsv")
    before = [hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in names]
    assert run(*gather_command(tmp_path, 3)) == run(*table_command(tmp_path)) == 0
    assert before == [hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in names]


def test_a_failure_reaches_every_duplicate(rotary, tmp_path, esm, monkeypatch):
    Allocator(1000).limit(monkeypatch, EsmModel, "represent", tokens({24: 1001}))
    shard(tmp_path)
    embed(tmp_path, rotary, 2)
    code, lines = esm(*gather_command(tmp_path, 2))
    assert code == 0
    assert "aggregate embed: 8 records of 2 ranges: 4 ok, 2 skipped, 2 failed" in lines[0]
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
    """A bundle, embedded in three ranges and not yet gathered."""
    shard(tmp_path)
    embed(tmp_path, rotary, 3)
    return tmp_path


TABLE = "bundles/00000.records.tsv"


def replace(name, old, new):
    def change(folder):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return change


def test_results_of_bundles_are_those_of_one(rotary, tmp_path):
    """Each record is in the result of one bundle, with the values it has in one for all."""
    whole_run(tmp_path, rotary, 2)
    many = tmp_path / "many"
    many.mkdir()
    shard(many, bundles=3)
    found = {}
    for number in range(3):
        name = f"{number:05d}"
        embed(many, rotary, 2, bundle=name)
        assert run(*gather_command(many, 2, name), "--quiet") == 0
        with open_results(many / "embeddings.h5") as results:
            found |= {item.index: item.residue[2] for item in results}
        listed = many / "embed" / f"{name}.sha256"
        (many / "embeddings.h5").unlink()
        assert [line.split()[1] for line in listed.read_text().splitlines()] == [
            f"{name}.status.tsv", "../embeddings.h5"
        ]  # fmt: skip
    with open_results(tmp_path / "embeddings.h5") as results:
        assert sorted(found) == results.index.tolist()
        for item in results:
            np.testing.assert_allclose(
                item.residue[2].astype(float), found[item.index].astype(float), atol=1e-2
            )


def test_ids_as_they_are(rotary, tmp_path):
    """Quotes, tabs and letters beyond ASCII, in blocks with and without them."""
    ids = ['"', 'a"b', "é|x", "007", "NA", "'"]
    text = "".join(
        f">{name}\t'{number}\"\n{'ACDE'[number % 4]}K\n" for number, name in enumerate(ids)
    )
    whole_run(tmp_path, rotary, 2, text)
    with open_results(tmp_path / "embeddings.h5") as results:
        assert results.ids == ids
        assert results.row.tolist() == [0, 1, 2, 3, 0, 1]


@pytest.mark.parametrize("size", [1, 100, 1 << 20])
def test_blocks_of_the_table_do_not_matter(embedded, monkeypatch, size):
    assert run(*gather_command(embedded, 3), "--quiet") == 0
    names = ("embeddings.h5", "embed/00000.status.tsv", "embed/00000.sha256")
    before = [(embedded / name).read_bytes() for name in names]
    monkeypatch.setattr(gather, "TABLE_BLOCK", size)
    assert run(*gather_command(embedded, 3), "--quiet") == 0
    assert before == [(embedded / name).read_bytes() for name in names]


def test_unusable_flags(esm):
    for arguments in (
        (*("records", "--bundles", "a", "--count", "1", "--out", "b"), "--status", "embed"),
        ("nothing", "--records", "a"),
    ):
        with pytest.raises(SystemExit) as stop:
            esm("aggregate", *arguments)
        assert stop.value.code == 2


def test_outputs_do_not_replace_inputs(rotary, tmp_path, esm):
    whole_run(tmp_path, rotary, 1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    table, embedded = tmp_path / TABLE, tmp_path / "embed"
    same = [
        ("--out", tmp_path / "x.status.tsv", "--status", tmp_path / "x.status.tsv"),
        ("--out", embedded / "00000" / "1-of-1.h5"),
        ("--out", table),
    ]
    for change in same:
        code, lines = esm(*gather_command(tmp_path, 1), *change)
        assert (code, len(lines)) == (2, 1)
        assert "is given for two files" in lines[0]
    code, lines = esm(*table_command(tmp_path), "--out", table)
    assert code == 2
    code, lines = esm("verdict", table, "--out", table)
    assert code == 2
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
