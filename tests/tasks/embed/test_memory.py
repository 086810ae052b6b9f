"""Memory stays flat: ten times the proteins, ten times the file, about the same peak.

The C library is set to give large blocks back at once. Otherwise it keeps holes of all sizes, some
hundred megabytes after dozens of batches, and the peak would tell of those.
"""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from esm_pipeline.formats.records import read_records
from esm_pipeline.model import EsmConfig, EsmForMaskedLM

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no peak of memory in /proc"),
]

FEW, MANY = 2_000, 20_000
WIDTH = 64
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000"}
PROGRAM = """
import sys
from pathlib import Path
from esm_pipeline.cli import main
assert main(sys.argv[1:]) == 0
peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
print(peak)
"""


def peak_of(*arguments: object) -> float:
    """Run the command line in a process of its own; its peak memory in MB."""
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **GIVE_BACK}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1]) / 1024


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    config = EsmConfig(
        vocab_size=33,
        mask_token_id=32,
        pad_token_id=1,
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=64,
        position_embedding_type="rotary",
    )
    EsmForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def runs(checkpoint, tmp_path_factory):
    """By number of proteins: peaks of shard's follow-ups in MB, and the size of the result."""
    found = {}
    for count in (FEW, MANY):
        folder = tmp_path_factory.mktemp(f"run{count}")
        letters = random.Random(count)
        with open(folder / "in.fasta", "w") as handle:
            for number in range(count):
                length = letters.randint(50, 150)
                sequence = "".join(letters.choices("ACDEFGHIKLMNPQRSTVWY", k=length))
                handle.write(f">sp|{number} a protein\n{sequence}\n")
        bundle = folder / "bundles" / "00000.fasta"
        peak_of("shard", "--quiet", "--bundles=1", "--out", bundle.parent, folder / "in.fasta")
        embed = [
            peak_of(
                *("embed", "--quiet", "--model", checkpoint, "--include", "mean,residue"),
                *("--range", name, bundle, folder / "ranges" / f"{name}.h5"),
            )
            for name in ("1-of-2", "2-of-2")
        ]
        gathered = peak_of(
            *("aggregate", "embed", "--quiet", "--bundle", bundle),
            *("--ranges", folder / "ranges", "--count", 2, "--status", folder / "0.status.tsv"),
            *("--out", folder / "embeddings.h5"),
        )
        records = read_records(bundle.with_name("00000.records.tsv"))
        residues = sum(record.length for record in records)
        size = (folder / "embeddings.h5").stat().st_size
        assert size > residues * WIDTH * 2
        found[count] = {"embed": max(embed), "aggregate": gathered, "file": size / 2**20}
        print(f"{count} proteins, MB: {found[count]}")
    return found


@pytest.mark.parametrize(("step", "growth"), [("embed", 24), ("aggregate", 12)])
def test_memory_is_flat(runs, step, growth):
    few, many = runs[FEW], runs[MANY]
    assert many["file"] - few["file"] > 200, "the result must outgrow what is allowed here"
    assert many[step] - few[step] < growth
