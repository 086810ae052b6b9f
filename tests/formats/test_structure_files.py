"""File names, folders and archives: safe for any id, and the same bytes each time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm_pipeline.errors import InputError
from esm_pipeline.formats.records import format_row
from esm_pipeline.formats.structure_files import (
    STRUCTURE_COLUMNS,
    FileBundle,
    file_stem,
    folder_name,
    require_ours,
    structure_rows,
)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("P12345", "7_P12345"),
        ("sp|P12345|A_B.1", "7_sp_P12345_A_B.1"),
        ("../../etc/passwd", "7_.._.._etc_passwd"),
        ("a:b*c?\n", "7_a_b_c_"),
        ("é", "7__"),
        ("", "7"),
        ("...", "7"),
        ("con.", "7_con"),
        ("x" * 500, "7_" + "x" * 80),
    ],
)
def test_names(name, stem):
    assert file_stem(7, name) == stem


@given(st.text(), st.text(), st.integers(0, 10**9), st.integers(0, 10**9))
def test_names_are_safe_and_differ(one, other, index, second):
    stem = file_stem(index, one)
    assert stem.isascii()
    assert not set(stem) & set('/\\:*?"<>| \0\n')
    assert stem[0].isdigit()
    assert len(stem) < 100
    if index != second:
        assert stem.lower() != file_stem(second, other).lower()


def test_folders_are_of_bounded_size():
    names = [folder_name(index) for index in range(3_500)]
    assert [names.count(name) for name in dict.fromkeys(names)] == [1000, 1000, 1000, 500]
    assert sorted(names) == names
    assert folder_name(123_456_789) == "123456"


def test_what_is_added_can_be_read(tmp_path):
    with FileBundle(tmp_path, "00000", archive=False) as bundle:
        assert list(tmp_path.iterdir()) == []
        bundle.add("0_a.pdb", b"one")
        bundle.add("1_b.pdb", b"other")
    found = [(tmp_path / "00000" / name).read_bytes() for name in ("0_a.pdb", "1_b.pdb")]
    assert found == [b"one", b"other"]
    assert list(bundle.digests) == ["00000/0_a.pdb", "00000/1_b.pdb"]


def test_folders_of_others_are_left_alone(tmp_path):
    require_ours(tmp_path / "missing")
    require_ours(tmp_path)
    (tmp_path / "00012").mkdir()
    for name in ("00013.zip", "00013.tar", "index.tsv", "foldcomp", "foldcomp.index"):
        (tmp_path / name).touch()
    require_ours(tmp_path)
    (tmp_path / "thesis.doc").touch()
    with pytest.raises(InputError, match=r"holds 'thesis\.doc', which `fold` did not write"):
        require_ours(tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        require_ours(tmp_path / "thesis.doc")


def write_table(folder, rows):
    path = folder / "structures.tsv"
    lines = [dict.fromkeys(STRUCTURE_COLUMNS, "") | row for row in rows]
    texts = [
        format_row(STRUCTURE_COLUMNS),
        *(format_row([line[name] for name in STRUCTURE_COLUMNS]) for line in lines),
    ]
    path.write_text("".join(texts))
    return path


@pytest.fixture
def table(tmp_path):
    rows = [
        *({"index": f"{index}", "id": "a", "status": "ok", "file": "x"} for index in range(4)),
        {"index": "4", "id": "4", "status": "failed", "reason": "too much"},
    ]
    return write_table(tmp_path, rows)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda text: "x" + text, "unexpected columns"),
        (lambda text: "", "unexpected columns"),
        (lambda text: text + "5\n", "line 7 has too few or too many cells"),
        (lambda text: text.rstrip("\n") + "\tmore\n", "line 6 has too few or too many cells"),
        (lambda text: text + '5"\t"x', "unexpected end of data"),
    ],
)
def test_what_is_no_table_is_reported(table, change, why):
    table.write_text(change(table.read_text()))
    with pytest.raises(InputError) as error:
        list(structure_rows(table))
    assert str(error.value) == f"{table}: not a structures.tsv ({why}); check the path"


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        list(structure_rows(tmp_path / "structures.tsv"))
