"""`models`: a table to read, and the same for programs; no network, no PyTorch."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from esm_pipeline.cli import main
from esm_pipeline.known_models import KNOWN_MODELS
from esm_pipeline.tasks.run.models import in_short, is_cached

MODEL = KNOWN_MODELS[4]
COMMIT = "0" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def snapshot(cache) -> Path:
    """The folder of a cached model, without files."""
    folder = cache / "models--facebook--esm2_t33_650M_UR50D"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    return folder / "snapshots" / COMMIT


def printed(capsys, *flags: str) -> str:
    assert main(["models", *flags]) == 0
    return str(capsys.readouterr().out)


def test_the_table_has_a_row_for_each_model(cache, capsys):
    lines = printed(capsys).splitlines()
    assert [line for line in lines if len(line) > 80] == []
    rows = {line.split()[0]: line.split() for line in lines if line.endswith((" yes", " no"))}
    assert [*rows] == [model.fair_esm_name or model.name for model in KNOWN_MODELS]
    expected = ["esm2_t33_650M_UR50D", "651", "M", "33", "1,280", "any", "2.6", "no"]
    assert rows["esm2_t33_650M_UR50D"] == expected
    assert rows["esm1b_t33_650M_UR50S"][5] == "1,022"
    text = " ".join(" ".join(lines).split())
    assert all(text.count(purpose) == 1 for purpose in {model.purpose for model in KNOWN_MODELS})


def test_tsv_and_json_have_all_facts(cache, capsys):
    rows = list(csv.DictReader(io.StringIO(printed(capsys, "--tsv")), delimiter="\t"))
    objects = json.loads(printed(capsys, "--json"))
    assert [row["name"] for row in rows] == [model.name for model in KNOWN_MODELS]
    assert [[*row] for row in rows] == [[*one] for one in objects]
    assert objects[4] == {
        "name": "facebook/esm2_t33_650M_UR50D",
        "fair_esm_name": "esm2_t33_650M_UR50D",
        "kind": "masked LM",
        "parameters": 651043254,
        "layers": 33,
        "width": 1280,
        "longest": None,
        "float32_gb": 2.604,
        "cached": False,
        "purpose": MODEL.purpose,
    }
    assert (rows[4]["longest"], rows[4]["cached"], rows[0]["cached"]) == ("", "no", "yes")
    with pytest.raises(SystemExit):
        main(["models", "--tsv", "--json"])


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, False),
        ({"config.json": "{}"}, False),
        ({"model.safetensors": "x"}, False),
        ({"config.json": "{}", "model.safetensors": "x"}, True),
        ({"config.json": "{}", "pytorch_model.bin": "x"}, True),
        ({"config.json": "{}", "pytorch_model.bin.index.json": "not JSON"}, False),
    ],
)
def test_what_is_in_the_cache(snapshot, files, found):
    for name, text in files.items():
        (snapshot / name).write_text(text)
    assert is_cached(MODEL) is found
    assert not is_cached(KNOWN_MODELS[3])


def test_a_model_in_shards_is_cached_when_all_are(snapshot):
    (snapshot / "config.json").write_text("{}")
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    (snapshot / "1.safetensors").touch()
    (snapshot / "2.safetensors").symlink_to(snapshot / "lost")
    assert not is_cached(MODEL)
    (snapshot / "lost").touch()
    assert is_cached(MODEL)


def test_numbers_in_short():
    numbers = (1_823_674, 33_501_394, 651_043_254, 2_839_005_634, 15_129_100_194)
    assert [*map(in_short, numbers)] == ["1.8 M", "34 M", "651 M", "2.8 B", "15 B"]


LIGHT = """
import socket, sys
def refuse(*_): raise SystemExit("a connection")
socket.socket.connect = refuse
from esm_pipeline.cli import main
main(["models"])
sys.exit(sorted({"torch", "pandas", "transformers", "h5py"} & set(sys.modules)))
"""


def test_it_takes_neither_network_nor_pytorch():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"
    assert "esmfold_v1" in done.stdout


def test_a_reader_that_goes_away_is_no_error():
    command = f"{sys.executable} -m esm_pipeline models --json | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[\n", "")
