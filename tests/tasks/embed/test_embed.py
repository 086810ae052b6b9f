"""`embed`: equal to padded input, the same whatever the batches, nothing lost on failure."""

import csv
import hashlib
import json
import os
import subprocess
import sys
from functools import cache

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esm_pipeline.cli import main
from esm_pipeline.formats.results.open import open_results
from esm_pipeline.model import EsmModel, EsmTokenizer
from esm_pipeline.model.inference.int8 import can_quantize
from esm_pipeline.tasks.embed import representations
from tests.allocator import Allocator, tokens

FASTA = """\
>a first
MKTAYIAKQRQISFVKSHFSRQ
>b
GAVLIW
>stop
MK*V
>c again
MKTAYIAKQRQISFVKSHFSRQ
>d
ACDEFGHIKLMNPQRSTVWYBUZOX
>chains
MKV:GAV
>e
W
"""
OK_IDS = ["a", "b", "c", "d", "e"]
EVERYTHING = ("--include", "mean,residue,bos,contacts", "--layers", "0,1,-1")


@pytest.fixture
def fasta(tmp_path):
    path = tmp_path / "in.fasta"
    path.write_text(FASTA)
    return path


@pytest.mark.skipif(not can_quantize(), reason="no exact 8-bit product here")
def test_all_of_it_in_8_bits(fasta, tmp_path):
    """Near float32, but not the same, and recorded in the file."""
    found = {}
    for dtype in ("float32", "int8"):
        output = tmp_path / f"{dtype}.h5"
        flags = ("--quiet", "--dtype", dtype, "--residue-dtype", "float32", *EVERYTHING)
        assert main(["embed", "--model", "demo", *flags, str(fasta), str(output)]) == 0
        with open_results(output) as results:
            assert results.attributes["dtype"] == dtype
            found[dtype] = [
                np.concatenate(
                    [part[max(part)].ravel() for part in (one.mean, one.bos, one.residue)]
                )
                for one in results
            ]
            assert all(np.isfinite(one.contacts).all() for one in results)
    for one, other in zip(found["int8"], found["float32"], strict=True):
        assert 0 < np.abs(one - other).max() < 0.05 * np.abs(other).max()


def outcomes(path):
    with open(path, newline="") as handle:
        rows = csv.DictReader(handle, delimiter="\t")
        return {row["id"]: (row["embed_status"], row["embed_reason"]) for row in rows}


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def expected(folder, sequence):
    """(states of all layers, contacts) of one sequence by the padded door."""
    model = EsmModel.from_pretrained(folder, add_pooling_layer=False)
    tokens = EsmTokenizer.standard()([sequence], return_tensors="pt")
    with torch.no_grad():
        states = model(**tokens, output_hidden_states=True).hidden_states
        contacts = model.predict_contacts(tokens.input_ids, tokens.attention_mask)
    return [one[0].numpy() for one in states], contacts[0].numpy()


def check_against_the_padded_door(folder, path, sequences):
    with open_results(path) as results:
        assert results.ids == list(sequences)
        assert results.layers == [0, 1, 2]
        for item in results:
            states, contacts = expected(folder, sequences[item.id])
            assert item.length == len(sequences[item.id])
            for layer, state in enumerate(states):
                close = {"rtol": 0, "atol": 1e-5}
                np.testing.assert_allclose(item.mean[layer], state[1:-1].mean(0), **close)
                np.testing.assert_allclose(item.bos[layer], state[0], **close)
                np.testing.assert_allclose(item.residue[layer], state[1:-1], rtol=1e-3, atol=1e-4)
                assert item.residue[layer].dtype == np.float16
            np.testing.assert_allclose(item.contacts, contacts, rtol=1e-3, atol=1e-4)


def sequences_of(fasta_text):
    records = [record.split("\n", 1) for record in fasta_text[1:].split("\n>")]
    return {header.split()[0]: body.replace("\n", "") for header, body in records}


def test_everything_is_as_the_padded_door_gives_it(esm, rotary, fasta, tmp_path):
    code, lines = esm("embed", "--model", rotary, *EVERYTHING, fasta, tmp_path / "out.h5")
    assert code == 0
    assert "7 records: 5 ok, 2 skipped, 0 failed; 54 residues in" in lines[-1]
    sequences = {name: one for name, one in sequences_of(FASTA).items() if name in OK_IDS}
    check_against_the_padded_door(rotary, tmp_path / "out.h5", sequences)
    found = outcomes(tmp_path / "out.records.tsv")
    assert list(found) == ["a", "b", "stop", "c", "d", "chains", "e"]
    assert {name for name, (status, _) in found.items() if status == "ok"} == set(OK_IDS)
    assert "'*'" in found["stop"][1]
    assert found["chains"] == ("skipped", "a complex of several chains; split it at ':'")


def test_a_mean_over_all_tokens_would_show(esm, rotary, fasta, tmp_path, monkeypatch):
    """The twin of the test above."""

    def with_bos(hidden, layout):
        return torch.stack([part.mean(0) for part in torch.split(hidden, layout.lengths)])

    monkeypatch.setattr(representations, "residue_means", with_bos)
    esm("embed", "--model", rotary, *EVERYTHING, fasta, tmp_path / "out.h5")
    sequences = {name: one for name, one in sequences_of(FASTA).items() if name in OK_IDS}
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check_against_the_padded_door(rotary, tmp_path / "out.h5", sequences)


def test_the_file_says_how_it_was_made(esm, rotary, fasta, tmp_path):
    esm("embed", "--model", rotary, *EVERYTHING, fasta, tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5") as file:
        attributes = dict(file.attrs)
        assert file["index"][...].tolist() == [0, 1, 3, 4, 6]
        assert file["row"][...].tolist() == [0, 1, 0, 2, 3]
        assert file["length"][...].tolist() == [22, 6, 25, 1]
        assert file["contacts_offset"][...].tolist() == [0, 484, 520, 1145, 1146]
        shapes = {"mean/2": (4, 16), "bos/0": (4, 16), "residue/1": (54, 16), "contacts": (1146,)}
        assert {name: file[name].shape for name in shapes} == shapes
    software = json.loads(attributes.pop("software"))
    assert set(software) == {"esm_pipeline", "torch", "h5py", "python"}
    assert attributes == {
        "format": "esm-pipeline/embeddings",
        "format_version": 1,
        "model": rotary.name,
        "revision": "",
        "weights_sha256": digest(rotary / "model.safetensors"),
        "dtype": "float32",
        "layers": "0,1,-1",
        "include": "mean,residue,bos,contacts",
        "residue_dtype": "float16",
        "long": "auto",
    }


def run_quietly(*arguments):
    return main(["embed", "--quiet", *map(str, arguments)])


@settings(max_examples=15)
@given(
    sequences=st.lists(st.text("ACDEFGHIKLMNPQRSTVWY", min_size=1, max_size=30), max_size=8),
    budget=st.integers(1, 120),
    data=st.data(),
)
def test_any_budget_and_order_give_the_same(tmp_path_factory, rotary, sequences, budget, data):
    folder = tmp_path_factory.mktemp("any")
    order = data.draw(st.permutations(range(len(sequences))))
    for name, places in (("straight", range(len(sequences))), ("mixed", order)):
        text = "".join(f">{place}\n{sequences[place]}\n" for place in places)
        (folder / f"{name}.fasta").write_text(text)
    options = ("--model", rotary, "--allow-empty", "--include", "mean,residue,contacts")
    options += ("--residue-dtype", "float32")
    assert run_quietly(*options, folder / "straight.fasta", folder / "a.h5") == 0
    mixed = (*options, "--token-budget", budget, folder / "mixed.fasta", folder / "b.h5")
    assert run_quietly(*mixed) == 0
    with open_results(folder / "a.h5") as straight, open_results(folder / "b.h5") as other:
        assert sorted(straight.ids) == sorted(other.ids) == sorted(map(str, range(len(sequences))))
        for one in straight:
            same = other[one.id]
            np.testing.assert_allclose(one.mean[2], same.mean[2], rtol=0, atol=1e-4)
            np.testing.assert_allclose(one.residue[2], same.residue[2], rtol=0, atol=1e-4)
            np.testing.assert_allclose(one.contacts, same.contacts, rtol=0, atol=1e-3)


def test_two_runs_give_the_same_bytes(esm, rotary, fasta, tmp_path):
    for name in ("one", "two"):
        esm("embed", "--model", rotary, *EVERYTHING, fasta, tmp_path / f"{name}.h5")
    assert digest(tmp_path / "one.h5") == digest(tmp_path / "two.h5")
    assert digest(tmp_path / "one.records.tsv") == digest(tmp_path / "two.records.tsv")
    esm("embed", "--model", rotary, "--layers", "1", fasta, tmp_path / "other.h5")
    assert digest(tmp_path / "other.h5") != digest(tmp_path / "one.h5")


def test_digests_of_both_outputs(esm, rotary, fasta, tmp_path):
    esm("embed", "--model", rotary, "--sha256", tmp_path / "o.sha256", fasta, tmp_path / "o.h5")
    assert (tmp_path / "o.sha256").read_text().splitlines() == [
        f"{digest(tmp_path / name)}  {name}" for name in ("o.h5", "o.records.tsv")
    ]


def test_bfloat16_is_near(esm, rotary, fasta, tmp_path):
    for dtype in ("float32", "bfloat16"):
        code, _ = esm("embed", "--model", rotary, "--dtype", dtype, fasta, tmp_path / f"{dtype}.h5")
        assert code == 0
    with open_results(tmp_path / "float32.h5") as a, open_results(tmp_path / "bfloat16.h5") as b:
        assert b.attributes["dtype"] == "bfloat16"
        for one, same in zip(a, b, strict=True):
            assert 0 < np.abs(one.mean[2] - same.mean[2]).max() < 0.1


def test_bad_input_fails_before_pytorch_is_loaded(tmp_path):
    bad = tmp_path / "bad.fasta"
    bad.write_text("not a FASTA file\n")
    program = (
        "import sys; from esm_pipeline.cli import main\n"
        f"code = main(['embed', '--model', 'demo', {str(bad)!r}, {str(tmp_path / 'o.h5')!r}])\n"
        "print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["2", "False"]
    assert len(done.stderr.splitlines()) == 1
    assert f"{bad}:1:" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.fasta"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--layers", "3"), "layer 3 does not exist; the model has layers 0 to 2"),
        (("--layers", "0,0"), "contains a duplicate"),
        (("--include", "means"), "--include = 'means'"),
        (("--device", "cuda:99"), "device cuda:99"),
        (("--token-budget", "0"), "--token-budget = 0: should be a whole number from 1"),
    ],
)
def test_unusable_settings_are_one_line(esm, rotary, fasta, tmp_path, arguments, message):
    code, lines = esm("embed", "--model", rotary, *arguments, fasta, tmp_path / "out.h5")
    assert code == 2
    assert len(lines) == 1
    assert message in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.fasta"]


def test_unusable_outputs_are_refused(esm, rotary, fasta, tmp_path):
    (tmp_path / "folder.h5").mkdir()
    code, lines = esm("embed", "--model", rotary, fasta, tmp_path / "folder.h5")
    assert (code, len(lines)) == (2, 1)
    assert "a folder; name a file" in lines[0]
    code, lines = esm("embed", "--model", rotary, fasta, fasta)
    assert (code, len(lines)) == (2, 1)
    assert "the input itself" in lines[0]
    assert fasta.read_text() == FASTA
    for place, message in ((".", "a folder"), ("/dev/null", "/dev/null: not a regular file")):
        code, lines = esm("embed", "--model", rotary, fasta, place)
        assert (code, len(lines)) == (2, 1)
        assert message in lines[0]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("in.fasta", "the input itself"),
        ("link.fasta", "the input itself"),
        ("out.h5", "the output itself"),
        ("../{here}/out.h5", "the output itself"),
        ("out.records.tsv", "the table of records"),
        ("folder", "a folder"),
        ("fifo", "not a regular file"),
        ("in.fasta/a/b.sha256", "in.fasta: not a folder"),
        ("x" * 300, "too long"),
    ],
)
def test_unusable_digests_are_refused_before_anything_is_done(esm, fasta, tmp_path, place, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.fasta").symlink_to(fasta)
    os.mkfifo(tmp_path / "fifo")
    before = sorted(tmp_path.iterdir())
    digests = tmp_path / place.format(here=tmp_path.name)
    arguments = ("--sha256", digests, fasta, tmp_path / "out.h5")
    code, lines = esm("embed", "--model", tmp_path / "no model", *arguments)
    assert (code, len(lines)) == (2, 1)
    assert message in lines[0]
    assert sorted(tmp_path.iterdir()) == before
    assert fasta.read_text() == FASTA


def test_an_empty_input_is_an_error_unless_allowed(esm, rotary, tmp_path):
    empty = tmp_path / "empty.fasta"
    empty.write_text("")
    code, lines = esm("embed", "--model", rotary, empty, tmp_path / "out.h5")
    assert (code, len(lines)) == (2, 1)
    code, _ = esm(
        "embed", "--model", rotary, *EVERYTHING, "--allow-empty", empty, tmp_path / "o.h5"
    )
    assert code == 0
    with open_results(tmp_path / "o.h5") as results:
        assert len(results) == 0
        assert results.to_pandas().shape == (0, 3 + 16)
    assert outcomes(tmp_path / "o.records.tsv") == {}


LONG = {"short": "ACDEFGHIKL" * 2, "just": "MNPQRSTVWY" * 3, "long": "MNPQRSTVWY" * 3 + "A"}


@pytest.fixture
def long_fasta(tmp_path):
    path = tmp_path / "long.fasta"
    path.write_text("".join(f">{name}\n{one}\n" for name, one in LONG.items()))
    return path


@pytest.mark.parametrize("policy", ["auto", "skip"])
def test_longer_than_the_table_is_skipped(esm, absolute, long_fasta, tmp_path, policy):
    options = ("--model", absolute, "--long", policy, *EVERYTHING)
    code, _ = esm("embed", *options, long_fasta, tmp_path / "out.h5")
    assert code == 0
    kept = {name: LONG[name] for name in ("short", "just")}
    check_against_the_padded_door(absolute, tmp_path / "out.h5", kept)
    status, reason = outcomes(tmp_path / "out.records.tsv")["long"]
    assert status == "skipped"
    assert reason.startswith("31 residues, but the model has positions for 30; set --long to")


def test_longer_than_the_table_is_truncated(esm, absolute, long_fasta, tmp_path):
    options = ("--model", absolute, "--long", "truncate", *EVERYTHING)
    code, _ = esm("embed", *options, long_fasta, tmp_path / "out.h5")
    assert code == 0
    check_against_the_padded_door(
        absolute, tmp_path / "out.h5", {**LONG, "long": LONG["long"][:30]}
    )
    found = outcomes(tmp_path / "out.records.tsv")
    assert found["long"] == ("ok", "truncated to the first 30 residues")
    assert found["just"] == ("ok", "")


def test_full_needs_a_model_without_a_table(esm, absolute, rotary, long_fasta, tmp_path):
    options = ("--long", "full", *EVERYTHING, long_fasta, tmp_path / "out.h5")
    code, lines = esm("embed", "--model", absolute, *options)
    assert (code, len(lines)) == (2, 1)
    assert "--long is 'full', but the model has positions for 30 residues only" in lines[0]
    assert esm("embed", "--model", rotary, *options)[0] == 0
    check_against_the_padded_door(rotary, tmp_path / "out.h5", LONG)


def memory_for(monkeypatch, room, sequences_that_fail=()):
    """Have memory for so many tokens, and for no sequence of these; returns the allocator."""
    heavy = dict.fromkeys(sequences_that_fail, room + 1)
    return Allocator(room).limit(monkeypatch, EsmModel, "represent", tokens(heavy))


@pytest.mark.parametrize("room", [60, 40, 27])
def test_a_batch_that_does_not_fit_is_halved(esm, rotary, fasta, tmp_path, monkeypatch, room):
    tried = memory_for(monkeypatch, room).tried
    code, _ = esm("embed", "--model", rotary, *EVERYTHING, fasta, tmp_path / "out.h5")
    assert code == 0
    assert tried[0] == 62
    assert len(tried) > 2
    sequences = {name: one for name, one in sequences_of(FASTA).items() if name in OK_IDS}
    check_against_the_padded_door(rotary, tmp_path / "out.h5", sequences)


@pytest.mark.parametrize(
    ("failing", "kept"),
    [
        ({27}, ["a", "b", "c", "e"]),
        ({24}, ["b", "d", "e"]),
        ({24, 3}, ["b", "d"]),
        ({24, 27, 8, 3}, []),
    ],
)
def test_what_does_not_fit_alone_fails_alone(
    esm, rotary, fasta, tmp_path, monkeypatch, failing, kept
):
    memory_for(monkeypatch, 100, failing)
    command = ("embed", "--model", rotary, *EVERYTHING, fasta, tmp_path / "out.h5")
    code, lines = esm(*command)
    assert code == 1
    assert f"{len(OK_IDS) - len(kept)} failed" in lines[-1]
    assert lines[-1].endswith(f"; see {tmp_path / 'out.records.tsv'}")
    sequences = {name: one for name, one in sequences_of(FASTA).items() if name in kept}
    check_against_the_padded_door(rotary, tmp_path / "out.h5", sequences)
    for name, (status, reason) in outcomes(tmp_path / "out.records.tsv").items():
        if name in OK_IDS:
            assert status == ("ok" if name in kept else "failed")
            assert name in kept or "residues do not fit into memory, even alone" in reason
    assert esm(*command, "--on-failure", "keep")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "in.fasta",
        "out.h5",
        "out.records.tsv",
    ]


def test_a_model_that_does_not_fit_is_one_line(esm, rotary, fasta, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(EsmModel, "from_pretrained", full)
    code, lines = esm("embed", "--model", rotary, fasta, tmp_path / "out.h5")
    assert (code, len(lines)) == (2, 1)
    assert "the model does not fit into the memory of cpu" in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.fasta"]


def test_a_bug_keeps_its_traceback(esm, rotary, fasta, tmp_path, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(EsmModel, "represent", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        esm("embed", "--model", rotary, fasta, tmp_path / "out.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.fasta"]


def tryptophan_gets(monkeypatch, value):
    """Have the model give `value` at every tryptophan."""
    whole = EsmModel.represent
    letter = EsmTokenizer.standard().convert_tokens_to_ids("W")

    def represent(self, ids, *arguments, **options):
        found = whole(self, ids, *arguments, **options)
        for hidden in found.hidden.values():
            hidden[ids == letter] = value
        return found

    monkeypatch.setattr(EsmModel, "represent", represent)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (7e4, "beyond ±65504 does not fit into float16; set --residue-dtype to float32"),
        (float("nan"), "the model gave values that are not finite numbers"),
        (float("inf"), "the model gave values that are not finite numbers"),
    ],
)
def test_values_that_cannot_be_stored_fail(
    esm, rotary, fasta, tmp_path, monkeypatch, value, reason
):
    tryptophan_gets(monkeypatch, value)
    options = ("--model", rotary, "--include", "mean,residue", fasta, tmp_path / "out.h5")
    code, _ = esm("embed", *options)
    assert code == 1
    found = outcomes(tmp_path / "out.records.tsv")
    assert {name for name, (status, _) in found.items() if status == "failed"} == {"b", "d", "e"}
    assert all(reason in found[name][1] for name in ("b", "d", "e"))
    with open_results(tmp_path / "out.h5") as results:
        assert results.ids == ["a", "c"]
        assert np.isfinite(results["a"].residue[2]).all()
    if np.isfinite(value):
        assert esm("embed", "--residue-dtype", "float32", *options)[0] == 0
        with open_results(tmp_path / "out.h5") as results:
            assert results["e"].residue[2].max() == np.float32(value)


def test_quiet_says_nothing(esm, rotary, fasta, tmp_path):
    assert esm("embed", "--quiet", "--model", rotary, fasta, tmp_path / "out.h5") == (0, [])


def test_the_output_is_not_what_comes_on_standard_input(rotary, tmp_path):
    """In a process of its own: a file that a shell opened."""
    fasta = tmp_path / "z.records.tsv"
    fasta.write_text(">a\nMKV\n")
    command = [sys.executable, "-m", "esm_pipeline", "embed", "--model", rotary, "-"]
    with open(fasta) as source:
        done = subprocess.run(
            [*command, tmp_path / "z.h5"], stdin=source, capture_output=True, text=True, check=False
        )
    assert (done.returncode, "the input itself" in done.stderr) == (2, True)
    assert fasta.read_text() == ">a\nMKV\n"
