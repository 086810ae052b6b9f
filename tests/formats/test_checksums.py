"""Digests: what sha256sum accepts; damage is named."""

import shutil
import subprocess

import pytest

from esm_pipeline.errors import InputError
from esm_pipeline.formats.checksums import check_digests, write_digests


@pytest.fixture
def files(tmp_path):
    files = [tmp_path / "00000.h5", tmp_path / "00000.records.tsv"]
    for file in files:
        file.write_text(f"contents of {file.name}\n")
    write_digests(tmp_path / "00000.sha256", {file.name: file for file in files})
    return files


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum here")
def test_sha256sum_accepts_them(files, tmp_path):
    done = subprocess.run(["sha256sum", "--check", "00000.sha256"], cwd=tmp_path, check=False)
    assert done.returncode == 0


def test_whole_files_pass(files, tmp_path):
    check_digests(tmp_path / "00000.sha256", files)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.write_text("other"), r"00000\.h5: damaged.*remove it and run"),
        (lambda file: file.unlink(), r"00000\.h5: no such file, but 00000\.sha256 lists it"),
    ],
)
def test_damage_is_named(files, tmp_path, damage, message):
    damage(files[0])
    with pytest.raises(InputError, match=message):
        check_digests(tmp_path / "00000.sha256", files)


def test_unusable_lists(files, tmp_path):
    digests = tmp_path / "00000.sha256"
    lines = digests.read_text().splitlines()
    digests.write_text(lines[0] + "\n")
    with pytest.raises(InputError, match=r"does not list 00000\.records\.tsv"):
        check_digests(digests, files)
    digests.write_text("nonsense\n")
    with pytest.raises(InputError, match=r"00000\.sha256:1: not a digest"):
        check_digests(digests, files)
    digests.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"00000\.sha256:1: not a digest"):
        check_digests(digests, files)
    digests.unlink()
    with pytest.raises(InputError, match=r"00000\.sha256: no such file; run the workflow"):
        check_digests(digests, files)


@pytest.mark.parametrize("name", ["/etc/passwd", "../../etc/passwd", "../{}/00000.h5", "x", "\x1b"])
def test_files_elsewhere_are_not_opened(files, tmp_path, name, monkeypatch):
    monkeypatch.setattr("esm_pipeline.formats.checksums.sha256", lambda path: "0" * 64)
    digests = tmp_path / "00000.sha256"
    digests.write_text(f"{'0' * 64}  {name.format(tmp_path.name)}\n")
    with pytest.raises(
        InputError, match=r"00000\.sha256:1: '.*' is not a file of this shard; remove"
    ):
        check_digests(digests, files)
