"""Settings: what is accepted, what is refused and in which words, and what follows from them."""

from __future__ import annotations

import gzip
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm_pipeline.errors import InputError
from esm_pipeline.samples import expanded_size, sample_name
from esm_pipeline.settings import (
    CleaningSettings,
    EmbedSettings,
    ScoreSection,
    ScoreSettings,
    ShardSettings,
    StrategySettings,
    VariantSettings,
    check,
    flags,
    is_execution,
    load_settings,
    shard_names,
)


def refusal(function, *arguments) -> str:
    with pytest.raises(InputError) as caught:
        function(*arguments)
    return str(caught.value)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({}, "config: give one of 'fasta' (a single input) and 'samples' (a table of them)"),
        ({"fasta": "a", "samples": "b"}, "config: give one of 'fasta'"),
        ({"fasta": "a", "shard": {"gap": "skip"}}, "unknown key 'shard.gap'; did you mean 'gaps'?"),
        ({"fasta": "a", "zzz": 1}, "unknown key 'zzz'; known keys: fasta, samples, variants"),
        ({"fasta": "a", "shards": "many"}, "'shards' = 'many': "),
        ({"fasta": "a", "embed": {"layers": [-2]}}, "'embed.layers.0' = -2: "),
        ({"fasta": "a", "embed": {"layers": [3, 3]}}, "'embed.layers' = [3, 3]: names something"),
        ({"fasta": "a", "embed": {"include": []}}, "'embed.include' = []: "),
        ({"fasta": "a", "embed": {"device": "gpu"}}, "'embed.device' = 'gpu': "),
        ({"fasta": "a", "embed": {"threads": 1025}}, "'embed.threads' = 1025: "),
        ({"fasta": "a", "tasks": ["embed", "embed"]}, "'tasks' = ['embed', 'embed']: names some"),
        ({"fasta": "a", "embed": {"token_budget": 0}}, "'embed.token_budget' = 0: "),
        ({"fasta": "a", "score": {"strategy": "x"}}, "'score.strategy' = 'x': "),
        ({"fasta": "a", "score": {"models": {"a/b": "demo"}}}, "label 'a/b' should have letters"),
        ({"fasta": "a", "score": {"plots": True}}, "'plots' are of a saturation; set 'saturation'"),
        (
            {"fasta": "a", "score": {"saturation": True, "strategy": "pseudo_log_likelihood"}},
            "a saturation by pseudo_log_likelihood takes 19 L² passes a protein; choose masked_",
        ),
        ({"samples": "a", "variants": "b"}, "'variants' goes with 'fasta'; with 'samples' it is a"),
        ({"fasta": "a", "variants": "b"}, "no task scores them; add score to 'tasks'"),
    ],
)
def test_bad_config_is_told_with_its_key(config, told):
    message = refusal(load_settings, config)
    assert told in message
    assert all(line.startswith("config: ") for line in message.splitlines())


def test_every_problem_has_its_line():
    message = refusal(load_settings, {"fasta": "a", "modle": "x", "embed": {"dtype": "int3"}})
    assert len(message.splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sample,fasta\na,b\n", "t.tsv:1: no column 'sample'"),
        ("sample\tfasta\n", "t.tsv: no samples"),
        ("sample\tfasta\na/b\tx\n", "t.tsv:2: sample name 'a/b' cannot name a folder"),
        ("sample\tfasta\n..\tx\n", "t.tsv:2: sample name '..' cannot name a folder"),
        ("sample\tfasta\na\tx\nLogs\ty\n", "t.tsv:3: 'Logs' is a name of the workflow's own"),
        ("sample\tfasta\na\t\n", "t.tsv:2: sample 'a' has no fasta"),
        ("sample\tfasta\na\n", "t.tsv:2: sample 'a' has no fasta"),
        ("sample\tfasta\na\tx\na\tx\n", "t.tsv:3: sample 'a' lists x twice"),
        ("sample\tfasta\na\tx\nA\ty\n", "samples 'a' and 'A' differ only in case"),
        ("sample\tfasta\na\tx{1}\n", "x{1}: braces in a path"),
        ("sample\tfasta\tvariants\na\tx\tv{1}\n", "v{1}: braces in a path"),
        (
            "sample\tfasta\tvariants\na\tx\tv\na\ty\tw\n",
            "t.tsv:3: sample 'a' has two tables of variants; join them, or make it two samples",
        ),
    ],
)
def test_bad_table_is_told_with_its_line(tmp_path, text, told):
    table = tmp_path / "t.tsv"
    table.write_text(text)
    assert told in refusal(load_settings({"samples": str(table)}).inputs)


def test_table_may_come_from_a_spreadsheet(tmp_path):
    table = tmp_path / "t.tsv"
    text = "\ufeffsample\tnote\tfasta\r\nb\tx\ttwo.fa\r\na\t\tone.fa\r\nb\ty\tthree.fa\r\n"
    expected = {"b": ["two.fa", "three.fa"], "a": ["one.fa"]}
    for content in (text.encode(), gzip.compress(text.encode())):
        table.write_bytes(content)
        inputs = load_settings({"samples": str(table)}).inputs()
        assert inputs == expected
        assert list(inputs) == list(expected)


def test_tables_of_variants(tmp_path):
    table = tmp_path / "t.tsv"
    table.write_text("sample\tfasta\tvariants\na\tx\t\na\ty\tv.csv\na\tz\tv.csv\nb\tw\t\n")
    config = {"samples": str(table), "tasks": ["score"], "score": {"saturation": True}}
    chosen = load_settings(config)
    assert chosen.inputs() == {"a": ["x", "y", "z"], "b": ["w"]}
    assert chosen.tables() == {"a": "v.csv"}
    assert load_settings({**config, "tasks": ["embed"]}).tables() == {}
    told = refusal(load_settings({**config, "score": {}}).tables)
    assert f"{table}: sample 'b' has no variants to score; name a table of them, or set" in told
    single = load_settings({"fasta": "p.fa", "variants": "v.csv", "tasks": ["score"]})
    assert single.tables() == {"p": "v.csv"}
    (tmp_path / "v.csv").write_text("x" * 25)
    sized = load_settings({"fasta": "p.fa", "score": {"table_bytes": 10}})
    assert sized.table_shard_count(str(tmp_path / "v.csv")) == 3
    assert load_settings({"fasta": "p.fa", "shards": 7}).table_shard_count("none") == 7


def test_models_of_an_ensemble_as_flags():
    section = ScoreSection(models={"one": "owner/name@abc", "two": "my folder"})
    assert section.model_flags("demo", "v1") == [
        *("--label=one", "--model=owner/name", "--revision=abc"),
        *("--label=two", "--model=my folder", "--revision="),
    ]
    assert ScoreSection().model_flags("demo", "v1") == ["--model=demo", "--revision=v1"]
    assert ScoreSection().model_flags("demo", None) == ["--model=demo"]


PACKED = gzip.compress(b"sample\tfasta\na\tx\n")


@pytest.mark.parametrize(
    "content",
    [None, b"\xff\xfe", PACKED[:12], PACKED[:12] + b"\xff" * 9, PACKED[:-8] + b"damaged."],
)
def test_table_that_cannot_be_read(tmp_path, content):
    table = tmp_path / "t.tsv"
    if content is not None:
        table.write_bytes(content)
    told = refusal(load_settings({"samples": str(table)}).inputs)
    assert f"{table}: the sample table cannot be read" in told


@pytest.mark.parametrize(
    ("fasta", "name"),
    [
        ("data/my proteins.fasta.gz", "my_proteins"),
        ("x.FAA", "x"),
        ("no_suffix", "no_suffix"),
        ("a.b.c.fa", "a.b.c"),
        ("--.fasta", "sample"),
        ("Logs.fasta", "sample_Logs"),
        ("été.fasta", "t"),
    ],
)
def test_a_single_input_names_its_sample(fasta, name):
    assert sample_name(fasta) == name


@given(st.text(min_size=1, max_size=200))
def test_any_file_name_gives_a_name_that_a_table_takes(tmp_path_factory, name):
    table = tmp_path_factory.mktemp("t") / "t.tsv"
    table.write_text(f"sample\tfasta\n{sample_name(name)}\tx\n")
    assert list(load_settings({"samples": str(table)}).inputs()) == [sample_name(name)]


def test_shards_follow_from_the_size(tmp_path):
    fasta = tmp_path / "a.fasta"
    fasta.write_bytes(b"A" * 2500)
    packed = tmp_path / "a.gz"
    packed.write_bytes(gzip.compress(bytes(range(256)) * 10))
    chosen = load_settings({"fasta": "a", "shard": {"residues": 1000}})
    assert chosen.shard_count([str(fasta)]) == 3
    assert chosen.shard_count([str(fasta)] * 2) == 5
    assert expanded_size(str(packed)) == 2 * packed.stat().st_size
    fasta.write_bytes(b"")
    assert chosen.shard_count([str(fasta)]) == 1


def test_with_a_number_of_shards_the_input_need_not_exist(tmp_path):
    missing = str(tmp_path / "none.fasta")
    assert load_settings({"fasta": missing, "shards": 7}).shard_count([missing]) == 7
    told = refusal(load_settings({"fasta": missing}).shard_count, [missing])
    assert "no such file" in told
    assert "set 'shards' to a number" in told
    assert "cannot be read" in refusal(expanded_size, str(tmp_path))


def test_shard_names_sort_as_their_numbers():
    names = shard_names(1200)
    assert names == sorted(names)
    assert (names[0], names[-1], len(set(names))) == ("00000", "01199", 1200)


def test_flags_tell_results_and_execution_apart():
    section = EmbedSettings(layers=[-1, 3], threads=2)
    results, execution = flags(section), flags(section, execution=True)
    assert shlex.split(results) == [
        "--dtype=float32",
        "--layers=-1,3",
        "--include=mean",
        "--residue-dtype=float16",
        "--long=auto",
    ]
    assert shlex.split(execution) == ["--device=auto", "--token-budget=16384", "--threads=2"]


def test_cleaning_is_what_changes_results_of_shard():
    chosen = ShardSettings(gaps="remove", residues=5).part(CleaningSettings)
    assert type(chosen) is CleaningSettings
    assert chosen == CleaningSettings(gaps="remove")


def test_score_is_what_it_reads_and_how_it_scores():
    section = ScoreSection(offset=3, strategy="wt_marginal", saturation=True, protein_col="id")
    reading, scoring = section.part(VariantSettings), section.part(StrategySettings)
    assert shlex.split(flags(reading)) == [
        "--mutation-col=mutant",
        "--offset=3",
        "--protein-col=id",
    ]
    assert shlex.split(flags(scoring)) == [
        *("--dtype=float32", "--strategy=wt_marginal", "--long=auto", "--window=1024")
    ]
    both = {*VariantSettings.model_fields, *StrategySettings.model_fields}
    assert both == set(ScoreSettings.model_fields)


@pytest.mark.parametrize("name", EmbedSettings.model_fields)
def test_every_field_reaches_the_flags_once(name):
    text = flags(EmbedSettings()) + " " + flags(EmbedSettings(), execution=True)
    assert text.count(f"--{name.replace('_', '-')}=") == 1
    assert isinstance(is_execution(EmbedSettings, name), bool)


def test_check_names_its_source():
    told = refusal(check, EmbedSettings, {"dtype": "x"}, "command line")
    assert told.startswith("command line: 'dtype' = 'x': ")
