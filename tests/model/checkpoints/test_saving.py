"""Sharded checkpoints written and read, here and in transformers; all files or none."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from esm_pipeline import EsmConfig, EsmForMaskedLM, EsmModel
from esm_pipeline.errors import InputError, WeightsError
from esm_pipeline.model.checkpoints import saving
from esm_pipeline.model.checkpoints.saving import read_size, split_into_shards, weight_shard_names
from esm_pipeline.model.checkpoints.weights import reference_state
from tests.oracles.peers import ESM1B, ESM2, KINDS, SMALL, batch, enliven, max_abs

INDEX = "model.safetensors.index.json"


@pytest.fixture
def model() -> EsmForMaskedLM:
    return build(**ESM2)


def build(seed: int = 0, **settings: Any) -> EsmForMaskedLM:
    model = EsmForMaskedLM(EsmConfig(**SMALL, **settings))
    enliven(model, seed)
    return model


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", KINDS)
def test_shards_load_here_and_in_transformers(kind: str, tmp_path: Path) -> None:
    ours = build(**KINDS[kind])
    ours.save_pretrained(tmp_path, max_shard_size="100KB")
    names = sorted(path.name for path in tmp_path.glob("model-*"))
    assert len(names) > 3
    assert names == weight_shard_names(len(names))
    assert not (tmp_path / "model.safetensors").exists()
    index = json.loads((tmp_path / INDEX).read_text())
    state = reference_state(ours)
    assert index["weight_map"].keys() == state.keys()
    assert set(index["weight_map"].values()) == set(names)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in state.values())
    assert same(ours, EsmForMaskedLM.from_pretrained(tmp_path))
    theirs, info = transformers.EsmForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokens, mask = batch([5, 40], masked=0.1)
    found, expected = ours(tokens).logits, theirs(tokens, attention_mask=mask).logits
    assert max_abs(found, expected, mask) <= 1e-5


def test_shards_of_transformers_load_here(tmp_path: Path) -> None:
    config = transformers.EsmConfig(**SMALL, **ESM1B)
    theirs = enliven(transformers.EsmForMaskedLM(config))
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*"))) > 3
    ours = EsmForMaskedLM.from_pretrained(tmp_path)
    tokens, mask = batch([5, 40])
    expected = theirs(tokens, attention_mask=mask).logits
    assert max_abs(ours(tokens).logits, expected, mask) <= 1e-5


def test_order_and_sizes_of_shards() -> None:
    sizes = {"a": 6, "b": 6, "c": 2, "d": 6, "e": 2, "f": 2, "g": 30}
    state = {key: torch.zeros(size, dtype=torch.uint8) for key, size in sizes.items()}
    parts = [list(part) for part in split_into_shards(state, 10)]
    assert parts == [["a"], ["b", "c"], ["d", "e", "f"], ["g"]]  # the example of the reference


@pytest.mark.parametrize(
    ("size", "number"),
    [("5GB", 5 * 10**9), ("7MiB", 7 * 2**20), ("3kb".upper(), 3000), ("1gIB", 2**30), (12, 12)],
)
def test_sizes(size: int | str, number: int) -> None:
    assert read_size(size) == number


@pytest.mark.parametrize("size", ["5", "5Gb", "GB", "-1MB", 0, -3, 1.5, None, True])
def test_what_is_no_size(size: Any) -> None:
    with pytest.raises(
        InputError, match=r"max_shard_size: .* is not a size; give bytes, or text such as '500MB'"
    ):
        read_size(size)


@pytest.mark.parametrize(
    ("before", "after"), [("5GB", "100KB"), ("100KB", "5GB"), ("60KB", "100KB"), ("100KB", "100KB")]
)
def test_nothing_of_an_earlier_save_is_left(before: str, after: str, tmp_path: Path) -> None:
    notes = tmp_path / "model-card.safetensors.txt"
    notes.touch()
    build(1, **ESM2).save_pretrained(tmp_path, max_shard_size=before)
    model = build(2, **ESM2)
    model.save_pretrained(tmp_path, max_shard_size=after)
    fresh = tmp_path / "fresh"
    model.save_pretrained(fresh, max_shard_size=after)
    found = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert found == {path.name for path in fresh.iterdir()} | {notes.name}
    assert same(model, EsmForMaskedLM.from_pretrained(tmp_path))


@pytest.mark.parametrize("size", ["5GB", "100KB"])
@pytest.mark.parametrize("failing", [0, 2])
def test_a_full_disk_leaves_the_folder_as_it_was(
    size: str, failing: int, model: EsmForMaskedLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(1, **ESM2).save_pretrained(tmp_path, max_shard_size="100KB")
    before = listing(tmp_path)
    save, calls = saving.save_file, []

    def full(*arguments: Any, **options: Any) -> None:
        calls.append(arguments)
        if len(calls) > failing or size == "5GB":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(*arguments, **options)

    monkeypatch.setattr(saving, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        model.save_pretrained(tmp_path, max_shard_size=size)
    assert listing(tmp_path) == before


def test_while_shards_of_the_same_names_are_replaced_nothing_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save that dies between two shards leaves no mixture of old and new that would load."""
    build(1, **ESM2).save_pretrained(tmp_path, max_shard_size="100KB")
    replace, moved = os.replace, []

    def dies(source: Any, target: Any) -> None:
        moved.append(target)
        if len(moved) == 3:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        build(2, **ESM2).save_pretrained(tmp_path, max_shard_size="100KB")
    monkeypatch.undo()
    with pytest.raises(WeightsError, match="no weights in it"):
        EsmForMaskedLM.from_pretrained(tmp_path)
    build(2, **ESM2).save_pretrained(tmp_path, max_shard_size="100KB")
    assert same(build(2, **ESM2), EsmForMaskedLM.from_pretrained(tmp_path))


def test_saving_over_what_is_loaded(model: EsmForMaskedLM, tmp_path: Path) -> None:
    """Mapped weights stay those of the old file, whatever has replaced it."""
    model.save_pretrained(tmp_path)
    loaded = EsmModel.from_pretrained(tmp_path, add_pooling_layer=False)
    build(3, **ESM2).save_pretrained(tmp_path)
    assert same(loaded, model.esm)
    loaded.save_pretrained(tmp_path)
    assert same(EsmModel.from_pretrained(tmp_path, add_pooling_layer=False), model.esm)


def test_pickles_are_not_written(model: EsmForMaskedLM, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pickles are not written"):
        model.save_pretrained(tmp_path, safe_serialization=False)
    assert not any(tmp_path.iterdir())
