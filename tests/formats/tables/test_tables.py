"""Tables with any columns: every cell is kept; damage is reported with its line."""

from __future__ import annotations

import csv
import gzip
import io
import math
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm_pipeline.errors import InputError
from esm_pipeline.formats.tables import base as tables
from esm_pipeline.formats.tables import text as text_tables
from esm_pipeline.formats.tables.base import Column, suffix_of
from esm_pipeline.formats.tables.open import create_table, open_table

ADDED = [Column("status", "text"), Column("place", "whole"), Column("score")]


def copy(source: Path, target: Path, wanted: list[str] | None = None) -> list[list[str]]:
    """Copy a table and append `ADDED`; returns the wanted cells."""
    table = open_table(source)
    cells, place = [], 0
    with create_table(target, suffix_of(target), table, ADDED) as writer:
        for block in table.blocks(wanted or []):
            count = sum(1 for _ in block.rows())
            places = range(place, place + count)
            values = [math.nan if at % 3 == 2 else -at / 8 for at in places]
            writer.write(block, [["a,b;\t"] * count, list(places), values])
            cells += block.cells
            place += count
    return cells


QUOTED = {",": '"a,b;\t"', ";": '"a,b;\t"', "\t": '"a,b;\t"'}
AWKWARD = '''\
"mutant",x,x, y ,
A1C,1.10,NA,"he said ""no""",
"A1G:C2D",1e-05,,"two
lines",'
,007, ,nan,"=1+1"
é,0x1F,TRUE,∞,\t
'''


def awkward(delimiter: str, end: str) -> str:
    return AWKWARD.replace("\t", " ").replace(",", delimiter).replace("\n", end)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_rows_of_a_text_keep_their_bytes(tmp_path, delimiter, end, last, packed):
    text = awkward(delimiter, end)
    content = (text if last else text.removesuffix(end)).encode()
    suffix = "tsv" if delimiter == "\t" else "csv"
    source = tmp_path / (f"in.{suffix}" + (".gz" if packed else ""))
    source.write_bytes(gzip.compress(content) if packed else content)
    target = tmp_path / f"out.{suffix}"
    cells = copy(source, target, ["mutant"])
    assert cells == [["A1C"], ["A1G:C2D"], [""], ["é"]]
    lines = iter(["status§place§score", "$§0§0.000000", "$§1§-0.125000", "$§2§", "$§3§-0.375000"])
    added = (next(lines).replace("§", delimiter).replace("$", QUOTED[delimiter]) for _ in range(5))
    rows = text.removesuffix(end).split(end)
    rows[2:4] = [end.join(rows[2:4])]  # the one with two lines
    expected = "".join(f"{row}{delimiter}{new}{end}" for row, new in zip(rows, added, strict=True))
    assert target.read_bytes().decode() == expected


def test_a_byte_order_mark_and_bytes_that_are_not_utf_8(tmp_path):
    source = tmp_path / "in.csv"
    source.write_bytes(b'\xef\xbb\xbf"mutant",n\xe9e\nA1C,\xff\xfe\n')
    assert copy(source, tmp_path / "out.csv", ["mutant"]) == [["A1C"]]
    lines = (tmp_path / "out.csv").read_bytes().splitlines()
    assert lines[0] == b'"mutant",n\xe9e,status,place,score'
    assert lines[1].startswith(b"A1C,\xff\xfe,")
    copy(source, tmp_path / "out.parquet")
    table = pd.read_parquet(tmp_path / "out.parquet")
    assert list(table) == ["mutant", "n\ufffde", "status", "place", "score"]
    assert table.iloc[0, 1] == "\ufffd\ufffd"


def test_an_old_mac_and_empty_lines(tmp_path):
    source = tmp_path / "in.tsv"
    source.write_bytes(b"a\tb\r1\t2\r\r3\t4\r")
    assert copy(source, tmp_path / "out.tsv", ["b"]) == [["2"], ["4"]]
    assert len((tmp_path / "out.tsv").read_text().splitlines()) == 3


CELLS = st.text("ab,;\t\"'\r\n =0.é", max_size=5)


@given(
    rows=st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=6),
    source=st.sampled_from([".csv", ".tsv", ".parquet"]),
    target=st.sampled_from([".csv", ".tsv", ".parquet"]),
)
def test_between_formats_every_cell_keeps_its_text(tmp_path_factory, rows, source, target):
    folder = tmp_path_factory.mktemp("t")
    names = ["mutant", "a b", "q,\t"]
    path, out = folder / f"in{source}", folder / f"out{target}"
    if source == ".parquet":
        columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
        pq.write_table(pa.table([pa.array(one, pa.string()) for one in columns], names), path)
    else:
        delimiter = "," if source == ".csv" else "\t"
        with path.open("w", newline="") as handle:
            csv.writer(handle, delimiter=delimiter).writerows([names, *rows])
    cells = copy(path, out, ["q,\t", "mutant"])
    assert [tuple(row) for row in cells] == [(row[2], row[0]) for row in rows]
    copied = [tuple(row) for block in open_table(out).blocks(names) for row in block.cells]
    assert copied == rows


def test_parquet_keeps_its_types(tmp_path):
    columns = {
        "mutant": ["A1C", None, "A1G"],
        "whole": pa.array([1, None, 3], pa.int8()),
        "real": [0.1, 1e-300, math.inf],
        "flag": [True, None, False],
        "many": [[1, 2], [], None],
        "kind": pa.array(["x", "y", "x"]).dictionary_encode(),
        "when": pa.array([0, 1, 2], pa.timestamp("ms")),
    }
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table(columns), source)
    wanted = ["mutant", "whole", "real", "flag", "many", "kind"]
    assert copy(source, tmp_path / "out.parquet", wanted) == [
        ["A1C", "1", "0.1", "true", "[1, 2]", "x"],
        ["", "", "1e-300", "", "[]", "y"],
        ["A1G", "3", "inf", "false", "", "x"],
    ]
    kept = pq.read_table(tmp_path / "out.parquet")
    assert kept.select(list(columns)).equals(pq.read_table(source))
    assert kept.schema.field("score").type == pa.float64()
    assert kept["score"].to_pylist() == [0.0, -0.125, None]
    copy(source, tmp_path / "out.tsv")
    header, first, *_ = (tmp_path / "out.tsv").read_text().splitlines()
    assert header.split("\t")[:3] == ["mutant", "whole", "real"]
    assert first.startswith("A1C\t1\t0.1\ttrue\t[1, 2]\tx\t1970-01-01 00:00:00.000\t")


def test_bytes_that_are_no_text_leave_other_rows_alone(tmp_path):
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"mutant": [b"A1C", b"\xff", None]}), source)
    assert copy(source, tmp_path / "out.parquet", ["mutant"]) == [["A1C"], ["\ufffd"], [""]]


def test_many_blocks(tmp_path):
    rows = 2 * tables.ROWS_AT_ONCE + 7
    source = tmp_path / "in.csv"
    source.write_text("a,b\n" + "".join(f"{row},x\n" for row in range(rows)))
    for suffix in ("csv", "parquet"):
        cells = copy(source, tmp_path / f"out.{suffix}", ["a"])
        assert [int(cell) for (cell,) in cells] == list(range(rows))
    assert len(pd.read_parquet(tmp_path / "out.parquet")) == rows


@pytest.mark.parametrize(
    ("name", "header", "delimiter"),
    [
        ("a.csv", "mutant,score", ","),
        ("a.csv", "mutant;score", ";"),
        ("a.csv", "mutant\tscore", "\t"),
        ("a.csv", "mutant", ","),
        ("a.tsv", "mutant\ta,b,c", "\t"),
        ("a.tsv", "mutant,score", ","),
        ("a.txt", "mutant\tscore", "\t"),
        ("a.tsv.gz", "mutant", "\t"),
        ("a", "mutant,score", ","),
        ("a.dat", "mutant\tscore", "\t"),
    ],
)
def test_delimiters(tmp_path, name, header, delimiter):
    path = tmp_path / name
    path.write_text(header + "\n")
    assert open_table(path).delimiter == delimiter


SPREADSHEET = "not a table, looks like a spreadsheet or zip file; save it as CSV"
BAD = {
    "empty.csv": (b"", ":1: no column names; begin with a line of them"),
    "blank.csv": (b"\n\n", ":1: no column names"),
    "book.csv": (b"PK\x03\x04\x14", f": {SPREADSHEET}"),
    "utf16.tsv": ("a\tb\n".encode("utf-16"), ": not a table, looks like UTF-16 text; save it as"),
    "more.csv": (b"a,b\n1,2\n1,2,3\n", ":3: 3 cells under 2 columns; quote a cell with ',' in it"),
    "fewer.tsv": (b"a\tb\n1\n", ":2: 1 cell under 2 columns; quote a cell with '\\t' in it"),
    "late.csv": (b'a,b\n1,"x\ny"\n1\n', ":4: 1 cell under 2 columns"),
    "open.csv": (b'a,b\n1,"2\n' + b"3,4\n" * 10_001, ":2: not a row (a quote that is not closed "),
    "last.csv": (b'a,b\n1,2\n3,"4\n5,6\n', ":3: not a row (a quote that is not closed)"),
    "first.csv": (b'a,"b\n1,2\n', ":1: not a row (a quote that is not closed)"),
    "cut.csv": (gzip.compress(b"a,b\n" + bytes(range(48, 58)) * 9)[:-12], "the gzip file is dam"),
    "cut.parquet": (b"PAR1 and nothing", ": not a whole Parquet file ("),
}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_table_is_reported_with_its_line(tmp_path, name):
    content, told = BAD[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as refused:
        for _ in open_table(path).blocks([]):
            pass
    assert str(refused.value).startswith(f"{path}:")
    assert told in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_a_missing_table(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv: no such file; check the path"):
        open_table(tmp_path / "none.csv")
    with pytest.raises(InputError, match="a folder, not a file"):
        open_table(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        open_table("a\0b")


def test_columns_that_are_not_there_or_twice(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("mutation,x,x," + ",".join(f"c{i}" for i in range(12)) + "\n")
    table = open_table(path)
    for wanted, told in (
        ("mutant", "no column 'mutant'; did you mean 'mutation'?"),
        ("zzz", "no column 'zzz'; it has 'mutation', 'x', 'x', 'c0'"),
        ("zzz", "'c8' and 3 more"),
        ("x", "has two columns 'x'; rename one"),
    ):
        with pytest.raises(InputError) as refused:
            table.places([wanted])
        assert told in str(refused.value)


def test_what_cannot_be_added_is_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("mutant,status\n")
    with pytest.raises(InputError, match="has a column 'status', which is to be added; rename it"):
        open_table(path).require_room_for(ADDED, ".csv")
    path.write_text("mutant,x,x\n")
    open_table(path).require_room_for(ADDED, ".csv")
    with pytest.raises(InputError, match="has two columns 'x', which Parquet does not allow"):
        open_table(path).require_room_for(ADDED, ".parquet")
    with pytest.raises(
        InputError, match=r"a\.xls: not a table format; let its name end in \.tsv, "
    ):
        suffix_of(tmp_path / "a.xls")


@given(st.lists(st.text(max_size=4), min_size=1, max_size=4), st.sampled_from(",;\t"))
def test_join_is_the_csv_module(cells, delimiter):
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerow(cells)
    ours = text_tables.join(cells, delimiter)
    assert next(csv.reader(io.StringIO(ours, newline=""), delimiter=delimiter), [""]) == cells
    if not any(character in "".join(cells) for character in " '#"):
        assert ours + "\r\n" == text.getvalue()


def test_numbers_have_six_decimals():
    values = [0.0, -0.0, -1e-9, 1 / 3, -12345.6789012, math.nan]
    assert text_tables.column_texts(values, "number") == [
        *("0.000000", "0.000000", "0.000000", "0.333333", "-12345.678901", "")
    ]
