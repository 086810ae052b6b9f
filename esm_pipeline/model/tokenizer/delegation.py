"""Attributes of a tokenizer that its vocabulary holds."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from esm_pipeline.model.tokenizer.vocabulary import Vocabulary


class WithVocabulary(Protocol):
    """A tokenizer, as far as this file needs to know it."""

    vocabulary: Vocabulary


P = ParamSpec("P")
R = TypeVar("R")


def of_vocabulary(
    method: Callable[Concatenate[Vocabulary, P], R],
) -> Callable[Concatenate[WithVocabulary, P], R]:
    """A method of the tokenizer that its vocabulary carries out."""

    @wraps(method)
    def call(tokenizer: WithVocabulary, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return method(tokenizer.vocabulary, *args, **kwargs)

    return call


class SpecialToken:
    """The token with one role, a str; None if there is none."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.role = name

    def __get__(self, tokenizer: WithVocabulary | None, owner: type) -> Any:
        return self if tokenizer is None else tokenizer.vocabulary.roles.get(self.role)

    def __set__(self, tokenizer: WithVocabulary, token: Any) -> None:
        tokenizer.vocabulary.set_role(self.role, token)


class SpecialTokenId:
    """The id of the token with one role, an int; None if there is none."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.role = name.removesuffix("_id")

    def __get__(self, tokenizer: WithVocabulary | None, owner: type) -> Any:
        if tokenizer is None:
            return self
        return tokenizer.vocabulary.convert_tokens_to_ids(tokenizer.vocabulary.roles.get(self.role))

    def __set__(self, tokenizer: WithVocabulary, place: int | None) -> None:
        token = None if place is None else tokenizer.vocabulary.convert_ids_to_tokens(place)
        tokenizer.vocabulary.set_role(self.role, token)
