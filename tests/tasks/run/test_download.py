"""`download`: a model found once, reported in lines and in a file that every task accepts."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from esm_pipeline import open_results
from esm_pipeline.errors import IN_WORKFLOW
from esm_pipeline.formats.checksums import sha256
from esm_pipeline.model import EsmForMaskedLM, EsmTokenizer, demo_model
from esm_pipeline.settings.models import LOCAL_MODELS
from esm_pipeline.tasks.common.model_file import read_model_file
from tests.model.checkpoints.test_fair_esm import NAMES, write
from tests.oracles.hub_server import COMMIT, Hub, Trouble, serve
from tests.tasks.conftest import save_model

NAME = "lab/tiny"
Esm = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    root = tmp_path / "hub"
    save_model(root / NAME, position_embedding_type="rotary", token_dropout=True)
    with serve(root) as hub:
        yield hub


ROOT = Path(__file__).resolve().parents[3]


def run(folder: Path, hub: Hub | None, *arguments: object, **variables: str) -> Any:
    """Run the command line in a process of its own, with a cache and a hub, as a user does."""
    address = "http://127.0.0.1:9" if hub is None else hub.address
    own = {"HF_HOME": str(folder / "hf"), "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}
    own["PYTHONPATH"] = str(ROOT)
    return subprocess.run(
        [sys.executable, "-m", "esm_pipeline", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, **own, **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )


def fasta(folder: Path) -> Path:
    path = folder / "in.fasta"
    path.write_text(">a\nMKTAYIAKQRQISFVK\n>b\nMKV\n")
    return path


def test_a_hub_model_from_nothing_to_embeddings_without_network(tmp_path: Path, hub: Hub) -> None:
    """What `download` prints and writes; then `embed` with its file and without a hub."""
    hub.troubles = [Trouble("model.safetensors", cut=1000, times=1)]  # the client reports this
    done = run(tmp_path, hub, "download", "--model", NAME, "--out", "model.json", "embed")
    assert (done.returncode, done.stderr) == (0, "")
    lines = dict(line.split("\t") for line in done.stdout.splitlines())
    assert list(lines) == ["path", "revision", "weights_sha256"]
    assert lines["revision"] == COMMIT
    assert lines["weights_sha256"] == sha256(hub.root / NAME / "model.safetensors")
    assert lines["weights_sha256"] == sha256(Path(lines["path"]) / "model.safetensors")
    again = run(tmp_path, None, "embed", "--model=model.json", "--quiet", fasta(tmp_path), "o.h5")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    with open_results(tmp_path / "o.h5") as results:
        attributes = dict(results.attributes)
    assert attributes["model"] == NAME
    assert attributes["revision"] == COMMIT
    assert attributes["weights_sha256"] == lines["weights_sha256"]
    hub.requests.clear()
    (Path(lines["path"]) / "vocab.txt").unlink()  # a job does not download missing files
    (Path(lines["path"]) / "model.safetensors").unlink()
    last = run(tmp_path, hub, "embed", "--model=model.json", "in.fasta", "o.h5")
    assert last.returncode == 2
    assert f"{NAME}: no weights in it" in last.stderr
    assert hub.requests == []


def test_the_file(tmp_path: Path, rotary: Path, esm: Esm) -> None:
    """It does not depend on place and time: no path but the name, no time."""
    outputs = [tmp_path / "one" / "model.json", tmp_path / "two.json"]
    for output in outputs:
        assert esm("download", "--model", rotary, "--out", output) == (0, [])
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    facts = json.loads(outputs[0].read_text())
    assert facts == {
        "format": "esm-pipeline/model",
        "format_version": 1,
        "name": str(rotary),
        "revision": None,
        "weights_sha256": sha256(rotary / "model.safetensors"),
        "files_sha256": {
            name: sha256(rotary / name)
            for name in (
                *("config.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"),
                "added_tokens.json",
            )
            if (rotary / name).exists()
        },
        "config": {
            "num_hidden_layers": 2,
            "hidden_size": 16,
            "num_attention_heads": 2,
            "vocab_size": 33,
            "intermediate_size": 32,
            "position_embedding_type": "rotary",
            "max_residues": None,
            "token_dropout": True,
        },
        "parameters": sum(one.numel() for one in load_file(rotary / "model.safetensors").values()),
    }


def test_the_file_of_a_run_has_no_absolute_path(
    tmp_path: Path, esm: Esm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leads to the model from its folder; when that was moved, the configuration does."""
    monkeypatch.setenv(IN_WORKFLOW, "1")
    models = [tmp_path / name / "m" for name in ("a", "b")]
    for seed, model in enumerate(models):
        save_model(model, seed=seed, position_embedding_type="rotary")
    file, moved = tmp_path / "run" / "model.json", tmp_path / "deep" / "er" / "run" / "model.json"
    esm("download", "--model", models[1], "--out", file)
    facts = json.loads(file.read_text())
    assert (facts["name"], facts["path"]) == ("m", "../b/m")
    moved.parent.mkdir(parents=True)
    shutil.copy(file, moved)

    def embed(model: Path) -> int:
        return esm("embed", "--model", model, fasta(tmp_path), tmp_path / "o.h5")[0]

    assert (embed(file), embed(moved)) == (0, 2)
    with open_results(tmp_path / "o.h5") as results:
        assert results.attributes["model"] == "m"
    for known, codes in ((models[1:], (0, 0)), (models[:1], (2, 2)), (models, (0, 2))):
        monkeypatch.setenv(LOCAL_MODELS, json.dumps([*map(str, known)]))
        assert (embed(file), embed(moved)) == codes


def test_lines_for_what_is_not_of_the_hub(capsys: pytest.CaptureFixture[str], esm: Esm) -> None:
    from esm_pipeline.cli import main

    assert main(["download", "--model", "demo"]) == 0
    digest = sha256(demo_model() / "model.safetensors")
    expected = f"path\t{demo_model()}\nrevision\t\nweights_sha256\t{digest}\n"
    assert capsys.readouterr() == (expected, "")


def test_embed_with_the_file_is_embed_with_the_model(
    tmp_path: Path, rotary: Path, esm: Esm
) -> None:
    esm("download", "--model", rotary, "--out", tmp_path / "model.json")
    for name, model in (("one.h5", rotary), ("two.h5", tmp_path / "model.json")):
        assert esm("embed", "--model", model, fasta(tmp_path), tmp_path / name)[0] == 0
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()


def test_weights_that_changed_since(tmp_path: Path, esm: Esm) -> None:
    folder = save_model(tmp_path / "m", position_embedding_type="rotary")
    file = tmp_path / "model.json"
    esm("download", "--model", folder, "--out", file)
    model = EsmForMaskedLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.bias.add_(1)
    model.save_pretrained(folder)
    code, lines = esm("embed", "--model", file, fasta(tmp_path), tmp_path / "o.h5")
    assert code == 2
    assert lines == [
        f"esm-pipeline embed: {file}: the weights of {folder} have changed since it was written; "
        "remove the file, and run the workflow again"
    ]


@pytest.mark.parametrize("name", ["config.json", "vocab.txt"])
def test_a_configuration_that_changed_since(tmp_path: Path, esm: Esm, name: str) -> None:
    folder = save_model(tmp_path / "m", position_embedding_type="rotary")
    EsmTokenizer.standard().save_pretrained(folder)
    file = tmp_path / "model.json"
    esm("download", "--model", folder, "--out", file)
    text = (folder / name).read_text()
    (folder / name).write_text(text + "\n")
    code, lines = esm("embed", "--model", file, fasta(tmp_path), tmp_path / "o.h5")
    assert (code, lines) == (
        2,
        [
            f"esm-pipeline embed: {file}: {name} of {folder} has changed since it was written; "
            "remove the file, and run the workflow again"
        ],
    )


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format": "esm-pipeline/model", "name": 3}']
)
def test_files_that_are_no_model_file(text: str, tmp_path: Path, esm: Esm) -> None:
    file = tmp_path / "model.json"
    file.write_text(text)
    code, lines = esm("embed", "--model", file, fasta(tmp_path), tmp_path / "o.h5")
    assert (code, len(lines)) == (2, 1)
    assert f"{file}: not a" in lines[0]


def test_a_revision_beside_the_file(tmp_path: Path, rotary: Path, esm: Esm) -> None:
    file = tmp_path / "model.json"
    esm("download", "--model", rotary, "--out", file)
    more = ("--model", file, "--revision=main", fasta(tmp_path), tmp_path / "o.h5")
    code, lines = esm("embed", *more)
    assert code == 2
    assert lines == [f"esm-pipeline embed: {file}: contains a revision; leave --revision out"]
    code, lines = esm("download", "--model", rotary, "--revision=main")
    assert code == 2
    assert "only hub models have revisions" in lines[0]


def spoil_vocabulary(folder: Path) -> None:
    EsmTokenizer([*EsmTokenizer.standard().all_tokens, "<more>"]).save_pretrained(folder)


def spoil_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def spoil_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 32}))


CHECKS: dict[str, tuple[list[str], Callable[[Path], None] | None, str]] = {
    "layer": (["--layers=-1,3"], None, "layer 3 does not exist; the model has layers 0"),
    "long": (["--long=full"], None, "--long is 'full', but the model has positions for 30 "),
    "no setting": (["--layers=x"], None, "--layers = 'x'"),
    "vocabulary": ([], spoil_vocabulary, "the vocabulary has 34 tokens, the model 33"),
    "weights cut": ([], spoil_weights, "not a whole safetensors file"),
    "other weights": ([], spoil_config, "hidden_size is 32, but the weights have 16"),
}


@pytest.mark.parametrize("case", CHECKS)
def test_what_a_task_would_fail_at(case: str, tmp_path: Path, esm: Esm) -> None:
    flags, spoil, message = CHECKS[case]
    folder = save_model(
        tmp_path / "m", position_embedding_type="absolute", max_position_embeddings=34
    )
    if spoil is not None:
        spoil(folder)
    output = tmp_path / "model.json"
    code, lines = esm("download", "--model", folder, "--out", output, "embed", *flags)
    assert (code, len(lines)) == (2, 1)
    assert message in lines[0]
    assert not output.exists()
    if spoil is None:  # without a task there is no error
        assert esm("download", "--model", folder, "--out", output) == (0, [])


def test_weights_are_not_loaded(rotary: Path, esm: Esm, monkeypatch: pytest.MonkeyPatch) -> None:
    from esm_pipeline.tasks.embed.representations import Encoder

    def load(self: Encoder) -> None:
        raise AssertionError("only the headers should be read")

    monkeypatch.setattr(Encoder, "model", property(load))
    assert esm("download", "--model", rotary, "embed", "--layers=0") == (0, [])


@pytest.mark.parametrize("kind", NAMES)
def test_fair_esm_files_embed(kind: str, tmp_path: Path, esm: Esm) -> None:
    """The same result as with these weights in a folder; name and digest are in the result."""
    path = write(tmp_path, kind)
    include = "mean" if kind == "ESM-1v" else "mean,contacts"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that ESM-1v has no contact regression
        model = EsmForMaskedLM.from_pretrained(path)
    model.save_pretrained(tmp_path / "folder")
    outputs = tmp_path / "pt.h5", tmp_path / "folder.h5"
    for source, output in zip((path, tmp_path / "folder"), outputs, strict=True):
        arguments = ("--model", source, "--include", include, fasta(tmp_path), output)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing that is missing is used
            code, lines = esm("embed", *arguments)
        assert (code, [line.split()[0] for line in lines]) == (0, ["embed:"] * 3), lines
    with open_results(outputs[0]) as ours, open_results(outputs[1]) as theirs:
        assert ours.attributes["model"] == path.name
        assert len(ours.attributes["weights_sha256"]) == 64
        for one, other in zip(ours, theirs, strict=True):
            assert np.abs(one.mean[3] - other.mean[3]).max() == 0
            assert np.abs(one.mean[3]).max() > 0.1


def test_contacts_without_their_regression(tmp_path: Path, esm: Esm) -> None:
    path = write(tmp_path, "ESM-1v")
    output = tmp_path / "o.h5"
    message = (
        "and without it contacts mean nothing; put its contact regression next to it, or leave"
    )
    for command in (
        ("embed", "--model", path, "--include=contacts", fasta(tmp_path), output),
        ("download", "--model", path, "embed", "--include=mean,contacts"),
    ):
        code, lines = esm(*command)
        assert (code, len(lines)) == (2, 1)
        assert message in lines[0]
    assert not output.exists()


def test_no_space_in_the_cache(tmp_path: Path, hub: Hub) -> None:
    """The kernel refuses to make a file larger: one line, and later the same cache works."""
    limit = (hub.root / NAME / "model.safetensors").stat().st_size // 2
    command = [sys.executable, "-m", "esm_pipeline", "download", "--model", NAME]
    own = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        command,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"{NAME}: no space for model.safetensors in the cache {tmp_path / 'hf'}" in line
    assert run(tmp_path, hub, "download", "--model", NAME).returncode == 0


def test_one_line_where_there_is_no_network_or_no_proxy(tmp_path: Path, hub: Hub) -> None:
    done = run(tmp_path, None, "download", "--model", NAME)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "the hub was not reached" in done.stderr
    proxy = {"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "", "no_proxy": ""}
    done = run(tmp_path, hub, "download", "--model", NAME, **proxy)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "check HTTPS_PROXY" in done.stderr or "was not reached" in done.stderr
    assert hub.requests == []


def test_read_model_file_is_light() -> None:
    """The provenance of a result is written without PyTorch."""
    code = "import sys, esm_pipeline.tasks.run.provenance; print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "False\n"
    assert read_model_file.__module__ == "esm_pipeline.tasks.common.model_file"
