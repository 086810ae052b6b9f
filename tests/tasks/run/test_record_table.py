"""The tables of bundles as one: what one table of all records is, whatever the bundles."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm_pipeline.cli import main
from esm_pipeline.formats.checksums import write_digests
from esm_pipeline.formats.records import FAILED, Record, write_records
from esm_pipeline.tasks.common.tallies import read_counts
from esm_pipeline.tasks.run import record_table
from esm_pipeline.tasks.run.tallies import count_records
from tests.tasks.run.bundled import (
    dealt,
    made_up,
    write_bundles,
    write_statuses,
    write_whole_status,
)

TASKS = ("score", "embed", "fold")
WHOLE = "score"
"""The task with one status table of all records."""


def command(folder: Path, count: int, tasks: tuple[str, ...] = TASKS) -> list[str]:
    statuses = {task: folder / task for task in tasks}
    if WHOLE in tasks:
        statuses[WHOLE] /= "status.tsv"
    return [
        *("aggregate", "records", f"--bundles={folder / 'bundles'}", f"--count={count}"),
        *(f"--status={task}={path}" for task, path in statuses.items()),
        *(f"--out={folder / 'records.tsv'}", f"--counts={folder / 'counts' / 'records.json'}"),
    ]


def write_sample(folder: Path, records: list[Record], count: int, tasks=TASKS) -> Path:
    write_bundles(folder, records, count)
    for task in tasks:
        if task == WHOLE:
            write_whole_status(folder / task / "status.tsv", records, task)
        else:
            write_statuses(folder, records, task, count)
    return folder


@pytest.fixture
def sample(tmp_path):
    """200 records in three bundles, of three tasks."""
    return write_sample(tmp_path / "a", made_up(200, TASKS), 3)


def assert_as_one_table(folder: Path, records: list[Record], tasks=TASKS) -> None:
    """The oracle: all records written at once, and counted by reading them."""
    write_records(folder / "expected.tsv", records, tasks)
    assert (folder / "records.tsv").read_bytes() == (folder / "expected.tsv").read_bytes()
    found = read_counts(folder / "counts" / "records.json", folder.name)
    expected = count_records(folder / "expected.tsv")
    assert found.lengths == expected.lengths
    assert [one.row() for one in found.tallies] == [one.row() for one in expected.tallies]
    for one, other in zip(found.tallies, expected.tallies, strict=True):
        assert [*one.common_reasons()] == [*other.common_reasons()]


@pytest.mark.parametrize("count", [1, 3, 40])
@pytest.mark.parametrize("tasks", [(), ("embed",), ("score",), TASKS, TASKS[::-1]])
def test_bundles_give_what_one_table_has(tmp_path, count, tasks):
    records = made_up(200, tasks)
    write_sample(tmp_path, records, count, tasks)
    assert main(command(tmp_path, count, tasks)) == 0
    assert_as_one_table(tmp_path, records, tasks)


@given(
    st.integers(0, 60), st.integers(1, 5), st.integers(1, 9), st.integers(1, 200), st.integers(1, 3)
)
def test_blocks_and_windows_do_not_matter(tmp_path_factory, size, count, window, block, different):
    folder, records = tmp_path_factory.mktemp("sample"), made_up(size, TASKS)
    write_sample(folder, records, count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_table, "WINDOW", window)
        patch.setattr(record_table, "BLOCK", block)
        patch.setattr(record_table, "DIFFERENT_LINES", different)
        assert main(command(folder, count)) == 0
    assert_as_one_table(folder, records)


def test_rows_of_another_order_would_show(sample, monkeypatch):
    """The twin of the tests above."""
    in_order = record_table.in_order
    monkeypatch.setattr(
        record_table, "in_order", lambda *args: ((at, rows[::-1]) for at, rows in in_order(*args))
    )
    assert main(command(sample, 3, ("embed",))) == 0
    with pytest.raises(AssertionError):
        assert_as_one_table(sample, made_up(200, TASKS), ("embed",))


def test_the_list_is_that_of_sha256sum(sample):
    assert main(command(sample, 3)) == 0
    check = ["sha256sum", "--check", "--strict", "digests.sha256"]
    told = subprocess.run(check, cwd=sample / "counts", capture_output=True, text=True)
    assert (told.returncode, told.stdout.split()) == (
        0,
        ["../records.tsv:", "OK", "records.json:", "OK"],
    )


def test_one_file_is_open_at_a_time(sample, monkeypatch):
    """As many as the process may have at most; the twin keeps those of all tables open."""
    before = len(os.listdir("/proc/self/fd"))
    most, read = [], record_table.read_block

    def counting(*args):
        found = read(*args)
        most.append(len(os.listdir("/proc/self/fd")))
        return found

    monkeypatch.setattr(record_table, "read_block", counting)
    assert main(command(sample, 3)) == 0
    assert max(most) <= before + 4, "the table, what holds its place, and this list"


def change(path: Path, old: str, new: str, listing: str = "") -> None:
    """Change a table; with `listing`, as if it had been so from the start."""
    text = path.read_bytes().decode()
    assert old in text
    path.write_bytes(text.replace(old, new, 1).encode())
    if listing:
        tables = sorted(path.parent.glob("*.tsv")) if listing == "digests.sha256" else [path]
        write_digests(path.parent / listing, {table.name: table for table in tables})


def first_row(path: Path) -> str:
    return path.read_bytes().decode().split("\n")[1] + "\n"


def lose(name: str, listing: str):
    def apply(folder: Path) -> None:
        path = folder / name
        change(path, first_row(path), "", listing)

    return apply


def repeat(name: str, listing: str):
    def apply(folder: Path) -> None:
        path = folder / name
        change(path, first_row(path), first_row(path) * 2, listing)

    return apply


def replace(name: str, old: str, new: str, listing: str = ""):
    return lambda folder: change(folder / name, old, new, listing)


BUNDLE, ALL = "bundles/00001.records.tsv", "digests.sha256"
STATUS = "embed/00001.status.tsv"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (replace(BUNDLE, "id", "iD"), "records.tsv: damaged, its digest is not that in digests"),
        (replace(STATUS, "ok", "oK"), "status.tsv: damaged, its digest is not that in 00001.sha"),
        (replace("score/status.tsv", "ok", "oK"), "status.tsv: damaged, its digest is not that in"),
        (lose(STATUS, "00001.sha256"), "00001.status.tsv: no row for record "),
        (lose("score/status.tsv", ALL), "score/status.tsv: no row for record 0;"),
        (repeat(STATUS, "00001.sha256"), "00001.status.tsv: no row for record "),
        (lose(BUNDLE, ALL), "00001.status.tsv: no row for record "),
        (repeat(BUNDLE, ALL), "00001.records.tsv: its rows are not in the order of their index"),
        (
            replace(STATUS, "\tok\t", "\tfine\t", "00001.sha256"),
            "00001.status.tsv: a row has status 'fine'; make it again with",
        ),
        (
            replace(STATUS, "\tok\t\n", "\tok\t\t\n", "00001.sha256"),
            "00001.status.tsv: not a row of the table (3 cells, not 2)",
        ),
        (
            replace(BUNDLE, "\tplain\t", "\tplain\t\t", ALL),
            "00001.records.tsv: not a row of the table (10 cells, not 9)",
        ),
        (
            replace(BUNDLE, "index\tid", "id\tindex", ALL),
            "00001.records.tsv:1: does not have the expected columns",
        ),
        (
            replace(STATUS, "embed_status", "fold_status", "00001.sha256"),
            "00001.status.tsv:1: does not have the expected columns",
        ),
        (lambda folder: (folder / STATUS).unlink(), "00001.status.tsv: no such file"),
        (lambda folder: (folder / BUNDLE).unlink(), "00001.records.tsv: no such file"),
    ],
)
def test_what_does_not_fit_is_named(sample, esm, damage, message):
    damage(sample)
    code, lines = esm(*command(sample, 3))
    assert (code, len(lines)) == (2, 1)
    assert message in lines[0]
    assert not (sample / "records.tsv").exists()
    assert not (sample / "counts" / "records.json").exists()


def test_what_fits_is_written(sample, esm):
    """The twin of the test above."""
    assert esm(*command(sample, 3)) == (0, [])


def test_more_outcomes_than_records(sample, esm):
    path = sample / STATUS
    with open(path, "a") as file:
        file.write("200\tok\t\n")
    write_digests(path.with_name("00001.sha256"), {path.name: path})
    code, lines = esm(*command(sample, 3))
    assert (code, len(lines)) == (2, 1)
    assert "00001.status.tsv: has more records than the bundles" in lines[0]


def test_a_record_of_no_bundle_and_one_of_two(tmp_path, esm):
    records = made_up(50)
    bundles = write_bundles(tmp_path, records, 2)
    table = bundles / "00000.records.tsv"
    kept = dealt(records, 0, 2)
    for rows, message in (
        (kept[1:], f"no row for record {kept[0].index};"),
        ([*dealt(records, 1, 2)[:1], *kept], "is there twice"),
    ):
        write_records(table, sorted(rows))
        write_digests(bundles / ALL, {one.name: one for one in bundles.glob("*.tsv")})
        code, lines = esm(*command(tmp_path, 2, ()))
        assert (code, len(lines)) == (2, 1)
        assert message in lines[0]


def test_a_bundle_that_is_left_out_is_missed(sample, esm):
    code, lines = esm(*command(sample, 2, ("embed",)))
    assert (code, len(lines)) == (2, 1)
    assert "no row for record " in lines[0]


def test_unusable_flags(sample, esm, tmp_path):
    twice = [*command(sample, 3), f"--status=embed={sample / 'embed'}"]
    code, lines = esm(*twice)
    assert (code, lines[0].endswith("--status: a task is given twice; drop one")) == (2, True)
    table = sample / BUNDLE
    before = table.read_bytes()
    code, lines = esm(*command(sample, 3), f"--out={table}")
    assert code == 2
    assert "is given for two files" in lines[0]
    assert table.read_bytes() == before
    with pytest.raises(SystemExit) as stop:
        esm(*command(sample, 3), "--status=embed")
    assert stop.value.code == 2


COLUMNS = "index\tid\tfile\tflags\n"


def parts(folder: Path) -> list[Path]:
    """Two tables with paths of files, of which one has a quoted line end."""
    texts = {
        "00000": COLUMNS + "0\ta\tstructures/0/0_a.pdb\t\n" + '3\t"b\nc"\t\tx\n',
        "00001": COLUMNS + '1\t"d ""e"""\tstructures/0/1_d.pdb\t\n2\tf\tstructures/0/2_f.pdb\ty\n',
    }
    for name, text in texts.items():
        (folder / "structures" / name).mkdir(parents=True)
        (folder / "structures" / name / "structures.tsv").write_text(text)
    return [folder / "structures" / name / "structures.tsv" for name in texts]


def test_paths_in_merged_tables_are_those_of_their_folder(tmp_path, esm):
    assert esm("aggregate", "tables", "--out", tmp_path / "all.tsv", *parts(tmp_path)) == (0, [])
    assert (tmp_path / "all.tsv").read_text() == COLUMNS + (
        "0\ta\tstructures/00000/structures/0/0_a.pdb\t\n"
        '1\t"d ""e"""\tstructures/00001/structures/0/1_d.pdb\t\n'
        "2\tf\tstructures/00001/structures/0/2_f.pdb\ty\n"
        '3\t"b\nc"\t\tx\n'
    )


def test_a_record_may_have_any_number_of_rows(tmp_path, esm):
    texts = {
        "one": "index\tflag\n0\ta\n0\tb\n" + '7\t"c\nd"\n',
        "two": "index\tflag\n",
        "three": "index\tflag\n3\te\n9\tf\n",
    }
    places = [tmp_path / f"{name}.tsv" for name in texts]
    for place, text in zip(places, texts.values(), strict=True):
        place.write_text(text)
    out = tmp_path / "all.tsv"
    command = ("aggregate", "tables", "--out", out)
    assert esm(*command, "--any-rows", *places) == (0, [])
    rows = '0\ta\n0\tb\n3\te\n7\t"c\nd"\n9\tf\n'
    assert out.read_text() == "index\tflag\n" + rows
    assert "is there twice" in esm(*command, *places)[1][0] or esm(*command, *places)[0] == 2
    places[0].write_text("index\tflag\n4\ta\n1\tb\n")
    code, said = esm(*command, "--any-rows", *places)
    assert (code, len(said)) == (2, 1)
    assert "not in the order of their index" in said[0]


def test_a_table_in_the_same_folder_keeps_its_rows(tmp_path, esm):
    (tmp_path / "one.tsv").write_text(COLUMNS + "0\ta\tstructures/0/0_a.pdb\t\n")
    assert esm("aggregate", "tables", "--out", tmp_path / "all.tsv", tmp_path / "one.tsv")[0] == 0
    assert (tmp_path / "all.tsv").read_bytes() == (tmp_path / "one.tsv").read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (COLUMNS + "4\ta\t\t\n", "no row for record 1"),
        (COLUMNS + "0\ta\t\t\n", "record 0 is there twice"),
        (COLUMNS + "1\ta\t\n", "not a row of the table (3 cells, not 4)"),
        (COLUMNS + "1\ta\t\t\n1\ta\t\t\n", "its rows are not in the order of their index"),
        (COLUMNS + "x\ta\t\t\n", "its rows are not in the order of their index"),
        ("index\tother\n", "00001/structures.tsv:1: does not have the expected columns"),
        ("", "00001/structures.tsv:1: does not have the expected columns"),
    ],
)
def test_tables_that_do_not_fit(tmp_path, esm, text, message):
    one, other = parts(tmp_path)
    other.write_text(text)
    code, lines = esm("aggregate", "tables", "--out", tmp_path / "all.tsv", one, other)
    assert (code, len(lines)) == (2, 1)
    assert message in lines[0]
    assert not (tmp_path / "all.tsv").exists()


def test_tables_without_an_index(tmp_path, esm):
    (tmp_path / "one.tsv").write_text("id\tindex\n")
    code, lines = esm("aggregate", "tables", "--out", tmp_path / "all.tsv", tmp_path / "one.tsv")
    assert (code, len(lines)) == (2, 1)
    assert "one.tsv:1: the first column is not index; give another table" in lines[0]


def test_failures_are_counted_once_each():
    """The records of these tests have all kinds of outcomes."""
    found = {record.outcomes["embed"].status for record in made_up(200)}
    assert found == {"ok", "skipped", FAILED}


def test_the_first_record_in_the_input_shows_a_reason(esm, tmp_path):
    """Not the first of the first bundle, which is read and counted before the others."""
    records = made_up(60, TASKS)
    usable = [one.index for one in records if one.status == "ok"]
    inside = {one.index for one in dealt(records, 0, 3)}
    first = next(index for index in usable if index not in inside)
    some = [index for index in usable if index >= first]
    assert inside & {*some}
    for index in usable:
        outcome = ("skipped", f"{index} residues") if index in some else ("ok", "")
        for task in TASKS:
            records[index] = records[index].with_outcome(task, *outcome)
    folder = write_sample(tmp_path / "a", records, 3)
    assert esm(*command(folder, 3))[0] == 0
    for tally in read_counts(folder / "counts" / "records.json", "a").tallies[1:]:
        assert [*tally.common_reasons()] == [("skipped", f"{first} residues", len(some))]
