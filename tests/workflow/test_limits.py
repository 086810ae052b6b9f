"""`limits`: what is ample gives way; what a job needs is an error before it is submitted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.workflow.tools import config, job_counts, snakemake, write_fasta


def dry_run(folder: Path, model: Path, limits: str, *more: str):
    chosen = config(model, f"limits={{{limits}}}", *more, fasta="a.fasta")
    return snakemake(folder, "--dry-run", *chosen)


def test_a_small_input_fits_into_any_limits(tmp_path, model):
    write_fasta(tmp_path / "a.fasta")
    run = dry_run(tmp_path, model, "mem_mb: 800, runtime: 40")
    assert job_counts(run)["embed"] == 2


@pytest.mark.parametrize("limit", ["mem_mb: 1500", "runtime: 40"])
def test_an_input_that_needs_more_is_an_error_before_any_job(tmp_path, model, limit):
    write_fasta(tmp_path / "a.fasta")
    os.truncate(tmp_path / "a.fasta", 10**9)
    run = dry_run(tmp_path, model, limit)
    assert run.code == 1
    key, number = limit.split(": ")
    told = (
        f"more than limits.{key} ({int(number):,}); raise it, or make several samples of the input"
    )
    assert f"1,000 MB of input need {key} " in run.said
    assert told in run.said


def test_what_a_range_needs_is_an_error_before_its_job(tmp_path, model):
    """The bundle must be there: what its jobs need follows from it."""
    write_fasta(tmp_path / "a.fasta")
    ample = config(model, "limits={mem_mb: 900}", fasta="a.fasta")
    run = snakemake(tmp_path, "--until", "check_embed", "shard_a", *ample)
    assert run.code == 0, run.said
    run = snakemake(tmp_path, *config(model, "limits={mem_mb: 400}", fasta="a.fasta"))
    assert run.code == 1
    assert "more than limits.mem_mb (400); raise it, skip the longest sequences" in run.said
    assert not (run.results / "a" / "embed").exists()
