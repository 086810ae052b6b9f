"""One writer for each output; the leftovers of a killed one do not block others."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from esm_pipeline import locks
from esm_pipeline.cli import main
from esm_pipeline.errors import InputError
from esm_pipeline.locks import Outputs, claim
from esm_pipeline.tasks import COMMANDS, commands_with, module_of
from tests.forked import Forked
from tests.results import write_outcomes, write_result

HOLDER = """
import sys, time
from pathlib import Path
from esm_pipeline.locks import Outputs, claim
with claim(Outputs([Path(sys.argv[1])])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def hold(target: Path, seconds: float = 60) -> subprocess.Popen[bytes]:
    """Another process that has claimed a file."""
    command = [sys.executable, "-c", HOLDER, target, str(seconds)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert holder.stdout
    assert holder.stdout.readline() == b"held\n"
    return holder


def test_every_task_says_what_it_writes():
    assert set(commands_with("outputs")) == set(COMMANDS)


@pytest.mark.parametrize("made", [True, False])
def test_nothing_is_left(tmp_path, made):
    folder = tmp_path / "a" / "b"
    if made:
        folder.mkdir(parents=True)
    with claim(Outputs([folder / "x.h5"], [folder / "s"], [folder / "pictures"])):
        assert names(folder) == [".s.lock", ".x.h5.lock", "pictures"]
        assert names(folder / "pictures") == [".lock"]
    assert names(tmp_path) == (["a"] if made else [])


def test_a_second_writer_is_refused_and_the_first_goes_on(tmp_path):
    target, link = tmp_path / "out.h5", tmp_path / "link.h5"
    link.symlink_to("out.h5")
    holder = hold(target)
    try:
        for place in (target, link):
            told = rf"{place.name}: is being written by process {holder.pid} on .+; wait until"
            with pytest.raises(InputError, match=told), claim(Outputs([place])):
                pass
        with claim(Outputs([tmp_path / "other.h5"])):
            pass
        assert names(tmp_path) == [".out.h5.lock", "link.h5"]
    finally:
        holder.terminate()
        holder.wait()


def test_one_process_cannot_claim_twice(tmp_path):
    outputs = Outputs([tmp_path / "a"])
    with claim(outputs), pytest.raises(InputError, match="is being written"), claim(outputs):
        pass
    with claim(outputs):
        pass
    assert names(tmp_path) == []


def test_a_killed_writer_is_no_hindrance(tmp_path):
    holder = hold(tmp_path / "a")
    holder.send_signal(signal.SIGKILL)
    while "Z" not in Path(f"/proc/{holder.pid}/stat").read_text().rpartition(")")[2]:
        time.sleep(0.01)  # until it is dead, if not yet buried
    assert names(tmp_path) == [".a.lock"]
    began = time.monotonic()
    with claim(Outputs([tmp_path / "a"])):
        assert time.monotonic() - began < 1
    holder.wait()
    assert names(tmp_path) == []


def marker(**changes: object) -> str:
    """What stands in the marker of this process."""
    return json.dumps({**locks._machine(), **locks._process(os.getpid()), **changes})


@pytest.mark.parametrize("changes", [{"started": "1"}, {"process": 2**30}, {"process": 10**30}])
def test_a_process_with_the_number_of_a_dead_one_is_another(tmp_path, changes):
    (tmp_path / ".a.lock").write_text(marker(**changes))
    with claim(Outputs([tmp_path / "a"])):
        pass
    assert names(tmp_path) == []


ELSEWHERE = [
    *({"host": "node7"}, {"boot": "before"}, {"space": "container"}, {"process": "1"}),
    *("", "[" * 4000, "null", '{"process": 1'),
]


@pytest.mark.parametrize("holder", ELSEWHERE, ids=str)
def test_a_writer_elsewhere_that_shows_no_life_is_no_hindrance(
    tmp_path, holder, monkeypatch, capsys
):
    monkeypatch.setattr(locks, "WATCH", 0.3)
    monkeypatch.setattr(locks, "POLL", 0.05)
    text = marker(**holder) if isinstance(holder, dict) else holder
    (tmp_path / ".a.lock").write_text(text)
    with claim(Outputs([tmp_path / "a"])):
        pass
    assert names(tmp_path) == []
    (line,) = capsys.readouterr().err.splitlines()
    assert "a: may be in use by " in line


def test_a_writer_elsewhere_that_is_alive_is_respected(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(locks, "BEAT", 0.1)
    monkeypatch.setattr(locks, "WATCH", 30)
    monkeypatch.setattr(locks, "POLL", 0.05)
    place = tmp_path / ".a.lock"
    place.write_text(marker(host="node7"))
    ended = threading.Event()
    thread = threading.Thread(target=locks._renew, args=([place], ended))
    thread.start()
    began = time.monotonic()
    try:
        told = rf"a: is being written by process {os.getpid()} on node7; wait"
        with pytest.raises(InputError, match=told), claim(Outputs([tmp_path / "a"])):
            pass
    finally:
        ended.set()
        thread.join()
    assert time.monotonic() - began < 5
    assert names(tmp_path) == [".a.lock"]
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_marker_that_goes_away_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "POLL", 0.05)
    (tmp_path / ".a.lock").write_text(marker(host="node7"))
    threading.Timer(0.3, (tmp_path / ".a.lock").unlink).start()
    began = time.monotonic()
    with claim(Outputs([tmp_path / "a"])):
        assert time.monotonic() - began < 5


def race(target: Path, all_here: Any, won: Any) -> None:
    all_here.wait()
    try:
        with claim(Outputs([target])):
            won.put(True)
            all_here.wait()
    except InputError:
        won.put(False)
        all_here.wait()


@pytest.mark.parametrize("stale", [True, False])
def test_of_many_at_once_one_writes(tmp_path, stale):
    """Also with a stale lock."""
    if stale:
        (tmp_path / ".a.lock").write_text(marker(started="1"))
    context = multiprocessing.get_context("spawn")
    won, all_here = context.Queue(), context.Barrier(6)
    arguments = (tmp_path / "a", all_here, won)
    racers = [context.Process(target=race, args=arguments) for _ in range(6)]
    for racer in racers:
        racer.start()
    results = [won.get(timeout=60) for _ in racers]
    for racer in racers:
        racer.join()
    assert sum(results) == 1
    assert names(tmp_path) == []


def test_two_command_lines_into_one_output(tmp_path):
    """The second is refused before it reads anything; the first is not affected."""
    fasta = tmp_path / "in.fasta"
    fasta.write_text(">a\nMKV\n")
    python = [sys.executable, "-m", "esm_pipeline"]
    for task, out in (("fold", "folded"), ("embed", "a.h5")):
        options = ["--model=demo", "--quiet", "--threads=1", "--device=cpu"]
        command = [*python, task, *options, "-", str(tmp_path / out)]
        first = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while not list(tmp_path.rglob(".*.lock")):
            assert first.poll() is None
            time.sleep(0.05)
        missing = [*command[:-2], str(tmp_path / "missing.fasta"), str(tmp_path / out)]
        second = subprocess.run(missing, capture_output=True, text=True)
        assert (second.returncode, second.stderr.count("\n")) == (2, 1)
        assert f"is being written by process {first.pid} on " in second.stderr
        assert first.communicate(">a\nMKV\n") == (None, "")
        assert first.returncode == 0
        assert (tmp_path / out).exists()
        assert list(tmp_path.rglob(".*")) == []


# What cannot be written is told before anything is done.


def structures(folder: Path) -> tuple[list[str], Path]:
    """A command with several outputs, and its folder."""
    arrays = write_result(folder / "arrays.h5", "structures")
    records = write_outcomes(folder / "records.tsv", "fold")
    out = folder / "out"
    out.mkdir()
    return ["structures", "--quiet", f"--records={records}", str(arrays), str(out)], out


def link_to_folder(out: Path, name: str) -> None:
    (out.parent / "elsewhere").mkdir()
    (out / name).symlink_to("../elsewhere")


def link_to_nothing(out: Path, name: str) -> None:
    (out / name).symlink_to("../elsewhere")


@pytest.mark.parametrize("name", ["structures", "pae"])
@pytest.mark.parametrize("make", [link_to_folder, link_to_nothing])
def test_a_folder_that_is_a_link_stays_one(tmp_path, name, make):
    command, out = structures(tmp_path)
    make(out, name)
    for _ in range(2):
        assert main([*command, "--pae=json"]) == 0
        assert (out / name).is_symlink()
        assert names(tmp_path / "elsewhere") == ["00000"]
        assert names(out) == [
            *("chain_pairs.tsv", "flags.tsv", "pae"),
            *("structures", "structures.parquet", "structures.sha256", "structures.tsv"),
        ]


def file_there(out: Path, name: str) -> None:
    (out / name).write_text("mine")


def link_to_file(out: Path, name: str) -> None:
    (out.parent / "file").write_text("mine")
    (out / name).symlink_to("../file")


def folder_there(out: Path, name: str) -> None:
    (out / name).mkdir()


BAD = [
    *((name, make) for name in ("structures", "pae") for make in (file_there, link_to_file)),
    ("structures.tsv", folder_there),
    ("structures.tsv", link_to_folder),
]


@pytest.mark.parametrize(("name", "make"), BAD)
def test_an_output_of_another_kind_is_reported_before_anything_is_read(
    tmp_path, name, make: Callable[[Path, str], None], capsys
):
    """Also by `fold`, before its model is looked for."""
    command, out = structures(tmp_path)
    make(out, name)
    (tmp_path / "arrays.h5").write_text("never read")
    before = sorted(map(str, tmp_path.rglob("*")))
    fold = ["fold", "--model=/nowhere", str(tmp_path / "missing.fasta"), str(out)]
    for one in (command, fold):
        assert main(one) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{out / name}: " in line
        assert "choose another place" in line
    assert sorted(map(str, tmp_path.rglob("*"))) == before


def places(tmp_path: Path) -> dict[str, list[str]]:
    """Commands that ask for a place which cannot be: below a file."""
    below = str(tmp_path / "file" / "x")
    fasta, model = str(tmp_path / "missing.fasta"), "--model=/nowhere"
    h5 = str(tmp_path / "missing.h5")
    return {
        "embed": ["embed", model, fasta, f"{below}.h5"],
        "embed sha256": ["embed", model, f"--sha256={below}", fasta, str(tmp_path / "o.h5")],
        "fold": ["fold", model, fasta, below],
        "classify": ["classify", model, fasta, f"{below}.tsv"],
        "classify provenance": [
            *("classify", model, f"--provenance={below}"),
            *(fasta, str(tmp_path / "o.tsv")),
        ],
        "score plots": [
            *("score", model, "--saturation", "--plots", str(tmp_path / "file")),
            *(fasta, str(tmp_path / "o.h5")),
        ],
        "heatmaps": ["heatmaps", h5, str(tmp_path / "file")],
        "classes": ["classes", h5, f"{below}.tsv"],
        "shard": ["shard", "--bundles=1", f"--out={below}", fasta],
        "shard inputs": [
            *("shard", "--bundles=1", f"--out={tmp_path / 'o'}", f"--inputs={below}"),
            fasta,
        ],
        "verdict": ["verdict", f"--out={below}", str(tmp_path / "missing.tsv")],
        "report": ["report", f"--out={below}", str(tmp_path / "missing")],
        "provenance": ["provenance", f"--out={below}", "--settings={}"],
        "download": ["download", "--model=/nowhere", f"--out={below}"],
    }


@pytest.mark.parametrize("which", places(Path()))
def test_a_place_that_cannot_be_is_reported_first(tmp_path, which, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(places(tmp_path)[which]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path}/file" in line
    assert "missing" not in line
    assert "nowhere" not in line
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_a_folder_that_may_not_be_written_is_reported_first(tmp_path):
    (tmp_path / "shut").mkdir(mode=0o755)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    out = tmp_path / "shut" / "out.h5"
    with Forked() as forked:
        ended = forked.main("embed", "--model=/nowhere", "missing.fasta", out, user=65534)
    assert (ended.code, len(ended.lines)) == (2, 1)
    assert f"{out}: permission denied" in ended.said


@pytest.mark.parametrize("ending", [".h5", ".hdf5", ".tsv"])
@pytest.mark.parametrize("task", ["embed", "classify"])
def test_the_table_of_records_is_claimed_by_the_name_that_it_gets(tmp_path, task, ending):
    module = module_of(task)
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    args = parser.parse_args(["--model=demo", "in.fasta", str(tmp_path / f"out{ending}")])
    claimed = {path.name for path in module.outputs(args).files if path}
    assert claimed == {f"out{ending}", "out.records.tsv"}


def test_a_folder_that_was_not_empty_when_the_work_ended_goes_with_the_process(tmp_path):
    """A signal has temporary files removed after that."""
    folder = tmp_path / "a"

    def stopped() -> None:
        with claim(Outputs([folder / "x"])):
            (folder / ".x.temporary").touch()
            sys.exit(1)

    with pytest.raises(SystemExit):
        stopped()
    (folder / ".x.temporary").unlink()
    locks.release_all()
    assert not folder.exists()
