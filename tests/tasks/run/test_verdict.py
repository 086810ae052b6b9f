"""The verdict: counts that add up, the commonest reasons, the exit code."""

import pytest

from esm_pipeline.formats.records import FAILED, OK, SKIPPED, Record, write_records

TEXT = """\
sample  step        records     ok  skipped  failed  duplicates
a       validation    1,005  1,004        1       0           1
a       embed         1,005  1,000        3       2           1
b       validation        0      0        0       0           0
a, validation: 1 skipped: a gap '-' at residue 7
a, embed: 2 failed, such as: 70000 residues do not fit
a, embed: 2 skipped, such as: 1500 residues, but positions for 1022
2 failed
"""


def records():
    plain = Record(0, "id", "id", 5, "0" * 64, OK)
    for index in range(1000):
        yield plain._replace(index=index).with_outcome("embed", OK)
    yield plain._replace(index=1000, duplicate_of=1).with_outcome(
        "embed", SKIPPED, "1500 residues, but positions for 1022"
    )
    yield plain._replace(index=1001).with_outcome(
        "embed", SKIPPED, "3 residues, but positions for 1022"
    )
    yield plain._replace(index=1002).with_outcome("embed", FAILED, "70000 residues do not fit")
    yield plain._replace(index=1003).with_outcome("embed", FAILED, "9 residues do not fit")
    gap = Record(1004, "id", "id", None, "", SKIPPED, "a gap '-' at residue 7")
    yield gap.with_outcome("embed", SKIPPED, gap.reason)


@pytest.fixture
def tables(tmp_path):
    for sample in ("a", "b"):
        (tmp_path / sample).mkdir()
    write_records(tmp_path / "a" / "records.tsv", records(), ["embed"])
    write_records(tmp_path / "b" / "records.tsv", [])
    return [tmp_path / sample / "records.tsv" for sample in ("a", "b")]


@pytest.mark.parametrize(("policy", "code"), [("error", 1), ("keep", 0)])
def test_the_text_and_the_exit_code(esm, tables, tmp_path, policy, code):
    out = tmp_path / "verdict.txt"
    assert esm("verdict", "--on-failure", policy, "--out", out, *tables) == (
        code,
        TEXT.splitlines(),
    )
    assert out.read_text() == TEXT


def test_a_digit_that_stood_in_a_sequence_is_reported(esm, tmp_path):
    reason = "character '1' at residue 33 is no amino acid"
    write_records(tmp_path / "records.tsv", [Record(0, "x", "x", None, "", SKIPPED, reason)])
    _, lines = esm("verdict", "--out", tmp_path / "verdict.txt", tmp_path / "records.tsv")
    assert "1 skipped: character '1' at residue 33 is no amino acid" in lines[-3]
    assert lines[-2].endswith(", validation: none of 1 computed")


def test_skipped_is_not_failed(esm, tables, tmp_path):
    code, lines = esm("verdict", "--out", tmp_path / "verdict.txt", tables[1])
    assert code == 0
    assert lines[-1] == "nothing failed"


def test_a_record_without_an_outcome_is_an_error(esm, tables, tmp_path):
    write_records(tables[1], [Record(0, "x", "x", 5, "0" * 64, OK)], ["embed"])
    code, lines = esm("verdict", "--out", tmp_path / "verdict.txt", *tables)
    assert (code, len(lines)) == (2, 1)
    assert "record 0 has embed_status ''; make the table again" in lines[0]
    assert not (tmp_path / "verdict.txt").exists()


SCORES = "mutant\tstatus\treason\nA1C\tok\t\nA2C\tskipped\tresidue 2 is G, not A\nA3C\tfailed\tx\n"


def test_variants_count_too(esm, tables, tmp_path):
    plain = Record(0, "id", "id", 5, "0" * 64, OK)
    (tmp_path / "b" / "scores.tsv").write_text(SCORES)
    code, lines = esm("verdict", "--out", tmp_path / "verdict.txt", tables[1])
    assert code == 0, "nothing was scored in this run: the table is of another"
    write_records(tables[1], [plain.with_outcome("score", OK)], ["score"])
    code, lines = esm("verdict", "--out", tmp_path / "verdict.txt", tables[1])
    assert code == 1
    assert lines[3] == "b       variants          3   1        1       1           0"
    assert lines[4:] == [
        "b, variants: 1 failed: x",
        "b, variants: 1 skipped: residue 2 is G, not A",
        "1 failed",
    ]
    (tmp_path / "b" / "scores.tsv").write_text(SCORES.replace("ok", "OK"))
    code, lines = esm("verdict", "--out", tmp_path / "verdict.txt", tables[1])
    assert (code, len(lines)) == (2, 1)
    assert "a row has status 'OK'; make it again with `join`" in lines[0]


def test_where_the_other_reasons_are(esm, tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    plain = Record(0, "id", "id", 5, "0" * 64, OK)
    outcomes = [(FAILED, f"'{letter}'") for letter in "abcdeaab"] + [(SKIPPED, "why")]
    some = [
        plain._replace(index=index).with_outcome("score", *one)
        for index, one in enumerate(outcomes)
    ]
    write_records(folder / "records.tsv", some, ["score"])
    rows = ["mutant\tstatus\treason", *(f"x\tskipped\t'{letter}'" for letter in "abcd")]
    (folder / "scores.tsv").write_text("\n".join(rows) + "\n")
    _, lines = esm("verdict", "--out", tmp_path / "verdict.txt", folder / "records.tsv")
    assert lines[4:13] == [
        "a, score: 3 failed: 'a'",
        "a, score: 2 failed: 'b'",
        "a, score: 1 failed: 'c'",
        "a, score: 1 skipped: why",
        "a, score: failed for 2 more reasons; see a/records.tsv",
        "a, variants: 1 skipped: 'a'",
        "a, variants: 1 skipped: 'b'",
        "a, variants: 1 skipped: 'c'",
        "a, variants: skipped for 1 more reason; see a/scores.tsv",
    ]
