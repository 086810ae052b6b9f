"""The benchmarks' own arithmetic: ratios, floor, file, rounds. No peer runs, no clock counts."""

from __future__ import annotations

import json
import os
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from tests import toy_ways
from tests.benchmarks import __main__ as everything
from tests.benchmarks import bench_engine, costs, machine, plots, proteins
from tests.benchmarks.bench_length import RESIDUES, cut
from tests.benchmarks.bench_model import max_abs
from tests.benchmarks.models import operations, settings
from tests.benchmarks.peers import BASE, RIVALS, WAYS, dtype_of, padded_batches
from tests.benchmarks.plan import FULL, QUICK, Plan
from tests.benchmarks.rounds import interleave, workers
from tests.benchmarks.table import Case, Results, Row, markdown, plain, short

MACHINE = {
    "processor": "a processor",
    "kind": "",
    "instruction sets": ["avx2"],
    "capped by": {},
    "cores": 2,
    "memory": 8.0,
    "load": 0.1,
    "versions": {"torch": "2"},
}


@pytest.fixture
def results():
    rows = [
        Row("transformers float32", [8.0, 4.0, 6.0], operations=600.0, rate=200.0),
        Row("OpenVINO bfloat16", [3.0, 3.0, 3.0]),
        Row("ours bfloat16", [1.0, 2.0, 1.5], ["OpenVINO bfloat16"], 600.0, 400.0, 0.0125),
        Row("ours int8", problem="not here"),
    ]
    logits = Case("logits, ESM-2 8M, 2 proteins, 300 residues", BASE, rows, residues=300)
    larger = Case("logits, ESM-2 35M, 2 proteins, 300 residues", BASE, rows[:3], residues=300)
    memory = [Row(BASE, [5000.0]), Row("ours float32", [1000.0])]
    peak = Case("peak", BASE, memory, "MiB", note="alone")
    curve = {"way": "ours float32", "size": "8M", "points": [[64, [1e-4, 2e-4]], [128, [3e-4]]]}
    return Results(dict(MACHINE), 2, [logits, larger, peak], [curve])


def test_ratios_are_of_medians_and_the_floor_is_operations_over_the_rate(results):
    case = results.cases[0]
    base, peer, ours, _ = case.rows
    assert (base.median, base.spread, base.floor_share) == (6, 4 / 6, 0.5)
    assert (ours.median, ours.floor_share) == (1.5, 1)
    assert peer.floor_share is None
    assert case.ratio(ours, base.way) == 4
    assert case.ratio(ours, peer.way) == 2
    assert case.ratio(ours, "ours int8") is None


def test_the_table_shows_all_of_it_once(results):
    lines = plain(results).splitlines()
    assert sum("of floor" in line for line in lines) == 1
    (own, *_) = [place for place, line in enumerate(lines) if line.startswith("ours bfloat16")]
    told = "ours bfloat16 1.5 s 67% 200 4.00 × transformers float32 100% 1e-02"
    assert lines[own].split() == told.split()
    assert lines[own + 1].split() == ["2.00", "×", "OpenVINO", "bfloat16"]
    assert any(line.split() == ["ours", "int8", "–", "not", "here"] for line in lines)
    assert any(
        line.split() == ["ours", "float32", "1,000", "MiB", "5.00", "×", "transformers", "float32"]
        for line in lines
    )
    assert lines[-1] == "(alone)"


def test_markdown_is_one_table_whose_rows_have_all_cells(results):
    text = markdown(results)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert text.count("---:") == 6
    assert {line.count("|") for line in rows} == {9}
    assert (
        "| ours bfloat16 | 1.5 s | 67% | 200 | 4.00 × | transformers float32 | 100% | 1e-02 |"
        in rows
    )
    assert text.index("\n".join(rows)) > 0, "the rows follow each other"
    assert "**peak** [1]" in text
    assert text.endswith("[1] alone")


def test_the_file_holds_everything_and_what_follows_from_it(results, tmp_path):
    file = tmp_path / "results.json"
    results.write(file)
    assert Results.read(file) == results
    told = json.loads(file.read_text())
    row = told["cases"][0]["rows"][2]
    assert row["values"] == [1.0, 2.0, 1.5]
    assert row["ratios"] == {"transformers float32": 4, "OpenVINO bfloat16": 2}
    assert (row["median"], row["floor_share"]) == (1.5, 1)
    assert "median" not in told["cases"][0]["rows"][3]
    assert told["machine"]["processor"] == "a processor"
    file.write_text("{}")
    with pytest.raises(SystemExit, match="not a file of results"):
        Results.read(file)


def test_a_later_part_joins_an_earlier_run_of_the_same_machine(results, tmp_path):
    file = tmp_path / "results.json"
    results.write(file)
    now = Results({**MACHINE, "load": 3.0}, 2, [])
    assert everything.earlier(file, now) == results
    assert everything.earlier(file, Results(dict(MACHINE), 1, [])).cases == []
    assert everything.earlier(file, Results({**MACHINE, "cores": 4}, 2, [])).cases == []
    anew = Case("peak", BASE, [Row(BASE, [1.0])])
    everything.merge(results, Results(dict(MACHINE), 2, [anew]))
    assert [case.name for case in results.cases].count("peak") == 1
    assert results.cases[-1] == anew
    assert results.curves


@pytest.mark.parametrize("lengths", [[30], [5, 17]])
def test_operations_are_those_that_pytorch_counts(lengths):
    config = transformers.EsmConfig(**settings("8M"), attn_implementation="eager")
    model = transformers.EsmForMaskedLM(config).eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        for length in lengths:
            model(torch.full((1, length + 2), 5))
    rotary = 2 * 8 * sum(n + 2 for n in lengths)  # angles of the peer, as a product
    assert 0 <= counter.get_total_flops() - operations("8M", lengths) <= rotary


def test_the_floors_products_are_products():
    torch.manual_seed(0)
    x, w = torch.randint(0, 100, (8, 64), dtype=torch.int8), torch.randint(-9, 9, (32, 64)).char()
    expected = (x.int() @ w.int().T).float()
    made = [partial(machine.quantized, x, w), partial(machine.packed, x.float(), w.float())]
    for run in chain.from_iterable(map(machine.works, made)):
        assert torch.equal(run().float(), expected)
    assert machine.works(partial(machine.packed, x, w[:, :3])) == []


@pytest.mark.parametrize("dtype", machine.DTYPES)
def test_every_dtype_has_a_rate(dtype):
    assert 1e6 < machine.rate(dtype, 32) < 1e15


def test_the_machine_is_named():
    told = machine.describe()
    assert told["processor"]
    assert told["cores"] >= 1
    assert told["versions"]["torch"] == torch.__version__


def test_the_proteins_are_64_of_natural_lengths():
    found = proteins.proteins()
    lengths = [len(one) for one in found]
    assert (len(set(found)), lengths) == (64, sorted(lengths))
    assert proteins.SHORTEST <= lengths[0] < 100
    assert 900 < lengths[-1] <= proteins.LONGEST
    assert proteins.AMINO_ACIDS.issuperset("".join(found))
    some = proteins.proteins(8)
    assert (len(set(some)), some[0], some[-1]) == (8, found[0], found[-1])
    assert len(proteins.proteins(1)) == 1


def test_records_are_different_slices_as_long_as_the_proteins():
    found = proteins.records(130)
    assert len(set(found)) == 130
    assert [len(one) for one in found[:128]] == [len(one) for one in proteins.proteins()] * 2
    assert all(one in proteins.text() for one in found)
    assert found == proteins.records(130)
    for length in Plan.lengths:
        parts = cut(length)
        assert {len(one) for one in parts} == {length}
        assert length * len(parts) == RESIDUES
        assert len(set(parts)) == len(parts)


def test_plans_name_what_there_is():
    assert Plan(threads=1).ways == tuple(WAYS)
    for sizes in (QUICK, FULL):
        assert Plan(threads=1, **sizes).rounds >= 1
    assert set(RIVALS) <= set(WAYS) >= {other for others in RIVALS.values() for other in others}
    assert {dtype_of(way) for way in WAYS} == set(machine.DTYPES)
    for own, others in RIVALS.items():
        assert all(dtype_of(own) == dtype_of(one) or one.startswith("ours") for one in others)


def test_the_short_table_has_a_column_for_each_size(results):
    lines = short(results).splitlines()
    assert lines[0] == "| residues/s | 8M | 35M |"
    assert lines[2] == "| transformers float32 | 50 (1.0 ×) | 50 (1.0 ×) |"
    assert lines[4] == "| ours bfloat16 | 200 (4.0 ×) | 200 (4.0 ×) |"
    assert not any("int8" in line for line in lines), "it was not measured"


def test_the_documented_table_is_what_was_measured():
    root = Path(__file__).parents[1]
    folder = root / "tests" / "benchmarks"
    measured = Results.read(folder / "results.json")
    assert markdown(measured) in (folder / "README.md").read_text()
    assert short(measured) in (root / "workflow/docs/speed.md").read_text()
    drawn = {f"{name}.svg" for name in plots.figures(measured)}
    assert drawn == {path.name for path in folder.glob("*.svg")}


def test_padded_batches_hold_all_sequences_within_their_budget():
    sequences = ["M" * length for length in (5, 90, 7, 60, 8, 30, 6)]
    batches = list(padded_batches(sequences, 64))
    assert [chosen for chosen, _ in batches] == [[1], [3], [5, 4], [2, 6, 0]]
    shapes = [tuple(told.input_ids.shape) for _, told in batches]
    assert shapes == [(1, 92), (1, 62), (2, 32), (3, 9)]  # the first is over, but alone


def test_max_abs_is_the_largest_of_all_sequences():
    one = {0: np.zeros((2, 3)), 1: np.zeros((1, 3))}
    other = {0: np.full((2, 3), -0.5), 1: np.array([[0, 2.0, 0]])}
    assert max_abs(one, other) == 2
    with pytest.raises(AssertionError):
        max_abs(one, {0: one[0]})


def test_ways_take_turns_and_one_that_fails_costs_itself_alone():
    names = ("adder", "speller", "threads", "missing", "dying", "dying_later")
    before = os.environ.get("OMP_NUM_THREADS")
    with workers({name: getattr(toy_ways, name) for name in names}, 3) as ready:
        assert os.environ["OMP_NUM_THREADS"] == "3"
        able = {name: one for name, one in ready.items() if not one.problem}
        first = {name: worker.prepare([1, 2]) for name, worker in able.items()}
        found = interleave(ready, 2)
    assert os.environ.get("OMP_NUM_THREADS") == before
    assert first == {"adder": 3, "speller": ["1", "2"], "threads": 3, "dying_later": 1}
    assert [figure for _, figure in found["adder"]] == [3, 3]
    assert [figure for _, figure in found["speller"]] == [None, None]
    assert all(0 < seconds < 60 for seconds, _ in found["adder"] + found["speller"])
    assert found["missing"] == found["dying"] == found["dying_later"] == []
    assert ready["missing"].problem == "no such peer"
    for name in ("dying", "dying_later"):
        assert ready[name].problem == "its process ended with exit code 9"
    assert not any(worker.process.is_alive() for worker in ready.values())


def test_pictures_are_drawn_of_what_there_is(results, tmp_path):
    assert plots.by_length(results) == {"ours float32": [(64, [1e-4, 2e-4]), (128, [3e-4])]}
    sizes = plots.by_size(results)
    assert sizes["ours bfloat16"][0] == (plots.PARAMETERS["8M"], [1 / 300, 2 / 300, 1.5 / 300])
    assert len(sizes["ours bfloat16"]) == 2
    assert "ours int8" not in sizes
    assert set(plots.figures(results)) == {"cost_length", "cost_size"}
    small = Row("OpenVINO, small, bfloat16", [1.0])
    results.cases[0].rows.append(small)
    shown = plots.by_size(results)["OpenVINO bfloat16"]
    assert shown == [(plots.PARAMETERS["8M"], [1 / 300]), (plots.PARAMETERS["35M"], [3 / 300] * 3)]
    assert set(plots.figures(results)) == {"cost_length", "cost_size"}
    results.curves, results.cases = [], results.cases[:1]
    assert plots.figures(results) == {}


def test_the_power_of_growth_is_found():
    sizes = [1e5, 1e6, 1e7]
    assert costs.exponent(sizes, [3 * size**1.5 for size in sizes]) == pytest.approx(1.5)
    assert costs.exponent(sizes, [7.0] * 3) == pytest.approx(0, abs=1e-9)


def test_the_engine_runs_all_jobs_of_its_workflow():
    cost = bench_engine.measure(4, ["--cores", "1"], 4)
    assert cost.files >= 2, "a log, a benchmark, or what Snakemake notes of it"
    assert 0.3 < cost.dry.cpu < 60
    assert 20e6 < cost.start.memory < 1e9
