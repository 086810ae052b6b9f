"""Memory grows by some bytes for each row of a table, and not with the size of a saturation."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.benchmarks.bench_variants import make_up_scores
from tests.tasks.embed.test_memory import peak_of
from tests.tasks.score.ranging import called

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no peak of memory in /proc"),
]

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
FEW, MANY = 20_000, 220_000
BYTES = {"masked_marginal": 120, "masked_marginal_joint": 130, "wt_marginal": 150}
"""Most bytes of memory for each row, where rows have one or two mutations."""


def write_table(folder: Path, rows: int) -> None:
    letters = random.Random(0)
    sequence = "".join(letters.choices(LETTERS, k=100))
    (folder / "wt.fasta").write_text(f">a\n{sequence}\n")
    with open(folder / "in.csv", "w") as handle:
        handle.write("mutant,score,note\n")
        for row in range(rows):
            places = sorted(letters.sample(range(100), 1 + row % 2))
            text = ":".join(f"{sequence[at]}{at + 1}{letters.choice(LETTERS)}" for at in places)
            handle.write(f"{text},{row / 7},a note that is carried along\n")


@pytest.mark.parametrize("strategy", BYTES)
def test_bytes_a_row(rotary, tmp_path, strategy):
    peaks = []
    for rows in (FEW, MANY):
        write_table(tmp_path, rows)
        arguments = ("--variants", tmp_path / "in.csv", tmp_path / "wt.fasta", tmp_path / "out.csv")
        options = ("--quiet", "--model", rotary, "--strategy", strategy)
        peaks.append(peak_of("score", *options, *arguments))
    growth = (peaks[1] - peaks[0]) * 2**20 / (MANY - FEW)
    print(f"{strategy}: {growth:.0f} bytes a row")
    assert growth < BYTES[strategy]


def test_split_and_join(tmp_path):
    """`join` holds the scores of one range at a time, and nothing for each row."""
    peaks: dict[str, list[float]] = {"split": [], "join": []}
    for rows in (FEW, MANY):
        folder = tmp_path / str(rows)
        folder.mkdir()
        write_table(folder, rows)
        options = ("--quiet", "--variants", folder / "in.csv")
        out = ("--strategy=masked_marginal_joint", "--out", folder / "split", folder / "wt.fasta")
        peaks["split"].append(peak_of("split", *options, *out))
        make_up_scores(folder, rows // FEW)
        inputs = ("--split", folder / "split", "--scores", folder / "scores")
        files = {"out": "out.tsv", "status": "status.tsv", "provenance": "p.json", "counts": "c"}
        targets = [f"--{name}={folder / file}" for name, file in files.items()]
        ranges = ("--count", rows // FEW)
        peaks["join"].append(peak_of("join", *options, *inputs, *ranges, *targets))
    growth = {name: (high - low) * 2**20 / (MANY - FEW) for name, (low, high) in peaks.items()}
    print(f"{growth} bytes a row")
    assert growth["split"] < 90
    assert growth["join"] < 30


def test_bytes_a_row_of_a_range(rotary, tmp_path):
    peaks = []
    for rows in (FEW, MANY):
        folder = tmp_path / str(rows)
        folder.mkdir()
        write_table(folder, rows)
        out = ("--quiet", "--out", folder / "split", folder / "wt.fasta")
        assert called("split", "--variants", folder / "in.csv", *out) == 0
        files = [folder / "split" / name for name in ("variants.tsv", "wild_types.fasta")]
        options = ("--quiet", "--range=1-of-1", "--model", rotary, "--variants")
        peaks.append(peak_of("score", *options, *files, folder / "out.h5"))
    growth = (peaks[1] - peaks[0]) * 2**20 / (MANY - FEW)
    print(f"score --range: {growth:.0f} bytes a row")
    assert growth < 160


def test_saturation_is_flat(rotary, tmp_path):
    letters = random.Random(0)
    peaks = []
    for count in (300, 3_000):
        with open(tmp_path / "wt.fasta", "w") as handle:
            for number in range(count):
                handle.write(f">{number}\n{''.join(letters.choices(LETTERS, k=300))}\n")
        options = ("--quiet", "--model", rotary, "--strategy", "wt_marginal", "--saturation")
        peaks.append(peak_of("score", *options, tmp_path / "wt.fasta", tmp_path / "out.h5"))
    size = (tmp_path / "out.h5").stat().st_size / 2**20
    print(f"saturation: {peaks} MB, file {size:.0f} MB")
    assert size > 60, "the result must outgrow what is allowed here"
    assert peaks[1] - peaks[0] < 24
