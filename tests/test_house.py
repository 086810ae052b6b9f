"""What is written in several places agrees: locks, environment, settings, documents, versions."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import esm_pipeline
from esm_pipeline.settings import json_schema, load_settings
from tests.reference_page import KEYS_PAGE, config_rows, read_tables

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DEPENDENCIES = [Requirement(line) for line in PROJECT["project"]["dependencies"]]
WORKFLOW = [Requirement(line) for line in PROJECT["project"]["optional-dependencies"]["workflow"]]
EXTRAS = {
    Requirement(line).name
    for extra, lines in PROJECT["project"]["optional-dependencies"].items()
    for line in lines
    if extra != "workflow"
}
"""Packages that a command asks for when it needs them."""

TEST = [Requirement(line) for line in PROJECT["dependency-groups"]["test"]]
TORCH_COMPANIONS = ("nvidia", "cuda", "triton")

MODULES = {"Bio": "biopython"}
"""Packages whose modules have other names."""

Pins = dict[str, set[str]]


def pins_of(lines: Iterable[str]) -> Pins:
    """Package -> pinned lines without their hashes; a package may have one for each Python."""
    pins: Pins = {}
    for line in lines:
        if "==" in line and not line.lstrip().startswith(("#", "--")):
            pin = re.sub(r"\s+", " ", line.strip().removesuffix("\\").strip())
            pins.setdefault(canonicalize_name(pin.split("==")[0]), set()).add(pin)
    return pins


def versions(pins: Iterable[str]) -> set[str]:
    """The pins without their markers."""
    return {pin.split(" ;")[0] for pin in pins}


def lock(name: str) -> Pins:
    return pins_of((ROOT / name).read_text().splitlines())


def environment() -> Pins:
    content = yaml.safe_load((ROOT / "envs/esm.yaml").read_text())
    assert [*content] == ["channels", "dependencies"]
    (pip,) = (item["pip"] for item in content["dependencies"] if isinstance(item, dict))
    assert all("==" in line for line in pip)
    return pins_of(pip)


def needed_here(names: Iterable[str]) -> set[str]:
    """Everything that the packages need on this platform, but companions of torch's builds."""
    found: set[str] = set()
    waiting = [canonicalize_name(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        for line in metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                needed = canonicalize_name(requirement.name)
                if not needed.startswith(TORCH_COMPANIONS):
                    waiting.append(needed)
    return found


def test_every_locked_package_has_hashes():
    for name in ("requirements.lock", "requirements-test.lock"):
        blocks = re.split(r"\n(?=[a-z0-9])", (ROOT / name).read_text())[1:]
        assert len(blocks) > 50
        assert [block for block in blocks if "--hash=sha256:" not in block] == []


def test_locks_agree_and_hold_what_is_needed():
    runtime, tests = lock("requirements.lock"), lock("requirements-test.lock")
    # Without markers: what the tests need may need a package on more platforms.
    assert {name: versions(tests.get(name, ())) for name in runtime} == {
        name: versions(pins) for name, pins in runtime.items()
    }
    assert len(tests) > len(runtime)
    needed = needed_here(requirement.name for requirement in DEPENDENCIES + WORKFLOW)
    assert needed - set(runtime) == {"torch"}
    assert needed_here(requirement.name for requirement in TEST) - set(tests) <= {"torch"}


def test_lower_bounds_admit_the_locked_versions():
    pins = lock("requirements-test.lock") | lock("requirements-torch.txt")
    for requirement in DEPENDENCIES + WORKFLOW + TEST:
        for pin in pins[canonicalize_name(requirement.name)]:
            version = pin.split("==")[1].split(" ")[0]
            assert requirement.specifier.contains(version), pin


def test_environment_has_the_locks_pins_and_all_a_job_needs():
    pins = environment()
    locked = lock("requirements.lock") | lock("requirements-torch.txt")
    assert pins == {name: locked[name] for name in pins}
    needed = needed_here(requirement.name for requirement in DEPENDENCIES)
    assert needed <= set(pins)
    assert "snakemake" not in pins


def test_a_stale_pin_is_seen():
    locked = lock("requirements.lock")
    stale = pins_of(["numpy==1.26.0"])
    assert stale != {name: locked[name] for name in stale}


def imported(folder: str) -> set[str]:
    """Top-level names of the packages that the Python files under `folder` import."""
    names = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").split(".")[0])
    return names - set(sys.stdlib_module_names) - {"esm_pipeline"}


def test_dependencies_are_those_imported():
    names = {MODULES.get(name, name) for name in imported("esm_pipeline")}
    needed = {requirement.name for requirement in DEPENDENCIES}
    assert needed <= names <= needed | EXTRAS
    assert {"anndata", "foldcomp"} <= names


def test_every_dependency_is_justified():
    tables = read_tables((ROOT / "CONTRIBUTING.md").read_text())
    (packages,) = [table for table in tables if table.heading == "Dependencies"]
    reasons = {row[0].strip("`"): row[1] for row in packages.rows}
    names = {requirement.name for requirement in [*DEPENDENCIES, *WORKFLOW, *TEST]}
    assert set(reasons) == names
    assert all(len(reason) > 15 for reason in reasons.values())


def test_config_readme_explains_every_key():
    (keys,) = [table for table in read_tables(KEYS_PAGE.read_text()) if table.heading == "Keys"]
    assert keys.rows == list(config_rows())


def test_schema_is_that_of_the_settings():
    assert (ROOT / "config/config.schema.json").read_text() == json_schema()


def test_config_as_shipped_is_valid_and_uncommented_keys_are_too():
    text = (ROOT / "config/config.yaml").read_text()
    assert load_settings(yaml.safe_load(text)).model == "demo"
    uncommented = re.sub(r"^# (?=[a-z_]+: )", "", text, flags=re.MULTILINE)
    assert uncommented != text
    config = yaml.safe_load(uncommented)
    del config["fasta"]
    assert list(load_settings(config).inputs()) == ["demo"]


def test_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == esm_pipeline.__version__
    assert citation["license"] == PROJECT["project"]["license"]
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_snakemake_bound_is_the_workflows():
    (snakemake,) = WORKFLOW
    (wanted,) = re.findall(r'min_version\("(.+)"\)', (ROOT / "workflow" / "Snakefile").read_text())
    assert str(snakemake.specifier) == f">={wanted}"


def test_wheel_holds_what_the_package_reads(tmp_path):
    sources = tmp_path / "sources"
    shutil.copytree(
        ROOT / "esm_pipeline",
        sources / "esm_pipeline",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", tmp_path, sources], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    files = {
        path.relative_to(sources).as_posix() for path in (sources / "esm_pipeline").rglob("*.*")
    }
    assert len(files) > 20
    assert files <= packed
    assert any(name.endswith("licenses/LICENSE") for name in packed)


@pytest.mark.parametrize("target", ["demo", "test", "test-long", "bench", "lint", "lock", "clean"])
def test_make_knows(target):
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"make {target} " in said.stdout
    result = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_make_refuses_an_old_python(tmp_path):
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 && exit\nexit 1\n')
    old.chmod(0o755)
    command = ["make", "demo", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode != 0
    assert "is Python 3.9.2, but Python 3.11 or newer is needed" in result.stderr


def test_ci_script_is_whole():
    script = ROOT / ".ci/run"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", script], check=True)


def test_ci_tests_a_clone_named_esm_pipeline(tmp_path):
    """Of what is committed, even where git takes it for another's; and leaves nothing behind."""
    checkout, commands, own = (tmp_path / name for name in ("it's a checkout", "bin", "own"))
    (checkout / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci/run", checkout / ".ci")
    git = ["git", "-C", checkout, "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "a"]):
        subprocess.run([*git, *command], check=True)
    (checkout / "not committed").touch()
    commands.mkdir()
    own.mkdir()
    make = commands / "make"
    make.write_text('#!/bin/sh\necho "$PWD: $* $(ls -A | tr "\\n" " ")"\necho 1 passed\nexit 3\n')
    make.chmod(0o755)
    path = f"{commands}{os.pathsep}{os.environ['PATH']}"
    foreign = {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "true"}
    environment = os.environ | foreign | {"PATH": path, "TMPDIR": str(own)}
    done = subprocess.run([checkout / ".ci/run"], env=environment, capture_output=True, text=True)
    where, *rest = done.stdout.splitlines()
    assert re.fullmatch(rf"{re.escape(str(own))}/ci\.\w+/esm_pipeline: test \.ci \.git ", where)
    assert (done.returncode, rest) == (3, ["1 passed"])
    assert [*own.iterdir()] == []
