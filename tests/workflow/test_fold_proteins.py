"""500 real short proteins: every id of the input is in the results, also after SIGKILLs."""

from __future__ import annotations

import csv
import gzip
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from esm_pipeline.formats.results.structures import Structures
from tests.workflow.tools import ROOT, Run, quoted, snakemake

PROTEINS = ROOT / "tests" / "data" / "short_proteins.fasta.gz"
ARGUMENTS = [
    *("--cores", "1", "--config", f"fasta={quoted(PROTEINS)}", "tasks=[fold]", "shards=4"),
    "fold={threads: 1, num_recycles: 0, archive: true}",
]
SAMPLE = "short_proteins"
KILLS = 6

pytestmark = pytest.mark.long


def contents(run: Run) -> dict[str, str]:
    """Digest of every result of the sample."""
    folder = run.results / SAMPLE
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Run:
    run = snakemake(tmp_path_factory.mktemp("whole"), *ARGUMENTS)
    assert run.code == 0, run.said
    return run


def test_every_id_of_the_input_is_in_the_results(whole):
    text = gzip.decompress(PROTEINS.read_bytes()).decode()
    records = [record.split("\n") for record in text[1:].strip().split("\n>")]
    wanted = [(header.split()[0], str(len(sequence))) for header, sequence in records]
    with open(whole.results / SAMPLE / "structures.tsv", newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    assert len(rows) == 500
    assert [(row["id"], row["length"]) for row in rows] == wanted
    assert {row["status"] for row in rows} == {"ok"}
    files = {row["file"] for row in rows}
    assert len(files) == len({sequence for _, sequence in records}) > 400
    with Structures.open(whole.results / SAMPLE / "structures.h5") as arrays:
        assert len(arrays.length) == len(files)
        assert len(arrays.index) == 500


def kill_after(folder: Path, seconds: float) -> bool:
    """Start the workflow and kill all its processes; false if it had finished before."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile"]
    process = subprocess.Popen(
        [*command, "--rerun-incomplete", *ARGUMENTS],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    time.sleep(seconds)
    running = process.poll() is None
    if running:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return running


def test_killed_at_any_time_it_ends_with_the_same_bytes(whole, tmp_path):
    chance = random.Random(0)
    killed = 0
    for _ in range(KILLS):
        killed += kill_after(tmp_path, chance.uniform(4, 14))
        assert snakemake(tmp_path, "--unlock", *ARGUMENTS).code == 0
    assert killed > KILLS // 2
    run = snakemake(tmp_path, "--rerun-incomplete", *ARGUMENTS)
    assert run.code == 0, run.said
    assert contents(run) == contents(whole)
    assert [path.name for path in run.results.rglob(".*.*-*")] == []
