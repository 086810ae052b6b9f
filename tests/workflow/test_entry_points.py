"""Every way to start the workflow runs the same jobs: its two Snakefiles, alone or as a module."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.workflow.tools import ROOT, Run, job_counts, snakemake, write_fasta

JOBS = {
    "model": 1,
    "shard_a": 1,
    "check_embed": 1,
    "embed": 2,
    "gather_embed": 1,
    "records": 1,
    "report": 1,
    "counts": 1,
    "provenance": 1,
    "verdict": 1,
}
"""One sample in two shards."""

MODULE = """
configfile: "config/config.yaml"

module esm:
    snakefile: {snakefile!r}
    config: config

use rule * from esm {names}
"""
SNAKEFILES = {"Snakefile": "default", "workflow/Snakefile": "all"}
"""Each with its target rule."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("entry points")
    write_fasta(folder / "a.fasta")
    (folder / "config").mkdir()
    (folder / "config" / "config.yaml").write_text("fasta: a.fasta\nshards: 2\n")
    return folder


def dry_run(folder: Path, snakefile: Path) -> Run:
    return snakemake(folder, "--dry-run", "--cores", "2", snakefile=snakefile)


@pytest.mark.parametrize("name", SNAKEFILES)
def test_as_a_workflow(folder: Path, name: str) -> None:
    assert job_counts(dry_run(folder, ROOT / name)) == {**JOBS, SNAKEFILES[name]: 1}


@pytest.mark.parametrize("prefix", ["", "esm_"])
@pytest.mark.parametrize("name", SNAKEFILES)
def test_as_a_module(folder: Path, tmp_path: Path, name: str, prefix: str) -> None:
    names = f"as {prefix}*" if prefix else ""
    snakefile = tmp_path / "Snakefile"
    snakefile.write_text(MODULE.format(snakefile=str(ROOT / name), names=names))
    expected = {prefix + rule: count for rule, count in {**JOBS, SNAKEFILES[name]: 1}.items()}
    assert job_counts(dry_run(folder, snakefile)) == expected


def test_without_its_default_rule_the_root_snakefile_would_run_nothing(
    folder: Path, tmp_path: Path
) -> None:
    """Why the rule is there: an included file cannot set the default target."""
    (tmp_path / "Snakefile").write_text(f"include: {str(ROOT / 'workflow/Snakefile')!r}\n")
    run = dry_run(folder, tmp_path / "Snakefile")
    assert job_counts(run) == {}
    assert "Nothing to be done" in run.said


def test_the_workflow_catalogue_finds_what_it_reads() -> None:
    """The names of https://github.com/snakemake/snakemake-workflow-catalog, and no others."""
    for name in ("workflow/Snakefile", "config/README.md", "README.md"):
        assert (ROOT / name).is_file()
    catalogue = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())
    assert catalogue.keys() == {"usage"}
    assert catalogue["usage"].keys() == {"mandatory-flags", "software-stack-deployment"}
    assert catalogue["usage"]["mandatory-flags"].keys() == {"desc", "flags"}
    deployment = catalogue["usage"]["software-stack-deployment"]
    assert deployment.keys() == {"conda", "apptainer", "apptainer+conda", "report"}
    assert all(isinstance(value, bool) for value in deployment.values())
