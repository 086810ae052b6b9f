"""The ESM tokenizer: one token a residue, `<cls>` before and `<eos>` after.

Peer: transformers 4.37.2 `EsmTokenizer`, call by call. Unlike it,
- tokens added in several calls get ids of their own, and count in `len` and `get_vocab`;
- a token without an id (no `unk_token` in the vocabulary) is an InputError, not None among ids;
- a tokenizer without `cls_token` or `eos_token` leaves it out of ids and of masks alike;
- rows without tokens are padded, and are int64 tensors, like any others;
- where tokens overlap in a text, the one that begins first is taken, of these the longest;
- `decode` of a single id gives the whole token;
- `return_overflowing_tokens` needs no `max_length`;
- an unknown option is a TypeError, and `max_length` 0 an InputError.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from esm_pipeline.errors import InputError, WeightsError
from esm_pipeline.files import atomic_path, require_folder
from esm_pipeline.model.checkpoints.hub import find_file
from esm_pipeline.model.checkpoints.keywords import hub_options, refuse, settle
from esm_pipeline.model.config import EsmConfig
from esm_pipeline.model.tokenizer.batch_encoding import SIDES
from esm_pipeline.model.tokenizer.calls import ANY_LENGTH, TokenizerCalls
from esm_pipeline.model.tokenizer.files import (
    ADDED_FILE,
    ADDITIONAL_IN_5,
    DECODER,
    ROLES_FILE,
    SETTINGS_FILE,
    VOCABULARY_FILE,
    read_settings,
    read_vocabulary,
    write_object,
)
from esm_pipeline.model.tokenizer.special_tokens import ADDITIONAL, ALPHABET

MODEL_INPUTS = ("input_ids", "attention_mask")
USUAL_ROLES = ("unk_token", "cls_token", "pad_token", "mask_token", "eos_token")
SETTINGS = {"padding_side", "truncation_side"}
SETTINGS |= {"clean_up_tokenization_spaces", "split_special_tokens"}
AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"


class EsmTokenizer(TokenizerCalls):
    """Text to token ids and back. `vocab_file` has one token a line; a list of tokens will do.

    Special tokens that the vocabulary lacks get the ids after its last. Other keywords are
    `bos_token`, `sep_token`, `additional_special_tokens`, `model_max_length`, `model_input_names`,
    `padding_side`, `truncation_side`, `clean_up_tokenization_spaces` (of `decode`) and
    `split_special_tokens`; unknown ones are kept for `save_pretrained`. Raises WeightsError for a
    vocabulary that cannot be read, InputError for other values that cannot be.
    """

    vocab_files_names: Mapping[str, str] = {"vocab_file": VOCABULARY_FILE}
    max_model_input_sizes: Mapping[str, int] = dict.fromkeys(
        ("facebook/esm2_t6_8M_UR50D", "facebook/esm2_t12_35M_UR50D"), 1024
    )
    is_fast = False

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | Sequence[str],
        unk_token: Any = "<unk>",
        cls_token: Any = "<cls>",
        pad_token: Any = "<pad>",
        mask_token: Any = "<mask>",
        eos_token: Any = "<eos>",
        **kwargs: Any,
    ) -> None:
        if isinstance(vocab_file, (str, os.PathLike)):
            vocab_file = read_vocabulary(Path(vocab_file))
        roles = {role: kwargs.pop(role, None) for role in ("bos_token", "sep_token")}
        roles |= {"unk_token": unk_token, "cls_token": cls_token, "pad_token": pad_token}
        roles |= {"mask_token": mask_token, "eos_token": eos_token}
        extra = kwargs.pop(ADDITIONAL, None) or kwargs.pop(ADDITIONAL_IN_5, None) or []
        extra = extra.values() if isinstance(extra, Mapping) else extra
        super().__init__(vocab_file, roles, extra, kwargs.pop(DECODER, None))
        self.name_or_path: str = kwargs.pop("name_or_path", "")
        limit = kwargs.pop("model_max_length", kwargs.pop("max_len", None))
        self.model_max_length = ANY_LENGTH if limit is None else limit
        self.model_input_names = [*kwargs.pop("model_input_names", MODEL_INPUTS)]
        for name in SETTINGS & kwargs.keys():
            setattr(self, name, kwargs.pop(name))
        for name in ("padding_side", "truncation_side"):
            if getattr(self, name) not in SIDES:
                raise InputError(f"{name} '{getattr(self, name)}' is not 'right' or 'left'")
        self.init_kwargs = kwargs
        self._warned = set()

    @classmethod
    def standard(cls) -> EsmTokenizer:
        """The tokenizer of ESM-1b, ESM-1v and ESM-2."""
        return cls(ALPHABET)

    @classmethod
    def from_pretrained(
        cls, path_or_hub_id: str | os.PathLike[str] | None = None, **options: Any
    ) -> EsmTokenizer:
        """The tokenizer of a folder, a fair-esm file, a hub id or "demo".

        `revision`, `cache_dir`, `local_files_only` and `token` say where from; other keywords go to
        the class. A checkpoint without `vocab.txt` whose config has the 33 standard tokens gets the
        standard alphabet. Raises WeightsError.
        """
        name, options = settle("EsmTokenizer.from_pretrained", path_or_hub_id, options)
        where = hub_options(name, options)
        vocabulary = find_file(name, VOCABULARY_FILE, **where)
        if vocabulary is None and (
            EsmConfig.from_pretrained(name, **where).vocab_size != len(ALPHABET)
        ):
            raise WeightsError(f"{name}: no {VOCABULARY_FILE} in it, and not 33 tokens")
        settings = read_settings(name, options, **where)
        if name in cls.max_model_input_sizes:
            given = settings.get("model_max_length") or ANY_LENGTH
            settings["model_max_length"] = min(given, cls.max_model_input_sizes[name])
        try:
            return cls(vocabulary or ALPHABET, **settings, name_or_path=name)
        except (InputError, TypeError, ValueError, AttributeError) as error:
            raise WeightsError(f"{name}: tokenizer files that cannot be used: {error}") from None

    def save_vocabulary(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str]:
        """Write the vocabulary, without added tokens, into a folder; returns the file's path."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        target = Path(save_directory) / f"{prefix}{VOCABULARY_FILE}"
        with atomic_path(target) as path:
            path.write_text("\n".join(self.all_tokens), encoding="utf-8")
        return (str(target),)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
        push_to_hub: bool = False,
        **options: Any,
    ) -> tuple[str, ...]:
        """Write the vocabulary and the settings into a folder; returns the files' paths.

        There is one format. Raises InputError for what is no folder.
        """
        refuse("EsmTokenizer.save_pretrained", {"push_to_hub": push_to_hub, **options})
        require_folder(save_directory)
        stem = f"{Path(save_directory)}/{filename_prefix + '-' if filename_prefix else ''}"
        settings = {**self.init_kwargs, **dict.fromkeys(USUAL_ROLES), **self.special_tokens_map}
        for name in {*SETTINGS, "model_max_length", "model_input_names"}:
            settings[name] = getattr(self, name)
        settings["tokenizer_class"] = "EsmTokenizer"
        decoder = self.added_tokens_decoder
        settings[DECODER] = {str(place): asdict(token) for place, token in decoder.items()}
        written = [
            write_object(Path(stem + SETTINGS_FILE), settings),
            write_object(Path(stem + ROLES_FILE), self.special_tokens_map),
        ]
        beside = {t.content: place for place, t in decoder.items() if place >= self.vocab_size}
        if beside:
            written.append(write_object(Path(stem + ADDED_FILE), beside))
        return (*written, *self.save_vocabulary(save_directory, filename_prefix))

    def __repr__(self) -> str:
        return (
            f"EsmTokenizer({self.name_or_path!r}, vocab_size={self.vocab_size}, "
            f"model_max_length={self.model_max_length}, special_tokens={self.special_tokens_map})"
        )

    @property
    def max_len_single_sentence(self) -> int:
        """Most tokens of a sequence without its special ones."""
        return self.model_max_length - self.num_special_tokens_to_add()

    @property
    def max_len_sentences_pair(self) -> int:
        """Most tokens of a pair without its special ones."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=True)

    def get_vocab_size(self, with_added_tokens: bool = False) -> int:
        """`vocab_size`, whatever `with_added_tokens` says, as in the reference."""
        return self.vocab_size

    def token_to_id(self, token: str) -> Any:
        """Id of a token, as `convert_tokens_to_ids`."""
        return self.convert_tokens_to_ids(token)

    def id_to_token(self, index: int) -> Any:
        """Token of an id, as `convert_ids_to_tokens`."""
        return self.convert_ids_to_tokens(index)

    # what the pipeline needs
    def encode_residues(self, sequence: str) -> np.ndarray:
        """Ids (L,) int64 of a sequence with BOS and EOS, as `residue_ids` reads it.

        Those of a call where the text is of known tokens; a call takes others as they are written,
        so that lower case is `<unk>` there.
        """
        inner = self.residue_ids(sequence)
        before, after = self._around()
        ids = np.empty(len(before) + len(inner) + len(after), dtype=np.int64)
        ids[: len(before)], ids[len(ids) - len(after) :] = before, after
        middle = slice(len(before), len(before) + len(inner))
        ids[middle] = np.frombuffer(inner, np.uint8) if isinstance(inner, bytes) else inner
        return ids

    def require_fit(self, vocab_size: int | None) -> None:
        """Raise WeightsError unless the tokens are those of a model with `vocab_size` of them.

        Each of the 20 amino acids and of the special tokens has to be one, and none may lie beyond
        the model's.
        """
        absent = [residue for residue in AMINO_ACIDS if residue not in self._ids]
        absent = [f"token for residue {residue}" for residue in absent] or self.invented
        if absent:
            raise WeightsError(f"the vocabulary has no {absent[0]}; is {VOCABULARY_FILE} whole?")
        if vocab_size is not None and len(self) > vocab_size:
            raise WeightsError(
                f"the vocabulary has {len(self)} tokens, the model {vocab_size}; "
                f"{VOCABULARY_FILE} and config.json do not belong together"
            )
