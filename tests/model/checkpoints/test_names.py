"""Names of models: those of fair-esm mean the hub's; a mistyped one is told before any request."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from esm_pipeline import EsmConfig, EsmForMaskedLM, EsmModel, EsmTokenizer
from esm_pipeline.cli import main
from esm_pipeline.errors import WeightsError
from esm_pipeline.model import demo_model, resolve_checkpoint
from tests.model.checkpoints.test_hub import point_at
from tests.oracles.hub_server import COMMIT, Hub, serve

pytestmark = pytest.mark.filterwarnings("ignore:.*no weights for pooler")

SHORT = "esm2_t6_8M_UR50D"
FULL = f"facebook/{SHORT}"


@pytest.fixture
def hub(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Hub]:
    """A hub with one published model, an empty cache, and an empty working folder."""
    root = tmp_path_factory.mktemp("hub")
    shutil.copytree(demo_model(), root / FULL)
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    with serve(root) as found:
        point_at(found.address, monkeypatch)
        yield found


@pytest.mark.parametrize(
    "load",
    [
        EsmModel.from_pretrained,
        EsmForMaskedLM.from_pretrained,
        EsmConfig.from_pretrained,
        EsmTokenizer.from_pretrained,
        resolve_checkpoint,
    ],
    ids=["model", "head", "config", "tokenizer", "checkpoint"],
)
def test_a_name_of_fair_esm_is_understood_by(load: Callable[[str], Any], hub: Hub) -> None:
    found = load(SHORT)
    assert getattr(found, "name_or_path", getattr(found, "name", "")) == FULL
    assert any(f"/models/{FULL}/" in request for request in hub.requests)


def test_the_tokenizer_has_the_limit_of_the_full_name(hub: Hub) -> None:
    lengths = [EsmTokenizer.from_pretrained(name).model_max_length for name in (SHORT, FULL)]
    assert lengths == [1024, 1024]
    assert hub.requests


def test_the_command_line_and_its_model_file(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "--model", SHORT, "--out", "model.json"]) == 0
    assert f"revision\t{COMMIT}" in capsys.readouterr().out
    assert json.loads(Path("model.json").read_text())["name"] == FULL
    Path("in.fasta").write_text(">a\nMKV\n")
    assert main(["embed", "--quiet", "--model", SHORT, "in.fasta", "out.h5"]) == 0
    assert hub.requests


def test_a_folder_of_that_name_wins(hub: Hub) -> None:
    shutil.copytree(demo_model(), SHORT)
    assert resolve_checkpoint(SHORT).revision is None
    assert EsmModel.from_pretrained(SHORT).name_or_path == SHORT
    assert hub.requests == []


@pytest.mark.parametrize("name", ["esm2_t6_8M_UR50", "esm2_t6_8M", "esm2_t6_8M_UR50D.pt"])
def test_a_mistyped_name_is_told_without_a_request(
    name: str, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    message = f"{name}: no such folder or file, and no known model; did you mean {FULL}?"
    for load in (EsmModel.from_pretrained, EsmConfig.from_pretrained, resolve_checkpoint):
        with pytest.raises(WeightsError) as caught:
            load(name)
        assert str(caught.value).startswith(message)
    assert main(["download", "--model", name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"esm-pipeline download: {message}")
    assert hub.requests == []


def test_a_mistyped_hub_id_is_told_after_the_hub_does_not_know_it(hub: Hub) -> None:
    with pytest.raises(WeightsError, match=rf"no such public model.*; did you mean {FULL}\?$"):
        resolve_checkpoint("facebook/esm2_t6_8M_UR50")
    assert hub.requests
    with pytest.raises(WeightsError, match=r"no such public model.*HF_TOKEN$"):
        resolve_checkpoint("lab/other")


def test_another_family_is_told_before_its_weights_are_missed(tmp_path: Path, hub: Hub) -> None:
    folders = [tmp_path / "bert", hub.root / "google" / "bert"]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"model_type": "bert", "hidden_size": 8}')
    for name in (str(folders[0]), "google/bert"):
        with pytest.raises(WeightsError, match=r"model_type is 'bert', not 'esm'; choose a check"):
            resolve_checkpoint(name)
    (folders[0] / "config.json").write_text('{"model_type": "esm"}')
    with pytest.raises(WeightsError, match="no weights in it"):
        resolve_checkpoint(str(folders[0]))
