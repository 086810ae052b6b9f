"""A tiny model, a small FASTA file, and Snakemake started as a user would."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from esm_pipeline.model import EsmConfig, EsmForMaskedLM, EsmTokenizer

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "vocab_size": 33,
    "mask_token_id": 32,
    "pad_token_id": 1,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "position_embedding_type": "rotary",
    "token_dropout": True,
}
GOLDEN = ROOT / "tests" / "golden"
SAMPLE = "my_proteins"
EMBED = "include: [mean, bos, residue, contacts], layers: [0, -1]"


@dataclass
class Run:
    """The exit code, output and folder of a run of Snakemake."""

    code: int
    said: str
    folder: Path

    @property
    def results(self) -> Path:
        return self.folder / "results"


def snakemake(folder: Path, *arguments: str, snakefile: Path = ROOT / "Snakefile", **variables):
    """Run the workflow in `folder` as a user would, with a PATH without this Python."""
    environment = os.environ | {"PATH": "/usr/local/bin:/usr/bin:/bin"} | variables
    environment.pop("PYTHONPATH", None)
    result = subprocess.run(
        [sys.executable, "-m", "snakemake", "--snakefile", snakefile, *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=3600,
    )
    return Run(result.returncode, result.stdout, folder)


FROM_SHARDS = {"embed", "gather_embed", "records"}
FROM_SHARDS |= {"provenance", "report", "counts", "verdict"}
"""Rules whose jobs depend on the number of jobs and on the model."""

EVERYTHING = {f"shard_{SAMPLE}", *FROM_SHARDS}
"""Rules whose jobs depend on the input, whatever the model."""


def job_counts(run: Run) -> dict[str, int]:
    """Jobs of each rule that a dry run would run, the target rule among them."""
    assert run.code == 0, run.said
    table = re.search(r"Job stats:\n.*\n-.*\n((?:.+\n)*?)total ", run.said)
    rows = [line.split() for line in table[1].splitlines()] if table else []
    return {name: int(count) for name, count in rows}


def jobs(run: Run) -> set[str]:
    """Rules that a dry run would run, without the target rule."""
    return job_counts(run).keys() - {"all", "default"}


def save_model(folder: Path, scale: float = 1.0) -> Path:
    """A tiny checkpoint with random weights; `scale` multiplies those of the last norm."""
    torch.manual_seed(0)
    model = EsmForMaskedLM(EsmConfig(**TINY))
    with torch.no_grad():
        model.esm.encoder.emb_layer_norm_after.weight.mul_(scale)
    model.save_pretrained(folder)
    EsmTokenizer.standard().save_pretrained(folder)
    return folder


def read_fasta(path: Path) -> dict[bytes, bytes]:
    """Header → sequence lines of the plain file that the tests share."""
    blocks = path.read_bytes().split(b"\n>")[1:]
    return {header: lines for header, _, lines in (block.partition(b"\n") for block in blocks)}


RECORDS = read_fasta(GOLDEN / "my proteins.fasta")


def write_fasta(path: Path, records: dict[bytes, bytes] = RECORDS) -> Path:
    path.write_bytes(b"".join(b">%b\n%b\n" % record for record in records.items()))
    return path


GOLDEN_TASKS = (
    *("tasks=[embed, score, fold]", "variants=my variants.csv", "score={saturation: true}"),
    "fold={model: demo, num_recycles: 0}",
)
"""The settings of the example tree, added to the shared configuration."""


def quoted(path: Path) -> str:
    """A path with any name as YAML, which is how `--config` reads its values.

    Between spaces: Snakemake strips quotes at the ends of a value, and YAML spaces.
    """
    return f" {json.dumps(str(path), ensure_ascii=False)} "


def config(model: Path, *more: str, fasta: str | None = "my proteins.fasta") -> list[str]:
    """Arguments that run the shared configuration, with those in `more` replaced."""
    chosen = [f"model={quoted(model)}", "shards=2", "shard={least: 1}", f"embed={{{EMBED}}}"]
    chosen += [] if fasta is None else [f"fasta={fasta}"]
    keys = {item.partition("=")[0] for item in more}
    kept = [item for item in chosen if item.partition("=")[0] not in keys]
    return ["--cores", "2", "--config", *kept, *more]
