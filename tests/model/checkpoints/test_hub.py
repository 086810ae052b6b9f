"""Finding checkpoints: folders, the packaged model, and a local server instead of the hub."""

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from huggingface_hub import constants, file_download

from esm_pipeline import EsmConfig, EsmForMaskedLM, EsmTokenizer
from esm_pipeline.errors import CapacityError, EsmPipelineError, WeightsError
from esm_pipeline.model import Checkpoint, resolve_checkpoint
from esm_pipeline.model.checkpoints import hub_client
from esm_pipeline.model.checkpoints.hub import file_digest
from tests.oracles.hub_server import COMMIT, OTHER_COMMIT, TOKEN, Hub, Trouble, serve
from tests.oracles.peers import ESM2, SMALL

NAME = "lab/esm2_tiny"
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    for name in (NAME, f"{NAME}@{OTHER_COMMIT}"):
        EsmForMaskedLM(EsmConfig(**SMALL, **ESM2)).save_pretrained(root / name)
        EsmTokenizer.standard().save_pretrained(root / name)
    sharded = EsmForMaskedLM(EsmConfig(**SMALL, **ESM2))
    sharded.save_pretrained(root / "lab" / "sharded", max_shard_size="150KB")
    EsmConfig(**SMALL).save_pretrained(root / "lab" / "empty")
    (root / "lab" / "else").mkdir()
    return root


def point_at(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the hub's client talk to `address`, as HF_ENDPOINT does before it is imported."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A new hub, with a client that does not wait between its attempts."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    with serve(models) as hub:
        point_at(hub.address, monkeypatch)
        yield hub


def digest_of(root: Path, name: str = NAME) -> str:
    return file_digest(root / name / WEIGHTS)


def leftovers(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.name.endswith(".incomplete")]


def require_whole(cache: Path, models: Path, **options: Any) -> Checkpoint:
    """Resolve the model with a healthy hub and the same cache, which shows no trace of errors."""
    assert leftovers(cache) == []
    checkpoint = resolve_checkpoint(NAME, cache_dir=cache, **options)
    assert checkpoint.weight_files[0].read_bytes() == (models / NAME / WEIGHTS).read_bytes()
    EsmForMaskedLM.from_pretrained(NAME, cache_dir=cache, local_files_only=True)
    return checkpoint


def test_download_cache_and_offline(hub: Hub, models: Path, tmp_path: Path) -> None:
    cache = tmp_path / "mine"
    first = resolve_checkpoint(NAME, cache_dir=cache)
    assert first.revision == COMMIT
    assert first.folder.is_relative_to(cache)
    assert [path.name for path in first.weight_files] == [WEIGHTS]
    assert first.weights_sha256() == digest_of(models)
    fetched = [request for request in hub.requests if request.startswith("GET /lab/")]
    fetched += [request for request in hub.requests if request.startswith("GET /large/")]
    assert len(fetched) == len(set(fetched)) == 5
    # the commit that `main` meant at first holds for all files
    assert all(f"/resolve/{COMMIT}/" in request for request in fetched)
    assert f"GET /api/models/{NAME}/revision/main" in hub.requests
    hub.requests.clear()
    again = resolve_checkpoint(NAME, cache_dir=cache, local_files_only=True)
    assert again == first
    model = EsmForMaskedLM.from_pretrained(NAME, cache_dir=cache, local_files_only=True)
    assert model.name_or_path == NAME
    assert len(EsmTokenizer.from_pretrained(NAME, cache_dir=cache, local_files_only=True)) == 33
    assert hub.requests == []


def test_offline_by_the_environment(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = resolve_checkpoint(NAME, cache_dir=tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert resolve_checkpoint(NAME, cache_dir=tmp_path) == first
    with pytest.raises(
        WeightsError, match=r"not in the cache.*esm-pipeline download --model lab/e"
    ):
        resolve_checkpoint("lab/empty", cache_dir=tmp_path)
    assert hub.requests == []


def test_shards_are_fetched(hub: Hub, models: Path, tmp_path: Path) -> None:
    checkpoint = resolve_checkpoint("lab/sharded", cache_dir=tmp_path)
    assert len(checkpoint.weight_files) > 2
    model = EsmForMaskedLM.from_pretrained("lab/sharded", cache_dir=tmp_path, revision=COMMIT)
    local = EsmForMaskedLM.from_pretrained(models / "lab" / "sharded")
    assert model.lm_head.dense.weight.equal(local.lm_head.dense.weight)


def test_only_one_format_is_fetched(hub: Hub, models: Path, tmp_path: Path) -> None:
    """Neither pickles in addition to safetensors, nor files that no model here reads."""
    folder = models / "lab" / "formats"
    shutil.copytree(models / NAME, folder)
    state = safetensors.torch.load_file(folder / WEIGHTS)
    torch.save(state, folder / "pytorch_model.bin")
    for other in ("tf_model.h5", "flax_model.msgpack", "README.md", "training_args.bin"):
        (folder / other).write_bytes(b"anything")
    first = resolve_checkpoint("lab/formats", cache_dir=tmp_path)
    assert [path.name for path in first.weight_files] == [WEIGHTS]
    (folder / WEIGHTS).unlink()
    second = resolve_checkpoint("lab/formats", cache_dir=tmp_path / "other")
    assert [path.name for path in second.weight_files] == ["pytorch_model.bin"]
    held = {path.name for path in [*first.folder.iterdir(), *second.folder.iterdir()]}
    assert held & {path.name for path in folder.iterdir()} == held - {WEIGHTS}
    assert not held & {"tf_model.h5", "flax_model.msgpack", "README.md", "training_args.bin"}
    fetched = {request.split("/")[-1] for request in hub.requests if "/large/" in request}
    assert fetched == {WEIGHTS, "pytorch_model.bin"}
    shutil.rmtree(folder)


def test_a_spoilt_shard_is_found_although_another_fails(
    hub: Hub, models: Path, tmp_path: Path
) -> None:
    """Otherwise the next run would take it as checked."""
    shards = sorted(path.name for path in (models / "lab" / "sharded").glob("model-*"))
    hub.troubles = [Trouble(shards[0], spoil=True), Trouble(shards[1], "ANY", status=418)]
    for _ in range(2):
        with pytest.raises(WeightsError, match=rf"{shards[0]} came with the digest|answers 418"):
            resolve_checkpoint("lab/sharded", cache_dir=tmp_path)
    hub.troubles = []
    checkpoint = resolve_checkpoint("lab/sharded", cache_dir=tmp_path)
    for path in checkpoint.weight_files:
        assert path.read_bytes() == (models / "lab" / "sharded" / path.name).read_bytes()


def test_branch_tag_and_commit(hub: Hub, models: Path, tmp_path: Path) -> None:
    """A branch is resolved each time; a commit, or a tag of it, stays the same."""
    first = resolve_checkpoint(NAME, cache_dir=tmp_path)
    hub.revisions["main"] = OTHER_COMMIT
    moved = resolve_checkpoint(NAME, cache_dir=tmp_path)
    assert moved.revision == OTHER_COMMIT
    assert moved.weights_sha256() == digest_of(models, f"{NAME}@{OTHER_COMMIT}")
    assert moved.weights_sha256() != first.weights_sha256()
    tagged = resolve_checkpoint(NAME, cache_dir=tmp_path, revision="v1")
    assert tagged == first
    hub.requests.clear()
    assert resolve_checkpoint(NAME, cache_dir=tmp_path, revision=COMMIT) == first
    assert hub.requests == []  # everything is cached, also that there is no added_tokens.json
    with pytest.raises(WeightsError, match=f"{NAME}: no revision 'v9'"):
        resolve_checkpoint(NAME, cache_dir=tmp_path, revision="v9")


def test_a_dropped_connection_is_resumed(
    hub: Hub, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        constants, "DOWNLOAD_CHUNK_SIZE", 10_000
    )  # otherwise 10 MB, more than the file has
    size = (models / NAME / WEIGHTS).stat().st_size
    hub.troubles = [Trouble(WEIGHTS, cut=size // 3, times=2)]
    checkpoint = resolve_checkpoint(NAME, cache_dir=tmp_path)
    begins = [int(wanted.removeprefix("bytes=").rstrip("-")) for wanted in hub.ranges]
    assert len(begins) == 2
    assert 0 < begins[0] < begins[1] < size
    assert checkpoint.weight_files[0].read_bytes() == (models / NAME / WEIGHTS).read_bytes()


REFUSALS = {
    "gated": (
        401,
        "GatedRepo",
        rf"licence at http://[\d.:]+/{NAME}, then `hf auth login`, or a tok",
    ),
    "gated, token": (403, "GatedRepo", "access is restricted; accept its licence"),
    "private": (401, "RepoNotFound", "no such public model on the hub.*private `hf auth login`"),
    "forbidden": (403, "", r"the hub refuses the token \(403\); renew it"),
    "too many": (
        429,
        "",
        r"accepts no more requests for now \(429\); wait some minutes, or `hf auth log",
    ),
    "broken": (500, "", r"out of order \(500\); try again later"),
    "closed": (503, "", r"out of order \(503\); try again later"),
    "odd": (418, "", r"the hub answers 418"),
}


@pytest.mark.parametrize("file", ["config.json", WEIGHTS])
@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(
    case: str, file: str, hub: Hub, models: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line for each and no other output; the same cache works once the hub does."""
    status, code, message = REFUSALS[case]
    hub.troubles = [Trouble(file, "ANY", status=status, code=code)]
    with pytest.raises(WeightsError, match=message) as caught:
        resolve_checkpoint(NAME, cache_dir=tmp_path)
    assert "\n" not in str(caught.value)
    hub.troubles = []
    require_whole(tmp_path, models)
    assert capfd.readouterr() == ("", "")


def test_a_token(hub: Hub, models: Path, tmp_path: Path) -> None:
    hub.private = True
    for token in (None, False, "hf_bad"):
        with pytest.raises(WeightsError, match="access is restricted"):
            resolve_checkpoint(NAME, cache_dir=tmp_path, token=token)
    with pytest.raises(WeightsError, match="access is restricted"):
        EsmForMaskedLM.from_pretrained(NAME, cache_dir=tmp_path, token="hf_bad")
    require_whole(tmp_path, models, token=TOKEN)


BODIES = {
    "cut for good": (Trouble(WEIGHTS, cut=100), "the connection to the hub broke"),
    "too long": (Trouble(WEIGHTS, claim=10**6), "the connection to the hub broke|is incomplete"),
    "too short": (
        Trouble(WEIGHTS, claim=1000),
        "the download is incomplete; run the same command again",
    ),
    "spoilt": (Trouble(WEIGHTS, spoil=True), r"model\.safetensors came with the digest .* removed"),
    "spoilt config": (Trouble("config.json", spoil=True), r"config\.json came with the digest"),
    "spoilt vocabulary": (Trouble("vocab.txt", spoil=True), r"vocab\.txt came with the digest"),
}


@pytest.mark.parametrize("case", BODIES)
def test_bodies_that_are_not_the_files(
    case: str, hub: Hub, models: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trouble, message = BODIES[case]
    hub.troubles = [Trouble(**vars(trouble))]
    with pytest.raises(WeightsError, match=message) as caught:
        resolve_checkpoint(NAME, cache_dir=tmp_path)
    assert "\n" not in str(caught.value)
    hub.troubles = []
    require_whole(tmp_path, models)
    assert capfd.readouterr() == ("", "")


def test_a_hub_that_does_not_answer(
    hub: Hub, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first request is made once; a download that stalls is tried six times."""
    monkeypatch.setattr(hub_client, "PATIENCE", 0.5)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    hub.troubles = [Trouble("/revision/main", stall=2.0)]
    with pytest.raises(
        WeightsError,
        match="the hub does not answer in time; check the network, and run the same command",
    ):
        resolve_checkpoint(NAME, cache_dir=tmp_path)
    assert hub.requests == [f"GET /api/models/{NAME}/revision/main"]
    hub.troubles = [Trouble(WEIGHTS, stall=2.0)]
    with pytest.raises(WeightsError, match="the hub does not answer in time"):
        resolve_checkpoint(NAME, cache_dir=tmp_path)
    tried = [request for request in hub.requests if request.startswith("GET /large")]
    assert len(tried) == 6
    hub.troubles = []
    require_whole(tmp_path, models)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES])
def test_a_disk_that_does_not_take_it(
    number: int, hub: Hub, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = file_download.http_get

    def full(url: str, handle: Any, **options: Any) -> None:
        if url.endswith(WEIGHTS):
            handle.write(b"some of it")
            raise OSError(number, os.strerror(number))
        get(url, handle, **options)

    monkeypatch.setattr(file_download, "http_get", full)
    message = rf"no space for {WEIGHTS} in the cache {tmp_path} \(.*\); free some, or set HF_HOME"
    if number == errno.EACCES:
        message = rf"the cache {tmp_path} cannot be used \(Permission denied\); set HF_HOME"
    kind = WeightsError if number == errno.EACCES else CapacityError
    with pytest.raises(kind, match=message):
        resolve_checkpoint(NAME, cache_dir=tmp_path)
    monkeypatch.setattr(file_download, "http_get", get)
    require_whole(tmp_path, models)


def test_the_warnings_of_the_client_are_silenced(
    hub: Hub, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example about a disk that looks too small; if it is, an error says so."""
    usage = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(file_download.shutil, "disk_usage", lambda path: usage)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        require_whole(tmp_path, models)
    with pytest.warns(UserWarning, match="Not enough free disk space"):
        file_download._check_disk_space(1, tmp_path)


def test_what_answers_is_not_the_hub(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example a captive portal, which answers but is not the hub."""
    with serve(models) as hub:
        point_at(hub.address, monkeypatch)
        monkeypatch.setattr("tests.oracles.hub_server.Handler.answer", portal)
        with pytest.raises(WeightsError, match="what answered is not the hub; check the proxy"):
            resolve_checkpoint(NAME, cache_dir=tmp_path)


def portal(self: Any) -> None:
    self.send_response(200)
    self.send_header("Content-Length", "0")
    self.end_headers()


def test_what_the_hub_does_not_have(hub: Hub, tmp_path: Path) -> None:
    cases = {
        "lab/nothing": "no such public model on the hub",
        "lab/empty": r"lab/empty: no weights in it; one of model\.safetens",
        "lab/else": r"lab/else: no config\.json in it; is this an ESM checkpoint",
        "lab/a--b": "no such folder, and not a hub id",
    }
    for name, message in cases.items():
        with pytest.raises(WeightsError, match=message) as caught:
            resolve_checkpoint(name, cache_dir=tmp_path)
        assert "\n" not in str(caught.value)


def test_unreachable_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at("http://127.0.0.1:9", monkeypatch)
    message = r"esm2_tiny: no such folder, and the hub was not reached \(.*refused\); check network"
    with pytest.raises(WeightsError, match=message):
        resolve_checkpoint(NAME, cache_dir=tmp_path)


def test_a_folder_of_a_trainer(tmp_path: Path) -> None:
    """The folder of a whole run; each folder in it is a checkpoint."""
    for name in ("checkpoint-500", "checkpoint-1500", "checkpoint-best", "logs"):
        (tmp_path / name).mkdir()
    message = r"folders of a Trainer; give one of them, the last is .*checkpoint-1500$"
    with pytest.raises(WeightsError, match=message):
        resolve_checkpoint(str(tmp_path))
    for name in ("checkpoint-500", "checkpoint-1500"):
        (tmp_path / name).rmdir()
    with pytest.raises(WeightsError, match=r"no config\.json in it; is this an ESM checkpoint"):
        resolve_checkpoint(str(tmp_path))


@pytest.fixture
def adapter(models: Path) -> Iterator[str]:
    """An adapter on the hub, with a base model on the hub."""
    folder = models / "lab" / "adapter"
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": NAME}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    key = "base_model.model.esm.encoder.layer.0.attention.self.query.lora_{}.weight"
    width = json.loads((models / NAME / "config.json").read_text())["hidden_size"]
    factors = {"A": torch.ones(2, width), "B": torch.ones(width, 2)}
    state = {key.format(name): factor for name, factor in factors.items()}
    safetensors.torch.save_file(state, folder / "adapter_model.safetensors")
    yield "lab/adapter"
    shutil.rmtree(folder)


def test_an_adapter_on_the_hub(adapter: str, hub: Hub, models: Path, tmp_path: Path) -> None:
    found = resolve_checkpoint(adapter, cache_dir=tmp_path)
    base = resolve_checkpoint(NAME, cache_dir=tmp_path)
    assert found.weight_files == base.weight_files
    assert found.base_revision == base.revision
    assert found.weights_sha256() != base.weights_sha256()
    plain, merged = (
        EsmForMaskedLM.from_pretrained(name, cache_dir=tmp_path) for name in (NAME, adapter)
    )
    pair = [m.esm.encoder.layer[0].attention.self.query.weight for m in (plain, merged)]
    assert torch.allclose(pair[1], pair[0] + 2)
    hub.requests.clear()
    again = resolve_checkpoint(adapter, cache_dir=tmp_path, local_files_only=True)
    assert again == found
    where = {"cache_dir": tmp_path, **found.where}
    EsmForMaskedLM.from_pretrained(found.source, **where)
    EsmTokenizer.from_pretrained(found.source, **where)
    assert hub.requests == []


def test_a_local_adapter_of_a_model_on_the_hub(
    adapter: str, hub: Hub, models: Path, tmp_path: Path
) -> None:
    folder, cache = tmp_path / "mine", {"cache_dir": tmp_path / "cache"}
    shutil.copytree(models / adapter, folder)
    base = resolve_checkpoint(NAME, **cache)
    found = resolve_checkpoint(str(folder), **cache)
    assert (found.revision, found.base_revision) == (base.revision, base.revision)
    pinned = resolve_checkpoint(str(folder), **cache, revision=base.revision)
    assert pinned == found
    EsmForMaskedLM.from_pretrained(folder, **cache, revision=base.revision)
    with pytest.raises(WeightsError, match=f"{NAME}: no revision 'v9'"):
        resolve_checkpoint(str(folder), **cache, revision="v9")


@pytest.mark.parametrize(
    ("status", "code"), [(0, ""), (429, ""), (503, ""), (401, "GatedRepo"), (404, "RepoNotFound")]
)
def test_a_cached_branch_serves_where_the_hub_does_not(
    status: int, code: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = resolve_checkpoint(NAME, cache_dir=tmp_path)
    if status:
        hub.troubles = [Trouble("", "ANY", status=status, code=code)]
    else:
        point_at("http://127.0.0.1:9", monkeypatch)
    assert resolve_checkpoint(NAME, cache_dir=tmp_path) == first


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    cases = {
        str(file): "a file; give the folder",
        str(tmp_path / "none"): "no such folder",
        "./none": "no such folder",
        "a b": "no such folder",
        "../../none": "no such folder",
        "none.pt": "no such folder or file",
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
        with pytest.raises(WeightsError, match="not the name of a file in its folder"):
            resolve_checkpoint(str(tmp_path))
    for broken in ("{", "[]", '{"weight_map": 3}'):
        index.write_text(broken)
        with pytest.raises(WeightsError, match="not a readable index"):
            resolve_checkpoint(str(tmp_path))
    index.write_text(json.dumps({"weight_map": {}}))
    with pytest.raises(WeightsError, match="lists no weight files"):
        resolve_checkpoint(str(tmp_path))
    index.write_text(json.dumps({"weight_map": {"a": "absent.safetensors"}}))
    with pytest.raises(WeightsError, match=r"lists absent\.safetensors, which is not there"):
        resolve_checkpoint(str(tmp_path))


def test_digest_follows_the_file(models: Path, tmp_path: Path) -> None:
    """It is computed once for each file; a changed file has another digest."""
    file = tmp_path / WEIGHTS
    shutil.copy(models / NAME / WEIGHTS, file)
    first = file_digest(file)
    assert first == digest_of(models)
    shutil.copy(models / f"{NAME}@{OTHER_COMMIT}" / WEIGHTS, file)
    assert file_digest(file) == digest_of(models, f"{NAME}@{OTHER_COMMIT}") != first


def test_errors_are_of_this_package(hub: Hub, tmp_path: Path) -> None:
    """No error of the client gets out, whatever the hub answers."""
    for status in (400, 401, 403, 404, 408, 409, 416, 451, 502, 504):
        hub.troubles = [Trouble("vocab.txt", "ANY", status=status)]
        with pytest.raises(EsmPipelineError):
            resolve_checkpoint(NAME, cache_dir=tmp_path / str(status))
