"""The committed example of all results, made anew."""

from __future__ import annotations

import json
import re

import h5py
import numpy as np
import pytest

from tests.workflow.tools import GOLDEN, SAMPLE

MADE_ELSEWHERE = {"model", "software", "bytes"}  # where the checkpoint lies, versions


@pytest.mark.parametrize(
    "name", [f"{SAMPLE}/records.tsv", f"{SAMPLE}/inputs.sha256", "verdict.txt"]
)
def test_text_is_the_same(whole_run, name):
    assert (whole_run.results / name).read_text() == (GOLDEN / "results" / name).read_text()


def contents(path) -> tuple[dict, dict]:
    """Attributes and datasets of an HDF5 file, by their full names."""
    attributes, arrays = {}, {}

    def visit(name, item):
        attributes.update({f"{name}@{key}": value for key, value in item.attrs.items()})
        if isinstance(item, h5py.Dataset):
            arrays[name] = item[...]

    with h5py.File(path) as file:
        attributes.update(file.attrs)
        file.visititems(visit)
    return attributes, arrays


def differences(ours, golden) -> list[str]:
    """Names of what is missing, new, of another shape or type, or off by more than 1e-4."""
    found = sorted(set(ours) ^ set(golden))
    for name in set(ours) & set(golden):
        one, other = ours[name], golden[name]
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            found.append(name)
        elif one.dtype.kind == "f":
            limit = 1e-3 if one.dtype == np.float16 else 1e-4
            if np.abs(one.astype(float) - other.astype(float)).max() > limit:
                found.append(name)
        elif not np.array_equal(one, other):
            found.append(name)
    return found


def test_numbers_are_the_same(whole_run):
    ours, golden = (
        contents(results / SAMPLE / "embeddings.h5")
        for results in (whole_run.results, GOLDEN / "results")
    )
    assert len(golden[1]) > 10
    assert differences(ours[1], golden[1]) == []
    for attributes in (ours[0], golden[0]):
        assert attributes.keys() >= MADE_ELSEWHERE - {"bytes"}
    chosen = [{k: v for k, v in a.items() if k not in MADE_ELSEWHERE} for a in (ours[0], golden[0])]
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize("name", ["mean/2", "contacts", "row"])
def test_a_change_is_seen(name):
    _, golden = contents(GOLDEN / "results" / SAMPLE / "embeddings.h5")
    changed = {key: value.copy() for key, value in golden.items()}
    assert differences(changed, golden) == []
    changed[name].flat[0] += 1
    assert differences(changed, golden) == [name]
    del changed[name]
    assert differences(changed, golden) == [name]


def test_provenance_has_the_same_facts(whole_run):
    texts = [
        (results / "provenance.json").read_text()
        for results in (whole_run.results, GOLDEN / "results")
    ]
    ours, golden = map(json.loads, texts)
    assert list(ours) == list(golden)
    for facts in (ours, golden):
        datetime = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00"
        assert re.fullmatch(datetime, facts["written"])
        assert set(facts["software"]) >= {"esm_pipeline", "python", "torch", "platform"}
        facts["settings"].pop("model")
        facts["models"]["model"].pop("name")
        for result in facts["samples"][SAMPLE]["results"].values():
            for name in MADE_ELSEWHERE:
                del result[name]
    for part in ("format", "format_version", "settings", "models", "samples"):
        assert ours[part] == golden[part]
