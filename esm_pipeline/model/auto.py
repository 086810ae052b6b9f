"""`AutoModel` and similar classes, for scripts that import them from transformers.

They load `esm` checkpoints only; the config of any other family is refused. Peer: transformers
4.37.2 `models/auto`, with the same mapping: `AutoModel` is `EsmModel`, even for a folding model.
"""

from __future__ import annotations

import os
from typing import Any, Generic, Literal, TypeVar, overload

from esm_pipeline.errors import InputError
from esm_pipeline.model.base import EsmPreTrainedModel
from esm_pipeline.model.checkpoints.loading import LoadingInfo
from esm_pipeline.model.config import EsmConfig
from esm_pipeline.model.esm import EsmModel
from esm_pipeline.model.heads import (
    EsmForMaskedLM,
    EsmForSequenceClassification,
    EsmForTokenClassification,
)
from esm_pipeline.model.tokenizer import EsmTokenizer

M = TypeVar("M", bound=EsmPreTrainedModel)


class Auto:
    """Base class: no object of it can be made."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        name = type(self).__name__
        raise InputError(f"{name}: make it by {name}.from_pretrained(...)")


class AutoConfig(Auto):
    """`EsmConfig`."""

    @classmethod
    def for_model(cls, model_type: str, *args: Any, **kwargs: Any) -> EsmConfig:
        """The config of a model family. Raises InputError for any but `esm`."""
        if model_type != EsmConfig.model_type:
            raise InputError(f"AutoConfig: no models of type '{model_type}', only 'esm'")
        return EsmConfig(*args, **kwargs)

    @classmethod
    def from_pretrained(
        cls, path_or_hub_id: str | os.PathLike[str] | None = None, **options: Any
    ) -> EsmConfig:
        """As `EsmConfig.from_pretrained`."""
        found: EsmConfig = EsmConfig.from_pretrained(path_or_hub_id, **options)
        return found


class AutoTokenizer(Auto):
    """`EsmTokenizer`."""

    @classmethod
    def from_pretrained(
        cls, path_or_hub_id: str | os.PathLike[str] | None = None, **options: Any
    ) -> EsmTokenizer:
        """As `EsmTokenizer.from_pretrained`; `config` and `tokenizer_type` have no effect."""
        kept = {key: options[key] for key in options.keys() - {"config", "tokenizer_type"}}
        return EsmTokenizer.from_pretrained(path_or_hub_id, **kept)


class AutoOfClass(Auto, Generic[M]):
    """What the classes for models share; each has its `model_class`."""

    model_class: type[M]

    @overload
    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | os.PathLike[str] | None = None,
        *model_args: object,
        output_loading_info: Literal[False] = False,
        **options: object,
    ) -> M: ...
    @overload
    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | os.PathLike[str] | None = None,
        *model_args: object,
        output_loading_info: Literal[True],
        **options: object,
    ) -> tuple[M, LoadingInfo]: ...
    @classmethod
    def from_pretrained(
        cls, path_or_hub_id: str | os.PathLike[str] | None = None, *model_args: Any, **options: Any
    ) -> M | tuple[M, LoadingInfo]:
        """As `from_pretrained` of the class."""
        found: M | tuple[M, LoadingInfo] = cls.model_class.from_pretrained(
            path_or_hub_id, *model_args, **options
        )
        return found

    @classmethod
    def from_config(cls, config: EsmConfig, **options: Any) -> M:
        """A model with random weights; `dtype`, also spelt `torch_dtype`, is their precision.

        Raises InputError for a config of another family.
        """
        if not isinstance(config, EsmConfig):
            raise InputError(f"{cls.__name__}: give an EsmConfig, not a {type(config).__name__}")
        return cls.model_class._from_config(config, **options)


class AutoModel(AutoOfClass[EsmModel]):
    """`EsmModel`."""

    model_class = EsmModel


class AutoModelForMaskedLM(AutoOfClass[EsmForMaskedLM]):
    """`EsmForMaskedLM`."""

    model_class = EsmForMaskedLM


class AutoModelForSequenceClassification(AutoOfClass[EsmForSequenceClassification]):
    """`EsmForSequenceClassification`."""

    model_class = EsmForSequenceClassification


class AutoModelForTokenClassification(AutoOfClass[EsmForTokenClassification]):
    """`EsmForTokenClassification`."""

    model_class = EsmForTokenClassification
