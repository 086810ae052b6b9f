"""`AutoModel` and similar classes, for scripts that import them from transformers.

They load `esm` checkpoints only; the config of any other family is refused. Peer: transformers
4.37.2 `models/auto`, with the same mapping: `AutoModel` is `EsmModel`, even for a folding model.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar

from esm_pipeline.errors import InputError
from esm_pipeline.model.base import EsmPreTrainedModel
from esm_pipeline.model.config import EsmConfig
from esm_pipeline.model.esm import EsmModel
from esm_pipeline.model.heads import (
    EsmForMaskedLM,
    EsmForSequenceClassification,
    EsmForTokenClassification,
)
from esm_pipeline.model.tokenizer import EsmTokenizer


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
    ) -> Any:
        """As `EsmConfig.from_pretrained`."""
        return EsmConfig.from_pretrained(path_or_hub_id, **options)


class AutoTokenizer(Auto):
    """`EsmTokenizer`."""

    @classmethod
    def from_pretrained(
        cls, path_or_hub_id: str | os.PathLike[str] | None = None, **options: Any
    ) -> EsmTokenizer:
        """As `EsmTokenizer.from_pretrained`; `config` and `tokenizer_type` have no effect."""
        kept = {key: options[key] for key in options.keys() - {"config", "tokenizer_type"}}
        return EsmTokenizer.from_pretrained(path_or_hub_id, **kept)


class AutoModel(Auto):
    """`EsmModel`."""

    model_class: ClassVar[type[EsmPreTrainedModel]] = EsmModel

    @classmethod
    def from_pretrained(
        cls, path_or_hub_id: str | os.PathLike[str] | None = None, *model_args: Any, **options: Any
    ) -> Any:
        """As `from_pretrained` of the class."""
        return cls.model_class.from_pretrained(path_or_hub_id, *model_args, **options)

    @classmethod
    def from_config(cls, config: EsmConfig, **options: Any) -> Any:
        """A model with random weights; `dtype`, also spelt `torch_dtype`, is their precision.

        Raises InputError for a config of another family.
        """
        if not isinstance(config, EsmConfig):
            raise InputError(f"{cls.__name__}: give an EsmConfig, not a {type(config).__name__}")
        return cls.model_class._from_config(config, **options)


class AutoModelForMaskedLM(AutoModel):
    """`EsmForMaskedLM`."""

    model_class = EsmForMaskedLM


class AutoModelForSequenceClassification(AutoModel):
    """`EsmForSequenceClassification`."""

    model_class = EsmForSequenceClassification


class AutoModelForTokenClassification(AutoModel):
    """`EsmForTokenClassification`."""

    model_class = EsmForTokenClassification
