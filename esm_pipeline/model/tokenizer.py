"""The ESM tokenizer: one token a residue, `<cls>` before and `<eos>` after.

Peer: transformers 4.37.2 `EsmTokenizer`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esm_pipeline.errors import InputError, WeightsError
from esm_pipeline.files import atomic_path
from esm_pipeline.model.hub import CONFIG_FILE, HUB_OPTIONS, find_file, resolve_file

ALPHABET = (
    *("<cls>", "<pad>", "<eos>", "<unk>"),
    *"LAGVSERTIDPKQNFYMHWCXBUZO.-",
    *("<null_1>", "<mask>"),
)
"""The 33 tokens of ESM-1b, ESM-1v and ESM-2, in the order of their ids."""

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
VOCABULARY_FILE = "vocab.txt"
Ids = list[int]


class BatchEncoding(dict[str, Any]):
    """`input_ids` and `attention_mask`, by key or as attributes; `model(**encoding)` takes it."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def to(self, device: torch.device | str) -> BatchEncoding:
        """The same with its tensors on `device`."""
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.items()}
        return BatchEncoding(moved)


def read_vocabulary(path: Path) -> list[str]:
    """The tokens of a vocabulary file, one a line. Raises WeightsError."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path}: not a readable vocabulary ({error})") from None


class EsmTokenizer:
    """Text to token ids and back. `vocab_file` has one token a line; a list of tokens will do."""

    model_input_names = ("input_ids", "attention_mask")
    padding_side = "right"

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | Sequence[str],
        unk_token: str = "<unk>",
        cls_token: str = "<cls>",
        pad_token: str = "<pad>",
        mask_token: str = "<mask>",
        eos_token: str = "<eos>",
        **kwargs: Any,
    ) -> None:
        source = "the vocabulary"
        if isinstance(vocab_file, (str, os.PathLike)):
            source, vocab_file = os.fspath(vocab_file), read_vocabulary(Path(vocab_file))
        self._set_up(list(vocab_file))
        self.unk_token, self.cls_token, self.pad_token = unk_token, cls_token, pad_token
        self.mask_token, self.eos_token = mask_token, eos_token
        self.model_max_length: int | None = kwargs.pop("model_max_length", None)
        for name in ("unk", "cls", "pad", "mask", "eos"):
            token = getattr(self, f"{name}_token")
            if token not in self._ids:
                raise WeightsError(f"{source}: no '{token}' in it, the {name} token")

    def _set_up(self, tokens: list[str]) -> None:
        self.all_tokens = tokens
        self._ids = {token: place for place, token in enumerate(tokens)}
        longest_first = sorted(filter(None, tokens), key=len, reverse=True)
        self._splitter = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    @classmethod
    def standard(cls) -> EsmTokenizer:
        """The tokenizer of ESM-1b, ESM-1v and ESM-2."""
        return cls(ALPHABET)

    @classmethod
    def from_pretrained(
        cls, path_or_hub_id: str | os.PathLike[str], **options: Any
    ) -> EsmTokenizer:
        """The tokenizer of a folder, a hub id or "demo".

        A checkpoint without `vocab.txt` whose config has the 33 standard tokens gets the standard
        alphabet. Raises WeightsError.
        """
        name = os.fspath(path_or_hub_id)
        where = {key: options.pop(key) for key in HUB_OPTIONS if key in options}
        vocabulary = find_file(name, VOCABULARY_FILE, **where)
        if vocabulary is None:
            config = json.loads(resolve_file(name, CONFIG_FILE, **where).read_text())
            if config.get("vocab_size") != len(ALPHABET):
                raise WeightsError(f"{name}: no {VOCABULARY_FILE} in it, and not 33 tokens")
            return cls.standard()
        return cls(vocabulary, **options)

    def save_vocabulary(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str]:
        """Write the vocabulary into a folder; returns the file's path."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        target = Path(save_directory) / f"{prefix}{VOCABULARY_FILE}"
        with atomic_path(target) as path:
            path.write_text("\n".join(self.all_tokens), encoding="utf-8")
        return (str(target),)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> tuple[str]:
        """Write the vocabulary and the tokenizer's config into a folder."""
        special = {f"{n}_token": getattr(self, f"{n}_token") for n in ("unk", "cls", "pad")}
        special |= {"mask_token": self.mask_token, "eos_token": self.eos_token}
        config = {**special, "tokenizer_class": "EsmTokenizer"}
        if self.model_max_length is not None:
            config["model_max_length"] = self.model_max_length
        files = {"tokenizer_config.json": config, "special_tokens_map.json": special}
        for name, content in files.items():
            with atomic_path(Path(save_directory) / name) as path:
                path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
        return self.save_vocabulary(save_directory)

    # ids of the special tokens
    @property
    def unk_token_id(self) -> int:
        """Id of the token for anything unknown."""
        return self._ids[self.unk_token]

    @property
    def cls_token_id(self) -> int:
        """Id of the token before the first residue (BOS)."""
        return self._ids[self.cls_token]

    @property
    def pad_token_id(self) -> int:
        """Id of the padding."""
        return self._ids[self.pad_token]

    @property
    def mask_token_id(self) -> int:
        """Id of the token in place of a hidden residue."""
        return self._ids[self.mask_token]

    @property
    def eos_token_id(self) -> int:
        """Id of the token after the last residue (EOS)."""
        return self._ids[self.eos_token]

    @property
    def all_special_ids(self) -> Ids:
        """Ids of the special tokens."""
        names = (self.eos_token, self.unk_token, self.pad_token, self.cls_token, self.mask_token)
        return [self._ids[name] for name in names]

    @property
    def vocab_size(self) -> int:
        """V, the number of tokens."""
        return len(self.all_tokens)

    def __len__(self) -> int:
        return len(self.all_tokens)

    def get_vocab(self) -> dict[str, int]:
        """Token → id."""
        return dict(self._ids)

    # text to tokens to ids, and back
    def tokenize(self, text: str) -> list[str]:
        """Tokens of `text`: those of the vocabulary, and what stands between, cut at spaces."""
        tokens: list[str] = []
        for part in self._splitter.split(text):
            tokens += [part] if part in self._ids else part.split()
        return tokens

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """Ids of tokens; of one for a string. Unknown ones become `<unk>`."""
        if isinstance(tokens, str):
            return self._ids.get(tokens, self.unk_token_id)
        return [self._ids.get(token, self.unk_token_id) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Tokens of ids; of one for an int. Ids outside the vocabulary become `<unk>`."""
        if isinstance(ids, int):
            return self.all_tokens[ids] if 0 <= ids < len(self) else self.unk_token
        special = set(self.all_special_ids) if skip_special_tokens else set()
        plain = [int(one) for one in ids]
        return [self.convert_ids_to_tokens(one) for one in plain if one not in special]

    def build_inputs_with_special_tokens(self, ids_0: Ids, ids_1: Ids | None = None) -> Ids:
        """`<cls>` ids `<eos>`, and for a pair ids `<eos>` again."""
        first = [self.cls_token_id, *ids_0, self.eos_token_id]
        return first if ids_1 is None else [*first, *ids_1, self.eos_token_id]

    def get_special_tokens_mask(
        self, ids_0: Ids, ids_1: Ids | None = None, already_has_special_tokens: bool = False
    ) -> Ids:
        """1 at special tokens, 0 at others."""
        if already_has_special_tokens:
            if ids_1 is not None:
                raise InputError("ids with special tokens already come as one list, not as a pair")
            special = set(self.all_special_ids)
            return [int(one in special) for one in ids_0]
        first = [1, *([0] * len(ids_0)), 1]
        return first if ids_1 is None else [*first, *([0] * len(ids_1)), 1]

    def create_token_type_ids_from_sequences(self, ids_0: Ids, ids_1: Ids | None = None) -> Ids:
        """0 for the first sequence with its special tokens, 1 for the second."""
        second = 0 if ids_1 is None else len(ids_1) + 1
        return [0] * (len(ids_0) + 2) + [1] * second

    def encode(self, text: str, text_pair: str | None = None, **options: Any) -> Ids:
        """Ids of one text, with special tokens; options as in a call."""
        ids: Ids = self(text, text_pair, **options)["input_ids"]
        return ids

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str:
        """Tokens of ids, joined by spaces."""
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        return " ".join(self.convert_ids_to_tokens(list(ids), skip_special_tokens))

    def batch_decode(
        self, sequences: Iterable[Any], skip_special_tokens: bool = False
    ) -> list[str]:
        """`decode` of each."""
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    def __call__(
        self,
        text: str | Sequence[str],
        text_pair: str | None = None,
        *,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        return_tensors: str | None = None,
    ) -> BatchEncoding:
        """Encode a text, a pair of texts, or a list of texts.

        `padding`: False, True or "longest", "max_length". `truncation` cuts to `max_length` tokens,
        special tokens kept. `return_tensors`: "pt", "np" or None for lists. Returns `input_ids` and
        `attention_mask`, (B, L), or lists of ints for a single text without `return_tensors`.
        """
        single = isinstance(text, str)
        texts = [text] if isinstance(text, str) else list(text)
        limit = max_length if truncation else None
        if truncation and limit is None:
            limit = self.model_max_length
        rows = [self._row(one, text_pair, add_special_tokens, limit) for one in texts]
        width = self._width(rows, padding, max_length)
        masks = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
        rows = [row + [self.pad_token_id] * (width - len(row)) for row in rows]
        if return_tensors is None:
            if single:
                return BatchEncoding(input_ids=rows[0], attention_mask=masks[0])
            return BatchEncoding(input_ids=rows, attention_mask=masks)
        if len({len(row) for row in rows}) > 1:
            raise InputError("texts of different lengths make no tensor; set padding=True")
        if return_tensors == "np":
            return BatchEncoding(input_ids=np.array(rows), attention_mask=np.array(masks))
        if return_tensors != "pt":
            raise InputError(f"return_tensors={return_tensors!r} is not known; use 'pt' or 'np'")
        return BatchEncoding(input_ids=torch.tensor(rows), attention_mask=torch.tensor(masks))

    def _row(self, text: str, pair: str | None, special: bool, limit: int | None) -> Ids:
        """Ids of one text or pair, cut to `limit`."""
        first: Ids = self.convert_tokens_to_ids(self.tokenize(text))
        second: Ids | None = (
            None if pair is None else self.convert_tokens_to_ids(self.tokenize(pair))
        )
        if limit is not None:
            extra = (2 if second is None else 3) if special else 0
            for _ in range(len(first) + len(second or ()) + extra - limit):
                longer = second if second is not None and len(second) >= len(first) else first
                if longer:
                    longer.pop()
        if special:
            return self.build_inputs_with_special_tokens(first, second)
        return first + (second or [])

    def _width(self, rows: list[Ids], padding: bool | str, max_length: int | None) -> int:
        """Tokens to pad to; 0 for none."""
        if padding in (True, "longest"):
            return max(map(len, rows), default=0)
        if padding in (False, "do_not_pad"):
            return 0
        if padding != "max_length":
            raise InputError(f"padding={padding!r} is not known; use True or 'max_length'")
        limit = max_length or self.model_max_length
        if limit is None:
            raise InputError("padding='max_length' needs max_length")
        return limit

    def encode_residues(self, sequence: str) -> np.ndarray:
        """Ids (L,) int64 of a sequence with BOS and EOS: those of a call, faster for residues.

        A text with anything but known single letters (`<mask>`, spaces, lower case) takes the way
        of a call.
        """
        letters = np.frombuffer(sequence.encode("latin-1", "replace"), dtype=np.uint8)
        ids = np.empty(len(letters) + 2, dtype=np.int64)
        ids[0], ids[-1] = self.cls_token_id, self.eos_token_id
        ids[1:-1] = self._letters[letters]
        if (ids == self.unk_token_id).any():
            return np.array(self.encode(sequence), dtype=np.int64)
        return ids

    def require_fit(self, vocab_size: int | None) -> None:
        """Raise WeightsError unless the tokens are those of a model with `vocab_size` of them.

        Each of the 20 amino acids has to be one, and none may lie beyond the model's.
        """
        absent = [residue for residue in AMINO_ACIDS if residue not in self._ids]
        if absent:
            raise WeightsError(
                f"the vocabulary has no token for residue {absent[0]}; is {VOCABULARY_FILE} whole?"
            )
        if vocab_size is not None and len(self) > vocab_size:
            raise WeightsError(
                f"the vocabulary has {len(self)} tokens, the model {vocab_size}; "
                f"{VOCABULARY_FILE} and config.json do not belong together"
            )

    @cached_property
    def _letters(self) -> np.ndarray:
        """(256,) id of each single-byte token."""
        table = np.full(256, self.unk_token_id, dtype=np.int64)
        for token, place in self._ids.items():
            if len(token) == 1 and ord(token) < 256:
                table[ord(token)] = place
        return table
