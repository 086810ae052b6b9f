"""`fold`: every sequence as the model folds it alone, every record reported, whatever memory."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

from esm_pipeline.errors import WeightsError
from esm_pipeline.formats.records import read_records
from esm_pipeline.formats.results.structures import Structures
from esm_pipeline.model import EsmForProteinFolding
from esm_pipeline.model.folding.demo import demo_checkpoint, write_demo
from esm_pipeline.settings.sections import FoldSettings
from esm_pipeline.structure import residues
from esm_pipeline.structure.quality import STORED_FLAGS
from esm_pipeline.tasks.fold import predictor
from esm_pipeline.tasks.fold.batches import FoldMode
from tests.allocator import Allocator

FASTA = """\
>a first
MKTAYIAKQRQISFVKSHFSRQLEERLGLIE
>b
GAVLIW
>stop
MK*V
>c again
MKTAYIAKQRQISFVKSHFSRQLEERLGLIE
>d
ACDEFGHIKLMNPQRSTVWYBUZOX
>complex
MKVLAT:GAVLIW:MKVLAT
>nothing
XXBX
>e
W
>f
MKTAYIAKQRQISFVKSHFSRQLEERLGL
"""
OK = ["a", "b", "c", "d", "complex", "e", "f"]
FAST = ("--num-recycles", "1")


@pytest.fixture(scope="session")
def checkpoint():
    """The demo model, in a folder."""
    return demo_checkpoint(EsmForProteinFolding).folder


@pytest.fixture
def fasta(tmp_path):
    path = tmp_path / "in.fasta"
    path.write_text(FASTA)
    return path


@pytest.fixture
def fold(esm, checkpoint, fasta, tmp_path):
    """Fold the file above into `out`; gives the folder and what was said."""

    def run(*flags: object, model: object = checkpoint, out="out", code: int = 0):
        given = ("--model", model, *FAST, *flags, fasta, tmp_path / out)
        found, said = esm("fold", *given)
        assert found == code, said
        return tmp_path / out, said

    return run


def sequences():
    records = [record.split("\n", 1) for record in FASTA[1:].split("\n>")]
    return {header.split()[0]: body.replace("\n", "") for header, body in records}


def outcomes(path):
    return {one.id: one.outcomes["fold"] for one in read_records(path)}


def table(path):
    with open(path, newline="") as handle:
        return {row["id"]: row for row in csv.DictReader(handle, delimiter="\t")}


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def alone(checkpoint):
    """What `infer` gives for each sequence by itself, at full precision."""
    model = EsmForProteinFolding.from_pretrained(checkpoint).eval()
    return {
        name: model.infer([residues.folded_sequence(text)], num_recycles=1)
        for name, text in sequences().items()
        if name in OK
    }


def assert_as_alone(path, alone):
    with Structures.open(path) as arrays:
        ids = arrays.file["id"].asstr()[...].tolist()
        assert ids == OK
        for name, row in zip(ids, arrays.row.tolist(), strict=True):
            found, wanted = arrays.structure(row), alone[name]
            letters = sequences()[name].replace(":", "")
            folded = residues.encode(residues.folded_sequence(letters))
            np.testing.assert_array_equal(found.aatype, folded)
            assert found.letters == ("" if residues.decode(folded) == letters else letters)
            chains = [len(chain) for chain in sequences()[name].split(":")]
            assert found.chains.tolist() == np.repeat(range(len(chains)), chains).tolist()
            there = residues.ATOM14_MASK[found.aatype]
            assert 0 < there.sum() < there.size or letters == "W"  # which fills all places
            gaps = (found.positions - wanted.positions[-1, 0].numpy())[there]
            assert np.abs(gaps).max() <= 1e-4  # Å
            places = residues.ATOM14_TO_ATOM37[found.aatype]
            by_atom = np.take_along_axis(wanted.plddt[0].numpy(), places, axis=1)
            assert np.abs((found.plddt - by_atom)[there]).max() <= 1e-3
            assert found.mean_plddt == pytest.approx(float(wanted.mean_plddt), abs=1e-3)
            assert found.ptm == pytest.approx(float(wanted.ptm), abs=1e-5)
            if len(chains) > 1:
                assert found.iptm == pytest.approx(float(wanted.iptm), abs=1e-5)
            else:
                assert found.iptm is None
            error = wanted.predicted_aligned_error[0].numpy()
            assert np.abs(found.pae * 0.125 - error).max() <= 0.0626
            assert np.ptp(error) > 0.05 or len(letters) == 1


@pytest.mark.parametrize("budget", [1, 60, 1024])
def test_every_structure_is_as_the_model_folds_it_alone(fold, alone, budget):
    out, _ = fold("--token-budget", budget, out="out.h5")
    assert_as_alone(out, alone)


def test_padding_that_is_taken_along_would_show(fold, alone, monkeypatch):
    """The twin: the residues of a batch are those of its longest sequence."""
    right = predictor.structures_of

    def with_padding(output):
        for mask in ("attention_mask", "atom37_atom_exists"):
            output[mask] = torch.ones_like(output[mask])
        return right(output)

    monkeypatch.setattr(predictor, "structures_of", with_padding)
    with pytest.raises((AssertionError, ValueError)):
        assert_as_alone(fold("--token-budget", 1024, out="out.h5")[0], alone)


def test_every_record_is_reported(fold):
    out, said = fold()
    found = outcomes(out.with_name("out.records.tsv"))
    assert list(found) == list(sequences())
    assert {name for name, (status, _) in found.items() if status == "ok"} == set(OK)
    assert found["nothing"].reason == "none of the 20 amino acids in it: no atom to place"
    assert "'*'" in found["stop"].reason
    rows = table(out / "structures.tsv")
    assert {name: (row["status"], row["reason"]) for name, row in rows.items()} == found
    assert "9 records: 7 ok, 2 skipped, 0 failed; 110 residues in" in said[-1]
    assert "; random weights: the structures are meaningless; " in said[-1]
    assert (rows["complex"]["chains"], rows["complex"]["length"]) == ("3", "18")
    assert rows["c"]["file"] == rows["a"]["file"] == "structures/00000/0_a.pdb"
    assert all("random_weights" in row["flags"] for row in rows.values() if row["file"])
    assert sorted(os.listdir(out)) == [
        *("chain_pairs.tsv", "flags.tsv", "pae", "structures", "structures.h5"),
        *("structures.parquet", "structures.sha256", "structures.tsv"),
    ]


def test_quiet_says_nothing(fold):
    assert fold("--quiet")[1] == []


def test_the_same_run_gives_the_same_bytes(fold):
    found = []
    for name in ("one", "other"):
        out, _ = fold("--formats=pdb,cif", "--pae=json,npz", "--archive=true", out=name)
        paths = sorted(path for path in out.rglob("*") if path.is_file())
        found.append({path.relative_to(out): digest(path) for path in paths})
    assert found[0] == found[1]
    assert len(found[0]) == 10


def test_chunks_change_nothing_that_counts(fold, alone):
    out, _ = fold("--chunk-size=4", out="out.h5")
    assert_as_alone(out, alone)
    with h5py.File(out) as file:
        assert set(file["chunk_size"][...]) == {4}


def test_more_recycles_are_another_result(fold, checkpoint):
    one, other = fold(out="a.h5")[0], fold("--num-recycles=3", out="b.h5")[0]
    with h5py.File(one) as few, h5py.File(other) as many:
        assert (few.attrs["num_recycles"], many.attrs["num_recycles"]) == ("1", "3")
        assert np.abs(few["positions"][...] - many["positions"][...]).max() > 0.01


def test_the_file_says_how_it_was_made(fold, checkpoint):
    out, _ = fold("--dtype=bfloat16", out="out.h5")
    with h5py.File(out) as file:
        attributes = dict(file.attrs)
    assert attributes["format"] == "esm-pipeline/structures"
    assert attributes["model"] == checkpoint.name
    assert attributes["weights_sha256"] == digest(checkpoint / "model.safetensors")
    assert (attributes["dtype"], attributes["num_recycles"], attributes["random_weights"]) == (
        "bfloat16",
        "1",
        "true",
    )
    assert json.loads(attributes["flags"]) == [*STORED_FLAGS]
    assert {"esm_pipeline", "torch"} <= json.loads(attributes["software"]).keys()


def test_digests_vouch_for_the_outputs(fold, tmp_path):
    fold("--sha256", tmp_path / "out.sha256", out="out.h5")
    lines = (tmp_path / "out.sha256").read_text().splitlines()
    names = ("out.h5", "out.records.tsv")
    assert lines == [f"{digest(tmp_path / name)}  {name}" for name in names]


class Limited:
    """A predictor whose memory holds `room` pairs of residues, more in smaller chunks."""

    def __init__(self, monkeypatch, room, error=None):
        self.tried = []

        def size(this, texts, mode):
            longest = max(len(text.replace(":", "")) for text in texts)
            self.tried.append((len(texts), longest, mode.chunk_size))
            return len(texts) * longest**2 * (mode.chunk_size or 256)

        Allocator(room, error).limit(monkeypatch, predictor.Predictor, "__call__", size)


def test_out_of_memory_costs_time_and_no_record(fold, alone, monkeypatch):
    """A batch in parts, and the longest in smaller chunks."""
    limited = Limited(monkeypatch, room=31**2 * 64)
    out, said = fold(out="out.h5")
    assert_as_alone(out, alone)
    assert "7 ok, 2 skipped, 0 failed" in said[-1]
    assert {size for _, longest, size in limited.tried if longest == 31} == {None, 128, 64}
    with h5py.File(out) as file:
        assert file["chunk_size"][0] == 64
        assert 0 in file["chunk_size"]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory: 9 bytes")])
def test_what_does_not_fit_at_all_has_failed(fold, monkeypatch, error):
    Limited(monkeypatch, room=20**2 * 16, error=error)
    out, said = fold(code=1)
    found = outcomes(out.with_name("out.records.tsv"))
    failed = {name for name, (status, _) in found.items() if status == "failed"}
    assert failed == {"a", "c", "d", "f"}
    assert found["a"].reason == (
        "31 residues do not fit into memory, even alone and 16 rows at a time; use a machine with "
        "more, or set --max-residues"
    )
    assert said[-1].endswith("see " + str(out.with_name("out.records.tsv")))
    rows = table(out / "structures.tsv")
    assert {name for name, row in rows.items() if row["file"]} == set(OK) - failed
    assert {name: row["status"] for name, row in rows.items()} == {
        name: outcome.status for name, outcome in found.items()
    }
    kept, _ = fold("--on-failure=keep", out="kept")
    assert table(kept / "structures.tsv") == rows


def test_memory_that_is_set_is_kept_to(fold, alone):
    """What is not expected to fit is not tried on the CPU, which would end the process."""
    out, _ = fold("--memory=0.0045", out="some.h5", code=1)
    failed = {
        name: reason
        for name, (status, reason) in outcomes(out.with_name("some.records.tsv")).items()
        if status == "failed"
    }
    assert 0 < len(failed) < len(OK)
    for reason in failed.values():
        assert "do not fit into the 0.0045 GB of --memory, even alone" in reason
        assert reason.endswith("; raise it, or set --max-residues")
    assert failed.keys().isdisjoint({"e", "b"})
    out, _ = fold("--memory=1", out="out.h5")
    assert_as_alone(out, alone)


def test_linkers_take_memory_too(fold, checkpoint, monkeypatch):
    longest = []
    right = predictor.Predictor.modes

    def modes(this, count, residues):
        longest.append(residues)
        return right(this, count, residues)

    monkeypatch.setattr(predictor.Predictor, "modes", modes)
    fold()
    assert longest[0] == 18 + 2 * 25  # the complex comes first
    needed = []
    right_memory = predictor.fold_memory

    def fold_memory(config, batch, residues, *more, **options):
        needed.append((batch, residues))
        return right_memory(config, batch, residues, *more, **options)

    monkeypatch.setattr(predictor, "fold_memory", fold_memory)
    one = predictor.Predictor(str(checkpoint), None, FoldSettings(memory=8))
    one.require_memory(["MKV:AC", "MKVLAT"], FoldMode(None))
    assert needed == [(2, 5 + 25)]


def test_what_fits_in_no_mode_is_tried_in_chunks(checkpoint):
    one = predictor.Predictor(str(checkpoint), None, FoldSettings(memory=1e-6))
    assert [mode.chunk_size for mode in one.modes(1, 1_000)] == [16]


def test_everything_fails(fold, monkeypatch):
    Limited(monkeypatch, room=0)
    out, _ = fold(code=1)
    assert {row["file"] for row in table(out / "structures.tsv").values()} == {""}
    with h5py.File(out / "structures.h5") as file:
        assert len(file["id"]) == len(file["length"]) == 0


def test_other_errors_pass(fold, monkeypatch, tmp_path):
    Limited(monkeypatch, room=0, error=RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        fold()
    assert not (tmp_path / "out.records.tsv").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["positions", "plddt", "mean_plddt", "ptm"])
def test_numbers_that_are_not_finite_have_failed(fold, monkeypatch, what):
    right = predictor.structures_of

    def broken(output):
        for structure in right(output):
            wrong = np.array(getattr(structure, what))
            wrong.flat[-1] = np.nan
            yield replace(structure, **{what: wrong}) if len(structure.aatype) == 6 else structure

    monkeypatch.setattr(predictor, "structures_of", broken)
    out, _ = fold("--on-failure=keep")
    found = outcomes(out.with_name("out.records.tsv"))
    assert found["b"] == ("failed", "the model gave values that are not finite numbers")
    assert {name for name, (status, _) in found.items() if status == "ok"} == {*OK} - {"b"}


@pytest.mark.parametrize("policy", ["auto", "skip", "truncate"])
def test_long_sequences(fold, policy):
    out, _ = fold(f"--long={policy}", "--max-residues=10")
    found = outcomes(out.with_name("out.records.tsv"))
    long = ("a", "c", "d", "f")
    if policy == "truncate":
        assert {found[name] for name in long} == {("ok", "truncated to the first 10 residues")}
    else:
        assert {found[name].status for name in long} == {"skipped"}
        assert found["a"].reason == (
            "31 residues, but --max-residues is 10; set --long to truncate, or raise the limit"
        )
    assert found["complex"] == (
        "skipped",
        "18 residues, but --max-residues is 10; fold its chains apart, or raise the limit",
    )
    assert found["b"].status == "ok"


def test_a_cut_sequence_is_as_the_cut_one(fold, checkpoint):
    out, _ = fold("--long=truncate", "--max-residues=10", out="out.h5")
    model = EsmForProteinFolding.from_pretrained(checkpoint).eval()
    wanted = model.infer([sequences()["a"][:10]], num_recycles=1)
    with Structures.open(out) as arrays:
        found = arrays.structure(int(arrays.row[0]))
    assert len(found.aatype) == 10
    there = residues.ATOM14_MASK[found.aatype]
    assert np.abs(found.positions - wanted.positions[-1, 0].numpy())[there].max() <= 1e-4


def test_contradicting_settings(fold):
    _, said = fold("--long=full", "--max-residues=10", code=2)
    assert said == [
        "esm-pipeline fold: --long is 'full', but there is a limit of 10 residues; set it to "
        "skip or truncate"
    ]


def test_a_model_that_does_not_fold(fold, rotary):
    _, said = fold(model=rotary, code=2)
    assert said == [
        f"esm-pipeline fold: {rotary}: has no folding part; set --model to a folding model, "
        "such as facebook/esmfold_v1"
    ]


def test_positions_for_so_many_residues(fold, tmp_path):
    changes = {"position_embedding_type": "absolute", "max_position_embeddings": 14}
    model = write_demo(tmp_path / "model", EsmForProteinFolding, **changes)
    out, _ = fold(model=model)
    found = outcomes(out.with_name("out.records.tsv"))
    assert found["b"].status == "ok"
    assert found["a"].status == "skipped"
    assert "but the model has positions for 10" in found["a"].reason


def test_the_demo_model_is_the_same_each_time(tmp_path):
    before = torch.random.get_rng_state()
    one, other = (write_demo(tmp_path / name, EsmForProteinFolding) for name in ("one", "other"))
    assert torch.equal(before, torch.random.get_rng_state())
    assert digest(one / "model.safetensors") == digest(other / "model.safetensors")
    assert json.loads((one / "config.json").read_text())["random_weights"] is True
    assert (one / "model.safetensors").stat().st_size < 2_000_000


def test_weights_that_are_not_random_are_not_called_so(fold, tmp_path):
    model = write_demo(tmp_path / "model", EsmForProteinFolding, random_weights=False)
    out, said = fold(model=model)
    assert "random" not in said[-1]
    assert not any("random" in row["flags"] for row in table(out / "structures.tsv").values())
    text = (out / "structures" / "00000" / "0_a.pdb").read_text()
    assert "RANDOM" not in text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("taken", "not a folder; name a folder for the structures, or a .h5 file"),
        ("taken/out", "not a folder; choose another one for the output"),
        ("mine", "holds 'thesis', which `fold` did not write; choose another place for the output"),
        ("in.h5", "the input itself; name another file for the output"),
    ],
)
def test_places_that_cannot_be(fold, fasta, tmp_path, esm, name, message):
    (tmp_path / "taken").write_text("x")
    (tmp_path / "mine" / "structures").mkdir(parents=True)
    (tmp_path / "mine" / "structures" / "thesis").touch()
    fasta.rename(tmp_path / "in.h5")
    code, said = esm("fold", "--model=demo", tmp_path / "in.h5", tmp_path / name)
    assert (code, len(said)) == (2, 1)
    assert said[0].endswith(message)


@pytest.mark.parametrize("name", ["flags.tsv", "structures.parquet", "structures.sha256"])
def test_an_input_among_the_files_of_structures_is_not_replaced(fasta, tmp_path, esm, name):
    (tmp_path / "out").mkdir()
    taken = fasta.rename(tmp_path / "out" / name)
    code, said = esm("fold", "--model=demo", taken, tmp_path / "out")
    assert (code, len(said)) == (2, 1)
    assert f"{taken}: is given for two files" in said[0]
    assert taken.read_text() == FASTA


def test_an_empty_input(esm, checkpoint, tmp_path):
    (tmp_path / "empty.fasta").write_text("")
    given = ("--model", checkpoint, tmp_path / "empty.fasta", tmp_path / "out")
    assert esm("fold", *given)[0] == 2
    code, said = esm("fold", "--allow-empty", *given)
    assert (code, said[-1][:30]) == (0, "fold: 0 records: 0 ok, 0 skipp")
    assert table(tmp_path / "out" / "structures.tsv") == {}


def test_download_checks_a_folding_model(esm, rotary, tmp_path, capsys):
    model = tmp_path / "fold.json"
    assert esm("download", "--model=demo-fold", "--out", model, "fold")[0] == 0
    facts = json.loads(model.read_text())
    assert facts["name"] == "demo-fold"
    (tmp_path / "a.fasta").write_text(">a\nMKV\n")
    given = ("--model", model, *FAST, tmp_path / "a.fasta", tmp_path / "out")
    assert esm("fold", *given)[0] == 0
    code, said = esm("download", "--model", rotary, "fold")
    assert (code, len(said)) == (2, 1)
    assert "has no folding part" in said[0]
    facts["weights_sha256"] = "0" * 64
    model.write_text(json.dumps(facts))
    code, said = esm("fold", *given)
    assert (code, len(said)) == (2, 1)
    assert "the weights of demo-fold have changed since it was written" in said[0]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_weights_that_are_no_numbers_are_refused(checkpoint, monkeypatch, device):
    """On a graphics card, for which another device stands here, the model is not optimized."""
    whole = predictor.Predictor.loaded

    def loaded(self):
        monkeypatch.setattr(self, "device", torch.device("cpu"))
        found = whole(self)
        found.trunk.recycle_disto.weight.data[0, 0] = float("nan")
        monkeypatch.setattr(self, "device", torch.device(device))
        return found

    monkeypatch.setattr(predictor.Predictor, "loaded", loaded)
    one = predictor.Predictor(str(checkpoint), None, FoldSettings(device="cpu"))
    one.device = torch.device(device)
    with pytest.raises(WeightsError, match="has NaN or infinity"):
        one.load()
