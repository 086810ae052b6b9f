"""The functions beside the classes: the numbers, outcomes and files of their commands."""

from __future__ import annotations

import inspect
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from esm_pipeline import (
    EsmForMaskedLM,
    EsmModel,
    classify,
    embed,
    fold,
    open_results,
    optimize_for_inference,
    saturation,
    score,
)
from esm_pipeline.errors import EsmPipelineError, InputError
from esm_pipeline.settings.sections import (
    ClassifySettings,
    EmbedSettings,
    FoldSettings,
    LabelSettings,
    ScoreSettings,
)
from tests.allocator import Allocator, tokens
from tests.tasks.function_inputs import (
    QUIET,
    SEQUENCES,
    SKIPPED,
    WILD_TYPE,
    as_frame,
    outcomes_in,
    records_of,
    write_fasta,
)

pytestmark = QUIET


@pytest.fixture
def fasta(tmp_path):
    return write_fasta(tmp_path / "in.fasta")


# embed


EVERYTHING = ("mean", "bos", "residue", "contacts")


@pytest.fixture
def embedded(esm, rotary, fasta, tmp_path):
    """The command's file with everything of two layers."""
    given = ("--layers", "1,-1", "--include", ",".join(EVERYTHING), "--token-budget", 40)
    assert esm("embed", "--quiet", "--model", rotary, *given, fasta, tmp_path / "e.h5")[0] == 0
    return tmp_path / "e.h5"


def embedding_differences(result, path: Path) -> list[str]:
    """What of an `EmbedResult` is not exactly as in a file."""
    wrong = []
    with open_results(path, "embeddings") as results:
        stored = {one.index: one for one in results}
        for place, name in enumerate(result.ids):
            for layer in result.layers:
                one = result.at(layer)
                if place not in stored:
                    empty = [one.residue[place], one.contacts[place]]
                    if not np.isnan(one.mean[place]).all() or any(map(len, empty)):
                        wrong.append(f"{name} has numbers")
                    continue
                kept = stored[place]
                pairs = {
                    "mean": (one.mean[place], kept.mean[layer]),
                    "bos": (one.bos[place], kept.bos[layer]),
                    "residue": (one.residue[place], kept.residue[layer]),
                    "contacts": (one.contacts[place], kept.contacts),
                }
                for kind, (ours, theirs) in pairs.items():
                    if ours.dtype != theirs.dtype or not np.array_equal(ours, theirs):
                        wrong.append(f"{name} {kind} of layer {layer}")
    return wrong


def test_embed_has_the_numbers_of_the_command(embedded, rotary, fasta, tmp_path):
    options = {"layers": [1, -1], "include": EVERYTHING, "token_budget": 40}
    result = embed(SEQUENCES, rotary, **options)
    assert result.ids == list(SEQUENCES)
    assert result.layers == [1, 2]
    assert embedding_differences(result, embedded) == []
    expected = records_of(tmp_path / "e.records.tsv", "embed")
    assert outcomes_in(result.records) == expected
    assert {name for name, status, _ in expected if status == "skipped"} == SKIPPED
    assert list(result.records["duplicate_of"].dropna()) == [0, 0]
    for other in (list(SEQUENCES.values()), fasta, str(fasta), pd.Series(SEQUENCES)):
        again = embed(other, rotary, **options)
        assert embedding_differences(again, embedded) == []
        assert outcomes_in(again.records)[1][1:] == expected[1][1:]


@pytest.mark.parametrize(
    "mistake", [{"dtype": "bfloat16"}, {"gaps": "remove"}, {"residue_dtype": "float32"}]
)
def test_embed_by_other_settings_is_seen(embedded, rotary, mistake):
    result = embed(SEQUENCES, rotary, layers=[1, -1], include=EVERYTHING, **mistake)
    assert embedding_differences(result, embedded) != []


def test_embed_in_another_order_is_seen(embedded, rotary):
    result = embed(dict(reversed(SEQUENCES.items())), rotary, layers=[1, -1], include=EVERYTHING)
    assert embedding_differences(result, embedded) != []


def test_embed_of_a_frame_is_the_table_of_the_command(esm, rotary, fasta, tmp_path):
    given = ("--layers", "1,2", "--include", "mean,bos")
    esm("embed", "--quiet", "--model", rotary, *given, fasta, tmp_path / "e.parquet")
    theirs = pd.read_parquet(tmp_path / "e.parquet")
    frame = as_frame()
    ours = embed(frame, rotary, layers=[1, 2], include=["mean", "bos"])
    assert ours.index.equals(frame.index)
    assert list(ours.columns[:2]) == ["status", "reason"]
    numbers = ours.columns[2:]
    assert sorted(numbers) == sorted(theirs.columns[3:])
    kept = ours[ours["status"] == "ok"]
    assert np.array_equal(kept[numbers].to_numpy(), theirs[numbers].to_numpy())
    assert ours.loc[ours["status"] != "ok", list(numbers)].isna().all(axis=None)
    assert list(frame.columns) == ["id", "sequence"]  # it was not changed


def test_one_record_by_id_and_by_position(rotary):
    result = embed(SEQUENCES, rotary, include=["mean", "residue"])
    assert np.array_equal(result["b"].mean, result.mean[2])
    assert result[-1].id == "rare"
    assert result["b"].residue.shape == (6, 16)
    for key, message in {
        "gap": "record 'gap' was skipped: gap '-' at residue 3; set gaps to 'remove' to drop gaps",
        "aagin": "no record with id 'aagin'; did you mean 'again'?",
    }.items():
        with pytest.raises(InputError, match=re.escape(message)):
            result[key]
    with pytest.raises(IndexError):
        result[8]
    with pytest.raises(InputError, match="'bos' was not asked for, only mean, residue"):
        _ = result.bos
    with pytest.raises(InputError, match="layer 1 was not stored, only 2"):
        result.at(1)
    assert "8 records, mean, residue, layers 2" in repr(result)


def test_keys_are_the_records_that_were_computed(rotary):
    result = embed({**SEQUENCES, "sp|P84927|DMS7_PHYTS": "MKT"}, rotary)
    assert result.keys() == [one for one in result.ids if one not in SKIPPED]
    assert len(result.keys()) == len(result) - 3
    assert [result[name].id for name in result.keys()] == result.keys()  # noqa: SIM118
    gap = result.ids.index("gap")
    for key in ("a", "P84927", 0, -1, np.int64(0), len(result) - 1):
        assert key in result
        _ = result[key]
    for key in ("gap", gap, "P84928", len(result), -len(result) - 1, 0.0, None, slice(0, 2)):
        assert key not in result
    with pytest.raises(InputError, match=r"embed: slice\(0, 2, None\) is neither an id nor a pos"):
        result[0:2]
    assert "9 records" in repr(result)
    assert "1 record," in repr(embed("MKT", rotary))


def test_one_sequence(rotary):
    assert embed("MKTAYIAK", rotary).mean.shape == (1, 16)
    frame = pd.DataFrame({"sequence": ["MKTAYIAK", None, np.nan]}, index=[7, 8, 9])
    found = embed(frame, rotary)
    assert list(found["status"]) == ["ok", "skipped", "skipped"]
    assert list(found["reason"]) == ["", "no residues", "no residues"]


# Models that are loaded.


def test_a_loaded_model_gives_the_same_and_is_not_loaded_again(rotary, monkeypatch):
    expected = embed(SEQUENCES, rotary).mean
    model, bare = EsmForMaskedLM.from_pretrained(rotary), EsmModel.from_pretrained(rotary)
    fast = optimize_for_inference(model)
    monkeypatch.setattr(EsmModel, "from_pretrained", None)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for given in (model, bare, fast, model.train()):
        assert np.array_equal(embed(SEQUENCES, given).mean, expected, equal_nan=True)
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    monkeypatch.setattr(EsmForMaskedLM, "from_pretrained", None)
    assert not np.isnan(score(["M1A"], fast, sequence=WILD_TYPE)).any()


def test_a_loaded_model_keeps_its_precision(rotary):
    expected = embed(SEQUENCES, rotary, dtype="bfloat16").mean
    model = EsmModel.from_pretrained(rotary, dtype="bfloat16")
    assert np.array_equal(embed(SEQUENCES, model).mean, expected, equal_nan=True)
    assert not np.array_equal(embed(SEQUENCES, rotary).mean, expected, equal_nan=True)


def test_a_model_that_was_trained_is_used_as_it_is(rotary):
    model = EsmModel.from_pretrained(rotary)
    before = embed(SEQUENCES, model).mean
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.mul_(1.1)
    assert not np.allclose(embed(SEQUENCES, model).mean, before, equal_nan=True)


@pytest.mark.parametrize("option", [{"dtype": "int8"}, {"device": "cpu"}, {"revision": "main"}])
def test_how_to_load_a_loaded_model_is_an_error(rotary, option):
    with pytest.raises(InputError, match=f"'{next(iter(option))}' says how to load a model"):
        embed(["MKT"], EsmModel.from_pretrained(rotary), **option)


def test_a_model_of_the_wrong_class_is_an_error(rotary):
    model = EsmModel.from_pretrained(rotary)
    for call in (
        lambda: score(["M1A"], model, sequence=WILD_TYPE),
        lambda: fold(["MKT"], model),
        lambda: classify(["MKT"], model),
    ):
        with pytest.raises(EsmPipelineError, match=r"EsmModel|no folding part"):
            call()


# Records that are skipped or have failed, and options.


def test_skipped_records_are_a_warning_of_the_caller_or_an_error(rotary):
    said = (
        "embed: 3 of 8 skipped, the first is 'gap': gap '-' at residue 3; set gaps to 'remove' to "
        "drop gaps"
    )
    with pytest.warns(UserWarning, match=re.escape(said)) as caught:
        embed(SEQUENCES, rotary)
    assert [one.filename for one in caught] == [__file__]
    with pytest.raises(InputError, match=re.escape(said)):
        embed(SEQUENCES, rotary, on_skipped="error")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embed({"a": "MKT"}, rotary)


def test_failed_records_are_an_error_or_kept(rotary, monkeypatch):
    Allocator(20).limit(monkeypatch, EsmModel, "represent", tokens(frozenset()))
    said = "4 of 8 failed, the first is 'a': 31 residues do not fit into memory"
    with pytest.raises(EsmPipelineError, match=said):
        embed(SEQUENCES, rotary)
    with pytest.warns(UserWarning, match=said):
        result = embed(SEQUENCES, rotary, on_failure="keep")
    assert not np.isnan(result["b"].mean).any()
    assert np.isnan(result.mean[0]).all()


def test_options_that_cannot_be_used(rotary):
    with pytest.raises(TypeError, match=r"embed\(\) got an unexpected .* 'tokn_budget'; did you"):
        embed(["MKT"], rotary, tokn_budget=3)
    for options, message in (
        ({"token_budget": 0}, "embed: 'token_budget' = 0: should be a whole number from 1"),
        ({"include": "means"}, "should be 'mean', 'residue', 'bos' or 'contacts'"),
        ({"on_failure": "keeep"}, "'on_failure' = 'keeep': should be 'error' or 'keep'"),
        ({"layers": 7}, "layer 7 does not exist; the model has layers 0 to 2"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            embed(["MKT"], rotary, **options)


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        (3, "sequences are of type int; give a list of text"),
        (["MK", 3], "sequence 1 is 3, of type int; give text"),
        ([], "embed: there are no sequences; give at least one"),
        ({}, "embed: there are no sequences; give at least one"),
        (pd.DataFrame({"sequence": []}), "embed: there are no sequences; give at least one"),
        ("no/such.fasta", "no/such.fasta: no such file"),
        (["ACGTACGTACGTACGTACGTACGT"] * 3, "sequences:1: looks like DNA"),
        (pd.DataFrame({"sequences": ["MK"]}), "no column 'sequence'; rename 'sequences'"),
        (pd.DataFrame([["MK", "MK"]], columns=["sequence"] * 2), "two columns 'sequence'"),
    ],
)
def test_sequences_that_cannot_be_used(rotary, sequences, message):
    with pytest.raises(InputError, match=re.escape(message)):
        embed(sequences, rotary)


def test_threads_of_pytorch_stay_as_they_were(rotary):
    before = torch.get_num_threads()
    embed(["MKT"], rotary, threads=2)
    score(["M1A"], rotary, sequence=WILD_TYPE, threads=2)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("function", "sections"),
    [
        (embed, [EmbedSettings]),
        (score, [ScoreSettings]),
        (saturation, [ScoreSettings]),
        (fold, [FoldSettings]),
        (classify, [ClassifySettings, LabelSettings]),
    ],
)
def test_defaults_are_those_of_the_settings(function, sections):
    defaults = {name: one for kind in sections for name, one in kind.model_fields.items()}
    checked = 0
    for name, parameter in inspect.signature(function).parameters.items():
        if name in defaults and parameter.default is not None:
            default = defaults[name].get_default(call_default_factory=True)
            assert parameter.default in (default, *(default if type(default) is list else ()))
            checked += 1
    assert checked
