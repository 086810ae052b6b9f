"""What `forward` of a model returns: fields by name, key and position. Peer: transformers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import torch.utils._pytree as pytree
from torch import Tensor

ModelInput: TypeAlias = Tensor | bool | Sequence[Sequence[Tensor]] | None
"""What `forward` of a model takes."""


class ModelOutput(OrderedDict[str, Any]):
    """Base of the outputs: a dataclass that is also a dict and a tuple.

    As in the reference, fields that are None are missing from the tuple, from `keys()` and from the
    length. Items that a script adds follow the fields. A dict given as the first field holds all
    fields: this is how tools rebuild an output from its items.
    """

    def __init_subclass__(cls) -> None:
        """Let PyTorch's tools find the tensors of an output."""
        super().__init_subclass__()
        pytree.register_pytree_node(
            cls,
            lambda output: (list(output.values()), list(output)),
            lambda values, names: cls(dict(zip(names, values, strict=True))),
            serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        )

    def __post_init__(self) -> None:
        names = [field.name for field in fields(self)]  # type: ignore[arg-type]
        first = getattr(self, names[0])
        if isinstance(first, Mapping):
            setattr(self, names[0], None)
            for name, value in first.items():
                setattr(self, name, value)
        for name in names:
            setattr(self, name, getattr(self, name))

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field as attribute and item; None is not an item."""
        super().__setattr__(name, value)
        self.pop(name, None)
        if value is not None:
            super().__setitem__(name, value)
            known = [field.name for field in fields(self)]  # type: ignore[arg-type]
            for later in [other for other in known if other in self]:
                self.move_to_end(later)
            for other in [other for other in self if other not in known]:
                self.move_to_end(other)

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in order."""
        return tuple(self.values())

    def __reduce__(self) -> Any:
        return type(self), (dict(self.items()),)

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = None  # type: ignore[assignment]


@dataclass(eq=False)
class EncoderOutput(ModelOutput):
    """Output of `EsmModel`, zeros at masked tokens.

    last_hidden_state: (B, L, D); pooler_output: (B, D); hidden_states: n + 1 of (B, L, D), the
    embedding first, the last one after the final norm; attentions: n of (B, H, L, L). Of decoders:
    past_key_values: for each layer keys and values (B, H, P + L, K), then those of encoder states
    (B, H, S, K) if any; attentions: (B, H, L, P + L); cross_attentions: n of (B, H, L, S).
    """

    last_hidden_state: Tensor = None  # type: ignore[assignment]  # there is always one
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    past_key_values: tuple[tuple[Tensor, ...], ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


@dataclass(eq=False)
class MaskedLMOutput(ModelOutput):
    """Output of `EsmForMaskedLM`. loss: (), mean over labels but −100; logits: (B, L, V)."""

    loss: Tensor | None = None
    logits: Tensor = None  # type: ignore[assignment]  # there always are some
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(eq=False)
class SequenceClassifierOutput(ModelOutput):
    """Output of `EsmForSequenceClassification`. loss: (); logits: (B, num_labels)."""

    loss: Tensor | None = None
    logits: Tensor = None  # type: ignore[assignment]  # there always are some
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(eq=False)
class TokenClassifierOutput(ModelOutput):
    """Output of `EsmForTokenClassification`.

    loss: (), mean over labels but −100; logits: (B, L, num_labels), zeros at masked tokens.
    """

    loss: Tensor | None = None
    logits: Tensor = None  # type: ignore[assignment]  # there always are some
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
