"""A command that is killed at any point leaves only complete and correct files.

The same command completes them afterwards.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import COMMANDS, Files, Sample, assert_whole, contents, make_sample
from tests.forked import Ended, Forked

NEW = ">a\nMKTAYIAKQRQISFVKSHFSRQ\n>bad\nMK1\n>b\nGAVLIW\n>again\nGAVLIW\n>c\nACDEFGHIK\n"
OLD = ">x\nWYVTSRQPNML\n>y\nKIHGFEDCA\n>z\nMMMM\n>gap\nM-M\n>v\nWWWWW\n>u\nGGGG\n"
BUNDLES = {NEW: 2, OLD: 3}


@pytest.fixture(scope="module")
def forked() -> Iterator[Forked]:
    with Forked() as forked:
        yield forked


@pytest.fixture(scope="module")
def samples(forked: Forked, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sample]:
    """What the new and the old results are of."""
    return {
        text: make_sample(forked, tmp_path_factory.mktemp("sample"), text, bundles)
        for text, bundles in BUNDLES.items()
    }


def finals(found: Files) -> Files:
    """Files under their final names."""
    return {name: data for name, data in found.items() if not name.startswith(".")}


def state(found: Files) -> tuple[object, ...]:
    """What a rerun can make a difference of: final files, and of which there are temporary ones."""
    temporary = sorted(name.split(".")[1] for name in found if name.startswith("."))
    return (*sorted(finals(found).items()), *temporary)


def kill_at_every_point(
    forked: Forked, samples: dict[str, Sample], tmp_path: Path, make, *, accident: str, over: bool
) -> list[Files]:
    """Kill one command at point 1, 2, … of an accident, until it ends by itself.

    Gives the different states that it left, each of which the same command completes.
    """
    runs = []
    for number, sample in enumerate(samples.values()):
        whole = tmp_path / f"whole{number}"
        whole.mkdir()
        assert forked.main(*make(sample, whole)) == Ended(0, "")
        runs.append(contents(whole))
    new, old = runs
    assert not any(name.startswith(".") for name in new | old)
    assert all(new[name] != old[name] for name in new.keys() & old.keys())
    left: dict[tuple[object, ...], Files] = {}
    for number in itertools.count(1):
        out = tmp_path / f"{accident}{number}"
        out.mkdir()
        for name, data in old.items() if over else ():
            (out / name).write_bytes(data)
        command = make(samples[NEW], out)
        ended = forked.main(*command, **{accident: number})
        if ended.code != -9:
            break
        found = contents(out)
        assert_whole(finals(found), [new, old] if over else [new], COMMANDS[make])
        if state(found) not in left:
            left[state(found)] = found
            assert forked.main(*command) == Ended(0, "")
            assert contents(out) == new
    assert ended == Ended(0, "")
    assert contents(out) == new
    return list(left.values())


every_command = pytest.mark.parametrize("make", COMMANDS, ids=lambda make: make.__name__)


@every_command
@pytest.mark.parametrize(
    "over",
    [pytest.param(False, marks=pytest.mark.long, id="fresh"), pytest.param(True, id="over old")],
)
def test_killed_before_any_change_of_the_disk(forked, samples, tmp_path, make, over):
    left = kill_at_every_point(forked, samples, tmp_path, make, accident="change", over=over)
    assert [found for found in left if finals(found) != found], "never killed while writing"
    files = {len(finals(found)) for found in left}
    assert len(files) > min(2, len(COMMANDS[make])), f"never killed between two moves: {files}"


@pytest.mark.long
@every_command
def test_killed_before_any_line(forked, samples, tmp_path, make):
    left = kill_at_every_point(forked, samples, tmp_path, make, accident="line", over=True)
    assert len(left) >= 3
