"""Archives of many files: what tar reads, and one member by its place in the index."""

from __future__ import annotations

import csv
import gzip
import subprocess
import tarfile
import time
from hashlib import sha256
from pathlib import Path

import pytest

from esm_pipeline.errors import InputError
from esm_pipeline.formats.structure_archives import (
    ARCHIVE_COLUMNS,
    ArchiveWriter,
    read_archived,
)
from esm_pipeline.formats.structure_files import FileBundle

FILES = {
    index: (f"{index // 1_000:05d}", f"{index}_a.{kind}", f"{index} {kind}".encode() * 400)
    for index, kind in ((0, "pdb"), (7, "cif"), (999, "npz"), (1_000, "pdb"), (2_500, "pdb"))
}


def write(folder: Path, records: int = 2_000) -> ArchiveWriter:
    """Archives of `FILES`, each folder by a bundle of its own, as by several processes."""
    folder.mkdir()
    writer, parts = ArchiveWriter(folder, records), []
    for name in dict.fromkeys(one for one, _, _ in FILES.values()):
        with FileBundle(folder, name, archive=True) as bundle:
            for index, (own, file, data) in FILES.items():
                if own == name:
                    bundle.add(file, data, index, f'id "{index}"')
        parts.append(bundle)
    for bundle in parts:
        writer.append(bundle.part, bundle.members)
    writer.close()
    return writer


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "index.tsv", newline="") as file:
        return [*csv.DictReader(file, delimiter="\t")]


def test_tar_reads_them(tmp_path):
    writer = write(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("00000.tar", "00001.tar", "index.tsv")
    ]
    for name, count in (("00000.tar", 4), ("00001.tar", 1)):
        subprocess.run(["tar", "-xf", tmp_path / "out" / name, "-C", tmp_path], check=True)
        with tarfile.open(tmp_path / "out" / name) as archive:
            assert len(archive.getnames()) == count
            assert {(one.mode, one.mtime) for one in archive} == {(0o644, 315_532_800)}
    for name, file, data in FILES.values():
        if file.endswith(".npz"):
            assert (tmp_path / name / file).read_bytes() == data
        else:
            assert gzip.decompress((tmp_path / name / f"{file}.gz").read_bytes()) == data
    for name, digest in writer.digests.items():
        assert sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
    assert list(writer.digests) == ["00000.tar", "00001.tar", "index.tsv"]


def test_the_index_has_the_place_of_every_member(tmp_path):
    write(tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert tuple(rows[0]) == ARCHIVE_COLUMNS
    assert [int(row["index"]) for row in rows] == list(FILES)
    assert [row["id"] for row in rows] == [f'id "{index}"' for index in FILES]
    for row, (_, file, data) in zip(rows, FILES.values(), strict=True):
        archive = (tmp_path / "out" / row["archive"]).read_bytes()
        found = archive[int(row["offset"]) :][: int(row["size"])]
        assert (found if file.endswith(".npz") else gzip.decompress(found)) == data
        assert read_archived(tmp_path / "out" / row["archive"], row["file"]) == data
    with pytest.raises(KeyError):
        read_archived(tmp_path / "out" / "00001.tar", rows[0]["file"])


def test_the_command_of_the_documentation(tmp_path):
    write(tmp_path / "out")
    row = rows_of(tmp_path / "out")[1]
    command = f"tail -c +$(({row['offset']} + 1)) {row['archive']} | head -c {row['size']} | gunzip"
    found = subprocess.run(["sh", "-c", command], cwd=tmp_path / "out", capture_output=True).stdout
    assert found == FILES[7][2]


def test_the_same_bytes_at_any_time(tmp_path, monkeypatch):
    one = write(tmp_path / "one").digests
    monkeypatch.setattr(time, "time", lambda: 1e9)
    assert write(tmp_path / "other").digests == one


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda folder: (folder / "00000.tar").write_bytes(b"x" * 99), "cut short"),
        (lambda folder: (folder / "00000.tar").write_bytes(b"x" * 99_999), "invalid header"),
        (lambda folder: (folder / "00000.tar").unlink(), "No such file"),
        (lambda folder: (folder / "index.tsv").unlink(), "No such file"),
    ],
)
def test_damage_is_one_line(tmp_path, damage, why):
    write(tmp_path / "out")
    file = rows_of(tmp_path / "out")[0]["file"]
    damage(tmp_path / "out")
    with pytest.raises(InputError, match=why) as error:
        read_archived(tmp_path / "out" / "00000.tar", file)
    assert "\n" not in str(error.value)
