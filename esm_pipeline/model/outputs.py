"""What a model's forward returns: fields by name, by index, by position. Peer: transformers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor


class ModelOutput:
    """Base of the outputs: a dataclass that is also a mapping and a tuple.

    Fields that are None are left out of the tuple, of `keys()` and of the length, as in the
    reference. What else a script puts in comes behind them.
    """

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are set, in order."""
        return tuple(value for _, value in self.items())

    def items(self) -> list[tuple[str, Any]]:
        """Names and values of the fields that are set, in order."""
        return [(name, value) for name, value in vars(self).items() if value is not None]

    def keys(self) -> list[str]:
        """Names of the fields that are set, in order."""
        return [name for name, _ in self.items()]

    def values(self) -> list[Any]:
        """Values of the fields that are set, in order."""
        return [value for _, value in self.items()]

    def __getitem__(self, key: str | int | slice) -> Any:
        return dict(self.items())[key] if isinstance(key, str) else self.to_tuple()[key]

    def get(self, name: str, default: Any = None) -> Any:
        """A field that is set, else `default`."""
        return dict(self.items()).get(name, default)

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self, name, value)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, key: object) -> bool:
        return key in self.keys()


@dataclass
class EncoderOutput(ModelOutput):
    """Of `EsmModel`.

    last_hidden_state: (B, L, D); pooler_output: (B, D); hidden_states: n + 1 of (B, L, D), the
    embedding first, the last after the final norm; attentions: n of (B, H, L, L). Of a decoder too,
    past_key_values: for each layer keys and values (B, H, P + L, K), then those of the encoder's
    states (B, H, S, K) if it looks at them; attentions (B, H, L, P + L); cross_attentions: n of
    (B, H, L, S). Zeros at masked tokens.
    """

    last_hidden_state: Tensor
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    past_key_values: tuple[tuple[Tensor, ...], ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


@dataclass
class MaskedLMOutput(ModelOutput):
    """Of `EsmForMaskedLM`. loss: () mean over the labels that are not -100; logits: (B, L, V)."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class SequenceClassifierOutput(ModelOutput):
    """Of `EsmForSequenceClassification`. loss: (); logits: (B, num_labels)."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class TokenClassifierOutput(ModelOutput):
    """Of `EsmForTokenClassification`.

    loss: () mean over the labels that are not -100; logits: (B, L, num_labels), zeros at masked
    tokens.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
