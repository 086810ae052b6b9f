"""The model of a run: found once, checked before any job, found again when its files change."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from esm_pipeline.formats.checksums import sha256
from tests.oracles.hub_server import COMMIT, serve
from tests.workflow.tools import (
    FROM_SHARDS,
    GOLDEN,
    SAMPLE,
    Run,
    config,
    jobs,
    save_model,
    snakemake,
    write_fasta,
)

NAME = "lab/tiny"


@pytest.fixture(scope="module")
def own_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with a model of its own, which tests may change."""
    folder = tmp_path_factory.mktemp("own")
    write_fasta(folder / "my proteins.fasta")
    shutil.copytree(GOLDEN / "model", folder / "model")
    run = snakemake(folder, *config(Path("model"), "shards=1"))
    assert run.code == 0, run.said
    return run


def test_an_adapter_is_a_model(tmp_path: Path) -> None:
    """It is merged into its base model; a change of that model's files is noticed too."""
    write_fasta(tmp_path / "my proteins.fasta")
    shutil.copytree(GOLDEN / "model", tmp_path / "base")
    folder = tmp_path / "adapter"
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "base_model_name_or_path": "base"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    width = json.loads((tmp_path / "base" / "config.json").read_text())["hidden_size"]
    key = "base_model.model.esm.encoder.layer.0.attention.self.value.lora_{}.weight"
    state = {key.format("A"): torch.ones(1, width), key.format("B"): torch.ones(width, 1)}
    save_file(state, folder / "adapter_model.safetensors")
    run = snakemake(tmp_path, *config(Path("adapter"), "shards=1"))
    assert run.code == 0, run.said
    found = json.loads((tmp_path / "results" / "model.json").read_text())
    assert found["name"] == "adapter"
    assert found["weights_sha256"] != sha256(tmp_path / "base" / "model.safetensors")
    arguments = ("-n", *config(Path("adapter"), "shards=1"))
    assert jobs(snakemake(tmp_path, *arguments)) == set()
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "lora_alpha": 2}))
    assert "model" in jobs(snakemake(tmp_path, *arguments))
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_model(tmp_path / "base", scale=2.0)
    assert "model" in jobs(snakemake(tmp_path, *arguments))


def planned(run: Run) -> set[str]:
    """What the same command would do now if the weights were too large for a checksum.

    Snakemake compares the contents of small files, and only the times of large ones.
    """
    arguments = ("-n", "--max-checksum-file-size", "0", *config(Path("model"), "shards=1"))
    return jobs(snakemake(run.folder, *arguments))


def others(folder: Path) -> None:
    save_model(folder, scale=2.0)


def older(folder: Path) -> None:
    """Other weights, older than the results."""
    others(folder)
    past = time.time() - 10**6
    for file in folder.iterdir():
        os.utime(file, (past, past))


def another_config(folder: Path) -> None:
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**facts, "token_dropout": False}))


def a_note(folder: Path) -> None:
    (folder / "README.md").write_text("all about it")
    (folder / "training_args.bin").write_bytes(b"not weights")


@pytest.mark.parametrize(
    ("change", "rerun"),
    [
        (others, {*FROM_SHARDS, "model", "check_embed"}),
        (older, {*FROM_SHARDS, "model", "check_embed"}),
        (another_config, {*FROM_SHARDS, "model", "check_embed"}),
        (a_note, set()),
    ],
)
def test_replaced_files_make_the_results_again(
    own_run: Run, change: Callable[[Path], None], rerun: set[str]
) -> None:
    kept, model = own_run.folder / "kept", own_run.folder / "model"
    shutil.copytree(model, kept)  # with the times of its files
    try:
        change(model)
        assert planned(own_run) == rerun
    finally:
        shutil.rmtree(model)
        kept.rename(model)


def test_unchanged_files_rerun_nothing(own_run: Run) -> None:
    assert planned(own_run) == set()


def test_interrupted_after_the_model(own_run: Run) -> None:
    """The model is found again and nothing is computed; the next run still does the rest."""
    folder = own_run.folder.parent / "copy"
    shutil.copytree(own_run.folder, folder)
    others(folder / "model")
    arguments = config(Path("model"), "shards=1")
    run = snakemake(folder, "--until", "model", *arguments)
    assert run.code == 0, run.said
    assert jobs(snakemake(folder, "-n", *arguments)) == {*FROM_SHARDS, "check_embed"}


def test_fetched_once_and_then_without_network(tmp_path: Path) -> None:
    root = tmp_path / "hub"
    save_model(root / NAME)
    write_fasta(tmp_path / "my proteins.fasta")
    arguments = config(Path(NAME), "shards=1")
    own = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    with serve(root) as hub:
        own["HF_ENDPOINT"] = hub.address
        fetched = snakemake(tmp_path, "--until", "model", *arguments, **own)
        assert fetched.code == 0, fetched.said
        assert len([request for request in hub.requests if request.startswith("GET /large")]) == 1
    run = snakemake(tmp_path, *arguments, **own)  # the hub is gone
    assert run.code == 0, run.said
    facts = json.loads((run.results / "provenance.json").read_text())
    digest = sha256(root / NAME / "model.safetensors")
    made = facts["samples"][SAMPLE]["results"]["embeddings.h5"]
    for origin in (facts["models"]["model"], made):
        assert (origin["revision"], origin["weights_sha256"]) == (COMMIT, digest)
    assert (facts["models"]["model"]["name"], made["model"]) == (NAME, NAME)
    assert jobs(snakemake(tmp_path, "-n", *arguments, **own)) == set()


def test_an_error_that_every_job_would_have_is_raised_once(tmp_path: Path) -> None:
    write_fasta(tmp_path / "my proteins.fasta")
    run = snakemake(tmp_path, *config(GOLDEN / "model", "embed={layers: [3]}"))
    assert run.code == 1
    message = "esm-pipeline download: layer 3 does not exist; the model has layers 0"
    assert run.said.count(message) == 1
    assert "Job stats" in run.said
    assert "embed: shard" not in run.said
    assert "Traceback" not in run.said
    assert not (tmp_path / "results" / SAMPLE / "embed").exists()


def test_a_model_with_braces_in_its_path(tmp_path: Path) -> None:
    write_fasta(tmp_path / "my proteins.fasta")
    save_model(tmp_path / "m{1}")
    run = snakemake(tmp_path, "-n", *config(tmp_path / "m{1}"))
    assert run.code == 1
    assert "as wildcards; rename it, or make a link" in run.said
    assert "Traceback" not in run.said
