"""The life of a record through `fold`: the same kinds of record as in `test_life`, every way in.

What differs from `embed` stands here: complexes are folded, and nothing is too long.
"""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import pytest

from esm_pipeline.formats.records import Record, read_records
from tests.test_life import CHANGED, LIVES, SETTINGS, expected, pipe, run, spelled
from tests.workflow.tools import snakemake

SAMPLE = "in"
WAYS = ["fold", "pipe", pytest.param("workflow", marks=pytest.mark.long)]
COMPLEXES = {"complex", "same complex"}


WITHOUT_ATOMS = "left out, without atoms"
APPROXIMATE = "(set TASK.ambiguous to approximate to fold {} as {})"
OTHERWISE = {
    "B": f"{WITHOUT_ATOMS} {APPROXIMATE.format('B', 'D')}",
    "O": "folded as K",
    "U": "folded as C",
    "X": WITHOUT_ATOMS,
    "Z": f"{WITHOUT_ATOMS} {APPROXIMATE.format('Z', 'E')}",
}
"""What becomes of residues that are none of the 20 amino acids."""


def folded(name: str, settings: str, way: str) -> Record:
    """The row of one record."""
    record = expected(name, settings, way)._replace(outcomes={})
    if record.status == "skipped":
        return record.with_outcome("fold", "skipped", record.reason)
    changed = CHANGED.get(name, {}) if settings == "changed" else {}
    sequence = str(changed.get("sequence", LIVES[name].sequence))
    told = [
        f"{letter} at residue {sequence.index(letter) + 1} {what}"
        for letter, what in OTHERWISE.items()
        if letter in sequence
    ]
    return record.with_outcome("fold", "ok", spelled("; ".join(told), "fold", way))


def live(folder: Path, settings: str, way: str) -> tuple[Path, Path]:
    """Send all records one way; where the tables of records and of structures then are."""
    content = b"".join(b">%b\n%b\n" % (life.header, life.lines) for life in LIVES.values())
    fasta = folder / f"{SAMPLE}.fasta"
    fasta.write_bytes(content)
    chosen = SETTINGS[settings]
    if way == "workflow":
        cleaning = ", ".join(f"{name}: {value}" for name, value in chosen.items())
        sections = ["fold={num_recycles: 0}", f"shard={{least: 1, {cleaning}}}", "shards=2"]
        given = [f"fasta={fasta.name}", "tasks=[fold]", *sections]
        done = snakemake(folder, "--cores", "2", "--config", *given)
        assert done.code == 0, done.said
        return (done.results / SAMPLE / name for name in ("records.tsv", "structures.tsv"))
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in chosen.items()]
    flags += ["--model=demo", "--num-recycles=0"]
    with pytest.MonkeyPatch.context() as patch:
        pipe(patch, gzip.compress(content))
        source = fasta if way == "fold" else "-"
        assert run("fold", "--quiet", *flags, source, folder / "out") == 0
    return folder / "out.records.tsv", folder / "out" / "structures.tsv"


@pytest.fixture(scope="module", params=SETTINGS)
def settings(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory, settings: str, way: str) -> tuple[Path, Path]:
    return tuple(live(tmp_path_factory.mktemp(way), settings, way))


def test_what_becomes_of_every_record(tables: tuple[Path, Path], settings: str, way: str) -> None:
    found = dict(zip(LIVES, read_records(tables[0]), strict=True))
    assert found == {name: folded(name, settings, way) for name in LIVES}
    assert {found[name].outcomes["fold"].status for name in COMPLEXES} == {"ok"}


def test_every_record_is_in_the_table_of_structures(
    tables: tuple[Path, Path], settings: str, way: str
) -> None:
    """What is ok has a file of its own, which records with the same sequence share."""
    with open(tables[1], encoding="utf-8", newline="") as handle:
        rows = dict(zip(LIVES, csv.DictReader(handle, delimiter="\t"), strict=True))
    wanted = {name: folded(name, settings, way) for name in LIVES}
    files: dict[str, str] = {}
    for name, row in rows.items():
        record = wanted[name]
        assert (int(row["index"]), row["id"]) == (record.index, record.id)
        assert (row["status"], row["reason"]) == record.outcomes["fold"]
        assert row["length"] == str(record.length or "")
        assert bool(row["file"]) == (row["status"] == "ok")
        if row["file"]:
            assert files.setdefault(record.sha256, row["file"]) == row["file"]
            assert row["chains"] == ("2" if name in COMPLEXES else "1")
            assert "random_weights" in row["flags"].split(";")
            assert (tables[1].parent / row["file"]).is_file()
    assert len(set(files.values())) == len(files) > 10
    there = set((tables[1].parent / "structures").rglob("*.pdb"))
    assert there == {tables[1].parent / file for file in files.values()}
