"""The tokenizer's files: what 4.37.2 wrote, what the current transformers writes, and ours."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest
import transformers

from esm_pipeline import EsmConfig, EsmTokenizer
from esm_pipeline.errors import WeightsError
from esm_pipeline.model.alphabet import ALPHABET
from esm_pipeline.model.checkpoints.hub import TOKENIZER_FILES
from esm_pipeline.model.tokenizer.files import (
    ADDED_FILE,
    ROLES_FILE,
    SETTINGS_FILE,
    VOCABULARY_FILE,
)
from esm_pipeline.model.tokenizer.vocabulary import AddedToken
from tests.oracles.record_tokenizer import PROPERTIES, TOKENIZERS, answer, build, saved_files

GOLDEN = Path(__file__).parents[2] / "oracles" / "tokenizer_4.37.2.json.xz"
OWN_SETTINGS = {"padding_side", "truncation_side", "split_special_tokens", "model_input_names"}
"""Settings that ours always writes, and the reference only if they were given."""

TEXTS = ["MKV<mask>", "M J<two>-.A", "<one>G<cls>A", "ptmGG[MASK]A"]


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lzma.decompress(GOLDEN.read_bytes()))["tokenizers"]
    return found


def write(files: dict[str, str], folder: Path) -> Path:
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def behaviour(tokenizer: Any) -> dict[str, Any]:
    """Results that differ between tokenizers with different settings."""
    names = ("all_special_tokens", "all_special_ids", "model_max_length", "padding_side")
    found = {name: getattr(tokenizer, name) for name in (*names, "truncation_side")}
    found["vocabulary"] = tokenizer.get_vocab()
    found["pad"] = (tokenizer.pad_token, tokenizer.pad_token_id)
    found["tokens"] = [tokenizer.tokenize(text) for text in TEXTS]
    found["ids"] = [tokenizer.convert_tokens_to_ids(tokens) for tokens in found["tokens"]]
    options = {"truncation": True, "return_token_type_ids": False}
    found["long"] = answer(tokenizer, "__call__", ["MKVA" * 10], options)
    ids = list(range(40))
    found["text"] = [tokenizer.decode(ids, skip_special_tokens=skip) for skip in (True, False)]
    return found


@pytest.mark.parametrize("name", TOKENIZERS)
def test_reads_what_4_37_2_wrote(golden: dict[str, Any], tmp_path: Path, name: str) -> None:
    (tmp_path / "built").mkdir()
    built = build(EsmTokenizer, name, tmp_path / "built")
    folder = write(golden[name]["files"], tmp_path)
    loaded = EsmTokenizer.from_pretrained(folder)
    for key in PROPERTIES:
        answers = [answer(one, "__getattribute__", [key], {}) for one in (built, loaded)]
        assert answers[0] == answers[1], key
    assert behaviour(loaded) == behaviour(built)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_writes_what_4_37_2_wrote(golden: dict[str, Any], tmp_path: Path, name: str) -> None:
    files, recorded = saved_files(build(EsmTokenizer, name, tmp_path)), golden[name]["files"]
    assert files.keys() == recorded.keys()
    assert files.pop("vocab.txt") == recorded["vocab.txt"]
    ours, theirs = (
        {key: json.loads(text) for key, text in one.items() if key != "vocab.txt"}
        for one in (files, recorded)
    )
    settings = ours["tokenizer_config.json"]
    extra = settings.keys() - theirs["tokenizer_config.json"].keys()
    assert extra <= OWN_SETTINGS
    for key in extra:
        settings.pop(key)
    for roles in (ours["special_tokens_map.json"], theirs["special_tokens_map.json"]):
        extra = roles.get("additional_special_tokens", [])
        roles["additional_special_tokens"] = [AddedToken.of(token).content for token in extra]
    assert ours == theirs


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_current_transformers_reads_ours(tmp_path: Path, name: str) -> None:
    ours = build(EsmTokenizer, name, tmp_path)
    ours.save_pretrained(tmp_path / "saved")
    theirs = transformers.EsmTokenizer.from_pretrained(tmp_path / "saved")
    found, expected = behaviour(theirs), behaviour(ours)
    assert found == expected
    again = EsmTokenizer.from_pretrained(tmp_path / "saved")
    assert behaviour(again) == expected


@pytest.mark.parametrize("name", TOKENIZERS)
def test_reads_what_the_current_transformers_writes(tmp_path: Path, name: str) -> None:
    theirs = build(transformers.EsmTokenizer, name, tmp_path)
    theirs.save_pretrained(tmp_path / "saved")
    ours = EsmTokenizer.from_pretrained(tmp_path / "saved", clean_up_tokenization_spaces=False)
    theirs.clean_up_tokenization_spaces = False
    assert behaviour(ours) == behaviour(theirs)


def test_all_files_that_are_read_are_fetched_from_the_hub() -> None:
    read = {VOCABULARY_FILE, SETTINGS_FILE, ROLES_FILE, ADDED_FILE}
    assert read == {*TOKENIZER_FILES}


def test_old_files(golden: dict[str, Any], tmp_path: Path) -> None:
    """As published with ESM-2: roles in a file of their own, as strings or with flags."""
    write({"vocab.txt": "\n".join([*ALPHABET[:-1], "J"])}, tmp_path)
    write({"tokenizer_config.json": '{"model_max_length": 1024}'}, tmp_path)
    mask = {"content": "<m>", "lstrip": True, "normalized": False}
    roles = {"mask_token": mask, "pad_token": "-", "additional_special_tokens": ["<x>"]}
    write({"special_tokens_map.json": json.dumps(roles)}, tmp_path)
    write({"added_tokens.json": '{"<x>": 40, "<m>": 33}'}, tmp_path)
    tokenizer = EsmTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.mask_token_id, tokenizer.pad_token_id) == (33, 30)
    assert (tokenizer.model_max_length, tokenizer.max_len_single_sentence) == (1024, 1022)
    assert tokenizer("M<m><x>J").input_ids == [0, 20, 33, 40, 32, 2]
    theirs = transformers.EsmTokenizer.from_pretrained(tmp_path)
    assert theirs("M<m><x>J").input_ids == [0, 20, 33, 40, 32, 2]
    assert EsmTokenizer.from_pretrained(tmp_path, pad_token="<pad>").pad_token_id == 1
    assert EsmTokenizer.from_pretrained(tmp_path, additional_special_tokens=["L"])("M<x>").input_ids
    tokenizer.save_pretrained(tmp_path / "again")
    again = EsmTokenizer.from_pretrained(tmp_path / "again")
    assert again.added_tokens_decoder[33].lstrip is False
    assert behaviour(again) == behaviour(tokenizer)


def test_a_folder_without_a_vocabulary(tmp_path: Path) -> None:
    EsmConfig(vocab_size=33).save_pretrained(tmp_path)
    write({"tokenizer_config.json": '{"padding_side": "left"}'}, tmp_path)
    tokenizer = EsmTokenizer.from_pretrained(tmp_path)
    assert tokenizer.all_tokens == [*ALPHABET]
    assert tokenizer.padding_side == "left"
    EsmConfig(vocab_size=30).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"no vocab\.txt in it, and not 33 tokens"):
        EsmTokenizer.from_pretrained(tmp_path)


def test_the_small_models_of_the_hub_have_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in 4.37.2, for their names on the hub only."""
    name = "facebook/esm2_t6_8M_UR50D"
    EsmTokenizer.standard().save_pretrained(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert EsmTokenizer.from_pretrained(name).model_max_length == 1024
    assert EsmTokenizer.from_pretrained(name, model_max_length=64).model_max_length == 64
    assert EsmTokenizer.from_pretrained(tmp_path / name).model_max_length == int(1e30)


def test_prefix_and_unknown_settings(tmp_path: Path) -> None:
    tokenizer = EsmTokenizer(ALPHABET, do_lower_case=False, chain=["A"])
    names = [Path(path).name for path in tokenizer.save_pretrained(tmp_path, filename_prefix="x")]
    expected = ["x-tokenizer_config.json", "x-special_tokens_map.json", "x-vocab.txt"]
    assert (
        names
        == expected
        == [
            path.name
            for path in map(Path, tokenizer.save_pretrained(tmp_path, filename_prefix="x"))
        ]
    )
    assert tokenizer.save_vocabulary(tmp_path) == (str(tmp_path / "vocab.txt"),)
    settings = json.loads((tmp_path / "x-tokenizer_config.json").read_text())
    assert (settings["do_lower_case"], settings["chain"]) == (False, ["A"])
    assert settings["tokenizer_class"] == "EsmTokenizer"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("tokenizer_config.json", "{", r"tokenizer_config\.json: not readable JSON"),
        ("tokenizer_config.json", "[]", "should hold a JSON object; is the file whole"),
        ("added_tokens.json", "nothing", r"added_tokens\.json: not readable JSON"),
        ("special_tokens_map.json", '{"pad_token": 5}', "token 5 is of type int; give a str"),
        ("tokenizer_config.json", '{"padding_side": "up"}', "'up' is not 'right' or 'left'"),
        ("added_tokens.json", '{"<x>": "y"}', "tokenizer files that cannot be used"),
        ("vocab.txt", "\ud800", r"vocab\.txt: not a readable vocabulary"),
    ],
)
def test_damaged_files(tmp_path: Path, file: str, text: str, message: str) -> None:
    write({"vocab.txt": "\n".join(ALPHABET)}, tmp_path)
    (tmp_path / file).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(WeightsError, match=message) as caught:
        EsmTokenizer.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_settings_file_names_no_other_file(tmp_path: Path) -> None:
    """A checkpoint's settings cannot make the tokenizer read something else on this machine."""
    (tmp_path / "elsewhere.txt").write_text("secret")
    write({"vocab.txt": "\n".join(ALPHABET)}, tmp_path)
    settings = {"vocab_file": str(tmp_path / "elsewhere.txt"), "name_or_path": "x"}
    write({"tokenizer_config.json": json.dumps(settings)}, tmp_path)
    assert EsmTokenizer.from_pretrained(tmp_path).all_tokens == [*ALPHABET]


def test_vocabulary_files(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes("\n".join(ALPHABET).replace("\n", " \r\n").encode())
    assert EsmTokenizer(tmp_path / "vocab.txt").all_tokens == [*ALPHABET]
    (tmp_path / "vocab.txt").write_text("A\n\nB\n")
    tokenizer = EsmTokenizer(str(tmp_path / "vocab.txt"))
    assert tokenizer.all_tokens == ["A", "", "B"]
    assert tokenizer.tokenize("A B") == ["A", "B"]
    assert tokenizer.eos_token_id == 3
    with pytest.raises(WeightsError, match="not a readable vocabulary"):
        EsmTokenizer(tmp_path / "none.txt")
