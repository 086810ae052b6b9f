"""A whole run with structures: its results, what each change reruns, and runs that are killed."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import gemmi
import pytest

from esm_pipeline.formats.records import read_records
from esm_pipeline.formats.results.structures import Structures
from esm_pipeline.structure.structure import MEANINGLESS
from esm_pipeline.tasks.fold.tables import ATLAS_TABLE, STRUCTURE_TABLES
from tests.folded import read_structure
from tests.workflow.test_interruption import Killed, clone  # noqa: F401
from tests.workflow.tools import GOLDEN, RECORDS, ROOT, SAMPLE, Run, config, jobs, snakemake

FOLD = "threads: 1, num_recycles: 1, formats: [pdb, cif], pae: [json, npz]"
OUTPUTS = {"provenance", "report", "counts", "verdict"}


def arguments(*more: str) -> list[str]:
    """Arguments of the run below, with those in `more` replaced."""
    chosen = ["tasks=[fold]", f"fold={{{FOLD}}}"]
    keys = {item.partition("=")[0] for item in more}
    return config(
        Path("demo"), *(one for one in chosen if one.partition("=")[0] not in keys), *more
    )


@pytest.fixture(scope="module")
def folded(tmp_path_factory) -> Run:
    """Two shards of one file, in a folder whose name needs quoting."""
    folder = tmp_path_factory.mktemp("it's folded")
    shutil.copy(GOLDEN / "my proteins.fasta", folder)
    run = snakemake(folder, *arguments())
    assert run.code == 0, run.said
    return run


def rows(run: Run) -> list[dict[str, str]]:
    with open(run.results / SAMPLE / "structures.tsv", newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t"))


def test_every_record_has_its_row_and_every_ok_one_its_structure(folded):
    records = list(read_records(folded.results / SAMPLE / "records.tsv"))
    assert len(records) == len(RECORDS)
    found = rows(folded)
    for record, row in zip(records, found, strict=True):
        assert (int(row["index"]), row["id"]) == (record.index, record.id)
        assert (row["status"], row["reason"]) == record.outcomes["fold"]
        assert bool(row["file"]) == (row["status"] == "ok")
        assert ("random_weights" in row["flags"]) == (row["status"] == "ok")
    assert found[2]["file"] == found[0]["file"]
    complexes = [row for row in found if row["id"] == "complex"]
    assert [(row["chains"], row["status"]) for row in complexes] == [("2", "ok")]
    assert len({row["file"] for row in found if row["file"]}) == 6


def test_only_results_remain(folded):
    sample = folded.results / SAMPLE
    files = {row["file"] for row in rows(folded) if row["file"]}
    wanted = {"records.tsv", "inputs.sha256", "structures.h5", *STRUCTURE_TABLES, *files}
    wanted |= {ATLAS_TABLE}
    wanted |= {"structures.sha256", "fold/00000.sha256", "fold/00000.status.tsv"}
    wanted |= {f"bundles/00000.{end}" for end in ("fasta", "index.npz", "records.tsv")}
    wanted |= {"bundles/digests.sha256", "counts/digests.sha256", "counts/records.json"}
    stems = {Path(file).with_suffix("") for file in files}
    wanted |= {f"{stem}.cif" for stem in stems}
    wanted |= {
        f"pae/{stem.relative_to('structures')}.{kind}" for stem in stems for kind in ("json", "npz")
    }
    found = {str(path.relative_to(sample)) for path in sample.rglob("*") if path.is_file()}
    assert {name for name in found if not name.endswith(".snakemake_timestamp")} == wanted
    others = {path.name for path in folded.results.iterdir() if path.is_file()}
    assert others == {
        *(".accepted", "fold_model.json", "provenance.json", "report.html", "verdict.txt"),
        "provenance.sha256",
    }


def test_every_file_says_that_it_is_meaningless(folded):
    texts = list((folded.results / SAMPLE / "structures").rglob("*.*f"))
    texts += (folded.results / SAMPLE / "structures").rglob("*.pdb")
    assert len(texts) == 12
    for path in texts:
        assert MEANINGLESS in " ".join(path.read_text().replace("REMARK 220", "").split())
        assert len(gemmi.read_structure(str(path))) == 1
    assert MEANINGLESS in (folded.results / "report.html").read_text()
    assert "random weights: the structures are meaningless" in folded.said


def test_provenance_names_the_folding_model(folded):
    facts = json.loads((folded.results / "provenance.json").read_text())
    assert list(facts["models"]) == ["fold_model"]
    model = facts["models"]["fold_model"]
    assert (model["name"], model["tasks"]) == ("demo-fold", ["fold"])
    result = facts["samples"][SAMPLE]["results"]["structures.h5"]
    assert result["weights_sha256"] == model["weights_sha256"]
    assert result["random_weights"] == "true"
    assert facts["software"]["biotite"]
    assert facts["samples"][SAMPLE]["records"]["fold"]["ok"] == 7


def test_the_report_shows_no_confidence_of_random_weights(folded):
    page = (folded.results / "report.html").read_text()
    assert f"7 records with a structure. <strong>{MEANINGLESS}.</strong>" in page
    assert "mean pLDDT" not in page
    assert "<td>low_ptm</td>" not in page


@pytest.mark.parametrize(
    ("change", "rerun"),
    [
        (
            f"fold={{{FOLD}, chunk_size: 8, memory: 2, token_budget: 99, device: cpu}}",
            set(),
        ),
        ("fold={num_recycles: 1, formats: [cif]}", {"structures", *OUTPUTS} - {"counts"}),
        (
            f"fold={{{FOLD}, max_residues: 50}}",
            {
                *("check_fold", "fold", "gather_fold", "records", "structures"),
                *OUTPUTS,
            },
        ),
    ],
)
def test_a_change_reruns_what_it_changes(folded, change, rerun):
    assert jobs(snakemake(folded.folder, "-n", *arguments(change))) == rerun


@pytest.mark.long
def test_archives_and_a_database_instead_of_folders(folded, tmp_path):
    """Random weights fold to nothing that Foldcomp gives back: all files are next to it."""
    shutil.copytree(folded.folder, tmp_path / "copy", copy_function=shutil.copy2)
    settings = "fold={num_recycles: 1, archive: true, formats: [foldcomp]}"
    run = snakemake(tmp_path / "copy", *arguments(settings))
    assert run.code == 0, run.said
    sample = run.results / SAMPLE
    found = [str(path.relative_to(sample)) for path in sample.glob("*/[!.]*") if path.is_file()]
    places = {
        f"{top}/{name}" for top in ("pae", "structures") for name in ("00000.tar", "index.tsv")
    }
    database = {
        f"structures/foldcomp{end}" for end in ("", ".index", ".lookup", ".dbtype", ".checksums")
    }
    assert {name for name in found if name.startswith(("pae", "structures"))} == places | database
    with tarfile.open(sample / "structures/00000.tar") as archive:
        members = {f"structures/00000.tar/{name}" for name in archive.getnames()}
    assert members == {row["file"] for row in rows(run) if row["file"]}
    loose = folded.results / SAMPLE
    for row, before in zip(rows(run), rows(folded), strict=True):
        assert row["file"].endswith(".pdb.gz") == bool(before["file"])
        if row["file"]:
            assert "not_foldcomp" in row["flags"].split(";")
            one = read_structure(sample / "structures.tsv", int(row["index"]))
            assert one == (loose / before["file"]).read_bytes()
    verified = subprocess.run(
        [sys.executable, "-m", "esm_pipeline", "verify", run.results], capture_output=True
    )
    assert verified.returncode == 0, verified.stdout


@pytest.mark.long
def test_a_model_that_does_not_fold_is_an_error_before_any_job(tmp_path, model):
    shutil.copy(GOLDEN / "my proteins.fasta", tmp_path)
    run = snakemake(tmp_path, *config(model, "tasks=[fold]", "shards=1"))
    assert run.code == 1
    assert f"{model}: has no folding part; set fold.model to a folding model" in run.said
    assert "fold: range" not in run.said
    assert "Traceback" not in run.said


def assert_same(run: Run, whole: Run) -> None:
    """Assert that all results are the same, byte for byte, except the times in one of them."""
    assert run.code == 0, run.said
    found, wanted = (
        {path.relative_to(one.results / SAMPLE): path for path in (one.results / SAMPLE).rglob("*")}
        for one in (run, whole)
    )
    assert found.keys() == wanted.keys()
    for name, path in found.items():
        if path.is_file():
            assert path.read_bytes() == wanted[name].read_bytes()


@pytest.mark.long
def test_killed_again_and_again(folded, tmp_path, clone):  # noqa: F811
    """During the second job, between gathered files, and while the files are written."""
    shutil.copy(GOLDEN / "my proteins.fasta", tmp_path)
    _, _, *given = arguments()
    killed = Killed(tmp_path, clone, ["--cores", "1", *given])
    for pause in ("fold:1:0", "aggregate:2:0", "structures:1:0", "structures:3:0"):
        killed.kill(pause, "--rerun-incomplete")
    assert_same(killed.run("--rerun-incomplete"), folded)
    with Structures.open(folded.results / SAMPLE / "structures.h5") as arrays:
        assert len(arrays.length) == 6


HIDDEN = """\
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "foldcomp" else find(name, *more)
"""


def test_a_missing_foldcomp_is_an_error_before_any_job(tmp_path):
    shutil.copy(GOLDEN / "my proteins.fasta", tmp_path)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HIDDEN)
    command = [sys.executable, "-m", "snakemake", "-n", "--snakefile", ROOT / "Snakefile"]
    done = subprocess.run(
        [*command, *arguments("fold={formats: [pdb, foldcomp]}")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 1
    assert "install it with pip install 'esm-pipeline[foldcomp]', or choose pdb" in said
    assert "Traceback" not in said
