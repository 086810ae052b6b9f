"""A clone in a folder with an odd name: `make` and the workflow work, or explain why not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.workflow.test_run import copy_of_the_project
from tests.workflow.tools import ROOT, config, snakemake, write_fasta

ODD = 'esm_pipeline it\'s "odd" a=b é [1] 100% #2 $HOME `id` <3> & ;*'
"""Characters that Python, make, the shell or Snakemake would interpret if unquoted."""

FILES = ("Makefile", "pyproject.toml", "requirements.lock", "requirements-test.lock")
FILES += ("requirements-torch.txt", "tests/conftest.py", "tests/structure/test_residues.py")


def clone(folder: Path) -> Path:
    """A copy in `folder` of what `make` and the workflow need."""
    copy_of_the_project(folder)
    for name in FILES:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def install(folder: Path) -> None:
    """A virtual environment as `make` leaves it, with the packages that run this test."""
    venv.create(folder / ".venv", symlinks=True)
    (packages,) = (folder / ".venv" / "lib").glob("python*/site-packages")
    (packages / "these.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    for stamp in (".workflow", ".test"):
        (folder / ".venv" / stamp).touch()


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `make` as a newcomer would, without the environment that runs this test."""
    kept = {name: os.environ[name] for name in ("HOME", "TMPDIR") if name in os.environ}
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "OMP_NUM_THREADS": "1", **kept},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=3600,
    )


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = clone(tmp_path_factory.mktemp("odd") / ODD / "esm_pipeline")
    install(folder)
    return folder


def test_make_demo(odd: Path) -> None:
    """With two short proteins."""
    write_fasta(odd / "a.fasta", {b"a": b"MKV", b"b": b"MKVLA"})
    (odd / "config" / "config.yaml").write_text("fasta: a.fasta\nshards: 1\n")
    done = make(odd, "demo", "CORES=2")
    assert done.returncode == 0, done.stdout
    assert "results/a/embeddings.h5: 2 proteins, 2 different sequences" in done.stdout
    assert "results/a/structures.tsv: 2 proteins folded, to show the files." in done.stdout


def test_make_test(odd: Path) -> None:
    """A few tests, without linting, in a process of their own."""
    done = make(odd, "test", "--old-file=lint", "TEST_FLAGS=-n 1 tests/structure/test_residues.py")
    assert done.returncode == 0, done.stdout
    assert " passed in " in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("name", ["a:b", "a{b", "a}b", "a$b"])
def test_a_place_that_cannot_be_used_is_a_one_line_error(tmp_path, model, name) -> None:
    folder = clone(tmp_path / name / "esm_pipeline")
    made = make(folder, "demo")
    assert made.returncode == 2
    message, end = made.stdout.splitlines()
    assert message.startswith(f"{folder}: Python and Snakemake cannot be set up with : {{ }} $ or ")
    assert end.startswith("make: *** ")
    if name == "a$b":  # only setuptools takes it for something
        return
    write_fasta(folder / "a.fasta")
    run = snakemake(tmp_path, "-n", *config(model), snakefile=folder / "Snakefile")
    assert run.code == 1
    assert f"{folder}: the path of this workflow contains {name[1]}, which PYTHONPATH" in run.said
    assert "Traceback" not in run.said
