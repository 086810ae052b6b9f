"""What is released: a wheel that works where there is no clone, and says nothing of who made it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import esm_pipeline

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md")
PACKED = (
    "esm_pipeline/py.typed",
    "esm_pipeline/data/demo.fasta",
    "esm_pipeline/data/demo_model/config.json",
    "esm_pipeline/data/demo_model/model.safetensors",
    "esm_pipeline/data/demo_model/vocab.txt",
    "esm_pipeline/model/README.md",
)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist, and with the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("release")
    sources = folder / "sources"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("esm_pipeline", "tests"):
        shutil.copytree(ROOT / name, sources / name, ignore=ignored)
    for name in SOURCES:
        shutil.copy(ROOT / name, sources)
    pack = "import sys, setuptools.build_meta as backend; backend.build_sdist(sys.argv[1])"
    run([sys.executable, "-c", pack, folder], cwd=sources)
    (archive,) = folder.glob("*.tar.gz")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    run([*command, "--no-build-isolation", "--wheel-dir", folder, archive], cwd=folder)
    return folder


def run(command: list[object], cwd: Path) -> None:
    """Run a program, which has to succeed."""
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(released: Path) -> Path:
    (path,) = released.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel; its dependencies are those that run this test."""
    folder = tmp_path_factory.mktemp("elsewhere") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install"]
    flags = ["--quiet", "--no-deps", "--no-index", "--ignore-installed"]
    subprocess.run([*command, *flags, wheel], check=True)
    return folder


def said(installed: Path, folder: Path, *command: object) -> str:
    """What a program of the environment prints, in `folder`, without a trace of the clone."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    first, *rest = map(str, command)
    done = subprocess.run(
        [installed / "bin" / first, *rest], cwd=folder, env=kept, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_the_package_and_nothing_else(wheel, released):
    names = zipfile.ZipFile(wheel).namelist()
    assert {*PACKED} <= {*names}
    about = f"esm_pipeline-{esm_pipeline.__version__}.dist-info/"
    assert {name.partition("/")[0] + "/" for name in names} == {"esm_pipeline/", about}
    assert not [name for name in names if "test" in name or "__pycache__" in name]
    (archive,) = released.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        inside = {name.partition("/")[2] for name in packed.getnames()}
    assert {*PACKED, "pyproject.toml", "README.md", "LICENSE"} <= inside


def traces(wheel: Path) -> list[str]:
    """Files of a wheel with a path of this machine."""
    places = [
        os.fsencode(place) for place in (ROOT, Path.home(), wheel.parent) if place != Path("/")
    ]
    with zipfile.ZipFile(wheel) as packed:
        return [
            name
            for name in packed.namelist()
            if any(re.search(re.escape(place) + rb"\b", packed.read(name)) for place in places)
        ]


def test_the_wheel_names_no_path_of_this_machine(wheel, tmp_path):
    assert traces(wheel) == []
    other = shutil.copy(wheel, tmp_path / wheel.name)
    with zipfile.ZipFile(other, "a") as packed:
        packed.writestr("esm_pipeline/made_by.txt", f"made in {ROOT}/esm_pipeline")
    assert traces(other) == ["esm_pipeline/made_by.txt"]


WHERE = "import esm_pipeline; print(esm_pipeline.__file__); print(esm_pipeline.demo_sequences())"
READ = """
from esm_pipeline import open_results
with open_results("out.h5") as results:
    print(len(results), results.matrix().shape)
"""


def test_the_wheel_works_outside_of_the_clone(installed, tmp_path):
    assert said(installed, tmp_path, "esm-pipeline", "--version") == (
        f"esm-pipeline {esm_pipeline.__version__}\n"
    )
    module, fasta = said(installed, tmp_path, "python", "-c", WHERE).splitlines()
    assert Path(module).is_relative_to(installed)
    assert Path(fasta).is_relative_to(installed)
    few = Path(fasta).read_text().split(">")[1:4]
    (tmp_path / "few.fasta").write_text("".join(f">{one}" for one in few))
    command = ("embed", "--quiet", "--model=demo", "--threads=1", "few.fasta", "out.h5")
    assert said(installed, tmp_path, "esm-pipeline", *command) == ""
    assert said(installed, tmp_path, "python", "-c", READ) == "3 (3, 192)\n"
    said(installed, tmp_path, "esm-pipeline", "export", "--quiet", "out.h5", "out.parquet")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"few.fasta", "out.h5", "out.records.tsv", "out.parquet"}


def test_the_newest_version_of_the_changelog_is_this_one():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", text, re.MULTILINE)[0] == esm_pipeline.__version__


def test_the_versions_of_python_that_are_named_are_allowed():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    named = re.findall(r'Python :: 3\.(\d+)"', text)
    (least,) = re.findall(r'requires-python = ">=3\.(\d+)"', text)
    assert [int(one) for one in named] == [*range(int(least), int(named[-1]) + 1)]
