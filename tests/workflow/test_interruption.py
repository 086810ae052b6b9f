"""Snakemake and all its jobs, killed at many points: the same command continues the run."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.workflow.test_golden import NUMBER, contents, differences
from tests.workflow.test_run import copy_of_the_project
from tests.workflow.tools import SAMPLE, Run, config, snakemake, write_fasta

PAUSING = '''
import atexit, glob, os, sys, time

def pause():
    """Pause at the point `task:number:finished`, until the test kills all processes."""
    open("here", "w").close()
    time.sleep(600)

task, number, finished = os.environ.get("PAUSE", "none:0:0").split(":")
moved, move = [], os.replace

def replace(*paths):
    moved.append(paths)
    if len(moved) == int(number):
        pause()
    move(*paths)

if sys.argv[1] == task and len(glob.glob("results/*/embed/*/*.h5")) >= int(finished):
    os.replace = replace
    if number == "0":
        atexit.register(pause)
'''


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A copy of the project whose commands pause at chosen points."""
    clone = copy_of_the_project(tmp_path_factory.mktemp("clone") / "project")
    main = clone / "esm_pipeline" / "__main__.py"
    docstring, rest = main.read_text().split('"""\n', 1)
    main.write_text(f'{docstring}"""\n{PAUSING}{rest}')
    return clone


@dataclass
class Killed:
    """A sample whose workflow is killed several times, and the output of all runs."""

    folder: Path
    clone: Path
    arguments: list[str]
    said: str = ""

    def kill(self, pause: str, *more: str) -> None:
        """Run the workflow until it pauses, kill all its processes, and unlock the folder."""
        here = self.folder / "here"
        here.unlink(missing_ok=True)
        command = [sys.executable, "-m", "snakemake", "--snakefile", self.clone / "Snakefile"]
        with tempfile.TemporaryFile("w+") as said:
            process = subprocess.Popen(
                [*command, *more, *self.arguments],
                cwd=self.folder,
                env=os.environ | {"PAUSE": pause},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            while not here.exists() and process.poll() is None:
                time.sleep(0.05)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            said.seek(0)
            self.said += (output := said.read())
        assert here.exists(), output
        assert self.run("--unlock").code == 0

    def run(self, *more: str) -> Run:
        """Run the workflow with the same command and `more` arguments."""
        run = snakemake(self.folder, *more, *self.arguments, snakefile=self.clone / "Snakefile")
        self.said += run.said
        return run


@pytest.fixture
def killed(tmp_path, clone, model) -> Killed:
    write_fasta(tmp_path / "my proteins.fasta")
    _, _, *arguments = config(model)
    return Killed(tmp_path, clone, ["--cores", "1", *arguments])


def assert_same(run: Run, whole: Run) -> None:
    """Assert the same files with the same contents, except the times in one of them.

    Numbers computed with one thread are compared with those of two.
    """
    assert run.code == 0, run.said
    found, wanted = (
        {path.relative_to(one.results): path for path in one.results.rglob("*") if path.is_file()}
        for one in (run, whole)
    )
    assert found.keys() == wanted.keys()
    records, embeddings = (Path(SAMPLE) / name for name in ("records.tsv", "embeddings.h5"))
    assert found[records].read_bytes() == wanted[records].read_bytes()
    ours, theirs = contents(found[embeddings]), contents(wanted[embeddings])
    assert ours[0] == theirs[0]
    assert differences(ours[1], theirs[1]) == []
    report, other = (
        NUMBER.sub("#", one[Path("report.html")].read_text()) for one in (found, wanted)
    )
    assert report == other


def assert_asks_for_the_flag(killed: Killed) -> None:
    refused = killed.run("--dry-run")
    assert refused.code == 1
    assert "rerun your command with the --rerun-incomplete flag" in refused.said


def test_killed_again_and_again(killed, whole_run):
    """During the second of two jobs, and after one of the gathered files is in place.

    A job that was killed at work leaves no output in place, and the same command continues.
    """
    for pause in ("embed:1:1", "aggregate:2:2"):
        killed.kill(pause)
    assert_asks_for_the_flag(killed)
    assert_same(killed.run("--rerun-incomplete"), whole_run)
    started = re.findall(r"embed: range (\d)-of-2 of", killed.said)
    assert sorted(started) in (["1", "1", "2"], ["1", "2", "2"])


@pytest.mark.long
@pytest.mark.parametrize(
    "pauses",
    [
        ["shard:1:0", "shard:2:0", "shard:0:0", "embed:1:0", "embed:1:1", "embed:0:1"],
        ["aggregate:1:2", "aggregate:0:2"],
        ["provenance:0:0", "verdict:0:0"],
    ],
    ids=" ".join,
)
def test_killed_between_two_moves_and_after_the_last(killed, whole_run, pauses):
    for pause in pauses:
        killed.kill(pause, "--rerun-incomplete")
    assert_asks_for_the_flag(killed)
    assert_same(killed.run("--rerun-incomplete"), whole_run)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.fixture(scope="module")
def embedded(tmp_path_factory, model) -> Path:
    """A folder in which all ranges are embedded and none is gathered."""
    folder = tmp_path_factory.mktemp("embedded")
    write_fasta(folder / "my proteins.fasta")
    run = snakemake(folder, "--notemp", "--until", "embed", *config(model))
    assert run.code == 0, run.said
    return folder


def mend(folder: Path, line: str) -> None:
    """Do exactly what the message in `line` says, before the workflow is run again."""
    named = re.fullmatch(r"esm-pipeline aggregate: ([^:]+)(?::\d+)?: (.*)", line)
    remedy = re.search(r"; remove (\S+) and run the workflow again$", named[2])
    (folder / (named[1] if remedy[1] == "it" else remedy[1])).unlink()


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (flip, "2-of-2.h5"),
        pytest.param(cut, "2-of-2.h5", marks=pytest.mark.long),
        pytest.param(flip, "1-of-2.h5", marks=pytest.mark.long),
        pytest.param(Path.unlink, "1-of-2.h5", marks=pytest.mark.long),
    ],
)
def test_a_finished_job_whose_file_was_damaged(embedded, tmp_path, whole_run, model, damage, name):
    """The run names the file and the remedy, unless Snakemake sees what is missing."""
    folder, command = tmp_path / "copy", ["--until", "gather_embed", *config(model)]
    shutil.copytree(embedded, folder)
    damage(folder / "results" / SAMPLE / "embed" / "00000" / name)
    run = snakemake(folder, *command)
    if damage is not Path.unlink:
        assert run.code == 1
        (line,) = {line for line in run.said.splitlines() if line.startswith("esm-pipeline ")}
        assert name in line
        mend(folder, line)
        run = snakemake(folder, *command)
    assert run.code == 0, run.said
    gathered = Path(SAMPLE) / "embeddings.h5"
    assert (run.results / gathered).read_bytes() == (whole_run.results / gathered).read_bytes()
    assert re.findall(r"embed: range (\S+) of", run.said) == [name.removesuffix(".h5")]
