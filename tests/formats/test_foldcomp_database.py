"""A Foldcomp database, as the package reads it, and read again here."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from esm_pipeline.errors import InputError
from esm_pipeline.formats.foldcomp_database import (
    DatabaseEntry,
    EntriesFile,
    FoldcompDatabase,
    FoldcompWriter,
    lookup_name,
)
from esm_pipeline.structure.foldcomp_codec import foldcomp_entry
from esm_pipeline.structure.pdb import pdb_text
from tests.ideal_chains import ideal_chain

foldcomp = pytest.importorskip("foldcomp", reason="no foldcomp here")

SIZES = {3: 20, 4: 30, 70: 25}
"""Key and residues of each entry."""


def data_of(key: int) -> bytes:
    structure = ideal_chain("helix", SIZES[key], seed=key)
    return foldcomp_entry(structure, f"P{key}", pdb_text(structure, "", {}))[0]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A database of two parts; a record with key 5 has the entry of 4."""
    path = tmp_path_factory.mktemp("database") / "foldcomp"
    writer, entries = FoldcompWriter(path), {}
    for name, keys in (("00000", (3, 4)), ("00001", (70,))):
        with EntriesFile(path.parent, name) as part:
            assert not part.written
            assert part.add(b"") == 0
            sizes = [part.add(data_of(key)) for key in keys]
        offset = writer.append(part.path)
        for key, size in zip(keys, sizes, strict=True):
            entries[key] = DatabaseEntry(key, f"P{key}", offset, size)
            offset += size
    entries[5] = entries[4]._replace(key=5, name="twin")
    return path, writer.finish(entries[key] for key in sorted(entries))


def test_foldcomp_reads_it(written):
    path, _ = written
    with foldcomp.open(path) as database:
        assert [name for name, _ in database] == ["P3", "P4", "P4", "P70"]
        counts = [text.count(" CA ") for _, text in database]
        assert counts == [20, 30, 30, 25]
    with foldcomp.open(path, decompress=False) as database:
        assert list(database) == [data_of(key) for key in (3, 4, 4, 70)]
    with foldcomp.open(path, ids=["P70", "twin"]) as database:
        assert [name for name, _ in database] == ["P70", "P4"]


def test_the_files_are_those_of_the_tool(written):
    path, digests = written
    sizes = [len(data_of(key)) + 1 for key in (3, 4, 70)]
    offsets = [0, sizes[0], sum(sizes[:2])]
    index = path.with_name("foldcomp.index").read_text()
    places = zip((3, 4, 5, 70), (0, 1, 1, 2), strict=True)
    assert index == "".join(f"{key}\t{offsets[at]}\t{sizes[at]}\n" for key, at in places)
    lookup = path.with_name("foldcomp.lookup").read_text()
    assert lookup == "3\tP3\t0\n4\tP4\t0\n5\ttwin\t0\n70\tP70\t0\n"
    assert path.with_name("foldcomp.dbtype").read_bytes() == bytes([12, 0, 0, 0])
    names = sorted(one.name for one in path.parent.iterdir())
    assert names == [
        "foldcomp",
        "foldcomp.checksums",
        "foldcomp.dbtype",
        "foldcomp.index",
        "foldcomp.lookup",
    ]
    assert sorted(digests) == names
    for name, digest in digests.items():
        assert sha256(path.with_name(name).read_bytes()).hexdigest() == digest


def test_one_entry_is_read(written):
    database = FoldcompDatabase(written[0])
    assert len(database) == 4
    assert [*database.names()] == [(3, "P3"), (4, "P4"), (5, "twin"), (70, "P70")]
    for key, own in ((3, 3), (5, 4), (70, 70)):
        assert database.entry(key) == data_of(own)
    for key in (0, 6, 71):
        with pytest.raises(KeyError):
            database.entry(key)


def test_names_have_no_space():
    assert [lookup_name(name) for name in ("sp|P1|A", "a b\tc", "\udc80")] == [
        "sp|P1|A",
        "a_b_c",
        "?",
    ]


@pytest.mark.parametrize(
    ("name", "contents", "why"),
    [
        ("foldcomp", None, "foldcomp: no such file; a Foldcomp database has it"),
        ("foldcomp.index", None, "foldcomp.index: no such file; a Foldcomp database has it"),
        ("foldcomp.index", b"3\tx\t7\n", "not the index of a Foldcomp database"),
        ("foldcomp.index", b"3\t7\n", "not the index of a Foldcomp database"),
        ("foldcomp", b"short", "foldcomp: cut short, or not of its index"),
        ("foldcomp.lookup", None, "not the names of a Foldcomp database"),
        ("foldcomp.lookup", b"x\n", "not the names of a Foldcomp database"),
    ],
)
def test_damage_is_one_line(written, tmp_path, name, contents, why):
    for one in written[0].parent.iterdir():
        (tmp_path / one.name).write_bytes(one.read_bytes())
    (tmp_path / name).unlink()
    if contents is not None:
        (tmp_path / name).write_bytes(contents)

    def read() -> None:
        database = FoldcompDatabase(tmp_path / "foldcomp")
        database.entry(3)
        list(database.names())

    with pytest.raises(InputError) as error:
        read()
    assert why in str(error.value)
    assert "\n" not in str(error.value)
