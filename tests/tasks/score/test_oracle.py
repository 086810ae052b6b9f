"""Scores compared with transformers, one masked copy at a time: strategies, windows, ensembles.

Each comparison has twins with one mistake, which must fail.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from esm_pipeline import demo_model, open_results
from esm_pipeline.cli import main
from esm_pipeline.model import EsmForMaskedLM, EsmTokenizer
from esm_pipeline.tasks.score import windows
from tests.oracles.variants import AMINO_ACIDS, Oracle
from tests.tasks.conftest import TABLE, save_model

TOLERANCE = 1e-5
WHOLE = 5e-5
"""For likelihoods, which are sums over some 60 residues."""
FLOAT32 = 6e-8  # of a value: a likelihood of 50 residues is a sum of 50 roundings
WINDOW = 16
MARGINALS = ("masked_marginal", "masked_marginal_joint", "wt_marginal")
LIKELIHOOD = "pseudo_log_likelihood"

PROTEINS = {
    "short": "MKTAYIAKQRQ",
    "just": "MKTAYIAKQRQISFVKSHFSRQLEERLGLI",
    "long": "ACDEFGHIKLMNPQRSTVWYUMKTAYIAKQRQISFVKSHFSRQLEER",
}
SUBSTITUTIONS = [
    ("short", "K2L"),
    ("long", "A1C"),
    ("long", "K9L:H7Y"),
    ("just", "K2A"),
    ("short", "K2L"),  # again
    ("just", "p.Ile30Ala"),
    ("long", "R47U"),
    ("short", "K2L:A4G:Q11W"),
    ("long", "U21C:K23R"),
    ("just", "WT"),
    ("short", "K2S"),
    ("long", "W19A:Y20A"),
]
LENGTHS_CHANGE = [
    ("short", "K2del"),
    ("just", "M1_A4del"),
    ("long", "K9_L10insWW"),
    ("short", "Q11delinsQWW"),
    ("short", "K8dup"),
]


def changes(sequence: str, text: str) -> list[tuple[int, str]]:
    """The substitutions in a text, parsed here and not by our parser."""
    text = text.replace("p.Ile30Ala", "I30A")
    if text == "WT":
        return []
    found = [(int(part[1:-1]) - 1, part[-1], part[0]) for part in text.split(":")]
    assert all(sequence[at] == old for at, _, old in found)
    return [(at, new) for at, new, _ in found]


MUTANTS = {
    "K2del": "MTAYIAKQRQ",
    "M1_A4del": PROTEINS["just"][4:],
    "K9_L10insWW": "ACDEFGHIKWWLMNPQRSTVWYUMKTAYIAKQRQISFVKSHFSRQLEER",
    "Q11delinsQWW": "MKTAYIAKQRQWW",
    "K8dup": "MKTAYIAKKQRQ",
}


def mutant(sequence: str, text: str) -> str:
    """The sequence that a text describes."""
    if text in MUTANTS:
        return MUTANTS[text]
    letters = list(sequence)
    for at, new in changes(sequence, text):
        letters[at] = new
    return "".join(letters)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, rotary: Path, absolute: Path) -> dict:
    other = tmp_path_factory.mktemp("other")
    options = {"position_embedding_type": "rotary", "token_dropout": True}
    return {"rotary": rotary, "absolute": absolute, "other": save_model(other, 7, **options)}


oracle_of = cache(Oracle)


def score(folder: Path, rows: Sequence[tuple[str, str]], *arguments: object) -> pd.DataFrame:
    """Score `rows` through the command line, into Parquet, which keeps all digits."""
    (folder / "wt.fasta").write_text("".join(f">{n}\n{s}\n" for n, s in PROTEINS.items()))
    table = pd.DataFrame(rows, columns=["protein", "mutant"])
    table.to_csv(folder / "in.tsv", sep="\t", index=False)
    paths = [folder / "wt.fasta", folder / "out.parquet"]
    command = ["score", "--quiet", *arguments, "--variants", folder / "in.tsv", *paths]
    assert main([str(part) for part in command]) == 0
    return pd.read_parquet(folder / "out.parquet")


def expected(
    oracle: Oracle, rows: Sequence[tuple[str, str]], strategy: str
) -> dict[str, list[float]]:
    if strategy == LIKELIHOOD:
        known = {name: oracle.pseudo_log_likelihood(one) for name, one in PROTEINS.items()}
        values = [oracle.pseudo_log_likelihood(mutant(PROTEINS[n], text)) for n, text in rows]
        ratios = [value - known[name] for value, (name, _) in zip(values, rows, strict=True)]
        return {LIKELIHOOD: values, f"{LIKELIHOOD}_ratio": ratios}
    compute = getattr(oracle, strategy)
    return {strategy: [compute(PROTEINS[n], changes(PROTEINS[n], text)) for n, text in rows]}


def worst(found: pd.DataFrame, wanted: dict[str, list[float]]) -> float:
    assert (found["status"] == "ok").all()
    assert wanted
    assert all(np.ptp(values) > 0.1 for values in wanted.values()), "values that differ"
    columns = [(found[name].to_numpy(), np.array(values)) for name, values in wanted.items()]
    return max(
        float((np.abs(one - other) - FLOAT32 * np.abs(other)).max()) for one, other in columns
    )


def rows_for(strategy: str) -> list[tuple[str, str]]:
    return SUBSTITUTIONS + (LENGTHS_CHANGE if strategy == LIKELIHOOD else [])


@pytest.mark.parametrize("strategy", [*MARGINALS, LIKELIHOOD])
@pytest.mark.parametrize(
    ("model", "window"), [("rotary", 0), ("rotary", WINDOW), ("absolute", TABLE + 2)]
)
def test_every_strategy(tmp_path, models, strategy, model, window):
    rows = rows_for(strategy)
    arguments = ["--model", models[model], "--strategy", strategy, "--token-budget", 200]
    if window:
        arguments += ["--long", "window", "--window", window if model == "rotary" else 1024]
    found = score(tmp_path, rows, *arguments)
    wanted = expected(oracle_of(models[model], window), rows, strategy)
    assert worst(found, wanted) <= (WHOLE if strategy == LIKELIHOOD else TOLERANCE)
    longer = found["protein"].map(lambda name: window and len(PROTEINS[name]) + 2 > window)
    reasons = {f"in windows of {window} tokens"} if window else set()
    assert set(found["reason"][longer.astype(bool)]) == reasons
    assert set(found["reason"][~longer.astype(bool)]) <= {""}


def test_ensembles(tmp_path, models):
    labels = {"a": "rotary", "b": "other"}
    arguments = [f"--label={label}" for label in labels]
    arguments += [f"--model={models[name]}" for name in labels.values()]
    found = score(tmp_path, SUBSTITUTIONS, *arguments)
    wanted = {
        f"masked_marginal.{label}": expected(oracle_of(models[name]), SUBSTITUTIONS, MARGINALS[0])[
            MARGINALS[0]
        ]
        for label, name in labels.items()
    }
    mean = np.mean(list(wanted.values()), axis=0)
    assert worst(found, {**wanted, "masked_marginal": mean.tolist()}) <= TOLERANCE
    assert list(found)[-3:] == ["masked_marginal", "masked_marginal.a", "masked_marginal.b"]
    one, other = wanted.values()
    assert np.abs(np.subtract(one, other)).max() > 0.1, "models that differ"


@pytest.mark.parametrize("strategy", ["masked_marginal", "wt_marginal"])
@pytest.mark.parametrize("window", [0, WINDOW])
def test_saturation(tmp_path, models, strategy, window):
    (tmp_path / "wt.fasta").write_text("".join(f">{n}\n{s}\n" for n, s in PROTEINS.items()))
    arguments = ["--model", models["rotary"], "--strategy", strategy, "--token-budget", 300]
    if window:
        arguments += ["--long", "window", "--window", window]
    paths = ["--saturation", tmp_path / "wt.fasta", tmp_path / "out.h5"]
    assert main([str(part) for part in ["score", "--quiet", *arguments, *paths]]) == 0
    oracle = oracle_of(models["rotary"], window)
    with open_results(tmp_path / "out.h5") as results:
        for name in ("short", "long") if window else ("short",):
            wanted = np.array(oracle.saturation(PROTEINS[name], strategy))
            assert np.abs(results[name].log_odds - wanted).max() <= TOLERANCE
            same = np.array(list(PROTEINS[name]))[:, None] == np.array(list(AMINO_ACIDS))
            assert (results[name].log_odds[same] == 0).all()
            assert (results[name].log_odds[~same] != 0).all()


@pytest.mark.parametrize("strategy", [*MARGINALS, LIKELIHOOD])
def test_the_packaged_model(tmp_path, strategy):
    rows = [("short", "K2L"), ("just", "K2W:S13C"), ("short", "WT")]
    rows += [("short", "K2del")] if strategy == LIKELIHOOD else []
    found = score(tmp_path, rows, "--model=demo", "--strategy", strategy)
    assert worst(found, expected(oracle_of(demo_model()), rows, strategy)) <= TOLERANCE


Patch = pytest.MonkeyPatch


def mask_before(patch: Patch) -> None:
    """The published pseudo-perplexity: token i is masked, residue i looked up."""
    whole = EsmForMaskedLM.packed_logits

    def shifted(self, tokens, layout, rows=None):
        mask = EsmTokenizer.standard().mask_token_id
        wrong = tokens.clone()
        wrong[rows - 1], wrong[rows] = mask, 5
        return whole(self, wrong, layout, rows - 1)

    patch.setattr(EsmForMaskedLM, "packed_logits", shifted)


def later_windows(patch: Patch) -> None:
    right = windows.optimal

    def shifted(places, tokens, window):
        start, stop = right(places, tokens, window)
        inner = (start > 0) & (stop < tokens)
        return start + inner, stop + inner

    patch.setattr(windows, "optimal", shifted)


def equal_weights(patch: Patch) -> None:
    patch.setattr(windows, "weights", np.ones)


def over_amino_acids(patch: Patch) -> None:
    """Probabilities among the 20 amino acids only: a likelihood shows it, a ratio cannot."""
    whole = EsmForMaskedLM.packed_logits

    def cut(self, tokens, layout, rows=None):
        logits = whole(self, tokens, layout, rows)
        others = [i for i in range(33) if not 4 <= i < 24 and i != 26]
        logits[:, others] = -1e9
        return logits

    patch.setattr(EsmForMaskedLM, "packed_logits", cut)


def log_of_ten(patch: Patch) -> None:
    right = torch.Tensor.log_softmax
    patch.setattr(torch.Tensor, "log_softmax", lambda x, axis: right(x, axis) / np.log(10))


TWINS: list[tuple[str, Callable[[Patch], None]]] = [
    (LIKELIHOOD, mask_before),
    ("masked_marginal", mask_before),
    ("masked_marginal", later_windows),
    (LIKELIHOOD, later_windows),
    ("wt_marginal", equal_weights),
    (LIKELIHOOD, over_amino_acids),
    ("masked_marginal", log_of_ten),
]


@pytest.mark.parametrize(("strategy", "mistake"), TWINS)
def test_twin_fails(tmp_path, models, monkeypatch, strategy, mistake):
    arguments = ["--model", models["rotary"], "--strategy", strategy]
    arguments += ["--long", "window", "--window", WINDOW]
    rows = SUBSTITUTIONS
    wanted = expected(oracle_of(models["rotary"], WINDOW), rows, strategy)
    assert worst(score(tmp_path, rows, *arguments), wanted) <= TOLERANCE
    mistake(monkeypatch)
    assert worst(score(tmp_path, rows, *arguments), wanted) > 100 * TOLERANCE


def test_masks_of_a_row_put_together_would_show(tmp_path, models):
    """The twin of additive marginals: joint ones, for rows with several mutations."""
    rows = [row for row in SUBSTITUTIONS if ":" in row[1]]
    arguments = ["--model", models["rotary"], "--strategy"]
    wanted = expected(oracle_of(models["rotary"]), rows, "masked_marginal")["masked_marginal"]
    found = score(tmp_path, rows, *arguments, "masked_marginal_joint")["masked_marginal_joint"]
    assert np.abs(found - wanted).min() > 100 * TOLERANCE
