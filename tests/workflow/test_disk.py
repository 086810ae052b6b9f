"""An output folder that is read-only or full: the message, and a rerun that completes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tests.disks import WITHIN, Disk, needs_a_disk
from tests.forked import Forked
from tests.workflow.test_interruption import assert_same
from tests.workflow.tools import ROOT, Run, config, write_fasta


@needs_a_disk
def test_a_disk_that_is_read_only_and_then_full(tmp_path, whole_run, model):
    write_fasta(tmp_path / "my proteins.fasta")
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", *config(model)]
    with Forked(*WITHIN) as forked:
        disk = Disk(forked, tmp_path / "results")

        def run() -> Run:
            ended = forked.call("sh", "-c", 'cd "$0" && exec "$@"', tmp_path, *command)
            return Run(ended.code, ended.said, Path(f"{forked.root}{tmp_path}"))

        disk.set("ro")
        refused = run()
        assert refused.code == 1
        assert "Read-only file system: 'results/" in refused.said
        disk.set("rw,size=16k")
        full = run()
        assert full.code == 1
        (line,) = (full.results / "logs" / "shard" / "my_proteins.log").read_text().splitlines()
        named = r"results/my_proteins/(bundles/\S+|inputs\.sha256)"
        why = "no space left on the disk; free some and run the same command again"
        assert re.fullmatch(f"esm-pipeline shard: {named}: {why}", line)
        assert line in full.said
        disk.set("size=8m")
        assert_same(run(), whole_run)
