"""A result names every setting that changes it; ranges made with others are not put together."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import pytest

from esm_pipeline.cli import main
from esm_pipeline.settings.section import Section, is_execution, texts
from esm_pipeline.settings.sections import (
    ClassifySettings,
    EmbedSettings,
    FoldSettings,
    StrategySettings,
)
from esm_pipeline.tasks.classify import command as classify
from esm_pipeline.tasks.embed import command as embed
from esm_pipeline.tasks.fold import command as fold
from esm_pipeline.tasks.score import command as score
from tests.jobs import assert_same_results
from tests.tasks.classify.classifying import RESIDUE, save

# Of each task: its settings, the values given here, and another value of each that changes
# results. int8 is not for every processor, `auto` stands for one of the others.
TASKS: dict[str, tuple[type[Section], dict[str, str], dict[str, str]]] = {
    "embed": (
        EmbedSettings,
        {"include": "residue", "long": "truncate"},
        {
            "dtype": "bfloat16",
            "layers": "0",
            "include": "mean",
            "residue_dtype": "float32",
            "long": "skip",
        },
    ),
    "score": (
        StrategySettings,
        {"long": "window"},
        {
            "dtype": "bfloat16",
            "strategy": "wt_marginal",
            "long": "truncate",
            "window": "64",
        },
    ),
    "classify": (
        ClassifySettings,
        {"of": "residues", "long": "truncate"},
        {"dtype": "bfloat16", "of": "auto", "long": "skip"},
    ),
    "fold": (
        FoldSettings,
        {"max_residues": "20", "num_recycles": "1", "long": "truncate"},
        {
            "dtype": "bfloat16",
            "num_recycles": "0",
            "max_residues": "30",
            "long": "skip",
            "ambiguous": "approximate",
        },
    ),
}
MODULES = {"embed": embed, "score": score, "classify": classify, "fold": fold}
CASES = [(task, name) for task in TASKS for name in TASKS[task][2]]


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


NAMES = ("1-of-2", "2-of-2")


def compute(
    task: str, model: Path, bundle: Path, folder: Path, name: str, given: dict[str, str]
) -> None:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    more = ("--saturation",) if task == "score" else ()
    command = (task, "--quiet", "--model", model, "--range", name, *flags, *more)
    assert run(*command, bundle, folder / f"{name}.h5") == 0


@pytest.fixture(scope="session")
def ranges(rotary, tmp_path_factory):
    """Two ranges of a bundle, computed by each task."""
    folder = tmp_path_factory.mktemp("ranges")
    save(folder / "residues", RESIDUE)
    models = dict.fromkeys(TASKS, rotary) | {"classify": folder / "residues", "fold": "demo"}
    (folder / "in.fasta").write_text(">a\nMKTAYIAKQRQISFVKSHFSRQ\n>b\nMKTAYIAKQRQISFVKSHFSR\n")
    out = folder / "bundles"
    shard = ("shard", "--quiet", "--bundles", 1, "--least", 1, "--out", out)
    assert run(*shard, folder / "in.fasta") == 0
    for task, (_, given, _) in TASKS.items():
        for name in NAMES:
            compute(task, models[task], out / "00000.fasta", folder / task, name, given)
    return folder, models


def gather(task: str, folder: Path, bundle: Path) -> int:
    return run(
        *("aggregate", task, "--quiet", "--bundle", bundle, "--ranges", folder, "--count", 2),
        *("--out", folder / "all.h5", "--status", folder / "00000.status.tsv"),
    )


@pytest.mark.parametrize("task", TASKS)
def test_every_setting_that_changes_a_result_is_reported(task, ranges):
    """All settings of the definition: a new one is recorded without further code."""
    section, given, others = TASKS[task]
    assert MODULES[task].MODEL_SETTINGS is section
    changing = {name for name in section.model_fields if not is_execution(section, name)}
    assert changing == set(others), "give a value for each"
    with h5py.File(ranges[0] / task / "1-of-2.h5") as file:
        attributes = {name: str(value) for name, value in file.attrs.items()}
    assert {name: attributes[name] for name in changing} == texts(section()) | given
    assert not attributes.keys() & (section.model_fields.keys() - changing)


@pytest.mark.parametrize(("task", "name"), CASES)
def test_ranges_of_other_settings_are_not_gathered(task, name, ranges, tmp_path, capsys):
    folder, models = ranges
    _, given, others = TASKS[task]
    shutil.copytree(folder / task, tmp_path / task)
    other, bundle = given | {name: others[name]}, folder / "bundles/00000.fasta"
    compute(task, models[task], bundle, tmp_path / task, NAMES[1], other)
    capsys.readouterr()
    assert gather(task, tmp_path / task, bundle) == 2
    (line,) = capsys.readouterr().err.splitlines()
    mine = (texts(TASKS[task][0]()) | given)[name]
    assert f"2-of-2.h5: {name} is '{others[name]}', but '{mine}' in 1-of-2.h5; remove" in line
    assert not (tmp_path / task / "all.h5").exists()


@pytest.mark.parametrize("task", TASKS)
def test_ranges_of_the_same_settings_are_gathered(task, ranges, tmp_path):
    """With other ways to compute the same: batches and threads. All is as one run writes it."""
    folder, models = ranges
    bundle, given = folder / "bundles/00000.fasta", TASKS[task][1]
    shutil.copytree(folder / task, tmp_path / task)
    other = given | {"token_budget": "30", "threads": "1"}
    compute(task, models[task], bundle, tmp_path / task, NAMES[1], other)
    assert gather(task, tmp_path / task, bundle) == 0
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    more = ("--saturation",) if task == "score" else ()
    alone = (task, "--quiet", "--model", models[task], *flags, *more, folder / "in.fasta")
    assert run(*alone, tmp_path / "alone.h5") == 0
    assert_same_results(tmp_path / "alone.h5", tmp_path / task / "all.h5")
    status = (tmp_path / task / "00000.status.tsv").read_text().splitlines()
    assert [row.split("\t")[:2] for row in status[1:]] == [["0", "ok"], ["1", "ok"]]
