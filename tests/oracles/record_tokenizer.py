"""Record what the tokenizer of transformers 4.37.2 answers to thousands of random calls.

In an environment with that version, from the root of the repository:

    python -m tests.oracles.record_tokenizer tests/oracles/tokenizer_4.37.2.json.xz

The tests replay the calls on ours and compare; they import this module for the tokenizers and never
write the file.
"""

from __future__ import annotations

import json
import logging
import lzma
import random
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SEED = 20240131
CALLS = {"standard": 2400, "left": 500, "limited": 500, "folding": 500, "other": 500}
CALLS |= {"roles": 400, "no eos": 200, "added": 300, "no pad": 100}

STANDARD = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-"]
STANDARD += ["<null_1>", "<mask>"]
FOLDING = [*"ARNDCQEGHILKMFPSTWYVX", "<pad>", "<mask>", "<cls>", "<sep>", "<eos>"]
OTHER = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"ACDEFGHIKLMNPQRSTVWY", "ptm", "pS", "1"]
OTHER_ROLES = {"unk_token": "[UNK]", "cls_token": "[CLS]", "pad_token": "[PAD]"}
OTHER_ROLES |= {"mask_token": "[MASK]", "eos_token": "[SEP]"}

TOKENIZERS: dict[str, dict[str, Any]] = {
    "standard": {},
    "left": {"padding_side": "left", "truncation_side": "left"},
    "limited": {"model_max_length": 12},
    "folding": {"tokens": FOLDING, "after": {"pad_token_id": 0}},
    "other": {"tokens": OTHER, **OTHER_ROLES},
    "roles": {
        "bos_token": "<bos>",
        "sep_token": "<eos>",
        "additional_special_tokens": ["<one>", "-"],
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
    },
    "no eos": {"eos_token": None},
    "no pad": {"pad_token": None},
    "added": {"add": ["J", "<two>", "<mask>"]},
}
"""Arguments of each tokenizer; `build` uses `tokens`, `after` and `add`."""

PROPERTIES = (
    *("vocab_size", "all_special_tokens", "all_special_ids", "special_tokens_map", "is_fast"),
    *("additional_special_tokens", "additional_special_tokens_ids", "pad_token_type_id"),
    *("model_max_length", "max_len_single_sentence", "max_len_sentences_pair", "padding_side"),
    *("truncation_side", "model_input_names", "clean_up_tokenization_spaces"),
    *(f"{role}_token{end}" for end in ("", "_id") for role in ("bos", "eos", "unk", "sep")),
    *(f"{role}_token{end}" for end in ("", "_id") for role in ("pad", "cls", "mask")),
)

RESIDUES = "LAGVSERTIDPKQNFYMHWC"
PIECES = (
    *("<cls>", "<pad>", "<eos>", "<unk>", "<mask>", "<null_1>", "<bos>", "<one>", "<two>"),
    *("[MASK]", "[CLS]", "ptm", "pS", "pt", "[", " ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u3000"),
    *("X", "B", "U", "Z", "O", "J", ".", "-", "*", "1", "7", "m", "k", "v", "é", "Ω", "蛋", "\x00"),
    *("<", ">", "<mas", "mask>", "'", "?", "!", ",", "\U0001f9ec"),
)
"""What random texts are made of, in addition to residues."""


def build(kind: type, name: str, folder: Path) -> Any:
    """The tokenizer `name` of class `kind`; its vocabulary is written into `folder`."""
    settings = {**TOKENIZERS[name]}
    tokens, after = settings.pop("tokens", STANDARD), settings.pop("after", {})
    added = settings.pop("add", [])
    (folder / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    tokenizer = kind(str(folder / "vocab.txt"), **settings)
    if added:
        tokenizer.add_tokens(added)
    for attribute, value in after.items():
        setattr(tokenizer, attribute, value)
    return tokenizer


def plain(value: Any) -> Any:
    """An answer as JSON; encodings, tensors and arrays can be distinguished from lists."""
    if isinstance(value, Mapping) or hasattr(value, "items"):
        return {str(key): plain(one) for key, one in value.items()}
    if hasattr(value, "tolist") and hasattr(value, "shape"):
        kind = "array" if type(value).__module__ == "numpy" else "tensor"
        dtype = str(value.dtype).removeprefix("torch.")
        return {kind: plain(value.tolist()), "dtype": dtype, "shape": list(value.shape)}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return value


def answer(tokenizer: Any, method: str, arguments: list[Any], options: dict[str, Any]) -> Any:
    """What a call returns, or the name of the error it raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return plain(getattr(tokenizer, method)(*arguments, **options))
    except Exception as error:  # its kind is part of the answer
        return {"error": type(error).__name__}


class Calls:
    """Random calls, from a seed."""

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed)

    def text(self, most: int = 12) -> str:
        count = self.random.randint(0, most)
        odd = self.random.random() < 0.6
        pieces = (*RESIDUES, *PIECES) if odd else RESIDUES
        return "".join(self.random.choice(pieces) for _ in range(count))

    def texts(self) -> list[str]:
        return [self.text() for _ in range(self.random.randint(1, 4))]

    def ids(self, most: int = 10) -> list[int]:
        return [self.random.randint(0, 36) for _ in range(self.random.randint(0, most))]

    def words(self) -> list[str]:
        return [self.text(4) for _ in range(self.random.randint(1, 4))]

    def options(self, kinds: tuple[Any, ...] = (None, "pt", "np")) -> dict[str, Any]:
        """Some of the options of a call, now and then impossible ones."""
        every = {
            "padding": (True, False, "longest", "max_length", "do_not_pad", "longer"),
            "truncation": (True, False, "longest_first", "only_first", "only_second", "most"),
            "max_length": (3, 5, 8, 12, 16),
            "add_special_tokens": (True, False),
            "pad_to_multiple_of": (4, 8),
            "return_tensors": (*kinds, "tf"),
            "return_special_tokens_mask": (True,),
            "return_length": (True,),
            "return_attention_mask": (True, False),
            "return_token_type_ids": (True,),
            "return_overflowing_tokens": (True,),
            "stride": (1, 2),
        }
        weights = {"padding": 0.5, "truncation": 0.5, "max_length": 0.5, "return_tensors": 0.25}
        found = {}
        for name, values in every.items():
            if self.random.random() < weights.get(name, 0.1):
                last = self.random.random() < 0.03
                found[name] = (
                    values[-1] if last else self.random.choice(values[: max(len(values) - 1, 1)])
                )
        return found

    def call(self) -> tuple[str, list[Any], dict[str, Any]]:
        """A method, its arguments and its options."""
        text, texts, ids = self.text, self.texts, self.ids
        split = {"is_split_into_words": True}
        pairs = [[text(), text()] for _ in range(self.random.randint(1, 3))]
        several = texts()
        rows = [{"input_ids": ids(), "labels": self.random.randint(0, 1)} for _ in range(3)]
        for row in rows:
            row["special_tokens_mask"] = [0] * len(row["input_ids"])
        encoded = self.random.choice([rows, rows[0], {"input_ids": [ids(), ids()]}, {"no": [1]}])
        skip = {"skip_special_tokens": self.random.random() < 0.5}
        decoding = self.random.choice([{}, skip, {**skip, "clean_up_tokenization_spaces": False}])
        return self.random.choice(
            [
                *[("__call__", [text()], self.options())] * 3,
                *[("__call__", [text(), text()], self.options())] * 2,
                *[("__call__", [several], self.options())] * 4,
                ("__call__", [pairs], self.options()),
                ("__call__", [several, [text() for _ in several]], self.options()),
                ("__call__", [several, texts()], self.options()),
                ("__call__", [self.words()], {**self.options(), **split}),
                ("__call__", [[self.words(), self.words()]], {**self.options(), **split}),
                ("__call__", [self.words(), self.words()], {**self.options(), **split}),
                ("__call__", [self.random.choice([None, 5, ids(), [None], [], [[]], ""])], {}),
                ("__call__", [text()], {"text_target": text()}),
                ("encode", [text()], self.options()),
                ("encode", [text(), text()], self.options()),
                ("encode", [ids()], self.options()),
                ("encode_plus", [list(text())], self.options()),
                ("encode_plus", [ids(), ids()], self.options()),
                ("batch_encode_plus", [several], self.options()),
                ("batch_encode_plus", [[[ids(), ids()]]], self.options()),
                ("prepare_for_model", [ids(), self.random.choice([None, ids()])], self.options()),
                ("pad", [encoded], self.padding()),
                *[("tokenize", [text(30)], {})] * 3,
                ("convert_tokens_to_ids", [self.random.choice([text(1), list(text()), None])], {}),
                ("convert_ids_to_tokens", [self.random.choice([ids(), 4, 77, -1])], skip),
                *[("decode", [ids()], decoding)] * 2,
                ("batch_decode", [[ids(), ids()]], decoding),
                ("build_inputs_with_special_tokens", self.one_or_two(), {}),
                ("get_special_tokens_mask", self.one_or_two(), {}),
                ("get_special_tokens_mask", [ids()], {"already_has_special_tokens": True}),
                ("get_special_tokens_mask", [ids(), ids(), True], {}),
                ("create_token_type_ids_from_sequences", self.one_or_two(), {}),
                ("num_special_tokens_to_add", [self.random.random() < 0.5], {}),
                (
                    "truncate_sequences",
                    [*self.one_or_two(), self.random.randint(0, 8)][:3],
                    {"truncation_strategy": self.random.choice(["only_first", "longest_first"])},
                ),
            ]
        )

    def one_or_two(self) -> list[Any]:
        return [self.ids(), self.random.choice([None, self.ids()])]

    def padding(self) -> dict[str, Any]:
        names = ("padding", "max_length", "pad_to_multiple_of", "return_attention_mask")
        return {k: v for k, v in self.options().items() if k in (*names, "return_tensors")}


def saved_files(tokenizer: Any) -> dict[str, str]:
    """Name → text of what `save_pretrained` writes."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_text("utf-8") for path in sorted(Path(folder).iterdir())}


def record() -> dict[str, Any]:
    """The golden: versions, seed, and for each tokenizer its properties, files and answers."""
    import torch
    import transformers

    logging.disable(logging.ERROR)
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    golden: dict[str, Any] = {"versions": versions, "seed": SEED, "tokenizers": {}}
    for name, count in CALLS.items():
        calls = Calls(f"{SEED} {name}")
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = build(transformers.EsmTokenizer, name, Path(folder))
            answers = []
            for _ in range(count):
                method, arguments, options = calls.call()
                given = json.loads(json.dumps([arguments, options]))
                answers.append([method, *given, answer(tokenizer, method, arguments, options)])
            golden["tokenizers"][name] = {
                "properties": {
                    key: answer(tokenizer, "__getattribute__", [key], {}) for key in PROPERTIES
                },
                "added": tokenizer.get_added_vocab(),
                "files": saved_files(tokenizer),
                "answers": answers,
            }
    return golden


def main() -> None:
    """Write the golden to the path given."""
    golden = record()
    if golden["versions"]["transformers"] != "4.37.2":
        sys.exit("run this in an environment with transformers 4.37.2")
    text = json.dumps(golden, ensure_ascii=True, separators=(",", ":"))
    Path(sys.argv[1]).write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))


if __name__ == "__main__":
    main()
