"""`split` and `join`: any number of shards gives the same table as one command, row for row."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esm_pipeline.cli import main
from esm_pipeline.formats.records import (
    Outcome,
    Record,
    read_records,
    read_status,
    write_records,
)
from esm_pipeline.formats.tables import text as text_tables
from esm_pipeline.settings import shard_names
from esm_pipeline.tasks.score.join import outcomes_of_records, severity, worst_outcomes
from tests.tasks.score.scoring import MARGINAL, OTHER, WILD_TYPE, rows_of

LIKELIHOOD = "pseudo_log_likelihood"
PROTEINS = {
    "a": WILD_TYPE,
    "gap": "MK-V",
    "b": OTHER,
    "again": WILD_TYPE,
    "chains": "MK:V",
    "c": WILD_TYPE[::-1],
    "unused": "MKVL",
}
VARIANTS = [
    *(("a", text) for text in ("K2L", "K2L:T3S", "K2*", "WT", "K2del", "L2K", "M1_K2insWW")),
    *(("b", text) for text in ("G1A", "nonsense", "G1A", "A2L:V3C", "G1dup", "W6W")),
    *(("again", text) for text in ("p.Lys2Leu", "K2S")),
    *(("c", text) for text in ("Q1A", "R2C", "S3T:F4C")),
    *(("gap", "M1A"), ("chains", "M1A"), ("none", "M1A"), ("a", "")),
]


def esm(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture
def inputs(tmp_path):
    """Two FASTA files and a table of variants."""
    entries = [f">{name}\n{one}\n" for name, one in PROTEINS.items()]
    fasta = [tmp_path / "one.fasta", tmp_path / "two.fasta"]
    fasta[0].write_text("".join(entries[:3]))
    fasta[1].write_text("".join(entries[3:]))
    (tmp_path / "all.fasta").write_text("".join(entries))
    rows = [{"mutant": text, "n,": '"x"', "protein": name} for name, text in VARIANTS]
    pd.DataFrame(rows).to_csv(tmp_path / "in.csv", index=False)
    return fasta, tmp_path / "in.csv"


def whole(folder: Path, model: Path, strategy: str) -> Path:
    """The table as one command scores it."""
    out = folder / "whole.tsv"
    options = ("--quiet", "--model", model, "--strategy", strategy)
    esm("score", *options, "--variants", folder / "in.csv", folder / "all.fasta", out)
    return out


def in_shards(folder: Path, model: Path, strategy: str, shards: int, fasta, table) -> Path:
    """The same through `split`, a job for each shard, and `join`."""
    for name in ("shards", "split", "scores"):
        shutil.rmtree(folder / name, ignore_errors=True)
    esm("shard", "--quiet", "--shards=1", "--out", folder / "shards", *fasta)
    split = ("--quiet", "--strategy", strategy, "--shards", shards, "--out", folder / "split")
    esm("split", *split, "--variants", table, *fasta)
    score_shards(folder, model, strategy, shards)
    join(folder, shards, table)
    return folder / "joined.tsv"


def score_shards(folder: Path, model: Path, strategy: str, shards: int) -> None:
    for name in shard_names(shards):
        source, target = folder / "split" / name, folder / "scores" / name
        esm(
            *("score", "--quiet", "--allow-empty", "--model", model, "--strategy", strategy),
            *("--provenance", f"{target}.json", "--sha256", f"{target}.sha256"),
            *("--variants", f"{source}.tsv", f"{source}.fasta", f"{target}.tsv"),
        )


def join(folder: Path, shards: int, table: Path) -> int:
    arguments = [
        *("join", "--quiet", "--variants", table, "--records", folder / "shards" / "records.tsv"),
        *("--split", folder / "split", "--scores", folder / "scores", "--shards", shards),
        *("--out", folder / "joined.tsv", "--status", folder / "status.tsv"),
        *("--provenance", folder / "joined.json"),
    ]
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize("strategy", [MARGINAL, "masked_marginal_joint", LIKELIHOOD])
@pytest.mark.parametrize("shards", [1, 3, 30])
def test_any_number_of_shards_gives_the_same(
    tmp_path, rotary, inputs, monkeypatch, strategy, shards
):
    monkeypatch.setattr(text_tables, "ROWS_AT_ONCE", 4)
    found = rows_of(in_shards(tmp_path, rotary, strategy, shards, *inputs))
    wanted = rows_of(whole(tmp_path, rotary, strategy))
    assert [list(row) for row in found] == [list(row) for row in wanted]
    assert {row["status"] for row in wanted} == {"ok", "skipped"}
    scores = [name for name in wanted[0] if name.startswith(strategy)]
    for one, other in zip(found, wanted, strict=True):
        for name, value in other.items():
            if name in scores and value:
                assert float(one[name]) == pytest.approx(float(value), abs=1e-5)
            else:
                assert one[name] == value
    records = list(read_records(tmp_path / "whole.records.tsv"))
    statuses = [(r.index, r.outcomes["score"]) for r in records]
    assert list(read_status(tmp_path / "status.tsv", "score")) == statuses
    facts = json.loads((tmp_path / "joined.json").read_text())
    assert (facts["strategy"], list(facts["models"])) == (strategy, [rotary.name])


CUT, FITS_NOT = Outcome("ok", "truncated"), Outcome("failed", "does not fit")


@pytest.mark.parametrize(
    ("of_shards", "expected"),
    [
        ([Outcome("ok"), CUT, Outcome("ok")], CUT),
        ([Outcome("ok"), FITS_NOT, Outcome("ok"), CUT], FITS_NOT),
        ([CUT, FITS_NOT], FITS_NOT),
        ([Outcome("ok"), Outcome("skipped", "too long")], Outcome("skipped", "too long")),
        ([FITS_NOT, Outcome("skipped", "too long")], FITS_NOT),
        ([Outcome("failed"), Outcome("ok"), CUT], Outcome("failed")),
        ([Outcome("ok"), Outcome("ok")], Outcome("ok")),
        ([FITS_NOT, Outcome("failed", "is not finite")], FITS_NOT),
    ],
)
def test_a_protein_of_several_shards_has_the_worst_outcome(tmp_path, of_shards, expected):
    """Whichever shard comes first, and whichever has the reason."""
    record = Record(0, "a", "a", 22, "0" * 64, "ok")
    write_records(tmp_path / "records.tsv", [record], [])
    (tmp_path / "before.tsv").write_text("index\tscore_status\tscore_reason\n0\tok\t\n")
    shard = record._replace(id="0")
    for number, outcome in enumerate(of_shards):
        one = shard.with_outcome("score", *outcome)
        write_records(tmp_path / f"{number}.records.tsv", [one], ["score"])
    for order in itertools.permutations(range(len(of_shards))):
        shards = [SimpleNamespace(records=tmp_path / f"{n}.records.tsv") for n in order]
        paths = (tmp_path / "records.tsv", tmp_path / "before.tsv")
        found = list(outcomes_of_records(*paths, worst_outcomes(shards)))
        like = [of_shards[n] for n in order if severity(of_shards[n]) == severity(expected)]
        assert expected in like
        assert found == [(0, like[0])], "the first of those alike"


def split_rows(folder: Path) -> list[list[int]]:
    return [
        [int(row["row"]) for row in rows_of(path)]
        for path in sorted((folder / "split").glob("0*.tsv"))
    ]


@settings(max_examples=15)
@given(data=st.data(), shards=st.integers(1, 9))
@pytest.mark.parametrize("strategy", [MARGINAL, LIKELIHOOD])
def test_shards_have_every_row_once_and_like_cost(tmp_path_factory, strategy, data, shards):
    folder = tmp_path_factory.mktemp("split")
    letters = random.Random(data.draw(st.integers(0, 99)))
    lengths = data.draw(st.lists(st.integers(3, 40), min_size=1, max_size=6))
    proteins = ["".join(letters.choices("ACDEFGHIK", k=length)) for length in lengths]
    (folder / "wt.fasta").write_text("".join(f">{i}\n{p}\n" for i, p in enumerate(proteins)))
    rows = []
    for _ in range(data.draw(st.integers(0, 40))):
        number = letters.randrange(len(proteins))
        at = letters.randrange(lengths[number])
        rows.append((number, f"{proteins[number][at]}{at + 1}{letters.choice('LMNWY')}"))
    pd.DataFrame(rows, columns=["protein", "mutant"]).to_csv(folder / "in.csv", index=False)
    options = ("--protein-col=protein", "--strategy", strategy, "--shards", shards)
    fasta = folder / "wt.fasta"
    esm(
        "split",
        "--quiet",
        *options,
        "--out",
        folder / "split",
        "--variants",
        folder / "in.csv",
        fasta,
    )
    found = split_rows(folder)
    assert len(found) == shards
    assert sorted(row for part in found for row in part) == list(range(len(rows)))
    assert all(part == sorted(part) for part in found)
    # what stands in a shard is what its rows need
    together = [
        tuple(rows[row]) if strategy == LIKELIHOOD else proteins[rows[row][0]]
        for row in range(len(rows))
    ]
    for key in set(together):
        homes = {place for place, part in enumerate(found) for row in part if together[row] == key}
        assert len(homes) == 1
    for place, part in enumerate(found):
        text = (folder / "split" / f"{place:05d}.fasta").read_text()
        assert set(text.split("\n")[1::2]) == {proteins[rows[row][0]] for row in part}
    homes = sum(len({rows[row][0] for row in part}) for part in found)
    assert homes <= len({number for number, _ in rows}) + shards - 1, "by protein, then cut"
    if rows:
        costs = costs_of(rows, lengths, together, strategy)
        loads = [sum(costs[key] for key in {together[row] for row in part}) for part in found]
        assert max(loads) <= sum(loads) / shards + max(costs.values()) * (1 + 1e-9)


def costs_of(rows, lengths, together, strategy):
    """The cost of each group: its passes times the cost of one."""
    found = {}
    for key in set(together):
        members = [rows[row] for row in range(len(rows)) if together[row] == key]
        length = lengths[members[0][0]]
        passes = length if strategy == LIKELIHOOD else min(len(members), length)
        found[key] = passes * length * (7680 + length)
    return found


def test_split_says_what_cannot_be_used(tmp_path, inputs, capsys):
    fasta, table = inputs
    options = ("--shards=2", "--out", tmp_path / "split", "--variants", table)
    esm("split", *options, *fasta)
    assert capsys.readouterr().err.startswith("split: 22 variants, 10 unusable, in 2 shards; ")
    rows = rows_of(tmp_path / "split" / "unusable.tsv")
    assert [VARIANTS[int(row["row"])][1] for row in rows] == [
        *("K2*", "K2del", "L2K", "M1_K2insWW", "nonsense", "G1dup", "M1A", "M1A", "M1A", "")
    ]
    assert all(row["reason"] for row in rows)
    statuses = dict(read_status(tmp_path / "split" / "status.tsv", "score"))
    assert [outcome.status for outcome in statuses.values()] == [
        *("ok", "skipped", "ok", "ok", "skipped", "ok", "ok")
    ]
    spelled = [
        row["mutant"]
        for part in sorted((tmp_path / "split").glob("0*.tsv"))
        for row in rows_of(part)
    ]
    assert {"K2L", "K2L:T3S", "=", "S3T:F4C"} <= set(spelled)
    assert "p.Lys2Leu" not in spelled


def test_mutants_of_a_protein_are_near(tmp_path):
    """Their wild type is computed in as few shards as possible."""
    proteins = {f"p{i}": "MK" + "ACDEFGHI"[i] * 9 for i in range(6)}
    (tmp_path / "wt.fasta").write_text("".join(f">{n}\n{one}\n" for n, one in proteins.items()))
    rows = [f"{name},K2{letter}" for letter in "ACDEFGHI" for name in proteins]
    (tmp_path / "v.csv").write_text("\n".join(["protein,mutant", *rows]) + "\n")
    options = ("--quiet", "--shards=4", f"--strategy={LIKELIHOOD}", "--out", tmp_path / "split")
    esm("split", *options, "--variants", tmp_path / "v.csv", tmp_path / "wt.fasta")
    parts = [rows_of(path) for path in sorted((tmp_path / "split").glob("0*.tsv"))]
    assert sum(map(len, parts)) == len(rows)
    assert sum(len({row["protein"] for row in part}) for part in parts) <= len(proteins) + 4 - 1


def test_splitting_again_leaves_nothing_of_before(tmp_path, inputs):
    fasta, table = inputs
    for shards in (5, 2):
        options = ("--quiet", "--shards", shards, "--out", tmp_path / "split")
        esm("split", *options, "--variants", table, *fasta)
    names = sorted(path.name for path in (tmp_path / "split").iterdir())
    parts = ["00000.fasta", "00000.tsv", "00001.fasta", "00001.tsv"]
    assert names == [*parts, "digests.sha256", "status.tsv", "unusable.tsv"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variants", "in.csv", "--shards=2", "--out=."], None),
        (["--variants", "00001.tsv", "--shards=2", "--out=."], "a shard would replace it"),
        (["--variants", "taken.csv", "--shards=2", "--out=o"], "has a column 'status', which is"),
        (["--variants", "in.csv", "--shards=0", "--out=o"], "is not a number from 1 to"),
        (["--variants", "in.csv", "--shards=2", "--out=in.csv"], "not a folder"),
    ],
)
def test_what_split_refuses(tmp_path, inputs, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    shutil.copy("in.csv", "00001.tsv")
    Path("taken.csv").write_text("mutant,protein,status\n")
    try:
        code = main(["split", "--quiet", *arguments, "all.fasta"])
    except SystemExit as ended:
        code = ended.code
    lines = capsys.readouterr().err.splitlines()
    assert (code, len(lines)) == ((0, 0) if message is None else (2, 1))
    assert message is None or message in lines[0]


def damage(folder: Path, what: str) -> None:
    scores, split = folder / "scores", folder / "split"
    if what == "a score":
        path = scores / "00001.tsv"
        path.write_text(path.read_text().replace("ok", "OK", 1))
    elif what == "a shard is missing":
        (scores / "00001.tsv").unlink()
    elif what == "a shard of before":
        for end in ("tsv", "records.tsv", "json", "sha256"):
            shutil.copy(scores / f"00000.{end}", scores / f"00001.{end}")
        text = (scores / "00001.sha256").read_text().replace("00000", "00001")
        (scores / "00001.sha256").write_text(text)
    elif what == "unusable rows":
        path = split / "unusable.tsv"
        lines = path.read_text().splitlines()
        path.write_text("\n".join([lines[0], *lines[2:]]) + "\n")
        (split / "digests.sha256").unlink()
    elif what == "a reason":
        path = split / "unusable.tsv"
        path.write_text(path.read_text().replace("residue", "Residue", 1))
    elif what == "an id":
        path = folder / "shards" / "records.tsv"
        path.write_text(path.read_text().replace("ok", "OK", 1))
    elif what == "a longer table":
        path = folder / "in.csv"
        path.write_text(path.read_text() + "K2L,x,a\n")
    elif what == "a shorter table":
        path = folder / "in.csv"
        path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    elif what == "other records":
        path = folder / "shards" / "records.tsv"
        lines = path.read_text().splitlines()
        path.write_text("\n".join([lines[0], *lines[2:]]) + "\n")
        path.with_name("digests.sha256").unlink()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("a score", "00001.tsv: damaged, its digest is not that in 00001.sha256"),
        ("a shard is missing", "00001.tsv: no such file, but 00001.sha256 lists it"),
        ("a shard of before", "the shards do not have every row once; remove the folder and run"),
        ("unusable rows", "the shards do not have every row once"),
        ("a reason", "split/unusable.tsv: damaged, its digest is not that in digests.sha256; remo"),
        ("an id", "shards/records.tsv: damaged, its digest is not that in digests.sha256; remove"),
        ("a longer table", "in.csv: has more rows than the shards; remove the folder and run the"),
        ("a shorter table", "in.csv: has fewer rows than the shards; remove the folder"),
        ("other records", "status.tsv: does not match the records of"),
    ],
)
def test_join_notices_what_does_not_belong(tmp_path, rotary, inputs, capsys, what, message):
    in_shards(tmp_path, rotary, MARGINAL, 2, *inputs)
    before = (tmp_path / "joined.tsv").read_bytes()
    damage(tmp_path, what)
    capsys.readouterr()
    assert join(tmp_path, 2, inputs[1]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert (tmp_path / "joined.tsv").read_bytes() == before


def test_join_notices_another_model(tmp_path, rotary, absolute, inputs, capsys):
    in_shards(tmp_path, rotary, MARGINAL, 2, *inputs)
    kept = {path: path.read_bytes() for path in (tmp_path / "scores").glob("00000.*")}
    score_shards(tmp_path, absolute, MARGINAL, 2)
    for path, content in kept.items():
        path.write_bytes(content)
    assert join(tmp_path, 2, inputs[1]) == 2
    assert "shards differ in their provenance; remove the folder" in capsys.readouterr().err


def test_rows_of_a_table_in_parquet(tmp_path, rotary, inputs):
    fasta, table = inputs
    frame = pd.read_csv(table, keep_default_na=False).assign(real=np.arange(22) / 3)
    frame.to_parquet(tmp_path / "in.parquet")
    joined = in_shards(tmp_path, rotary, MARGINAL, 2, fasta, tmp_path / "in.parquet")
    found = pd.read_csv(joined, sep="\t", keep_default_na=False)
    assert found["mutant"].tolist() == frame["mutant"].tolist()
    assert np.array_equal(found["real"], frame["real"])
