"""Inputs: tables, compressed files, another workflow; and inputs that are refused."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from esm_pipeline import open_results
from esm_pipeline.formats.records import read_records
from tests.workflow.tools import RECORDS, ROOT, config, quoted, snakemake, write_fasta

MODULE = """
import json

module esm:
    snakefile: {snakefile!r}
    config: json.loads({config!r})

use rule * from esm as esm_*

rule everything:
    default_target: True
    input: rules.esm_all.input

rule proteins:
    output: "made/proteins.fasta"
    shell: "mkdir -p made && cp {source} {{output}}"
"""


def test_samples_of_several_files(whole_run, model, tmp_path):
    """Two samples; the second has the records of the shared run in two files, one compressed.

    The table on the command line takes the place of the config file's `fasta`.
    """
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.yaml").write_text("fasta: no_such.fasta\n")
    names = list(RECORDS)
    first, second = ({name: RECORDS[name] for name in part} for part in (names[:3], names[3:]))
    write_fasta(tmp_path / "b1.fasta", first)
    packed = write_fasta(tmp_path / "b2.fasta", second)
    (tmp_path / "b2.dat").write_bytes(gzip.compress(packed.read_bytes()))
    write_fasta(tmp_path / "a.fasta", {b"only": b"MKV"})
    rows = ["sample\tfasta\tnote", "a.x\ta.fasta\t", "b-1\tb1.fasta\t", "b-1\tb2.dat\tpacked"]
    (tmp_path / "table.tsv").write_text("\n".join(rows))
    arguments = config(model, "samples=table.tsv", "shards=auto", fasta=None)
    run = snakemake(tmp_path, *arguments)
    assert run.code == 0, run.said
    records = list(read_records(run.results / "b-1" / "records.tsv"))
    assert records == list(read_records(whole_run.results / "my_proteins" / "records.tsv"))
    with (
        open_results(run.results / "b-1" / "embeddings.h5") as one_shard,
        open_results(whole_run.results / "my_proteins" / "embeddings.h5") as two_shards,
    ):
        assert one_shard.ids == two_shards.ids
        for ours, theirs in zip(one_shard, two_shards, strict=True):
            assert np.abs(ours.mean[2] - theirs.mean[2]).max() <= 1e-4
            assert np.abs(ours.mean[2]).max() > 0.1
    with open_results(run.results / "a.x" / "embeddings.h5") as results:
        assert results.ids == ["only"]


def test_as_a_module_with_an_input_that_another_rule_makes(whole_run, model, tmp_path):
    source = whole_run.folder / "my proteins.fasta"
    settings = json.dumps({"fasta": "made/proteins.fasta", "model": str(model), "shards": 1})
    snakefile = tmp_path / "Snakefile"
    text = MODULE.format(snakefile=str(ROOT / "Snakefile"), config=settings, source="'in.fasta'")
    snakefile.write_text(text)
    (tmp_path / "in.fasta").write_bytes(source.read_bytes())
    run = snakemake(tmp_path, "--cores", "2", snakefile=snakefile)
    assert run.code == 0, run.said
    ours, theirs = run.results / "proteins", whole_run.results / "my_proteins"
    assert (ours / "records.tsv").read_bytes() == (theirs / "records.tsv").read_bytes()
    assert (run.results / "verdict.txt").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["embeed={}"], "config: unknown key 'embeed'; did you mean 'embed'?"),
        (["embed={layer: [3]}"], "config: unknown key 'embed.layer'; did you mean 'embed.layers'?"),
        (
            ["embed="],
            "config: 'embed' = None: should be keys with values, such as 'dtype'; write some",
        ),
        (
            ["revision=1234567"],
            "config: 'revision' = 1234567: should be text; put it in quotes, in",
        ),
        (["fasta=a.fasta", "samples=t.tsv"], "set one of 'fasta' (a single input) and 'samples'"),
        (["fasta=no.fasta", "shards=auto"], "no.fasta: no such file; check the path"),
        (["fasta=a{b}.fasta"], "fasta: 'a{b}.fasta': Snakemake reads braces and angle brackets"),
        ([b"fasta=\xff.fasta"], r"config: 'fasta' = '\udcff.fasta': should be UTF-8; rename it"),
        (["outdir=/"], "outdir '/': the root of the file system; name a folder in it"),
        (["samples=t.tsv"], "t.tsv:3: a cell begins with '\"' but does not end with one; close"),
    ],
)
def test_bad_settings_stop_at_once_in_one_line(model, tmp_path, change, message):
    write_fasta(tmp_path / "a.fasta")
    (tmp_path / "t.tsv").write_text('sample\tfasta\nx\ta.fasta\ny\t"a.fasta\nz\tb.fasta"\n')
    run = refused(tmp_path, f"fasta: a.fasta\nmodel: {quoted(model)}\n", "--config", *change)
    assert message in run.said.splitlines()[-2]


def refused(folder, config, *arguments):
    """Run what Snakemake must refuse: with our message, and no traceback."""
    (folder / "config").mkdir()
    (folder / "config" / "config.yaml").write_text(config)
    run = snakemake(folder, "-n", *arguments)
    assert run.code == 1
    assert "Traceback" not in run.said
    assert not (folder / "results").exists()
    return run


def test_the_error_for_a_config_file_that_is_not_yaml_names_its_line(tmp_path):
    run = refused(tmp_path, "fasta: a.fasta\nembed:\n\tlayers: [1]\n")
    message = "config/config.yaml:3: not YAML, found character '\\t' that cannot start any token;"
    assert message in run.said


def test_a_config_file_given_on_the_command_line_is_checked_too(tmp_path):
    (tmp_path / "mine.yaml").write_text("embed:\n  layers: [1]\n  layers: [2]\n")
    run = refused(tmp_path, "fasta: a.fasta\n", "--configfile", "mine.yaml")
    assert "mine.yaml:3: key 'layers' already appears in line 2; remove one" in run.said


def test_the_config_file_of_the_importer_of_a_module_is_not_checked(model, tmp_path):
    """It has a key twice."""
    snakefile = tmp_path / "Snakefile"
    settings = json.dumps({"fasta": "in.fasta", "model": str(model)})
    text = MODULE.format(snakefile=str(ROOT / "Snakefile"), config=settings, source="x")
    snakefile.write_text(text)
    write_fasta(tmp_path / "in.fasta")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.yaml").write_text("a: 1\na: 2\n")
    run = snakemake(tmp_path, "-n", "--cores", "1", snakefile=snakefile)
    assert run.code == 0, run.said
