"""Digests of inputs: a changed input is reported, an unchanged one is not read again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from esm_pipeline.errors import InputError
from esm_pipeline.formats import input_checksums as inputs
from esm_pipeline.formats.checksums import sha256


@pytest.fixture
def listed(tmp_path, monkeypatch) -> Path:
    """The list of two files, one of them a link, that were read some time ago."""
    monkeypatch.chdir(tmp_path)
    Path("a").write_text(">a\nMKV\n")
    Path("target").write_text(">b\nMKV\n")
    Path("b").symlink_to("target")
    files = ["a", "b"]
    digests = [sha256(Path(name)) for name in files]
    inputs.write_inputs(Path("inputs.sha256"), files, digests, inputs.states(files))
    return Path("inputs.sha256")


def later(listing: Path) -> None:
    """Make the list newer than all files in it, as if some time had passed."""
    past = os.stat(listing).st_mtime_ns + inputs.MARGIN + 10**10
    os.utime(listing, ns=(past, past))


def test_what_is_as_it_was_is_not_read_again(listed, monkeypatch):
    later(listed)
    monkeypatch.setattr(inputs, "sha256", None)
    inputs.require_unchanged([listed])


def test_a_change_is_reported_though_the_list_was_touched_after_it(listed):
    """Snakemake touches what a job has written when it ends."""
    change("a")
    touched = os.stat(listed).st_mtime_ns + 10**9
    os.utime(listed, ns=(touched, touched))
    with pytest.raises(InputError, match=r"^a: has changed since the workflow read it"):
        inputs.require_unchanged([listed])


def test_what_may_have_changed_is_read(listed):
    os.utime("a")
    inputs.require_unchanged([listed, listed])


def change(name: str) -> None:
    Path(name).write_text(">a\nMKI\n")


def keep_the_time(name: str) -> None:
    facts = os.stat(name)
    change(name)
    os.utime(name, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def replace(name: str) -> None:
    change("older")
    os.utime("older", (0, 0))
    os.replace("older", name)


def point_elsewhere(name: str) -> None:
    change("other")
    os.utime("other", (0, 0))
    os.unlink("b")
    os.symlink("other", "b")


@pytest.mark.parametrize(
    ("how", "name"),
    [
        (change, "a"),
        (keep_the_time, "a"),
        (replace, "a"),
        (change, "target"),
        (point_elsewhere, "b"),
    ],
)
def test_what_changed_is_reported(listed, how, name):
    how(name)
    told = rf"^{'a' if name == 'a' else 'b'}: has changed since the workflow read it; remove inputs"
    with pytest.raises(InputError, match=told):
        inputs.require_unchanged([listed])


def test_what_went_away_is_reported(listed):
    Path("a").unlink()
    with pytest.raises(InputError, match=r"^a: cannot be read any more \(No such file"):
        inputs.require_unchanged([listed])


def test_what_changes_while_it_is_read_is_reported(listed):
    before = inputs.states(["a"])
    keep_the_time("a")
    with pytest.raises(InputError, match=r"^a: was changed while it was read; run again"):
        inputs.write_inputs(Path("new.sha256"), ["a"], ["0" * 64], before)
    assert not Path("new.sha256").exists()


def test_standard_input_does_not_change(listed):
    inputs.write_inputs(Path("new.sha256"), ["-"], ["0" * 64], inputs.states(["-"]))
    assert Path("new.sha256").read_text() == f"{'0' * 64}  -\n"
