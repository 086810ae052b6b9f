"""`split`: every usable row once, in groups that share forward passes, and why others are not."""

from __future__ import annotations

import random
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esm_pipeline.cli import main
from esm_pipeline.errors import InputError
from esm_pipeline.formats.bundles import Range, Work
from esm_pipeline.formats.checksums import write_digests
from esm_pipeline.tasks.score import split
from esm_pipeline.tasks.score.split import changes, cut_large
from esm_pipeline.tasks.score.work import VARIANTS_WORK
from tests.tasks.score.ranging import (
    LIKELIHOOD,
    VARIANTS,
    bundle_in,
    called,
    esm_quietly,
    inputs,
)
from tests.tasks.score.scoring import MARGINAL, rows_of

__all__ = ["inputs"]

JOINT = "masked_marginal_joint"
Rows = list[tuple[int, str]]


def write_input(folder: Path, rows: Rows, proteins: list[str]) -> tuple[Path, Path]:
    """A table of rows (protein, mutant), and the FASTA."""
    (folder / "wt.fasta").write_text("".join(f">{i}\n{p}\n" for i, p in enumerate(proteins)))
    pd.DataFrame(rows, columns=["protein", "mutant"]).to_csv(folder / "in.csv", index=False)
    return folder / "in.csv", folder / "wt.fasta"


def split_rows(folder: Path, rows: Rows, proteins: list[str], strategy: str, least: int):
    """The bundle, and the numbers of the rows of each of its groups."""
    table, fasta = write_input(folder, rows, proteins)
    options = ("--strategy", strategy, "--least", least, "--out", folder / "split")
    esm_quietly("split", *options, "--variants", table, fasta)
    bundle = bundle_in(folder / "split")
    lines = [bundle.lines(slice(one, one + 1)).decode().splitlines() for one in range(len(bundle))]
    return bundle, [[int(line.split("\t")[0]) for line in group] for group in lines]


def drawn_rows(letters: random.Random, proteins: list[str], number: int) -> Rows:
    """Rows with one to three mutations."""
    rows = []
    for _ in range(number):
        protein = letters.randrange(len(proteins))
        sequence = proteins[protein]
        places = sorted(letters.sample(range(len(sequence)), letters.choice([1, 1, 2, 3])))
        text = ":".join(f"{sequence[at]}{at + 1}{letters.choice('LMNWY')}" for at in places)
        rows.append((protein, text))
    return rows


def needs(row: tuple[int, str], strategy: str) -> set[object]:
    """The passes of a row: what two rows have in common, they share."""
    protein, text = row
    if strategy == LIKELIHOOD:
        return {row}
    places = tuple(part[1:-1] for part in text.split(":"))
    return {(protein, places)} if strategy == JOINT else {(protein, place) for place in places}


@settings(max_examples=25)
@given(data=st.data(), count=st.integers(1, 9), least=st.sampled_from([1, 60, 1000]))
@pytest.mark.parametrize("strategy", [MARGINAL, JOINT, LIKELIHOOD])
def test_groups_have_every_row_once_and_ranges_like_cost(
    tmp_path_factory, strategy, data, count, least
):
    letters = random.Random(data.draw(st.integers(0, 99)))
    lengths = data.draw(st.lists(st.integers(3, 40), min_size=1, max_size=6))
    proteins = ["".join(letters.choices("ACDEFGHIK", k=length)) for length in lengths]
    rows = drawn_rows(letters, proteins, data.draw(st.integers(0, 40)))
    folder = tmp_path_factory.mktemp("split")
    bundle, groups = split_rows(folder, rows, proteins, strategy, least)
    assert sorted(row for group in groups for row in group) == list(range(len(rows)))
    assert bundle.rows.tolist() == [len(group) for group in groups]
    for group, place in zip(groups, bundle.protein.tolist(), strict=True):
        assert {rows[row][0] for row in group} == {int(bundle.first[place])}
    assert (np.diff(bundle.protein) >= 0).all(), "the proteins of a range are next to each other"
    passes = [set().union(*(needs(rows[row], strategy) for row in group)) for group in groups]
    assert sum(map(len, passes)) == len(set().union(*passes)), "no pass is in two groups"
    each = bundle.length if strategy == LIKELIHOOD else 1
    least_passes = np.array([len(found) for found in passes]) * each
    assert (bundle.passes >= least_passes).all()
    bounds = bundle.bounds(VARIANTS_WORK, count)
    assert (bounds[0], bounds[-1], len(bounds)) == (0, len(groups), count + 1)
    costs = costs_of(bundle)
    loads = [costs[start:stop].sum() for start, stop in pairwise(bounds.tolist())]
    filled = sum(stop > start for start, stop in pairwise(bounds.tolist()))
    assert filled <= max(1, int((bundle.passes * bundle.length + bundle.rows).sum() / least))
    if filled == count:
        assert max(loads) <= costs.sum() / count + costs.max() * (1 + 1e-9)
    assert [bundle.span(VARIANTS_WORK, Range(k + 1, count)) for k in range(count)] == [
        slice(start, stop) for start, stop in pairwise(bounds.tolist())
    ]


def costs_of(bundle) -> np.ndarray:
    """The cost of each group: its passes times the cost of one, and a residue for each row."""
    return bundle.passes * bundle.length * (7680 + bundle.length) + bundle.rows * 7681


def test_passes_are_counted_where_they_are_known(tmp_path):
    """A scan takes a pass for each position, whatever the number of its rows."""
    protein = "ACDEFGHIKL" * 3
    scan = [(0, f"{old}{at}{new}") for at, old in enumerate(protein, 1) for new in "WYVTS"]
    bundle, groups = split_rows(tmp_path, scan, [protein], MARGINAL, 1)
    assert bundle.passes.tolist() == [1] * 30
    assert [len(group) for group in groups] == [5] * 30
    apart, _ = split_rows(tmp_path, [(0, "A1W:L30W"), (0, "C2W")], [protein], MARGINAL, 1)
    assert apart.passes.tolist() == [3], "the second lies between the mutations of the first"
    joint, _ = split_rows(tmp_path, [(0, "A1W:L30W"), (0, "C2W")], [protein], JOINT, 1)
    assert joint.passes.tolist() == [1, 1]


def test_many_rows_of_the_same_passes_are_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(split, "ROWS_TOGETHER", 4)
    rows = [(0, "A1W")] * 9 + [(0, "C2W")] * 4
    bundle, groups = split_rows(tmp_path, rows, ["ACD"], MARGINAL, 1)
    assert [len(group) for group in groups] == [4, 4, 1, 4]
    assert bundle.passes.tolist() == [1, 1, 1, 1]


def test_places_of_cuts():
    begins = np.array([1, 0, 0, 0, 0, 1, 1, 0], bool)
    assert cut_large(begins, 8).tolist() == [0, 5, 6]
    assert changes(np.array([3, 3, 4, 3])).tolist() == [True, False, True, True]


def test_short_ranges_are_joined(tmp_path):
    """As many ranges as have `least` residues of passes and rows; the others are empty."""
    proteins = ["ACDEF" * 4, "GHIKL" * 4]
    rows = [(p, f"{one[at]}{at + 1}W") for p, one in enumerate(proteins) for at in range(20)]
    bundle, _ = split_rows(tmp_path, rows, proteins, MARGINAL, 210)
    assert (
        np.diff(bundle.bounds(VARIANTS_WORK, 9)).astype(bool).tolist() == [True] * 4 + [False] * 5
    )  # 40 passes of 20 residues, and 40 rows: 840
    half = Work(VARIANTS_WORK.cost, 0.5)
    assert np.count_nonzero(np.diff(bundle.bounds(half, 9))) == len(bundle) == 4


def test_split_says_what_cannot_be_used(tmp_path, inputs, capsys):
    fasta, table = inputs
    assert called("split", "--out", tmp_path / "split", "--variants", table, *fasta) == 0
    assert capsys.readouterr().err.startswith("split: 22 variants, 10 unusable; ")
    rows = rows_of(tmp_path / "split" / "unusable.tsv")
    assert [VARIANTS[int(row["row"])][1] for row in rows] == [
        *("K2*", "K2del", "L2K", "M1_K2insWW", "nonsense", "G1dup", "M1A", "M1A", "M1A", "")
    ]
    assert all(row["reason"] for row in rows)
    records = rows_of(tmp_path / "split" / "status.tsv")
    assert [row["status"] for row in records] == [
        *("ok", "skipped", "ok", "ok", "skipped", "ok", "ok")
    ]
    assert [int(row["first"]) for row in records] == [0, 1, 2, 0, 4, 5, 6]
    spelled = [row["mutant"] for row in rows_of(tmp_path / "split" / "variants.tsv")]
    assert {"K2L", "K2L:T3S", "=", "S3T:F4C"} <= set(spelled)
    assert "p.Lys2Leu" not in spelled
    used = (tmp_path / "split" / "wild_types.fasta").read_text().split()
    assert used[::2] == [">0", ">2", ">5"], "not those without a usable row"


def test_splitting_again_gives_the_same_bytes(tmp_path, inputs):
    fasta, table = inputs
    found = []
    for strategy in (MARGINAL, LIKELIHOOD, MARGINAL):
        options = ("--strategy", strategy, "--out", tmp_path / "split")
        esm_quietly("split", *options, "--variants", table, *fasta)
        found.append({path.name: path.read_bytes() for path in (tmp_path / "split").iterdir()})
    assert sorted(found[0]) == [
        *("digests.sha256", "status.tsv", "unusable.tsv"),
        *("variants.index.npz", "variants.tsv", "wild_types.fasta"),
    ]
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variants", "in.csv", "--out=."], None),
        (["--variants", "variants.tsv", "--out=."], "the result would replace it"),
        (["--variants", "taken.csv", "--out=o"], "has a column 'status', which is"),
        (["--variants", "in.csv", "--least=0", "--out=o"], "'0' is not a number from 1 on"),
        (["--variants", "in.csv", "--out=in.csv"], "not a folder"),
    ],
)
def test_what_split_refuses(tmp_path, inputs, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    shutil.copy("in.csv", "variants.tsv")
    Path("taken.csv").write_text("mutant,protein,status\n")
    try:
        code = main(["split", "--quiet", *arguments, "all.fasta"])
    except SystemExit as ended:
        code = ended.code
    lines = capsys.readouterr().err.splitlines()
    assert (code, len(lines)) == ((0, 0) if message is None else (2, 1))
    assert message is None or message in lines[0]


def read_second_group(folder: Path) -> None:
    bundle = bundle_in(folder)
    bundle.lines(slice(1, 2))
    bundle.wild_types(slice(1, 2))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("variants.index.npz", "variants.index.npz: damaged, its digest is not that in digests"),
        ("variants.tsv", "variants.tsv: damaged at byte"),
        ("wild_types.fasta", "wild_types.fasta: damaged at byte"),
    ],
)
def test_a_damaged_byte_is_seen(tmp_path, name, message):
    bundle, _ = split_rows(tmp_path, [(0, "A1W"), (1, "C1W")], ["ACD", "CDE"], MARGINAL, 1)
    path = tmp_path / "split" / name
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    assert bundle.wild_types(slice(0, 1)) == [(b"0", b"ACD")], "the damage is in the other group"
    with pytest.raises(InputError, match=message):
        read_second_group(tmp_path / "split")


def test_an_index_of_another_kind_is_refused(tmp_path):
    split_rows(tmp_path, [(0, "A1W")], ["ACD"], MARGINAL, 1)
    path = tmp_path / "split" / "variants.index.npz"
    with open(path, "wb") as file:
        np.savez(file, first=np.arange(3), least=3)
    write_digests(path.with_name("digests.sha256"), {path.name: path})
    with pytest.raises(InputError, match=r"not the index of a variant table .*remove the folder"):
        bundle_in(tmp_path / "split")
    path.unlink()
    with pytest.raises(InputError, match=r"variants.index.npz: no such file"):
        bundle_in(tmp_path / "split")
