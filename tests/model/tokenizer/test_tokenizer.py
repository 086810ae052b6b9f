"""What only our tokenizer has: the fast path, its encodings, warnings and errors."""

from __future__ import annotations

import copy
import pickle
import re
import string
import time
import warnings
from typing import Any

import esm
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from esm_pipeline import EsmTokenizer
from esm_pipeline.errors import InputError, WeightsError
from esm_pipeline.model.alphabet import ALPHABET
from esm_pipeline.model.tokenizer.batch_encoding import BatchEncoding
from tests.oracles.record_tokenizer import PIECES, RESIDUES, STANDARD

TEXT = st.lists(st.sampled_from([*RESIDUES, *PIECES]), max_size=20).map("".join)
RESIDUE_TEXT = st.text("LAGVSERTIDPKQNFYMHWCXBUZO", max_size=60)


@pytest.fixture(scope="module")
def ours() -> EsmTokenizer:
    return EsmTokenizer.standard()


def test_vocabulary(ours: EsmTokenizer) -> None:
    assert [*ALPHABET] == STANDARD == ours.all_tokens
    assert ours.all_tokens == esm.data.Alphabet.from_architecture("ESM-1b").all_toks
    assert (ours.cls_token_id, ours.pad_token_id, ours.eos_token_id) == (0, 1, 2)
    assert (ours.unk_token_id, ours.mask_token_id, len(ours)) == (3, 32, 33)


def test_trap_unknown_letters_between_known_ones(ours: EsmTokenizer) -> None:
    """A run of unknown letters is one `<unk>`, as in the reference: lengths are not kept."""
    assert ours("MKjjV").input_ids == [0, 20, 15, 3, 7, 2]


def test_decode(ours: EsmTokenizer) -> None:
    ids = ours("MK<mask>").input_ids
    assert ours.decode(ids) == "<cls> M K <mask> <eos>"
    assert ours.decode(torch.tensor(ids), skip_special_tokens=True) == "M K"
    assert ours.batch_decode(np.array([ids, ids])) == ["<cls> M K <mask> <eos>"] * 2
    assert ours.decode(32) == ours.decode(torch.tensor(32)) == "<mask>"
    assert ours.convert_ids_to_tokens(np.int64(20)) == "M"
    with pytest.raises(InputError, match="use batch_decode"):
        ours.decode([ids, ids])


def test_added_tokens_get_the_next_ids(ours: EsmTokenizer) -> None:
    tokenizer = EsmTokenizer.standard()
    assert tokenizer.add_tokens("J") == 1
    assert tokenizer.add_tokens(["J", "<two>", "L"]) == 1
    assert len(tokenizer) == 35
    assert tokenizer.get_vocab().items() - ours.get_vocab().items() == {("J", 33), ("<two>", 34)}
    assert tokenizer("MJ<two>").input_ids == [0, 20, 33, 34, 2]
    assert tokenizer.decode([33, 34, 20], spaces_between_special_tokens=False) == "J<two>M"
    assert tokenizer.encode_residues("MJV").tolist() == [0, 20, 33, 7, 2]
    roles = {"sep_token": "<sep>", "additional_special_tokens": ["<three>"]}
    assert tokenizer.add_special_tokens(roles) == 2
    assert (tokenizer.sep_token_id, tokenizer.additional_special_tokens) == (35, ["<three>"])
    kept = {"replace_additional_special_tokens": False}
    assert tokenizer.add_special_tokens({"additional_special_tokens": ["<two>"]}, **kept) == 0
    assert tokenizer.add_special_tokens({"additional_special_tokens": []}) == 0
    assert tokenizer.additional_special_tokens == ["<three>", "<two>"]
    assert tokenizer.decode([35, 20, 34], spaces_between_special_tokens=False) == "<sep> M<two>"
    with pytest.raises(InputError, match="'gap_token' is no role"):
        tokenizer.add_special_tokens({"gap_token": "-"})
    with pytest.raises(InputError, match=r"token 5 is of type int; give a str"):
        tokenizer.add_tokens(5)
    later = EsmTokenizer(ALPHABET, extra_special_tokens={"gap_token": "<gap>"})  # as 5.x has it
    assert later("<gap>").input_ids == [0, 33, 2]
    single_word = transformers.AddedToken("GG", single_word=True)
    with pytest.raises(InputError, match="'GG': single_word is not supported"):
        tokenizer.add_tokens([single_word])


def test_roles_can_be_set_and_unset() -> None:
    tokenizer = EsmTokenizer.standard()
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer(["M", "MK"], padding=True).input_ids == [[0, 20, 2, 2], [0, 20, 15, 2]]
    tokenizer.pad_token_id = 29
    assert tokenizer.pad_token == "."
    tokenizer.pad_token = None
    assert tokenizer.pad_token_id is None
    with pytest.raises(InputError, match=r"padding without a pad_token; set tokenizer\.pad_token"):
        tokenizer(["M", "MK"], padding=True)
    tokenizer.eos_token = tokenizer.cls_token = None
    assert tokenizer("MK").input_ids == tokenizer.encode_residues("MK").tolist() == [20, 15]
    assert tokenizer.get_special_tokens_mask([20, 15]) == [0, 0]
    with pytest.raises(InputError, match="a pair of sequences needs an eos_token"):
        tokenizer("M", "K")


@settings(max_examples=200)
@given(sequence=RESIDUE_TEXT)
def test_fast_path_for_residues(ours: EsmTokenizer, sequence: str) -> None:
    found = ours.encode_residues(sequence)
    assert found.dtype == np.int64
    assert found.tolist() == ours.build_inputs_with_special_tokens(
        ours.convert_tokens_to_ids(list(sequence))
    )


@given(text=TEXT)
def test_residues_of_any_text_are_those_of_a_call_or_refused(ours: EsmTokenizer, text: str) -> None:
    """A text of known tokens gives the same as a call; other text never becomes `<unk>`."""
    known = all(token in ours.get_vocab() for token in ours.tokenize(text))
    known = known and all(one in string.whitespace for one in text if one.isspace())
    try:
        found = ours.encode_residues(text).tolist()
    except InputError as error:
        message = str(error)
    else:
        assert found.count(ours.unk_token_id) == text.count("<unk>")
        assert not known or found == ours(text).input_ids
        return
    assert not known
    place = int(re.search(r" at place (\d+) is ", message)[1])
    assert message.startswith(f"{text[place - 1]!a} at place")


SPELLINGS = [
    ("mktayi", "MKTAYI"),
    ("MK tay\ni\t", "MKTAYI"),
    (" mk*\n", "MK"),
    ("MK**", "MK"),
    ("mJj", "MXX"),
    ("mk<mask>v*", "MK<mask>V"),
    ("<cls>m k<eos>", "<cls>MK<eos>"),
    ("m.-k", "M.-K"),
]


@pytest.mark.parametrize(("written", "read"), SPELLINGS)
def test_residues_are_read_as_they_are_written(ours: EsmTokenizer, written: str, read: str) -> None:
    """A call takes them as transformers does: lower case is unknown there."""
    expected = ours(read).input_ids
    assert ours.unk_token_id not in expected
    assert ours.encode_residues(written).tolist() == expected
    split = EsmTokenizer(ALPHABET, split_special_tokens=True)
    assert split.encode_residues(written).tolist() == expected
    assert ours("mkt").input_ids == [0, 3, 2]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("MK7", "'7' at place 3 is no residue; correct the sequence"),
        ("m k*v", "'*' at place 4 is inside the sequence; correct the sequence"),
        ("MK<msk>", "'<' at place 3 is no residue"),
        ("MK\u00e9", "'\\xe9' at place 3 is no residue"),
        ("<mask>?", "'?' at place 7 is no residue"),
    ],
)
def test_what_is_no_residue_is_refused(ours: EsmTokenizer, written: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        ours.encode_residues(written)


def test_other_vocabularies_are_spelled_in_their_own_case() -> None:
    lower = EsmTokenizer([*ALPHABET, *"k*"])
    assert lower.encode_residues("Mkm*").tolist() == [0, 20, 33, 20, 34, 2]
    bare = EsmTokenizer([one for one in ALPHABET if one != "X"])
    with pytest.raises(InputError, match="'J' at place 2 is no residue"):
        bare.encode_residues("MJ")


def test_fast_path_does_not_miss_longer_tokens() -> None:
    tokenizer = EsmTokenizer([*ALPHABET, "GG"])
    assert tokenizer.encode_residues("AGGGA").tolist() == [0, 5, 33, 6, 5, 2]
    assert tokenizer.encode_residues("AGGGA").tolist() == tokenizer("AGGGA").input_ids
    many = EsmTokenizer([*ALPHABET[:4], *(f"<{n}>" for n in range(300)), *ALPHABET[4:]])
    assert many.encode_residues("LA").tolist() == many("LA").input_ids == [0, 304, 305, 2]


def test_a_million_residues_are_fast(ours: EsmTokenizer) -> None:
    texts = [RESIDUES * 20] * 500
    start = time.process_time()
    rows = [ours.encode_residues(text) for text in texts]
    fast = time.process_time() - start
    start = time.process_time()
    batch = ours(texts, return_tensors="pt")
    assert fast < 0.2  # 0.004 s measured for these 200,000
    assert time.process_time() - start < 1  # 0.06 s measured
    assert batch.input_ids[3].tolist() == rows[3].tolist()


def test_vocabulary_has_to_fit_the_model(ours: EsmTokenizer) -> None:
    ours.require_fit(33)
    ours.require_fit(64)
    with pytest.raises(WeightsError, match="33 tokens, the model 32"):
        ours.require_fit(32)
    with pytest.raises(WeightsError, match="no token for residue W"):
        EsmTokenizer([token for token in ALPHABET if token != "W"]).require_fit(33)
    with pytest.raises(WeightsError, match=r"has no <mask>; is vocab\.txt whole"):
        EsmTokenizer(ALPHABET[:-1]).require_fit(33)


def test_encoding_is_a_mapping_that_moves_and_pickles(ours: EsmTokenizer) -> None:
    found = ours(["MK", "VA"], return_tensors="pt")
    assert dict(**found).keys() == found.keys() == {"input_ids", "attention_mask"}
    assert len(found) == 2
    assert found.to("meta") is found
    assert found["input_ids"].device.type == "meta"
    assert ours("M").to("cpu").input_ids == [0, 20, 2]  # lists stay
    with pytest.warns(UserWarning, match=r"none as torch\.float16"):
        assert found.to(torch.float16) is found
    pairs = ours(["MK", "VA"])
    for again in (pickle.loads(pickle.dumps(pairs)), copy.copy(pairs), pairs.copy()):  # noqa: S301
        assert type(again) is BatchEncoding
        assert again == pairs
        assert again.input_ids == pairs["input_ids"]
    assert pairs[1:] == {"input_ids": [[0, 7, 5, 2]], "attention_mask": [[1] * 4]}
    with pytest.raises(KeyError, match="0 is no key; use one of input_ids"):
        pairs[0]
    with pytest.raises(AttributeError, match="has no 'nothing'"):
        _ = pairs.nothing
    assert BatchEncoding({"a": [1]}, tensor_type="np", prepend_batch_axis=True).a.shape == (1, 1)


def test_empty_texts(ours: EsmTokenizer) -> None:
    assert ours("").input_ids == [0, 2]
    bare = {"add_special_tokens": False}
    for kind, dtype in (("pt", torch.int64), ("np", np.dtype("int64"))):
        found = ours(["", " "], **bare, return_tensors=kind)
        assert (found.input_ids.shape, found.input_ids.dtype) == ((2, 0), dtype)
    assert ours("", **bare, padding="max_length", max_length=3).input_ids == [1, 1, 1]
    with pytest.raises(InputError, match="'input_ids' makes no tensor"):
        ours(["", "L"], **bare, return_tensors="pt")  # torch.tensor would lose the residue


def test_data_loader_workers_take_it(ours: EsmTokenizer) -> None:
    rows = [ours(text) for text in ("MKV", "M", "MKVLA", "A")]
    copied = pickle.loads(pickle.dumps(ours))  # noqa: S301
    loader = DataLoader(rows, batch_size=2, num_workers=1, collate_fn=copied.pad)
    batches = list(loader)
    assert [len(batch.input_ids[0]) for batch in batches] == [5, 7]
    assert batches[0] == ours(["MKV", "M"], padding=True)


def test_pad_keeps_what_it_was_given(ours: EsmTokenizer) -> None:
    rows = [ours("MKV", return_tensors="pt"), ours("M", return_tensors="pt")]
    flat = [{name: value[0] for name, value in row.items()} for row in rows]
    assert torch.equal(
        ours.pad(flat).input_ids, ours(["MKV", "M"], padding=True, return_tensors="pt").input_ids
    )
    arrays = [{"input_ids": np.array([0, 20, 2]), "labels": 0.5}]
    assert ours.pad(arrays).input_ids.dtype == np.int64
    assert ours.pad(arrays, return_tensors="pt").labels.dtype == torch.float32
    given_rows = {"input_ids": [[0, 20, 2], [0, 2]]}
    assert ours.pad(given_rows, padding_side="left").input_ids == [[0, 20, 2], [1, 0, 2]]
    assert given_rows == {"input_ids": [[0, 20, 2], [0, 2]]}


def test_ignored_and_implied_options_warn_once() -> None:
    tokenizer = EsmTokenizer(ALPHABET, model_max_length=4)
    expected = {
        "texts are cut to it; say so with truncation=True": {"max_length": 3},
        "padding=True ignores max_length": {"max_length": 3, "padding": True},
        "a text has 5 tokens, the model takes 4; truncate it": {},
        "the first sequence has 3 tokens, and 3 too many": {"max_length": 2, "truncation": True},
    }
    for message, options in expected.items():
        with pytest.warns(UserWarning, match=message):
            tokenizer("MKV", **options)
    unlimited = EsmTokenizer.standard()
    with pytest.warns(UserWarning, match="the model has none: no padding"):
        assert unlimited("M", padding="max_length").input_ids == [0, 20, 2]
    with pytest.warns(UserWarning, match="the model has none: no truncation"):
        assert unlimited("M", truncation=True).input_ids == [0, 20, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer("MKVL")  # it has warned already
        EsmTokenizer(ALPHABET, model_max_length=4)("MKVL", verbose=False)
        EsmTokenizer(ALPHABET, model_max_length=4).encode_residues("MKVl")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"return_tensors": "pt"}, "'input_ids' makes no tensor: .* padding=True"),
        ({"padding": "junk"}, "padding='junk' is not known; use True, False or one of 'longest'"),
        ({"truncation": "junk"}, "truncation='junk' is not known; use True, False or one of"),
        ({"return_tensors": "tf"}, "return_tensors='tf' is not known; use 'pt', 'np' or None"),
        ({"max_length": "5"}, "max_length='5' is not a whole number above 0"),
        ({"max_length": 0}, "max_length=0 is not a whole number above 0"),
        ({"padding_side": "up"}, "padding_side='up' is not 'right' or 'left'"),
        ({"return_offsets_mapping": True}, "return_offsets_mapping is not available"),
        (
            {"return_token_type_ids": True, "add_special_tokens": False},
            "return_token_type_ids needs add_special_tokens",
        ),
        (
            {"padding": True, "truncation": True, "max_length": 6, "pad_to_multiple_of": 4},
            "max_length=6, to which texts are cut, is no multiple of pad_to_multiple_of=4",
        ),
        (
            {
                "text_pair": ["M", "K"],
                "truncation": True,
                "return_overflowing_tokens": True,
                "max_length": 9,
            },
            "return_overflowing_tokens of a pair needs truncation='only_first'",
        ),
        ({"text_pair": "MK"}, "text_pair is one str, but there are 2 texts"),
        ({"text_pair": ["MK"]}, "text_pair is 1 of them, but there are 2 texts"),
    ],
)
def test_options_that_cannot_be(ours: EsmTokenizer, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        ours(["MK", "MKV"], **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (None, "nothing to encode; give text or text_target"),
        (5, "a text is a str, a list of str"),
        ([5, 6], "a text is a str, a list of str"),
        (np.array(["MK"]), "a text is a str, a list of str"),
        ([], "a list of no texts; give at least one"),
        (["MK", None], "a text is NoneType; give a str, tokens or ids"),
        ([["M", "K", "V"]], "text 0 has 3 parts; a pair has two"),
        ([["M", []]], "a text is an empty list; give a str"),
    ],
)
def test_texts_that_are_none(ours: EsmTokenizer, texts: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ours(texts)


def test_more_errors(ours: EsmTokenizer) -> None:
    with pytest.raises(TypeError, match=r"no option 'paddding'; use padding"):
        ours("M", paddding=True)
    with pytest.raises(InputError, match="encodings to pad need input_ids; there are labels"):
        ours.pad([{"labels": 1}])
    with pytest.raises(InputError, match="1 of 'input_ids', 2 of 'labels'"):
        ours.pad({"input_ids": [[1]], "labels": [1, 2]})
    with pytest.raises(InputError, match="already come as one list"):
        ours.get_special_tokens_mask([0], [1], already_has_special_tokens=True)
    with pytest.raises(InputError, match="'j' is no token, and the vocabulary has no unk_token"):
        EsmTokenizer(ALPHABET, unk_token=None)("Mj")
    with pytest.raises(InputError, match="padding_side 'up' is not 'right' or 'left'"):
        EsmTokenizer(ALPHABET, padding_side="up")


def test_old_options_are_understood(ours: EsmTokenizer) -> None:
    """As transformers 4.37.2 reads them, with a warning; today's options win."""
    texts = ["MKV", "MKVLAAG"]
    with pytest.warns(UserWarning, match="'pad_to_max_length' is an old option; use padding='max"):
        found = ours(texts, pad_to_max_length=True, max_length=7)
    assert found == ours(texts, padding="max_length", truncation=True, max_length=7)
    again = EsmTokenizer(ALPHABET)
    with pytest.warns(UserWarning, match="'pad_to_max_length'"):
        assert again(texts, pad_to_max_length=True) == ours(texts, padding=True)
    with pytest.warns(UserWarning, match="'truncation_strategy' is an old option"):
        found = again(texts, truncation_strategy="only_first", max_length=5)
    assert found == ours(texts, truncation="only_first", max_length=5)
    assert again(texts, pad_to_max_length=False) == ours(texts)
    found = again(texts, pad_to_max_length=True, padding="longest", max_length=30, truncation=True)
    assert found == ours(texts, padding="longest")
