"""What others get to see has no absolute path, no user and no host in it.

The run is in a folder with a telltale name, with all inputs given by absolute paths.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import socket
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from esm_pipeline import open_results
from tests.workflow.tools import GOLDEN, ROOT, SAMPLE, Run, config, quoted, snakemake

FOLD = "model: demo, num_recycles: 0, formats: [pdb, cif], pae: [json, npz], archive: true"
USER, HOST = "telltale_user", socket.gethostname()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three tasks, in `telltale_user/run`; the inputs and the model are next to it."""
    home = tmp_path_factory.mktemp("home") / USER
    folder, inputs = home / "run", home / "inputs"
    folder.mkdir(parents=True)
    shutil.copytree(GOLDEN / "model", inputs / "tiny model")
    for name in ("my proteins.fasta", "my variants.csv"):
        shutil.copy(GOLDEN / name, inputs)
    fasta, variants = (quoted(inputs / name) for name in ("my proteins.fasta", "my variants.csv"))
    return snakemake(
        folder,
        *config(
            inputs / "tiny model",
            "tasks=[embed, score, fold]",
            f"fasta={fasta}",
            f"variants={variants}",
            "score={saturation: true, plots: true}",
            f"fold={{{FOLD}}}",
            "shards=1",
        ),
        USER=USER,
        LOGNAME=USER,
        HOME=str(home),
    )


def contents(path: Path) -> Iterator[bytes]:
    """The bytes of a file, and of what is packed in it."""
    data = path.read_bytes()
    yield data
    if path.suffix == ".tar":
        with tarfile.open(path) as packed:
            for member in packed:
                if file := packed.extractfile(member):
                    yield gzip.decompress(file.read()) if ".gz" in member.name else file.read()


def traces(folder: Path, *words: str) -> list[str]:
    """Files with one of the words in them or in their names."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [
        name
        for path in files
        if (name := str(path.relative_to(folder)))
        and any(
            word in name or any(os.fsencode(word) in data for data in contents(path))
            for word in words
        )
    ]


def test_no_file_names_user_folder_or_host(run):
    assert run.code == 0, run.said
    names = {path.name for path in run.results.rglob("*")}
    wanted = {"provenance.json", "report.html", "verdict.txt", "model.json", "embed", "logs"}
    assert wanted | {"scores.json", "structures.h5", "heatmaps", "benchmarks"} <= names
    words = [USER, str(run.folder), str(ROOT), str(Path.home()) + "/"]
    words += [HOST] if len(HOST) > 5 else []  # a short one is in any file by chance
    assert traces(run.results, *words) == []


def test_a_trace_is_seen_wherever_it_is(tmp_path):
    (tmp_path / "a.txt").write_text(f"by {USER} on a day")
    (tmp_path / "b").mkdir()
    with tarfile.open(tmp_path / "b" / "c.tar", "w") as packed:
        data = gzip.compress(f"/home/{USER}/x ".encode() * 9)
        member = tarfile.TarInfo("inside.pdb.gz")
        member.size = len(data)
        packed.addfile(member, io.BytesIO(data))
    (tmp_path / f"{USER}.log").touch()
    (tmp_path / "fine").write_text("nothing")
    assert traces(tmp_path, USER) == ["a.txt", "b/c.tar", f"{USER}.log"]


def test_the_model_is_named_and_found_by_its_relative_path(run):
    facts = json.loads((run.results / "model.json").read_text())
    assert (facts["name"], facts["path"]) == ("tiny model", "../../inputs/tiny model")
    provenance = json.loads((run.results / "provenance.json").read_text())
    model = provenance["models"]["model"]
    assert model["name"] == "tiny model"
    assert "path" not in model
    assert provenance["settings"]["model"] == "tiny model"
    with open_results(run.results / SAMPLE / "embeddings.h5") as results:
        assert results.attributes["model"] == "tiny model"


def test_inputs_can_still_be_checked(run):
    listed = (run.results / SAMPLE / "inputs.sha256").read_text()
    (name,) = [line.split("  ", 1)[1] for line in listed.splitlines()]
    assert name == "../inputs/my proteins.fasta"
    assert (run.folder / name).is_file()
