"""`score` and `saturation` as functions: the numbers of the command."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
import torch

from esm_pipeline import (
    EsmForMaskedLM,
    open_results,
    saturation,
    score,
)
from esm_pipeline.errors import InputError
from tests.tasks.function_inputs import (
    QUIET,
    SEQUENCES,
    WILD_TYPE,
    outcomes_in,
    records_of,
    write_fasta,
)

pytestmark = QUIET


@pytest.fixture
def fasta(tmp_path):
    return write_fasta(tmp_path / "in.fasta")


VARIANTS = ["M1A", "K2R:T3S", "A99G", "K2R", "nonsense", "", "A4G"]
STRATEGIES = [
    *("masked_marginal", "masked_marginal_joint", "wt_marginal", "pseudo_log_likelihood"),
]


def variants_frame() -> pd.DataFrame:
    index = pd.Index(range(10, 10 + len(VARIANTS)))
    own = {"mutant": VARIANTS, "protein": ["a", "b"] * 3 + ["a"], "DMS": np.arange(len(VARIANTS))}
    return pd.DataFrame(own, index=index)


def scored(esm, tmp_path, frame: pd.DataFrame, wild_types: dict[str, str], *flags: object):
    """The command's table, as Parquet."""
    fasta, table, out = (tmp_path / name for name in ("wt.fasta", "v.parquet", "s.parquet"))
    write_fasta(fasta, wild_types)
    frame.to_parquet(table, index=False)
    assert esm("score", "--quiet", *flags, "--variants", table, fasta, out)[0] == 0
    return pd.read_parquet(out)


def same_scores(ours: pd.DataFrame, theirs: pd.DataFrame) -> bool:
    reasons = ours["reason"].str.replace("set ", "set --") == theirs["reason"].to_numpy()
    return (
        list(ours.columns) == list(theirs.columns)
        and ours.drop(columns="reason").reset_index(drop=True).equals(theirs.drop(columns="reason"))
        and bool(reasons.all())
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_score_has_the_numbers_of_the_command(esm, rotary, tmp_path, strategy):
    frame, wild_types = variants_frame(), {"a": WILD_TYPE, "b": WILD_TYPE[:9]}
    flags = ("--model", rotary, "--strategy", strategy)
    theirs = scored(esm, tmp_path, frame, wild_types, *flags)
    assert set(theirs["status"]) == {"ok", "skipped"}
    for given in (wild_types, tmp_path / "wt.fasta", pd.Series(wild_types)):
        ours = score(frame, rotary, sequences=given, strategy=strategy)
        assert ours.index.equals(frame.index)
        assert same_scores(ours, theirs)
    other = score(frame, rotary, sequences={"a": WILD_TYPE, "b": WILD_TYPE[:8]}, strategy=strategy)
    assert not same_scores(other, theirs)


def test_score_of_a_list(esm, rotary, tmp_path):
    frame = variants_frame().drop(columns="protein")
    theirs = scored(esm, tmp_path, frame, {"wt": WILD_TYPE}, "--model", rotary)
    ours = score(VARIANTS, rotary, sequence=WILD_TYPE)
    assert ours.dtype == np.float64
    assert np.array_equal(ours, theirs["masked_marginal"], equal_nan=True)
    assert np.isnan(ours).tolist() == [False, False, True, False, True, True, False]
    assert np.array_equal(score(frame["mutant"], rotary, sequence=WILD_TYPE), ours, equal_nan=True)
    shifted = score(["M11A", "K12R:T13S"], rotary, sequence=WILD_TYPE, offset=10)
    assert np.allclose(shifted, ours[:2], atol=1e-6)


def test_score_by_several_models(esm, rotary, tmp_path):
    model = EsmForMaskedLM.from_pretrained(rotary)
    with torch.no_grad():
        model.lm_head.dense.weight.mul_(0.9)
    model.save_pretrained(tmp_path / "other")
    frame = variants_frame().drop(columns="protein")
    flags = ("--model", rotary, "--model", tmp_path / "other", "--label", "x", "--label", "y")
    theirs = scored(esm, tmp_path, frame, {"wt": WILD_TYPE}, *flags)
    ours = score(frame, {"x": rotary, "y": model}, sequence=WILD_TYPE)
    assert same_scores(ours, theirs)
    assert list(ours.columns[-2:]) == ["masked_marginal.x", "masked_marginal.y"]
    with pytest.raises(InputError, match="two models are called"):
        score(frame, [rotary, rotary], sequence=WILD_TYPE)


def test_score_with_a_column_of_sequences(rotary):
    frame = pd.DataFrame({"wt": [WILD_TYPE, WILD_TYPE[:5]], "change": ["M1A", "K2R"]})
    ours = score(frame, rotary, sequence_col="wt", mutation_col="change")
    alone = [score([v], rotary, sequence=s)[0] for s, v in zip(*frame.T.to_numpy(), strict=True)]
    assert np.allclose(ours["masked_marginal"], alone, atol=1e-6)


@pytest.mark.parametrize(
    ("variants", "options", "message"),
    [
        (["M1A"], {}, "give one of sequence, sequences and sequence_col"),
        (["M1A"], {"sequence": "MK-T"}, "score: sequence: gap '-' at residue 3"),
        ("M1A", {"sequence": WILD_TYPE}, r"a list such as ['A42G'], or a data frame"),
        (["M1A", 3], {"sequence": WILD_TYPE}, "variant 1 is 3, of type int; give text"),
        (["M1A"], {"sequence": WILD_TYPE, "protein": "a"}, "all variants are of the one sequence"),
        ([], {"sequence": WILD_TYPE}, "score: there are no variants; give at least one"),
        (pd.DataFrame({"mut": ["M1A"]}), {"sequence": WILD_TYPE}, "no column 'mutant'"),
        (pd.DataFrame({"mutant": ["M1A"], "status": [1]}), {"sequence": WILD_TYPE}, "'status'"),
    ],
)
def test_variants_that_cannot_be_scored(rotary, variants, options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        score(variants, rotary, **options)


def test_a_hint_names_the_argument(rotary):
    with pytest.warns(UserWarning, match="an offset of 10 fits 2 of 2 rows .*, set offset"):
        score(["M11A", "K12R"], rotary, sequence=WILD_TYPE)


@pytest.mark.parametrize("strategy", STRATEGIES[0:3:2])
def test_saturation_has_the_numbers_of_the_command(esm, rotary, fasta, tmp_path, strategy):
    out, flags = tmp_path / "s.h5", ("--model", rotary, "--strategy", strategy)
    assert esm("score", "--quiet", "--saturation", *flags, fasta, out)[0] == 0
    ours = saturation(SEQUENCES, rotary, strategy=strategy)
    with open_results(out, "saturation") as results:
        assert ours.table.equals(results.to_pandas())
        for one in results:
            assert np.array_equal(ours[one.id].log_odds, one.log_odds)
            assert ours[one.id].sequence == one.sequence
        assert ours.alphabet == results.alphabet
    assert outcomes_in(ours.records) == records_of(tmp_path / "s.records.tsv", "score")
    other = saturation(SEQUENCES, rotary, strategy=STRATEGIES[2 - STRATEGIES.index(strategy)])
    assert not other.table.equals(ours.table)
    assert ours.keys() == [name for name in SEQUENCES if name in ours]
    assert len(ours.keys()) < len(ours)
    assert "gap" not in ours
    with pytest.raises(InputError, match="saturation: there are no sequences; give at least one"):
        saturation([], rotary)
    heat = ours["b"].to_pandas()
    assert heat.shape == (6, 20)
    assert heat.loc["G1", "G"] == 0
    (alone,) = score(["A2V"], rotary, sequence="GAVLIW", strategy=strategy)
    assert heat.loc["A2", "V"] == pytest.approx(alone, abs=1e-6)
