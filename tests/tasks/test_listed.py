"""What one command writes and another reads: a change on the way is told, with what to remove."""

from __future__ import annotations

import subprocess

import pytest

from tests.tasks.run.test_aggregate import (
    TABLE,
    embed,
    gather_command,
    replace,
    run,
    shard,
    table_command,
)


@pytest.fixture
def gathered(rotary, tmp_path):
    """A bundle, embedded in three ranges and gathered."""
    shard(tmp_path)
    embed(tmp_path, rotary, 3)
    assert run(*gather_command(tmp_path, 3), "--quiet") == 0
    return tmp_path


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        (TABLE, "\tmiddle\t", "\tmiddlE\t"),
    ],
)
def test_what_was_changed_on_the_way_is_no_result(gathered, esm, name, old, new):
    """An id, in a table that is whole in all else."""
    replace(name, old, new)(gathered)
    code, lines = esm(*table_command(gathered))
    assert (code, len(lines)) == (2, 1)
    told = "damaged, its digest is not that in digests.sha256; remove it and run the workflow again"
    assert f"{gathered / name}: {told}" in lines[0]
    assert not (gathered / "records.tsv").exists()


def test_a_bundle_that_was_changed_is_told_before_it_is_computed(rotary, tmp_path, esm):
    shard(tmp_path)
    replace("bundles/00000.fasta", "GAV", "GAA")(tmp_path)
    fasta = tmp_path / "bundles" / "00000.fasta"
    code, lines = esm("embed", "--model", rotary, fasta, tmp_path / "out.h5")
    assert (code, len(lines)) == (2, 1)
    assert f"{fasta}: damaged, its digest is not that in digests.sha256; remove it" in lines[0]
    assert not (tmp_path / "out.h5").exists()


def test_the_lists_are_those_of_sha256sum(gathered):
    for listing in ("bundles/digests.sha256", "embed/00000.sha256"):
        path = gathered / listing
        command = ["sha256sum", "--check", "--strict", path.name]
        told = subprocess.run(command, cwd=path.parent, capture_output=True, text=True)
        assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout == "00000.status.tsv: OK\n../embeddings.h5: OK\n"
