"""A result names every setting that changes it; shards made with others are not put together."""

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
        {"dtype": "bfloat16", "num_recycles": "0", "max_residues": "30", "long": "skip"},
    ),
}
MODULES = {"embed": embed, "score": score, "classify": classify, "fold": fold}
CASES = [(task, name) for task in TASKS for name in TASKS[task][2]]


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def compute(task: str, model: Path, source: Path, target: Path, given: dict[str, str]) -> None:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    more = ("--saturation",) if task == "score" else ()
    command = (task, "--quiet", "--model", model, "--allow-empty", *flags, *more)
    assert run(*command, "--sha256", f"{target}.sha256", f"{source}.fasta", f"{target}.h5") == 0


@pytest.fixture(scope="session")
def shards(rotary, tmp_path_factory):
    """Two shards of a sample, computed by each task."""
    folder = tmp_path_factory.mktemp("shards")
    save(folder / "residues", RESIDUE)
    models = dict.fromkeys(TASKS, rotary) | {"classify": folder / "residues", "fold": "demo"}
    (folder / "in.fasta").write_text(">a\nMKTAYIAKQRQISFVKSHFSRQ\n>b\nGAVLIW\n")
    out = folder / "shards"
    assert run("shard", "--quiet", "--shards", 2, "--out", out, folder / "in.fasta") == 0
    for task, (_, given, _) in TASKS.items():
        for number in ("00000", "00001"):
            compute(task, models[task], out / number, folder / task / number, given)
    return folder, models


def gather(task: str, folder: Path, records: Path) -> int:
    return run(
        *("aggregate", task, "--quiet", "--records", records, "--shards-dir", folder),
        *("--shards", 2, "--out", folder / "all.h5", "--status", folder / "status.tsv"),
    )


@pytest.mark.parametrize("task", TASKS)
def test_every_setting_that_changes_a_result_is_reported(task, shards):
    """All settings of the definition: a new one is recorded without further code."""
    section, given, others = TASKS[task]
    assert MODULES[task].MODEL_SETTINGS is section
    changing = {name for name in section.model_fields if not is_execution(section, name)}
    assert changing == set(others), "give a value for each"
    with h5py.File(shards[0] / task / "00000.h5") as file:
        attributes = {name: str(value) for name, value in file.attrs.items()}
    assert {name: attributes[name] for name in changing} == texts(section()) | given
    assert not attributes.keys() & (section.model_fields.keys() - changing)


@pytest.mark.parametrize(("task", "name"), CASES)
def test_shards_of_other_settings_are_not_gathered(task, name, shards, tmp_path, capsys):
    folder, models = shards
    _, given, others = TASKS[task]
    shutil.copytree(folder / task, tmp_path / task)
    other = given | {name: others[name]}
    compute(task, models[task], folder / "shards/00001", tmp_path / task / "00001", other)
    capsys.readouterr()
    assert gather(task, tmp_path / task, folder / "shards/records.tsv") == 2
    (line,) = capsys.readouterr().err.splitlines()
    mine = (texts(TASKS[task][0]()) | given)[name]
    assert f"00001.h5: {name} is '{others[name]}', but '{mine}' in 00000.h5; remove" in line
    assert not (tmp_path / task / "all.h5").exists()


@pytest.mark.parametrize("task", TASKS)
def test_shards_of_the_same_settings_are_gathered(task, shards, tmp_path):
    """With other ways to compute the same: batches and threads."""
    folder, models = shards
    shutil.copytree(folder / task, tmp_path / task)
    other = TASKS[task][1] | {"token_budget": "30", "threads": "1"}
    compute(task, models[task], folder / "shards/00001", tmp_path / task / "00001", other)
    assert gather(task, tmp_path / task, folder / "shards/records.tsv") == 0
    with (
        h5py.File(tmp_path / task / "all.h5") as all_,
        h5py.File(folder / task / "00000.h5") as one,
    ):
        assert dict(all_.attrs) == dict(one.attrs)
