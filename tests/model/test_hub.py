"""Where checkpoints come from: folders, the packaged model, and a local server for the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from esm_pipeline import EsmConfig, EsmForMaskedLM, EsmTokenizer
from esm_pipeline.errors import WeightsError
from esm_pipeline.model import resolve_checkpoint
from esm_pipeline.model.hub import file_digest
from tests.oracles.hub_server import COMMIT, serve
from tests.oracles.peers import ESM2, SMALL

NAME = "lab/esm2_tiny"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    EsmForMaskedLM(EsmConfig(**SMALL, **ESM2)).save_pretrained(root / NAME)
    EsmTokenizer.standard().save_pretrained(root / NAME)
    empty = root / "lab" / "empty"
    EsmConfig(**SMALL).save_pretrained(empty)
    return root


def point_at(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the hub's client talk to `address`, as HF_ENDPOINT does before it is imported."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def requests(models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub of its own and an empty cache; the requests that reach it."""
    with serve(models) as (address, noted):
        point_at(address, monkeypatch)
        yield noted


def test_download_cache_and_offline(requests: list[str], models: Path, tmp_path: Path) -> None:
    cache = tmp_path / "mine"
    first = resolve_checkpoint(NAME, cache_dir=cache)
    assert first.revision == COMMIT
    assert first.folder.is_relative_to(cache)
    assert [path.name for path in first.weight_files] == ["model.safetensors"]
    assert first.weights_sha256() == file_digest(models / NAME / "model.safetensors")
    fetched = [request for request in requests if request.startswith("GET /lab/")]
    assert len(fetched) == len(set(fetched)) == 5
    # the commit that `main` meant at first holds for all the rest
    by_branch = [request for request in fetched if "/resolve/main/" in request]
    assert by_branch == [f"GET /{NAME}/resolve/main/config.json"]
    requests.clear()
    again = resolve_checkpoint(NAME, cache_dir=cache, local_files_only=True)
    assert again == first
    assert not any("/lab/" in request for request in requests)
    model = EsmForMaskedLM.from_pretrained(NAME, cache_dir=cache, local_files_only=True)
    assert model.name_or_path == NAME
    assert len(EsmTokenizer.from_pretrained(NAME, cache_dir=cache, local_files_only=True)) == 33


def test_revision_is_pinned(requests: list[str], tmp_path: Path) -> None:
    pinned = resolve_checkpoint(NAME, cache_dir=tmp_path, revision=COMMIT)
    assert pinned.revision == COMMIT
    requests.clear()
    assert resolve_checkpoint(NAME, cache_dir=tmp_path, revision=COMMIT) == pinned
    assert not any("safetensors" in request or "config.json" in request for request in requests)
    with pytest.raises(WeightsError, match=f"{NAME}: no revision 'v9'"):
        resolve_checkpoint(NAME, cache_dir=tmp_path, revision="v9")


def test_what_the_hub_does_not_have(requests: list[str], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such public model on the hub"):
        resolve_checkpoint("lab/nothing", cache_dir=tmp_path)
    with pytest.raises(WeightsError, match=r"lab/empty: no weights in it; one of model\.safetens"):
        resolve_checkpoint("lab/empty", cache_dir=tmp_path)
    offline = "not in the cache of hub models, and this is offline; fetch it once with network"
    with pytest.raises(WeightsError, match=offline):
        resolve_checkpoint(NAME, cache_dir=tmp_path, local_files_only=True)


def test_unreachable_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits between its tries
    point_at("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(WeightsError, match=r"the hub was not reached .*; check the network"):
        resolve_checkpoint(NAME, cache_dir=tmp_path)


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    cases = {
        str(file): "a file; give the folder",
        str(tmp_path / "none"): "no such folder",
        "./none": "no such folder",
        "a b": "no such folder",
        "../../none": "no such folder",
        str(tmp_path): r"no config\.json in it",
    }
    for name, message in cases.items():
        with pytest.raises(WeightsError, match=message):
            resolve_checkpoint(name)


def test_index_may_name_only_its_neighbours(tmp_path: Path) -> None:
    EsmConfig(**SMALL).save_pretrained(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    for wrong in ("../secret.safetensors", "/etc/passwd", 3):
        index.write_text(json.dumps({"weight_map": {"a": wrong}}))
        with pytest.raises(WeightsError, match="not the name of a file beside it"):
            resolve_checkpoint(str(tmp_path))
    for broken in ("{", "[]", '{"weight_map": 3}'):
        index.write_text(broken)
        with pytest.raises(WeightsError, match="not a readable index"):
            resolve_checkpoint(str(tmp_path))
    index.write_text(json.dumps({"weight_map": {"a": "absent.safetensors"}}))
    with pytest.raises(WeightsError, match=r"lists absent\.safetensors, which is not there"):
        resolve_checkpoint(str(tmp_path))
