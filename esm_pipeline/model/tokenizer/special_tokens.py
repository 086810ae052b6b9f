"""The tokens there are: a vocabulary, what is added to it, and which of them are for what.

Peer: transformers 4.37.2 `SpecialTokensMixin`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from esm_pipeline.errors import InputError

Ids = list[int]
ADDITIONAL = "additional_special_tokens"
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""What special tokens are for, in the order in which those not in the vocabulary get ids."""


ALPHABET = (
    *("<cls>", "<pad>", "<eos>", "<unk>"),
    *"LAGVSERTIDPKQNFYMHWCXBUZO.-",
    *("<null_1>", "<mask>"),
)
"""The 33 tokens of ESM-1b, ESM-1v and ESM-2, in the order of their ids."""

FLAGS = ("special", "lstrip", "rstrip", "normalized", "single_word")


@dataclass(frozen=True)
class AddedToken:
    """A token with a role, or beside the vocabulary file.

    The flags are kept for the files: here blanks and case never matter.
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
        """From a str, what a file holds, or an object with such fields. Raises InputError."""
        if isinstance(token, str):
            return cls(token)
        names = ("content", *FLAGS)
        if not isinstance(token, Mapping):
            token = {name: getattr(token, name) for name in names if hasattr(token, name)} or token
        if not isinstance(token, Mapping) or not isinstance(token.get("content"), str):
            raise InputError(f"token {token!r} is of type {type(token).__name__}; give a str")
        flags = {name: bool(token[name]) for name in FLAGS if token.get(name) is not None}
        if flags.get("single_word"):
            raise InputError(f"token '{token['content']}': single_word is not supported; unset it")
        return cls(token["content"], **flags)


class SpecialToken:
    """The token of one role, a str; None where there is none."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.role = name

    def __get__(self, tokens: SpecialTokens | None, owner: type) -> Any:
        return self if tokens is None else tokens.roles.get(self.role)

    def __set__(self, tokens: SpecialTokens, token: Any) -> None:
        tokens.roles.pop(self.role, None)
        if token is not None:
            tokens.roles[self.role] = AddedToken.of(token).content


class SpecialTokenId:
    """The id of the token of one role, an int; None where there is none."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.role = name.removesuffix("_id")

    def __get__(self, tokens: SpecialTokens | None, owner: type) -> Any:
        return self if tokens is None else tokens.convert_tokens_to_ids(tokens.roles.get(self.role))

    def __set__(self, tokens: SpecialTokens, place: int | None) -> None:
        token = None if place is None else tokens.convert_ids_to_tokens(place)
        setattr(tokens, self.role, token)


class SpecialTokens:
    """A vocabulary, its ids and the roles of its tokens."""

    bos_token, bos_token_id = SpecialToken(), SpecialTokenId()
    eos_token, eos_token_id = SpecialToken(), SpecialTokenId()
    unk_token, unk_token_id = SpecialToken(), SpecialTokenId()
    sep_token, sep_token_id = SpecialToken(), SpecialTokenId()
    pad_token, pad_token_id = SpecialToken(), SpecialTokenId()
    cls_token, cls_token_id = SpecialToken(), SpecialTokenId()
    mask_token, mask_token_id = SpecialToken(), SpecialTokenId()
    additional_special_tokens: list[str]

    def __init__(
        self,
        tokens: Sequence[str],
        roles: Mapping[str, Any],
        additional: Iterable[Any] = (),
        added: Mapping[int, Any] | None = None,
    ) -> None:
        """`added` has the ids of tokens beside the vocabulary; others get those after the last."""
        self.all_tokens = list(tokens)
        self.roles: dict[str, str] = {}
        self._vocabulary = {token: place for place, token in enumerate(self.all_tokens)}
        self._added = {int(place): AddedToken.of(token) for place, token in (added or {}).items()}
        self._index()
        given = {role: AddedToken.of(roles[role]) for role in ROLES if roles.get(role) is not None}
        self.invented = [
            token.content for token in given.values() if token.content not in self._ids
        ]
        """Special tokens that no file has."""
        for role, token in given.items():
            setattr(self, role, token)
        extra = [AddedToken.of(token) for token in additional]
        self.additional_special_tokens = [token.content for token in extra]
        self._add([*given.values(), *extra])

    def _index(self) -> None:
        """Ids of the vocabulary and of what is added; called after each addition."""
        added = {token.content: place for place, token in sorted(self._added.items())}
        self._ids = {**self._vocabulary, **added}

    @property
    def vocab_size(self) -> int:
        """V, the number of tokens without those added."""
        return len(self.all_tokens)

    def __len__(self) -> int:
        return len(self._ids)  # unlike the peer, which leaves out those added

    def get_vocab(self) -> dict[str, int]:
        """Token → id, with those added."""
        return dict(self._ids)

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Id → token of those with a role and those added, by id."""
        return dict(sorted(self._added.items()))

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """Token → id of those with a role and those added, by id."""
        return {token.content: place for place, token in sorted(self._added.items())}

    def get_added_vocab(self) -> dict[str, int]:
        """`added_tokens_encoder`, as a method."""
        return self.added_tokens_encoder

    @property
    def special_tokens_map(self) -> dict[str, Any]:
        """Role → token, and the additional ones as a list."""
        found: dict[str, Any] = {role: self.roles[role] for role in ROLES if role in self.roles}
        if self.additional_special_tokens:
            found[ADDITIONAL] = list(self.additional_special_tokens)
        return found

    @property
    def all_special_tokens(self) -> list[str]:
        """Each special token once: by role, then the additional ones."""
        by_role = [self.roles[role] for role in ROLES if role in self.roles]
        return list(dict.fromkeys([*by_role, *self.additional_special_tokens]))

    @property
    def all_special_ids(self) -> Ids:
        """Ids of the special tokens."""
        return [self._id(token) for token in self.all_special_tokens]

    @property
    def additional_special_tokens_ids(self) -> Ids:
        """Ids of the special tokens without a role."""
        return [self._id(token) for token in self.additional_special_tokens]

    def add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        """Add a token or a list of them; returns how many were new.

        New ones get the next ids: give the model rows for them. All become special, whatever
        `special_tokens` says, as in the reference. Raises InputError for what is no token.
        """
        listed = new_tokens if isinstance(new_tokens, (list, tuple)) else [new_tokens]
        return self._add([AddedToken.of(token) for token in listed])

    def add_special_tokens(
        self,
        special_tokens_dict: Mapping[str, Any],
        replace_additional_special_tokens: bool = True,
    ) -> int:
        """Give roles to tokens and add those not yet known; returns how many were new.

        Keys are `cls_token` and the like, or `additional_special_tokens` with a list, which
        replaces those there are unless told otherwise. Raises InputError.
        """
        unknown = special_tokens_dict.keys() - {*ROLES, ADDITIONAL}
        if unknown:
            raise InputError(f"'{min(unknown)}' is no role; use {', '.join(ROLES)} or {ADDITIONAL}")
        named = {role: AddedToken.of(t) for role, t in special_tokens_dict.items() if role in ROLES}
        extra = [AddedToken.of(token) for token in special_tokens_dict.get(ADDITIONAL, ())]
        for role, token in named.items():
            setattr(self, role, token)
        kept = self.additional_special_tokens
        if replace_additional_special_tokens and extra:
            kept = []
        names = dict.fromkeys([*kept, *(token.content for token in extra)])
        self.additional_special_tokens = list(names)
        return self._add([*named.values(), *extra])

    def _add(self, tokens: Iterable[AddedToken]) -> int:
        """Note tokens as added, each with its id of the vocabulary or the next free one."""
        before = len(self)
        for token in tokens:
            if not token.content or token.content in self.added_tokens_encoder:
                continue
            free = max(len(self), self.vocab_size, 1 + max(self._added, default=0))
            self._added[self._vocabulary.get(token.content, free)] = token
            self._index()
            if token.content not in self.all_special_tokens:
                self.additional_special_tokens.append(token.content)
        return len(self) - before

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Ids of tokens; of one for a str. That of `unk_token` for others, None if it has none."""
        if tokens is None:
            return None
        if isinstance(tokens, str):
            return self._id(tokens)
        return [self._id(token) for token in tokens]

    def _id(self, token: str) -> Any:
        place = self._ids.get(token)
        if place is None and "unk_token" in self.roles:
            return self._vocabulary.get(self.roles["unk_token"])  # Peer: none if only added
        return place

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Tokens of ids, a list, array or tensor; of one for an int.

        Ids outside the vocabulary become `unk_token`. Raises InputError for rows of ids.
        """
        ids = ids.tolist() if hasattr(ids, "tolist") else ids
        if isinstance(ids, int):
            return self._token(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        try:
            return [self._token(place) for place in map(int, ids) if place not in skipped]
        except (TypeError, ValueError):
            raise InputError("ids are no row of whole numbers; use batch_decode for rows") from None

    def _token(self, place: int) -> Any:
        if place in self._added:
            return self._added[place].content
        return self.all_tokens[place] if 0 <= place < self.vocab_size else self.unk_token
