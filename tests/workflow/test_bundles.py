"""A sample of several bundles: its results are those of one bundle, in more files."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from esm_pipeline import open_results
from esm_pipeline.cli import main
from esm_pipeline.formats.records import read_records
from esm_pipeline.formats.structure_files import PAIR_COLUMNS
from tests.workflow.tools import Run, config, job_counts, snakemake, write_fasta

TASKS = "tasks=[embed, score, fold]"
SECTIONS = (
    "embed={include: [mean, residue], job_residues: 400}",
    "score={saturation: true, plots: true, job_residues: 400}",
    "fold={model: demo, num_recycles: 0, job_residues: 400, max_residues: 40}",
)
KINDS = {
    "embeddings": "embeddings.h5",
    "saturation": "saturation.h5",
    "structures": "structures.h5",
}


def records() -> dict[bytes, bytes]:
    """Sequences of 5 to 45 residues, duplicates, complexes and bad ones, in any order."""
    letters = random.Random(7)
    found = {
        b"p%d of none" % place: "".join(
            letters.choices("ACDEFGHIKLMNPQRSTVWY", k=letters.randrange(5, 46))
        ).encode()
        for place in range(30)
    }
    found |= {b"again%d" % place: found[b"p%d of none" % place] for place in (3, 17, 4)}
    found |= {b"stop": b"MK*V", b"pair": b"MKVA:GGLI", b"gap": b"M-K", b"none": b""}
    order = sorted(found)
    letters.shuffle(order)
    return {name: found[name] for name in order}


def run_with(folder: Path, model: Path, *more: str) -> Run:
    write_fasta(folder / "all.fasta", records())
    chosen = [TASKS, *SECTIONS, "shards=auto", *more]
    run = snakemake(folder, *config(model, *chosen, fasta="all.fasta"))
    assert run.code == 0, run.said
    return run


@pytest.fixture(scope="module")
def one(tmp_path_factory, model) -> Run:
    return run_with(tmp_path_factory.mktemp("one"), model, "shard={least: 1}")


@pytest.fixture(scope="module")
def many(tmp_path_factory, model) -> Run:
    return run_with(tmp_path_factory.mktemp("many"), model, "shard={bundle: 1, least: 1}")


def sample(run: Run) -> Path:
    return run.results / "all"


def test_the_files(one, many):
    bundles = {path.name for path in (sample(many) / "bundles").glob("*.fasta")}
    assert len(bundles) == 4
    for folder, name in KINDS.items():
        assert (sample(one) / name).is_file()
        assert not (sample(many) / name).exists()
        found = {path.name for path in (sample(many) / folder).glob("*.h5")}
        assert found == {bundle.replace("fasta", "h5") for bundle in bundles}
    left = {path.name for path in sample(many).rglob("*-of-*")}
    assert left == set(), "files of jobs are temporary"


def test_records_are_the_same(one, many):
    tables = [(sample(run) / "records.tsv").read_bytes() for run in (one, many)]
    assert tables[0] == tables[1]
    found = list(read_records(sample(many) / "records.tsv"))
    assert [record.header.encode() for record in found] == [*records()]
    assert {record.outcomes["fold"].status for record in found} == {"ok", "skipped"}


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_the_same(one, many, kind):
    whole = open_results(sample(one) / KINDS[kind])
    with whole, open_results(sample(many) / kind) as parts:
        assert len(parts) == len(whole) > 20
        assert parts.ids == whole.ids
        frames = [results.to_pandas() for results in (whole, parts)]
        assert list(frames[0]) == list(frames[1])
        for name, column in frames[0].items():
            if column.dtype == np.float32:
                assert np.allclose(
                    column, frames[1][name], rtol=0, atol=TOLERANCE[kind], equal_nan=True
                )
            else:
                assert column.tolist() == frames[1][name].tolist()
        for ours, theirs in zip(parts, whole, strict=True):
            assert (ours.id, ours.index, ours.length) == (theirs.id, theirs.index, theirs.length)


TOLERANCE = {"embeddings": 1e-4, "saturation": 1e-4, "structures": 0.31}
"""The structures are of random weights, which enlarge the differences between batches."""


def test_structures_lead_to_their_files(one, many):
    tables = [pd.read_csv(sample(run) / "structures.tsv", sep="\t") for run in (one, many)]
    columns = ["index", "id", "status", "reason", "length", "chains"]
    pd.testing.assert_frame_equal(tables[0][columns], tables[1][columns])
    files = tables[1]["file"].dropna()
    assert len(files) == len(tables[0]["file"].dropna()) > 20
    for file in files:
        assert b"\nTITLE     Predicted structure of " in (sample(many) / file).read_bytes()


def test_the_table_of_the_atlas_and_one_structure_by_its_id(one, many):
    frames = [pd.read_parquet(sample(run) / "structures.parquet") for run in (one, many)]
    columns = ["index", "id", "status", "reason", "len", "chains", "sequenceChecksum"]
    pd.testing.assert_frame_equal(frames[0][columns], frames[1][columns])
    for run, frame in zip((one, many), frames, strict=True):
        told = pd.read_csv(sample(run) / "structures.tsv", sep="\t")
        assert frame["file"].fillna("").tolist() == told["file"].fillna("").tolist()
        np.testing.assert_allclose(frame["plddt"] * 100, told["plddt"], atol=1e-9)
        files = open_results(sample(run) / "structures.tsv", "structure_files")
        index, name = told.dropna(subset=["file"])[["index", "id"]].iloc[0]
        assert f"\nTITLE     Predicted structure of {name}" in files[int(index)].text
        assert list(files.index) == told["index"][told["file"].notna()].tolist()


def test_flags_of_all_bundles_are_in_one_table(one, many):
    for run in (one, many):
        told = pd.read_csv(sample(run) / "structures.tsv", sep="\t", index_col="index")["flags"]
        found = pd.read_csv(sample(run) / "flags.tsv", sep="\t")
        assert found["index"].is_monotonic_increasing
        names = found.groupby("index")["flag"].agg(lambda flags: ";".join(dict.fromkeys(flags)))
        assert names.to_dict() == told.dropna().to_dict()
        pairs = pd.read_csv(sample(run) / "chain_pairs.tsv", sep="\t")
        assert list(pairs) == list(PAIR_COLUMNS)


def test_pictures_are_the_same(one, many):
    names = [
        sorted(path.name for path in (sample(run) / "heatmaps").rglob("*.png"))
        for run in (one, many)
    ]
    assert names[0] == names[1]
    assert len(names[0]) > 20


def test_the_end_of_a_run(one, many):
    texts = [(run.results / "verdict.txt").read_text() for run in (one, many)]
    assert texts[0] == texts[1]
    pages = [(run.results / "report.html").read_text() for run in (one, many)]
    facts = [re.findall(r"<p>[^<]*records with[^<]*", page) for page in pages]
    assert facts[0] == facts[1] != []
    origin = json.loads((many.results / "provenance.json").read_text())
    assert origin["samples"]["all"]["bundles"] == 4
    assert origin["not_of_this_run"] == []
    listed = origin["samples"]["all"]["results"]
    assert {f"embeddings/0000{n}.h5" for n in range(4)} < listed.keys()


def test_verify_notices_a_changed_bundle(many, tmp_path, capsys):
    assert main(["verify", str(many.results)]) == 0
    path = sample(many) / "embeddings" / "00002.h5"
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        capsys.readouterr()
        assert main(["verify", str(many.results)]) == 1
        assert "embeddings/00002.h5: differs" in capsys.readouterr().out
    finally:
        path.write_bytes(whole)
    assert main(["verify", str(many.results)]) == 0


def test_nothing_runs_again(many, model):
    chosen = [TASKS, *SECTIONS, "shards=auto", "shard={bundle: 1, least: 1}"]
    dry = snakemake(many.folder, "-n", *config(model, *chosen, fasta="all.fasta"))
    assert job_counts(dry) == {}


def test_jobs_beyond_the_least_size_are_empty_and_load_nothing(tmp_path, model):
    """More jobs than the input is worth: the results are the same, and most jobs end at once."""
    write_fasta(tmp_path / "all.fasta", records())
    chosen = config(model, "shards=9", "shard={least: 300}", fasta="all.fasta")
    run = snakemake(tmp_path, *chosen)
    assert run.code == 0, run.said
    worked = re.findall(r"embed, range \S+: .*; ([1-9]\d*) residues? in", run.said)
    assert len(worked) == 2, run.said
    assert len(re.findall(r"embed: no sequences in range \d-of-9", run.said)) == 7
