"""`score --saturation`: a row for every record, a value for every substitution, and pictures."""

from __future__ import annotations

import hashlib
import json
import re

import h5py
import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from esm_pipeline import open_results
from esm_pipeline.errors import InputError
from esm_pipeline.formats.records import read_records
from esm_pipeline.model import EsmForMaskedLM
from esm_pipeline.tasks.score import saturation, strategies
from esm_pipeline.tasks.score.heatmaps import ORDER
from tests.allocator import Allocator, tokens

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
FASTA = """\
>a first
MKTAYIAKQRQISFVKSHFSRQ
>b
GAVLIW
>stop
MK*V
>c again
MKTAYIAKQRQISFVKSHFSRQ
>chains
MKV:GAV
>x/../y
MXU
"""
SEQUENCES = {"a": "MKTAYIAKQRQISFVKSHFSRQ", "b": "GAVLIW", "x/../y": "MXU"}
SEQUENCES["c"] = SEQUENCES["a"]


@pytest.fixture
def fasta(tmp_path):
    path = tmp_path / "in.fasta"
    path.write_text(FASTA)
    return path


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_file(esm, rotary, fasta, tmp_path):
    code, lines = esm("score", "--model", rotary, "--saturation", fasta, tmp_path / "out.h5")
    assert code == 0
    assert lines[-1].startswith(
        "score: 6 records: 4 ok, 2 skipped, 0 failed; 31 residues, 31 passes, "
    )
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["id"].asstr()[...].tolist() == ["a", "b", "c", "x/../y"]
        assert file["index"][...].tolist() == [0, 1, 3, 5]
        assert file["row"][...].tolist() == [0, 1, 0, 2]
        assert file["offset"][...].tolist() == [0, 22, 28, 31]
        assert file["log_odds"].shape == (31, 20)
        assert file["log_odds"].dtype == np.float32
        assert bytes(file["wild_type"][22:28].tobytes()) == b"GAVLIW"
        attributes = dict(file.attrs)
    models = json.loads(attributes.pop("models"))
    assert list(models) == [re.sub(r"[^A-Za-z0-9._-]", "_", rotary.name)]
    assert next(iter(models.values())) == {
        "model": rotary.name,
        "revision": "",
        "weights_sha256": digest(rotary / "model.safetensors"),
        "dtype": "float32",
    }
    assert set(json.loads(attributes.pop("software"))) == {
        "esm_pipeline",
        "torch",
        "h5py",
        "python",
    }
    assert attributes == {
        "format": "esm-pipeline/saturation",
        "format_version": 1,
        "alphabet": AMINO_ACIDS,
        "dtype": "float32",
        "strategy": "masked_marginal",
        "long": "auto",
        "window": "1024",
    }
    outcomes = {one.id: one.outcomes["score"] for one in read_records(tmp_path / "out.records.tsv")}
    assert {name for name, outcome in outcomes.items() if outcome.status == "ok"} == set(SEQUENCES)
    assert outcomes["chains"].reason == "a complex of several chains; split it at ':'"


def test_reading_it(esm, rotary, fasta, tmp_path):
    esm("score", "--model", rotary, "--saturation", fasta, tmp_path / "out.h5")
    with open_results(tmp_path / "out.h5") as results:
        assert (len(results), results.alphabet) == (4, AMINO_ACIDS)
        assert results.strategy == "masked_marginal"
        item = results["x/../y"]
        assert repr(item) == "SaturatedProtein(id='x/../y', index=5, length=3)"
        assert (item.sequence, item.log_odds.shape, item.by_model) == ("MXU", (3, 20), {})
        assert np.array_equal(results[3].log_odds, results["a"].log_odds)
        assert not np.array_equal(results["b"].log_odds, results["a"].log_odds[:6])
        table = results.to_pandas()
        assert list(table) == ["id", "index", "position", "mutant", "masked_marginal"]
        assert len(table) == 19 * (22 + 6 + 22) + 19 + 20 + 20, "X and U have 20 others"
        row = table[(table["index"] == 1) & (table["mutant"] == "V3Y")].iloc[0]
        assert (row["id"], row["position"]) == ("b", 3)
        assert row["masked_marginal"] == results["b"].log_odds[2, 19]
        with pytest.raises(InputError, match="no record with id 'stop'"):
            results["stop"]
    with pytest.raises(InputError, match="results are closed"):
        _ = item.log_odds


def test_as_a_table(esm, rotary, fasta, tmp_path):
    for name in ("out.h5", "out.tsv", "out.parquet", "out.csv"):
        assert esm("score", "--model", rotary, "--saturation", fasta, tmp_path / name)[0] == 0
    with open_results(tmp_path / "out.h5") as results:
        expected = results.to_pandas()
    exact = pd.read_parquet(tmp_path / "out.parquet")
    assert exact.astype(expected.dtypes.to_dict()).equals(expected)
    for frame in (pd.read_csv(tmp_path / "out.csv"), pd.read_csv(tmp_path / "out.tsv", sep="\t")):
        assert list(frame) == list(expected)
        assert np.abs(frame["masked_marginal"] - expected["masked_marginal"]).max() <= 1e-6
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    # it is a table of variants itself
    rows, out = tmp_path / "out.tsv", tmp_path / "again.parquet"
    plain = pd.read_csv(rows, sep="\t").query("index == 1").drop(columns=["masked_marginal"])
    plain.to_csv(rows, sep="\t", index=False)
    arguments = ("--protein-col", "id", "--variants", rows, fasta, out)
    assert esm("score", "--model", rotary, *arguments)[0] == 0
    again = pd.read_parquet(out)["masked_marginal"]
    wanted = expected[expected["index"] == 1]["masked_marginal"]
    assert np.abs(again.to_numpy() - wanted.to_numpy()).max() <= 1e-5


def test_ensembles_have_the_mean_and_each(esm, rotary, absolute, fasta, tmp_path):
    models = ("--model", rotary, "--label", "r", "--model", absolute, "--label", "a")
    esm("score", *models, "--saturation", fasta, tmp_path / "both.h5")
    alone = {}
    for name, folder in (("r", rotary), ("a", absolute)):
        esm("score", "--model", folder, "--saturation", fasta, tmp_path / f"{name}.h5")
        with open_results(tmp_path / f"{name}.h5") as results:
            alone[name] = results["a"].log_odds
    with open_results(tmp_path / "both.h5") as results:
        assert sorted(results.labels) == ["a", "r"]
        item = results["a"]
        for name, values in alone.items():
            assert np.abs(item.by_model[name] - values).max() <= 1e-6
        assert np.abs(item.log_odds - (alone["r"] + alone["a"]) / 2).max() <= 1e-6
        assert np.abs(alone["r"] - alone["a"]).max() > 0.1
        names = ["masked_marginal", "masked_marginal.a", "masked_marginal.r"]
        assert list(results.to_pandas())[-3:] == names


@pytest.mark.parametrize("budget", [1, 60, 10_000])
@pytest.mark.parametrize("places", [1, 10, 1 << 14])
def test_any_budget_and_block_give_the_same(
    esm, rotary, fasta, tmp_path, monkeypatch, budget, places
):
    esm("score", "--model", rotary, "--saturation", fasta, tmp_path / "a.h5")
    monkeypatch.setattr(strategies, "POSITIONS_PLANNED", places)
    options = ("--token-budget", budget, "--saturation", fasta, tmp_path / "b.h5")
    esm("score", "--model", rotary, *options)
    with open_results(tmp_path / "a.h5") as one, open_results(tmp_path / "b.h5") as other:
        assert np.abs(one["a"].log_odds - other["a"].log_odds).max() <= 1e-5
        assert one.to_pandas()["mutant"].equals(other.to_pandas()["mutant"])


def test_two_runs_give_the_same_bytes(esm, rotary, fasta, tmp_path):
    for name in ("one", "two"):
        arguments = ("--sha256", tmp_path / f"{name}.sha256", "--saturation", fasta)
        esm("score", "--model", rotary, *arguments, tmp_path / f"{name}.h5")
    assert digest(tmp_path / "one.h5") == digest(tmp_path / "two.h5")
    assert (tmp_path / "one.sha256").read_text().split()[0] == digest(tmp_path / "one.h5")


@pytest.mark.parametrize("models", [1, 2])
def test_what_fails_is_left_out(esm, rotary, absolute, fasta, tmp_path, monkeypatch, models):
    memory = Allocator(1000)
    memory.limit(monkeypatch, EsmForMaskedLM, "packed_logits", tokens({24: 1001}))
    options = [f"--model={folder}" for folder in (rotary, absolute)[:models]]
    code, lines = esm("score", *options, "--saturation", fasta, tmp_path / "out.h5")
    assert code == 1
    assert "2 ok, 2 skipped, 2 failed" in lines[-1]
    with open_results(tmp_path / "out.h5") as results:
        assert results.ids == ["b", "x/../y"]
        assert results["b"].sequence == "GAVLIW"
        assert np.abs(results["b"].log_odds).max() > 0.1
    outcomes = {one.id: one.outcomes["score"] for one in read_records(tmp_path / "out.records.tsv")}
    assert outcomes["c"].reason.startswith("22 residues do not fit into memory, even alone")


def test_longer_than_the_table(esm, absolute, tmp_path):
    fasta = tmp_path / "long.fasta"
    fasta.write_text(">just\n" + "MNPQRSTVWY" * 3 + "\n>long\n" + "MNPQRSTVWY" * 3 + "A\n")
    lengths = {}
    for policy in ("auto", "truncate", "window"):
        options = ("--long", policy, "--saturation", fasta, tmp_path / f"{policy}.h5")
        assert esm("score", "--model", absolute, *options)[0] == 0
        with open_results(tmp_path / f"{policy}.h5") as results:
            lengths[policy] = {item.id: item.length for item in results}
            assert all(len(item.log_odds) == item.length for item in results)
        reasons = [
            r.outcomes["score"].reason for r in read_records(tmp_path / f"{policy}.records.tsv")
        ]
        assert reasons[0] == ""
        assert bool(reasons[1])
    both = {"just": 30, "long": 31}
    assert lengths == {"auto": {"just": 30}, "truncate": dict.fromkeys(both, 30), "window": both}


def test_an_empty_fasta(esm, rotary, tmp_path):
    empty = tmp_path / "empty.fasta"
    empty.write_text("")
    arguments = ("--allow-empty", "--saturation", empty)
    for name in ("out.h5", "out.csv"):
        assert esm("score", "--model", rotary, *arguments, tmp_path / name)[0] == 0
    with open_results(tmp_path / "out.h5") as results:
        assert len(results) == 0
        assert list(results.to_pandas()) == results.names
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 1


def test_likelihoods_are_refused(esm, rotary, fasta, tmp_path):
    options = ("--strategy", "pseudo_log_likelihood", "--saturation", fasta, tmp_path / "out.h5")
    code, lines = esm("score", "--model", rotary, *options)
    assert (code, len(lines)) == (2, 1)
    assert "a saturation by pseudo_log_likelihood takes 19 L² passes; set it to" in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["in.fasta"]


@pytest.fixture
def pictures(esm, rotary, fasta, tmp_path, monkeypatch):
    """The values and the pictures of the shared records."""
    options = ("--plots", tmp_path / "plots", "--saturation", fasta, tmp_path / "out.h5")
    assert esm("score", "--model", rotary, *options)[0] == 0
    return sorted((tmp_path / "plots").iterdir())


def test_a_picture_for_each_record(pictures, esm, tmp_path):
    names = ["000000_a.png", "000001_b.png", "000003_c.png", "000005_x_.._y.png"]
    assert [path.name for path in pictures] == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    before = {path.name: digest(path) for path in pictures}
    code, lines = esm("heatmaps", "--id", "a", "--id", "b", tmp_path / "out.h5", tmp_path / "two")
    assert (code, lines) == (0, [f"heatmaps: 2 pictures in {tmp_path / 'two'}"])
    again = {path.name: digest(path) for path in (tmp_path / "two").iterdir()}
    assert again == {name: before[name] for name in names[:2]}
    code, lines = esm("heatmaps", "--id", "z", tmp_path / "out.h5", tmp_path / "two")
    assert (code, len(lines)) == (2, 1)
    assert "no record with id 'z'; check the id" in lines[0]


def test_pictures_show_the_values(pictures, tmp_path):
    """The colours in the middle of the cells are the scores, and dots mark the wild type."""
    picture = matplotlib.image.imread(pictures[1])[..., :3]
    with open_results(tmp_path / "out.h5") as results:
        values = results["b"].log_odds[:, [AMINO_ACIDS.index(letter) for letter in ORDER]].T
    limit = np.percentile(np.abs(values), 99)
    wanted = matplotlib.colormaps["RdBu"]((np.clip(values / limit, -1, 1) + 1) / 2)[..., :3]
    left, top, size = first_cell(picture)
    for row, column in np.ndindex(values.shape):
        x, y = (int(edge + (place + 0.5) * size) for edge, place in ((left, column), (top, row)))
        if ORDER[row] == "GAVLIW"[column]:
            assert picture[y - 2 : y + 3, x - 2 : x + 3].min() < 0.2, "a black dot"
        else:
            assert np.abs(picture[y, x] - wanted[row, column]).max() < 0.02


def first_cell(picture):
    """Left, top and width of the cells of a picture of one panel of 6 residues."""
    coloured = (np.ptp(picture, axis=2) > 0.02)[:, : picture.shape[1] // 2]
    columns, rows = np.flatnonzero(coloured.sum(0) > 40), np.flatnonzero(coloured.any(1))
    height = (rows[-1] + 1 - rows[0]) / 20
    return columns[0], rows[0], height


def test_long_proteins_are_wrapped_into_pages(esm, rotary, tmp_path):
    fasta = tmp_path / "in.fasta"
    fasta.write_text(">" + "../" * 40 + "$x^\n" + "MNPQRSTVWY" * 105 + "\n")
    options = ("--strategy", "wt_marginal", "--plots", tmp_path / "p", "--saturation", fasta)
    esm("score", "--model", rotary, *options, tmp_path / "out.h5")
    pages = sorted((tmp_path / "p").iterdir())
    assert len(pages) == 2
    assert max(len(page.name) for page in pages) < 80
    sizes = [matplotlib.image.imread(page).shape for page in pages]
    assert max(height for height, *_ in sizes) < 4000
    assert min(height for height, *_ in sizes) < 600, "50 residues are left for the last"


def test_other_files_are_no_saturation(esm, rotary, fasta, tmp_path):
    esm("embed", "--model", rotary, fasta, tmp_path / "embeddings.h5")
    code, lines = esm("heatmaps", tmp_path / "embeddings.h5", tmp_path / "p")
    assert (code, len(lines)) == (2, 1)
    assert "holds 'esm-pipeline/embeddings'; give the path of saturation.h5" in lines[0]
    assert saturation.Saturations.format == "esm-pipeline/saturation"
