"""The committed example of all results, compared with results made again."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from esm_pipeline.cli import main
from esm_pipeline.tasks.fold.tables import ATLAS_TABLE, STRUCTURE_TABLES
from tests.workflow.tools import GOLDEN, GOLDEN_TASKS, SAMPLE, Run, config, jobs, snakemake

RESULTS = ("embeddings.h5", "saturation.h5", "structures.h5")
LIMITS = {"float32": 1e-4, "float16": 1e-3}
"""The largest difference allowed for numbers of a type; other types must be equal."""

FOLDED_LIMIT = 0.31  # Å, pLDDT: wide by random weights
LIMITS_OF = {"structures.h5": {"float32": FOLDED_LIMIT, "uint8": 8 * FOLDED_LIMIT}}
"""Exceptions: the bytes of a predicted aligned error are eighths of 1 Å."""

MADE_ELSEWHERE = {"model", "models", "software", "bytes", "sha256"}
"""The path of the checkpoint, versions, and what depends on them or on last digits."""

BINARY = {f"{SAMPLE}/{name}" for name in (*RESULTS, ATLAS_TABLE)}
APART = {"provenance.json", "model.json", f"{SAMPLE}/scores.json", f"{SAMPLE}/scores.tsv", *BINARY}
OF_STRUCTURES = [f"{SAMPLE}/{name}" for name in STRUCTURE_TABLES]
APART |= {"fold_model.json", *OF_STRUCTURES}
LISTS = {
    "provenance.sha256",
    f"{SAMPLE}/structures.sha256",
    *(f"{SAMPLE}/{name}/00000.sha256" for name in ("embed", "fold", "score")),
    f"{SAMPLE}/variants/digests.sha256",
}
"""Digests of files whose last digits may differ."""

APART |= LISTS
FOLDED = (f"{SAMPLE}/structures/", f"{SAMPLE}/pae/")
"""Files whose texts may differ."""


@pytest.fixture(scope="module")
def golden_run(whole_run, model, tmp_path_factory) -> Run:
    """The other tasks, added to the run that all tests share: nothing of that is made again."""
    folder = tmp_path_factory.mktemp("golden") / "it's a run"
    shutil.copytree(whole_run.folder, folder)
    shutil.copy(GOLDEN / "my variants.csv", folder)
    arguments = config(model, *GOLDEN_TASKS)
    assert jobs(snakemake(folder, "-n", *arguments)).isdisjoint({"embed", "model", "gather_embed"})
    return snakemake(folder, *arguments)


def files_of(results: Path) -> set[str]:
    return {str(file.relative_to(results)) for file in results.rglob("*") if file.is_file()}


def test_the_same_files(golden_run):
    assert golden_run.code == 0, golden_run.said
    made = {
        file
        for file in files_of(golden_run.results)
        if not file.startswith(("logs/", "benchmarks/")) and ".snakemake" not in file
    }
    assert made - {"report.html"} == files_of(GOLDEN / "results")


SAME = [file for file in files_of(GOLDEN / "results") - APART if not file.startswith(FOLDED)]


@pytest.mark.parametrize("name", sorted(SAME))
def test_bytes_are_the_same(golden_run, name):
    assert (golden_run.results / name).read_bytes() == (GOLDEN / "results" / name).read_bytes()


@pytest.mark.parametrize("name", sorted(LISTS))
def test_lists_name_the_same_files(golden_run, name):
    texts = [(run / name).read_text() for run in (golden_run.results, GOLDEN / "results")]
    ours, golden = (re.sub("^[0-9a-f]{64}  ", "", text, flags=re.MULTILINE) for text in texts)
    assert ours == golden


def test_the_example_is_as_it_was_written(capsys):
    """Except the report, which is not part of it."""
    results = GOLDEN / "results"
    assert main(["verify", "--quiet", str(results)]) == 1
    message = f"{results / 'report.html'}: missing; run the workflow again\n"
    assert capsys.readouterr().out == message


NUMBER = re.compile(r"-?[0-9]+\.[0-9]+")


def assert_nearly(ours: str, golden: str) -> None:
    """The text without the last digits of numbers, which depend on the random weights."""
    assert NUMBER.sub("#", ours) == NUMBER.sub("#", golden)
    values = [np.array(NUMBER.findall(text), float) for text in (ours, golden)]
    assert values[0].size > 10
    assert np.abs(values[0] - values[1]).max() <= FOLDED_LIMIT


def text_of_structures(path: Path) -> str:
    """The text of a file, with single spaces and without the digest of the weights."""
    return re.sub(" +", " ", re.sub("[0-9a-f]{64}", "", path.read_text()))


def test_structures_are_the_same(golden_run):
    names = {file for file in files_of(GOLDEN / "results") if file.startswith(FOLDED)}
    assert len(names) == 12
    for name in (*names, f"{SAMPLE}/structures.tsv"):
        texts = [text_of_structures(run / name) for run in (golden_run.results, GOLDEN / "results")]
        assert_nearly(*texts)


def named_cells(path: Path) -> list[list[str]]:
    """The cells of a table that no last digit changes: record and flag, or record and chains."""
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    return [row[: 3 if rows[0][2] == "flag" else 4] for row in rows]


def test_the_table_of_the_atlas_is_the_same(golden_run):
    ours, golden = (
        pd.read_parquet(results / SAMPLE / ATLAS_TABLE)
        for results in (golden_run.results, GOLDEN / "results")
    )
    pd.testing.assert_frame_equal(ours, golden, check_exact=False, rtol=0, atol=FOLDED_LIMIT)
    assert golden["plddt"].notna().sum() > 5


def test_flags_and_pairs_are_the_same(golden_run):
    for name in OF_STRUCTURES[1:]:
        ours, golden = (
            named_cells(results / name) for results in (golden_run.results, GOLDEN / "results")
        )
        assert ours == golden
        assert len(golden) > 1


def test_a_changed_structure_is_noticed():
    path = next((GOLDEN / "results" / SAMPLE / "structures").rglob("*.pdb"))
    one = text_of_structures(path)
    number = NUMBER.findall(one)[-1]
    assert_nearly(one, one)
    for changed in (one.replace(number, f"{float(number) + 0.4:.2f}"), one + "ATOM"):
        with pytest.raises(AssertionError):
            assert_nearly(one, changed)


def test_scores_are_the_same(golden_run):
    ours, golden = (
        list(csv.DictReader((results / SAMPLE / "scores.tsv").open(), delimiter="\t"))
        for results in (golden_run.results, GOLDEN / "results")
    )
    assert {row["status"] for row in golden} == {"ok", "skipped"}
    assert_same_scores(ours, golden)
    (changed, *_) = (number for number, row in enumerate(golden) if row["masked_marginal"])
    for name, text in (("masked_marginal", 2e-4), ("masked_marginal", None), ("status", "failed")):
        other = [dict(row) for row in golden]
        if isinstance(text, float):
            text = f"{float(other[changed][name]) + text:.6f}"
        other[changed][name] = text or ""
        with pytest.raises(AssertionError):
            assert_same_scores(other, golden)


def assert_same_scores(ours: list[dict[str, str]], golden: list[dict[str, str]]) -> None:
    """Assert that the rows are the same except the last digits of the scores."""
    for one, other in zip(ours, golden, strict=True):
        values = [row["masked_marginal"] for row in (one, other)]
        assert one | {"masked_marginal": ""} == other | {"masked_marginal": ""}
        assert bool(values[0]) == bool(values[1])
        assert abs(float(values[0] or 0) - float(values[1] or 0)) <= LIMITS["float32"]


def contents(path) -> tuple[dict, dict]:
    """Attributes and datasets of an HDF5 file, by their full names."""
    attributes, arrays = {}, {}

    def visit(name, item):
        attributes.update({f"{name}@{key}": value for key, value in item.attrs.items()})
        if isinstance(item, h5py.Dataset):
            arrays[name] = item[...]

    with h5py.File(path) as file:
        attributes.update(file.attrs)
        file.visititems(visit)
    return attributes, arrays


def differences(ours, golden, limits: dict[str, float] = LIMITS) -> list[str]:
    """Names that are missing, new, of another shape or type, or differ by more than allowed."""
    found = sorted(set(ours) ^ set(golden))
    for name in set(ours) & set(golden):
        one, other = ours[name], golden[name]
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            found.append(name)
        elif one.dtype.name in limits and name != "aatype":
            pair = one.astype(float), other.astype(float)
            if not np.allclose(*pair, rtol=0, atol=limits[one.dtype.name], equal_nan=True):
                found.append(name)
        elif not np.array_equal(one, other):
            found.append(name)
    return found


@pytest.mark.parametrize(
    ("name", "least"), [("embeddings.h5", 10), ("saturation.h5", 7), ("structures.h5", 16)]
)
def test_numbers_are_the_same(golden_run, name, least):
    ours, golden = (
        contents(results / SAMPLE / name) for results in (golden_run.results, GOLDEN / "results")
    )
    assert len(golden[1]) >= least
    assert differences(ours[1], golden[1], LIMITS_OF.get(name, LIMITS)) == []
    for attributes in (ours[0], golden[0]):
        if name == "structures.h5":
            attributes.pop("weights_sha256")
        assert len(attributes.keys() & MADE_ELSEWHERE) == 2
    chosen = [{k: v for k, v in a.items() if k not in MADE_ELSEWHERE} for a in (ours[0], golden[0])]
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize(
    ("result", "name", "change"),
    [
        ("embeddings.h5", "mean/2", 2e-4),
        ("embeddings.h5", "contacts", 3e-3),
        ("embeddings.h5", "row", 1),
        ("saturation.h5", "log_odds", 2e-4),
        ("structures.h5", "positions", 0.4),
        ("structures.h5", "pae", 3),
        ("structures.h5", "aatype", 1),
        ("structures.h5", "flags", 1),
    ],
)
def test_a_change_is_noticed(result, name, change):
    _, golden = contents(GOLDEN / "results" / SAMPLE / result)
    limits = LIMITS_OF.get(result, LIMITS)
    changed = {key: value.copy() for key, value in golden.items()}
    assert differences(changed, golden, limits) == []
    changed[name].flat[0] += change
    assert differences(changed, golden, limits) == [name]
    del changed[name]
    assert differences(changed, golden, limits) == [name]


def test_provenance_has_the_same_facts(golden_run):
    texts = [
        (results / "provenance.json").read_text()
        for results in (golden_run.results, GOLDEN / "results")
    ]
    ours, golden = map(json.loads, texts)
    assert list(ours) == list(golden)
    for facts in (ours, golden):
        datetime = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00"
        assert re.fullmatch(datetime, facts["written"])
        assert set(facts["software"]) >= {"esm_pipeline", "python", "torch", "platform"}
        facts["settings"].pop("model")
        facts["models"]["model"].pop("name")
        facts["models"]["fold_model"].pop("weights_sha256")
        every = [*facts["results"].values(), *facts["samples"][SAMPLE]["results"].values()]
        for result in every:
            for name in MADE_ELSEWHERE:
                result.pop(name, None)
    for part in ("format", "format_version", "settings", "models", "samples", "results"):
        assert ours[part] == golden[part]
