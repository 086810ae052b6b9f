"""records.tsv: what is written is what is read, by this reader and by others."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm_pipeline.errors import InputError
from esm_pipeline.formats.records import (
    RECORD_COLUMNS,
    Outcome,
    Record,
    format_row,
    header_line,
    parse_lines,
    read_records,
    read_tasks,
    write_records,
)

SHA = "a" * 64
RECORDS = [
    Record(0, "a", "a plain one", 3, SHA, "ok"),
    Record(1, '"q"', '"q"\ttab "x" é ', 4, SHA, "ok", notes="'*' at the end removed"),
    Record(2, "c", "c", None, "", "skipped", "no residues"),
    Record(3, "a", "a again", 3, SHA, "ok", duplicate_of=0),
    Record(4, "long", "long " + "x" * 200_000, 3, SHA, "ok", duplicate_of=0),
]
FIELDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"))


def test_columns_and_text(tmp_path: Path) -> None:
    path = tmp_path / "records.tsv"
    write_records(path, RECORDS[:3])
    assert path.read_text(encoding="utf-8") == (
        "index\tid\theader\tlength\tsha256\tstatus\treason\tnotes\tduplicate_of\n"
        f"0\ta\ta plain one\t3\t{SHA}\tok\t\t\t\n"
        f'1\t"""q"""\t"""q""\ttab ""x"" é "\t4\t{SHA}\tok\t\t\'*\' at the end removed\t\n'
        "2\tc\tc\t\t\tskipped\tno residues\t\t\n"
    )


def test_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "records.tsv"
    write_records(path, RECORDS)
    assert list(read_records(path)) == RECORDS
    assert read_tasks(path) == ()
    lines = path.read_text(encoding="utf-8").split("\n")
    assert list(parse_lines(lines[1:-1])) == RECORDS


def test_columns_of_tasks(tmp_path: Path) -> None:
    path = tmp_path / "records.tsv"
    told = [
        RECORDS[0].with_outcome("embed", "ok").with_outcome("fold", "failed", "out of\n memory "),
        RECORDS[1].with_outcome("fold", "ok"),
        RECORDS[2],
    ]
    write_records(path, told, ["embed", "fold"])
    assert read_tasks(path) == ("embed", "fold")
    assert path.read_text().splitlines()[0].split("\t")[len(RECORD_COLUMNS) :] == [
        "embed_status",
        "embed_reason",
        "fold_status",
        "fold_reason",
    ]
    read = list(read_records(path))
    assert read[0] == told[0]
    assert read[0].outcomes["fold"] == Outcome("failed", "out of memory")
    assert [dict(record.outcomes) for record in read[1:]] == [
        {"embed": Outcome(""), "fold": Outcome("ok")},
        {"embed": Outcome(""), "fold": Outcome("")},
    ]
    assert RECORDS[0].outcomes == {}


def test_pandas_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "records.tsv"
    write_records(path, [record.with_outcome("embed", "ok") for record in RECORDS], ["embed"])
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    assert list(table["header"]) == [record.header for record in RECORDS]
    assert list(table["id"]) == [record.id for record in RECORDS]
    assert list(table["duplicate_of"]) == ["", "", "", "0", "0"]
    assert set(table["embed_status"]) == {"ok"}


@given(st.lists(FIELDS | st.sampled_from(['"', "a\tb", "a\nb", " "]), min_size=2))
def test_a_row_is_that_of_the_csv_module(fields: list[str]) -> None:
    expected = io.StringIO()
    csv.writer(expected, delimiter="\t", lineterminator="\n").writerow(fields)
    assert format_row(fields) == expected.getvalue()


def test_a_carriage_return_is_quoted() -> None:  # as by the csv module from Python 3.13 on
    assert format_row(["a\rb", "c"]) == '"a\rb"\tc\n'


@given(st.lists(st.tuples(FIELDS, FIELDS, FIELDS), max_size=5))
def test_any_text_comes_back(texts: list[tuple[str, str, str]]) -> None:
    records = [Record(i, a, b, None, "", "ok", notes=c) for i, (a, b, c) in enumerate(texts)]
    lines = [
        format_row((str(r.index), r.id, r.header, "", "", r.status, "", r.notes, ""))
        for r in records
    ]
    assert list(parse_lines(lines)) == records


def test_a_text_that_is_not_unicode_does_not_stop_the_writing(tmp_path: Path) -> None:
    path = tmp_path / "records.tsv"
    write_records(path, [RECORDS[0].with_outcome("embed", "failed", "\udcff")], ["embed"])
    assert next(read_records(path)).outcomes["embed"].reason == "\\udcff"


def test_streams(tmp_path: Path) -> None:
    path = tmp_path / "records.tsv"
    write_records(path, (RECORDS[0]._replace(index=index) for index in range(1000)))
    records = read_records(path)
    assert isinstance(records, Iterator)
    assert next(records).index == 0
    assert sum(1 for _ in records) == 999


def test_a_failed_writing_leaves_the_old_table(tmp_path: Path) -> None:
    path = tmp_path / "records.tsv"
    write_records(path, RECORDS[:1])

    def interrupted() -> Iterator[Record]:
        yield RECORDS[1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_records(path, interrupted())
    assert list(read_records(path)) == RECORDS[:1]
    assert list(tmp_path.iterdir()) == [path]


GOOD = header_line() + format_row(["0", "a", "a", "3", SHA, "ok", "", "", ""])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "1: not a row of records.tsv (unexpected columns); "),
        ("index\tid\n", "1: not a row of records.tsv (unexpected columns); "),
        (
            header_line().strip() + "\tembed_status\n",
            "1: not a row of records.tsv (unexpected columns); ",
        ),
        (GOOD + "1\ta\n", "3: not a row of records.tsv (2 columns, not 9); "),
        (
            GOOD + GOOD.splitlines()[1].replace("0", "x", 1),
            "3: not a row of records.tsv (invalid literal for int() with base 10: 'x'); ",
        ),
        (GOOD + '1\t"a', "3: not a row of records.tsv (unexpected end of data); "),
        (
            GOOD.encode() + b"1\t\xff",
            "1: not a row of records.tsv ('utf-8' codec can't decode byte 0xff in position "
            f"{len(GOOD) + 2}: invalid start byte); ",
        ),
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "records.tsv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as error:
        list(read_records(path))
    expected = f"{path}:{message}make it again with the command that wrote it"
    assert str(error.value) == expected
    if message.startswith("1:"):
        with pytest.raises(InputError) as error:
            read_tasks(path)
        assert str(error.value) == expected


def test_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.tsv: no such file; check the path$"):
        next(read_records(tmp_path / "no.tsv"))
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\); check the path$"):
        read_tasks(tmp_path)
