"""What a user reads: one line a job in the demo, and the errors of failed jobs at the end."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workflow.test_run import copy_of_the_project
from tests.workflow.tools import ROOT, Run, config, snakemake, write_fasta

QUIET = ("--quiet", "rules", "progress", "host", "reason")
CHATTER = ("Building DAG", "Select jobs", "Job stats", "jobid", "Finished", "Provided", "Elapsed")
FAILED = [
    "1 job failed:",
    "  check_embed: whether embed can run with results/model.json and these settings",
    "    layer 9 does not exist; the model has layers 0 to 2",
    "    log: results/logs/check_embed.log",
    "Correct this and run the same command again: what is finished is kept.",
]


def test_a_failed_job_ends_in_its_own_error(tmp_path, model):
    """As the last lines of Snakemake's; with --quiet nothing else but a line for each job."""
    write_fasta(tmp_path / "a.fasta")
    wrong = config(model, "embed={layers: [9]}", fasta="a.fasta")
    run = snakemake(tmp_path, *wrong)
    assert (run.code, run.said.splitlines()[-5:]) == (1, FAILED)
    assert (tmp_path / "results/logs/check_embed.log").is_file()
    profile = ("--workflow-profile", str(ROOT / "workflow/profiles/local"))
    for quiet in (QUIET, profile):
        run = snakemake(tmp_path, *quiet, *wrong)
        lines = run.said.splitlines()
        if quiet == profile:
            assert lines.pop(0).startswith("Using workflow specific profile ")
        job, *end = lines
        assert (run.code, end) == (1, ["", *FAILED])
        assert re.fullmatch(r"\[1 of \d+\] check_embed: whether embed can .*", job)


def test_a_killed_job_and_a_bug_say_where_to_look(tmp_path, model):
    clone = copy_of_the_project(tmp_path / "clone")
    task = clone / "esm_pipeline" / "tasks" / "run" / "shard.py"
    source = task.read_text()
    write_fasta(tmp_path / "a.fasta")
    for line, error in (
        ("import os; os.kill(os.getpid(), 9)", "    ended without a message, as a job that is "),
        ("raise RuntimeError('a bug')", "    RuntimeError: a bug (an error of this program; "),
    ):
        task.write_text(source.replace("import argparse\n", f"import argparse\n{line}\n", 1))
        arguments = (*QUIET, *config(model, fasta="a.fasta"), "--until", "shard_a")
        run = snakemake(tmp_path, *arguments, snakefile=clone / "Snakefile")
        job, _, count, failed, why, log, _ = run.said.splitlines()
        assert (run.code, count, log) == (1, "1 job failed:", "    log: results/logs/shard/a.log")
        assert job == f"[1 of 1] {failed.strip()}"
        assert why.startswith(error)


def test_an_interrupted_run_is_no_failure(tmp_path, model):
    """Ctrl-C reaches Snakemake and its jobs at once."""
    clone = copy_of_the_project(tmp_path / "clone")
    task = clone / "esm_pipeline" / "tasks" / "run" / "shard.py"
    pressed = "import os, signal, time; os.killpg(0, signal.SIGINT); time.sleep(60)"
    source = task.read_text()
    task.write_text(source.replace("import argparse\n", f"import argparse\n{pressed}\n", 1))
    write_fasta(tmp_path / "a.fasta")
    session = "import os, runpy, signal; os.setsid(); signal.signal(signal.SIGINT, "
    session += "signal.default_int_handler); runpy.run_module('snakemake', run_name='__main__')"
    arguments = ("--snakefile", str(clone / "Snakefile"), *config(model, fasta="a.fasta"))
    run = subprocess.run(
        [sys.executable, "-c", session, *arguments, "--until", "shard_a"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode != 0
    assert "failed:" not in run.stderr
    last = "Interrupted. The same command continues the run: what is finished is kept."
    assert run.stderr.splitlines()[-1] == last


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Run:
    """`make demo` in a clone, with this Python as the environment."""
    clone = copy_of_the_project(tmp_path_factory.mktemp("demo") / "clone")
    shutil.copy(ROOT / "Makefile", clone)
    python = clone / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    for name in ("requirements.lock", "requirements-torch.txt"):
        shutil.copy(ROOT / name, clone)
    (clone / ".venv/.workflow").touch()
    done = subprocess.run(
        ["make", "demo", "CORES=2"],
        cwd=clone,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return Run(done.returncode, done.stdout, Path(clone))


def test_the_demo_shows_each_job_once_and_no_chatter(demo):
    assert demo.code == 0, demo.said
    jobs = re.findall(r"^\[(\d+) of (\d+)\] (\w+): ", demo.said, re.MULTILINE)
    assert [int(number) for number, _, _ in jobs] == list(range(1, len(jobs) + 1))
    assert {int(total) for _, total, _ in jobs} == {len(jobs)}
    names = [name for _, _, name in jobs]
    assert names.index("embed") < names.index("fold")
    assert "] embed: range 1 of 1 of sample demo\n" in demo.said
    assert "] verdict: whether any record or variant failed\n" in demo.said
    for text in CHATTER:
        assert text not in demo.said
    assert len(demo.said.splitlines()) < 60


def test_the_demo_shows_numbers_first_and_no_structure_as_a_result(demo):
    numbers = demo.said.index("residues   embedding")
    meaningless = demo.said.index("its structures are meaningless")
    assert demo.said.index("nothing failed") < numbers < meaningless
    assert demo.said.count("meaningless") == 1
    assert "results/demo/structures.tsv: 3 proteins folded" in demo.said
    assert "pLDDT" not in demo.said
    page = (demo.results / "report.html").read_text()
    assert "3 records with a structure" in page
    assert "clashes" not in page
