"""The tokens of a tokenizer: their ids, those added later, and the roles of the special ones.

Peer: transformers 4.37.2 `SpecialTokensMixin`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from esm_pipeline.errors import InputError, WeightsError
from esm_pipeline.model.alphabet import AMINO_ACIDS

Ids = list[int]
ADDITIONAL = "additional_special_tokens"
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Roles of special tokens, in the order in which those not in the vocabulary get their ids."""

TOKEN_FLAGS = ("special", "lstrip", "rstrip", "normalized", "single_word")


@dataclass(frozen=True)
class AddedToken:
    """A token with a role, or one that the vocabulary file does not have.

    The flags are kept for the files only: here, blanks and case never matter.
    """

    content: str
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    single_word: bool = False

    def __str__(self) -> str:
        return self.content

    @classmethod
    def of(cls, token: Any) -> AddedToken:
        """From a str, the mapping in a file, or an object with these fields. Raises InputError."""
        if isinstance(token, str):
            return cls(token)
        names = ("content", *TOKEN_FLAGS)
        if not isinstance(token, Mapping):
            token = {name: getattr(token, name) for name in names if hasattr(token, name)} or token
        if not isinstance(token, Mapping) or not isinstance(token.get("content"), str):
            raise InputError(f"token {token!r} is of type {type(token).__name__}; give a str")
        flags = {name: bool(token[name]) for name in TOKEN_FLAGS if token.get(name) is not None}
        if flags.get("single_word"):
            raise InputError(f"token '{token['content']}': single_word is not supported; unset it")
        return cls(token["content"], **flags)


class Vocabulary:
    """Tokens and ids. `tokens` are in the order of their ids; `roles` maps a role to its token.

    `additional` are special tokens without a role. `added` gives the ids of tokens that are not
    among `tokens`; others get the next free ids. Raises InputError for what is not a token.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        roles: Mapping[str, Any],
        additional: Iterable[Any] = (),
        added: Mapping[int, Any] | None = None,
    ) -> None:
        self.tokens = list(tokens)
        self._file_ids = {token: place for place, token in enumerate(self.tokens)}
        self._added = {int(place): AddedToken.of(token) for place, token in (added or {}).items()}
        self._number()
        given = {role: AddedToken.of(roles[role]) for role in ROLES if roles.get(role) is not None}
        extra = [AddedToken.of(token) for token in additional]
        self.roles = {role: token.content for role, token in given.items()}
        self.additional = [token.content for token in extra]
        self.not_in_files = [one for one in self.roles.values() if one not in self.ids]
        """Tokens with a role that are neither in the vocabulary file nor among those added."""

        self._add([*given.values(), *extra])

    def _number(self) -> None:
        """Make `ids`, token → id, anew: other objects notice by its identity that it changed."""
        self.ids = {**self._file_ids, **self.added_ids()}

    def __len__(self) -> int:
        return len(self.ids)  # unlike the peer, which leaves out the added tokens

    def file_size(self) -> int:
        """V, the number of tokens without the added ones."""
        return len(self.tokens)

    def get_vocab(self) -> dict[str, int]:
        """Token → id, with the added tokens."""
        return dict(self.ids)

    def added_tokens(self) -> dict[int, AddedToken]:
        """Id → token, for tokens with a role and added tokens, sorted by id."""
        return dict(sorted(self._added.items()))

    def added_ids(self) -> dict[str, int]:
        """Token → id, for tokens with a role and added tokens, sorted by id."""
        return {token.content: place for place, token in sorted(self._added.items())}

    def beyond_file(self) -> dict[str, int]:
        """Token → id, for added tokens with ids after those of the vocabulary file."""
        return {
            token: place for token, place in self.added_ids().items() if place >= len(self.tokens)
        }

    def special_tokens_map(self) -> dict[str, Any]:
        """Role → token, and the special tokens without a role as a list."""
        found: dict[str, Any] = {role: self.roles[role] for role in ROLES if role in self.roles}
        if self.additional:
            found[ADDITIONAL] = list(self.additional)
        return found

    def special_tokens(self) -> list[str]:
        """Each special token once: first those with a role, then the others."""
        by_role = [self.roles[role] for role in ROLES if role in self.roles]
        return list(dict.fromkeys([*by_role, *self.additional]))

    def special_ids(self) -> Ids:
        """Ids of the special tokens."""
        return [self.id_of(token) for token in self.special_tokens()]

    def additional_ids(self) -> Ids:
        """Ids of the special tokens without a role."""
        return [self.id_of(token) for token in self.additional]

    def set_role(self, role: str, token: Any) -> None:
        """Give a role to another token, or to none. Raises InputError."""
        self.roles.pop(role, None)
        if token is not None:
            self.roles[role] = AddedToken.of(token).content

    def add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        """Add a token or a list of tokens; returns how many were new.

        New tokens get the next ids: give the model rows for them. All become special, whatever
        `special_tokens` says, as in the reference. Raises InputError for what is not a token.
        """
        listed = new_tokens if isinstance(new_tokens, (list, tuple)) else [new_tokens]
        return self._add([AddedToken.of(token) for token in listed])

    def add_special_tokens(
        self,
        special_tokens_dict: Mapping[str, Any],
        replace_additional_special_tokens: bool = True,
    ) -> int:
        """Give roles to tokens, and add those not yet known; returns how many were new.

        Keys are `cls_token` and the like, or `additional_special_tokens` with a list. This list
        replaces the present one unless `replace_additional_special_tokens` is False. Raises
        InputError.
        """
        unknown = special_tokens_dict.keys() - {*ROLES, ADDITIONAL}
        if unknown:
            raise InputError(f"'{min(unknown)}' is no role; use {', '.join(ROLES)} or {ADDITIONAL}")
        named = {role: AddedToken.of(t) for role, t in special_tokens_dict.items() if role in ROLES}
        extra = [AddedToken.of(token) for token in special_tokens_dict.get(ADDITIONAL, ())]
        self.roles |= {role: token.content for role, token in named.items()}
        kept = [] if replace_additional_special_tokens and extra else self.additional
        self.additional = list(dict.fromkeys([*kept, *(token.content for token in extra)]))
        return self._add([*named.values(), *extra])

    def _add(self, tokens: Iterable[AddedToken]) -> int:
        """Record added tokens, each with its id in the vocabulary file or the next free one."""
        before = len(self)
        for token in tokens:
            if not token.content or token.content in self.added_ids():
                continue
            free = max(len(self), len(self.tokens), 1 + max(self._added, default=0))
            self._added[self._file_ids.get(token.content, free)] = token
            self._number()
            if token.content not in self.special_tokens():
                self.additional.append(token.content)
        return len(self) - before

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Ids of a list of tokens, or the id of a str.

        Unknown tokens get the id of `unk_token`, or None if there is no such token.
        """
        if tokens is None:
            return None
        if isinstance(tokens, str):
            return self.id_of(tokens)
        return [self.id_of(token) for token in tokens]

    def id_of(self, token: str) -> Any:
        """The id of one token, as `convert_tokens_to_ids` gives it."""
        place = self.ids.get(token)
        if place is None and "unk_token" in self.roles:
            return self._file_ids.get(self.roles["unk_token"])  # Peer: None if it was only added
        return place

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Tokens of a list, array or tensor of ids, or the token of an int.

        Ids outside the vocabulary become `unk_token`. Raises InputError for rows of ids.
        """
        ids = ids.tolist() if hasattr(ids, "tolist") else ids
        if isinstance(ids, int):
            return self.token_of(ids)
        skipped = set(self.special_ids()) if skip_special_tokens else set()
        try:
            return [self.token_of(place) for place in map(int, ids) if place not in skipped]
        except (TypeError, ValueError):
            raise InputError("ids are no row of whole numbers; use batch_decode for rows") from None

    def token_of(self, place: int) -> Any:
        """The token of one id, as `convert_ids_to_tokens` gives it."""
        if place in self._added:
            return self._added[place].content
        in_file = 0 <= place < len(self.tokens)
        return self.tokens[place] if in_file else self.roles.get("unk_token")

    def require_fit(self, vocab_size: int | None, file: str) -> None:
        """Raise WeightsError unless a model with `vocab_size` tokens can use this vocabulary.

        Each of the 20 amino acids and of the special tokens must be in it, and no more tokens than
        the model has. `file`: name of the vocabulary file, for the error.
        """
        missing = [f"token for residue {one}" for one in AMINO_ACIDS if one not in self.ids]
        missing = missing or self.not_in_files
        if missing:
            raise WeightsError(f"the vocabulary has no {missing[0]}; is {file} whole?")
        if vocab_size is not None and len(self) > vocab_size:
            raise WeightsError(
                f"the vocabulary has {len(self)} tokens, the model {vocab_size}; "
                f"{file} and config.json do not belong together"
            )
