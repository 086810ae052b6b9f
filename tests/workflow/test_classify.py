"""Classes through the workflow: of sequences and of residues, beside embeddings, and made anew."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from esm_pipeline import (
    EsmConfig,
    EsmForSequenceClassification,
    EsmForTokenClassification,
    EsmTokenizer,
    open_results,
)
from esm_pipeline.cli import main
from tests.workflow.tools import GOLDEN, SAMPLE, TINY, Run, config, jobs, snakemake, write_fasta

CLASSES = {"sequences": EsmForSequenceClassification, "residues": EsmForTokenClassification}


def arguments(of: str, *more: str) -> list[str]:
    told = f"classify={{model: classifier, of: {of}{', ' if more else ''}{', '.join(more)}}}"
    return [*config(GOLDEN / "model", "tasks=[embed, classify]"), told]


@pytest.fixture(scope="module", params=CLASSES)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp(request.param)
    write_fasta(folder / "my proteins.fasta")
    torch.manual_seed(0)
    settings = {**TINY, "id2label": {0: "one", 1: "two"}}
    settings["problem_type"] = "multi_label_classification"
    CLASSES[request.param](EsmConfig(**settings)).save_pretrained(folder / "classifier")
    EsmTokenizer.standard().save_pretrained(folder / "classifier")
    found = snakemake(folder, *arguments(request.param))
    assert found.code == 0, found.said
    return found


def test_the_workflow_gives_what_the_command_gives(run: Run) -> None:
    of = run.folder.name.rstrip("0123456789")
    sample = run.results / SAMPLE
    name = "residue_classes.h5" if of == "residues" else "classes.h5"
    command = ["classify", "--quiet", f"--of={of}", f"--model={run.folder / 'classifier'}"]
    own = run.folder / "own.h5"
    assert main([*command, str(run.folder / "my proteins.fasta"), str(own)]) == 0
    with open_results(sample / name) as found, open_results(own) as expected:
        assert found.ids == expected.ids
        assert len(found) > 3
        for one, other in zip(found, expected, strict=True):
            assert abs(one.p - other.p).max() <= 1e-6
    with open(sample / "records.tsv", newline="") as handle:
        records = list(csv.DictReader(handle, delimiter="\t"))
    assert {row["classify_status"] for row in records} == {"ok", "skipped"}
    assert (sample / "classes.tsv").exists() == (of == "sequences")
    if of == "sequences":
        with open(sample / "classes.tsv", newline="") as handle:
            table = list(csv.DictReader(handle, delimiter="\t"))
        told = [(row["index"], row["id"], row["classify_status"]) for row in records]
        assert [(row["index"], row["id"], row["status"]) for row in table] == told
    facts = json.loads((run.results / "provenance.json").read_text())
    assert facts["models"]["classify_model"]["tasks"] == ["classify"]
    assert name in facts["samples"][SAMPLE]["results"]
    assert "classes of" in (run.results / "report.html").read_text()


def test_another_threshold_makes_the_table_alone(run: Run) -> None:
    of = run.folder.name.rstrip("0123456789")
    planned = jobs(snakemake(run.folder, "-n", *arguments(of, "threshold: 0.1")))
    assert not {"classify", "embed"} & planned
    assert ("classes" in planned) == (of == "sequences")


def test_a_model_of_another_kind_is_told_before_any_job(run: Run, tmp_path: Path) -> None:
    of = run.folder.name.rstrip("0123456789")
    other = {"sequences": "residues", "residues": "sequences"}[of]
    (tmp_path / "classifier").symlink_to(run.folder / "classifier")
    write_fasta(tmp_path / "my proteins.fasta")
    found = snakemake(tmp_path, *arguments(other))
    assert found.code != 0
    assert f"set classify.of to {of}" in found.said
    assert not (tmp_path / "results" / SAMPLE / "classify").exists()
