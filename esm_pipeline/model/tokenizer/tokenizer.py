"""The ESM tokenizer: one token a residue, `<cls>` before and `<eos>` after.

Peer: transformers 4.37.2 `EsmTokenizer`, call by call. Unlike it,
- tokens added in several calls get ids of their own, and count in `len` and `get_vocab`;
- a token without an id (no `unk_token` in the vocabulary) is an InputError, not None among ids;
- a tokenizer without `cls_token` or `eos_token` leaves it out of ids and of masks alike;
- rows without tokens are padded, and are int64 tensors, like any others;
- where tokens overlap in a text, the one that begins first is taken, and of these the longest;
- `decode` of a single id gives the whole token;
- `return_overflowing_tokens` needs no `max_length`;
- an unknown option is a TypeError, and `max_length` 0 an InputError.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from esm_pipeline.arrays import Int64
from esm_pipeline.errors import InputError, WeightsError
from esm_pipeline.files import require_folder
from esm_pipeline.model.alphabet import ALPHABET
from esm_pipeline.model.checkpoints.keywords import hub_options, normalize_kwargs, refuse
from esm_pipeline.model.tokenizer.batch_encoding import BatchEncoding, as_list, kind_of
from esm_pipeline.model.tokenizer.boundary_tokens import BoundaryTokens
from esm_pipeline.model.tokenizer.decoding import clean_up, join_tokens
from esm_pipeline.model.tokenizer.delegation import SpecialToken, SpecialTokenId, of_vocabulary
from esm_pipeline.model.tokenizer.files import (
    ADDITIONAL_IN_5,
    DECODER,
    VOCABULARY_FILE,
    read_files,
    read_vocabulary,
    write_settings,
    write_vocabulary,
)
from esm_pipeline.model.tokenizer.options import SIDES, CallOptions
from esm_pipeline.model.tokenizer.rows import RowBuilder, encoding_columns, truncate
from esm_pipeline.model.tokenizer.splitter import Splitter
from esm_pipeline.model.tokenizer.text_encoder import TextEncoder
from esm_pipeline.model.tokenizer.vocabulary import ADDITIONAL, Ids, Vocabulary

ANY_LENGTH = int(1e30)
NO_LIMIT = int(1e20)
"""`model_max_length` of a model without a limit, and the least value that means no limit."""

MODEL_INPUTS = ("input_ids", "attention_mask")
USUAL_ROLES = ("unk_token", "cls_token", "pad_token", "mask_token", "eos_token")
SETTINGS = {"padding_side", "truncation_side"}
SETTINGS |= {"clean_up_tokenization_spaces", "split_special_tokens"}


class EsmTokenizer(TextEncoder):
    """Text to token ids and back. `vocab_file` has one token a line; a list of tokens works too.

    Special tokens that the vocabulary lacks get the ids after its last. Other keywords are
    `bos_token`, `sep_token`, `additional_special_tokens`, `model_max_length`, `model_input_names`,
    `padding_side`, `truncation_side`, `clean_up_tokenization_spaces` (for `decode`) and
    `split_special_tokens`; unknown ones are kept for `save_pretrained`. Raises WeightsError for an
    unreadable vocabulary, InputError for other impossible values.
    """

    vocab_files_names: Mapping[str, str] = {"vocab_file": VOCABULARY_FILE}
    max_model_input_sizes: Mapping[str, int] = dict.fromkeys(
        ("facebook/esm2_t6_8M_UR50D", "facebook/esm2_t12_35M_UR50D"), 1024
    )
    is_fast = False
    model_max_length = ANY_LENGTH
    padding_side = "right"
    truncation_side = "right"
    pad_token_type_id = 0
    split_special_tokens = False
    clean_up_tokenization_spaces = True
    model_input_names: list[str]

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
        self.vocabulary = Vocabulary(vocab_file, roles, extra, kwargs.pop(DECODER, None))
        self._splitter = Splitter(self.vocabulary.ids)
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
        self._warned: set[str] = set()

    # files
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
        name, options = normalize_kwargs("EsmTokenizer.from_pretrained", path_or_hub_id, options)
        where = hub_options(name, options)
        vocabulary, settings = read_files(name, options, **where)
        if name in cls.max_model_input_sizes:
            given = settings.get("model_max_length") or ANY_LENGTH
            settings["model_max_length"] = min(given, cls.max_model_input_sizes[name])
        try:
            return cls(vocabulary, **settings, name_or_path=name)
        except (InputError, TypeError, ValueError, AttributeError) as error:
            raise WeightsError(f"{name}: tokenizer files that cannot be used: {error}") from None

    def save_vocabulary(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str]:
        """Write the vocabulary, without added tokens, into a folder; returns the file's path."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        path = Path(save_directory) / f"{prefix}{VOCABULARY_FILE}"
        return (write_vocabulary(path, self.vocabulary.tokens),)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
        push_to_hub: bool = False,
        **options: Any,
    ) -> tuple[str, ...]:
        """Write the vocabulary and the settings into a folder; returns the paths of the files.

        There is only one format. Raises InputError if the path is not a folder.
        """
        refuse("EsmTokenizer.save_pretrained", {"push_to_hub": push_to_hub, **options})
        require_folder(save_directory)
        stem = f"{Path(save_directory)}/{filename_prefix + '-' if filename_prefix else ''}"
        own = {*SETTINGS, "model_max_length", "model_input_names"}
        settings = {**self.init_kwargs, **dict.fromkeys(USUAL_ROLES)}
        settings |= {name: getattr(self, name) for name in own}
        settings["tokenizer_class"] = "EsmTokenizer"
        written = write_settings(stem, settings, self.vocabulary)
        return (*written, *self.save_vocabulary(save_directory, filename_prefix))

    def __repr__(self) -> str:
        return (
            f"EsmTokenizer({self.name_or_path!r}, vocab_size={self.vocab_size}, "
            f"model_max_length={self.model_max_length}, special_tokens={self.special_tokens_map})"
        )

    # tokens, ids and roles
    bos_token, bos_token_id = SpecialToken(), SpecialTokenId()
    eos_token, eos_token_id = SpecialToken(), SpecialTokenId()
    unk_token, unk_token_id = SpecialToken(), SpecialTokenId()
    sep_token, sep_token_id = SpecialToken(), SpecialTokenId()
    pad_token, pad_token_id = SpecialToken(), SpecialTokenId()
    cls_token, cls_token_id = SpecialToken(), SpecialTokenId()
    mask_token, mask_token_id = SpecialToken(), SpecialTokenId()

    get_vocab = of_vocabulary(Vocabulary.get_vocab)
    get_added_vocab = of_vocabulary(Vocabulary.added_ids)
    add_tokens = of_vocabulary(Vocabulary.add_tokens)
    add_special_tokens = of_vocabulary(Vocabulary.add_special_tokens)
    convert_tokens_to_ids = of_vocabulary(Vocabulary.convert_tokens_to_ids)
    convert_ids_to_tokens = of_vocabulary(Vocabulary.convert_ids_to_tokens)

    vocab_size = property(of_vocabulary(Vocabulary.file_size))
    added_tokens_decoder = property(of_vocabulary(Vocabulary.added_tokens))
    added_tokens_encoder = property(of_vocabulary(Vocabulary.added_ids))
    special_tokens_map = property(of_vocabulary(Vocabulary.special_tokens_map))
    all_special_tokens = property(of_vocabulary(Vocabulary.special_tokens))
    all_special_ids = property(of_vocabulary(Vocabulary.special_ids))
    additional_special_tokens_ids = property(of_vocabulary(Vocabulary.additional_ids))

    def __len__(self) -> int:
        return len(self.vocabulary)

    @property
    def all_tokens(self) -> list[str]:
        """The tokens without the added ones, in the order of their ids."""
        return self.vocabulary.tokens

    @property
    def additional_special_tokens(self) -> list[str]:
        """The special tokens without a role."""
        return self.vocabulary.additional

    @additional_special_tokens.setter
    def additional_special_tokens(self, tokens: Iterable[str]) -> None:
        self.vocabulary.additional = list(tokens)

    def get_vocab_size(self, with_added_tokens: bool = False) -> int:
        """`vocab_size`, whatever `with_added_tokens` says, as in the reference."""
        return self.vocabulary.file_size()

    def token_to_id(self, token: str) -> Any:
        """Id of a token, as `convert_tokens_to_ids`."""
        return self.convert_tokens_to_ids(token)

    def id_to_token(self, index: int) -> Any:
        """Token of an id, as `convert_ids_to_tokens`."""
        return self.convert_ids_to_tokens(index)

    # text to tokens and back
    @property
    def splitter(self) -> Splitter:
        """Finds the tokens of the present vocabulary in texts."""
        if self._splitter.ids is not self.vocabulary.ids:
            self._splitter = Splitter(self.vocabulary.ids)
        return self._splitter

    def tokenize(self, text: str, split_special_tokens: bool | None = None) -> list[str]:
        """The known tokens of `text`, and what stands between them, cut at blanks.

        With `split_special_tokens`, it is cut at blanks only. Raises InputError.
        """
        if not isinstance(text, str):
            raise InputError(f"a text is of type {type(text).__name__}; give a str")
        if self.split_special_tokens if split_special_tokens is None else split_special_tokens:
            return text.split()
        return self.splitter.split(text)

    def letters_of(self, text: str) -> bytes | None:
        """Ids (L,), one a byte, of a text of known one-letter tokens; None for any other text."""
        return None if self.split_special_tokens else self.splitter.letter_ids(text)

    def residue_ids(self, sequence: str) -> bytes | Ids:
        """Ids (R,) of a sequence, without special tokens around it.

        Tokens are taken as they are. Otherwise lower case is read as upper case, white space and a
        `*` at the end are dropped, and J is read as X, as by `shard`. Raises InputError for
        anything else.
        """
        letters = self.letters_of(sequence)
        if letters is not None:
            return letters
        text = self.splitter.normalize_residues(sequence)
        letters = self.letters_of(text)
        if letters is not None:
            return letters
        ids: Ids = self.convert_tokens_to_ids(self.tokenize(text, split_special_tokens=False))
        return ids

    def encode_residues(self, sequence: str) -> Int64:
        """Ids (L,) int64 of a sequence with BOS and EOS, read as by `residue_ids`.

        The same as in a call if the text is made of known tokens. A call takes any other text as it
        is written, so that lower case is `<unk>` there.
        """
        return self._boundary().array_around(self.residue_ids(sequence))

    @staticmethod
    def convert_tokens_to_string(tokens: Iterable[str]) -> str:
        """Tokens joined by spaces."""
        return " ".join(tokens)

    clean_up_tokenization = staticmethod(clean_up)

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        spaces_between_special_tokens: bool = True,
    ) -> str:
        """Tokens of ids (an int, list, array or tensor), joined by spaces.

        By default no space is left before a `.`, as in the reference. Without
        `spaces_between_special_tokens`, there is none around added tokens without a role.
        """
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        ids = [ids] if isinstance(ids, int) else ids
        tokens = self.convert_ids_to_tokens(ids, skip_special_tokens)
        text = self.convert_tokens_to_string(tokens)
        if not spaces_between_special_tokens:
            roles = self.vocabulary.roles.values()
            text = join_tokens(tokens, self.vocabulary.beyond_file().keys() - set(roles))
        clean = clean_up_tokenization_spaces
        clean = self.clean_up_tokenization_spaces if clean is None else clean
        return self.clean_up_tokenization(text) if clean else text

    def batch_decode(self, sequences: Iterable[Any], *options: Any, **named: Any) -> list[str]:
        """`decode` of each, with the same options."""
        return [self.decode(ids, *options, **named) for ids in sequences]

    # special tokens around sequences
    def build_inputs_with_special_tokens(
        self, token_ids_0: Ids, token_ids_1: Ids | None = None
    ) -> Ids:
        """`<cls>` ids `<eos>`, and for a pair ids `<eos>` again. Raises InputError."""
        return self._boundary().around(token_ids_0, token_ids_1)

    def get_special_tokens_mask(
        self,
        token_ids_0: Sequence[int],
        token_ids_1: Sequence[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> Ids:
        """1 at special tokens, 0 at others, for ids that get special tokens or have them already.

        Raises InputError for a pair that has them already.
        """
        if already_has_special_tokens:
            if token_ids_1 is not None:
                raise InputError("ids with special tokens already come as one list, not as a pair")
            special = set(self.all_special_ids)
            return [int(place in special) for place in map(int, token_ids_0)]
        return self._boundary().mask(token_ids_0, token_ids_1)

    def create_token_type_ids_from_sequences(
        self, token_ids_0: Ids, token_ids_1: Ids | None = None
    ) -> Ids:
        """0 for each token of the first sequence, 1 for those of the second.

        As in 4.37.2, there are none for the special tokens: no ESM model takes them.
        """
        return [0] * len(token_ids_0) + [1] * len(token_ids_1 or ())

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Number of special tokens around a sequence or a pair. Raises InputError."""
        return len(self.build_inputs_with_special_tokens([], [] if pair else None))

    @property
    def max_len_single_sentence(self) -> int:
        """Most tokens of a sequence without the special ones."""
        return self.model_max_length - self.num_special_tokens_to_add()

    @property
    def max_len_sentences_pair(self) -> int:
        """Most tokens of a pair without the special ones."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=True)

    def _boundary(self) -> BoundaryTokens:
        """The special tokens around a sequence; unlike the peer's, without None."""
        cls = [] if self.cls_token is None else [self.cls_token_id]
        return BoundaryTokens(cls, [] if self.eos_token is None else [self.eos_token_id])

    # calls
    def encode_plus(self, text: Any, text_pair: Any = None, **options: Any) -> BatchEncoding[Any]:
        """Encode one text or pair, each a str, a list of tokens or a list of ids."""
        rows = self._rows(options)
        second = None if text_pair is None else rows.ids_of(text_pair)
        return rows.encode(rows.ids_of(text), second, prepend_batch_axis=True)

    def batch_encode_plus(self, texts: Sequence[Any], **options: Any) -> BatchEncoding[Any]:
        """Encode several texts or pairs, each as in `encode_plus`."""
        return self._rows(options).encode_batch(texts)

    def prepare_for_model(
        self,
        ids: Ids,
        pair_ids: Ids | None = None,
        *,
        prepend_batch_axis: bool = False,
        **options: Any,
    ) -> BatchEncoding[Any]:
        """Cut ids to length, put special tokens around them and pad; options as in a call."""
        return self._rows(options).encode(ids, pair_ids, prepend_batch_axis=prepend_batch_axis)

    def truncate_sequences(
        self,
        ids: Ids,
        pair_ids: Ids | None = None,
        num_tokens_to_remove: int = 0,
        truncation_strategy: str = "longest_first",
        stride: int = 0,
    ) -> tuple[Ids, Ids | None, Ids]:
        """A pair of sequences without some of its tokens, and those removed; see `truncate`."""
        given = {"truncation": truncation_strategy, "stride": stride, "max_length": 1}
        options = self._rows(given).options
        if num_tokens_to_remove <= 0 or options.truncation == "do_not_truncate":
            return ids, pair_ids, []
        side = self.truncation_side
        return truncate(ids, pair_ids, num_tokens_to_remove, options, side, self._warn)

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
        *,
        padding_side: str | None = None,
    ) -> BatchEncoding[Any]:
        """Pad encodings: one or a list of them, or a mapping of columns. For data collators.

        Tensors and arrays are returned as such. Values that are not rows of tokens (`labels`) stay
        as they are. Raises InputError.
        """
        columns = encoding_columns(encoded_inputs)
        ids = columns["input_ids"]
        if ids is None or len(ids) == 0:
            masks: dict[str, Ids] = {"attention_mask": []} if return_attention_mask else {}
            return BatchEncoding({**columns, **masks})
        options = {"padding": padding, "truncation": False, "max_length": max_length}
        options |= {"pad_to_multiple_of": pad_to_multiple_of, "padding_side": padding_side}
        options |= {"return_attention_mask": return_attention_mask}
        options |= {"return_tensors": return_tensors, "verbose": verbose}
        rows = self._rows(options)
        lists = {name: as_list(value) for name, value in columns.items()}
        single = not isinstance(lists["input_ids"][0], (list, tuple))
        padded = rows.padded_row(lists) if single else rows.padded(lists)
        return BatchEncoding(padded, tensor_type=return_tensors or kind_of(ids))

    def _rows(self, options: Mapping[str, Any]) -> RowBuilder:
        """What makes the rows of a call with these options. Raises InputError and TypeError."""
        limit = None if self.model_max_length > NO_LIMIT else self.model_max_length
        return RowBuilder(self, CallOptions.read(options, limit, self._warn), self._warn)

    def _warn(self, message: str) -> None:
        """Warn once of each kind; messages that differ only in numbers are of the same kind."""
        kind = "".join(letter for letter in message if not letter.isdigit())
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, stacklevel=3)

    # for the pipeline
    def require_fit(self, vocab_size: int | None) -> None:
        """Raise WeightsError unless a model with `vocab_size` tokens can use this vocabulary."""
        self.vocabulary.require_fit(vocab_size, VOCABULARY_FILE)
