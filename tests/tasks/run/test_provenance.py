"""Provenance: facts about the source, unusable settings, attributes."""

from __future__ import annotations

import json
import subprocess

import h5py
import numpy as np
import pytest

from esm_pipeline.cli import main
from esm_pipeline.errors import InputError
from esm_pipeline.formats.checksums import sha256
from esm_pipeline.tasks.run import provenance


def commit(folder, text):
    (folder / "file").write_text(text)
    provenance.git(folder, "add", "file")
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    provenance.git(folder, *author, "commit", "-q", "-m", text)


def test_source_tells_commit_and_changes(tmp_path):
    provenance.git(tmp_path, "init", "-q")
    assert provenance.source(tmp_path) is None, "no commit yet"
    commit(tmp_path, "one")
    clean = provenance.source(tmp_path)
    assert clean == {"commit": provenance.git(tmp_path, "rev-parse", "HEAD"), "changed_files": 0}
    (tmp_path / "file").write_text("two")
    assert provenance.source(tmp_path) == clean | {"changed_files": 1}


def test_a_repository_around_the_package_is_not_its_source(tmp_path):
    provenance.git(tmp_path, "init", "-q")
    commit(tmp_path, "somebody else's")
    inner = tmp_path / "site-packages"
    inner.mkdir()
    assert provenance.source(inner) is None


def test_without_git_there_is_no_commit(tmp_path, monkeypatch):
    def missing(*arguments, **options):
        raise FileNotFoundError("git")

    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(subprocess, "run", missing)
    assert provenance.source(tmp_path) is None


def test_attributes_are_plain(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs.update(model="demo", count=np.int64(3), software='{"torch": "2"}', list=[1, 2])
    found = provenance.attributes(tmp_path / "a.h5")
    assert found == {
        "model": "demo",
        "count": 3,
        "software": {"torch": "2"},
        "list": [1, 2],
    }
    assert json.loads(json.dumps(found)) == found


def test_bad_settings_are_one_line(tmp_path, capsys):
    out = str(tmp_path / "provenance.json")
    assert main(["provenance", "--out", out, "--settings", "{"]) == 2
    assert main(["provenance", "--out", out, "--settings", '{"fata": "x"}']) == 2
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert "--settings: not JSON" in first
    assert "unknown key 'fata'; did you mean 'fasta'?" in second
    assert list(tmp_path.iterdir()) == []


def test_an_input_that_went_away_is_one_line(tmp_path, capsys):
    settings = json.dumps({"fasta": str(tmp_path / "in.fasta"), "shards": 1})
    out = tmp_path / "results" / "provenance.json"
    assert main(["provenance", "--out", str(out), "--settings", settings]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path}/in.fasta: cannot be read any more (No such file or directory); put" in line
    assert list(tmp_path.iterdir()) == []


def test_an_input_that_changed_meanwhile_is_one_line(tmp_path, capsys):
    fasta, folder = tmp_path / "in.fasta", tmp_path / "in"
    fasta.write_text(">a\nMKV\n")
    folder.mkdir()
    listing = folder / provenance.INPUTS
    shard = ["shard", "--quiet", "--bundles", "1", "--out", str(folder), "--inputs", str(listing)]
    assert main([*shard, str(fasta)]) == 0
    found = provenance.inputs([str(fasta)], listing)
    assert found == [{"path": "in.fasta", "bytes": 7, "sha256": sha256(fasta)}]
    out, settings = tmp_path / "p.json", json.dumps({"fasta": str(fasta), "shards": 1})
    fasta.write_text(">a\nMKI\n")
    assert main(["provenance", "--out", str(out), "--settings", settings]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{fasta}: has changed since the workflow read it; remove {listing} and run" in line
    listing.unlink()
    assert main(["provenance", "--out", str(out), "--settings", settings]) == 2
    assert f"{listing}: no such file; run the workflow again to make it" in capsys.readouterr().err
    assert not out.exists()


def test_a_damaged_result_is_one_line(tmp_path):
    path = tmp_path / "a.h5"
    path.write_text("no HDF5")
    with pytest.raises(InputError, match=r"a\.h5: not a complete HDF5 result"):
        provenance.attributes(path)
    with h5py.File(path, "w") as file:
        file.attrs["software"] = "{"
    with pytest.raises(InputError, match=r"a\.h5: not a complete HDF5 result"):
        provenance.attributes(path)
