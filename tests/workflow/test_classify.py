"""Classes from the workflow: the same as from the command; what each change reruns."""

from __future__ import annotations

import csv
import json
import re
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
from tests.workflow.tools import (
    GOLDEN,
    SAMPLE,
    TINY,
    Run,
    config,
    jobs,
    snakemake,
    write_fasta,
)

MODELS = {"sequences": EsmForSequenceClassification, "residues": EsmForTokenClassification}
RESULTS = {"sequences": "classes.h5", "residues": "residue_classes.h5"}
KEY = re.compile(r"shard\.(\w+)")
"""A setting in a reason, as the workflow names it."""

COMMON = {"records", "provenance", "report", "counts", "verdict"}


def arguments(section: str = "", *more: str) -> list[str]:
    """Arguments that embed and classify in two shards, with a model for each task."""
    section_text = f"classify={{model: classifier, threads: 1{', ' if section else ''}{section}}}"
    return config(GOLDEN / "model", "tasks=[embed, classify]", section_text, *more)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle, delimiter="\t"))


@pytest.fixture(scope="module", params=MODELS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp(request.param)
    write_fasta(folder / "my proteins.fasta")
    torch.manual_seed(0)
    settings = {**TINY, "id2label": {0: "one", 1: "two"}, "initializer_range": 0.3}
    settings["problem_type"] = "multi_label_classification"
    MODELS[request.param](EsmConfig(**settings)).save_pretrained(folder / "classifier")
    EsmTokenizer.standard().save_pretrained(folder / "classifier")
    found = snakemake(folder, *arguments())
    assert found.code == 0, found.said
    return found


@pytest.fixture(scope="module")
def of(run: Run) -> str:
    return run.folder.name.rstrip("0123456789")


def test_the_workflow_gives_what_the_command_gives(run: Run, of: str, tmp_path: Path) -> None:
    sample, own = run.results / SAMPLE, tmp_path / "own.tsv"
    command = ["classify", "--quiet", f"--model={run.folder / 'classifier'}"]
    fasta = str(run.folder / "my proteins.fasta")
    assert main([*command, fasta, str(own.with_suffix(".h5"))]) == 0
    with open_results(sample / RESULTS[of]) as found, open_results(own.with_suffix(".h5")) as alone:
        assert (found.ids, found.index.tolist()) == (alone.ids, alone.index.tolist())
        assert (len(found), found.labels) == (6, ["one", "two"])
        for one, other in zip(found, alone, strict=True):
            assert abs(one.p - other.p).max() <= 1e-6
            assert one.label == other.label
    kept = {path.name for path in sample.iterdir()} - {"embed", "embeddings.h5", "inputs.sha256"}
    tables = {"classes.tsv"} if of == "sequences" else set()
    assert kept == {RESULTS[of], "classify", "records.tsv", "bundles", "counts", *tables}
    if tables:
        assert main([*command, fasta, str(own)]) == 0
        ours, alone = table(sample / "classes.tsv"), table(own)
        for row, other in zip(ours, alone, strict=True):
            for name in ("index", "id", "status", "label"):
                assert row[name] == other[name]
            flagged = KEY.sub(lambda key: "--" + key[1].replace("_", "-"), row["reason"])
            assert flagged == other["reason"]
            for name in ("p.one", "p.two"):
                assert bool(row[name]) == bool(other[name])
                assert abs(float(row[name] or 0) - float(other[name] or 0)) <= 1e-6


def test_every_record_is_accounted_for(run: Run, of: str) -> None:
    records = table(run.results / SAMPLE / "records.tsv")
    assert len(records) == 10
    assert all(row["classify_status"] == row["embed_status"] for row in records)
    assert {row["classify_status"] for row in records} == {"ok", "skipped"}
    assert "classify" in (run.results / "verdict.txt").read_text()
    what = "different sequences" if of == "sequences" else "residues of different sequences"
    assert f"{what} of 6 records classified. Model <code>classifier" in (
        run.results / "report.html"
    ).read_text().replace(str(run.folder) + "/", "")


def test_provenance_describes_the_classes(run: Run, of: str) -> None:
    facts = json.loads((run.results / "provenance.json").read_text())
    assert facts["models"]["classify_model"]["tasks"] == ["classify"]
    assert facts["models"]["model"]["tasks"] == ["embed"]
    result = facts["samples"][SAMPLE]["results"][RESULTS[of]]
    assert result["labels"] == ["one", "two"]
    assert result["problem_type"] == "multi_label_classification"
    digest = facts["models"]["classify_model"]["weights_sha256"]
    assert result["weights_sha256"] == digest


CLASSIFY = {"check_classify", "classify", "gather_classify", *COMMON}
EMBED = {"check_embed", "embed", "gather_embed", *COMMON}


@pytest.mark.parametrize(
    ("change", "rerun"),
    [
        (arguments("token_budget: 99, device: cpu"), set()),
        (arguments("threshold: 0.1"), {"classes", "provenance", "report", "verdict"}),
        (arguments("long: full"), {"classes", *CLASSIFY}),
        (arguments("", "embed={include: [mean]}"), EMBED),
    ],
    ids=["execution", "threshold", "long", "embed"],
)
def test_a_change_reruns_what_it_changes(
    run: Run, of: str, change: list[str], rerun: set[str]
) -> None:
    """Only classes of sequences have a table."""
    if of == "residues" and "classes" in rerun:
        rerun = rerun - {"classes"} if "classify" in rerun else set()
    assert jobs(snakemake(run.folder, "-n", *change)) == rerun


def test_a_model_of_another_kind_is_an_error_before_any_job(
    run: Run, of: str, tmp_path: Path
) -> None:
    (other,) = MODELS.keys() - {of}
    (tmp_path / "classifier").symlink_to(run.folder / "classifier")
    write_fasta(tmp_path / "my proteins.fasta")
    found = snakemake(tmp_path, *arguments(f"of: {other}"))
    assert found.code != 0
    assert f"set classify.of to {of}" in found.said
    assert not (tmp_path / "results" / SAMPLE / "classify").exists()


def test_a_model_without_a_classifier_is_an_error_at_once(tmp_path: Path) -> None:
    write_fasta(tmp_path / "my proteins.fasta")
    run = snakemake(tmp_path, "-n", *config(GOLDEN / "model", "tasks=[classify]"))
    assert run.code == 1
    assert "classify.of: no local config.json says what model" in run.said
    assert "Traceback" not in run.said
