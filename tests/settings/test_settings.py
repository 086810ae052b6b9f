"""Settings: what is accepted, what is refused and in which words, and what follows from them."""

from __future__ import annotations

import datetime
import gzip
import json
import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm_pipeline.errors import InputError
from esm_pipeline.flags import flags
from esm_pipeline.settings import (
    MOST_RANGES,
    MOST_SHARDS,
    RECORD_BYTES,
    Model,
    Settings,
    json_schema,
    load_settings,
)
from esm_pipeline.settings.result_names import bundle_names, of_bundles
from esm_pipeline.settings.section import check, is_execution
from esm_pipeline.settings.sections import (
    CleaningSettings,
    EmbedSettings,
    ScoreSection,
    ScoreSettings,
    ShardSettings,
    StrategySettings,
    VariantSettings,
)

FASTA = {"fasta": "a"}
QUOTES = "should be text; put it in quotes, in the config file"
BUDGET = "should be a whole number from 1"
SHARDS = "should be 'auto' or a whole number from 1 to 100000"
INCLUDE = "'mean', 'residue', 'bos' or 'contacts'"
EMPTY = "should be keys with values, such as 'dtype'; write some below it, or leave it out"
CHARACTER = "contains a line break or control character; remove it"


def refusal(function, *arguments) -> str:
    with pytest.raises(InputError) as caught:
        function(*arguments)
    return str(caught.value)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({}, "set one of 'fasta' (a single input) and 'samples' (a table of them)"),
        (
            FASTA | {"score": {"strategy": "x"}},
            "'score.strategy' = 'x': should be 'masked_",
        ),
        (
            FASTA | {"score": {"models": {"a/b": "demo"}}},
            "'score.models' = {'a/b': 'demo'}: label 'a/b' may contain only letters, digits",
        ),
        (
            FASTA | {"score": {"models": {"a": "demo", "A": "x"}}},
            "'score.models' = {'A': 'x', 'a': 'demo'}: label 'a' appears twice (differing only",
        ),
        (FASTA | {"score": {"models": "demo"}}, "'score.models' = 'demo': should be keys with val"),
        (FASTA | {"score": {"models": {"a": ""}}}, "'score.models.a' = '': should be text"),
        (FASTA | {"score": {"models": {3: "a"}}}, "'score.models.3' = 3: should be text"),
        (FASTA | {"score": {"plots": "x"}}, "'score.plots' = 'x': should be true or false"),
        (
            FASTA | {"score": {"plots": True}},
            "'score' = {'plots': True}: 'plots' shows a saturation; set",
        ),
        (
            FASTA | {"score": {"saturation": True, "strategy": "pseudo_log_likelihood"}},
            "'score' = {'saturation': True, 'strategy': 'pseudo_log_likelihood'}: saturation with ",
        ),
        ({"samples": "a", "variants": "b"}, "'variants' goes with 'fasta'; with 'samples' it is a"),
        (
            {"fasta": "a", "variants": "b"},
            "'variants' is set, but no task scores them; add score to 'tasks'",
        ),
        ({"fasta": "a", "samples": "b"}, "set one of 'fasta' (a single input) and 'samples' "),
        (None, "None: should be keys with values, such as 'fasta: my.fasta'"),
        (["fasta"], "['fasta']: should be keys with values, such as 'fasta: my.fasta'"),
        # unknown keys: the nearest beside it, or one of that name elsewhere
        ({"fata": "a"}, "unknown key 'fata'; did you mean 'fasta'?"),
        (FASTA | {"Model": "x"}, "unknown key 'Model'; did you mean 'model'?"),
        (FASTA | {"shard": {"gap": "skip"}}, "unknown key 'shard.gap'; did you mean 'shard.gaps'?"),
        (
            FASTA | {"embed": {"token-budget": 5}},
            "unknown key 'embed.token-budget'; did you mean 'embed.token_budget'?",
        ),
        (FASTA | {"layers": [1]}, "unknown key 'layers'; did you mean 'embed.layers'?"),
        (FASTA | {"embed": {"gaps": 1}}, "unknown key 'embed.gaps'; did you mean 'shard.gaps'?"),
        (FASTA | {"zzz": 1}, "unknown key 'zzz'; known keys: fasta, samples, variants, outdir"),
        (FASTA | {"embed": {"zzz": 1}}, "unknown key 'embed.zzz'; known keys: dtype, device"),
        (FASTA | {3: 1}, "unknown key '3'; known keys: fasta"),
        (FASTA | {"embed": {None: 1}}, "unknown key 'embed.None'; known keys: dtype"),
        (FASTA | {"a\nb": 1}, r"unknown key 'a\nb'; known keys: fasta"),
        # groups
        (FASTA | {"embed": None}, f"'embed' = None: {EMPTY}"),
        (FASTA | {"embed": [{"layers": [1]}]}, f"'embed' = [{{'layers': [1]}}]: {EMPTY}"),
        (FASTA | {"embed": "mean"}, f"'embed' = 'mean': {EMPTY}"),
        (FASTA | {"shard": True}, "'shard' = True: should be keys with values, such as 'unknown_r"),
        # whole numbers
        (FASTA | {"embed": {"token_budget": "many"}}, f"'embed.token_budget' = 'many': {BUDGET}"),
        (FASTA | {"embed": {"token_budget": "1e4"}}, f"'embed.token_budget' = '1e4': {BUDGET}"),
        (FASTA | {"embed": {"token_budget": True}}, f"'embed.token_budget' = True: {BUDGET}"),
        (FASTA | {"embed": {"token_budget": 1.5}}, f"'embed.token_budget' = 1.5: {BUDGET}"),
        (FASTA | {"embed": {"token_budget": 99.0}}, f"'embed.token_budget' = 99.0: {BUDGET}"),
        (FASTA | {"embed": {"token_budget": 0}}, f"'embed.token_budget' = 0: {BUDGET}"),
        (FASTA | {"embed": {"token_budget": [9]}}, f"'embed.token_budget' = [9]: {BUDGET}"),
        (FASTA | {"shard": {"bundle": -1}}, "'shard.bundle' = -1: should be a whole number fr"),
        (
            FASTA | {"embed": {"threads": 1025}},
            "'embed.threads' = 1025: should be a whole number from 0 to 1024",
        ),
        (FASTA | {"shards": "many"}, f"'shards' = 'many': {SHARDS}"),
        (FASTA | {"fold": {"chunk_size": "0"}}, "'fold.chunk_size' = '0': should be 'auto' or 'no"),
        (FASTA | {"shards": 0}, f"'shards' = 0: {SHARDS}"),
        (FASTA | {"shards": 100_001}, f"'shards' = 100001: {SHARDS}"),
        (FASTA | {"shards": True}, f"'shards' = True: {SHARDS}"),
        (FASTA | {"shards": 2.0}, f"'shards' = 2.0: {SHARDS}"),
        (FASTA | {"shards": None}, f"'shards' = None: {SHARDS}; leave it out for 'auto'"),
        # lists
        (
            FASTA | {"embed": {"layers": 3}},
            "'embed.layers' = 3: should be a list, each item a whole number from -1; write [3]",
        ),
        (
            FASTA | {"embed": {"include": "mean"}},
            f"'embed.include' = 'mean': should be a list, each item {INCLUDE}; write [mean]",
        ),
        (
            FASTA | {"embed": {"include": []}},
            f"= []: should be a list, each item {INCLUDE}; add an",
        ),
        (FASTA | {"embed": {"include": {}}}, f"= {{}}: should be a list, each item {INCLUDE}"),
        (FASTA | {"embed": {"layers": [-2]}}, "'embed.layers.0' = -2: should be a whole number fr"),
        (FASTA | {"embed": {"layers": [1, True]}}, "'embed.layers.1' = True: should be a whole nu"),
        (FASTA | {"embed": {"layers": ["x"]}}, "'embed.layers.0' = 'x': should be a whole number"),
        (FASTA | {"embed": {"layers": [3, 3]}}, "'embed.layers' = [3, 3]: contains a duplicate;"),
        (FASTA | {"tasks": ["embed", "embed"]}, "'tasks' = ['embed', 'embed']: contains a dupli"),
        (
            FASTA | {"tasks": ["folds"]},
            "'tasks.0' = 'folds': should be 'embed', 'score', 'classify' or 'fold'",
        ),
        (
            FASTA | {"embed": {"include": ["means"]}},
            f"'embed.include.0' = 'means': should be {INCLUDE}",
        ),
        # choices
        (FASTA | {"on_failure": True}, "'on_failure' = True: should be 'error' or 'keep'"),
        (FASTA | {"on_failure": "stop"}, "'on_failure' = 'stop': should be 'error' or 'keep'"),
        (
            FASTA | {"embed": {"dtype": "float16"}},
            "'embed.dtype' = 'float16': should be 'float32', 'bfloat16' or 'int8'",
        ),
        (
            FASTA | {"embed": {"device": "gpu"}},
            "'embed.device' = 'gpu': should be 'auto', 'cpu', 'cuda', 'cuda:0' or 'mps'",
        ),
        (FASTA | {"embed": {"device": "cuda:"}}, "'embed.device' = 'cuda:': should be 'auto'"),
        (FASTA | {"embed": {"device": "cuda:٣"}}, "'embed.device' = 'cuda:٣': should be 'auto'"),
        # text
        ({"fasta": 2024}, f"'fasta' = 2024: {QUOTES}"),
        (FASTA | {"revision": 1234567}, f"'revision' = 1234567: {QUOTES}"),
        (FASTA | {"revision": 1.2e7}, f"'revision' = 12000000.0: {QUOTES}"),
        (FASTA | {"revision": datetime.date(2024, 1, 2)}, f"= datetime.date(2024, 1, 2): {QUOTES}"),
        (FASTA | {"model": 650}, f"'model' = 650: {QUOTES}"),
        (FASTA | {"model": None}, "'model' = None: should be text; leave it out for 'demo'"),
        (FASTA | {"outdir": ""}, "'outdir' = '': should be text; leave it out for 'results'"),
        (FASTA | {"revision": ""}, "'revision' = '': should be text; leave it out"),
        ({"fasta": ["a"]}, "'fasta' = ['a']: should be text"),
        ({"fasta": {"a": "b"}}, "'fasta' = {'a': 'b'}: should be text"),
        ({"fasta": "a\nb"}, rf"'fasta' = 'a\nb': {CHARACTER}"),
        ({"samples": "a\0b"}, rf"'samples' = 'a\x00b': {CHARACTER}"),
        (FASTA | {"model": "a\x1bb"}, rf"'model' = 'a\x1bb': {CHARACTER}"),
        ({"fasta": "a\udcff"}, r"'fasta' = 'a\udcff': should be UTF-8; rename it"),
    ],
)
def test_bad_config_is_reported_with_its_key(config, told):
    (line,) = refusal(load_settings, config).split("\n")
    assert f"config: {told}" in line or (told.startswith("=") and told in line)
    assert len(line) < 250


def test_every_problem_has_its_line():
    message = refusal(load_settings, {"fasta": "a", "modle": "x", "embed": {"dtype": "int3"}})
    assert len(message.splitlines()) == 2


def test_long_values_are_cut():
    for config in ({"embed": {"x" * 5000: 1}}, {"embed": {"include": ["x" * 5000]}}):
        assert len(refusal(load_settings, FASTA | config)) < 250


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=5,
)


def section_of(names):
    return st.dictionaries(st.sampled_from([*names]) | st.text(max_size=9), VALUES, max_size=4)


@given(section_of(Settings.model_fields), section_of(EmbedSettings.model_fields))
def test_any_config_is_accepted_or_has_one_line_for_each_problem(config, embed):
    told = ""
    try:
        load_settings({"embed": embed, **config})
    except InputError as error:
        told = str(error)
    assert all(line.startswith("config: ") for line in told.split("\n") if told)


def test_numbers_may_come_as_text_from_a_command_line():
    text = {"shards": "4", "embed": {"token_budget": "99", "layers": ["-1", "+3"]}}
    numbers = {"shards": 4, "embed": {"token_budget": 99, "layers": [-1, 3]}}
    assert load_settings(FASTA | text) == load_settings(FASTA | numbers)


def test_jobs_and_bundles_follow_from_the_size(tmp_path):
    fasta = tmp_path / "a.fasta"
    fasta.write_bytes(b"A" * 2500)
    packed = tmp_path / "a.gz"
    packed.write_bytes(gzip.compress(bytes(range(256)) * 10))
    sizes = {"embed": {"job_residues": 1000}, "fold": {"job_residues": 500}}
    chosen = load_settings({"fasta": "a", **sizes, "shard": {"bundle": 2}})
    assert chosen.bundle_count([str(fasta)]) == -(-2500 // (2 * RECORD_BYTES)) == 4
    assert chosen.range_counts("embed", [str(fasta)]) == [1, 1, 1, 1], "each bundle has one"
    assert chosen.range_counts("fold", [str(fasta)]) == [2, 1, 1, 1]
    whole = load_settings({"fasta": "a", **sizes})
    assert whole.bundle_count([str(fasta)]) == 1
    assert whole.range_counts("embed", [str(fasta)]) == [3]
    assert whole.range_counts("embed", [str(fasta)] * 2) == [5]
    assert whole.range_counts("fold", [str(fasta)]) == [5]
    assert whole.range_counts("embed", [str(packed)]) == [-(-2 * packed.stat().st_size // 1000)]
    coding = load_settings({"fasta": "a", **sizes, "shard": {"nucleotides": "translate"}})
    assert coding.range_counts("embed", [str(fasta)]) == [1]
    fasta.write_bytes(b"")
    assert whole.range_counts("embed", [str(fasta)]) == [1]


@pytest.mark.parametrize("number", [1, 7, MOST_RANGES, MOST_RANGES + 1, 1001, MOST_SHARDS])
def test_with_a_number_of_shards_the_input_need_not_exist(tmp_path, number):
    """Nothing follows from the size then: a job may see the input that another one has made."""
    fasta = tmp_path / "none.fasta"
    chosen = load_settings({"fasta": "a", "shards": number})
    counts = chosen.range_counts("embed", [str(fasta)])
    assert sum(counts) == number
    assert len(counts) == chosen.bundle_count([str(fasta)])
    assert max(counts) <= MOST_RANGES
    assert max(counts) - min(counts) <= 1
    fasta.write_bytes(b"A" * 100_000)
    assert chosen.range_counts("embed", [str(fasta)]) == counts


def test_without_it_the_input_must_exist(tmp_path):
    missing = str(tmp_path / "none.fasta")
    told = refusal(load_settings({"fasta": missing}).bundle_count, [missing])
    assert "no such file; check the path, or set 'shards' to a number" in told


def test_bundle_names_sort_as_their_numbers():
    names = bundle_names(1200)
    assert names == sorted(names)
    assert (names[0], names[-1], len(set(names))) == ("00000", "01199", 1200)


def test_results_of_several_bundles_have_names_of_their_own(tmp_path):
    (tmp_path / "a.fasta").write_bytes(b"A" * 1000)
    config = {"fasta": str(tmp_path / "a.fasta"), "tasks": ["embed", "fold"]}
    whole = load_settings(config).results()["a"]
    parts = load_settings({**config, "shard": {"bundle": 1}}).results()["a"]
    assert set(parts) == {one for name in whole for one in of_bundles(name, 3)}
    assert {"embeddings/00002.h5", "structures/00000.h5", "structures.tsv", "records.tsv"} < {
        *parts
    }
    assert "embeddings.h5" not in parts


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
    chosen = ShardSettings(gaps="remove", bundle=5).part(CleaningSettings)
    assert type(chosen) is CleaningSettings
    assert chosen == CleaningSettings(gaps="remove")


def test_score_is_what_it_reads_and_how_it_scores():
    section = ScoreSection(offset=3, strategy="wt_marginal", saturation=True, protein_col="id")
    assert shlex.split(flags(section.part(VariantSettings))) == [
        "--mutation-col=mutant",
        "--offset=3",
        "--protein-col=id",
    ]
    assert shlex.split(flags(section.computing())) == [
        *("--dtype=float32", "--strategy=wt_marginal", "--long=auto", "--window=1024")
    ]
    both = {*VariantSettings.model_fields, *StrategySettings.model_fields}
    assert both == set(ScoreSettings.model_fields)


def test_what_is_to_be_scored(tmp_path):
    table = tmp_path / "t.tsv"
    table.write_text("sample\tfasta\tvariants\na\tx\tv.csv\nb\tw\t\n")
    config = {"samples": str(table), "tasks": ["score"], "score": {"saturation": True}}
    assert load_settings(config).inputs() == {"a": ["x"], "b": ["w"]}
    assert load_settings(config).tables() == {"a": "v.csv"}
    assert load_settings({**config, "tasks": ["embed"]}).tables() == {}
    told = refusal(load_settings({**config, "score": {}}).tables)
    assert f"{table}: sample 'b' has no variants to score; give it a variant table, or set" in told
    single = load_settings({"fasta": "p.fa", "variants": "v.csv", "tasks": ["score"]})
    assert single.tables() == {"p": "v.csv"}
    braces = load_settings({"fasta": "p.fa", "variants": "v{1}", "tasks": ["score"]})
    assert refusal(braces.tables).startswith("variants: 'v{1}': Snakemake reads braces and angle")


def test_jobs_of_a_table_follow_from_its_size(tmp_path):
    (tmp_path / "v.csv").write_text("x" * 25)
    sized = load_settings(FASTA | {"score": {"table_bytes": 10}})
    assert sized.table_range_count(str(tmp_path / "v.csv")) == 3
    assert load_settings(FASTA | {"shards": 7}).table_range_count("none") == 7


def test_jobs_are_never_more_than_can_be_named(tmp_path):
    with open(tmp_path / "large", "wb") as file:
        file.truncate(10**9)
    chosen = load_settings(FASTA | {"embed": {"job_residues": 1}})
    assert sum(chosen.range_counts("embed", [str(tmp_path / "large")])) == MOST_SHARDS


def test_models_of_a_run(tmp_path):
    """The one of all tasks, unless a task has some of its own."""
    (tmp_path / "a@b").mkdir()
    own = {"one": "owner/name@abc", "two": str(tmp_path / "a@b")}
    common = {**FASTA, "model": "x/y", "revision": "v1"}
    both = load_settings({**common, "tasks": ["embed", "score"]}).models()
    assert both == {"model.json": Model("x/y", "v1", ["embed", "score"])}
    ensemble = {
        "models/one.json": Model("owner/name", "abc", ["score"]),
        "models/two.json": Model(own["two"], None, ["score"]),
    }
    chosen = load_settings({**common, "tasks": ["score"], "score": {"models": own}})
    assert chosen.models() == ensemble
    chosen = load_settings({**common, "tasks": ["embed", "score"], "score": {"models": own}})
    assert chosen.models() == {"model.json": Model("x/y", "v1", ["embed"]), **ensemble}
    for task in ("fold", "classify"):
        tasks = {**common, "tasks": ["embed", task]}
        assert load_settings(tasks).models() == {"model.json": Model("x/y", "v1", ["embed", task])}
        for revision in ("v2", None):
            alone = {**tasks, task: {"model": "z", "revision": revision}}
            assert load_settings(alone).models() == {
                "model.json": Model("x/y", "v1", ["embed"]),
                f"{task}_model.json": Model("z", revision, [task]),
            }
        assert "'revision' belongs to 'model'" in refusal(
            load_settings, {**tasks, task: {"revision": "v2"}}
        )
    demo = {**FASTA, "tasks": ["embed", "fold"]}
    for chosen in (demo, {**demo, "fold": {"model": "demo"}}):
        assert load_settings(chosen).models() == {
            "model.json": Model("demo", None, ["embed"]),
            "fold_model.json": Model("demo-fold", None, ["fold"]),
        }
    assert Model("x/y", "v1", []).flags() == ["--model=x/y", "--revision=v1"]
    assert Model("x/y", None, []).flags() == ["--model=x/y"]


@pytest.mark.parametrize("name", EmbedSettings.model_fields)
def test_every_field_reaches_the_flags_once(name):
    text = flags(EmbedSettings()) + " " + flags(EmbedSettings(), execution=True)
    assert text.count(f"--{name.replace('_', '-')}=") == 1
    assert isinstance(is_execution(EmbedSettings, name), bool)


@pytest.mark.parametrize("value", ["none", ["none"], []])
def test_no_files_of_aligned_errors(value):
    config = FASTA | {"fold": {"pae": value}}
    assert load_settings(config).fold.pae == []
    told = refusal(load_settings, FASTA | {"fold": {"pae": ["none", "json"]}})
    assert "'fold.pae'" in told
    assert "'none' goes with no other; remove it or the others" in told
    field = json.loads(json_schema())["$defs"]["FoldSection"]["properties"]["pae"]
    assert {"const": "none"} in field["anyOf"]
    assert "none" in field["anyOf"][0]["items"]["enum"]


def test_the_command_line_has_the_same_messages():
    told = refusal(check, EmbedSettings, {"dtype": "x", "threads": "-1"}, "command line")
    config = refusal(load_settings, FASTA | {"embed": {"dtype": "x", "threads": "-1"}})
    assert "config: 'embed.dtype' = 'x': should be" in config
    assert told == re.sub(r"config: 'embed\.(\w+)'", r"command line: --\1", config)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"architectures": ' + "9" * 6000 + "}"])
def test_a_malicious_config_of_a_model_is_ignored(tmp_path, text):
    """It is refused, with its place, when the model is looked for; not by a traceback before."""
    for name in ("config.json", "adapter_config.json"):
        (tmp_path / name).write_text(text)
    model = Model(str(tmp_path), None, [])
    assert model.architectures() == []
    assert {Path(file).parent for file in model.files()} == {tmp_path}
