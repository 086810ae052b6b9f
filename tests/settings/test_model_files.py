"""Which files a model is made of, as the workflow sees it at every parse."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from esm_pipeline.errors import InputError
from esm_pipeline.settings import Settings, file_state, load_settings


def files_of(model: object) -> list[str]:
    return Settings(fasta="a.fasta", model=str(model)).models()["model.json"].files()


def test_a_folder(tmp_path: Path) -> None:
    own = [
        *("config.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"),
        *("model-00001-of-00002.safetensors", "model.safetensors.index.json", "added_tokens.json"),
        *("pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"),
    ]
    others = [
        "README.md",
        "training_args.bin",
        "optimizer.pt",
        "trainer_state.json",
        "config.json~",
    ]
    for name in own + others:
        (tmp_path / name).touch()
    assert files_of(tmp_path) == sorted(str(tmp_path / name) for name in own)


def test_a_fair_esm_file_and_its_regression(tmp_path: Path) -> None:
    path = tmp_path / "esm2_t6.pt"
    path.touch()
    (tmp_path / "esm2_t12-contact-regression.pt").touch()
    assert files_of(path) == [str(path)]
    beside = tmp_path / "esm2_t6-contact-regression.pt"
    beside.touch()
    assert files_of(path) == sorted([str(path), str(beside)])


@pytest.mark.parametrize("model", ["demo", "facebook/esm2_t6_8M_UR50D", "./none"])
def test_what_is_not_on_this_machine(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "config.json").touch()
    assert files_of(model) == []


def test_braces(tmp_path: Path) -> None:
    (tmp_path / "{m}").mkdir()
    (tmp_path / "{m}" / "config.json").touch()
    with pytest.raises(InputError, match="Snakemake reads braces and angle brackets"):
        Settings(fasta="a.fasta", model=str(tmp_path / "{m}")).models()


def test_state_tells_an_older_file_too(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"one")
    states = [file_state(str(path))]
    os.utime(path, (1, 1))
    states.append(file_state(str(path)))
    path.write_bytes(b"other")
    os.utime(path, (1, 1))
    states.append(file_state(str(path)))
    assert len(set(states)) == 3
    assert states[0][0] == path.name


def test_names_of_fair_esm_are_understood(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {
        "fasta": "in.fasta",
        "tasks": ["embed", "score", "fold"],
        "model": "esm2_t6_8M_UR50D",
        "fold": {"model": "esmfold_v1"},
        "score": {"models": {"a": "esm1v_t33_650M_UR90S_1@main", "b": "esm1b_t33_650M_UR50S"}},
    }
    found = {file: model[:2] for file, model in load_settings(config).models().items()}
    assert found == {
        "model.json": ("facebook/esm2_t6_8M_UR50D", None),
        "models/a.json": ("facebook/esm1v_t33_650M_UR90S_1", "main"),
        "models/b.json": ("facebook/esm1b_t33_650M_UR50S", None),
        "fold_model.json": ("facebook/esmfold_v1", None),
    }
    (tmp_path / "esm2_t6_8M_UR50D").mkdir()
    assert load_settings(config).model == "esm2_t6_8M_UR50D"


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"model": "esm2_t6_8M"}, "config: 'model' = 'esm2_t6_8M': no such folder or file"),
        ({"fold": {"model": "esm2_t6_8M"}}, "config: 'fold.model' = 'esm2_t6_8M': no such"),
        ({"classify": {"model": "esm2_t6_8M"}}, "config: 'classify.model' = 'esm2_t6_8M': no such"),
        ({"score": {"models": {"a": "esm2_t6_8M@x"}}}, "'a' = 'esm2_t6_8M@x': no such folder"),
    ],
)
def test_a_mistyped_name_is_told_with_its_key(config, key):
    with pytest.raises(InputError) as caught:
        load_settings({"fasta": "in.fasta", **config})
    (line,) = str(caught.value).splitlines()
    assert key in line
    assert "; did you mean facebook/esm2_t6_8M_UR50D?" in line
