"""`score --range` and `join`: any number of ranges gives the same table as one command."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from esm_pipeline.errors import InputError
from esm_pipeline.formats.checksums import write_digests
from esm_pipeline.formats.records import FAILED, OK, SKIPPED, Outcome, read_records, read_status
from esm_pipeline.formats.results.job_files import StoredOutcomes, seal
from esm_pipeline.formats.tables import text as text_tables
from esm_pipeline.tasks.common.tallies import read_counts
from esm_pipeline.tasks.score import join as join_command
from esm_pipeline.tasks.score import split, variant_range
from esm_pipeline.tasks.score.join import JoinedScores
from esm_pipeline.tasks.score.score_files import RangeScores, read_range_scores, write_range_scores
from tests.tasks.score.ranging import (
    LIKELIHOOD,
    bundle_in,
    esm_quietly,
    in_ranges,
    inputs,
    join,
    score_one,
    whole,
)
from tests.tasks.score.scoring import MARGINAL, rows_of

__all__ = ["inputs"]

JOINT = "masked_marginal_joint"


def require_like(found: list[dict[str, str]], wanted: list[dict[str, str]], strategy: str) -> None:
    """The same cells; scores may differ by rounding, since other batches were computed."""
    assert [list(row) for row in found] == [list(row) for row in wanted]
    scores = [name for name in wanted[0] if name.startswith(strategy)]
    for one, other in zip(found, wanted, strict=True):
        for name, value in other.items():
            if name in scores and value:
                assert float(one[name]) == pytest.approx(float(value), abs=1e-5)
            else:
                assert one[name] == value


@pytest.mark.parametrize("strategy", [MARGINAL, JOINT, "wt_marginal", LIKELIHOOD])
@pytest.mark.parametrize("count", [1, 3, 30])
def test_any_number_of_ranges_gives_the_same(
    tmp_path, rotary, inputs, monkeypatch, strategy, count
):
    for module in (text_tables, variant_range):
        monkeypatch.setattr(module, "ROWS_AT_ONCE", 4)
    joined = in_ranges(tmp_path, strategy, count, *inputs, rotary)
    scored = whole(tmp_path, strategy, rotary)
    wanted = rows_of(scored)
    assert {row["status"] for row in wanted} == {"ok", "skipped"}
    require_like(rows_of(joined), wanted, strategy)
    if count == 1:
        assert joined.read_bytes().split(b"\n")[1:] == scored.read_bytes().split(b"\n")[1:]
    records = list(read_records(tmp_path / "whole.records.tsv"))
    statuses = [(r.index, r.outcomes["score"]) for r in records]
    assert list(read_status(tmp_path / "status" / "status.tsv", "score")) == statuses
    facts = json.loads((tmp_path / "joined.json").read_text())
    assert (facts["strategy"], list(facts["models"])) == (strategy, [rotary.name])


def test_an_ensemble_in_ranges(tmp_path, rotary, absolute, inputs):
    joined = in_ranges(tmp_path, LIKELIHOOD, 3, *inputs, rotary, absolute)
    wanted = rows_of(whole(tmp_path, LIKELIHOOD, rotary, absolute))
    assert len([name for name in wanted[0] if name.startswith(LIKELIHOOD)]) == 6
    require_like(rows_of(joined), wanted, LIKELIHOOD)


def test_rows_that_are_cut_apart_have_the_same_scores(tmp_path, rotary, inputs, monkeypatch):
    """A protein with very many rows is scored in several ranges, although they share passes."""
    monkeypatch.setattr(split, "ROWS_TOGETHER", 1)
    joined = in_ranges(tmp_path, MARGINAL, 12, *inputs, rotary)
    assert len(bundle_in(tmp_path / "split")) == 12
    require_like(rows_of(joined), rows_of(whole(tmp_path, MARGINAL, rotary)), MARGINAL)


def test_what_join_counts(tmp_path, rotary, inputs):
    joined = in_ranges(tmp_path, LIKELIHOOD, 3, *inputs, rotary)
    rows = rows_of(joined)
    counts = read_counts(tmp_path / "counts" / "variants.json", "s")
    (tally,) = counts.tallies
    assert (tally.step, tally.statuses[OK], tally.statuses[SKIPPED]) == ("variants", 15, 7)
    assert sum(tally.reasons[SKIPPED].values()) == 3, "of the three most common ones"
    assert list(counts.histograms) == [LIKELIHOOD, f"{LIKELIHOOD}_ratio"]
    for name, histogram in counts.histograms.items():
        values = [float(row[name]) for row in rows if row["status"] == OK]
        edges, bars = histogram.bars(2000)
        assert bars.tolist() == np.histogram(values, edges)[0].tolist()
    listed = (tmp_path / "status" / "digests.sha256").read_text().split()[1::2]
    assert listed == ["../joined.tsv", "../joined.json", "status.tsv", "../counts/variants.json"]


CUT, FITS_NOT = Outcome(OK, "truncated"), Outcome(FAILED, "does not fit")


def joined_outcome(folder: Path, bundle, of_ranges: list[Outcome]) -> Outcome:
    """That of a protein whose rows are in several ranges."""
    with open(folder / "scratch", "w+b") as scratch:
        for number, outcome in enumerate(of_ranges):
            found = RangeScores(
                rows=np.array([number]),
                proteins=np.array([0]),
                scores=np.zeros((1, 1)),
                outcomes=StoredOutcomes.of([Outcome(OK), outcome]),
                columns=[MARGINAL],
                provenance={},
            )
            if not number:
                joined = JoinedScores(scratch, bundle, found)
            joined.add(folder / "a.h5", found)
        (folder / "before.tsv").write_text(
            "index\tfirst\tstatus\treason\n0\t0\tok\t\n1\t1\tok\tnot scored\n2\t0\tok\t\n"
            "3\t3\tskipped\tempty\n4\t4\tok\t\n"
        )
        first, *others = joined.outcomes_of_records(folder / "before.tsv")
    assert others == [
        *((1, Outcome(OK, "not scored")), (2, first[1])),
        *((3, Outcome(SKIPPED, "empty")), (4, Outcome(OK))),
    ]
    return first[1]


@pytest.mark.parametrize(
    ("of_ranges", "expected"),
    [
        ([Outcome(OK), CUT, Outcome(OK)], [CUT]),
        ([Outcome(OK), FITS_NOT, Outcome(OK), CUT], [FITS_NOT]),
        ([CUT, FITS_NOT], [FITS_NOT]),
        ([Outcome(OK), Outcome(SKIPPED, "too long")], [Outcome(SKIPPED, "too long")]),
        ([FITS_NOT, Outcome(SKIPPED, "too long")], [FITS_NOT]),
        ([Outcome(FAILED), Outcome(OK), CUT], [Outcome(FAILED)]),
        ([Outcome(OK), Outcome(OK)], [Outcome(OK)]),
        ([FITS_NOT, Outcome(FAILED, "not finite")], [FITS_NOT, Outcome(FAILED, "not finite")]),
    ],
)
def test_a_protein_of_several_ranges_has_the_worst_outcome(tmp_path, of_ranges, expected):
    """Whichever range comes first, and whichever has the reason; of those alike, the first."""
    (tmp_path / "in.csv").write_text("mutant\nA1C\n")
    (tmp_path / "wt.fasta").write_text(">a\nACD\n")
    options = ("--variants", tmp_path / "in.csv", "--out", tmp_path / "split")
    esm_quietly("split", *options, tmp_path / "wt.fasta")
    bundle = bundle_in(tmp_path / "split")
    for order in itertools.permutations(of_ranges):
        like = [outcome for outcome in order if outcome in expected]
        assert joined_outcome(tmp_path, bundle, [*order]) == like[0]


def test_a_failure_of_a_row_and_of_its_protein(tmp_path, absolute, inputs):
    """A protein that is too long for the model is skipped in its range, as by one command."""
    fasta, table = inputs
    long = "MKTAYIAKQRQISFVKSHFSRQ" * 2
    for path in (fasta[1], tmp_path / "all.fasta"):
        path.write_text(path.read_text() + f">long\n{long}\n")
    table.write_text(table.read_text() + 'M1W,"""x""",long\nG1W,"""x""",b\n')
    joined = in_ranges(tmp_path, MARGINAL, 4, fasta, table, absolute)
    wanted = rows_of(whole(tmp_path, MARGINAL, absolute))
    assert "44 residues, but the model has positions for 30" in wanted[-2]["reason"]
    require_like(rows_of(joined), wanted, MARGINAL)
    records = list(read_records(tmp_path / "whole.records.tsv"))
    found = dict(read_status(tmp_path / "status" / "status.tsv", "score"))
    assert found == {r.index: r.outcomes["score"] for r in records}
    assert found[7].status == SKIPPED


def test_a_table_without_usable_rows(tmp_path, rotary, inputs):
    fasta, table = inputs
    table.write_text("mutant,protein\nnonsense,a\n")
    joined = in_ranges(tmp_path, MARGINAL, 2, fasta, table, rotary)
    assert [row["status"] for row in rows_of(joined)] == ["skipped"]
    assert json.loads((tmp_path / "joined.json").read_text())["models"]
    outcomes = [o for _, o in read_status(tmp_path / "status" / "status.tsv", "score")]
    assert [outcome.status for outcome in outcomes].count(OK) == 5


def test_rows_of_a_table_in_parquet(tmp_path, rotary, inputs):
    fasta, table = inputs
    frame = pd.read_csv(table, keep_default_na=False).assign(real=np.arange(22) / 3)
    frame.to_parquet(tmp_path / "in.parquet")
    joined = in_ranges(tmp_path, MARGINAL, 2, fasta, tmp_path / "in.parquet", rotary)
    found = pd.read_csv(joined, sep="\t", keep_default_na=False)
    assert found["mutant"].tolist() == frame["mutant"].tolist()
    assert np.array_equal(found["real"], frame["real"])


def test_an_empty_range_loads_no_torch(tmp_path, inputs):
    fasta, table = inputs
    options = ("--least=1000000", "--out", tmp_path / "split", "--variants", table)
    esm_quietly("split", *options, *fasta)
    files = [tmp_path / "split" / name for name in ("variants.tsv", "wild_types.fasta")]
    out = tmp_path / "2-of-2.h5"
    words = ["score", "--quiet", "--model=none", "--range=2-of-2", "--variants", *files, out]
    code = f"import sys; from esm_pipeline.cli import main; assert main({[*map(str, words)]}) == 0"
    result = subprocess.run(
        [sys.executable, "-c", f"{code}; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == ["False"]
    first, stop, found = read_range_scores(out, bundle_in(tmp_path / "split").sha256)
    assert (first, stop) == (len(bundle_in(tmp_path / "split")),) * 2
    assert (len(found.rows), found.columns, found.provenance) == (0, [MARGINAL], None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--range=4-of-3"], "'4-of-3' is not a range such as 3-of-40"),
        (["--strategy", LIKELIHOOD], None),
        (["--offset=3"], "cannot be scored as it is here"),
        (["--sha256=o"], "--sha256: "),
        (["--provenance=o"], "--provenance: "),
    ],
)
def test_what_a_range_refuses(tmp_path, rotary, inputs, capsys, arguments, message):
    fasta, table = inputs
    options = ("--least=1", "--out", tmp_path / "split", "--variants", table)
    esm_quietly("split", *options, *fasta)
    capsys.readouterr()
    try:
        code = score_one(tmp_path, "1-of-3", rotary, options=tuple(arguments))
    except SystemExit as ended:
        code = ended.code
    lines = capsys.readouterr().err.splitlines()
    # the rows of a marginal can be scored by likelihood, but not the other way round
    assert (code, len(lines)) == ((0, 0) if message is None else (2, 1))
    assert message is None or message in lines[0]


def test_rows_that_were_split_for_another_strategy(tmp_path, rotary, inputs, capsys):
    in_ranges(tmp_path, LIKELIHOOD, 1, *inputs, rotary)
    assert score_one(tmp_path, "1-of-1", rotary) == 2
    assert "row 4 cannot be scored as it is here; split the table" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["a.tsv", "a.txt"])
def test_a_range_is_written_as_hdf5(tmp_path, rotary, inputs, capsys, out):
    in_ranges(tmp_path, MARGINAL, 1, *inputs, rotary)
    files = [tmp_path / "split" / name for name in ("variants.tsv", "wild_types.fasta")]
    words = ("--model", rotary, "--range=1-of-1", "--variants", *files)
    with pytest.raises(AssertionError):
        esm_quietly("score", *words, tmp_path / out)
    assert "let its name end in .h5" in capsys.readouterr().err


def change(path: Path, what: str) -> None:
    """Change the file of a job as if its job had written it."""
    with h5py.File(path, "r+") as file:
        if what == "rows":
            file["row"][-1] += 1
        elif what == "bundle":
            file.attrs["bundle"] = "0" * 64
        elif what == "stop":
            file.attrs["stop"] = str(int(file.attrs["stop"]) - 1)
        elif what == "columns":
            file.attrs["columns"] = '["other"]'
        elif what == "protein":
            file["protein"][0] += 1
        elif what == "model":
            facts = json.loads(file.attrs["provenance"])
            file.attrs["provenance"] = json.dumps({**facts, "models": {}})
        elif what == "software":
            facts = json.loads(file.attrs["provenance"])
            file.attrs["provenance"] = json.dumps({**facts, "software": {}})
    seal(path)


def keep_reasons(path: Path, rows: slice) -> None:
    """Keep some rows of `unusable.tsv`, as if `split` had written only them."""
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *lines[rows]]) + "\n")
    names = ("variants.index.npz", "status.tsv", "unusable.tsv")
    write_digests(path.with_name("digests.sha256"), {name: path.with_name(name) for name in names})


def damage(folder: Path, what: str) -> None:
    """Something in the way of `join`."""
    last, unusable = folder / "scores" / "2-of-2.h5", folder / "split" / "unusable.tsv"
    table = folder / "in.csv"
    if what == "a byte":
        data = bytearray(last.read_bytes())
        with h5py.File(last) as file:
            data[file["scores"].id.get_offset() + 3] ^= 1
        last.write_bytes(data)
    elif what == "cut short":
        last.write_bytes(last.read_bytes()[:-100])
    elif what == "missing":
        last.unlink()
    elif what == "the other range":
        shutil.copy(last.with_name("1-of-2.h5"), last)
    elif what == "unusable rows":
        keep_reasons(unusable, slice(2, None))
    elif what == "the last rows":
        keep_reasons(unusable, slice(1, 7))
        table.write_text("\n".join(table.read_text().splitlines()[:18]) + "\n")
    elif what == "a reason":
        unusable.write_text(unusable.read_text().replace("residue", "Residue", 1))
    elif what == "an outcome":
        status = folder / "split" / "status.tsv"
        status.write_text(status.read_text().replace("ok", "OK", 1))
    elif what == "a longer table":
        table.write_text(table.read_text() + "K2L,x,a\n")
    elif what == "a shorter table":
        table.write_text("\n".join(table.read_text().splitlines()[:-2]) + "\n")
    else:
        change(last, what)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("a byte", "2-of-2.h5: damaged (its digest is not that of its contents); remove it and"),
        ("cut short", "2-of-2.h5: damaged (cannot be read as HDF5"),
        ("missing", "2-of-2.h5: no such file"),
        ("the other range", "2-of-2.h5: is the range 1-of-2; remove it and run the workflow"),
        ("bundle", "2-of-2.h5: is of another variant table; remove it"),
        ("stop", "has groups 4 to 6 of 7, which does not fit to the ranges before it, up to 4"),
        ("columns", "2-of-2.h5: differs from the first range in its columns; remove it"),
        ("model", "2-of-2.h5: differs from the first range in its provenance; remove it"),
        ("protein", "2-of-2.h5: has proteins of another table"),
        ("rows", "in.csv: row 17 is in no range, or in two; remove the folder"),
        ("unusable rows", "in.csv: row 2 is in no range, or in two; remove the folder"),
        ("a reason", "split/unusable.tsv: damaged, its digest is not that in digests.sha256; remo"),
        ("an outcome", "split/status.tsv: damaged, its digest is not that in digests.sha256; rem"),
        ("a longer table", "in.csv: row 22 is in no range, or in two; remove the folder and run"),
        ("the last rows", "in.csv: has fewer rows than were split; remove the folder"),
        ("a shorter table", "in.csv: has fewer rows than were split; remove the folder"),
    ],
)
def test_join_notices_what_does_not_belong(tmp_path, rotary, inputs, capsys, what, message):
    in_ranges(tmp_path, MARGINAL, 2, *inputs, rotary)
    before = (tmp_path / "joined.tsv").read_bytes()
    damage(tmp_path, what)
    capsys.readouterr()
    assert join(tmp_path, 2, inputs[1]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert (tmp_path / "joined.tsv").read_bytes() == before


def test_a_full_disk_while_joining(tmp_path, rotary, inputs, capsys, monkeypatch):
    before = in_ranges(tmp_path, MARGINAL, 2, *inputs, rotary).read_bytes()
    names = sorted(path.name for path in tmp_path.iterdir())

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(join_command, "write_at", full)
    assert join(tmp_path, 2, inputs[1]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"esm-pipeline join: \S+joined.tsv: no space left on the disk; .*", line)
    assert (tmp_path / "joined.tsv").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_full_disk_under_the_scores_of_a_range(tmp_path, rotary, inputs):
    in_ranges(tmp_path, MARGINAL, 1, *inputs, rotary)
    before = (tmp_path / "scores" / "1-of-1.h5").read_bytes()
    files = [tmp_path / "split" / name for name in ("variants.tsv", "wild_types.fasta")]
    words = ["score", "--quiet", f"--model={rotary}", "--range=1-of-1", "--variants", *files]
    code = (
        "import resource, sys; from esm_pipeline.cli import main; import torch; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500)); sys.exit(main(sys.argv[1:]))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, *map(str, [*words, tmp_path / "scores" / "1-of-1.h5"])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1), ended.stderr
    assert "1-of-1.h5" in ended.stderr
    assert (tmp_path / "scores" / "1-of-1.h5").read_bytes() == before
    assert [path.name for path in (tmp_path / "scores").iterdir()] == ["1-of-1.h5"]


def test_other_versions_of_the_software_may_differ(tmp_path, rotary, inputs):
    joined = in_ranges(tmp_path, MARGINAL, 2, *inputs, rotary)
    before = joined.read_bytes()
    change(tmp_path / "scores" / "2-of-2.h5", "software")
    assert join(tmp_path, 2, inputs[1]) == 0
    assert joined.read_bytes() == before


def test_the_same_range_gives_the_same_bytes(tmp_path, rotary, inputs):
    in_ranges(tmp_path, MARGINAL, 2, *inputs, rotary)
    first = (tmp_path / "scores" / "1-of-2.h5").read_bytes()
    assert score_one(tmp_path, "1-of-2", rotary) == 0
    assert (tmp_path / "scores" / "1-of-2.h5").read_bytes() == first


def test_rows_that_no_split_wrote(tmp_path):
    for text in (b"1\t0\n", b"x\t0\tA1C\n"):
        with pytest.raises(InputError, match=r"rows\.tsv: not the rows of a variant table"):
            list(variant_range.RangeTable("rows.tsv", text).blocks(["mutant"]))


def test_scores_as_they_were_written(tmp_path):
    """Also where a number is not finite, and without any row."""
    scores = np.array([[1.5, np.nan], [-np.inf, 0.1]])
    outcomes = [Outcome(OK, "é"), Outcome(FAILED, "why"), Outcome(OK)]
    found = RangeScores(
        np.array([3, 9]), np.array([4]), scores, StoredOutcomes.of(outcomes), ["a", "b"], {"x": 1}
    )
    facts = {"bundle": "b", "range": "1-of-1", "first": "0", "stop": "2"}
    write_range_scores(tmp_path / "1-of-1.h5", found, facts)
    first, stop, read = read_range_scores(tmp_path / "1-of-1.h5", "b")
    assert (first, stop, read.columns, read.provenance) == (0, 2, ["a", "b"], {"x": 1})
    assert (read.rows.tolist(), read.proteins.tolist()) == ([3, 9], [4])
    assert np.array_equal(read.scores, scores, equal_nan=True)
    assert list(read.outcomes) == outcomes
