"""`atomic_path`: whole or not at all; links stay; what killed processes left is removed."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from esm_pipeline.errors import InputError
from esm_pipeline.files import (
    atomic_path,
    atomic_paths,
    naming_errors,
    remove_leftovers,
    require_apart,
    shared_path,
)

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


def test_files_that_belong_together_are_replaced_together(tmp_path):
    targets = [tmp_path / name for name in ("a", "b", "c")]
    for content in ("old", "new"):
        with atomic_paths(*targets) as paths:
            for path in paths:
                path.write_text(content)
                assert [target.exists() for target in targets] == [content == "new"] * 3
        assert [target.read_text() for target in targets] == [content] * 3
    with pytest.raises(TypeError), atomic_paths(*targets) as paths:
        paths[0].write_text(1)
    assert [target.read_text() for target in targets] == ["new"] * 3
    assert names(tmp_path) == ["a", "b", "c"]


def test_what_vouches_for_others_goes_first_and_comes_last(tmp_path, monkeypatch):
    targets = [tmp_path / name for name in ("a", "b", "c")]
    steps = []
    for name in ("unlink", "replace"):
        whole = getattr(os, name)

        def step(*paths, name=name, whole=whole):
            steps.append((name, os.path.basename(paths[-1])))
            whole(*paths)

        monkeypatch.setattr(os, name, step)
    with atomic_paths(*targets):
        pass
    removed = [("unlink", "c"), ("unlink", "b")]
    assert steps == [*removed, ("replace", "a"), ("replace", "b"), ("replace", "c")]


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (lambda paths: OSError(errno.ENOSPC, "full"), "a"),
        (lambda paths: OSError(errno.ENOSPC, "full", os.fspath(paths[1])), "b"),
        (lambda paths: OSError(errno.ENOSPC, "full", "elsewhere"), "elsewhere"),
        (lambda paths: OSError(errno.ECONNREFUSED, "not of a disk"), None),
    ],
)
def test_an_error_names_what_was_to_be_written(tmp_path, error, named):
    with (
        pytest.raises(OSError, match=r"full|disk") as raised,
        atomic_paths(tmp_path / "a", tmp_path / "b") as paths,
    ):
        raise error(paths)
    place = raised.value.filename
    assert (place and os.path.basename(place)) == named
    assert names(tmp_path) == []


def test_a_write_that_fails_names_the_place_it_was_for(tmp_path):
    with pytest.raises(OSError, match="full") as raised, naming_errors(tmp_path):
        raise OSError(errno.ENOSPC, "full")
    assert raised.value.filename == str(tmp_path)


def test_a_target_that_became_a_folder_is_named(tmp_path):
    with pytest.raises(IsADirectoryError) as raised, atomic_path(tmp_path / "a"):
        (tmp_path / "a").mkdir()
    assert raised.value.filename2 == str(tmp_path / "a") == raised.value.filename
    assert names(tmp_path) == ["a"]


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


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("a/b.fasta", "a/b.fasta"),
        ("../a", "../a"),
        ("facebook/esm2_t6_8M_UR50D", "facebook/esm2_t6_8M_UR50D"),
        ("~/model", "~/model"),
        ("{here}/a/b.fasta", "a/b.fasta"),
        ("{here}/a/../b", "b"),
        ("{here}", "."),
        ("{here}..more/b", "b"),
        ("{here}/..more/b", "..more/b"),
        ("/data/anna/models/esm2/", "esm2"),
    ],
)
def test_a_path_in_results_names_no_folder_of_the_machine(tmp_path, monkeypatch, path, shown):
    monkeypatch.chdir(tmp_path)
    assert shared_path(path.format(here=tmp_path)) == shown


def test_every_output_is_compared_with_every_input(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    with pytest.raises(InputError, match="b: is given for two files"):
        require_apart([first, second], iter([second]))
    require_apart([first, second], iter([tmp_path / "c"]))
