"""A run counts what it made and names what an earlier run left; reserved names match the rules."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from esm_pipeline.cli import main
from esm_pipeline.settings.result_names import (
    ACCEPTED,
    IN_SAMPLE,
    MODELS,
    NOT_COUNTED,
    OF_TASK,
    TOP,
)
from tests.workflow.tools import GOLDEN, SAMPLE, Run, config, jobs, snakemake, write_fasta

MODEL = GOLDEN / "model"
EVERY_TASK = [
    "tasks=[embed, score, fold, classify]",
    "variants=v.csv",
    "fold={model: demo}",
    f"score={{saturation: true, plots: true, models: {{a: demo, b: {MODEL}}}}}",
]


SEVERAL_BUNDLES = ("shards=auto", "shard={bundle: 1}")


def written(folder: Path, of: str, *more: str) -> set[tuple[str, ...]]:
    """Parts of the paths of all files that the rules write, from Snakemake's summary."""
    own = [*EVERY_TASK, f"classify={{of: {of}, model: {MODEL}}}", *more]
    arguments = config(MODEL, *own, fasta="x.fasta")
    run = snakemake(folder, "--summary", *arguments)
    paths = re.findall(r"^results/(\S+)\t", run.said, re.MULTILINE)
    assert len(paths) > 50, run.said
    return {Path(path).parts for path in paths}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, ...]]:
    folder = tmp_path_factory.mktemp("every")
    write_fasta(folder / "x.fasta")
    shutil.copy(GOLDEN / "my variants.csv", folder / "v.csv")
    kinds = itertools.product(("sequences", "residues"), ((), SEVERAL_BUNDLES))
    return {path for of, more in kinds for path in written(folder, of, *more)}


def test_what_the_rules_write_is_reserved_and_nothing_else(paths: set[tuple[str, ...]]) -> None:
    """`logs` and `benchmarks` are written too, but are not in the summary."""
    tops = {path[0] for path in paths} - {"x"}
    assert tops | {"benchmarks"} == {*TOP}
    assert {path[1] for path in paths if path[0] == "x"} == {*IN_SAMPLE}
    assert {*NOT_COUNTED, MODELS, ACCEPTED} <= {*TOP}
    for task, names in OF_TASK.items():
        assert {*names, task} <= {*IN_SAMPLE}


@pytest.fixture(scope="module")
def second_run(whole_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of `score` after one of `embed` in the same folder, over a stale score table."""
    folder = tmp_path_factory.mktemp("second") / "it's a run"
    shutil.copytree(whole_run.folder, folder)
    stale = "mutant\tstatus\treason\tmasked_marginal\nA1C\tfailed\tx\t\n"
    (folder / "results" / SAMPLE / "scores.tsv").write_text(stale)
    (folder / "results" / "old sample").mkdir()
    own = ("tasks=[score]", "score={saturation: true, plots: true}")
    return snakemake(folder, *config(MODEL, *own))


OTHERS = ["embed", "embeddings.h5", "scores.tsv"]


def test_only_what_this_run_made_is_counted(second_run: Run) -> None:
    assert second_run.code == 0, second_run.said
    others = ["my_proteins/" + name for name in OTHERS]
    message = f"lso in results/, not of this run: {', '.join([*others, 'old sample'])}"
    verdict = (second_run.results / "verdict.txt").read_text()
    assert f"a{message}\nnothing failed\n" in verdict
    assert "variants" not in verdict.partition("also in")[0].replace("score.", "")
    page = (second_run.results / "report.html").read_text()
    assert f"A{message}." in page
    assert "Every substitution of" in page
    assert "different sequences; mean" not in page
    assert "variants scored" not in page
    facts = json.loads((second_run.results / "provenance.json").read_text())
    assert facts["not_of_this_run"] == [*others, "old sample"]
    names = {"records.tsv", "inputs.sha256", "saturation.h5", "heatmaps.sha256"}
    assert set(facts["samples"][SAMPLE]["results"]) == names
    assert set(facts["results"]) == {"model.json", "report.html", "verdict.txt"}
    columns = (second_run.results / SAMPLE / "records.tsv").read_text().splitlines()[0]
    assert columns.endswith("duplicate_of\tscore_status\tscore_reason")


def test_results_are_as_they_were_written(
    second_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A changed result is made again as the message says, and then all are as written."""
    folder = tmp_path / "it's a run"
    shutil.copytree(second_run.folder, folder)
    results = folder / "results"
    assert main(["verify", str(results)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1] for line in printed[:-1]] == [
        "not of this run, and not checked"
    ] * 4
    assert re.fullmatch(r"verify: \d+ files checked, none differs", printed[-1])
    picture = next((results / SAMPLE / "heatmaps").glob("*.png"))
    picture.write_bytes(picture.read_bytes()[:-1] + b"x")
    assert main(["verify", "--quiet", str(results)]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    remedy = re.fullmatch(r"(.*): differs; remove (.*) and run the workflow again", line)
    assert remedy is not None
    assert remedy[1] == str(picture)
    Path(remedy[2]).unlink()
    own = ("tasks=[score]", "score={saturation: true, plots: true}")
    run = snakemake(folder, *config(MODEL, *own))
    assert run.code == 0, run.said
    assert "heatmaps: a picture" in run.said
    assert main(["verify", "--quiet", str(results)]) == 0


def test_a_changed_input_is_an_error_before_any_sequence_is_computed(tmp_path: Path) -> None:
    """Its size and modification time stay the same: only contents and change time differ."""
    fasta = write_fasta(tmp_path / "my proteins.fasta")
    arguments = config(MODEL, "shards=1")
    assert snakemake(tmp_path, "--until", f"shard_{SAMPLE}", *arguments).code == 0
    facts, text = fasta.stat(), fasta.read_bytes()
    fasta.write_bytes(text.replace(b"MK", b"MR", 1))
    os.utime(fasta, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    run = snakemake(tmp_path, "--retries", "0", *arguments)
    assert run.code == 1
    message = (
        f"{fasta.name}: has changed since the workflow read it; remove results/{SAMPLE}/inputs."
    )
    assert message in run.said
    assert "provenance" not in re.findall(r"Job \d+: (\w+)", run.said)
    assert not (run.results / SAMPLE / "embed" / "00000.h5").exists()
    (run.results / SAMPLE / "inputs.sha256").unlink()
    planned = jobs(snakemake(tmp_path, "-n", *arguments))
    assert {f"shard_{SAMPLE}", "embed", "provenance"} <= planned
