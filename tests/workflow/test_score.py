"""Variants and saturation from the workflow: as from the command; what each change reruns."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest

from esm_pipeline import open_results
from esm_pipeline.cli import main
from esm_pipeline.formats.checksums import sha256
from esm_pipeline.formats.records import read_records
from tests.workflow.test_run import copy_of_the_project
from tests.workflow.tools import Run, config, jobs, quoted, snakemake, write_fasta

FIRST = b"MKTAYIAKQRQISFVKSHFSRQ"
RECORDS = {b"P1 first": FIRST, b"P2": b"GAVLIWGAVLIW", b"gap": b"MK-V", b"P3": FIRST}
SCAN = [
    ("P1", "K2L"),
    ("P2", "G1A:A2V"),
    ("P3", "K2L"),
    ("gap", "M1A"),
    ("P1", "L2K"),
    ("P2", "WT"),
]
MODELS = "models: {one: {model}, two: demo}"
SCORE = "saturation: true, plots: true"
OF_TABLE = {"scores.tsv", "scores.json", "variants.sha256", "variants"}
OF_ALL = {
    "saturation.h5",
    "heatmaps",
    "heatmaps.sha256",
    "records.tsv",
    "score",
    "bundles",
    "counts",
}
OF_ALL |= {"inputs.sha256"}


@pytest.fixture(scope="module")
def scored(tmp_path_factory, model) -> Run:
    """Two samples in two shards each, saturated by two models; one has variants."""
    folder = tmp_path_factory.mktemp("it's a scan")
    write_fasta(folder / "a.fasta", RECORDS)
    write_fasta(folder / "b.fasta", {b"Q": b"MKVLA"})
    rows = pd.DataFrame(SCAN, columns=["protein", "mutant"]).assign(
        kept=["1.10", "", "x", "", "", '"']
    )
    rows.to_csv(folder / "my scan.csv", index=False)
    table = "sample\tfasta\tvariants\nA\ta.fasta\tmy scan.csv\nB\tb.fasta\t\n"
    (folder / "samples.tsv").write_text(table)
    return snakemake(folder, *chosen(model))


def chosen(model, score: str = "", *more: str) -> list[str]:
    ensemble = MODELS.replace("{model}", quoted(model))
    section = f"score={{{SCORE}, {ensemble}{', ' if score else ''}{score}}}"
    own = ["samples=samples.tsv", "tasks=[score]", section]
    keys = {item.partition("=")[0] for item in more}
    return config(
        model, *(item for item in own if item.partition("=")[0] not in keys), *more, fasta=None
    )


def table_of(path) -> pd.DataFrame:
    """A table as text, with the number of decimals in place of the scores.

    Other shards make other batches, so the last digits of the scores may differ.
    """
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    for name in [one for one in table if one.startswith("masked_marginal")]:
        table[f"{name} decimals"] = table[name].str.partition(".")[2].str.len()
        table[name] = pd.to_numeric(table[name])
    return table


def test_the_same_as_from_the_command(scored, model, tmp_path):
    assert scored.code == 0, scored.said
    found = {path.name for path in (scored.results / "A").iterdir()}
    assert found == OF_TABLE | OF_ALL
    assert {path.name for path in (scored.results / "B").iterdir()} == OF_ALL
    common = ["score", "--quiet", f"--model={model}", "--label=one", "--model=demo", "--label=two"]
    fasta, out = scored.folder / "a.fasta", tmp_path / "out.tsv"
    table = ["--variants", str(scored.folder / "my scan.csv"), str(fasta), str(out)]
    assert main([*common, *table]) == 0
    ours, alone = (table_of(path) for path in (scored.results / "A" / "scores.tsv", out))
    ours["reason"] = ours["reason"].str.replace("shard.gaps", "--gaps")
    pd.testing.assert_frame_equal(ours, alone, check_exact=False, rtol=0, atol=1e-4)
    assert main([*common, "--saturation", str(fasta), str(tmp_path / "out.h5")]) == 0
    with (
        open_results(scored.results / "A" / "saturation.h5") as one,
        open_results(tmp_path / "out.h5") as other,
    ):
        assert (
            (one.ids, one.labels)
            == (other.ids, other.labels)
            == (["P1", "P2", "P3"], ["one", "two"])
        )
        for ours, theirs in zip(one, other, strict=True):
            assert np.abs(ours.log_odds - theirs.log_odds).max() <= 1e-4
            assert ours.sequence == theirs.sequence
    pictures = sorted(path.name for path in (scored.results / "A" / "heatmaps").glob("*.png"))
    assert pictures == ["000000_P1.png", "000001_P2.png", "000003_P3.png"]


def test_every_record_and_row_is_accounted_for(scored):
    records = list(read_records(scored.results / "A" / "records.tsv"))
    assert [record.outcomes["score"].status for record in records] == ["ok", "ok", "skipped", "ok"]
    rows = pd.read_csv(scored.results / "A" / "scores.tsv", sep="\t", keep_default_na=False)
    assert rows["status"].tolist() == ["ok", "ok", "ok", "skipped", "skipped", "ok"]
    assert rows["kept"].tolist() == ["1.10", "", "x", "", "", '"']
    assert list(rows)[-3:] == ["masked_marginal", "masked_marginal.one", "masked_marginal.two"]
    verdict = (scored.results / "verdict.txt").read_text()
    assert "A       variants          6   4        2       0           0" in verdict
    assert "nothing failed" in verdict


def test_provenance_describes_the_scores(scored, model):
    facts = json.loads((scored.results / "provenance.json").read_text())
    sample = facts["samples"]["A"]
    scan = scored.folder / "my scan.csv"
    assert sample["variants"] == {
        "path": scan.name,
        "bytes": scan.stat().st_size,
        "sha256": sha256(scan),
    }
    assert sample["records"]["variants"] == {"records": 6, "ok": 4, "skipped": 2, "duplicates": 0}
    for name in ("scores.tsv", "saturation.h5"):
        models = sample["results"][name]["models"]
        assert [one["model"] for one in models.values()] == [model.name, "demo"]
    assert "variants" not in facts["samples"]["B"]
    assert {name: one["tasks"] for name, one in facts["models"].items()} == {
        "models/one": ["score"],
        "models/two": ["score"],
    }
    assert facts["models"]["models/two"]["name"] == "demo"


def test_a_table_that_changes_during_the_run_is_a_one_line_error(
    scored, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(scored.folder)
    results = tmp_path / "results"
    shutil.copytree(scored.results, results)
    settings = json.dumps(json.loads((results / "provenance.json").read_text())["settings"])
    arguments = ["provenance", "--settings", settings, "--out", str(results / "provenance.json")]
    assert main(arguments) == 0
    listing = results / "A" / "variants.sha256"
    listing.write_text(f"{'0' * 64}  my scan.csv\n")
    times = os.stat("my scan.csv")
    os.utime("my scan.csv", ns=(times.st_atime_ns, times.st_mtime_ns))  # now
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"my scan.csv: has changed since the workflow read it; remove {listing} and run" in line


def test_an_input_on_the_command_line_replaces_the_table_too(tmp_path, model):
    (tmp_path / "config").mkdir()
    own = "fasta: a.fasta\nvariants: v.tsv\ntasks: [score]\n"
    (tmp_path / "config" / "config.yaml").write_text(own)
    for name in ("a.fasta", "b.fasta", "w.tsv"):
        write_fasta(tmp_path / name)
    run = snakemake(tmp_path, "-n", *config(model, fasta="b.fasta"))
    assert "b.fasta: sample 'b' has no variants to score" in run.said
    run = snakemake(tmp_path, "-n", *config(model, "variants=w.tsv", fasta=None))
    assert run.code == 0, run.said
    assert "split: the variant table of sample a" in run.said


SATURATION = {"score", "gather_score", "heatmaps"}
SCORED = {"score_variants", "join"}
LAST = {"records", "provenance", "report", "counts", "verdict"}


@pytest.mark.parametrize(
    ("score", "more", "rerun"),
    [
        ("token_budget: 99, threads: 1, device: cpu", (), set()),
        ("table_bytes: 5", (), set()),
        ("offset: 1", (), {"split", *SCORED} | LAST - {"records"}),
        ("strategy: wt_marginal", (), {"check_score", "split", *SATURATION, *SCORED, *LAST}),
        ("", ("tasks=[embed, score]",), {"model", "check_embed", "embed", "gather_embed"} | LAST),
        (
            "",
            ("shard={gaps: remove}",),
            {"shard_A", "shard_B", "split", *SATURATION, *SCORED, *LAST},
        ),
        ("", ("on_failure=keep",), {"verdict"}),
    ],
)
def test_a_change_reruns_what_it_changes(scored, model, score, more, rerun):
    assert jobs(snakemake(scored.folder, "-n", *chosen(model, score, *more))) == rerun


def test_a_row_that_failed_ends_in_an_error_after_everything_is_written(tmp_path, model):
    """The job of one shard is made to fail: no memory for sequences of 14 tokens."""
    write_fasta(tmp_path / "a.fasta", RECORDS)
    (tmp_path / "v.tsv").write_text("mutant\tprotein\nK2L\tP1\nG1A\tP2\n")
    source = (
        "import torch\nfrom esm_pipeline.model import EsmForMaskedLM as M\nold = M.packed_logits\n"
    )
    source += "def new(self, ids, layout, rows=None):\n    if 14 in layout.lengths:\n"
    source += "        raise torch.OutOfMemoryError\n    return old(self, ids, layout, rows)\n"
    source += "M.packed_logits = new\n"
    clone = tmp_path / "clone"
    copy_of_the_project(clone)
    task = clone / "esm_pipeline" / "tasks" / "score" / "strategies.py"
    task.write_text(task.read_text() + source)
    arguments = config(model, "shards=1", "tasks=[score]", "variants=v.tsv", fasta="a.fasta")
    run = snakemake(tmp_path, *arguments, snakefile=clone / "Snakefile")
    assert run.code == 1
    rows = pd.read_csv(run.results / "a" / "scores.tsv", sep="\t")
    assert rows["status"].tolist() == ["ok", "failed"]
    assert "12 residues do not fit into memory, even alone" in rows["reason"][1]
    records = {
        one.id: one.outcomes["score"].status for one in read_records(run.results / "a/records.tsv")
    }
    assert records == {"P1": "ok", "P2": "failed", "gap": "skipped", "P3": "ok"}
    assert (run.results / "provenance.json").exists()
    assert "2 failed" in run.said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["tasks=[score]"], "sample 'a' has no variants to score; give it a variant table, or set"),
        (["variants=v.tsv"], "'variants' is set, but no task scores them; add score to 'tasks'"),
        (
            ["tasks=[score]", "variants=no.tsv", "shards=auto"],
            "no.tsv: no such file; check the path",
        ),
        (
            ["tasks=[score]", "score={stratgy: x}"],
            "unknown key 'score.stratgy'; did you mean 'score.stra",
        ),
        (
            ["tasks=[score]", "score={models: {a b: demo}}"],
            "label 'a b' may contain only letters, digits",
        ),
    ],
)
def test_bad_settings_stop_at_once_in_one_line(model, tmp_path, change, message):
    write_fasta(tmp_path / "a.fasta")
    run = snakemake(tmp_path, "-n", *config(model, *change, fasta="a.fasta"))
    assert run.code == 1
    assert message in run.said
    assert "Traceback" not in run.said


COMMENTED = "# from AlphaMissense\nuniprot_id\tprotein_variant\nP1\tK2L\nP9\tK2L\nP1\tK2del\n"


def test_rows_of_another_protein(tmp_path, model):
    """One record, and a table that names others too; messages name keys of the config file."""
    write_fasta(tmp_path / "wt.fasta", {b"sp|P1|ONE": FIRST})
    (tmp_path / "scan.tsv").write_text(COMMENTED)
    own = config(model, "tasks=[score]", "variants=scan.tsv", fasta="wt.fasta")
    run = snakemake(tmp_path, *own)
    assert run.code != 0
    assert (
        "scan.tsv: no column 'mutant'; it has 'uniprot_id', 'protein_variant'; set "
        "score.mutation_col to 'protein_variant' and score.protein_col to 'uniprot_id'"
    ) in run.said
    run = snakemake(tmp_path, *own, "score={mutation_col: protein_variant}")
    assert run.code != 0
    assert "column 'uniprot_id' names 'P1' and 'P9', but the only wild type is 'sp|P1|" in run.said
    assert "set score.protein_col to 'uniprot_id', or score.protein to" in run.said
    run = snakemake(
        tmp_path, *own, "score={mutation_col: protein_variant, protein_col: uniprot_id}"
    )
    assert run.code == 0, run.said
    (name,) = (path.name for path in run.results.iterdir() if (path / "scores.tsv").exists())
    comment, *lines = (run.results / name / "scores.tsv").read_text().splitlines()
    assert comment == "# from AlphaMissense"
    rows = [line.split("\t") for line in lines]
    assert [row[2] for row in rows] == ["status", "ok", "skipped", "skipped"]
    assert rows[2][3] == "no protein 'P9' among the wild types; check the name"
    assert rows[3][3].endswith("set score.strategy to pseudo_log_likelihood")
    assert "variants          3   1        2       0" in (run.results / "verdict.txt").read_text()
