"""Names of results: of one bundle and of several, and what is not among them."""

from __future__ import annotations

from pathlib import Path

import pytest

from esm_pipeline.settings.result_names import (
    BY_BUNDLE,
    IN_SAMPLE,
    LISTS,
    found_as,
    listed_folders,
    not_of_this_run,
    of_bundles,
    without_bundle,
)


@pytest.mark.parametrize("name", [*BY_BUNDLE, "records.tsv", "scores.tsv"])
@pytest.mark.parametrize("bundles", [1, 3])
def test_names_of_bundles_lead_back_to_the_result(name, bundles):
    others = [one for other in BY_BUNDLE if other != name for one in of_bundles(other, bundles)]
    names = of_bundles(name, bundles)
    assert len(names) == (bundles if name in BY_BUNDLE else 1)
    assert found_as(name, [*others, *reversed(names)]) == names
    assert {without_bundle(one)[0] for one in names} == {name}
    assert found_as(name, others) == []


def test_a_single_file_comes_before_those_of_bundles():
    names = ["embeddings/00000.h5", "embeddings.h5"]
    assert found_as("embeddings.h5", names) == ["embeddings.h5"]


@pytest.mark.parametrize("name", ["embeddings/1.h5", "a/embeddings/00001.h5", "embeddings/00001.h"])
def test_what_is_no_result_of_a_bundle(name):
    assert without_bundle(name) == (name, "")


def test_lists_name_their_folders():
    assert listed_folders("structures.sha256") == ["structures", "pae"]
    assert listed_folders("structures/00002/structures.sha256") == [
        *("structures/00002/structures", "structures/00002/pae")
    ]
    assert listed_folders("heatmaps/00002.sha256") == ["heatmaps/00002"]
    assert listed_folders("records.tsv") == listed_folders("a/heatmaps.sha256") == []


def test_folders_of_bundles_are_taken():
    assert {"embeddings", "saturation", "classes", "residue_classes", "bundles"} < {*IN_SAMPLE}
    assert len(IN_SAMPLE) == len({*IN_SAMPLE})
    assert {*LISTS} < {*IN_SAMPLE}


def test_what_is_not_of_a_run_of_bundles(tmp_path: Path) -> None:
    names = ["records.tsv", *of_bundles("embeddings.h5", 2), *of_bundles("structures", 2)]
    for name in (
        *("records.tsv", "embeddings/00000.h5", "embeddings/00001.h5", "structures/00000/x"),
        *("bundles/00000.fasta", "counts/records.json", "embed/00000.sha256", "embed/more"),
        *("embeddings/00002.h5", "embeddings/.hidden", "classes/00000.h5", "split/status.tsv"),
    ):
        path = tmp_path / "a" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = not_of_this_run(tmp_path, [], {"a": names}, ["embed", "fold"])
    assert [*found] == ["a/classes", "a/embeddings/00002.h5", "a/split"]
    scored = {"a": [*names, "scores.tsv", "classes"]}
    assert [*not_of_this_run(tmp_path, [], scored, ["embed"])] == ["a/embeddings/00002.h5"]
