"""A signal ends a command within seconds, at any point, and nothing is left of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from esm_pipeline.formats.records import Record, write_records
from esm_pipeline.formats.results.layout import Array, RecordRow
from esm_pipeline.formats.results.writer import RaggedWriter
from tests.folded import made_up, write_arrays

SIGNALS = ["SIGTERM", "SIGINT", "SIGHUP"]
SOON = 5  # seconds; a cluster kills after 30
COUNT = 4_000
HOLDING = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from esm_pipeline.files import atomic_folder, atomic_path, scratch_folder
from esm_pipeline.interruption import obeying_signals
from esm_pipeline.locks import Outputs, claim

folder = Path(sys.argv[1])
with obeying_signals(ends=True), claim(Outputs([folder / "a"])), atomic_path(folder / "a") as path:
    with atomic_folder(folder / "b") as made, ThreadPoolExecutor(1) as pool:
        (made / "x").write_text("x")
        pool.submit(time.sleep, 60)
        print(scratch_folder(), flush=True)
        time.sleep(60)
"""


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough structures to write for half a minute, and their records."""
    folder = tmp_path_factory.mktemp("arrays")
    entries = [RecordRow(f"r{place}", place, place) for place in range(COUNT)]
    write_arrays(folder / "a.h5", [made_up("MKVLAAGIVGLCTRWEDNQSPHFY" * 3)] * COUNT, entries)
    records = [Record(place, f"r{place}", f"r{place}", 72, "", "ok") for place in range(COUNT)]
    records = [one.with_outcome("fold", "ok") for one in records]
    write_records(folder / "records.tsv", records, ["fold"])
    return folder


def children(number: int) -> list[int]:
    """Processes that a process has started."""
    found = Path(f"/proc/{number}/task/{number}/children").read_text().split()
    return [int(one) for one in found]


def is_there(number: int) -> bool:
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until(true, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.02)


def as_in_a_terminal() -> None:
    """Obey signals: a job in the background is started without."""
    for name in SIGNALS:
        signal.signal(getattr(signal, name), signal.SIG_DFL)


def start(
    arrays: Path,
    out: Path,
    processes: int,
    *before: str,
    flags: Sequence[str] = (),
    begun: str = ".structures.*/*/*",
) -> subprocess.Popen[str]:
    """The command `structures`, after it has begun to write files."""
    command = [*before, sys.executable, "-m", "esm_pipeline", "structures", "--quiet"]
    options = [f"--threads={processes}", f"--records={arrays / 'records.tsv'}", *flags]
    process = subprocess.Popen(
        [*command, *options, arrays / "a.h5", out],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=as_in_a_terminal,
    )
    wait_until(lambda: list(out.glob(begun)) or process.poll() is not None)
    assert process.poll() is None
    return process


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("name", SIGNALS)
def test_structures_obeys_soon_and_leaves_nothing(arrays, tmp_path, name, processes):
    out = tmp_path / "out"
    process = start(arrays, out, processes)
    started = children(process.pid)
    assert len(started) == (2 if processes > 1 else 0)
    began = time.monotonic()
    process.send_signal(getattr(signal, name))
    said = process.communicate(timeout=60)[1]
    assert time.monotonic() - began < SOON
    assert process.returncode == 128 + getattr(signal, name)
    assert said.count("\n") <= 1
    assert not any(map(is_there, started))
    assert not out.exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_archives_and_databases_that_are_interrupted_leave_nothing(arrays, tmp_path, processes):
    pytest.importorskip("foldcomp", reason="no foldcomp here")
    flags = ("--archive=true", "--formats=pdb,foldcomp")
    process = start(
        arrays, tmp_path / "out", processes, flags=flags, begun=".structures.*/.00000.tar"
    )
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert said.count("\n") <= 1
    assert not (tmp_path / "out").exists()


def test_structures_obeys_when_all_its_processes_get_the_signal(arrays, tmp_path):
    """As from a terminal, or from a scheduler: one line, and no more."""
    out = tmp_path / "out"
    process = start(arrays, out, 2, "setsid")
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=SOON)[1]
    assert (process.returncode, said) == (130, "esm-pipeline structures: interrupted\n")
    assert not out.exists()


def test_a_killed_structures_leaves_no_process(arrays, tmp_path):
    process = start(arrays, tmp_path / "out", 2)
    started = children(process.pid)
    process.kill()
    process.communicate()
    wait_until(lambda: not any(map(is_there, started)), SOON)


def test_a_killed_process_of_structures_is_one_line(arrays, tmp_path):
    """As the kernel kills one when memory runs out."""
    process = start(arrays, tmp_path / "out", 2)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    said = process.communicate(timeout=60)[1]
    assert (process.returncode, said.count("\n")) == (2, 1)
    assert (
        "a process that wrote structures was killed, as happens when memory runs out; lower "
        "--threads" in said
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("output", ["per-protein.h5", "a.tsv"])
def test_export_obeys_soon_and_leaves_nothing(tmp_path, name, output):
    """Its numbers are written in a thread, which stops after a block."""
    count, width, source = 60_000, 64, tmp_path / "a.h5"
    entries = [RecordRow(f"r{place}", place, place) for place in range(count)]
    told = {"format": "esm-pipeline/embeddings", "model": "m", "software": "{}"}
    array = Array("mean/1", "sequence", (width,), "<f4")
    with RaggedWriter(source, [array], np.ones(count, int), count, entries, told) as writer:
        writer.write(array.name, np.arange(count), np.ones((count, width), "f4"))
    process = subprocess.Popen(
        [sys.executable, "-m", "esm_pipeline", "export", "--quiet", source, tmp_path / output],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=as_in_a_terminal,
    )

    def is_writing() -> bool:
        made = [*tmp_path.glob(f".{output}.*-*")]
        return process.poll() is not None or (bool(made) and made[0].stat().st_size > 100_000)

    wait_until(is_writing)
    began = time.monotonic()
    process.send_signal(getattr(signal, name))
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + getattr(signal, name)
    assert time.monotonic() - began < SOON
    assert said.count("\n") <= 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


@pytest.mark.parametrize("name", SIGNALS)
def test_what_does_not_stop_by_itself_is_ended(tmp_path, name):
    """As a pool that waits for its batch, or a kernel that takes minutes."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=as_in_a_terminal,
    )
    assert process.stdout
    scratch = Path(process.stdout.readline().strip())
    assert scratch.is_dir()
    assert len(list(tmp_path.iterdir())) == 4
    began = time.monotonic()
    process.send_signal(getattr(signal, name))
    said = process.communicate(timeout=60)[1]
    assert 1 < time.monotonic() - began < SOON
    assert process.returncode == 128 + getattr(signal, name)
    assert said == f"esm-pipeline: ended by {name}\n"
    assert list(tmp_path.iterdir()) == []
    assert not scratch.exists()


def test_under_nohup_a_lost_terminal_ends_nothing(arrays, tmp_path):
    process = start(arrays, tmp_path / "out", 2, "nohup")
    process.send_signal(signal.SIGHUP)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=SOON)
    assert process.returncode == 143


IMPORTING = """
import signal, sys
from importlib.abc import MetaPathFinder

class Finder(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == interrupted:
            signal.raise_signal(signal.SIGINT)

interrupted, sys.argv = sys.argv[1], ["esm-pipeline", "structures", "--help"]
sys.meta_path.insert(0, Finder())
from esm_pipeline.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    "name", ["esm_pipeline.cli", "pydantic", "esm_pipeline.tasks.fold.structures", "h5py", "numpy"]
)
def test_interrupted_while_it_imports(name):
    done = subprocess.run(
        [sys.executable, "-c", IMPORTING, name],
        capture_output=True,
        text=True,
        preexec_fn=as_in_a_terminal,
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "esm-pipeline: interrupted\n"


def test_the_program_is_the_module():
    told = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert told["project"]["scripts"] == {"esm-pipeline": "esm_pipeline.__main__:main"}


def test_more_signals_do_not_keep_it_from_cleaning_up(arrays, tmp_path):
    out = tmp_path / "out"
    process = start(arrays, out, 2)
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.02)
    process.communicate()
    assert process.returncode in (143, -signal.SIGTERM)  # the latter when all was done
    assert not out.exists()


DROPPING = """
import sys, time
from pathlib import Path
from esm_pipeline.interruption import obeying_signals

class Freed:
    def __del__(self):
        print("here", flush=True)
        time.sleep(0.5)

with obeying_signals(ends=True):
    try:
        one = Freed()
        del one
        time.sleep(60)
    finally:
        time.sleep(1.2)
        Path(sys.argv[1]).touch()
"""


@pytest.mark.parametrize("name", SIGNALS)
def test_what_is_dropped_is_raised_again_and_cleaning_up_is_left_alone(tmp_path, name):
    """Python drops what is raised while it frees an object, and says so."""
    process = subprocess.Popen(
        [sys.executable, "-c", DROPPING, tmp_path / "cleaned"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=as_in_a_terminal,
    )
    assert process.stdout.readline() == "here\n"
    process.send_signal(getattr(signal, name))
    said = process.communicate(timeout=60)[1]
    assert (tmp_path / "cleaned").exists()
    assert "ignored" not in said
    assert "ended by" not in said
    if name != "SIGINT":  # whose exception a command tells itself
        assert (process.returncode, said) == (128 + getattr(signal, name), "")
