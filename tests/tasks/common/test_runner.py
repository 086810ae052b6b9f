"""What a user reads about a model that cannot be used: one line, exit code 2, nothing written."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.model.checkpoints.test_hub import point_at
from tests.oracles.hub_server import serve

NOBODY = 65534
WEIGHTS = "model.safetensors"
Change = Callable[[Path], None]


def write(name: str, content: str | bytes) -> Change:
    text = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(text) and None


def remove(*names: str) -> Change:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def cut(name: str, size: int) -> Change:
    return lambda folder: os.truncate(folder / name, size)


def tensors(**changes: torch.Tensor | None) -> Change:
    """Tensors added, replaced or (None) removed; `__` stands for a dot."""

    def change(folder: Path) -> None:
        state = safetensors.torch.load_file(folder / WEIGHTS)
        for name, tensor in changes.items():
            key = name.replace("__", ".")
            state.pop(key, None)
            if tensor is not None:
                state[key] = tensor
        safetensors.torch.save_file(state, folder / WEIGHTS)

    return change


def config(**changes: object) -> Change:
    def change(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(values | changes))

    return change


def index(*names: str) -> Change:
    """Weights in files that an index names, in place of the one."""

    def change(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder.parent / "outside.safetensors")
        places = {f"key{number}": name for number, name in enumerate(names)}
        text = json.dumps({"weight_map": places})
        (folder / "model.safetensors.index.json").write_text(text)

    return change


NORM = "esm__encoder__emb_layer_norm_after__weight"
QUERY = "esm__encoder__layer__1__attention__self__query__weight"
REGRESSION = "esm__contact_head__regression__bias"
NAN = float("nan")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("config.json"), "{m}: no config.json in it; is this an ESM checkpoint?"),
        (remove(WEIGHTS), "{m}: no weights in it; one of model.safetensors, "),
        (cut(WEIGHTS, 5000), "{m}/model.safetensors: not a whole safetensors file ("),
        (cut(WEIGHTS, 0), "{m}/model.safetensors: not a whole safetensors file ("),
        (write(WEIGHTS, "<html>"), "{m}/model.safetensors: not a whole safetensors file ("),
        (tensors(**{NORM: None}), "{m}: no 'encoder.emb_layer_norm_after.weight' among its w"),
        (tensors(esm__surprise=torch.ones(1)), "{m}: 'surprise' among its weights is not part"),
        (tensors(**{NORM: torch.ones(3)}), "has the shape (3,), the config requires"),
        (
            tensors(**{QUERY: torch.full((16, 16), NAN)}),
            "{m}: 'encoder.layer.1.attention.self.query.weight' has NaN or infinity among its we",
        ),
        (
            tensors(**{REGRESSION: torch.tensor([-float("inf")])}),
            "{m}: 'contact_head.regression.bias' has NaN or infinity among its weights; copy or",
        ),
        (config(hidden_size=32), "weights and config.json do not belong together"),
        (config(num_hidden_layers="two"), "{m}: config: num_hidden_layers is 'two'"),
        (config(model_type="bert"), "{m}/config.json: config: model_type is 'bert', not 'esm'"),
        (write("config.json", "{"), "{m}/config.json: not a readable config (Expecting prop"),
        (write("config.json", b"\xff"), "{m}/config.json: not a readable config ("),
        (write("config.json", "[" * 99_999), "{m}/config.json: not a readable config ("),
        (
            write("config.json", "[]"),
            "{m}/config.json: not a readable config (holds []; it should hold a JSON object)",
        ),
        (write("vocab.txt", "<cls>\n"), "{m}: the vocabulary has no token for residue A; is"),
        (index("../outside.safetensors"), "'../outside.safetensors' is not the name of a file"),
        (index("/etc/passwd"), "'/etc/passwd' is not the name of a file in its folder"),
        (index("absent.safetensors"), "index.json: lists absent.safetensors, which is not there"),
        (index(".."), "index.json: '..' is not the name of a file in its folder"),
    ],
)
def test_a_folder_that_is_no_whole_checkpoint(esm, rotary, tmp_path, change, message):
    model = shutil.copytree(rotary, tmp_path / "model")
    change(model)
    assert message.format(m=model) in refusal(esm, tmp_path, model)


def test_a_whole_checkpoint_is_fine(esm, rotary, tmp_path):
    """The twin of the test above."""
    model = shutil.copytree(rotary, tmp_path / "model")
    with pytest.raises(AssertionError):
        refusal(esm, tmp_path, model)


def refusal(esm, folder: Path, model: object, *options: object) -> str:
    """The line that `embed` refuses a model with."""
    (folder / "in.fasta").write_text(">a\nMKV\n")
    (folder / "out").mkdir()
    where = (folder / "in.fasta", folder / "out" / "o.h5")
    code, lines = esm("embed", f"--model={model}", *options, *where)
    lines = [line for line in lines if not line.startswith("embed: loading ")]
    assert (code, len(lines)) == (2, 1), lines
    assert list((folder / "out").iterdir()) == []
    (folder / "out").rmdir()
    return lines[0].removeprefix("esm-pipeline embed: ")


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("lab/none", (), "lab/none: no such folder, and not in the cache "),
        ("none", (), "none: no such folder, and not in the cache "),
        ("./none", (), "./none: no such folder or file, and no hub id of the form owner/model"),
        ("../a/b", (), "../a/b: no such folder or file, and no hub id of the form owner/model"),
        ("~none/x", (), "~none/x: no such folder or file, and no hub id of the form owner/model"),
        ("-rf", (), "-rf: no such folder, and not a hub id"),
        (
            "a\x1b[2Jb",
            (),
            r"a\x1b[2Jb: no such folder or file, and no hub id of the form owner/model",
        ),
        ("x" * 300, (), f"{'x' * 300}: "),
        (
            "a\udcff",
            (),
            r"a\udcff: safetensors reads only paths in UTF-8; rename it, or link to it",
        ),
        (__file__, (), f"{__file__}: a file; give the folder that holds config.json and weights"),
        (
            "demo",
            ("--revision", "main"),
            "demo: only hub models have revisions, and this is on the disk;",
        ),
        ("lab/none", ("--revision", "../../x"), "lab/none: revision '../../x' is no commit, tag"),
        ("lab/none", ("--revision=-x",), "lab/none: revision '-x' is no commit, tag or branch"),
        ("lab/none", ("--revision", "a b"), "lab/none: revision 'a b' is no commit, tag or branch"),
    ],
)
def test_a_name_that_leads_to_no_model(esm, tmp_path, monkeypatch, model, options, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    assert refusal(esm, tmp_path, model, *options).startswith(message)


def test_a_model_that_the_hub_does_not_have(esm, tmp_path, monkeypatch):
    (tmp_path / "hub").mkdir()
    with serve(tmp_path / "hub") as hub:
        point_at(hub.address, monkeypatch)
        message = refusal(esm, tmp_path, "lab/esm2_t33")
        assert message == (
            "lab/esm2_t33: no such folder, and no such public model on the hub; check the "
            "spelling, or if it is private `hf auth login`, or a token in HF_TOKEN"
        )
        assert hub.requests


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_of_no_numbers_are_refused(esm, rotary, tmp_path, dtype):
    """Short proteins would have finite ones: the kernel of attention hides NaN."""
    model = shutil.copytree(rotary, tmp_path / "model")
    tensors(**{QUERY: torch.full((16, 16), NAN)})(model)
    (tmp_path / "wt.fasta").write_text(">a\nMKTAYIAKQR\n")
    command = ("score", "--saturation", tmp_path / "wt.fasta", tmp_path / "out.h5")
    code, lines = esm(*command, "--model", model, "--dtype", dtype)
    assert (code, lines[:-1]) == (2, lines[:2])
    assert "'esm.encoder.layer.1.attention.self.query.weight' has NaN or infinity" in lines[-1]
    assert not (tmp_path / "out.h5").exists()


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "part.bin"])
def test_pickled_code_is_refused_and_never_run(esm, rotary, tmp_path, name, zipped):
    model = shutil.copytree(rotary, tmp_path / "model")
    state = safetensors.torch.load_file(model / WEIGHTS)
    (model / WEIGHTS).unlink()
    pwned = tmp_path / "pwned"
    content = {**state, "esm.extra": Payload(pwned)}
    torch.save(content, model / name, _use_new_zipfile_serialization=zipped)
    text = json.dumps({"weight_map": dict.fromkeys(state, "part.bin")})
    (model / "pytorch_model.bin.index.json").write_text(text)
    message = refusal(esm, tmp_path, model)
    assert f"{name}: holds pickled code, not only tensors, and is refused; convert it to" in message
    assert not pwned.exists()
    torch.load(model / name, weights_only=False)  # what it would have done
    assert pwned.exists()


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without the rights of root, who may read everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("name", ["in.fasta", "model/config.json", f"model/{WEIGHTS}"])
def test_a_file_that_may_not_be_read(esm, rotary, name):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        shutil.copytree(rotary, folder / "model")
        (folder / "in.fasta").write_text(">a\nMKV\n")
        (folder / name).chmod(0)
        folder.chmod(0o777)
        (folder / "model").chmod(0o755)
        with as_nobody():
            command = ("embed", "--model", folder / "model", folder / "in.fasta", folder / "o.h5")
            code, (line,) = esm(*command)
        assert code == 2
        assert f"{folder / name}" in line
        assert "ermission denied" in line
        assert sorted(path.name for path in folder.iterdir()) == ["in.fasta", "model"]
