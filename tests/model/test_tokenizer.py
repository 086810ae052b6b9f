"""The tokenizer beside the transformers one, over random text."""

from __future__ import annotations

from pathlib import Path

import esm
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from esm_pipeline import EsmTokenizer
from esm_pipeline.errors import InputError, WeightsError
from esm_pipeline.model.tokenizer import ALPHABET

PIECES = [
    *"LAGVSERTIDPKQNFYMHWCXBUZO.-",
    "<mask>",
    "<cls>",
    "<pad>",
    "<eos>",
    "<unk>",
    " ",
    "j",
    "J1",
]
text = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)


@pytest.fixture(scope="module")
def ours() -> EsmTokenizer:
    return EsmTokenizer.standard()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> transformers.EsmTokenizer:
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "vocab.txt").write_text("\n".join(ALPHABET))
    return transformers.EsmTokenizer(folder / "vocab.txt")


def test_vocabulary(ours: EsmTokenizer, theirs: transformers.EsmTokenizer) -> None:
    assert ours.all_tokens == esm.data.Alphabet.from_architecture("ESM-1b").all_toks
    assert ours.get_vocab() == theirs.get_vocab()
    assert (ours.cls_token_id, ours.pad_token_id, ours.eos_token_id) == (0, 1, 2)
    assert (ours.unk_token_id, ours.mask_token_id, len(ours)) == (3, 32, 33)


@settings(max_examples=500, deadline=None)
@given(text=text)
def test_beside_transformers(
    ours: EsmTokenizer, theirs: transformers.EsmTokenizer, text: str
) -> None:
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    ids = ours(text, add_special_tokens=False)["input_ids"]
    assert ids == theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(text, min_size=1, max_size=5), limit=st.integers(3, 30))
def test_padding_and_truncation(
    ours: EsmTokenizer, theirs: transformers.EsmTokenizer, texts: list[str], limit: int
) -> None:
    options = {"padding": True, "truncation": True, "max_length": limit, "return_tensors": "pt"}
    found, expected = ours(texts, **options), theirs(texts, **options)
    assert torch.equal(found["input_ids"], expected["input_ids"])
    assert torch.equal(found.attention_mask, expected["attention_mask"])
    padded = ours(texts, padding="max_length", max_length=50, return_tensors="np")
    assert padded.input_ids.shape == (len(texts), 50)


def test_trap_unknown_letters_between_known_ones(ours: EsmTokenizer) -> None:
    """A run of unknown letters is one `<unk>`, as in the reference: lengths are not kept."""
    assert ours("MKjjV").input_ids == [0, 20, 15, 3, 7, 2]


def test_pairs_and_special_tokens(ours: EsmTokenizer) -> None:
    assert ours("MK", "VA").input_ids == [0, 20, 15, 2, 7, 5, 2]
    assert ours.build_inputs_with_special_tokens([5], [6]) == [0, 5, 2, 6, 2]
    assert ours.get_special_tokens_mask([5, 6]) == [1, 0, 0, 1]
    assert ours.get_special_tokens_mask([0, 5, 32], already_has_special_tokens=True) == [1, 0, 1]
    assert ours.create_token_type_ids_from_sequences([5, 6], [7]) == [0, 0, 0, 0, 1, 1]


def test_decode(ours: EsmTokenizer) -> None:
    ids = ours("MK<mask>").input_ids
    assert ours.decode(ids) == "<cls> M K <mask> <eos>"
    assert ours.decode(torch.tensor(ids), skip_special_tokens=True) == "M K"
    assert ours.batch_decode([ids, [20]]) == ["<cls> M K <mask> <eos>", "M"]


def test_round_trip_through_files(ours: EsmTokenizer, tmp_path: Path) -> None:
    ours.save_pretrained(tmp_path)
    again = EsmTokenizer.from_pretrained(tmp_path)
    theirs = transformers.EsmTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == ours.get_vocab() == theirs.get_vocab()
    assert theirs("MK<mask>").input_ids == ours("MK<mask>").input_ids


@settings(max_examples=200, deadline=None)
@given(sequence=st.text("LAGVSERTIDPKQNFYMHWCXBUZO", max_size=60))
def test_fast_path_for_residues(ours: EsmTokenizer, sequence: str) -> None:
    found = ours.encode_residues(sequence)
    assert found.dtype == np.int64
    assert found.tolist() == ours(sequence).input_ids


@pytest.mark.parametrize("text", ["MK<mask>V", "mkv", "M K", "MJV", ""])
def test_fast_path_is_that_of_a_call_for_any_text(ours: EsmTokenizer, text: str) -> None:
    assert ours.encode_residues(text).tolist() == ours(text).input_ids


def test_vocabulary_has_to_fit_the_model(ours: EsmTokenizer) -> None:
    ours.require_fit(33)
    ours.require_fit(64)
    with pytest.raises(WeightsError, match="33 tokens, the model 32"):
        ours.require_fit(32)
    with pytest.raises(WeightsError, match="no token for residue W"):
        EsmTokenizer([token for token in ALPHABET if token != "W"]).require_fit(33)


def test_encoding_moves_and_unpacks(ours: EsmTokenizer) -> None:
    found = ours(["MK"], return_tensors="pt").to("cpu")
    assert dict(**found).keys() == {"input_ids", "attention_mask"}
    assert not hasattr(found, "nothing")


def test_errors(ours: EsmTokenizer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="padding=True"):
        ours(["MK", "MKV"], return_tensors="pt")
    with pytest.raises(InputError, match="needs max_length"):
        ours(["MK"], padding="max_length")
    with pytest.raises(InputError, match="padding='junk' is not known"):
        ours(["MK"], padding="junk")
    with pytest.raises(WeightsError, match="not a readable vocabulary"):
        EsmTokenizer(tmp_path / "none.txt")
    (tmp_path / "vocab.txt").write_text("A\nB\n")
    with pytest.raises(WeightsError, match="the unk token"):
        EsmTokenizer(tmp_path / "vocab.txt")
