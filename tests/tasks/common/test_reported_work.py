"""What tasks report as done adds up to what they said there is to do: else no time left is true."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from esm_pipeline.tasks.common import compute
from esm_pipeline.tasks.common.outcomes import count_text
from esm_pipeline.tasks.score import command as score_command

SEQUENCES = {
    "long": "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVG",
    "short": "GAVLIWGAVLIW",
    "tiny": "MKV",
}
FASTA = "".join(f">{name}\n{sequence}\n" for name, sequence in SEQUENCES.items())
SMALL_BATCHES = ("--token-budget", "30")


@pytest.fixture
def reports(monkeypatch):
    """(title, amounts, items, work, rated) of everything that was reported as done."""
    found = []

    @contextmanager
    def recorded(title, amounts, **options):
        done = []

        def advance(items, *, work=None, rated=None):
            done.append((items, items if work is None else work, items if rated is None else rated))

        yield advance
        found.append((title, amounts, *map(sum, zip(*done, strict=True)), len(done)))

    monkeypatch.setattr(compute, "progress", recorded)
    monkeypatch.setattr(score_command, "progress", recorded)
    return found


@pytest.fixture
def fasta(tmp_path):
    path = tmp_path / "in.fasta"
    path.write_text(FASTA)
    return path


def check(reports, title, unit, batches=2):
    ((said, amounts, items, work, rated, count),) = reports
    assert (said, amounts.unit) == (title, unit)
    assert count >= batches
    assert items == amounts.items
    assert work == pytest.approx(amounts.goal, rel=1e-9)
    assert amounts.rated in (None, rated)
    return amounts


@pytest.mark.parametrize("task", ["embed", "fold"])
def test_sequences(esm, rotary, fasta, tmp_path, reports, task):
    model, cost = {
        "embed": (rotary, lambda length: length * (7680 + length)),
        "fold": ("demo", lambda length: length**2 * (1 + length / 640)),
    }[task]
    more = ("--num-recycles", "0") if task == "fold" else ()
    code, _ = esm(task, "--model", model, *SMALL_BATCHES, *more, fasta, tmp_path / "out.h5")
    assert code == 0
    amounts = check(reports, task, "sequences")
    assert (amounts.items, amounts.rated, amounts.rate) == (3, 56, "residues")
    assert amounts.goal == pytest.approx(sum(cost(len(one)) for one in SEQUENCES.values()))


@pytest.mark.parametrize("window", [(), ("--long", "window", "--window", "20")])
@pytest.mark.parametrize("strategy", ["masked_marginal", "wt_marginal"])
def test_saturations(esm, rotary, fasta, tmp_path, reports, strategy, window):
    command = ("score", "--model", rotary, "--strategy", strategy, *window, *SMALL_BATCHES)
    code, _ = esm(*command, "--saturation", fasta, tmp_path / "out.h5")
    assert code == 0
    amounts = check(reports, "score", "forward passes")
    if strategy == "masked_marginal":
        assert amounts.items == 56
    elif not window:
        assert amounts.items == 3


STRATEGIES = ("masked_marginal", "masked_marginal_joint", "wt_marginal", "pseudo_log_likelihood")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_variants_by_two_models(esm, rotary, fasta, tmp_path, reports, strategy):
    table = tmp_path / "variants.csv"
    table.write_text("protein,mutant\nlong,K2A\nlong,K2A:R10W\nshort,A2C\ntiny,M1W\n")
    models = ("--model", rotary, "--label", "one", "--model", rotary, "--label", "two")
    command = ("score", *models, "--strategy", strategy, *SMALL_BATCHES, "--variants", table)
    code, lines = esm(*command, fasta, tmp_path / "out.csv")
    assert code == 0, lines
    check(reports, "score", "forward passes", batches=4)


def test_a_range_names_itself(esm, rotary, fasta, tmp_path, reports):
    assert esm("shard", "--bundles=1", "--least=1", "--out", tmp_path / "b", fasta)[0] == 0
    bundle = tmp_path / "b" / "00000.fasta"
    command = ("embed", "--model", rotary, "--range", "1-of-2", bundle, tmp_path / "1-of-2.h5")
    code, lines = esm(*command)
    assert code == 0
    check(reports, "embed, range 1-of-2", "sequences", batches=1)
    assert lines[0].startswith("embed, range 1-of-2: loading ")
    assert lines[-1].startswith("embed, range 1-of-2: 1 sequence: 1 ok, 0 skipped, 0 failed; 41 ")
    assert lines[-1].endswith(f"; wrote {tmp_path / '1-of-2.h5'}")


def test_a_quiet_command_says_nothing(esm, rotary, fasta, tmp_path):
    assert esm("embed", "--quiet", "--model", rotary, fasta, tmp_path / "out.h5") == (0, [])
    assert esm("fold", "--quiet", "--model", "demo", fasta, tmp_path / "out") == (0, [])
    command = ("score", "--quiet", "--model", rotary, "--saturation", fasta, tmp_path / "out.h5")
    assert esm(*command) == (0, [])


def test_the_end_names_the_files_and_the_commonest_reason(esm, rotary, fasta, tmp_path):
    out, table = tmp_path / "out.h5", tmp_path / "out.records.tsv"
    command = ("embed", "--model", rotary, fasta, out)
    _, lines = esm(*command)
    assert lines[-1].startswith("embed: 3 records: 3 ok, 0 skipped, 0 failed; 56 residues in ")
    assert lines[-1].endswith(f"; wrote {out} and {table}")
    fasta.write_text(f"{FASTA}>gap\nMK-V\n>stop\nMKV*LA\n>other\nMKVL*LA\n")
    _, lines = esm(*command)
    assert lines[-1].startswith("embed: 6 records: 3 ok, 3 skipped, 0 failed; 56 residues in ")
    end = lines[-1].partition("; most often: ")[2]
    assert end.startswith("\"stop '*' at residue 4 inside the sequence; set --internal-stops to ")
    assert end.endswith(f'" (2 records); wrote {out}; see {table}')
    fasta.write_text(">gap\nMK-V\n>stop\nMKV*LA\n>other\nMKVL*LA\n")
    _, lines = esm(*command)
    assert lines[-1].startswith('embed: 3 records skipped, none computed; most often: "stop ')
    assert lines[-1].endswith(f'" (2 records); see {table}')
    fasta.write_text(">gap\nMK-V\n>stop\nMKV*LA\n>none\n\n")
    _, lines = esm(*command)
    assert lines[-1] == f"embed: 3 records skipped, none computed; 3 different reasons; see {table}"
    fasta.write_text(">gap\nMK-V\n")
    _, lines = esm(*command)
    assert lines[-1].startswith('embed: 1 record skipped, none computed; reason: "gap ')


def test_the_end_of_variants_names_their_table_and_its_column(esm, rotary, fasta, tmp_path):
    table, out, proteins = (tmp_path / name for name in ("in.csv", "out.csv", "out.records.tsv"))
    command = ("score", "--model", rotary, "--variants", table, fasta, out)
    where = f"; wrote {out} and {proteins}"
    table.write_text("protein,mutant\nlong,K2A\nlong,K3A\nlong,R4W\nlong,what\n")
    _, lines = esm(*command)
    assert lines[-1].startswith("score: 4 variants: 1 ok, 3 skipped, 0 failed; ")
    assert '; most often: "residue 3 is T, not K' in lines[-1]
    assert lines[-1].endswith(f" (2 variants){where}; see the column 'reason' in {out}")
    table.write_text("protein,mutant\nlong,K3A\nlong,R4W\n")
    _, lines = esm(*command)
    assert lines[-1].startswith('score: 2 variants skipped, none computed; reason: "residue 3 is ')
    assert lines[-1].endswith(f"{where}; see the column 'reason' in {out}")
    table.write_text("protein,mutant\nlong,K2A\n")
    _, lines = esm(*command)
    assert lines[-1].endswith(where)


@pytest.mark.parametrize(
    ("number", "unit", "kind", "text"),
    [
        (1, "records", "", "1 record"),
        (1200, "records of a range", "usable", "1,200 usable records of a range"),
        (1, "sequences", "different", "1 different sequence"),
        (2000, "bytes", "", "2.0 kB"),
    ],
)
def test_amounts(number, unit, kind, text):
    assert count_text(number, unit, kind) == text
