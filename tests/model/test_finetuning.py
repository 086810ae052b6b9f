"""Fine-tuning as people do it: a fresh head on a pretrained trunk learns, is saved, read again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn

import esm_pipeline
from esm_pipeline import EsmConfig, EsmTokenizer, demo_model
from esm_pipeline.formats.fasta import read_fasta
from tests.oracles.classifiers import HEADS, labelled, twins_of
from tests.oracles.peers import ESM2, max_abs

HYDROPHOBIC = "ACFILMVWY"
WIDTH = 24
Batch = dict[str, Tensor]


def pieces(sequences: list[str]) -> list[str]:
    """Pieces of 24 residues and fewer, so that there is padding."""
    return [
        sequence[start : start + WIDTH - start % 7]
        for sequence in sequences
        for start in range(0, len(sequence) - WIDTH, WIDTH)
    ]


@pytest.fixture(scope="module")
def proteins() -> tuple[list[str], list[str]]:
    """Pieces to train on, and pieces of other proteins to be tested on."""
    path = demo_model().parent / "demo.fasta"
    whole = [sequence.decode() for _, _, sequence in read_fasta(str(path))]
    train, test = pieces(whole[::2])[:256], pieces(whole[1::2])[:96]
    assert set(train).isdisjoint(test)
    return train, test


def next_is_hydrophobic(sequence: str) -> list[int]:
    """For BOS, each residue and EOS; the model has to look at the neighbour."""
    following = [int(residue in HYDROPHOBIC) for residue in sequence]
    return [*following, -100, -100]


def share_of_hydrophobic(sequence: str) -> list[float]:
    """About zero, with a deviation of one."""
    return [(sum(residue in HYDROPHOBIC for residue in sequence) / len(sequence) - 0.42) / 0.1]


def has_tryptophan_or_cysteine(sequence: str) -> list[float]:
    return [float(residue in sequence) for residue in "WC"]


def tokens_of(sequences: list[str]) -> Batch:
    tokenizer = EsmTokenizer.from_pretrained("demo")
    return dict(tokenizer(sequences, padding=True, return_tensors="pt"))


def labelled_tokens(sequences: list[str]) -> Batch:
    inputs = tokens_of(sequences)
    width = inputs["input_ids"].shape[1]
    rows = [next_is_hydrophobic(sequence) for sequence in sequences]
    return {**inputs, "labels": torch.tensor([row + [-100] * (width - len(row)) for row in rows])}


def labelled_sequences(label: Callable[[str], list[float]], sequences: list[str]) -> Batch:
    return {**tokens_of(sequences), "labels": torch.tensor([label(s) for s in sequences])}


TASKS: dict[str, tuple[str, int, Callable[[list[str]], Batch], int, float]] = {
    "tokens": ("EsmForTokenClassification", 2, labelled_tokens, 44, 0.35),
    "regression": (
        "EsmForSequenceClassification",
        1,
        partial(labelled_sequences, share_of_hydrophobic),
        28,
        0.35,
    ),
    "multi label": (
        "EsmForSequenceClassification",
        2,
        partial(labelled_sequences, has_tryptophan_or_cysteine),
        28,
        0.25,
    ),
}
"""Class, number of labels, batches, steps, and the loss that proteins never seen fall below; by
guessing it is 0.69, 1.0 and about 0.5."""


def train(model: nn.Module, parts: Iterable[Batch], rate: float) -> list[float]:
    """One step a batch; the losses."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    model.train()
    losses = []
    for part in parts:
        loss = model(**part).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


def shuffled(sequences: list[str], steps: int, size: int = 16) -> Iterator[list[str]]:
    """Random batches, the same each time."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        yield [sequences[i] for i in torch.randperm(len(sequences), generator=generator)[:size]]


@pytest.mark.parametrize("task", TASKS)
def test_a_fresh_head_on_the_pretrained_trunk_learns(
    task: str, proteins: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    name, count, labelled_batch, steps, bound = TASKS[task]
    known, unseen = proteins
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="classifier.*initialised at random"):
        model = getattr(esm_pipeline, name).from_pretrained("demo", num_labels=count)
    test = labelled_batch(unseen)
    with torch.no_grad():
        before = float(model(**test).loss)
    rate = 5e-4 if task == "regression" else 1e-3
    train(model, map(labelled_batch, shuffled(known, steps)), rate)
    with torch.no_grad():
        found = model(**test)
    assert float(found.loss) < bound < 0.6 * before
    assert accuracy(found.logits, test["labels"], task) > 0.9
    saved_and_read_again(model, name, test, tmp_path)


def accuracy(logits: Tensor, labels: Tensor, task: str) -> float:
    """Share of labels that are right; for regression the coefficient of correlation."""
    if task == "regression":
        return float(torch.corrcoef(torch.cat([logits, labels], 1).T)[0, 1])
    if task == "multi label":
        return float(((logits > 0) == (labels > 0.5)).float().mean())
    return float((logits.argmax(-1) == labels)[labels != -100].float().mean())


def saved_and_read_again(model: nn.Module, name: str, test: Batch, folder: Path) -> None:
    """What is saved gives the same logits here and in transformers, nothing missing or too much."""
    model.save_pretrained(folder)
    inputs = {key: test[key][:16] for key in ("input_ids", "attention_mask")}
    mask = inputs["attention_mask"]
    with torch.no_grad():
        expected = model(**inputs).logits
        again = getattr(esm_pipeline, name).from_pretrained(folder)
        assert torch.equal(again(**inputs).logits, expected)
        assert again.config == model.config
        peer, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert peer.config.problem_type == model.config.problem_type
        per_token = mask if expected.ndim == 3 else None
        assert max_abs(peer(**inputs).logits, expected, per_token) <= 1e-4


# Ways people train.


def small(name: str, **settings: object) -> nn.Module:
    without = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    _, ours = twins_of(name, **{**ESM2, **without, **settings})
    return ours.float().train()


def float_inputs(name: str) -> Batch:
    return labelled(name, [12, 5, 12, 30])


@pytest.mark.parametrize("name", HEADS)
def test_a_frozen_trunk(name: str) -> None:
    model = small(name)
    model.base_model.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    losses = train(model, [float_inputs(name)] * 30, 1e-2)
    assert losses[-1] < 0.7 * losses[0]
    tied = {"lm_head.decoder.weight"}
    for key, tensor in model.state_dict().items():
        frozen = key.startswith("esm.") or key in tied
        assert torch.equal(tensor, before[key]) == frozen, key


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_a_few_layers_alone(name: str, checkpointing: bool) -> None:
    model = small(name)
    model.base_model.requires_grad_(False)
    model.esm.encoder.layer[-1].requires_grad_(True)
    if checkpointing:  # reentrant, nothing above the frozen layers would learn
        model.gradient_checkpointing_enable({"use_reentrant": True})
    model(**float_inputs(name)).loss.backward()
    learned = {key for key, p in model.named_parameters() if p.grad is not None}
    assert any(key.startswith("esm.encoder.layer.2.") for key in learned)
    assert not any(key.startswith(("esm.encoder.layer.1.", "esm.embeddings")) for key in learned)


@pytest.mark.parametrize("name", HEADS)
def test_mixed_precision(name: str) -> None:
    model = small(name)
    inputs = float_inputs(name)
    expected = model(**inputs).loss
    expected.backward()
    whole = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(**inputs)
    in_bias = {"EsmForMaskedLM": torch.float32}  # added after the product, as in the reference
    assert found.logits.dtype == in_bias.get(name, torch.bfloat16)
    assert found.loss.dtype == torch.float32
    found.loss.backward()
    assert max_abs(found.loss, expected) <= 0.05 * float(expected.detach())
    for key, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.dtype == torch.float32
            assert max_abs(parameter.grad, whole[key]) <= 0.3 * float(whole[key].abs().max()), key


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    model = small(name)
    inputs = float_inputs(name)
    expected = model(**inputs).loss
    model.to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    losses = []
    for _ in range(10):
        loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert max_abs(losses[0], expected) <= 0.1 * float(expected.detach())
    assert float(losses[-1]) < 0.9 * float(losses[0])
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@pytest.mark.parametrize("name", HEADS)
def test_copies_and_states(name: str) -> None:
    model = small(name).eval()
    inputs = float_inputs(name)
    other = copy.deepcopy(model)
    assert torch.equal(model(**inputs).logits, other(**inputs).logits)
    assert other.config == model.config
    assert other.config is not model.config
    train(other, [inputs] * 2, 1e-2)
    assert max_abs(model(**inputs).logits, other(**inputs).logits) > 1e-2
    missing, unexpected = model.load_state_dict(other.state_dict())
    assert not missing
    assert not unexpected
    assert torch.equal(model(**inputs).logits, other(**inputs).logits)
    fresh = type(model)(EsmConfig.from_dict(model.config.to_dict())).eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(model(**inputs).logits, fresh(**inputs).logits)


@pytest.mark.parametrize("name", HEADS)
def test_training_leaves_the_file_as_it_is_until_saved(name: str, tmp_path: Path) -> None:
    """Weights may be mapped from the file they were read from."""
    inputs = float_inputs(name)
    small(name).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    before = path.read_bytes()
    model = getattr(esm_pipeline, name).from_pretrained(tmp_path)
    train(model, [inputs] * 2, 1e-2)
    assert path.read_bytes() == before
    model.save_pretrained(tmp_path)
    assert path.read_bytes() != before
    again = getattr(esm_pipeline, name).from_pretrained(tmp_path)
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_an_optimizer_sees_a_tied_weight_once() -> None:
    model = small("EsmForMaskedLM")
    train(model, [float_inputs("EsmForMaskedLM")], 1e-2)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert len(list(model.parameters())) == len({id(p) for p in model.parameters()})
    assert "lm_head.decoder.weight" in model.state_dict()
