"""The tokenizer compared with transformers: 4.37.2 as recorded, and the current one live."""

from __future__ import annotations

import contextlib
import copy
import json
import lzma
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from esm_pipeline import EsmTokenizer
from esm_pipeline.errors import EsmPipelineError
from tests.oracles.record_tokenizer import (
    CALLS,
    PIECES,
    PROPERTIES,
    RESIDUES,
    SEED,
    STANDARD,
    TOKENIZERS,
    answer,
    build,
)

GOLDEN = Path(__file__).parents[2] / "oracles" / "tokenizer_4.37.2.json.xz"
TEXT = st.lists(st.sampled_from([*RESIDUES, *PIECES]), max_size=20).map("".join)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lzma.decompress(GOLDEN.read_bytes()))
    return found


@pytest.fixture(scope="module")
def ours() -> EsmTokenizer:
    return EsmTokenizer.standard()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[transformers.EsmTokenizer]:
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield build(transformers.EsmTokenizer, "standard", tmp_path_factory.mktemp("vocabulary"))
    transformers.logging.set_verbosity(level)


# 4.37.2, from the golden
def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def deliberate(name: str, method: str, options: dict[str, Any], found: Any, expected: Any) -> bool:
    """Whether ours answers differently on purpose, as the docstrings say."""
    errors = [isinstance(one, dict) and "error" in one for one in (found, expected)]
    if all(errors):
        return True  # its kind differs: InputError here, ValueError or TypeError there
    text = json.dumps(expected)
    if name == "folding" and ("null" in text or errors[0]):  # None for unknown tokens there
        return errors[0] or method == "convert_tokens_to_ids" or "tensor" in str(found)
    if name == "no eos" and "special_tokens_mask" in method + text:  # a 1 for the absent <eos>
        return True
    if options.get("return_overflowing_tokens"):  # crashes without max_length, or on an empty list
        return errors[1] or as_json(found) == as_json(json.loads(no_floats(text)))
    return as_json(found) == json.loads(no_floats(text))  # empty rows become floats there


def no_floats(text: str) -> str:
    return text.replace('"float64"', '"int64"').replace('"float32"', '"int64"')


def disagreements(tokenizer: EsmTokenizer, name: str, recorded: dict[str, Any]) -> Iterator[Any]:
    """Calls that ours answers differently from 4.37.2, without the deliberate ones."""
    for method, arguments, options, expected in recorded["answers"]:
        found = answer(tokenizer, method, copy.deepcopy(arguments), options)
        if as_json(found) != expected and not deliberate(name, method, options, found, expected):
            yield method, arguments, options, found, expected


def test_golden_is_of_the_reference_and_rich(golden: dict[str, Any]) -> None:
    assert golden["versions"]["transformers"] == "4.37.2"
    assert golden["seed"] == SEED
    recorded = golden["tokenizers"]
    assert {name: len(one["answers"]) for name, one in recorded.items()} == CALLS
    answers = [one for part in recorded.values() for one in part["answers"]]
    assert sum(CALLS.values()) > 5000
    assert min(Counter(method for method, *_ in answers).values()) > 30
    errors = sum(isinstance(one[-1], dict) and "error" in one[-1] for one in answers)
    assert 0.02 < errors / len(answers) < 0.3
    texts = {text for _, arguments, _, _ in answers for text in map(json.dumps, arguments)}
    assert len(texts) > 4000


@pytest.mark.parametrize("name", TOKENIZERS)
def test_like_4_37_2(golden: dict[str, Any], tmp_path: Path, name: str) -> None:
    tokenizer, recorded = build(EsmTokenizer, name, tmp_path), golden["tokenizers"][name]
    properties = {key: answer(tokenizer, "__getattribute__", [key], {}) for key in PROPERTIES}
    if name == "no eos":
        assert properties.pop("max_len_sentences_pair") == {"error": "InputError"}
        assert recorded["properties"].pop("max_len_sentences_pair") == {"error": "ValueError"}
    assert as_json(properties) == recorded["properties"]
    assert tokenizer.get_added_vocab() == recorded["added"]
    assert next(disagreements(tokenizer, name, recorded), None) is None


def test_departures_are_few(golden: dict[str, Any], tmp_path: Path) -> None:
    """Most of the calls with different answers have unknown tokens of ESMFold's vocabulary."""
    count: Counter[str] = Counter()
    for name, recorded in golden["tokenizers"].items():
        (tmp_path / name).mkdir()
        tokenizer = build(EsmTokenizer, name, tmp_path / name)
        for method, arguments, options, expected in recorded["answers"]:
            found = as_json(answer(tokenizer, method, copy.deepcopy(arguments), options))
            both_fail = "error" in str(found)[:9] and "error" in str(expected)[:9]
            count[name] += found != expected and not both_fail
    assert count["standard"] < 0.03 * CALLS["standard"], count
    assert sum(count.values()) < 0.06 * sum(CALLS.values()), count


class LettersApart(EsmTokenizer):
    def tokenize(self, text: str, split_special_tokens: bool | None = None) -> list[str]:
        return [t for part in super().tokenize(text) for t in (part if len(part) < 4 else [part])]


class NoCleaning(EsmTokenizer):
    clean_up_tokenization_spaces = False


class CutOtherSide(EsmTokenizer):
    truncation_side = "left"


class PadOtherSide(EsmTokenizer):
    padding_side = "left"


class OneEos(EsmTokenizer):
    def build_inputs_with_special_tokens(self, ids_0: list, ids_1: list | None = None) -> list[int]:
        return super().build_inputs_with_special_tokens([*ids_0, *(ids_1 or [])])


class PaddingUnmasked(EsmTokenizer):
    def pad(self, *arguments: Any, **options: Any) -> Any:
        padded = super().pad(*arguments, **options)
        if "attention_mask" in padded:
            padded["attention_mask"] = [[1] * len(row) for row in padded["input_ids"]]
        return padded


@pytest.mark.parametrize(
    "kind", [LettersApart, NoCleaning, CutOtherSide, PadOtherSide, OneEos, PaddingUnmasked]
)
def test_a_wrong_tokenizer_is_not_like_4_37_2(
    golden: dict[str, Any], tmp_path: Path, kind: type[EsmTokenizer]
) -> None:
    wrong = build(kind, "standard", tmp_path)
    assert next(disagreements(wrong, "standard", golden["tokenizers"]["standard"]), None)


# the current transformers, live
def same(ours: Any, theirs: Any, method: str, arguments: list[Any], options: dict) -> None:
    """Assert that both give the same answer to a call, or both raise an error."""
    found, expected = (
        as_json(answer(one, method, copy.deepcopy(arguments), options)) for one in (ours, theirs)
    )
    if isinstance(expected, dict) and "error" in expected:
        assert "error" in found
    else:
        assert found == expected


def leaves_whole(tokenizer: EsmTokenizer, arguments: Any, options: dict[str, Any]) -> bool:
    """Whether a sequence is left whole, as in 4.37.2, that would have to go completely."""
    tokenizer._warned.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with contextlib.suppress(EsmPipelineError):
            tokenizer(*arguments, **options)
    return any("left whole" in str(warning.message) for warning in caught)


def texts_in(value: Any) -> Iterator[str]:
    """Every text anywhere in the arguments of a call."""
    if isinstance(value, str):
        yield value
    else:
        for one in value:
            yield from texts_in(one)


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "padding": st.sampled_from([True, False, "longest", "max_length", "do_not_pad"]),
        "truncation": st.sampled_from([True, False, "only_first", "only_second"]),
        "max_length": st.integers(1, 30),
        "pad_to_multiple_of": st.integers(1, 9),
        "padding_side": st.sampled_from(["left", "right"]),
        "add_special_tokens": st.booleans(),
        "return_tensors": st.sampled_from(["pt", "np"]),
        "return_attention_mask": st.booleans(),
        "return_special_tokens_mask": st.booleans(),
        "return_length": st.booleans(),
    },
)


@settings(max_examples=400)
@given(
    arguments=st.one_of(
        st.tuples(TEXT),
        st.tuples(TEXT, TEXT),
        st.tuples(st.lists(TEXT, min_size=1, max_size=4)),
        st.tuples(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3)),
    ),
    options=OPTIONS,
)
def test_calls_like_the_current_one(
    ours: EsmTokenizer, theirs: transformers.EsmTokenizer, arguments: Any, options: dict[str, Any]
) -> None:
    assume(
        not leaves_whole(ours, arguments, options)
    )  # the current transformers leaves nothing of it
    if not options.get(
        "add_special_tokens", True
    ):  # the reference has errors for rows without tokens
        assume(all(map(ours.tokenize, texts_in(arguments))))
    same(ours, theirs, "__call__", list(arguments), options)


@settings(max_examples=300)
@given(text=TEXT, ids=st.lists(st.integers(-2, 40), max_size=12), skip=st.booleans())
def test_tokens_like_the_current_one(
    ours: EsmTokenizer, theirs: transformers.EsmTokenizer, text: str, ids: list[int], skip: bool
) -> None:
    same(ours, theirs, "tokenize", [text], {})
    same(ours, theirs, "convert_ids_to_tokens", [ids], {"skip_special_tokens": skip})
    for clean in (True, False):
        how = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": clean}
        same(ours, theirs, "decode", [ids], how)
    same(ours, theirs, "__call__", [text.split()], {"is_split_into_words": True})


WORDS = st.builds("{}{}".format, st.sampled_from("<["), st.text("AG]", max_size=3))


@settings(max_examples=150)
@given(
    words=st.lists(st.one_of(WORDS, st.sampled_from("LV")), min_size=1, unique=True),
    text=st.text("<[AG]LV ", max_size=30),
)
def test_other_vocabularies(
    tmp_path_factory: pytest.TempPathFactory, words: list[str], text: str
) -> None:
    """No token begins inside another, where the search of the reference has an error."""
    folder = tmp_path_factory.mktemp("other")
    (folder / "vocab.txt").write_text("\n".join(words))
    found, expected = (
        kind(str(folder / "vocab.txt")) for kind in (EsmTokenizer, transformers.EsmTokenizer)
    )
    assert found.get_vocab() == expected.get_vocab()
    assert found.tokenize(text) == expected.tokenize(text)
    letters = found.letters_of(text)
    if letters is not None:
        assert list(letters) == expected.convert_tokens_to_ids(expected.tokenize(text))


def test_where_tokens_overlap_the_first_is_taken() -> None:
    """The reference forgets that a token it had begun did not continue, and makes "xyQz" one."""
    assert EsmTokenizer(["xyz", "y"]).tokenize("xyQz xyz") == ["x", "y", "Qz", "xyz"]
    assert EsmTokenizer(["AGL", "GLVV", "A", "AG"]).tokenize("AGLVVAGA") == ["AGL", "VV", "AG", "A"]


@settings(max_examples=100)
@given(text=st.lists(st.sampled_from([*"a .?!,'", "n't", "'m", "'s", "'ve", "'re"])).map("".join))
def test_clean_up_like_the_current_one(theirs: transformers.EsmTokenizer, text: str) -> None:
    assert EsmTokenizer.clean_up_tokenization(text) == theirs.clean_up_tokenization(text)


@given(text=TEXT)
def test_split_at_blanks_only(theirs: transformers.EsmTokenizer, text: str) -> None:
    ours = EsmTokenizer(STANDARD, split_special_tokens=True)
    for found in (ours, EsmTokenizer.standard()):
        same(found, theirs, "__call__", [text], {"split_special_tokens": True})
    expected = ours(text, split_special_tokens=True).input_ids
    assert ours(text).input_ids == expected


def test_an_added_token_comes_before_the_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(STANDARD))
    added = {40: transformers.AddedToken("L"), 5: transformers.AddedToken("<a>")}
    for kind in (EsmTokenizer, transformers.EsmTokenizer):
        tokenizer = kind(str(tmp_path / "vocab.txt"), added_tokens_decoder=dict(added))
        assert tokenizer("ML<a>A").input_ids == [0, 20, 40, 5, 5, 2]
        assert tokenizer.convert_ids_to_tokens([4, 5, 40]) == ["L", "<a>", "L"]


def collators() -> dict[str, Any]:
    return {
        "padding": transformers.DataCollatorWithPadding,
        "tokens": transformers.DataCollatorForTokenClassification,
        "language": transformers.DataCollatorForLanguageModeling,
    }


@pytest.mark.parametrize("kind", collators())
def test_collators_take_it(
    ours: EsmTokenizer, theirs: transformers.EsmTokenizer, kind: str
) -> None:
    batches = []
    for tokenizer in (ours, theirs):
        torch.manual_seed(0)
        rows = [dict(tokenizer(text)) for text in ("MKV", "MKVLAAGMKVLAAG", "M")]
        for place, row in enumerate(rows):
            labels = {"padding": {"label": place / 2}, "tokens": {"labels": row["input_ids"]}}
            row.update(labels.get(kind, {}))
        batches.append(collators()[kind](tokenizer, pad_to_multiple_of=4)(rows))
    found, expected = batches
    assert found.keys() == expected.keys() >= {"input_ids", "attention_mask", "labels"}
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert all(found[key].dtype == expected[key].dtype for key in expected)
