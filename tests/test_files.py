"""`atomic_path`: whole or not at all; links stay; what killed processes left is removed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from esm_pipeline.errors import InputError
from esm_pipeline.files import atomic_path, remove_leftovers

KILLED = """
import os, signal, sys
from esm_pipeline.files import atomic_path
with atomic_path(sys.argv[1]) as outer, atomic_path(outer) as inner:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def write(target: Path, text: str = "new") -> None:
    with atomic_path(target) as path:
        path.write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def kill_a_writer_of(target: Path) -> list[str]:
    """Names of the two temporary files that it leaves."""
    before = set(names(target.parent))
    subprocess.run([sys.executable, "-c", KILLED, target], check=False)
    return sorted(set(names(target.parent)) - before)


def test_an_error_leaves_all_as_it_was(tmp_path):
    write(tmp_path / "a", "old")
    with pytest.raises(TypeError):
        write(tmp_path / "a", 1)
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("fifo")
    (tmp_path / "null").symlink_to("/dev/null")
    before = names(tmp_path)
    for name in before:
        with pytest.raises(InputError, match=f"{name}: not a regular file; choose another place"):
            write(tmp_path / name)
    assert names(tmp_path) == before
    assert (tmp_path / "fifo").is_fifo()


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_is_written_through(tmp_path, there):
    target = tmp_path / "elsewhere" / "a"
    if there:
        write(target, "old")
    (tmp_path / "link").symlink_to("elsewhere/a")
    write(tmp_path / "link")
    assert os.readlink(tmp_path / "link") == "elsewhere/a"
    assert target.read_text() == "new"
    assert (names(tmp_path), names(target.parent)) == (["elsewhere", "link"], ["a"])


def test_a_link_to_itself_is_an_error_and_stays(tmp_path):
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(OSError, match="symbolic links"):
        write(tmp_path / "link")
    assert names(tmp_path) == ["link"]


@pytest.mark.parametrize("name", ["out.h5", "é" * 120, "x" * 255])
def test_what_a_killed_process_left_is_removed(tmp_path, name):
    left = kill_a_writer_of(tmp_path / name)
    assert len(left) == 2
    write(tmp_path / "other")
    assert names(tmp_path) == sorted([*left, "other"])
    write(tmp_path / name)
    assert names(tmp_path) == sorted(["other", name])


def test_others_and_living_processes_keep_theirs(tmp_path):
    host, dead = socket.gethostname(), subprocess.Popen(["true"])
    dead.wait()
    kept = [
        f".a.{host}-{os.getpid()}.abcdefgh",
        f".a.{host}-1.abcdefgh",
        f".a.other{host}-{dead.pid}.abcdefgh",
        f".b.{host}-{dead.pid}.abcdefgh",
        f".a.b.{host}-{dead.pid}.abcdefgh",
        f"a.{host}-{dead.pid}.abcdefgh",
        f".a.{host}-{dead.pid}.txt",
    ]
    for name in kept:
        (tmp_path / name).touch()
    (tmp_path / f".a.{host}-{dead.pid}.abcdefgh").touch()
    write(tmp_path / "a")
    assert names(tmp_path) == sorted([*kept, "a"])
    remove_leftovers(tmp_path)
    gone = [kept[3], kept[4]]
    assert names(tmp_path) == sorted({*kept, "a"} - {*gone})
