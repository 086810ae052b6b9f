"""On a file system without flock everything works, and no good file is reported as damaged."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import COMMANDS, contents, embed, gather, make_sample, shard
from tests.forked import Ended, Forked
from tests.results import write_outcomes, write_result

FASTA = ">a\nMKTAYIAKQRQISFVKSHFSRQ\n>bad\nMK1\n>b\nGAVLIW\n>again\nGAVLIW\n>c\nACDEFGHIK\n"
ERRORS = [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS]


@pytest.fixture(scope="module")
def forked() -> Iterator[Forked]:
    with Forked() as forked:
        yield forked


@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
def test_from_fasta_to_results(forked: Forked, tmp_path: Path, number: int) -> None:
    sample = make_sample(forked, tmp_path / "usual", FASTA, 2)
    for make in COMMANDS:
        out, usual = tmp_path / make.__name__, tmp_path / f"usual {make.__name__}"
        for folder, accident in ((usual, {}), (out, {"flock": number})):
            folder.mkdir()
            assert forked.main(*make(sample, folder), **accident) == Ended(0, "")
        assert contents(out) == contents(usual)
    assert {shard, embed, gather} < {*COMMANDS}


@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
def test_what_reads_results(forked: Forked, tmp_path: Path, number: int) -> None:
    kinds = ("saturation", "structures", "classes", "residue_classes")
    paths = {kind: write_result(tmp_path / f"{kind}.h5", kind) for kind in kinds}
    records = write_outcomes(tmp_path / "records.tsv", "fold")
    out = tmp_path / "out"
    commands = [
        ("heatmaps", "--quiet", paths["saturation"], out / "png"),
        ("structures", "--quiet", f"--records={records}", paths["structures"], out),
        ("classes", paths["classes"], out / "a.tsv"),
        ("classes", paths["residue_classes"], out / "b.tsv"),
    ]
    for command in commands:
        assert forked.main(*command, flock=number) == Ended(0, "")
