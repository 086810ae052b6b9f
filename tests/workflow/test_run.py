"""One whole run: its results, its messages, and what each change reruns."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import zipfile

import numpy as np
import pytest

import esm_pipeline
from esm_pipeline import open_results
from esm_pipeline.errors import AmbiguousIdError
from esm_pipeline.formats.checksums import sha256
from esm_pipeline.formats.records import read_records
from tests.workflow.tools import (
    EMBED,
    EVERYTHING,
    FROM_SHARDS,
    RECORDS,
    ROOT,
    SAMPLE,
    config,
    jobs,
    save_model,
    snakemake,
    write_fasta,
)


def test_the_run_succeeds_and_reports_its_jobs(whole_run):
    assert whole_run.code == 0, whole_run.said
    assert "shard: 1 file of sample my_proteins into 1 bundle\n" in whole_run.said
    assert "embed: range 2-of-2 of sample my_proteins" in whole_run.said
    assert re.search(r"\d+ of \d+ steps \(100%\) done", whole_run.said)
    assert [line.split()[0] for line in whole_run.said.splitlines()[-3:]] == [
        "Results:",
        "results/report.html",
        "results/verdict.txt",
    ]


def test_every_record_has_its_row_and_every_ok_one_its_embedding(whole_run):
    records = list(read_records(whole_run.results / SAMPLE / "records.tsv"))
    assert [record.header for record in records] == [
        key.decode(errors="replace") for key in RECORDS
    ]
    skipped = [record.id for record in records if record.outcomes["embed"].status != "ok"]
    assert skipped == ["stop", "gap", "complex", "empty"]
    assert records[2].duplicate_of == 0
    with open_results(whole_run.results / SAMPLE / "embeddings.h5") as results:
        assert results.ids == [record.id for record in records if record.id not in skipped]
        assert results["record_5"].residue[2].shape == (61, 16)
        with pytest.raises(AmbiguousIdError):
            results["first"]
        assert np.array_equal(results[0].mean[2], results[2].mean[2])
        assert not np.array_equal(results[0].mean[2], results[1].mean[2])


def test_only_results_remain(whole_run):
    found = {path.relative_to(whole_run.results) for path in whole_run.results.rglob("*")}
    files = {str(path) for path in found if (whole_run.results / path).is_file()}
    kept = {file for file in files if not file.startswith(("logs/", "benchmarks/"))}
    assert kept == {
        f"{SAMPLE}/records.tsv",
        f"{SAMPLE}/embeddings.h5",
        f"{SAMPLE}/inputs.sha256",
        *(f"{SAMPLE}/embed/00000.{end}" for end in ("status.tsv", "sha256")),
        *(f"{SAMPLE}/bundles/00000.{end}" for end in ("fasta", "index.npz", "records.tsv")),
        *(f"{SAMPLE}/{folder}/digests.sha256" for folder in ("bundles", "counts")),
        f"{SAMPLE}/counts/records.json",
        ".accepted",
        "model.json",
        "provenance.json",
        "provenance.sha256",
        "report.html",
        "verdict.txt",
    }
    jobs = {
        f"shard/{SAMPLE}",
        *(f"embed/{SAMPLE}/00000/{n}-of-2" for n in (1, 2)),
        "counts",
        "model",
    }
    jobs |= {f"gather_embed/{SAMPLE}", f"records/{SAMPLE}", "provenance", "report", "check_embed"}
    assert files - kept == {"logs/checked/embed"} | {
        f"logs/{job}.log" for job in [*jobs, "verdict"]
    } | {f"benchmarks/{job}.tsv" for job in jobs}


def test_provenance_names_the_origin_of_results(whole_run, model):
    facts = json.loads((whole_run.results / "provenance.json").read_text())
    assert facts["software"]["esm_pipeline"] == esm_pipeline.__version__
    assert facts["settings"]["model"] == model.name
    assert facts["settings"]["embed"]["token_budget"] == 16384
    sample = facts["samples"][SAMPLE]
    results = whole_run.results / SAMPLE
    for name in ("records.tsv", "embeddings.h5", "inputs.sha256"):
        assert sample["results"][name]["sha256"] == sha256(results / name)
    assert facts["not_of_this_run"] == []
    fasta = whole_run.folder / "my proteins.fasta"
    assert sample["fasta"] == [
        {"path": fasta.name, "bytes": fasta.stat().st_size, "sha256": sha256(fasta)}
    ]
    assert (sample["bundles"], sample["jobs"]) == (1, {"embed": 2})
    assert sample["records"]["embed"] == {"records": 10, "ok": 6, "skipped": 4, "duplicates": 1}
    digest = sha256(model / "model.safetensors")
    assert sample["results"]["embeddings.h5"]["weights_sha256"] == digest
    assert facts["models"]["model"]["name"] == model.name
    assert facts["models"]["model"]["weights_sha256"] == digest
    assert facts["models"]["model"]["config"]["num_hidden_layers"] == 2


def test_snakemake_makes_a_report_of_its_own(whole_run, model, tmp_path):
    """As the entry in the workflow catalogue promises; the page of results is in it."""
    file = tmp_path / "report.zip"
    run = snakemake(whole_run.folder, "--report", str(file), *config(model))
    assert run.code == 0, run.said
    with zipfile.ZipFile(file) as archive:
        (page,) = (name for name in archive.namelist() if "/data/raw/" in name)
        assert archive.read(page) == (whole_run.results / "report.html").read_bytes()


def test_verdict_counts(whole_run):
    text = (whole_run.results / "verdict.txt").read_text()
    assert "nothing failed" in text
    assert text in whole_run.said


@pytest.mark.parametrize(
    ("change", "rerun"),
    [
        (f"embed={{{EMBED}, token_budget: 99, threads: 1, device: cpu}}", set()),
        ("embed={include: [mean]}", {*FROM_SHARDS, "check_embed"}),
        (f"embed={{{EMBED}, residue_dtype: float32}}", {*FROM_SHARDS, "check_embed"}),
        ("on_failure=keep", {"verdict"}),
        ("shards=3", FROM_SHARDS),
        ("shard={least: 1, gaps: remove}", EVERYTHING),
    ],
)
def test_a_change_reruns_what_it_changes(whole_run, model, change, rerun):
    assert jobs(snakemake(whole_run.folder, "-n", *config(model, change))) == rerun


def test_intermediate_files_may_be_deleted(whole_run, model, tmp_path):
    """Nothing is made again until something changes."""
    folder = tmp_path / "it's a run"
    shutil.copytree(whole_run.folder, folder)
    shutil.rmtree(folder / "results" / SAMPLE / "bundles")
    shutil.rmtree(folder / "results" / SAMPLE / "embed")
    assert jobs(snakemake(folder, "-n", *config(model))) == set()
    changed = jobs(snakemake(folder, "-n", *config(model, "embed={include: [mean]}")))
    assert changed == {*EVERYTHING, "check_embed"}


def test_a_moved_clone_reruns_nothing(whole_run, model, tmp_path):
    clone = copy_of_the_project(tmp_path / "clone")
    arguments = ["-n", "--printshellcmds", "--forcerun", "counts", *config(model)]
    run = snakemake(whole_run.folder, *arguments, snakefile=clone / "Snakefile")
    assert f"PYTHONPATH={shlex.quote(str(clone))} " in run.said
    assert jobs(run) == {"counts", "provenance", "verdict"}


def copy_of_the_project(target):
    for name in ("workflow", "esm_pipeline", "envs", "config"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Snakefile", target)
    return target


def test_the_digests_of_inputs_are_those_of_what_was_read(whole_run):
    fasta = whole_run.folder / "my proteins.fasta"
    listed = (whole_run.results / SAMPLE / "inputs.sha256").read_text()
    assert listed == f"{sha256(fasta)}  {fasta.name}\n"


def test_the_order_of_files_counts(tmp_path, model):
    """An input that changes during a run is noticed, and the next run repairs the results."""
    one, other = (write_fasta(tmp_path / name, {name.encode(): b"MKV"}) for name in ("a", "b"))
    table = tmp_path / "table.tsv"
    arguments = config(model, "samples=table.tsv", "shards=1", fasta=None)
    for files in ((one, other), (other, one)):
        table.write_text("sample\tfasta\n" + "".join(f"S\t{file.name}\n" for file in files))
        run = snakemake(tmp_path, *arguments, "--until", "records")
        assert run.code == 0, run.said
        records = read_records(run.results / "S" / "records.tsv")
        assert [record.id for record in records] == [file.name for file in files]
    write_fasta(one, {b"a": b"MKV", b"late": b"MKI"})
    run = snakemake(tmp_path, *arguments)
    assert run.code == 0, run.said
    assert len(list(read_records(run.results / "S" / "records.tsv"))) == 3


def test_a_killed_job_is_tried_again_with_a_smaller_budget(tmp_path, model):
    clone = copy_of_the_project(tmp_path / "clone")
    task = clone / "esm_pipeline" / "tasks" / "embed" / "command.py"
    killed = 'import os, sys\nif "1000" in sys.argv: os.kill(os.getpid(), 9)\n'
    source = task.read_text().replace("import argparse\n", f"import argparse\n{killed}", 1)
    assert killed in source
    task.write_text(source)
    write_fasta(tmp_path / "a.fasta")
    more = ["shards=1", "embed={token_budget: 1000}"]
    run = snakemake(tmp_path, *config(model, *more, fasta="a.fasta"), snakefile=clone / "Snakefile")
    assert run.code == 0, run.said
    assert "Trying to restart job" in run.said
    assert "failed:" not in run.said


def test_a_failed_record_ends_in_an_error_after_everything_is_written(tmp_path):
    model = save_model(tmp_path / "model", scale=1e6)  # too large for float16
    write_fasta(tmp_path / "a.fasta")
    run = snakemake(tmp_path, *config(model, "shards=1", fasta="a.fasta"))
    assert run.code == 1
    assert run.said.splitlines()[-4:] == [
        "1 job failed:",
        "  verdict: whether any record or variant failed",
        "    6 failed: all results are written, and these are the records without one; set "
        "on_failure to 'keep' to accept this",
        "    log: results/verdict.txt",
    ]
    statuses = [
        record.outcomes["embed"].status
        for record in read_records(tmp_path / "results/a/records.tsv")
    ]
    assert statuses.count("failed") == 6
    assert (tmp_path / "results/a/embeddings.h5").exists()
    assert (tmp_path / "results/provenance.json").exists()
    assert "6 failed" in (tmp_path / "results/verdict.txt").read_text()
    again = snakemake(tmp_path, *config(model, "shards=1", "on_failure=keep", fasta="a.fasta"))
    assert again.code == 0, again.said
    assert "rule embed" not in again.said
    assert "6 failed" in (tmp_path / "results/verdict.txt").read_text()
