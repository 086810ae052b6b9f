"""The committed example of all results, made anew."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from esm_pipeline.cli import main
from tests.workflow.tools import GOLDEN, GOLDEN_TASKS, SAMPLE, Run, config, jobs, snakemake

RESULTS = ("embeddings.h5", "saturation.h5")
MADE_ELSEWHERE = {"model", "models", "software", "bytes", "sha256"}
"""Where the checkpoint lies, versions, and what follows from them or from the last digits."""

BINARY = {f"{SAMPLE}/{name}" for name in RESULTS}
APART = {"provenance.json", "model.json", f"{SAMPLE}/scores.json", f"{SAMPLE}/scores.tsv", *BINARY}
APART |= {"fold_model.json", f"{SAMPLE}/structures.tsv", f"{SAMPLE}/structures.h5"}
LISTS = {
    "provenance.sha256",
    f"{SAMPLE}/structures.sha256",
    *(f"{SAMPLE}/{name}/digests.sha256" for name in ("embed", "fold", "score", "variants")),
}
"""Digests of files whose last digits may differ."""

APART |= LISTS
FOLDED = (f"{SAMPLE}/structures/", f"{SAMPLE}/pae/")
"""Files whose texts may differ."""


@pytest.fixture(scope="module")
def golden_run(whole_run, model, tmp_path_factory) -> Run:
    """The other tasks, on top of the run that all tests share: nothing of it is made again."""
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


TEXTS = [file for file in files_of(GOLDEN / "results") - APART if not file.startswith(FOLDED)]


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_text_is_the_same(golden_run, name):
    assert (golden_run.results / name).read_text() == (GOLDEN / "results" / name).read_text()


@pytest.mark.parametrize("name", sorted(LISTS))
def test_lists_name_the_same_files(golden_run, name):
    texts = [(run / name).read_text() for run in (golden_run.results, GOLDEN / "results")]
    ours, golden = (re.sub("^[0-9a-f]{64}  ", "", text, flags=re.MULTILINE) for text in texts)
    assert ours == golden


def test_the_example_is_as_it_was_written(capsys):
    """But for the report, which is left out of it."""
    results = GOLDEN / "results"
    assert main(["verify", "--quiet", str(results)]) == 1
    told = f"{results / 'report.html'}: missing; run the workflow again\n"
    assert capsys.readouterr().out == told


NUMBER = re.compile(r"-?[0-9]+\.[0-9]+")


def assert_nearly(ours: str, golden: str) -> None:
    """The same text, but for the last digits of numbers, which follow from weights made anew."""
    assert NUMBER.sub("#", ours) == NUMBER.sub("#", golden)
    values = [np.array(NUMBER.findall(text), float) for text in (ours, golden)]
    assert values[0].size > 10
    assert np.abs(values[0] - values[1]).max() <= 0.31  # Å, pLDDT: wide by random weights


def text_of_structures(path: Path) -> str:
    """A file, runs of spaces as one, without the digest of the weights."""
    return re.sub(" +", " ", re.sub("[0-9a-f]{64}", "", path.read_text()))


def test_structures_are_the_same(golden_run):
    names = {file for file in files_of(GOLDEN / "results") if file.startswith(FOLDED)}
    assert len(names) == 12
    for name in (*names, f"{SAMPLE}/structures.tsv"):
        texts = [text_of_structures(run / name) for run in (golden_run.results, GOLDEN / "results")]
        assert_nearly(*texts)


def test_another_structure_is_seen():
    path = next((GOLDEN / "results" / SAMPLE / "structures").rglob("*.pdb"))
    one = text_of_structures(path)
    number = NUMBER.findall(one)[-1]
    assert_nearly(one, one)
    for changed in (one.replace(number, f"{float(number) + 0.5:.2f}"), one + "ATOM"):
        with pytest.raises(AssertionError):
            assert_nearly(one, changed)


def test_scores_are_the_same(golden_run):
    ours, golden = (
        list(csv.DictReader((results / SAMPLE / "scores.tsv").open(), delimiter="\t"))
        for results in (golden_run.results, GOLDEN / "results")
    )
    values = [[row.pop("masked_marginal") for row in rows] for rows in (ours, golden)]
    assert ours == golden
    assert {row["status"] for row in golden} == {"ok", "skipped"}
    for one, other in zip(*values, strict=True):
        assert bool(one) == bool(other)
        assert abs(float(one or 0) - float(other or 0)) <= 1e-4


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


def differences(ours, golden) -> list[str]:
    """Names of what is missing, new, of another shape or type, or off by more than 1e-4."""
    found = sorted(set(ours) ^ set(golden))
    for name in set(ours) & set(golden):
        one, other = ours[name], golden[name]
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            found.append(name)
        elif one.dtype.kind == "f":
            limit = 1e-3 if one.dtype == np.float16 else 1e-4
            if np.abs(one.astype(float) - other.astype(float)).max() > limit:
                found.append(name)
        elif not np.array_equal(one, other):
            found.append(name)
    return found


@pytest.mark.parametrize(("name", "least"), [("embeddings.h5", 10), ("saturation.h5", 7)])
def test_numbers_are_the_same(golden_run, name, least):
    ours, golden = (
        contents(results / SAMPLE / name) for results in (golden_run.results, GOLDEN / "results")
    )
    assert len(golden[1]) >= least
    assert differences(ours[1], golden[1]) == []
    for attributes in (ours[0], golden[0]):
        assert len(attributes.keys() & MADE_ELSEWHERE) == 2
    chosen = [{k: v for k, v in a.items() if k not in MADE_ELSEWHERE} for a in (ours[0], golden[0])]
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize(
    ("result", "name"),
    [
        ("embeddings.h5", "mean/2"),
        ("embeddings.h5", "contacts"),
        ("embeddings.h5", "row"),
        ("saturation.h5", "log_odds"),
    ],
)
def test_a_change_is_seen(result, name):
    _, golden = contents(GOLDEN / "results" / SAMPLE / result)
    changed = {key: value.copy() for key, value in golden.items()}
    assert differences(changed, golden) == []
    changed[name].flat[0] += 1
    assert differences(changed, golden) == [name]
    del changed[name]
    assert differences(changed, golden) == [name]


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
