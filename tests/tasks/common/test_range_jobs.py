"""A job computes one range into one file, which says what became of each of its sequences."""

from __future__ import annotations

import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest

from esm_pipeline.cli import main
from esm_pipeline.formats.bundles import Bundle
from esm_pipeline.formats.records import Outcome
from esm_pipeline.formats.results.job_files import StoredOutcomes, check_seal
from esm_pipeline.formats.results.open import open_results
from esm_pipeline.formats.results.validation import open_hdf5
from esm_pipeline.model import EsmModel
from esm_pipeline.tasks.classify.work import CLASSIFY_WORK
from esm_pipeline.tasks.common import room
from esm_pipeline.tasks.common.runner import Runner
from esm_pipeline.tasks.embed.work import EMBED_WORK
from esm_pipeline.tasks.fold.work import FOLD_WORK
from esm_pipeline.tasks.score.work import SATURATION_WORK
from tests.allocator import Allocator, tokens
from tests.tasks.classify.classifying import SEQUENCE, save

LONG = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ"  # longer than the table
FASTA = f">a\n{LONG}\n>b\nMKTAYIAKQRQISFVKSHFSRQ\n>c\nMKV:GAV\n>d\nGAV\n>e\nGAV\n"
WORK = {
    "embed": EMBED_WORK,
    "classify": CLASSIFY_WORK,
    "score": SATURATION_WORK,
    "fold": FOLD_WORK,
}
TASKS = tuple(WORK)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    (folder / "in.fasta").write_text(FASTA)
    shard = ["shard", "--quiet", "--bundles=1", "--least=1", f"--out={folder / 'bundles'}"]
    assert main([*shard, str(folder / "in.fasta")]) == 0
    return folder / "bundles" / "00000.fasta"


@pytest.fixture(scope="module")
def models(absolute, tmp_path_factory):
    classifier = tmp_path_factory.mktemp("classifier")
    save(classifier, SEQUENCE)
    return dict.fromkeys(TASKS, absolute) | {"classify": classifier, "fold": "demo"}


def command(task, model, name, bundle, out, *more):
    flags = ("--saturation",) if task == "score" else ()
    arguments = (task, "--model", model, "--range", name, *flags, *more, bundle, out)
    return [str(argument) for argument in arguments]


def outcomes(path):
    with open_hdf5(path) as file:
        check_seal(file)
        return list(StoredOutcomes.read(file)), dict(file.attrs)


@pytest.mark.parametrize("task", TASKS)
def test_a_range_says_what_became_of_each_sequence(bundle, models, tmp_path, task):
    out = tmp_path / "1-of-1.h5"
    assert main(command(task, models[task], "1-of-1", bundle, out, "--quiet")) == 0
    found, attributes = outcomes(out)
    expected = ["ok", "ok", "ok" if task == "fold" else "skipped", "ok"]
    if task in ("embed", "score"):
        expected[0] = "skipped"
        assert found[0].reason.startswith(f"{len(LONG)} residues, but the model has positions for")
    assert [outcome.status for outcome in found] == expected
    if task != "fold":
        assert found[2] == Outcome("skipped", "a complex of several chains; split it at ':'")
    assert (attributes["task"], attributes["range"]) == (task, "1-of-1")
    assert (attributes["first"], attributes["stop"]) == ("0", "4")
    with open_results(out) as results:
        assert results.ids == [str(first) for first in range(4) if expected[first] == "ok"]
    assert [path.name for path in tmp_path.iterdir()] == ["1-of-1.h5"]


def test_the_same_bytes_again(bundle, absolute, tmp_path):
    before = []
    for _ in range(2):
        assert (
            main(command("embed", absolute, "1-of-2", bundle, tmp_path / "1-of-2.h5", "--quiet"))
            == 0
        )
        before.append((tmp_path / "1-of-2.h5").read_bytes())
    assert before[0] == before[1]


NO_TORCH = """
import sys
from esm_pipeline.cli import main
code = main(sys.argv[1:])
assert "torch" not in sys.modules
sys.exit(code)
"""


@pytest.mark.parametrize("task", TASKS)
def test_an_empty_range_loads_no_torch_and_no_model(bundle, tmp_path, task):
    out = tmp_path / "x.h5"
    bounds = Bundle.open(bundle).bounds(WORK[task], 9)
    number = 2 + int(np.flatnonzero(np.diff(bounds[1:]) == 0)[0])
    empty = command(task, "missing", f"{number}-of-9", bundle, out, "--quiet")
    ended = subprocess.run([sys.executable, "-c", NO_TORCH, *empty], check=False)
    assert ended.returncode == 0
    found, attributes = outcomes(out)
    assert found == []
    assert attributes["first"] == attributes["stop"]
    assert attributes["task"] == task


def test_the_check_for_torch_would_see_it(bundle, absolute, tmp_path):
    """The twin of the test above."""
    full = command("embed", absolute, "9-of-9", bundle, tmp_path / "x.h5", "--quiet")
    ended = subprocess.run(
        [sys.executable, "-c", NO_TORCH, *full], check=False, capture_output=True
    )
    assert b"AssertionError" in ended.stderr


@pytest.mark.parametrize("task", ["embed", "score"])
def test_weights_are_not_loaded_for_sequences_that_are_skipped(
    bundle, absolute, tmp_path, task, monkeypatch
):
    def load(self):
        raise AssertionError("loaded")

    monkeypatch.setattr(Runner, "load", load)
    out = tmp_path / "x.h5"
    with open_hdf5(absolute_range(bundle, absolute, tmp_path, task)) as file:
        name = file.attrs["range"]
    assert main(command(task, absolute, name, bundle, out, "--quiet")) == 0
    assert [outcome.status for outcome in outcomes(out)[0]] == ["skipped"]
    with pytest.raises(AssertionError, match="loaded"):
        main(command(task, absolute, "1-of-1", bundle, out, "--quiet"))


def absolute_range(bundle, absolute, folder, task):
    """The file of the range, of nine, with the sequence that is too long."""
    for number in range(1, 10):
        out = folder / "ranges" / f"{number}-of-9.h5"
        assert main(command(task, absolute, f"{number}-of-9", bundle, out, "--quiet")) == 0
        if outcomes(out)[0]:
            return out
    raise AssertionError("no range has a sequence")


@pytest.mark.parametrize(("keep", "code"), [("keep", 0), ("error", 1)])
def test_a_failure_is_an_outcome(bundle, rotary, tmp_path, esm, monkeypatch, keep, code):
    Allocator(1000).limit(monkeypatch, EsmModel, "represent", tokens({24: 1001}))
    out = tmp_path / "x.h5"
    found, lines = esm(*command("embed", rotary, "1-of-1", bundle, out, "--on-failure", keep))
    assert found == code
    assert "embed, range 1-of-1: 4 sequences: 2 ok, 1 skipped, 1 failed; " in lines[-1]
    stored, _ = outcomes(out)
    assert [outcome.status for outcome in stored] == ["ok", "failed", "skipped", "ok"]
    assert "do not fit into memory" in stored[1].reason
    with open_results(out) as results:
        assert results.ids == ["0", "3"]


@pytest.mark.parametrize("task", TASKS)
def test_a_disk_without_room_is_told_before_weights_are_loaded(
    bundle, models, tmp_path, esm, monkeypatch, task
):
    class Usage:
        free = 10

    def load(self):
        raise AssertionError("loaded")

    monkeypatch.setattr(Runner, "load", load)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda folder: Usage)
    code, lines = esm(*command(task, models[task], "1-of-1", bundle, tmp_path / "x.h5", "--quiet"))
    assert code == 2
    assert lines == [
        f"esm-pipeline {task}: {tmp_path}: this job needs 0.0 MB of disk space and the result of "
        "its bundle 0.0 MB, but 0.0 MB are free; free some or choose another place"
    ]
    assert [*tmp_path.iterdir()] == []


def test_room_for_the_whole_bundle(bundle, rotary, tmp_path, esm, monkeypatch):
    """The files of both jobs, and the gathered result: 16 numbers of 4 bytes for each sequence."""

    class Usage:
        free = 3 * 64 + 64

    monkeypatch.setattr(room.shutil, "disk_usage", lambda folder: Usage)
    small = command("embed", rotary, "2-of-2", bundle, tmp_path / "x.h5", "--quiet")
    assert esm(*small)[0] == 2
    Usage.free = 3 * 64 + 3 * 64
    assert esm(*small)[0] == 0


@pytest.mark.parametrize(
    ("task", "flags", "told"),
    [
        ("embed", ("--sha256", "x.sha256"), "--sha256: not with --range, which writes one file"),
        ("classify", ("--provenance", "x"), "--provenance: not with --range, which writes one"),
        ("score", ("--plots", "x"), "--plots: not with --range, which writes one file; leave it"),
    ],
)
def test_flags_that_do_not_go_with_a_range(bundle, models, tmp_path, esm, task, flags, told):
    code, lines = esm(*command(task, models[task], "1-of-1", bundle, tmp_path / "x.h5", *flags))
    assert (code, len(lines)) == (2, 1)
    assert told in lines[0]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", ["x.tsv", "x", "x.hdf5"])
def test_a_range_is_an_h5_file(bundle, models, tmp_path, esm, task, name):
    code, lines = esm(*command(task, models[task], "1-of-1", bundle, tmp_path / name))
    assert (code, len(lines)) == (2, 1)
    assert "cannot be written; let its name end in .h5" in lines[0]


@pytest.mark.parametrize("name", ["0-of-1", "2-of-1", "1", "a"])
def test_what_is_not_a_range_is_a_wrong_flag(bundle, absolute, tmp_path, capsys, name):
    with pytest.raises(SystemExit) as stop:
        main(command("embed", absolute, name, bundle, tmp_path / "x.h5"))
    assert stop.value.code == 2
    assert f"argument --range: {name!r} is not a range such as 3-of-40" in capsys.readouterr().err


def test_a_bundle_that_was_changed_is_told(bundle, absolute, tmp_path, esm):
    shutil.copytree(bundle.parent, tmp_path / "bundles")
    path = tmp_path / "bundles" / "00000.fasta"
    path.write_text(path.read_text().replace("\nGAV\n", "\nGAW\n"))
    code, lines = esm(*command("embed", absolute, "1-of-1", path, tmp_path / "x.h5"))
    assert (code, len(lines)) == (2, 1)
    assert f"{path}: damaged, its sequence 3 is not that in 00000.index.npz; remove it" in lines[0]


def test_a_file_that_is_no_bundle(tmp_path, absolute, esm):
    fasta = tmp_path / "in.fasta"
    fasta.write_text(FASTA)
    code, lines = esm(*command("embed", absolute, "1-of-1", fasta, tmp_path / "x.h5"))
    assert (code, len(lines)) == (2, 1)
    assert f"{tmp_path / 'in.index.npz'}: no such file; give a bundle of `shard`" in lines[0]


def test_an_input_that_was_changed_is_told(bundle, absolute, tmp_path, esm):
    (tmp_path / "in.fasta").write_text(FASTA)
    (tmp_path / "inputs.sha256").write_text(f"{'0' * 64}  {tmp_path / 'in.fasta'}\n")
    unchanged = ("--unchanged", tmp_path / "inputs.sha256")
    code, lines = esm(*command("embed", absolute, "1-of-1", bundle, tmp_path / "x.h5", *unchanged))
    assert (code, len(lines)) == (2, 1)
    assert "in.fasta: has changed since the workflow read it" in lines[0]


def test_the_file_has_what_one_run_writes(bundle, rotary, tmp_path):
    """Besides the outcomes, the digest, and the attributes of the range."""
    assert main(command("embed", rotary, "1-of-1", bundle, tmp_path / "x.h5", "--quiet")) == 0
    alone = ["embed", "--quiet", f"--model={rotary}", str(bundle.parents[1] / "in.fasta")]
    assert main([*alone, str(tmp_path / "alone.h5")]) == 0
    with h5py.File(tmp_path / "x.h5") as range_, h5py.File(tmp_path / "alone.h5") as one:
        assert {*range_} - {*one} == {"outcome", "digest"}
        own = {*range_.attrs} - {*one.attrs}
        assert own == {"task", "bundle", "range", "first", "stop"}
        assert all(range_.attrs[name] == one.attrs[name] for name in one.attrs)
        assert range_["length"][...].tolist() == one["length"][...].tolist()
