"""Configs and other files with excessive or impossible values: an error of one line, at once.

Each checkpoint is opened in a process with a limit on its memory; nothing is built for it.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from esm_pipeline import EsmConfig, EsmForMaskedLM, EsmForProteinFolding, EsmModel
from esm_pipeline.errors import InputError, WeightsError
from esm_pipeline.json_files import MOST_JSON_BYTES, read_object
from esm_pipeline.model.checkpoints.hub import shards_of
from esm_pipeline.model.folding.config import EsmFoldConfig
from esm_pipeline.model.folding.demo import write_demo
from esm_pipeline.tasks.common.model_file import read_model_file
from tests.oracles.peers import ESM1B, ESM2, SMALL
from tests.within import Outcome, judge

TEXTS = {
    "digits": ('{"num_hidden_layers": ' + "9" * 6000 + "}", "'num_hidden_layers' is a number of 6"),
    "digits in a list": ('{"a": [' + "9" * 6000 + "]}", "a number of 6,000 digits"),
    "deep": ('{"a": ' + "[" * 10**6 + "]" * 10**6 + "}", "nested more than 100 levels deep"),
    "rather deep": ('{"a": ' + "[" * 900 + "]" * 900 + "}", "nested more than 100 levels deep"),
    "large": ('{"a": "' + "x" * MOST_JSON_BYTES + '"}', "larger than 32 MiB"),
    "not an object": ("[" + "1," * 10**6 + "1]", "it should hold a JSON object"),
    "not UTF-8": (b'{"a": "\xff"}', "'utf-8' codec can't decode byte 0xff"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "'utf-8' codec can't decode byte 0xff"),
    "cut short": ('{"a": 1', "not a readable config (Expecting ',' delimiter"),
    "empty": ("", "not a readable config (Expecting value"),
    "two values": ('{"hidden_size": 1, "hidden_size": 2}', "two values for the key 'hidden_size'"),
}
"""Text of a config.json → the error message about it."""

PLACE = "and config.json do not belong together"
SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "labels": ({"num_labels": 10_000_000}, "num_labels is 10000000; a classifier needs at least"),
    "labels, billions": ({"num_labels": 10**12}, "num_labels is 1000000000000; a classifier"),
    "labels, none": ({"num_labels": -5}, "num_labels is -5; a classifier needs at least one"),
    "labels, no mapping": ({"id2label": 5}, "id2label should map numbers to names"),
    "labels, long": ({"id2label": ["x" * 10**6]}, "id2label should map numbers to names"),
    "layers": (
        {"num_hidden_layers": 10**9},
        "num_hidden_layers is 1000000000, but the weights have 3 of them; weights " + PLACE,
    ),
    "layers, few more": ({"num_hidden_layers": 4}, "is 4, but the weights have 3 of them"),
    "positions": ({"max_position_embeddings": 10**12}, "but the weights have 1026 ('embeddings.p"),
    "positions, rotary": (
        {"max_position_embeddings": 10**12, "position_embedding_type": "rotary"},
        "max_position_embeddings is 1000000000000; it should be a whole number from 1 to 100,000,",
    ),
    "width": (
        {"hidden_size": 10**12},
        "hidden_size is 1000000000000, but the weights have 48 ('embeddings.word_embeddings.w",
    ),
    "width, rotary": (
        {"hidden_size": 10**12, "position_embedding_type": "rotary", "num_attention_heads": 1},
        "hidden_size is 1000000000000, but the weights have 48",
    ),
    "feed-forward": ({"intermediate_size": 10**18}, "but the weights have 96 ('encoder.layer.0."),
    "tokens": ({"vocab_size": 10**15}, "vocab_size is 1000000000000000, but the weights have 33"),
    "heads": ({"num_attention_heads": 10**12}, "hidden_size 48 is not a multiple of"),
    "heads, pruned": ({"pruned_heads": {"0": "x" * 10**6}}, "layer 0 has no head 'x'"),
    "heads, no mapping": ({"pruned_heads": [[1] * 10**6]}, "pruned_heads should map layers"),
    "layers, pruned": ({"pruned_heads": {"9" * 4000: [0]}}, "there is no layer"),
    "infinite epsilon": ({"layer_norm_eps": float("inf")}, "layer_norm_eps is inf; it should be"),
    "no epsilon": ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan; it should be"),
    "large epsilon": ({"layer_norm_eps": 1e300}, "layer_norm_eps is 1e+300; it should be"),
    "dropout": ({"hidden_dropout_prob": 3}, "hidden_dropout_prob is 3; it should be a number"),
    "dropout of attention": ({"attention_probs_dropout_prob": "0"}, "is '0'; it should be a num"),
    "spread": ({"initializer_range": "x"}, "initializer_range is 'x'; it should be a number"),
    "infinite spread": ({"initializer_range": float("inf")}, "initializer_range is inf; it shou"),
    "tied, as text": ({"tie_word_embeddings": "false"}, "is 'false'; it should be true or false"),
    "dropout of tokens, as text": ({"token_dropout": "no"}, "is 'no'; it should be true or false"),
    "decoder, as text": ({"is_decoder": "false"}, "is 'false'; it should be true or false"),
    "floating layers": ({"num_hidden_layers": 2.0}, "num_hidden_layers is 2.0; it should be a wh"),
    "layers as text": ({"num_hidden_layers": "2" * 10**6}, "; it should be a whole number from 0"),
    "padding": ({"pad_token_id": 10**90}, "not the id of a token"),
    "mask": ({"mask_token_id": -1}, "mask_token_id is -1, not the id of a token"),
    "vocabulary": ({"vocab_list": [1, 2]}, "vocab_list is [1, 2]; it should be a list of tokens"),
    "positions, a list": ({"position_embedding_type": ["x"] * 10**6}, "is not one of absolute"),
    "problem": ({"problem_type": {"a": 1}}, "problem_type {'a': 1} is not one of"),
    "a method": ({"to_dict": 1}, "'to_dict' cannot be a setting; leave it out"),
    "a check": ({"require_supported": None}, "'require_supported' cannot be a setting"),
    "Python's": ({"__dict__": {}}, "'__dict__' cannot be a setting; leave it out"),
    "family": ({"model_type": "x" * 10**6}, "not 'esm'; choose a checkpoint of the ESM family"),
}
"""Settings that replace those of the checkpoint → the error message about them."""


def change(folder: Path, file: str, **values: Any) -> None:
    found = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**found, **values}))


def header(length: int, content: bytes, data: int = 0) -> bytes:
    return struct.pack("<Q", length) + content + bytes(data)


def entry(shape: list[int], start: int, stop: int, dtype: str = "F32") -> bytes:
    facts = {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}
    return json.dumps({"a": facts}).encode()


def two(*offsets: list[int]) -> bytes:
    facts = [{"dtype": "F32", "shape": [1], "data_offsets": place} for place in offsets]
    return json.dumps(dict(zip("ab", facts, strict=True))).encode()


LARGE = 2**40
WEIGHTS = {
    "header of a terabyte": header(LARGE, b"{}"),
    "header of 2^64": header(2**64 - 1, b"{}"),
    "header of 50 MB": header(50 << 20, b" " * (50 << 20)),
    "shape beyond the file": header(len(entry([LARGE], 0, 4)), entry([LARGE], 0, 4), 4),
    "shape that overflows": header(len(entry([2**62, 4], 0, 4)), entry([2**62, 4], 0, 4), 4),
    "shape below zero": header(len(entry([-1], 0, 4)), entry([-1], 0, 4), 4),
    "offsets beyond the file": header(
        len(entry([LARGE // 4], 0, LARGE)), entry([LARGE // 4], 0, LARGE), 4
    ),
    "offsets backwards": header(len(entry([1], 4, 0)), entry([1], 4, 0), 4),
    "overlap": header(len(two([0, 4], [0, 4])), two([0, 4], [0, 4]), 4),
    "gap": header(len(two([0, 4], [8, 12])), two([0, 4], [8, 12]), 12),
    "another type": header(len(entry([1], 0, 4, "F64")), entry([1], 0, 4, "F64"), 4),
    "deep": header(2 * 10**5, b"[" * 10**5 + b"]" * 10**5),
    "digits": header(10**4, b'{"a": ' + b"9" * (10**4 - 7) + b"}"),
}
"""Files that are named safetensors but are not."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    EsmForMaskedLM(EsmConfig(**SMALL, **ESM1B)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def outcomes(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Case → the message about its checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for case, (text, _) in TEXTS.items():
        shutil.copytree(checkpoint, folder / case)
        content = text.encode() if isinstance(text, str) else text
        (folder / case / "config.json").write_bytes(content)
    for case, (values, _) in SETTINGS.items():
        shutil.copytree(checkpoint, folder / case)
        change(folder / case, "config.json", **values)
    for case, weights in WEIGHTS.items():
        shutil.copytree(checkpoint, folder / f"w {case}")
        (folder / f"w {case}" / "model.safetensors").write_bytes(weights)
    return judge("esm_pipeline.model.EsmForMaskedLM.from_pretrained", folder)


QUOTED = {"labels", "layers", "positions", "positions, rotary", "digits", "width"}


@pytest.mark.parametrize("case", [*TEXTS, *SETTINGS])
def test_a_config_that_is_refused(case: str, outcomes: dict[str, Outcome]) -> None:
    assert (TEXTS | SETTINGS)[case][1] in outcomes[case].said
    assert f"/{case}" in outcomes[case].said
    outcomes[case].require_small()
    if case in QUOTED:
        assert outcomes[case].seconds < 0.5


@pytest.mark.parametrize("case", WEIGHTS)
def test_safetensors_that_are_refused(case: str, outcomes: dict[str, Outcome]) -> None:
    one = outcomes[f"w {case}"]
    assert "model.safetensors: not a whole safetensors file (" in one.said
    one.require_small()


FOLDING: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "blocks": (("trunk", "num_blocks"), 10**9, "num_blocks of the TrunkConfig is 1000000000"),
    "blocks, few more": (("trunk", "num_blocks"), 9, "trunk.num_blocks is 9, but the weights have"),
    "states": (("trunk", "sequence_state_dim"), 10**15, "sequence_state_dim of the TrunkConfig"),
    "states, wider": (("trunk", "sequence_state_dim"), 64, "is 64, but the weights have 32 ('tr"),
    "bins": (("trunk", "position_bins"), 10**15, "position_bins of the TrunkConfig is 1000000"),
    "head": (("trunk", "sequence_head_width"), 0, "sequence_head_width of the TrunkConfig is 0"),
    "recycles": (("trunk", "max_recycles"), 10**9, "max_recycles of the TrunkConfig is 10000000"),
    "chunk": (("trunk", "chunk_size"), -1, "chunk_size of the TrunkConfig is -1"),
    "dropout": (("trunk", "dropout"), "0", "dropout of the TrunkConfig is '0'"),
    "trunk": (("trunk",), 5, "TrunkConfig from 5; it should be a JSON object"),
    "passes": (("trunk", "structure_module", "num_blocks"), 10**9, "num_blocks of the Structure"),
    "rest": (("trunk", "structure_module", "num_resnet_blocks"), 10**9, "num_resnet_blocks of "),
    "rest, more": (
        ("trunk", "structure_module", "num_resnet_blocks"),
        5,
        "num_resnet_blocks is 5, but the weights have 2 of them",
    ),
    "transitions": (
        ("trunk", "structure_module", "num_transition_layers"),
        5,
        "num_transition_layers is 5, but the weights have 1 of them",
    ),
    "infinite": (("trunk", "structure_module", "inf"), float("inf"), "inf of the StructureModule"),
    "epsilon": (("trunk", "structure_module", "epsilon"), None, "epsilon of the StructureModule"),
    "attention, as text": (("use_esm_attn_map",), "false", "is 'false'; it should be true or fals"),
    "hidden": (("lddt_head_hid_dim",), 10**15, "lddt_head_hid_dim of the EsmFoldConfig is 100000"),
}


@pytest.fixture(scope="module")
def folding_outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    own = write_demo(tmp_path_factory.mktemp("demo"), EsmForProteinFolding)
    folder = tmp_path_factory.mktemp("checkpoints")
    for case, (keys, value, _) in FOLDING.items():
        shutil.copytree(own, folder / case)
        config = json.loads((own / "config.json").read_text())
        nested = config["esmfold_config"]
        for key in keys[:-1]:
            nested = nested[key]
        nested[keys[-1]] = value
        (folder / case / "config.json").write_text(json.dumps(config))
    return judge("esm_pipeline.EsmForProteinFolding.from_pretrained", folder)


@pytest.mark.parametrize("case", FOLDING)
def test_a_folding_config_that_is_refused(case: str, folding_outcomes: dict[str, Outcome]) -> None:
    one = folding_outcomes[case]
    assert FOLDING[case][2] in one.said
    one.require_small()


def test_a_config_without_weights() -> None:
    for name, value in {
        "num_hidden_layers": 10**9,
        "hidden_size": 12 * 10**12,
        "intermediate_size": 10**6000,
        "num_labels": 10**9,
    }.items():
        config = EsmConfig(vocab_size=33, pad_token_id=1, **{name: value})
        with pytest.raises(WeightsError, match=rf"config: {name} is .*(it should be|at most)"):
            EsmModel(config)
    with pytest.raises(WeightsError, match="num_blocks of the TrunkConfig is 1000000000"):
        EsmFoldConfig.read({"trunk": {"num_blocks": 10**9}})


def test_messages_about_numbers_given_in_python(checkpoint: Path) -> None:
    with pytest.raises(WeightsError, match="num_hidden_layers is a very large int, but the weigh"):
        EsmModel.from_pretrained(checkpoint, num_hidden_layers=10**6000)
    with pytest.raises(WeightsError, match="vocab_size is 40, but the weights have 33"):
        EsmModel.from_pretrained(checkpoint, vocab_size=40)
    with pytest.raises(WeightsError, match="is 4, but the weights have 3 of them"):
        EsmModel.from_pretrained(checkpoint, num_hidden_layers=4, ignore_mismatched_sizes=True)
    larger = EsmModel.from_pretrained(checkpoint, vocab_size=40, ignore_mismatched_sizes=True)
    assert larger.get_input_embeddings().weight.shape[0] == 40


LEGITIMATE = {
    "15B": {"num_hidden_layers": 48, "hidden_size": 5120, "num_attention_heads": 40},
    "positions": {"max_position_embeddings": 1_000_000, "position_embedding_type": "rotary"},
    "a table of positions": {"max_position_embeddings": 1_000_000},
    "labels": {"num_labels": 100_000},
    "1 for true": {"token_dropout": 1, "tie_word_embeddings": 0},
    "zeros": {"hidden_dropout_prob": 0, "initializer_range": 0},
}


@pytest.mark.parametrize("case", LEGITIMATE)
def test_what_large_models_need(case: str, tmp_path: Path) -> None:
    config = EsmConfig(**{**SMALL, **ESM1B, **LEGITIMATE[case]})
    config.save_pretrained(tmp_path)
    again = EsmConfig.from_pretrained(tmp_path)
    assert again == config
    again.require_supported()


def test_100000_named_labels(tmp_path: Path) -> None:
    names = {
        number: f"GO:{number:07} regulation of something with a long name"
        for number in range(10**5)
    }
    EsmConfig(**SMALL, **ESM2, id2label=names).save_pretrained(tmp_path)
    again = EsmConfig.from_pretrained(tmp_path)
    assert again.num_labels == 10**5
    assert again.id2label == names


def test_the_same_value_twice_is_harmless(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('\ufeff{"a": [1], "a": [1], "b": 1e30, "c": -0}', "utf-8")
    assert read_object(tmp_path / "a.json") == {"a": [1], "b": 1e30, "c": 0}


INDEX = "pytorch_model.bin.index.json"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["../other.bin"], "is not the name of a file in its folder"),
        (["/etc/passwd"], "is not the name of a file in its folder"),
        ([".."], "is not the name of a file in its folder"),
        ([""], "is not the name of a file in its folder"),
        (["a\nb.bin"], "is not the name of a file in its folder"),
        (["x" * 10**6], "is not the name of a file in its folder"),
        (["a\0b"], "is not the name of a file in its folder"),
        ([5], "is not the name of a file in its folder"),
        ([["a"]], "not a readable index"),
        ([], "lists no weight files"),
        ([f"{number}.bin" for number in range(10**5)], "which is not there"),
    ],
    ids=[
        "up",
        "absolute",
        "dots",
        "empty",
        "lines",
        "long",
        "NUL",
        "number",
        "list",
        "none",
        "many",
    ],
)
def test_an_index_that_is_refused(names: list[Any], message: str, tmp_path: Path) -> None:
    EsmConfig(**SMALL, **ESM2).save_pretrained(tmp_path)
    places = {f"w{place}": name for place, name in enumerate(names)}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": places}))
    with pytest.raises(WeightsError, match=message) as caught:
        EsmModel.from_pretrained(tmp_path)
    assert str(tmp_path / INDEX) in str(caught.value)
    assert len(str(caught.value).replace(str(tmp_path), "")) < 300
    assert str(caught.value).isprintable()


def test_an_index_that_is_too_large(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_bytes(b" " * (MOST_JSON_BYTES + 1))
    with pytest.raises(WeightsError, match=r"not a readable index .*larger than 32 MiB"):
        shards_of(tmp_path / INDEX)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 10**6, "nested more than 100 levels deep"),
        ('{"format": ' + "9" * 6000 + "}", "'format' is a number of 6,000 digits"),
        (" " * (MOST_JSON_BYTES + 1), "larger than 32 MiB"),
        ("[]", "should hold a JSON object"),
        ("{}", "not a model file; make one with"),
    ],
    ids=["deep", "digits", "large", "list", "empty"],
)
def test_a_model_file_that_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_model_file(path)


TOKENIZERS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "vocabulary": (
        "vocab.txt",
        lambda path: path.write_bytes(b"A\n" * (9 << 20)),
        "not a readable vocabulary (larger than 16 MiB)",
    ),
    "settings": (
        "tokenizer_config.json",
        lambda path: path.write_bytes(b" " * (MOST_JSON_BYTES + 1)),
        "not readable JSON: larger than 32 MiB",
    ),
    "deep": (
        "special_tokens_map.json",
        lambda path: path.write_text('{"a": ' + "[" * 10**6),
        "not readable JSON: nested more than 100 levels deep",
    ),
    "digits": (
        "added_tokens.json",
        lambda path: path.write_text('{"<x>": ' + "1" * 6000 + "}"),
        "not readable JSON: '<x>' is a number of 6,000 digits",
    ),
    "no limit on the length": (
        "tokenizer_config.json",
        lambda path: path.write_text('{"model_max_length": 1000000000000000019884624838656}'),
        "",
    ),
}


def test_tokenizer_files_that_are_refused(tmp_path: Path) -> None:
    EsmConfig(**SMALL, **ESM2).save_pretrained(tmp_path / "own")
    for case, (file, write, _) in TOKENIZERS.items():
        folder = tmp_path / "all" / case
        shutil.copytree(tmp_path / "own", folder)
        write(folder / file)
    outcomes = judge("esm_pipeline.EsmTokenizer.from_pretrained", tmp_path / "all")
    for case, (file, _, message) in TOKENIZERS.items():
        assert message in outcomes[case].said
        assert (f"{file}: " in outcomes[case].said) == bool(message), "the last is read"
        outcomes[case].require_small()


@pytest.mark.parametrize(
    ("name", "shape"),
    [("a\nb", [1]), ("x" * 10**6, [1]), ("\x1b[31m", [1]), ("a", [1] * 10**5)],
    ids=["lines", "long", "colours", "dimensions"],
)
def test_names_of_tensors_that_are_refused(
    name: str, shape: list[int], checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    facts = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}
    content = json.dumps({name: facts}).encode()
    (tmp_path / "model.safetensors").write_bytes(header(len(content), content, 4))
    with pytest.raises(
        WeightsError, match=r"safetensors: .* has a name or a shape that no tensor"
    ) as caught:
        EsmModel.from_pretrained(tmp_path)
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


def test_weights_of_another_class(checkpoint: Path, tmp_path: Path) -> None:
    """The class in the config may be any value."""
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    change(tmp_path, "config.json", architectures=["x\n" * 10**6])
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    del state["esm.encoder.layer.1.output.dense.bias"]
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"no 'encoder\.layer\.1\.output\.dense\.b") as caught:
        EsmModel.from_pretrained(tmp_path)
    assert len(str(caught.value)) < 400
    with pytest.raises(
        WeightsError, match="have 0 of them; load them with EsmForMaskedLM"
    ) as caught:
        EsmForProteinFolding.from_pretrained(
            tmp_path, is_folding_model=True, esmfold_config={"trunk": {"num_blocks": 0}}
        )
    assert len(str(caught.value)) < 400
