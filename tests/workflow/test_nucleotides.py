"""Nucleotides in the workflow: every task computes what `shard` accepts, unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest

from esm_pipeline import open_results
from esm_pipeline.formats.records import read_records
from tests.workflow.tools import config, snakemake

CDS = "ATGGCGAAACTGGTGATTACCCGTTGGCAGGAATAA"


@pytest.mark.parametrize(
    ("shard", "length"),
    [("{nucleotides: keep, max_letters: 200000}", 36), ("{nucleotides: translate}", 11)],
)
def test_what_is_kept_or_translated_is_computed(
    tmp_path: Path, model: Path, shard: str, length: int
) -> None:
    (tmp_path / "in.fasta").write_text(f">cds\n{CDS}\n")
    chosen = config(
        model,
        "fasta=in.fasta",
        "tasks=[embed, score]",
        "score={saturation: true, strategy: wt_marginal}",
        f"shard={shard}",
    )
    done = snakemake(tmp_path, *chosen)
    assert done.code == 0, done.said
    (row,) = read_records(done.results / "in" / "records.tsv")
    assert (row.status, row.length) == ("ok", length)
    assert [outcome.status for outcome in row.outcomes.values()] == ["ok", "ok"]
    with open_results(done.results / "in" / "embeddings.h5") as found:
        assert found.ids == ["cds"]


def test_a_file_of_nucleotides_stops_before_any_job_that_computes(
    tmp_path: Path, model: Path
) -> None:
    (tmp_path / "in.fasta").write_text(f">cds\n{CDS}\n")
    done = snakemake(tmp_path, *config(model, "fasta=in.fasta"))
    assert done.code == 1
    log = (done.results / "logs" / "shard" / "in.log").read_text()
    assert log == (
        "esm-pipeline shard: in.fasta:1: looks like DNA, as the first record does; set "
        "shard.nucleotides to 'translate' to read coding sequences, or to 'keep' to take the "
        "letters as residues\n"
    )
    assert not (done.results / "in" / "embed").exists()
