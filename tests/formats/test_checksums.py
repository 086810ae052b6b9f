"""Digests: what sha256sum accepts; damage is named."""

import shutil
import subprocess

import pytest

from esm_pipeline.errors import InputError
from esm_pipeline.formats.checksums import check_listed, read_list, write_digests


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
    for file in files:
        check_listed(file, tmp_path / "00000.sha256")


def test_damage_is_named(files, tmp_path):
    files[0].write_text("other")
    with pytest.raises(InputError, match=r"00000\.h5: damaged.*remove it and run"):
        check_listed(files[0], tmp_path / "00000.sha256")


def test_unusable_lists(files, tmp_path):
    digests = tmp_path / "00000.sha256"
    digests.write_text(digests.read_text().splitlines()[0] + "\n")
    with pytest.raises(InputError, match=r"does not list 00000\.records\.tsv"):
        check_listed(files[1], digests)
    for content in (b"nonsense\n", b"\xff\xfe"):
        digests.write_bytes(content)
        with pytest.raises(InputError, match=r"00000\.sha256:1: not a digest"):
            check_listed(files[0], digests)
    digests.unlink()
    with pytest.raises(InputError, match=r"00000\.sha256: no such file; run the workflow"):
        list(read_list(digests))
