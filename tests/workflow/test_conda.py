"""`--use-conda`: the environment is built from its file, and every job runs in it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.workflow.tools import ROOT, config, snakemake, write_fasta

HERE = Path(__file__).parent


def run_with_conda(folder: Path, model: Path, path: str):
    write_fasta(folder / "a.fasta")
    arguments = [*config(model, "shards=1", fasta="a.fasta"), "--use-conda"]
    return snakemake(folder, *arguments, PATH=path)


def test_every_job_runs_in_the_environment(tmp_path, model):
    fake = shutil.copytree(HERE / "fake_conda", tmp_path / "conda")
    path = os.pathsep.join([str(fake / "bin"), str(Path(sys.executable).parent), "/usr/bin:/bin"])
    run = run_with_conda(tmp_path, model, path)
    assert run.code == 0, run.said
    (used,) = (tmp_path / ".snakemake" / "conda").glob("*/used")
    lines = used.read_text().splitlines()
    start = f"PYTHONPATH={ROOT} -P -m esm_pipeline "
    assert [line for line in lines if not line.startswith(start)] == []
    tasks = [line.removeprefix(start).split()[0] for line in lines]
    assert sorted(tasks) == sorted(
        [*["download"] * 2, "shard", "embed", *["aggregate"] * 2, "provenance", "report", "verdict"]
    )


def test_a_pin_that_cannot_be_met_is_an_error(tmp_path, model):
    clone = tmp_path / "clone"
    for name in ("workflow", "esm_pipeline", "envs"):
        shutil.copytree(ROOT / name, clone / name)
    shutil.copy(ROOT / "Snakefile", clone)
    file = clone / "envs" / "esm.yaml"
    file.write_text(file.read_text().replace("h5py==", "h5py==99."))
    fake = HERE / "fake_conda" / "bin"
    path = os.pathsep.join([str(fake), str(Path(sys.executable).parent), "/usr/bin:/bin"])
    write_fasta(tmp_path / "a.fasta")
    arguments = [*config(model, "shards=1", fasta="a.fasta"), "--use-conda"]
    run = snakemake(tmp_path, *arguments, snakefile=clone / "Snakefile", PATH=path)
    assert run.code == 1
    assert "h5py==99." in run.said


@pytest.mark.skipif(shutil.which("conda") is None, reason="no conda on the PATH")
def test_with_a_real_conda(tmp_path, model):
    run = run_with_conda(tmp_path, model, os.environ["PATH"])
    assert run.code == 0, run.said
